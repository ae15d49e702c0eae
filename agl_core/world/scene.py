"""The ground of one place in metres: heights and materials on a raster finer than any image of it.

A scene knows nothing of cameras, light or pixels. Its axes are those of an image, x right and y down, with the
origin at the corner of the first cell. The surface over a cell is a *plane* (a height at the centre and a slope), so
pitched roofs are exact and a ray can be intersected with them without any step size; between two cells of different
height stands a vertical wall.
"""

import numpy as np
from numpy.typing import NDArray

from agl_core.world.compiled import compiled

# What lies on the ground. WATER has no height: a laser sees nothing there.
ASPHALT, LANE, PAVEMENT, LAWN, MEADOW, SOIL, PLAZA, WATER, LOT, GRAVEL, COURT, POOL, DRIVE = range(13)
# What stands on it.
WALLED, GLAZED, PLAIN, TREE, CAR = range(5)
FLAT, GABLE, HIP, SHED, DOME, CONE = range(6)

LEVELS = 3
"""Levels of peaks above the cells: the highest point of blocks of 4, 16 and 64 cells."""

PATCH = np.dtype(
    [(name, np.float64) for name in ("x", "y", "cos", "sin", "a", "b", "wobble")]
    + [("round", np.bool_), ("material", np.uint8)]
)
"""A piece of ground: centre x, y (m), direction of its first axis, half axes a, b (m), amplitude of its ragged edge
(m), whether an ellipse, and what it is made of."""

PART = np.dtype(
    [(name, np.float64) for name in ("x", "y", "cos", "sin", "a", "b", "eave", "pitch", "floor", "bay")]
    + [(name, np.float64) for name in ("wall_r", "wall_g", "wall_b", "roof_r", "roof_g", "roof_b")]
    + [("round", np.bool_), ("roof", np.uint8), ("kind", np.uint8), ("seed", np.int64)]
)
"""A solid standing on the ground: footprint as in PATCH, height of its walls `eave` (m), rise of the roof in metres per
metre (for DOME and CONE: rise of the whole crown, m), roof and kind from the constants above, height of a floor and
width of a bay of windows (m), linear colours 0..1, and a seed for its texture."""


@compiled
def lattice(x: int, y: int, seed: int) -> float:
    """Return an evenly spread number in 0..1 that depends on the three integers alone."""
    n = (x * 374761393 + y * 668265263 + seed * 974634777) & 0xFFFFFFFF
    n = ((n ^ (n >> 13)) * 1274126177) & 0xFFFFFFFF
    n = ((n ^ (n >> 16)) * 2246822519) & 0xFFFFFFFF
    return ((n ^ (n >> 15)) & 0xFFFFFF) / 16777216.0


@compiled
def noise(x: float, y: float, seed: int) -> float:
    """Return smooth noise in 0..1 with features of about one unit."""
    i, j = int(np.floor(x)), int(np.floor(y))
    fx, fy = x - i, y - j
    fx, fy = fx * fx * (3.0 - 2.0 * fx), fy * fy * (3.0 - 2.0 * fy)
    top = lattice(i, j, seed) * (1.0 - fx) + lattice(i + 1, j, seed) * fx
    bottom = lattice(i, j + 1, seed) * (1.0 - fx) + lattice(i + 1, j + 1, seed) * fx
    return top * (1.0 - fy) + bottom * fy


@compiled
def _paint(ground: NDArray[np.uint8], cell: float, patches: NDArray[np.void]) -> None:
    n = ground.shape[0]
    for k in range(patches.shape[0]):
        p = patches[k]
        reach_x = abs(p.a * p.cos) + abs(p.b * p.sin) + p.wobble
        reach_y = abs(p.a * p.sin) + abs(p.b * p.cos) + p.wobble
        for i in range(max(0, int((p.y - reach_y) / cell)), min(n, int((p.y + reach_y) / cell) + 2)):
            for j in range(max(0, int((p.x - reach_x) / cell)), min(n, int((p.x + reach_x) / cell) + 2)):
                x, y = (j + 0.5) * cell, (i + 0.5) * cell
                u = (x - p.x) * p.cos + (y - p.y) * p.sin
                v = (y - p.y) * p.cos - (x - p.x) * p.sin
                edge = 0.0
                if p.wobble > 0.0:
                    edge = p.wobble * (1.4 * noise(x / 17.0, y / 17.0, 5) + 0.6 * noise(x / 5.0, y / 5.0, 6) - 1.0)
                if p.round:
                    inside = (u / (p.a + edge)) ** 2 + (v / (p.b + edge)) ** 2 < 1.0
                else:
                    inside = abs(u) < p.a + edge and abs(v) < p.b + edge
                if inside:
                    ground[i, j] = p.material


@compiled
def _raise(
    height: NDArray[np.float64],
    slope_x: NDArray[np.float32],
    slope_y: NDArray[np.float32],
    owner: NDArray[np.int32],
    cell: float,
    parts: NDArray[np.void],
    first: int,
) -> None:
    n = height.shape[0]
    for k in range(first, parts.shape[0]):
        p = parts[k]
        reach_x = abs(p.a * p.cos) + abs(p.b * p.sin)
        reach_y = abs(p.a * p.sin) + abs(p.b * p.cos)
        for i in range(max(0, int((p.y - reach_y) / cell)), min(n, int((p.y + reach_y) / cell) + 2)):
            for j in range(max(0, int((p.x - reach_x) / cell)), min(n, int((p.x + reach_x) / cell) + 2)):
                x, y = (j + 0.5) * cell, (i + 0.5) * cell
                u = (x - p.x) * p.cos + (y - p.y) * p.sin
                v = (y - p.y) * p.cos - (x - p.x) * p.sin
                to_a, to_b = p.a - abs(u), p.b - abs(v)
                radius = np.sqrt((u / p.a) ** 2 + (v / p.b) ** 2)
                if (p.round and radius >= 1.0) or to_a <= 0.0 or to_b <= 0.0:
                    continue
                along_u, along_v, h = 0.0, 0.0, p.eave
                if p.roof == GABLE or (p.roof == HIP and to_b < to_a):
                    h += p.pitch * to_b
                    along_v = -p.pitch * np.sign(v)
                elif p.roof == HIP:
                    h += p.pitch * to_a
                    along_u = -p.pitch * np.sign(u)
                elif p.roof == SHED:
                    h += p.pitch * (p.b + v)
                    along_v = p.pitch
                elif p.roof == DOME or p.roof == CONE:
                    lumps = 0.75 * (noise(x / 0.9, y / 0.9, p.seed) - 0.5)
                    full = np.sqrt(1.0 - radius * radius) if p.roof == DOME else 1.0 - radius
                    h = max(0.5, h + p.pitch * full + lumps * min(1.0, 0.2 * p.a))
                    rate = 1.0 if p.roof == CONE else min(1.6, radius / max(full, 1e-3))
                    along_u = -p.pitch * rate * u / (p.a * p.a * max(radius, 1e-3))
                    along_v = -p.pitch * rate * v / (p.b * p.b * max(radius, 1e-3))
                if h > height[i, j]:
                    height[i, j], owner[i, j] = h, k
                    slope_x[i, j] = along_u * p.cos - along_v * p.sin
                    slope_y[i, j] = along_u * p.sin + along_v * p.cos


@compiled
def _peaks(
    height: NDArray[np.float64], slope_x: NDArray[np.float32], slope_y: NDArray[np.float32], cell: float
) -> NDArray[np.float32]:
    n = height.shape[0]
    size = ((n - 1) >> 2) + 1
    peaks = np.zeros((LEVELS, size, size), np.float32)
    for i in range(n):
        for j in range(n):
            # The millimetre keeps a peak above the surface whatever the rounding.
            top = height[i, j] + 0.5 * cell * (abs(slope_x[i, j]) + abs(slope_y[i, j])) + 1e-3
            peaks[0, i >> 2, j >> 2] = max(peaks[0, i >> 2, j >> 2], top)
    for level in range(1, LEVELS):
        for i in range(((n - 1) >> 2 * level) + 1):
            for j in range(((n - 1) >> 2 * level) + 1):
                peaks[level, i >> 2, j >> 2] = max(peaks[level, i >> 2, j >> 2], peaks[level - 1, i, j])
    return peaks


class Scene:
    """A square piece of ground of `side` metres, empty (asphalt without height) until painted and built upon.

    ground: (N, N) uint8, material of the ground;  height: (N, N) float64, metres above ground at the cell's centre;
    slope_x, slope_y: (N, N) float32, metres per metre;  owner: (N, N) int32, index into `parts`, -1 for the ground;
    peaks: (LEVELS, N/4, N/4) float32, metres, no block is higher; top: the highest of them.
    """

    def __init__(self, side: float, cell: float) -> None:
        """`cell` is the side of a cell in metres; `side` is rounded up to whole cells."""
        count = int(np.ceil(side / cell - 1e-9))
        self.cell, self.side = float(cell), count * float(cell)
        self.ground = np.full((count, count), ASPHALT, np.uint8)
        self.height = np.zeros((count, count), np.float64)
        self.slope_x = np.zeros((count, count), np.float32)
        self.slope_y = np.zeros((count, count), np.float32)
        self.owner = np.full((count, count), -1, np.int32)
        self.parts = np.zeros(0, PART)
        self._refresh()

    def paint(self, patches: NDArray[np.void]) -> None:
        """Cover the ground with `patches` (N,) PATCH, later ones over earlier ones."""
        _paint(self.ground, self.cell, patches)

    def build(self, parts: NDArray[np.void]) -> None:
        """Put up solids `parts` (N,) PART: a cell belongs to a footprint when its centre does, the tallest wins."""
        first = len(self.parts)
        self.parts = np.concatenate([self.parts, parts])
        _raise(self.height, self.slope_x, self.slope_y, self.owner, self.cell, self.parts, first)
        self._refresh()

    def _refresh(self) -> None:
        self.peaks = _peaks(self.height, self.slope_x, self.slope_y, self.cell)
        self.top = float(self.peaks.max())

    def cell_of(self, x: float, y: float) -> tuple[int, int]:
        """Return (row, column) of the cell under x, y in metres, clipped to the scene."""
        last = len(self.height) - 1
        return min(max(int(y / self.cell), 0), last), min(max(int(x / self.cell), 0), last)

    def height_at(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the height of the surface over points x, y (metres, any equal shape), metres; NaN outside."""
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        row, column = np.floor(y / self.cell).astype(np.int64), np.floor(x / self.cell).astype(np.int64)
        count = len(self.height)
        outside = (row < 0) | (column < 0) | (row >= count) | (column >= count)
        row, column = np.where(outside, 0, row), np.where(outside, 0, column)
        plane = (
            self.height[row, column]
            + self.slope_x[row, column] * (x - (column + 0.5) * self.cell)
            + self.slope_y[row, column] * (y - (row + 0.5) * self.cell)
        )
        return np.where(outside, np.nan, plane)
