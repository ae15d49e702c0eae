"""Machine code of the geometric augmentation: heights resampled, surfaces moved, holes filled.

Surfaces move along one direction, in proportion to their height: `p' = p + height * (major, minor)`. So a picture
falls apart into lines along that direction, which have nothing to do with each other. The arrays here are laid out
for them: [row, column] with the rows along the `major` axis of the move, and the line through (row, column) goes on
at (row + 1, column + bend[row + 1] - bend[row]), where `bend[row]` is `slope * row` rounded. Heights are sampled on the
exact lines, between the columns.

Heights are float32 centimetres; UNKNOWN_HEIGHT and EMPTY are below all of them, so that everything known hides them.
"""

import math

import numpy as np
from numpy.typing import NDArray

from agl_core.compiled import machine_code

UNKNOWN_HEIGHT = -1.0
"""Something is seen here, but nobody knows its height; it stays where it is."""

GAP = -1.5
"""Two surfaces of known height that were side by side have parted here: nothing else was between them."""

EMPTY = -2.0
"""Nothing has come here."""

UNKNOWN = 65535

MIRRORED = 4
"""Pixels of ground beside a hole that it is filled with."""


@machine_code
def sample_heights(
    agl: NDArray[np.uint16],
    matrix: NDArray[np.float64],
    bends: NDArray[np.float64],
    jump: float,
    heights: NDArray[np.float32],
) -> None:
    """Resample heights at (x, y) = matrix @ (column + bends[row], row, 1).

    agl: (H, W) uint16 centimetres; matrix: (2, 3); jump: centimetres; heights: (h, w) float32, filled.

    Bilinear where the four neighbours belong to one surface, that is, are known and differ by at most `jump`; the
    nearest of them at edges, since the height between a roof and the ground is that of nothing.
    """
    rows, columns = agl.shape
    last_x, last_y = columns - 1.0, rows - 1.0
    step_x, step_y = matrix[0, 0], matrix[1, 0]
    for row in range(heights.shape[0]):
        start_x = step_x * bends[row] + matrix[0, 1] * row + matrix[0, 2]
        start_y = step_y * bends[row] + matrix[1, 1] * row + matrix[1, 2]
        for column in range(heights.shape[1]):
            x, y = start_x + step_x * column, start_y + step_y * column
            if x < 0.0 or y < 0.0 or x >= last_x or y >= last_y:  # on the border of the image or outside
                if x < -0.5 or y < -0.5 or x >= last_x + 0.5 or y >= last_y + 0.5:
                    heights[row, column] = UNKNOWN_HEIGHT
                    continue
                x, y = min(max(x, 0.0), last_x), min(max(y, 0.0), last_y)
            left, top = np.int32(x), np.int32(y)
            right, bottom = min(left + 1, columns - 1), min(top + 1, rows - 1)
            u, v = np.float32(x - left), np.float32(y - top)
            a, b = np.int32(agl[top, left]), np.int32(agl[top, right])
            c, d = np.int32(agl[bottom, left]), np.int32(agl[bottom, right])
            highest = max(max(a, b), max(c, d))
            if highest == 0:
                heights[row, column] = 0.0
                continue
            if highest != UNKNOWN and highest - min(min(a, b), min(c, d)) <= jump:
                upper = a + u * np.float32(b - a)
                lower = c + u * np.float32(d - c)
                heights[row, column] = upper + v * (lower - upper)
                continue
            nearest = (a if u < 0.5 else b) if v < 0.5 else (c if u < 0.5 else d)
            heights[row, column] = UNKNOWN_HEIGHT if nearest == UNKNOWN else np.float32(nearest)


@machine_code
def move_surfaces(
    heights: NDArray[np.float32],
    bend: NDArray[np.int64],
    first_row: int,
    first_column: int,
    major: float,
    ground_major: float,
    ground_minor: float,
    slope: float,
    reach: float,
    seen: NDArray[np.float32],
) -> None:
    """Move all surfaces; what nothing has moved to is a GAP between two of them or stays EMPTY.

    heights: (h, w) before; its [0, 0] is row `first_row` and column `first_column` of `seen`.
    bend: of all rows from the least to the largest that occur, the first one being `first_row`.
    major: pixels along the rows that a centimetre of height moves.
    ground_major, ground_minor: from a pixel to where it stands on the ground, pixels per centimetre of height.
    reach: two neighbours are one surface if they stand at most so many pixels apart on the ground.
    seen: (H, W) heights that are seen after the move, filled; the tallest wins.

    A stretch of surface whose order along the line is reversed is seen from behind, and is left out.
    """
    size_rows, size_columns = seen.shape
    seen[:] = EMPTY
    reach *= reach
    for line_row in range(heights.shape[0] - 1):
        row = first_row + line_row
        turn = bend[line_row + 1] - bend[line_row]
        offset = first_column - bend[line_row]
        for column in range(max(0, -turn), heights.shape[1] - max(0, turn)):
            here, there = heights[line_row, column], heights[line_row + 1, column + turn]
            if here == there:  # level, which is by far the most: it moves as a whole
                target = math.ceil(row + max(here, np.float32(0.0)) * major)
                if 0 <= target < size_rows:
                    where = column + offset + bend[target - first_row]
                    if 0 <= where < size_columns and here > seen[target, where]:
                        seen[target, where] = here
                continue
            low, high = max(here, np.float32(0.0)), max(there, np.float32(0.0))
            begin, end = row + low * major, row + 1 + high * major
            rise = high - low
            apart_major, apart_minor = 1.0 + rise * ground_major, slope + rise * ground_minor
            one = apart_major * apart_major + apart_minor * apart_minor <= reach
            if one and end <= begin:
                continue
            known = here >= 0.0 and there >= 0.0
            if known and not one:
                for target in range(max(math.floor(begin + 0.5) + 1, 0), min(math.ceil(end - 0.5), size_rows)):
                    where = column + offset + bend[target - first_row]
                    if 0 <= where < size_columns and seen[target, where] == EMPTY:
                        seen[target, where] = GAP
            for side in range(1 if one else 2):  # two surfaces: each to the border of its last pixel
                first = math.ceil(begin if side == 0 else end - 0.5)
                stop = math.ceil(end if one or side == 1 else begin + 0.5)
                for target in range(max(first, 0), min(stop, size_rows)):
                    where = column + offset + bend[target - first_row]
                    if where < 0 or where >= size_columns:
                        continue
                    if one:
                        way = (target - begin) / (end - begin)
                        height = np.float32(low + way * rise) if known else (here if way < 0.5 else there)
                    else:
                        height = here if side == 0 else there
                    if height > seen[target, where]:
                        seen[target, where] = height


@machine_code
def fill_holes(
    seen: NDArray[np.float32], bend: NDArray[np.int64], major: float, mark: bool, shift: NDArray[np.float32]
) -> None:
    """Give what was uncovered the colours of the ground beside it, of MIRRORED pixels to and fro.

    seen: (H, W) heights, EMPTY and GAP ones replaced; bend: (H,) of its rows; shift: (H, W) filled: how many rows
    before a pixel its colour lies. With `mark` all that was uncovered is of unknown height, since it may be anything.
    Otherwise a GAP has the height of the lower neighbour; what is EMPTY is unknown, since a surface of unknown height
    may have come there.
    """
    rows, columns = seen.shape
    for row in range(rows):
        for column in range(columns):
            height = seen[row, column]
            shift[row, column] = height * major if height > 0.0 else 0.0
    for row in range(rows):
        for column in range(columns):
            if seen[row, column] >= UNKNOWN_HEIGHT:
                continue
            line = column - bend[row]  # the first of its hole, as those above were filled before
            after = row + 1
            while after < rows and 0 <= line + bend[after] < columns and seen[after, line + bend[after]] <= GAP:
                after += 1
            closed = after < rows and 0 <= line + bend[after] < columns
            opened = row > 0 and 0 <= line + bend[row - 1] < columns
            first = seen[row - 1, line + bend[row - 1]] if opened else np.float32(EMPTY)
            second = seen[after, line + bend[after]] if closed else np.float32(EMPTY)
            filled = opened and closed and not mark
            near = after if closed and (not opened or second < first) else row - 1
            ground = second if near == after else first
            moved = max(ground, np.float32(0.0)) * major
            for hole in range(row, after):
                at = line + bend[hole]
                seen[hole, at] = ground if filled and seen[hole, at] == GAP else UNKNOWN_HEIGHT
                if opened or closed:
                    away = hole - near
                    wave = abs(away) % (2 * MIRRORED)
                    wave = min(wave, 2 * MIRRORED - wave)
                    shift[hole, at] = away + (wave if away > 0 else -wave) + moved
                else:
                    shift[hole, at] = 0.0


@machine_code
def colour_map(
    shift: NDArray[np.float32],
    slope: float,
    transposed: bool,
    matrix: NDArray[np.float64],
    map_x: NDArray[np.float32],
    map_y: NDArray[np.float32],
) -> None:
    """Where in the input the colour of each pixel lies.

    shift: (S, S) rows that a pixel has moved, in the layout of the lines; transposed: whether that has x and y swapped;
    matrix: (2, 3), from pixels of the output (x, y, 1) to the input; map_x, map_y: (S, S) float32, filled.
    """
    rows, columns = map_x.shape
    for row in range(rows):
        for column in range(columns):
            if transposed:
                along = shift[column, row]
                x, y = column - along, row - slope * along
            else:
                along = shift[row, column]
                x, y = column - slope * along, row - along
            map_x[row, column] = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]
            map_y[row, column] = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]


@machine_code
def to_centimetres(heights: NDArray[np.float32], factor: float, transposed: bool, agl: NDArray[np.uint16]) -> None:
    """heights (S, S) float32 centimetres, perhaps with x and y swapped, times `factor`, to uint16 with unknown ones."""
    rows, columns = agl.shape
    for row in range(rows):
        for column in range(columns):
            height = heights[column, row] if transposed else heights[row, column]
            if height < 0.0:
                agl[row, column] = UNKNOWN
            else:
                agl[row, column] = min(int(height * factor + 0.5), UNKNOWN - 1)
