"""Errors of heights, by the true height, and of the flow: exact sums too, from the pass that finds the five sums."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from agl_core.compiled import machine_code
from agl_core.data.tiles import UNKNOWN
from agl_core.geometry import Pose, direction
from agl_core.scoring.sums import NO_PIXELS, ImageSums, pixels_of

HEIGHT_EDGES = (0, 1, 2, 5, 10, 20, 50, 100)
"""Metres of true height at which one bin ends and the next begins; the last has no end."""

_CM = 100
_MICROPIXELS = 1e6

# One squared error is below 2^32, so 2^30 of them stay below 2^62.
_BLOCK = 2**30
# An end-point error is below 2^50 micropixels (655 m at a million px/m), so 2^12 of them stay below 2^62.
_PIECE = 2**12


@dataclass(frozen=True)
class ErrorSums:
    """Sums over some pixels of the error p - g, integer centimetres: exact Python ints, as those of `ImageSums`."""

    pixels: int = 0
    error: int = 0
    absolute: int = 0
    squared: int = 0

    def __add__(self, other: "ErrorSums") -> "ErrorSums":
        return ErrorSums(
            self.pixels + other.pixels,
            self.error + other.error,
            self.absolute + other.absolute,
            self.squared + other.squared,
        )

    @property
    def bias(self) -> float | None:
        """Mean error, metres, positive where too much is predicted; None without pixels, as the others."""
        return self.error / (_CM * self.pixels) if self.pixels else None

    @property
    def mae(self) -> float | None:
        """Mean absolute error, metres."""
        return self.absolute / (_CM * self.pixels) if self.pixels else None

    @property
    def rmse(self) -> float | None:
        """Root of the mean squared error, metres."""
        return math.sqrt(self.squared / self.pixels) / _CM if self.pixels else None


@dataclass(frozen=True)
class ImageErrors:
    """Errors of one image or of several together: they add up exactly, in any order.

    edges: centimetres of true height at which the bins begin, rising from 0; bins: of as many.
    """

    edges: tuple[int, ...]
    bins: tuple[ErrorSums, ...]
    micropixels: int = 0
    """Sum of the end-point errors of the flow, each rounded to millionths of a pixel."""
    flow_pixels: int = 0
    """Number of pixels in it: those of images that have a true pose."""

    def __add__(self, other: "ImageErrors") -> "ImageErrors":
        if self.edges != other.edges:
            raise ValueError(f"errors by height with the edges {self.edges} and {other.edges} cannot be added")
        bins = tuple(a + b for a, b in zip(self.bins, other.bins, strict=True))
        micropixels, pixels = self.micropixels + other.micropixels, self.flow_pixels + other.flow_pixels
        return ImageErrors(self.edges, bins, micropixels, pixels)

    def within(self, low: int, high: int | None = None) -> ErrorSums:
        """Errors of the pixels from `low` to below `high` (None: all above); both are edges, centimetres."""
        if low not in self.edges or high not in (*self.edges, None):
            raise ValueError(f"{low} or {high} is none of the edges {self.edges}")
        chosen = (
            sums
            for edge, sums in zip(self.edges, self.bins, strict=True)
            if edge >= low and (high is None or edge < high)
        )
        return sum(chosen, ErrorSums())

    @property
    def end_point_error(self) -> float | None:
        """Mean length of the difference between true and predicted flow, pixels; None without a true pose."""
        return self.micropixels / (_MICROPIXELS * self.flow_pixels) if self.flow_pixels else None


@dataclass(frozen=True)
class Measured:
    """What one pass over the pixels finds; parts of an image add up to the image. holes: `UNKNOWN` predictions."""

    sums: ImageSums
    errors: ImageErrors
    holes: int

    def __add__(self, other: "Measured") -> "Measured":
        return Measured(self.sums + other.sums, self.errors + other.errors, self.holes + other.holes)


def height_edges(above: float) -> tuple[int, ...]:
    """The edges of the bins, centimetres: `HEIGHT_EDGES`, and `above` (metres) where it is none of them."""
    return tuple(sorted({round(_CM * edge) for edge in (*HEIGHT_EDGES, above)}))


def nothing_measured(edges: tuple[int, ...]) -> Measured:
    """Of no pixels: what others are added to."""
    return Measured(NO_PIXELS, ImageErrors(edges, (ErrorSums(),) * len(edges)), 0)


def measure(
    truth_cm: NDArray[np.uint16],
    predicted_cm: NDArray[np.uint16],
    edges: tuple[int, ...],
    truth: Pose | None,
    prediction: Pose,
) -> Measured:
    """Sum up one image or a part of it, in one pass.

    truth_cm, predicted_cm: (H, W) uint16, centimetres, `UNKNOWN` (65535) where the truth is not known; edges: of
    `height_edges`; truth, prediction: the poses; without a true one there is no end-point error.

    Holes of the prediction are counted, and what is summed up is of no use then. Raises `UserError` when the sizes
    differ.
    """
    true, predicted = pixels_of(truth_cm, predicted_cm)
    flows = _flow(prediction if truth is not None else Pose(0, 0)) + _flow(truth or Pose(0, 0))
    found = nothing_measured(edges)
    for start in range(0, true.size, _BLOCK):
        bins = np.zeros((len(edges), 4), np.int64)
        part = slice(start, start + _BLOCK)
        g, gg, pg, holes, high, low = map(
            int, _compiled()(true[part], predicted[part], _bin_table(edges), bins, *flows)
        )
        by_height = tuple(ErrorSums(*row) for row in bins.tolist())
        every = sum(by_height, ErrorSums())
        # (p - g)^2 = p^2 - 2 p g + g^2
        sums = ImageSums(every.pixels, g, gg, every.squared + 2 * pg - gg, pg)
        found += Measured(sums, ImageErrors(edges, by_height, (high << 32) + low, every.pixels), holes)
    if truth is None:
        found = replace(found, errors=replace(found.errors, micropixels=0, flow_pixels=0))
    return found


def _flow(pose: Pose) -> tuple[float, float]:
    """Displacement (x, y) of one centimetre of height, micropixels."""
    x, y = direction(pose.angle)
    per_cm = pose.scale * _MICROPIXELS / _CM
    return float(x) * per_cm, float(y) * per_cm


@cache
def _bin_table(edges: tuple[int, ...]) -> NDArray[np.uint8]:
    """Number of the bin of each height, (65536,) uint8."""
    return (np.searchsorted(edges, np.arange(UNKNOWN + 1), "right") - 1).astype(np.uint8)


@cache
def _compiled() -> Callable[..., tuple[np.int64, ...]]:
    return machine_code(_measure_block)


def _measure_block(
    truth: NDArray[np.uint16],
    predicted: NDArray[np.uint16],
    bin_of: NDArray[np.uint8],
    bins: NDArray[np.int64],
    tx: float,
    ty: float,
    sx: float,
    sy: float,
) -> tuple[np.int64, ...]:
    """Fills `bins` (pixels, error, |error|, error^2); the flow's sum comes in two halves, high * 2^32 + low."""
    g_sum = gg = pg = holes = high = low = np.int64(0)
    for start in range(0, truth.size, _PIECE):
        micropixels = np.int64(0)
        for i in range(start, min(start + _PIECE, truth.size)):
            g, p = np.int64(truth[i]), np.int64(predicted[i])
            holes += p == UNKNOWN
            if g != UNKNOWN:
                g_sum += g
                gg += g * g
                pg += p * g
                error, b = p - g, bin_of[g]
                bins[b, 0] += 1
                bins[b, 1] += error
                bins[b, 2] += abs(error)
                bins[b, 3] += error * error
                x, y = tx * p - sx * g, ty * p - sy * g
                micropixels += np.int64(math.sqrt(x * x + y * y) + 0.5)
        high += micropixels >> 32
        low += micropixels & 0xFFFFFFFF
    return g_sum, gg, pg, holes, high, low
