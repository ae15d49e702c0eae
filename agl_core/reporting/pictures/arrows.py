"""Arrows from the tops of what is high to where it stands, and the sizes of everything that is drawn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agl_core.geometry import direction
from agl_core.opencv import cv2
from agl_core.reporting.pictures.sheet import INK, WHITE, Image

LEAST_HEIGHT_M = 1.0
"""Metres from which on a surface gets an arrow: lower ones are the noise of flat ground."""

LONGER = (1, 2, 5, 10, 20)
"""How many times as long as they are arrows may be drawn, so that they can be seen."""


@dataclass(frozen=True)
class Sizes:
    """Pixels of what lies around the panels, for panels of one size; `unit` is 1 for a side of 1024."""

    unit: float

    def px(self, pixels: float) -> int:
        """`pixels` at a side of 1024, here."""
        return max(1, round(pixels * self.unit))

    @property
    def thick(self) -> int:
        """Thickness of letters."""
        return 2 if self.unit >= 0.8 else 1


@dataclass(frozen=True)
class Arrow:
    """From a surface, seen at (x, y), as far as it stands away: (dx, dy). Pixels of the panel."""

    x: float
    y: float
    dx: float
    dy: float


def flow_arrows(metres: NDArray[np.float32], per_metre: float, angle: float, sizes: Sizes) -> tuple[list[Arrow], int]:
    """Arrows from tops to where they stand, and how many times as long as that they are drawn.

    metres: (h, w) heights of the panel's pixels, NaN where unknown; per_metre: the panel's pixels that a metre of
    height leans over. The panel is cut into squares of which each gives its highest surface, if its arrow is long
    enough to be seen; of those in each other's way the higher stays.
    """
    tops = _tops(metres, sizes)
    if not tops or per_metre <= 0:
        return [], 1
    least, wanted = sizes.px(18), sizes.px(30)
    highest = tops[0][0] * per_metre
    longer = next((times for times in LONGER if highest * times >= wanted), 0)
    if not longer:
        return [], 1
    dx, dy = (float(part) for part in direction(angle))
    arrows: list[Arrow] = []
    for height, y, x in tops:
        length = height * per_metre * longer
        arrow = Arrow(x, y, dx * length, dy * length)
        if length >= least and not any(_in_the_way(arrow, other, sizes.px(30)) for other in arrows):
            arrows.append(arrow)
    return arrows, longer


def arrow_words(arrows: Sequence[Arrow], longer: int) -> str:
    """What the arrows mean."""
    if not arrows:
        return "no arrows: everything stands where it is seen, nearly"
    drawn = "to scale" if longer == 1 else f"drawn {longer} x as long as it is"
    return f"arrows: from a top to where it stands, {drawn}"


def _tops(metres: NDArray[np.float32], sizes: Sizes) -> list[tuple[float, int, int]]:
    """(height, y, x) of the highest surface in each square, the highest first; single pixels that stick out do not
    count."""
    side = sizes.px(76)
    known = np.nan_to_num(metres, nan=0.0)
    calm = cv2.erode(known, np.ones((3, 3), np.uint8)) if min(known.shape) > 2 else known
    found = []
    for top in range(0, known.shape[0], side):
        for left in range(0, known.shape[1], side):
            part = np.asarray(calm[top : top + side, left : left + side])
            height = float(part.max())
            if height >= LEAST_HEIGHT_M:
                # Flat roofs have many highest pixels: the one in their middle.
                rows, columns = np.nonzero(part >= height - 0.05)
                middle = int(np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2))
                found.append((height, top + int(rows[middle]), left + int(columns[middle])))
    return sorted(found, key=lambda one: (-one[0], one[1], one[2]))


def _in_the_way(one: Arrow, other: Arrow, room: float) -> bool:
    """Whether two parallel arrows come closer to each other than `room`."""
    length = math.hypot(one.dx, one.dy)
    dx, dy = one.dx / length, one.dy / length
    along = (other.x - one.x) * dx + (other.y - one.y) * dy
    aside = abs((other.y - one.y) * dx - (other.x - one.x) * dy)
    reach = math.hypot(other.dx, other.dy)
    gap = max(along - length, -(along + reach), 0.0)
    return math.hypot(gap, aside) < room


def with_arrows(picture: Image, arrows: Sequence[Arrow], sizes: Sizes) -> Image:
    """Draw arrows, white with a dark rim, each with a dot at its start, into `picture`."""
    shift = 4

    def place(x: float, y: float) -> tuple[int, int]:
        return round(x * 2**shift), round(y * 2**shift)

    for colour, thickness in ((INK, sizes.px(5) + 1), (WHITE, sizes.px(2.2))):
        for arrow in arrows:
            start, end = place(arrow.x, arrow.y), place(arrow.x + arrow.dx, arrow.y + arrow.dy)
            tip = min(0.45, sizes.px(11) / max(1.0, math.hypot(arrow.dx, arrow.dy)))
            cv2.arrowedLine(picture, start, end, colour, thickness, cv2.LINE_AA, shift, tip)
            radius = (thickness + sizes.px(3)) << (shift - 1)
            cv2.circle(picture, start, radius, colour, cv2.FILLED, cv2.LINE_AA, shift)
    return picture
