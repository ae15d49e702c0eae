"""The walk of a ray through a scene: what it meets first, exactly.

Along a view ray the height falls and along a sun ray it rises, linearly with the way over ground. The ray is cut at
the borders of the cells it crosses; within a cell the surface is a plane, so the meeting is the root of a linear
function and no step size enters. Blocks of 4, 16 and 64 cells that the ray passes overhead are crossed in one step.
"""

import numpy as np
from numpy.typing import NDArray

from agl_core.world.compiled import compiled
from agl_core.world.scene import LEVELS

NOTHING, OUTSIDE, ROOF, WALL = range(4)
"""What a ray meets: nothing up to `top`, the border of the scene, a surface from above, or a wall from the side."""

FAR = 1e30


@compiled
def plane_at(
    height: NDArray[np.float64],
    slope_x: NDArray[np.float32],
    slope_y: NDArray[np.float32],
    row: int,
    column: int,
    x: float,
    y: float,
    cell: float,
) -> float:
    """Return the height of the plane of a cell over x, y (in cells)."""
    rise = slope_x[row, column] * (x - column - 0.5) + slope_y[row, column] * (y - row - 0.5)
    return float(height[row, column] + cell * rise)


@compiled
def walk(
    height: NDArray[np.float64],
    slope_x: NDArray[np.float32],
    slope_y: NDArray[np.float32],
    peaks: NDArray[np.float32],
    cell: float,
    top: float,
    x: float,
    y: float,
    z: float,
    dx: float,
    dy: float,
    rise: float,
) -> tuple[int, float, int, int]:
    """Follow a ray from x, y (in cells) and z (metres) along (dx, dy), of length one, gaining `rise` metres per cell.

    Returns what it meets, how far away (in cells), and row and column of the cell.
    """
    rows, columns = height.shape
    column, row = int(np.floor(x)), int(np.floor(y))
    east, south = dx >= 0.0, dy >= 0.0
    inverse_x = 1.0 / dx if abs(dx) > 1e-12 else (FAR if east else -FAR)
    inverse_y = 1.0 / dy if abs(dy) > 1e-12 else (FAR if south else -FAR)
    way, level = 0.0, LEVELS
    while True:
        if row < 0 or column < 0 or row >= rows or column >= columns:
            return OUTSIDE, way, row, column
        bits = 2 * level
        left, upper = (column >> bits) << bits, (row >> bits) << bits
        exit_x = (left + ((1 << bits) if east else 0) - x) * inverse_x
        exit_y = (upper + ((1 << bits) if south else 0) - y) * inverse_y
        leave = min(exit_x, exit_y)
        z_here, z_leave = z + way * rise, z + leave * rise
        if level > 0:
            if min(z_here, z_leave) <= peaks[level - 1, row >> bits, column >> bits]:
                level -= 1
                continue
            if z_here > top and rise > 0.0:
                return NOTHING, way, row, column
        else:
            under = plane_at(height, slope_x, slope_y, row, column, x + way * dx, y + way * dy, cell) - z_here
            if under >= 0.0:
                return WALL, way, row, column
            then = plane_at(height, slope_x, slope_y, row, column, x + leave * dx, y + leave * dy, cell) - z_leave
            if then >= 0.0:
                return ROOF, way + (leave - way) * under / (under - then), row, column
        way = leave
        # Rounding must not put the ray back into the block that it leaves, nor beyond the one beside it.
        if exit_x < exit_y:
            new = left + (1 << bits) if east else left - 1
            if level < LEVELS and (new ^ column) >> (bits + 2) != 0:
                level += 1
            column = new
            row = min(max(int(np.floor(y + way * dy)), upper), upper + (1 << bits) - 1)
        else:
            new = upper + (1 << bits) if south else upper - 1
            if level < LEVELS and (new ^ row) >> (bits + 2) != 0:
                level += 1
            row = new
            column = min(max(int(np.floor(x + way * dx)), left), left + (1 << bits) - 1)
