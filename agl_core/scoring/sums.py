"""The five sums of one image from which the official score is computed."""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import cache
from typing import cast

import numpy as np
from numpy.typing import NDArray

from agl_core.compiled import machine_code
from agl_core.data.tiles import UNKNOWN
from agl_core.errors import UserError

# One product of two uint16 is below 2^32, so 2^30 of them stay below 2^62.
_BLOCK = 2**30


@dataclass(frozen=True)
class ImageSums:
    """Sums over the pixels whose true height g is known, p being the predicted height; integer centimetres.

    Exact: Python ints, of any size when added up over images, and so the same in whatever order they are added. The
    sums of one image of up to 2^31 pixels fit into int64.
    """

    known: int
    """Number of pixels."""
    g: int
    gg: int
    pp: int
    pg: int

    def __add__(self, other: "ImageSums") -> "ImageSums":
        return ImageSums(*(a + b for a, b in zip(self.as_ints(), other.as_ints(), strict=True)))

    def as_ints(self) -> tuple[int, int, int, int, int]:
        """The five numbers, for sending them to another process: `ImageSums(*ints)` is the way back."""
        return cast(tuple[int, int, int, int, int], astuple(self))

    @property
    def squared_error(self) -> int:
        """Sum of (p - g)^2, cm^2."""
        return self.pp - 2 * self.pg + self.gg


NO_PIXELS = ImageSums(0, 0, 0, 0, 0)


def image_sums(truth_cm: NDArray[np.uint16], predicted_cm: NDArray[np.uint16]) -> ImageSums:
    """Sum up one image.

    truth_cm, predicted_cm: (H, W) uint16, centimetres, `UNKNOWN` (65535) where the truth is not known.

    Raises `UserError` when the sizes differ, and when a prediction is `UNKNOWN` anywhere, also where the truth is:
    the official script lets such a hole escape from the error, and a height map with holes is not finished.
    """
    truth, predicted = pixels_of(truth_cm, predicted_cm)
    sums, holes = NO_PIXELS, 0
    for start in range(0, truth.size, _BLOCK):
        *block, block_holes = _compiled()(truth[start : start + _BLOCK], predicted[start : start + _BLOCK])
        sums += ImageSums(*(int(value) for value in block))
        holes += int(block_holes)
    if holes:
        raise UserError(told_holes(holes))
    return sums


def pixels_of(truth_cm: NDArray[np.uint16], predicted_cm: NDArray[np.uint16]) -> tuple[NDArray[np.uint16], ...]:
    """The pixels of two height maps of the same size, (N,) uint16 each, contiguous; raises as `image_sums` does."""
    if truth_cm.dtype != np.uint16 or predicted_cm.dtype != np.uint16:
        raise TypeError(f"heights must be uint16 centimetres, not {truth_cm.dtype} and {predicted_cm.dtype}")
    if truth_cm.shape != predicted_cm.shape:
        raise UserError(told_sizes(truth_cm.shape, predicted_cm.shape))
    return np.ascontiguousarray(truth_cm).ravel(), np.ascontiguousarray(predicted_cm).ravel()


def told_holes(holes: int) -> str:
    """What is said of a prediction with holes."""
    return f"predicted AGL has {holes} holes (pixels that are {UNKNOWN} or NaN)"


def told_sizes(truth: Sequence[int], predicted: Sequence[int]) -> str:
    """What is said of a prediction of another size than the truth."""
    return f"predicted AGL is {' x '.join(map(str, predicted))} but the truth is {' x '.join(map(str, truth))}"


def load_code() -> None:
    """Load and compile what `image_sums` needs."""
    one = np.zeros((1, 1), np.uint16)
    image_sums(one, one)


@cache
def _compiled() -> Callable[..., tuple[np.int64, ...]]:
    # Here, since it takes a tenth of a second, which programs that score nothing need not wait for.
    return machine_code(_sum_block)


def _sum_block(truth: NDArray[np.uint16], predicted: NDArray[np.uint16]) -> tuple[np.int64, ...]:
    known = g_sum = gg = pp = pg = holes = np.int64(0)
    for i in range(truth.size):
        g, p = np.int64(truth[i]), np.int64(predicted[i])
        holes += p == UNKNOWN
        if g != UNKNOWN:
            known += 1
            g_sum += g
            gg += g * g
            pp += p * p
            pg += p * g
    return known, g_sum, gg, pp, pg, holes
