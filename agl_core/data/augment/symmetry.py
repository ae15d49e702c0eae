"""Exact augmentation: the eight symmetries of the pixel grid, drawn per sample, applied with their label rules."""

import numpy as np

from agl_core.config import AugmentConfig
from agl_core.geometry import FLIP_HORIZONTAL, FLIP_VERTICAL, IDENTITY, ROT90, TRANSPOSE, Symmetry


def draw_symmetry(config: AugmentConfig, generator: np.random.Generator) -> Symmetry:
    """Draw one operation. Takes the same numbers from `generator` whatever the chances are."""
    turn, turns, horizontal, vertical, swap = generator.random(5)
    result = ROT90[int(turns * 4)] if turn < config.rot90 else IDENTITY
    if horizontal < config.flip_horizontal:
        result = result.then(FLIP_HORIZONTAL)
    if vertical < config.flip_vertical:
        result = result.then(FLIP_VERTICAL)
    if swap < config.transpose:
        result = result.then(TRANSPOSE)
    return result
