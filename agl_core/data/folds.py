"""Which tile is held out in which fold of the cross-validation."""

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from agl_core.errors import UserError, valid_choice


class Placed(Protocol):
    """What a tile must tell to be put into a fold: catalogue records and store entries both do."""

    @property
    def id(self) -> str:
        """Name of the tile."""

    @property
    def city(self) -> str:
        """Name of its city."""

    @property
    def place(self) -> str | None:
        """Name of the place that it shows, None where not known."""


def assign_folds(records: Sequence[Placed], folds: int, by: str, seed: int) -> list[int]:
    """The fold (0 .. folds - 1) of each record: a pure function of the records, in their order, and the seed.

    Args:
        records: the tiles, in the catalogue's order.
        folds: number of folds, 2 to the number of tiles (of places, if by "place").
        by: "city": every fold gets every city's share of tiles, shuffled; the same as scikit-learn's
            `StratifiedKFold(folds, shuffle=True, random_state=seed)` (0.22 and later), which the reference uses.
            That is the reference's assignment only where the order is the reference's too: it takes the rows as its
            CSV file has them, this project sorts the catalogue and the store by id.
            "place": all tiles of a place are in one fold; the folds are as even as that allows in tiles per city.
        seed: seed of the shuffle, 0 to 2**32 - 1.

    Raises:
        UserError: when there are too few or too many folds, places are asked for and not known, or a seed is no seed.
    """
    valid_choice("fold_by", by, ["city", "place"])
    if folds < 2:
        raise UserError(f"folds is {folds}: give at least 2, one to hold out and one to learn from")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}: give a number from 0 to {2**32 - 1}")
    if by == "city":
        _check_enough(len(records), folds, "tile")
        return _by_city([record.city for record in records], folds, np.random.RandomState(seed))
    unplaced = [record.id for record in records if record.place is None]
    if unplaced:
        raise UserError(
            f"folds by place need the place of every tile, and {len(unplaced)} of {len(records)} have none "
            f"({unplaced[0]} is the first): add a `place` column to metadata.csv (and run prepare again), "
            "or give --fold-by city"
        )
    _check_enough(len({record.place for record in records}), folds, "place")
    return _by_place(records, folds, np.random.RandomState(seed))


def _check_enough(count: int, folds: int, what: str) -> None:
    if count < folds:
        raise UserError(f"{count} {what}(s) cannot fill {folds} folds: give --folds {max(count, 2)} or fewer")


def _by_city(labels: list[str], folds: int, random: np.random.RandomState) -> list[int]:
    """Deal the sorted labels round like cards: that says how many of each city a fold gets; then shuffle which."""
    order = list(dict.fromkeys(labels))  # cities count in the order of their first tile
    dealt = [city for city in order for label in labels if label == city]
    shares = [Counter(dealt[fold::folds]) for fold in range(folds)]
    assigned = np.empty(len(labels), dtype=np.int64)
    for city in order:
        hands = np.repeat(np.arange(folds), [share[city] for share in shares])
        random.shuffle(hands)
        assigned[[label == city for label in labels]] = hands
    return [int(fold) for fold in assigned]


def _by_place(records: Sequence[Placed], folds: int, random: np.random.RandomState) -> list[int]:
    """Largest place first, each into the fold that has the fewest tiles of its city, then the fewest of all."""
    tiles: dict[str, Counter[str]] = {}
    for record in records:
        tiles.setdefault(str(record.place), Counter())[record.city] += 1
    places = sorted(tiles)
    shuffled = [places[index] for index in random.permutation(len(places))]
    loads: list[Counter[str]] = [Counter() for _ in range(folds)]
    assigned: dict[str, int] = {}
    for place in sorted(shuffled, key=lambda name: -tiles[name].total()):  # stable: equal places stay shuffled

        def cost(fold: int, content: Counter[str] = tiles[place]) -> tuple[int, int, int]:
            return sum(loads[fold][city] * count for city, count in content.items()), loads[fold].total(), fold

        fold = min(range(folds), key=cost)
        loads[fold].update(tiles[place])
        assigned[place] = fold
    return [assigned[str(record.place)] for record in records]
