"""Heights and colours of an image of any size, a few rows at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agl_core.data.tiles import agl_size, open_agl
from agl_core.errors import UserError
from agl_core.inference.folder import PredictedImage
from agl_core.inference.source import open_image

PIXELS = 1 << 20
"""Of a strip, about: what is computed from them takes a few dozen MB."""

MOST = 1 << 25
"""Pixels that are read at a time, at most: 5 bytes each."""


@dataclass(frozen=True)
class Strip:
    """Whole rows of an image, from row `top` on.

    agl_cm: (n, W) uint16 heights above ground, centimetres, 65535 where unknown; rgb: (n, W, 3) uint8.
    """

    top: int
    agl_cm: NDArray[np.uint16]
    rgb: NDArray[np.uint8]


def check_sizes(image: PredictedImage) -> None:
    """Raise a `UserError` if heights and colours of an image are not there, or of different sizes."""
    assert image.rgb is not None
    heights = agl_size(image.agl, image.unit)
    with open_image(image.rgb) as source:
        if heights != (source.height, source.width):
            raise UserError(
                f"{image.agl} is {heights[0]} x {heights[1]} pixels, but {image.rgb} is {source.height} x "
                f"{source.width}: give the image that was predicted"
            )


def strips(image: PredictedImage, pixels: int = PIXELS) -> Iterator[Strip]:
    """All rows of an image that has passed `check_sizes`, from top to bottom, about so many pixels at a time.

    Raises:
        UserError: a file is damaged, or heights are too high to be heights.
    """
    assert image.rgb is not None
    with open_agl(image.agl, image.unit) as agl, open_image(image.rgb) as rgb:
        few = max(pixels // agl.width, 1)
        # What a file holds together is read together, if memory allows.
        many = max(few, agl.block_rows if agl.block_rows * agl.width <= MOST else 0)
        for first in range(0, agl.height, many):
            rows = min(many, agl.height - first)
            heights, colours = agl.read(first, rows), rgb.read(first, 0, rows, agl.width)
            for top in range(0, rows, few):
                yield Strip(first + top, heights[top : top + few], colours[top : top + few])
