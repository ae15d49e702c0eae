"""Where windows lie on an image, how they blend, and how an image is brought to a size that the network takes."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def window_starts(length: int, window: int, overlap: int) -> list[int]:
    """First pixels of the windows that cover `length` pixels along one axis, evenly spread.

    Neighbours share at least `overlap` < `window` pixels, the first window starts at 0 and the last one ends at
    `length`. An axis no longer than the window has one window, which is then as long as the axis.
    """
    if length <= window:
        return [0]
    gaps = math.ceil((length - window) / (window - overlap))
    return [i * (length - window) // gaps for i in range(gaps + 1)]


def blend_weights(length: int, overlap: int) -> NDArray[np.float64]:
    """(length,) weights of a window's pixels along one axis: a raised cosine over `overlap` pixels at each end.

    Highest in the middle and nowhere zero, so that whatever overlaps, the weights at a pixel can be divided by their
    sum. Where neighbours share exactly `overlap` pixels their weights add up to one.
    """
    from_end = np.minimum(np.arange(length), np.arange(length)[::-1]) + 0.5
    ramp = np.minimum(from_end / max(overlap, 0.5), 1.0)
    return np.sin(0.5 * np.pi * ramp) ** 2


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
