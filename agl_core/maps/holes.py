"""What is put where nothing is known to stand, if it is asked for: the ground beside it, or what the image shows."""

import numpy as np
from numpy.typing import NDArray

from agl_core.compiled import machine_code
from agl_core.data.tiles import UNKNOWN
from agl_core.maps.canvas import HEIGHTLESS, HIDDEN, SEEN, Canvas


def fill_reach(leaning: int) -> int:
    """Pixels within which the ground beside a hidden place is looked for, where things lean over by `leaning`."""
    return 2 * leaning + 16


def show_heightless(rgb: NDArray[np.uint8], canvas: Canvas, moved: NDArray[np.uint8], mask: NDArray[np.uint8]) -> None:
    """Give what has no height the image's colour in its place, as if it lay on the ground (it is water, mostly)."""
    top, left = max(0, canvas.top), max(0, canvas.left)
    bottom = min(rgb.shape[0], canvas.top + canvas.height)
    right = min(rgb.shape[1], canvas.left + canvas.width)
    if bottom <= top or right <= left:
        return
    here = np.s_[top - canvas.top : bottom - canvas.top, left - canvas.left : right - canvas.left]
    without = mask[here] == HEIGHTLESS
    moved[here][without] = rgb[top:bottom, left:right][without]


@machine_code
def fill_hidden(agl: NDArray[np.uint16], moved: NDArray[np.uint8], mask: NDArray[np.uint8], most: int) -> None:
    """Give hidden pixels the height and colour of the nearest seen ones in eight directions that are as low as the
    lowest of these, within a metre; what has none within `most` pixels stays unknown."""
    rows, columns = mask.shape
    coloured = moved.shape[0] > 0
    for i in range(rows):
        for j in range(columns):
            if mask[i, j] != HIDDEN:
                continue
            lowest = np.int64(UNKNOWN)
            for turn in range(2):
                nearest, at_row, at_column = 1e30, -1, -1
                for di in range(-1, 2):
                    for dj in range(-1, 2):
                        if di == 0 and dj == 0:
                            continue
                        y, x, steps = i + di, j + dj, 1
                        while 0 <= y < rows and 0 <= x < columns and steps <= most and mask[y, x] != SEEN:
                            y, x, steps = y + di, x + dj, steps + 1
                        if not (0 <= y < rows and 0 <= x < columns and steps <= most):
                            continue
                        height = np.int64(agl[y, x])
                        if turn == 0:
                            lowest = min(lowest, height)
                        elif height <= lowest + 100:
                            way = steps * np.sqrt(float(di * di + dj * dj))
                            if way < nearest:
                                nearest, at_row, at_column = way, y, x
            if at_row >= 0:
                agl[i, j] = agl[at_row, at_column]
                if coloured:
                    for band in range(3):
                        moved[i, j, band] = moved[at_row, at_column, band]
