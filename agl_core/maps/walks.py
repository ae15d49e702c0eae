"""The lines of view on which what stands at a pixel of the ground may be seen, and how far along them it may stand."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agl_core.compiled import machine_code
from agl_core.data.tiles import UNKNOWN

COLUMNS = 32
"""As many pixels side by side are looked at together."""

NOTHING = -1e9
"""Centimetres that stand for an unknown height."""

JOINED = 1.0
"""A gap between neighbours that is at most so much wider on the ground than in the image, pixels, is one surface."""

GRAIN = 8
"""Columns from the beginning of one part of `crests` to that of the next; divides `COLUMNS`."""

_GRAINS = COLUMNS // GRAIN


class Walk(NamedTuple):
    """How the line from a pixel goes on, from one row to the next.

    per_cm: pixels that a centimetre of height leans over; sign: rows up; lean: columns to the left; step: pixels;
    joined: centimetres by which two neighbours of one surface differ at most.
    """

    per_cm: float
    sign: int
    lean: float
    step: float
    joined: float


def walk_of(per_metre: float, dx: float, dy: float) -> Walk:
    """The walk against the direction (dx, dy), which is no nearer to the rows than to the columns."""
    per_cm = per_metre / 100
    return Walk(per_cm, 1 if dy > 0 else -1, dx / abs(dy), 1 / abs(dy), JOINED / max(per_cm, 1e-30))


@machine_code
def crests(agl_cm: NDArray[np.uint16], walk: Walk) -> NDArray[np.int32]:
    """How many samples away anything in a part of a row stands at most, (H, W / 8 + 5); -1 where all is unknown.

    Part n begins at column 8 (n - 4), which may lie outside, and is 40 wide: in it lie all neighbours of as many
    samples as are looked at together, if their first lies in its first 8 columns.
    """
    rows, columns = agl_cm.shape
    count = (columns + GRAIN - 1) // GRAIN
    # A grain holds its highest and 1, or 0; and at both ends there are some that hold nothing.
    grains = np.zeros(count + 2 * _GRAINS + 1, np.int32)
    found = np.empty((rows, count + _GRAINS + 1), np.int32)
    for row in range(rows):
        for n in range(columns // GRAIN):
            highest = np.int32(0)
            for k in range(GRAIN):
                highest = max(highest, np.int32((agl_cm[row, n * GRAIN + k] + 1) & UNKNOWN))
            grains[n + _GRAINS] = highest
        if columns % GRAIN:
            highest = np.int32(0)
            for column in range(columns // GRAIN * GRAIN, columns):
                highest = max(highest, np.int32((agl_cm[row, column] + 1) & UNKNOWN))
            grains[count - 1 + _GRAINS] = highest
        for n in range(found.shape[1]):
            highest = grains[n]
            for k in range(1, _GRAINS + 1):
                highest = max(highest, grains[n + k])
            # Half a pixel beyond a surface's last one still belongs to it.
            found[row, n] = np.int32((highest - 1) * walk.per_cm / walk.step + 0.501) if highest else np.int32(-1)
    return found


@machine_code
def shifts_of(walk: Walk, most: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Whole columns and the rest of them that sample m of a walk lies aside, at m + 1, for m from -1 to most + 2."""
    shifts, asides = np.empty(most + 4, np.int64), np.empty(most + 4, np.float64)
    for m in range(-1, most + 3):
        # Rounded, as a sine that ought to be zero is not quite.
        shift = np.rint(-m * walk.lean * 2**20) / 2**20
        shifts[m + 1] = int(np.floor(shift))
        asides[m + 1] = shift - np.floor(shift)
    return shifts, asides
