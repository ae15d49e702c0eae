"""An image of any size from its windows, in bounded memory: rows of windows are blended, finished strips given away."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from agl_core.inference.windows import blend_weights, window_starts

_PIECE = 2**24
"""Pixels of a strip that is given away at once: who takes it has copies of it."""


class Source(Protocol):
    """An image that is read in parts, perhaps by another thread than the one that it was opened in."""

    @property
    def height(self) -> int:
        """Rows."""

    @property
    def width(self) -> int:
        """Columns."""

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        """(height, width, 3) uint8 of the part whose first pixel is (top, left)."""


class ArraySource:
    """An (H, W, 3) uint8 image in memory; its parts are views."""

    def __init__(self, rgb: NDArray[np.uint8]) -> None:
        self.height, self.width = rgb.shape[:2]
        self._rgb = rgb

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        """See `Source`."""
        return self._rgb[top : top + height, left : left + width]


class Box(NamedTuple):
    """A part of an image, pixels."""

    top: int
    left: int
    height: int
    width: int


class Heights(NamedTuple):
    """(h, w) metres of a part of an image, float32 or float64, and their standard deviation where it is asked for."""

    metres: NDArray[Any]
    spread: NDArray[np.float64] | None


@dataclass(frozen=True)
class Grid:
    """The windows of an image of (height, width) pixels: first rows and first columns."""

    height: int
    width: int
    window: int
    tops: Sequence[int]
    lefts: Sequence[int]

    @staticmethod
    def lay(height: int, width: int, window: int = 0, overlap: int = 0, unit: int = 1) -> "Grid":
        """Cover the image with windows as `window_starts` says; with one if `window` is 0."""
        window = window or max(height, width)
        starts = (window_starts(side, window, overlap, unit) for side in (height, width))
        return Grid(height, width, window, *starts)

    @property
    def rows(self) -> list[list[Box]]:
        """The windows, row by row; those at the bottom and on the right may be smaller."""
        return [
            [
                Box(top, left, min(self.window, self.height - top), min(self.window, self.width - left))
                for left in self.lefts
            ]
            for top in self.tops
        ]


def read_ahead(source: Source, boxes: Iterable[Box]) -> Generator[NDArray[np.uint8]]:
    """The parts in order, each read while the one before it is in use."""
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for box in boxes:
            following = pool.submit(source.read, *box)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def row_bytes(height: int, width: int, window: int, layers: int) -> int:
    """Of what `strips` keeps in memory: float64 of a row of windows; layers: 2 with the spread, otherwise 1."""
    return 8 * layers * min(window, height) * width


def strips(grid: Grid, answers: Callable[[Sequence[Box]], Iterator[Heights]]) -> Iterator[tuple[int, Heights]]:
    """The image's first rows and heights, strip by strip of full width, from top to bottom, each as soon as no window
    below it can change it.

    answers: the heights of a row of windows, in order, asked for once for each row. The strips are float64 and belong
    to the caller until the next one is asked for; the heights of a single window are passed through as they are.

    There are never more pixels in memory than in one row of windows (see `row_bytes`), beside those in `answers`.
    """
    rows = grid.rows
    if len(rows) == len(rows[0]) == 1:
        yield 0, next(answers(rows[0]))
        return
    down = blend_weights(grid.height, grid.window, grid.tops)
    across = blend_weights(grid.width, grid.window, grid.lefts)
    layers: list[NDArray[np.float64]] = []
    for number, row in enumerate(rows):
        top, height = row[0].top, row[0].height
        for column, (box, heights) in enumerate(zip(row, answers(row), strict=True)):
            values = [heights.metres] if heights.spread is None else [heights.metres, heights.spread]
            layers = layers or [np.zeros((min(grid.window, grid.height), grid.width)) for _ in values]
            weights = np.outer(down[number], across[column])
            for layer, value in zip(layers, values, strict=True):
                layer[:height, box.left : box.left + box.width] += weights * value
        finished = (rows[number + 1][0].top if number + 1 < len(rows) else grid.height) - top
        piece = max(1, _PIECE // grid.width)
        for start in range(0, finished, piece):
            parts = [layer[start : min(start + piece, finished)] for layer in layers]
            yield top + start, Heights(parts[0], parts[1] if len(parts) > 1 else None)
        for layer in layers:
            left = len(layer) - finished
            layer[:left] = layer[finished:]
            layer[left:] = 0
