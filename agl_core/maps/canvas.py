"""The piece of ground that a rectified image shows, and what its mask says."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agl_core.data.tiles import UNKNOWN
from agl_core.geometry import Pose, direction

SEEN, HIDDEN, OUTSIDE, HEIGHTLESS = range(4)
"""The values of a mask."""

MASK_MEANS = {
    SEEN: "seen: image and height are of what stands here",
    HIDDEN: "hidden: nobody has seen what stands here, something taller was in front of it",
    OUTSIDE: "outside: what stands here lies outside of the image",
    HEIGHTLESS: "without height: nothing known stands here, and what the image shows here has no height",
}


class Rectified(NamedTuple):
    """A piece of ground, as seen from above.

    rgb: (h, w, 3) uint8, black where nothing is known, None without an image; agl_cm: (h, w) uint16, 65535 unknown;
    mask: (h, w) uint8, see `MASK_MEANS`.
    """

    rgb: NDArray[np.uint8] | None
    agl_cm: NDArray[np.uint16]
    mask: NDArray[np.uint8]


class Canvas(NamedTuple):
    """A piece of ground: its first pixel, as a pixel of the image (maybe outside of it), and its size."""

    top: int
    left: int
    height: int
    width: int


def reach(highest_cm: int, pose: Pose) -> int:
    """Pixels that a surface of that height leans over, rounded up."""
    return math.ceil(highest_cm / 100 * pose.scale)


class Highest:
    """The highest surface of every row and of every column of heights, which may come in strips; centimetres."""

    def __init__(self, height: int, width: int) -> None:
        self.rows, self.columns = np.zeros(height, np.uint16), np.zeros(width, np.uint16)

    def add(self, agl_cm: NDArray[np.uint16], top: int = 0) -> "Highest":
        """Look at (n, W) heights from row `top` on."""
        known = np.where(agl_cm == UNKNOWN, np.uint16(0), agl_cm)
        self.rows[top : top + len(known)] = known.max(axis=1)
        np.maximum(self.columns, known.max(axis=0), out=self.columns)
        return self

    @property
    def highest(self) -> int:
        """Of all, centimetres."""
        return int(self.rows.max(initial=0))


def full_canvas(highest: Highest, pose: Pose) -> Canvas:
    """The smallest canvas that holds the image and everything that stands outside of it."""
    # Only the highest of a row (column) decides how far the row (column) goes.
    dx, dy = (float(part) for part in direction(pose.angle))
    top, bottom = _reached(highest.rows, dy * pose.scale / 100)
    left, right = _reached(highest.columns, dx * pose.scale / 100)
    return Canvas(top, left, bottom - top, right - left)


def _reached(highest: NDArray[np.uint16], per_cm: float) -> tuple[int, int]:
    places = np.arange(len(highest)) + highest * per_cm
    return min(0, math.floor(places.min() + 0.5)), max(len(highest), math.floor(places.max() + 0.5) + 1)
