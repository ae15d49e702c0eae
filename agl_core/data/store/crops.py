"""Which sub-tiles a crop touches, what it needs of each, and how it is handed out."""

from collections.abc import Iterator
from typing import cast

import numpy as np
from numpy.typing import NDArray

from agl_core.data.store.codec import SUBTILE, Part
from agl_core.data.store.layout import StoreEntry


def check_inside(entry: StoreEntry, y: int, x: int, height: int, width: int) -> None:
    """Raise `ValueError` when a crop does not lie inside its tile, or is empty."""
    if min(y, x) < 0 or min(height, width) < 1 or y + height > entry.height or x + width > entry.width:
        raise ValueError(
            f"crop of {height} x {width} at ({y}, {x}) is not inside tile {entry.id} of {entry.height} x {entry.width}"
        )


def touched(entry: StoreEntry, y: int, x: int, height: int, width: int) -> Iterator[Part]:
    """The sub-tiles that a crop touches, in their order."""
    for row, top, rows, to_row in _spans(y, height):
        for column, left, columns, to_column in _spans(x, width):
            high = min(SUBTILE, entry.height - row * SUBTILE)
            wide = min(SUBTILE, entry.width - column * SUBTILE)
            yield Part(row, column, high, wide, top, left, rows, columns, to_row, to_column)


def _spans(start: int, length: int) -> Iterator[tuple[int, int, int, int]]:
    """The sub-tiles that [start, start + length) touches: number, first within it, how many, where in the result."""
    for number in range(start // SUBTILE, (start + length - 1) // SUBTILE + 1):
        first, last = max(start, number * SUBTILE), min(start + length, (number + 1) * SUBTILE)
        yield number, first - number * SUBTILE, last - first, first - start


def interleaved(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(3, H, W) as (H, W, 3), contiguous."""
    from agl_core.opencv import cv2  # five times faster than numpy; here, since `read_into` does without

    return cast(NDArray[np.uint8], cv2.merge(list(planes)))
