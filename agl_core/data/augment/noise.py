"""Noise of a sensor: drawn as whole levels from a table, since normal floats take ten times as long.

The table holds the quantiles of a normal distribution for all 65536 values of a 16-bit number, so that what is looked
up with random bits is normally distributed up to 4.3 standard deviations and, for whole levels, as if it had been
drawn and then rounded.
"""

from collections.abc import Callable
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from agl_core.data.augment.blur import random_bytes
from agl_core.opencv import cv2

VARIANCE = (10.0, 50.0)
"""Least and largest variance of Gaussian noise, levels squared, each band by itself (albumentations' var_limit)."""

GREY_SPREAD = (1.0, 5.0)
"""Standard deviation of a camera's noise in brightness at middle grey, levels: intensity 0.1 ... 0.5 of ISO noise."""

COLOUR_SPREAD = (1.0, 5.0)
"""Standard deviation of a camera's noise in colour, levels of each band: colour shift 0.01 ... 0.05 of ISO noise."""

CELL = 2
"""Side of a cell of the sensor's colour mosaic, pixels: noise in colour is as coarse as its cells."""

MIDDLE_GREY = 128

Image = NDArray[np.uint8]
Operation = Callable[[Image, np.random.Generator], Image]

_CHROMA = np.array([[2, -1, -1], [0, np.sqrt(3), -np.sqrt(3)]]).T / 2
"""(3, 2): two independent unit normals to zero-sum changes of R, G and B, each of variance 1."""


@cache
def normal_table() -> NDArray[np.float32]:
    """(65536,) the quantiles of the standard normal distribution, of variance 1."""
    inverse = NormalDist().inv_cdf
    half = np.array([inverse((number + 0.5) / 65536) for number in range(32768)])
    quantiles = np.concatenate([half, -half[::-1]])
    table: NDArray[np.float32] = (quantiles / quantiles.std()).astype(np.float32)
    table.setflags(write=False)
    return table


def random_words(generator: np.random.Generator, *shape: int) -> NDArray[np.uint16]:
    """uint16 of `shape`, evenly distributed: numbers of a table's rows."""
    return random_bytes(generator, 2 * int(np.prod(shape))).view("<u2").reshape(shape)


def gaussian(rgb: Image, generator: np.random.Generator) -> Image:
    """Independent normal noise in every pixel and band."""
    spread = np.sqrt(generator.uniform(*VARIANCE))
    table = np.rint(normal_table() * np.float32(spread)).astype(np.int8)
    noise = np.take(table, random_words(generator, *rgb.shape))
    return np.asarray(cv2.add(rgb, noise, dtype=cv2.CV_8U), np.uint8)


def camera(rgb: Image, generator: np.random.Generator) -> Image:
    """A camera at high sensitivity: shot noise in brightness, the square root of the light, and coarse noise in colour.

    The noise in colour does not change the sum of the bands, but for rounding. All is whole levels in a byte: what
    may come out, 4.3 standard deviations, is less than 60.
    """
    grey_spread, colour_spread = generator.uniform(*GREY_SPREAD), generator.uniform(*COLOUR_SPREAD)
    height, width = rgb.shape[:2]
    table = normal_table()
    gain = (grey_spread * np.sqrt(np.arange(256) / MIDDLE_GREY)).astype(np.float32)
    spread = cv2.LUT(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), gain)
    light = cv2.multiply(spread, np.take(table, random_words(generator, height, width)), dtype=cv2.CV_8S)
    rows, columns = -(-height // CELL), -(-width // CELL)
    cells = np.take(table, random_words(generator, rows, columns, 2))
    cells = np.rint(cv2.transform(cells, (_CHROMA * colour_spread).astype(np.float32))).astype(np.int8)
    colour = cv2.resize(cells, (CELL * columns, CELL * rows), interpolation=cv2.INTER_NEAREST)[:height, :width]
    noise = cv2.add(colour, cv2.merge([light, light, light]))
    return np.asarray(cv2.add(rgb, noise, dtype=cv2.CV_8U), np.uint8)


NOISES: dict[str, Operation] = {"gaussian": gaussian, "camera": camera}


def noise(rgb: Image, generator: np.random.Generator) -> Image:
    """One of the two, drawn evenly."""
    return list(NOISES.values())[int(generator.integers(len(NOISES)))](rgb, generator)
