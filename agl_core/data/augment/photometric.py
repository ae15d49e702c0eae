"""Photometric augmentation: the image as other light, air and cameras would have made it; labels stay as they are.

The families and their order are those of the fourth place's recipe, the strengths albumentations' defaults; each
constant is beside its operation. An operation takes (H, W, 3) uint8, contiguous, of any size, and a generator, and
returns a new array; what it does is a function of the two.
"""

import numpy as np

from agl_core.config import AugmentConfig
from agl_core.data.augment.blur import BLURS, Image, Operation, blur
from agl_core.data.augment.colour import TONES, brightness, fancy_pca, tone
from agl_core.data.augment.noise import NOISES, noise
from agl_core.data.augment.weather import fog, shadow, sun_flare
from agl_core.data.seeding import SampleStreams

HOLE = 32
"""Side of a hole, pixels."""

HOLES = 8
"""Number of holes (max_holes 8, drawn without a minimum)."""

HOLES_SHARE = 1 / 8
"""Most of the image that holes may cover together: fewer are cut into small crops, though never less than one."""


def holes_of(height: int, width: int) -> int:
    """Number of holes in an image of this size."""
    return min(HOLES, max(1, int(HOLES_SHARE * height * width / HOLE**2)))


def dropout(rgb: Image, generator: np.random.Generator) -> Image:
    """Coarse dropout: black square holes; the network has to fill in from around them."""
    height, width = rgb.shape[:2]
    result = rgb.copy()
    for _ in range(holes_of(height, width)):
        y = int(generator.integers(max(height - HOLE, 0), endpoint=True))
        x = int(generator.integers(max(width - HOLE, 0), endpoint=True))
        result[y : y + HOLE, x : x + HOLE] = 0
    return result


PHOTOMETRIC: dict[str, Operation] = {
    "dropout": dropout,
    "blur": blur,
    "brightness": brightness,
    "tone": tone,
    "noise": noise,
    "fancy_pca": fancy_pca,
    "fog": fog,
    "shadow": shadow,
    "sun_flare": sun_flare,
}
"""The operations in their order, by the names of their chances in `AugmentConfig` and of their streams."""

KINDS: dict[str, dict[str, Operation]] = {
    name: {"blur": BLURS, "tone": TONES, "noise": NOISES}.get(name, {"": operation})
    for name, operation in PHOTOMETRIC.items()
}
"""What each of them may do: itself, or those of which it is one."""


def photometric(rgb: Image, config: AugmentConfig, streams: SampleStreams) -> Image:
    """The image after all operations that are drawn; the same object if none is.

    Args:
        rgb: (H, W, 3) uint8, contiguous; never changed.
        config: the chances.
        streams: where each operation draws its own numbers from, whether it is used among them.
    """
    for name, operation in PHOTOMETRIC.items():
        chance = getattr(config, name)
        if chance > 0:
            generator = streams(name)
            if generator.random() < chance:
                rgb = operation(rgb, generator)
    return rgb
