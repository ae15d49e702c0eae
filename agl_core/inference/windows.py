"""Where windows lie on an image, how they blend, and how an image is brought to a size that the network takes."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MARGIN = 0.25
"""Of an overlap, at each of its ends, where the window that ends there counts nothing.

A network fills what lies beyond its window with zeros, and its answer beside the border is that of another image. How
far that reaches was measured (network of the demo, its windows' answers against that to the whole image, mean by
distance from the border): 1 m up to 8 pixels, 10 cm at 32, 0.3 cm at 64, nothing at 100. At an overlap of 256 pixels
the margin is 64. A harder edge between the windows would show more."""


def window_starts(length: int, window: int, overlap: int, unit: int = 1) -> list[int]:
    """First pixels of the windows that cover `length` pixels along one axis, evenly spread, multiples of `unit`.

    The window is a multiple of `unit` too. Neighbours share at least `overlap` <= `window` - `unit` pixels and the
    first window starts at 0. The last one ends at `length`, or, where that is no multiple of `unit`, reaches less than
    `unit` pixels beyond. An axis no longer than the window has one window, which is then as long as the axis.

    A network that halves its image five times sees it as cells of 32 x 32 pixels. Windows that start between them are
    cut into other cells than the whole image is, which changes heights all over them (by 18 cm in the mean, for the
    network of the demo) and not just at their borders.
    """
    if length <= window:
        return [0]
    cells = math.ceil(length / unit) - window // unit
    gaps = math.ceil(cells / ((window - overlap) // unit))
    return [unit * (i * cells // gaps) for i in range(gaps + 1)]


def blend_weights(length: int, window: int, starts: Sequence[int]) -> list[NDArray[np.float64]]:
    """By window, the weights of its pixels within `length` along one axis; at each pixel all windows' add up to one.

    From one window to the next they go by a raised cosine over the middle half of what both share, which is the more
    the better; nothing of a window counts just beside its border, unless that is the image's (see `_MARGIN`). Where
    neighbours share nothing each stands for its own pixels.
    """
    lengths = [min(window, length - start) for start in starts]
    weights = [np.ones(own) for own in lengths]
    for one, (here, there) in enumerate(pairwise(starts)):
        shared = here + lengths[one] - there
        rise = _rise(shared)
        weights[one][len(weights[one]) - shared :] *= rise[::-1]
        weights[one + 1][:shared] *= rise
    total = np.zeros(length)
    for start, own in zip(starts, weights, strict=True):
        total[start : start + len(own)] += own
    return [own / total[start : start + len(own)] for start, own in zip(starts, weights, strict=True)]


def _rise(length: int) -> NDArray[np.float64]:
    """(length,) from 0 to 1; with its mirror image it adds up to one."""
    margin = _MARGIN * length
    along = np.clip((np.arange(length) + 0.5 - margin) / max(length - 2 * margin, 1), 0, 1)
    result: NDArray[np.float64] = np.sin(0.5 * np.pi * along) ** 2
    return result


def pad_to_multiple(image: NDArray[Any], multiple: int) -> NDArray[Any]:
    """Extend an (H, W, ...) image at the bottom and on the right until both sides are multiples of `multiple`.

    The image is mirrored into the new pixels, or its last row or column repeated where it is too small for that.
    """
    for axis in (0, 1):
        missing = -image.shape[axis] % multiple
        if missing:
            widths = [(0, missing if axis == other else 0) for other in range(image.ndim)]
            image = np.pad(image, widths, mode="reflect" if missing < image.shape[axis] else "edge")
    return image
