"""Undoing the filter of codec zstd, compiled; imported when the first value is read, since it imports numba."""

from typing import Any

import numpy as np

from agl_core.compiled import machine_code


@machine_code
def unfilter(
    heights: Any,
    colours: Any,
    width: int,
    part: tuple[int, int, int, int],
    to: tuple[int, int],
    planes: Any,
    plane_step: int,
    row_step: int,
    agl: Any,
    agl_step: int,
) -> None:
    """Restore a part of a block and write it to where it goes.

    Differences add up modulo a power of two, so that rows are added up where the result goes, those above the part in
    its first row; and red is its difference to green plus green in each row alike.

    Args:
        heights: (2 * block,) uint8, low and high bytes of the filtered AGL.
        colours: (3 * block,) uint8, filtered R, G, B.
        width: of the block.
        part: top, left, rows and columns of the part, in the block.
        to: row and column of its first pixel in the crop.
        planes: memory of the crop's planes, uint8.
        plane_step, row_step: how far planes and rows are apart in it.
        agl: memory of the crop's AGL, uint16.
        agl_step: how far rows are apart in it.
    """
    top, left, rows, columns = part
    size = heights.size // 2
    place, agl_place = to[0] * row_step + to[1], to[0] * agl_step + to[1]
    _first_row(heights, colours, size, left, columns, planes, place, plane_step, agl, agl_place)
    # Loops over one row of one plane each, with nothing that outlives a row: these become vector instructions.
    for y in range(1, top + 1):
        at = y * width + left
        low, high = heights[at : at + columns], heights[size + at : size + at + columns]
        r, g = colours[at : at + columns], colours[size + at : size + at + columns]
        b = colours[2 * size + at : 2 * size + at + columns]
        metres = agl[agl_place : agl_place + columns]
        for x in range(columns):
            metres[x] += _step(low[x], high[x])
        red = planes[place : place + columns]
        for x in range(columns):
            red[x] += r[x] + g[x]
        green = planes[place + plane_step : place + plane_step + columns]
        for x in range(columns):
            green[x] += g[x]
        blue = planes[place + 2 * plane_step : place + 2 * plane_step + columns]
        for x in range(columns):
            blue[x] += b[x] + g[x]
    for y in range(top + 1, top + rows):
        at = y * width + left
        low, high = heights[at : at + columns], heights[size + at : size + at + columns]
        r, g = colours[at : at + columns], colours[size + at : size + at + columns]
        b = colours[2 * size + at : 2 * size + at + columns]
        above, agl_above = place, agl_place
        place += row_step
        agl_place += agl_step
        metres, metres_above = agl[agl_place : agl_place + columns], agl[agl_above : agl_above + columns]
        for x in range(columns):
            metres[x] = metres_above[x] + _step(low[x], high[x])
        red, red_above = planes[place : place + columns], planes[above : above + columns]
        for x in range(columns):
            red[x] = red_above[x] + r[x] + g[x]
        above += plane_step
        green, green_above = planes[place + plane_step : place + plane_step + columns], planes[above : above + columns]
        for x in range(columns):
            green[x] = green_above[x] + g[x]
        above += plane_step
        blue, blue_above = (
            planes[place + 2 * plane_step : place + 2 * plane_step + columns],
            planes[above : above + columns],
        )
        for x in range(columns):
            blue[x] = blue_above[x] + b[x] + g[x]


@machine_code
def _step(low: Any, high: Any) -> Any:
    """The difference, modulo 65536, of a zigzag number."""
    zigzag = np.uint16(low) | np.uint16(np.uint16(high) << np.uint16(8))
    return np.uint16(np.uint16(zigzag >> np.uint16(1)) ^ np.uint16(np.uint16(0) - np.uint16(zigzag & np.uint16(1))))


@machine_code
def _first_row(
    heights: Any,
    colours: Any,
    size: int,
    left: int,
    columns: int,
    planes: Any,
    place: int,
    plane_step: int,
    agl: Any,
    agl_place: int,
) -> None:
    """Restore the first row of a block, differences to the pixel at the left, from column `left` on."""
    m, r, g, b = np.uint16(0), np.uint8(0), np.uint8(0), np.uint8(0)
    for x in range(left + columns):
        m = np.uint16(m + _step(heights[x], heights[size + x]))
        r = np.uint8(r + colours[x])
        g = np.uint8(g + colours[size + x])
        b = np.uint8(b + colours[2 * size + x])
        if x >= left:
            to = place + x - left
            agl[agl_place + x - left] = m
            planes[to] = np.uint8(r + g)
            planes[to + plane_step] = g
            planes[to + 2 * plane_step] = np.uint8(b + g)
