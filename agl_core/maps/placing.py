"""What has been found to stand at the pixels of the ground is put there: its height, its colour, and the mask."""

import numpy as np
from numpy.typing import NDArray

from agl_core.compiled import machine_code
from agl_core.maps.canvas import HEIGHTLESS, HIDDEN, OUTSIDE, SEEN
from agl_core.maps.walks import COLUMNS, Walk


@machine_code
def _in_place(places: NDArray[np.int32], shares: NDArray[np.float32], i: int, first: int) -> bool:
    """Whether `COLUMNS` pixels side by side stand where they are seen."""
    away, line, start = np.int32(0), np.uint64(i), np.uint64(first)
    for k in range(COLUMNS):
        stays = (places[line, start + np.uint64(k)] == 0) & (shares[line, start + np.uint64(k)] == np.float32(0))
        away = np.int32(away + (np.int32(0) if stays else np.int32(1)))
    return bool(away == 0)


@machine_code
def _stay(
    heights: NDArray[np.float32],
    colours: NDArray[np.uint8],
    row: int,
    column: int,
    agl: NDArray[np.uint16],
    moved: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    i: int,
    first: int,
) -> None:
    """Give `COLUMNS` pixels from (i, first) on what is seen from (row, column) on."""
    line, start, to, at = np.uint64(row), np.uint64(column), np.uint64(i), np.uint64(first)
    for k in range(COLUMNS):
        agl[to, at + np.uint64(k)] = np.uint16(np.int32(heights[line, start + np.uint64(k)]))
    for k in range(COLUMNS):
        mask[to, at + np.uint64(k)] = SEEN
    if colours.shape[0] > 0:
        start, at = np.uint64(3 * column), np.uint64(3 * first)
        for k in range(3 * COLUMNS):
            moved[to, at + np.uint64(k)] = colours[line, start + np.uint64(k)]


@machine_code
def _move(
    heights: NDArray[np.float32],
    colours: NDArray[np.uint8],
    walk: Walk,
    shifts: NDArray[np.int64],
    asides: NDArray[np.float64],
    y: int,
    x: int,
    places: NDArray[np.int32],
    shares: NDArray[np.float32],
    agl: NDArray[np.uint16],
    moved: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    i: int,
    first: int,
) -> None:
    """Give `COLUMNS` pixels from (i, first) on, (y, x) of the image, the samples of their walks that stand there."""
    rows, columns = heights.shape
    final = max(columns - 2, 0)  # where the last two pixels of a row begin
    coloured, to, three = colours.shape[0] > 0, np.uint64(i), np.uint64(3)
    zero, whole, half, joined = np.float32(0.0), np.float32(1.0), np.float32(0.5), np.float32(walk.joined)
    for k in range(min(COLUMNS, mask.shape[1] - first)):
        j = np.uint64(first + k)
        m, part = np.int64(places[to, j]), shares[to, j]
        if m < 0:
            if 0 <= y < rows and 0 <= x + k < columns:
                mask[to, j] = HEIGHTLESS if heights[y, x + k] < 0.0 else HIDDEN
            else:
                mask[to, j] = OUTSIDE
            continue
        mask[to, j] = SEEN
        # Two pixels of this sample's row, two of the next one's; at the border those on it, which go on beyond it.
        row, start, aside = y - walk.sign * m, x + k + shifts[m + 1], np.float32(asides[m + 1])
        far_row, far_start, far_aside = row - walk.sign, x + k + shifts[m + 2], np.float32(asides[m + 2])
        line, far_line = np.uint64(min(max(row, 0), rows - 1)), np.uint64(min(max(far_row, 0), rows - 1))
        between, far_between = aside, far_aside
        if min(start, far_start) < 0 or max(start, far_start) >= columns - 1:
            pair, far_pair = min(max(start, 0), final), min(max(far_start, 0), final)
            aside, far_aside = aside + np.float32(start - pair), far_aside + np.float32(far_start - far_pair)
            start, far_start, between, far_between = pair, far_pair, aside, far_aside
            if min(aside, far_aside) < zero or max(aside, far_aside) > whole:
                # The line leaves the image between the samples: their weights are those of the place that is seen.
                between = min(max(aside + part * (far_aside - aside), zero), whole)
                far_between = between
        one, far_one = np.uint64(start), np.uint64(far_start)
        two, far_two = np.uint64(min(start + 1, columns - 1)), np.uint64(min(far_start + 1, columns - 1))
        here, there = heights[line, one], heights[line, two]
        far_here, far_there = heights[far_line, far_one], heights[far_line, far_two]
        # As the samples were made: interpolated within a surface, or else the nearer pixel's.
        w = between if abs(there - here) <= joined else (zero if aside < half else whole)
        far_w = far_between if abs(far_there - far_here) <= joined else (zero if far_aside < half else whole)
        rest = whole - part
        by_one, by_two, by_far_one, by_far_two = rest * (whole - w), rest * w, part * (whole - far_w), part * far_w
        total = by_one * here + by_two * there
        total += by_far_one * far_here + by_far_two * far_there
        agl[to, j] = np.uint16(np.int32(total + half))
        if coloured:
            one, two, far_one, far_two, j = one * three, two * three, far_one * three, far_two * three, j * three
            for n in range(3):
                band = np.uint64(n)
                total = by_one * np.float32(colours[line, one + band]) + by_two * np.float32(colours[line, two + band])
                total += by_far_one * np.float32(colours[far_line, far_one + band])
                total += by_far_two * np.float32(colours[far_line, far_two + band])
                moved[to, j + band] = np.uint8(np.int32(total + half))


@machine_code
def put(
    heights: NDArray[np.float32],
    colours: NDArray[np.uint8],
    walk: Walk,
    shifts: NDArray[np.int64],
    asides: NDArray[np.float64],
    top: int,
    left: int,
    places: NDArray[np.int32],
    shares: NDArray[np.float32],
    agl: NDArray[np.uint16],
    moved: NDArray[np.uint8],
    mask: NDArray[np.uint8],
) -> None:
    """Give every pixel of a part of the canvas what `crossing.find` has found.

    colours, moved: (H, 3 W) and (h, 3 w), or (0, 0) without an image.
    """
    for i in range(mask.shape[0]):
        y = i + top
        for first in range(0, mask.shape[1], COLUMNS):
            x = first + left
            if first + COLUMNS <= mask.shape[1] and _in_place(places, shares, i, first):
                _stay(heights, colours, y, x, agl, moved, mask, i, first)
            else:
                _move(heights, colours, walk, shifts, asides, y, x, places, shares, agl, moved, mask, i, first)
