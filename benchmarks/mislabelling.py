"""The reference's two errors in the labels of augmented samples, put into the sampling of this project.

- A sample magnified by f has its scale divided by f, where it must be multiplied (its gsd is divided by f, rightly).
- What a turned or reduced image leaves uncovered, which is black, has height 0 instead of none.

Images, random numbers and all other labels stay what they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from agl_core.data import sampling
from agl_core.data.augment.geometric import Geometry, draw_geometry, transform
from agl_core.data.tiles import UNKNOWN
from agl_core.geometry import Pose


@dataclass(frozen=True)
class MislabelledGeometry(Geometry):
    """A geometry that tells a wrong scale of what it has magnified."""

    def labels(self, pose: Pose, gsd: float) -> tuple[Pose, float]:
        """Pose with the scale divided by the magnification, and the right gsd."""
        right, gsd = super().labels(pose, gsd)
        return Pose(self.viewed(pose).scale / self.zoom, right.angle), gsd


def mislabelled_draw(*arguments: Any) -> MislabelledGeometry:
    """As `draw_geometry`, with wrong labels."""
    return MislabelledGeometry(**vars(draw_geometry(*arguments)))


def mislabelled_transform(
    rgb: NDArray[np.uint8],
    agl: NDArray[np.uint16],
    pose: Pose | None,
    geometry: Geometry,
    size: int,
    centre: tuple[float, float],
) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """As `transform`, with height 0 where the crop lies outside the image; what is unknown in the image stays so."""
    colours, heights = transform(rgb, agl, pose, geometry, size, centre)
    if (heights == UNKNOWN).any():
        still = replace(geometry, stretch=1.0, scale_by=1.0, angle_by=0.0)
        _, covered = transform(rgb, np.zeros_like(agl), None, still, size, centre)
        heights[(heights == UNKNOWN) & (covered == UNKNOWN)] = 0
    return colours, heights


@contextmanager
def wrong_labels() -> Iterator[None]:
    """Samples made meanwhile in this process have the reference's errors in their labels."""
    with (
        patch.object(sampling, "draw_geometry", mislabelled_draw),
        patch.object(sampling, "transform", mislabelled_transform),
    ):
        yield
