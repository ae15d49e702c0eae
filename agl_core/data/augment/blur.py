"""Blurs: five ways in which a picture loses its finest detail, none of which moves it.

All kernels are odd and symmetric about their middle: one of even size would shift the image by half a pixel against
its heights. Strengths are the defaults of albumentations, as far as they are affordable here.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from agl_core.opencv import cv2

SIDES = (3, 5, 7)
"""Sides of the kernels of box, Gaussian and motion blur, pixels (blur_limit 7, from 3)."""

MEDIAN_SIDES = (3, 5)
"""Sides of the median's window, pixels: 7 takes twenty times as long as 5, and 5 has removed as good as all detail."""

GLASS_SIGMA = 0.7
"""Sigma of the Gaussian blur before and after the pixels are scattered, pixels."""

GLASS_REACH = 4
"""Pixels over which glass scatters, either way in x and in y (max_delta 4)."""

BORDER = cv2.BORDER_REFLECT_101

Image = NDArray[np.uint8]
Operation = Callable[[Image, np.random.Generator], Image]


def _drawn_side(generator: np.random.Generator, sides: tuple[int, ...] = SIDES) -> int:
    return sides[int(generator.integers(len(sides)))]


def box(rgb: Image, generator: np.random.Generator) -> Image:
    """The mean over a square window."""
    side = _drawn_side(generator)
    return np.asarray(cv2.blur(rgb, (side, side), borderType=BORDER), np.uint8)


def gaussian(rgb: Image, generator: np.random.Generator) -> Image:
    """A Gaussian window; sigma belongs to its side as OpenCV has it: 0.3 * ((side - 1) / 2 - 1) + 0.8 pixels."""
    side = _drawn_side(generator)
    return np.asarray(cv2.GaussianBlur(rgb, (side, side), 0, borderType=BORDER), np.uint8)


def median(rgb: Image, generator: np.random.Generator) -> Image:
    """The median of each band over a square window; its border repeats the outermost pixels."""
    return np.asarray(cv2.medianBlur(rgb, _drawn_side(generator, MEDIAN_SIDES)), np.uint8)


def motion(rgb: Image, generator: np.random.Generator) -> Image:
    """The mean along a straight line of 3, 5 or 7 pixels in any direction, centred: the camera moves while it looks."""
    half = _drawn_side(generator) // 2
    angle = generator.uniform(0.0, np.pi)
    steps = np.arange(-half, half + 1) / max(abs(np.cos(angle)), abs(np.sin(angle)))  # one pixel along the longer axis
    rows, columns = (np.rint(steps * part).astype(int) + half for part in (np.sin(angle), np.cos(angle)))
    height, width = rgb.shape[:2]
    # Sums of shifted views: a dense kernel of 7 x 7 takes three times as long, and most of it is zero.
    wide = cv2.copyMakeBorder(rgb, half, half, half, half, BORDER).astype(np.uint16)
    total = np.zeros(rgb.shape, np.uint16)
    for row, column in zip(rows, columns, strict=True):
        total += wide[row : row + height, column : column + width]
    return np.asarray(cv2.convertScaleAbs(total, alpha=1 / len(steps)), np.uint8)


def glass(rgb: Image, generator: np.random.Generator) -> Image:
    """Seen through structured glass: every pixel comes from a place up to `GLASS_REACH` away, evenly in x and y."""
    height, width = rgb.shape[:2]
    words = random_bytes(generator, 2 * height * width).view("<u2")
    places = np.take(_glass_table(), words).view(np.int16).reshape(height, width, 2)
    places[..., 0] += np.arange(width, dtype=np.int16)
    places[..., 1] += np.arange(height, dtype=np.int16)[:, None]
    soft = cv2.GaussianBlur(rgb, (0, 0), GLASS_SIGMA, borderType=BORDER)
    scattered = cv2.remap(soft, places, np.empty(0, np.int16), cv2.INTER_NEAREST, borderMode=BORDER)
    return np.asarray(cv2.GaussianBlur(scattered, (0, 0), GLASS_SIGMA, borderType=BORDER), np.uint8)


@cache
def _glass_table() -> NDArray[np.int32]:
    """(65536,) all shifts (x, y), evenly: two numbers of 16 bits each, taken from the table as one of 32."""
    reach = np.arange(-GLASS_REACH, GLASS_REACH + 1, dtype=np.int16)
    shifts = np.stack(np.meshgrid(reach, reach), axis=-1).reshape(-1, 2)
    table: NDArray[np.int32] = shifts[np.arange(65536) * len(shifts) // 65536].view(np.int32).ravel()
    table.setflags(write=False)
    return table


def random_bytes(generator: np.random.Generator, count: int) -> NDArray[np.uint8]:
    """(count,) uint8, evenly distributed; the same on every machine, whatever its byte order."""
    words = generator.integers(0, 2**64 - 1, (count + 7) // 8, dtype=np.uint64, endpoint=True)
    return words.astype("<u8", copy=False).view(np.uint8)[:count]


BLURS: dict[str, Operation] = {"box": box, "gaussian": gaussian, "median": median, "motion": motion, "glass": glass}


def blur(rgb: Image, generator: np.random.Generator) -> Image:
    """One of the five, drawn evenly."""
    return list(BLURS.values())[int(generator.integers(len(BLURS)))](rgb, generator)
