"""A tile with its truth and its prediction, and smaller ones."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agl_core.geometry import Pose
from agl_core.opencv import cv2
from agl_core.reporting.pictures.look import UNKNOWN_CM, brought_to

SIDE = 512
"""Most pixels of a side of the tiles that training shows and keeps."""


@dataclass(frozen=True)
class Tile:
    """A tile with known heights, and what was predicted for it.

    rgb: (H, W, 3) the image, None if it is not there; truth_cm, predicted_cm: (H, W) centimetres, 65535 where unknown;
    truth, prediction: poses of the image itself, pixels per metre and radians (`truth` None where nobody knows it);
    zoom: how many pixels of these arrays one of the image's is, 0.25 if they have been made four times smaller.
    """

    id: str
    city: str
    rgb: NDArray[np.uint8] | None
    truth_cm: NDArray[np.uint16]
    predicted_cm: NDArray[np.uint16]
    truth: Pose | None
    prediction: Pose
    zoom: float = 1.0

    def smaller(self, side: int = SIDE) -> "Tile":
        """The same with at most `side` pixels along the longer side: means over what is known."""
        by = reduction(self.truth_cm.shape, side)
        if by == 1:
            return self
        return replace(
            self,
            rgb=None if self.rgb is None else smaller_image(self.rgb, side),
            truth_cm=smaller_heights(self.truth_cm, side),
            predicted_cm=smaller_heights(self.predicted_cm, side),
            zoom=self.zoom * by,
        )


def reduction(shape: tuple[int, ...], side: int = SIDE) -> float:
    """What (H, W, ...) has to be multiplied with to have at most `side` pixels along the longer side; at most 1."""
    return min(1.0, side / max(shape[:2]))


def smaller_shape(shape: tuple[int, ...], side: int = SIDE) -> tuple[int, int]:
    """(h, w) of an array of the shape (H, W, ...) after `smaller_heights` or `smaller_image`."""
    by = reduction(shape, side)
    return max(1, round(shape[0] * by)), max(1, round(shape[1] * by))


def smaller_heights(centimetres: NDArray[np.uint16], side: int = SIDE) -> NDArray[np.uint16]:
    """(H, W) heights with at most `side` pixels along the longer side; unknown where most is not known."""
    by = reduction(centimetres.shape, side)
    if by == 1:
        return centimetres
    metres = brought_to(by, centimetres)
    return np.where(np.isnan(metres), np.float32(UNKNOWN_CM), np.rint(metres * 100)).astype(np.uint16)


def smaller_image(rgb: NDArray[np.uint8], side: int = SIDE) -> NDArray[np.uint8]:
    """(H, W, 3) an image with at most `side` pixels along the longer side."""
    if reduction(rgb.shape, side) == 1:
        return rgb
    height, width = smaller_shape(rgb.shape, side)
    return np.array(cv2.resize(np.ascontiguousarray(rgb), (width, height), interpolation=cv2.INTER_AREA), np.uint8)
