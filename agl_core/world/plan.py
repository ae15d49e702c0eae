"""The plan of a built-in world: which tiles it has, where they lie, and the source of their randomness."""

import math
from dataclasses import dataclass

import numpy as np

from agl_core.config import WorldConfig
from agl_core.data.tiles import UNITS
from agl_core.errors import UserError, valid_choice
from agl_core.world.style import CITIES, name_of

SMALLEST, LARGEST = 64, 4096
"""Sides of a tile, pixels."""

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_IDS = 26**6


@dataclass(frozen=True)
class Tile:
    """One image of the world: a view of a place of a city, all by number, and the split it belongs to."""

    city: int
    place: int
    view: int
    split: str
    id: str

    @property
    def place_name(self) -> str:
        """Name of the place, unique in the world."""
        return f"{name_of(self.city)}-{self.place:03d}"


def plan(config: WorldConfig) -> list[Tile]:
    """Return the tiles of a world, in order of city, place and view.

    Places are spread evenly over the cities, and `views` tiles over each place; the last place of all may have fewer.

    Raises:
        UserError: for values that make no world.
    """
    _check(config)
    places = math.ceil(config.tiles / config.views)
    tiles = []
    for city in range(config.cities):
        count = places // config.cities + (city < places % config.cities)
        held_out = min(max(1, round(config.test_share * count)), count - 1)
        # The last place of the last city that has one more than the others is the one which may lack views.
        short = count - 1 if city == (places - 1) % config.cities else -1
        for place in range(count):
            views = config.views - (places * config.views - config.tiles if place == short else 0)
            split = "test" if place < held_out else "train"
            tiles += [Tile(city, place, view, split, tile_id(config.seed, city, place, view)) for view in range(views)]
    return tiles


def _check(config: WorldConfig) -> None:
    if not config.out:
        raise UserError("no folder to write the world to: give one with --out")
    for key, low, high in (
        ("size", SMALLEST, LARGEST),
        ("tiles", 1, 200_000),
        ("views", 1, 1000),
        ("cities", 1, CITIES),
        ("seed", 0, 2**63 - 1),
        ("workers", 1, 1024),
    ):
        value = getattr(config, key)
        if value is not None and not low <= value <= high:
            raise UserError(f"{key} is {value}: give a whole number from {low} to {high} with --{key}")
    if not 0 < config.test_share < 1:
        raise UserError(f"test_share is {config.test_share}: give a number between 0 and 1 with --test-share")
    valid_choice("format", config.format, ["tif", "j2k"])
    valid_choice("unit", config.unit, list(UNITS))
    least = (2 * config.cities - 1) * config.views + 1
    if config.tiles < least:
        raise UserError(
            f"{config.tiles} tiles are too few for two places (one of them held out) in each of {config.cities} cities "
            f"with {config.views} views each: give --tiles {least} or more, or fewer --cities or --views"
        )


def tile_id(seed: int, city: int, place: int, view: int) -> str:
    """Return the name of a tile: as in the challenge, six letters that tell nothing, different within a city."""
    # A bijection on 26**6 numbers, shifted by seed and city: different views get different letters.
    number = ((place * 1000 + view) * 100_000_007 + int(random_source(seed, city, 0, 0).generate_state(1)[0])) % _IDS
    letters = ""
    for _ in range(6):
        number, rest = divmod(number, 26)
        letters += _LETTERS[rest]
    return f"{name_of(city)}_{letters}"


def random_source(seed: int, city: int, place: int, key: int) -> np.random.SeedSequence:
    """Return the source of all randomness of a place (key 0) or of one of its views (key view + 1)."""
    return np.random.SeedSequence(seed, spawn_key=(city, place, key))
