"""Test-time augmentation: the views in which an image is predicted, and how their answers are taken back."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agl_core.geometry import (
    D4,
    FLIP_HORIZONTAL,
    FLIP_VERTICAL,
    IDENTITY,
    Symmetry,
    apply,
    apply_direction,
)
from agl_core.inference.windows import pad_to_multiple
from agl_core.model.network import STRIDE
from agl_core.opencv import cv2

ZOOMS = (1.0, 0.75, 1.25)
"""Magnifications: those that a multiple of 128 pixels makes multiples of 32 of, so that the windows of a magnified
image are cut into the same cells as the whole of it (see `windows.window_starts`)."""

_SPARE = 2  # pixels more than needed that are resampled, so that however the size is rounded there are enough


@dataclass(frozen=True)
class View:
    """An image as the network is shown it: magnified by `zoom`, extended to a size that the network takes, then turned
    and mirrored by `symmetry`.

    Extended before it is turned, so that the network's cells of 32 x 32 pixels are the same in all views, and in all
    windows of an image whose size is no multiple of 32 too.
    """

    symmetry: Symmetry = IDENTITY
    zoom: float = 1.0

    @property
    def exact(self) -> bool:
        """Whether pixels only change places."""
        return self.zoom == 1

    def image(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(h, w, 3) uint8 as shown, of (H, W, 3) uint8: h = H * zoom and w = W * zoom, rounded up to multiples of 32,
        or exchanged."""
        if not self.exact:
            rgb = _resampled(rgb, self.zoom, *self._size(*rgb.shape[:2]))
        return apply(pad_to_multiple(rgb, STRIDE), self.symmetry)

    def gsd(self, gsd: float) -> float:
        """Metres per pixel of what is shown."""
        return gsd / self.zoom

    def heights(self, metres: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
        """(height, width) metres of the image from those of what is shown: heights are what they are at any size."""
        rows, columns = self._size(height, width)
        back = apply(metres, self.symmetry.inverse())[:rows, :columns]
        return back if self.exact else _resampled(back, 1 / self.zoom, height, width)

    def pose(self, scale: float, dx: float, dy: float) -> list[float]:
        """(scale, sin, cos) of the image from those of what is shown: a metre of height spans `zoom` times the pixels
        there, and points where the image has been turned to."""
        return [scale / self.zoom, *apply_direction(dx, dy, self.symmetry.inverse())]

    def _size(self, height: int, width: int) -> tuple[int, int]:
        return math.ceil(height * self.zoom), math.ceil(width * self.zoom)


FLIPS = (IDENTITY, FLIP_HORIZONTAL, FLIP_VERTICAL, FLIP_HORIZONTAL.then(FLIP_VERTICAL))

VIEWS = {
    "none": (View(),),
    "flips": tuple(View(op) for op in FLIPS),
    "d4": tuple(View(op) for op in D4),
    "scales": tuple(View(zoom=zoom) for zoom in ZOOMS),
    "all": tuple(View(op, zoom) for zoom in ZOOMS for op in D4),
}
"""In which views an image is predicted, in this order, by the name of `tta`."""


class Averaged:
    """The mean of the views' heights, and if `spread` their standard deviation, without keeping them all."""

    def __init__(self, first: NDArray[np.float32], spread: bool) -> None:
        """first: (H, W) heights of the first view; they are not changed."""
        self._first, self._count, self._spread = first, 1, spread
        self._total = np.zeros(0)
        self._squares = np.zeros(0)  # of distances from the first: heights are close together, their squares are not

    def add(self, metres: NDArray[np.float32]) -> None:
        """Heights of a further view; they are not changed."""
        if self._count == 1:
            self._total = self._first.astype(np.float64) + 0.0  # + 0.0: there is one zero only
            self._squares = np.zeros(metres.shape if self._spread else 0)
        self._total += metres
        if self._spread:
            self._squares += np.square(np.subtract(metres, self._first, dtype=np.float64))
        self._count += 1

    def mean(self) -> NDArray[np.float32] | NDArray[np.float64]:
        """(H, W) metres; of one view just what it said."""
        return self._total / self._count if self._count > 1 else self._first

    def spread(self) -> NDArray[np.float64] | None:
        """(H, W) metres; None if nobody asked for it or there is but one view."""
        if not self._spread or self._count == 1:
            return None
        moved = self._total / self._count - self._first
        result: NDArray[np.float64] = np.sqrt(np.maximum(self._squares / self._count - moved**2, 0.0))
        return result


def _resampled(image: NDArray[Any], by: float, height: int, width: int) -> NDArray[Any]:
    """The first (height, width) pixels of an (H, W, ...) image magnified by just `by`, whatever its size.

    Pixel p of it lies at (p + 0.5) / by - 0.5 of the image, the last pixels of which are repeated beyond its borders.
    Colours and heights are interpolated linearly; what becomes smaller is the mean over the area of each new pixel.
    """
    padded: Any = cv2.copyMakeBorder(np.ascontiguousarray(image), 0, _SPARE, 0, _SPARE, cv2.BORDER_REPLICATE)
    method = cv2.INTER_LINEAR if by >= 1 else cv2.INTER_AREA
    # With factors and no size it takes just these: with a size, whatever makes all of the image that size.
    result: Any = cv2.resize(padded, None, fx=by, fy=by, interpolation=method)
    return np.ascontiguousarray(result[:height, :width])
