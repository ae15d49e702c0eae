"""The style of a city: what its places have in common."""

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Style:
    """What the places of one city have in common; lengths in metres."""

    kind: str
    """suburb: houses with gardens; quarter: blocks of flats around yards; downtown: offices and towers."""
    gsd: float
    """Nominal pixel; a tile's own differs by a few percent."""
    street: float
    """Width of a street between kerbs."""
    depth: tuple[float, float]
    """Least and greatest depth of a block."""
    length: tuple[float, float]
    """Least and greatest length of a block."""
    low: float
    """Walls of a low building."""
    high: float
    """Walls of a high building."""
    trees: float
    """Density of trees, 1 is usual."""
    green: float
    """Share of blocks that are parks."""
    lots: float
    """Share of blocks that are car parks."""
    roofs: int
    """Which palette of roofs and walls."""
    river: float
    """Share of places with a river."""
    skew: float
    """The street grid's typical angle against the image, radians."""

    @property
    def tallest(self) -> float:
        """No building or tree is higher than this, metres."""
        return max(1.18 * self.high + 4.0, 19.0)


ARCHETYPES = (
    Style("suburb", 0.72, 8.0, (42.0, 52.0), (60.0, 110.0), 5.0, 10.5, 0.25, 0.04, 0.0, 0, 0.06, 0.1),
    Style("quarter", 0.90, 10.0, (46.0, 64.0), (46.0, 70.0), 9.0, 22.0, 0.3, 0.05, 0.01, 1, 0.06, 0.45),
    Style("downtown", 1.00, 12.0, (46.0, 66.0), (46.0, 66.0), 10.0, 34.0, 0.3, 0.05, 0.01, 2, 0.06, -0.25),
)


def style_of(city: int) -> Style:
    """Return the style of a city by its number: the first three are the archetypes, the others variations of them.

    The style depends on the number alone, so that a city is the same kind of place in every world.
    """
    style = ARCHETYPES[city % len(ARCHETYPES)]
    if city < len(ARCHETYPES):
        return style
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(7, spawn_key=(city,))))
    stretch = float(rng.uniform(0.85, 1.2))
    return replace(
        style,
        gsd=round(style.gsd * float(rng.uniform(0.9, 1.15)), 3),
        street=style.street * float(rng.uniform(0.85, 1.2)),
        depth=(style.depth[0] * stretch, style.depth[1] * stretch),
        length=(style.length[0] * stretch, style.length[1] * stretch),
        high=style.high * float(rng.uniform(0.75, 1.15)),
        trees=style.trees * float(rng.uniform(0.6, 1.5)),
        green=style.green * float(rng.uniform(0.5, 1.5)),
        roofs=int(rng.integers(3)),
        skew=float(rng.uniform(-0.7, 0.7)),
    )


def neighbourhood(style: Style, rng: np.random.Generator) -> Style:
    """Return the style of one place of a city: neighbours are of similar height, places of a city are not."""
    usual = style.low + (style.high - style.low) * float(rng.random()) ** 1.2
    return replace(style, low=max(style.low, 0.8 * usual), high=min(style.high, 1.25 * usual))


_FIRST, _VOWELS, _LAST = "BDFGKLMNPRSTVZ", "AEIOU", "BDFGKLMNPRSTVZ"
CITIES = len(_FIRST) * len(_VOWELS) * len(_LAST)
"""How many cities have a name of their own."""


def name_of(city: int) -> str:
    """Return the name of a city by its number: three capitals, different for all numbers below `CITIES`."""
    number = (city * 577 + 131) % CITIES
    first, rest = divmod(number, len(_VOWELS) * len(_LAST))
    vowel, last = divmod(rest, len(_LAST))
    return _FIRST[first] + _VOWELS[vowel] + _LAST[last]
