"""What surfaces look like: colours, textures and windows, as functions of a point in metres.

Colours are linear reflectances in 0..1. Nothing here depends on the image, so that a place keeps its look under any
camera and light.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from agl_core.world.compiled import compiled
from agl_core.world.scene import (
    ASPHALT,
    CAR,
    COURT,
    DRIVE,
    FLAT,
    GABLE,
    GLAZED,
    GRAVEL,
    LANE,
    LAWN,
    LOT,
    MEADOW,
    PAVEMENT,
    PLAIN,
    PLAZA,
    POOL,
    SOIL,
    TREE,
    WATER,
    lattice,
    noise,
)

Colour = tuple[float, float, float]


def linear(red: float, green: float, blue: float) -> Colour:
    """Return the linear reflectance of a colour given as seen on a screen, 0..255."""
    return (red / 255) ** 2.2, (green / 255) ** 2.2, (blue / 255) ** 2.2


_SEEN = {
    ASPHALT: (104, 105, 108),
    LANE: (206, 204, 192),
    PAVEMENT: (150, 149, 146),
    LAWN: (98, 116, 68),
    MEADOW: (116, 122, 76),
    SOIL: (150, 126, 98),
    PLAZA: (160, 156, 150),
    WATER: (44, 70, 76),
    LOT: (122, 121, 120),
    GRAVEL: (156, 152, 146),
    COURT: (158, 92, 70),
    POOL: (92, 176, 196),
    DRIVE: (156, 155, 153),
}
GROUND_COLOURS: NDArray[np.float64] = np.array([linear(*_SEEN[material]) for material in sorted(_SEEN)])
"""(13, 3) linear colour by ground material."""


@compiled
def ground_colour(material: int, x: float, y: float) -> Colour:
    """Return the colour of the ground at x, y (metres)."""
    r, g, b = GROUND_COLOURS[material, 0], GROUND_COLOURS[material, 1], GROUND_COLOURS[material, 2]
    patchy = noise(x / 11.0, y / 11.0, 1) - 0.5
    grain = noise(x / 1.1, y / 1.1, 2) - 0.5
    if material in (LAWN, MEADOW):
        dry = 0.3 * max(0.0, noise(x / 23.0, y / 23.0, 3) + 0.5 * patchy - 0.45)
        factor = 1.0 + 0.35 * patchy + 0.4 * grain
        return factor * (r + dry * 0.25), factor * (g + dry * 0.16), factor * (b + dry * 0.1)
    if material == WATER:
        factor = 1.0 + 0.35 * patchy + 0.25 * grain
        return factor * r, factor * g, factor * b
    if material in (SOIL, GRAVEL):
        factor = 1.0 + 0.4 * patchy + 0.4 * grain
        return factor * r, factor * g, factor * b
    factor = 1.0 + 0.22 * patchy + 0.2 * grain
    if material in (PAVEMENT, PLAZA):
        factor *= 0.92 + 0.16 * lattice(int(np.floor(x / 2.5)), int(np.floor(y / 2.5)), 4)
    return factor * r, factor * g, factor * b


@compiled
def roof_colour(part: Any, u: float, v: float, x: float, y: float) -> Colour:
    """Return the colour from above of a part (a record of `PART`) at u, v (metres along its axes) and x, y (metres)."""
    r, g, b = part.roof_r, part.roof_g, part.roof_b
    if part.kind == TREE:
        factor = 0.5 + 1.0 * noise(x / 0.8, y / 0.8, part.seed)
        return factor * r, factor * g, factor * b
    if part.kind == CAR:
        along = abs(u + 0.3) / part.a
        if 0.28 < along < 0.55:
            return 0.03, 0.035, 0.04
        return r, g, b
    if part.kind == PLAIN:
        return r, g, b
    grain = noise(x / 0.9, y / 0.9, part.seed) - 0.5
    patchy = noise(x / 6.0, y / 6.0, part.seed + 1) - 0.5
    factor = 1.0 + 0.22 * grain + 0.3 * patchy
    to_a, to_b = part.a - abs(u), part.b - abs(v)
    if part.roof == FLAT:
        rim = min(to_a, to_b)
        if part.round:
            rim = (1.0 - np.sqrt((u / part.a) ** 2 + (v / part.b) ** 2)) * min(part.a, part.b)
        if rim < 0.5:
            factor *= 1.25
        elif rim < 1.1:
            factor *= 0.8
    else:
        down = v if part.roof == GABLE or to_b < to_a else u
        factor *= 0.93 + 0.14 * lattice(int(np.floor(down / 0.7)), 0, part.seed)
        if abs(down) < 0.35:
            factor *= 1.15
    return factor * r, factor * g, factor * b


@compiled
def wall_colour(part: Any, along: float, z: float, side: int) -> Colour:
    """Return the colour of a wall at `along` metres from its middle and `z` metres above ground.

    `side` numbers the walls of a part, so that they do not share their lit and dark windows.
    """
    r, g, b = part.wall_r, part.wall_g, part.wall_b
    if part.kind == TREE:
        factor = 0.25 + 0.5 * noise(along / 0.8, z / 0.8, part.seed)
        return factor * part.roof_r, factor * part.roof_g, factor * part.roof_b
    if part.kind == CAR or part.kind == PLAIN:
        return 0.8 * r, 0.8 * g, 0.8 * b
    storey, column = np.floor(z / part.floor), np.floor(along / part.bay)
    up, across = z / part.floor - storey, along / part.bay - column
    glint = lattice(int(column) + 1000 * side, int(storey), part.seed)
    factor = 0.92 + 0.16 * noise(along / 4.0, z / 4.0, part.seed)
    # Windows stand above each other: at a metre per pixel the storeys blur, the bays remain as stripes up the wall.
    if part.kind == GLAZED:
        shine = 0.55 + 0.3 * glint if across > 0.3 else 1.25
        if up < 0.2:
            shine *= 0.8
        return r * shine, g * shine, b * shine
    if 0.3 < across < 0.78 and z < part.eave - 0.6:
        if 0.25 < up < 0.85:
            return 0.22 * r + 0.02 * glint, 0.22 * g + 0.02 * glint, 0.24 * b + 0.03 * glint
        factor *= 0.62
    return factor * r, factor * g, factor * b
