"""Which tiles of a store a run trains on and which it holds out."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from agl_core.config import TrainConfig
from agl_core.data.folds import Placed, assign_folds
from agl_core.data.store import Store
from agl_core.errors import UserError


@dataclass(frozen=True)
class Split:
    """Positions in the store of the tiles to train on and to validate on."""

    train: list[int]
    validation: list[int]

    @staticmethod
    def of(store: Store, config: TrainConfig, stage: str | None = None) -> "Split":
        """Hold out fold `config.fold`; -1 holds nothing out. Of a `stage`, only the tiles of its cities.

        The folds are those of all tiles: whatever cities a stage has, no tile changes sides.

        Raises:
            UserError: a side is left without tiles, the folds cannot be made, or the store has no such city.
        """
        return Split.among(store.entries, store.cities, config, stage)

    @staticmethod
    def among(
        entries: Sequence[Placed], known: Sequence[str], config: TrainConfig, stage: str | None = None
    ) -> "Split":
        """As `of`, of tiles that need not be in a store yet; known: their cities."""
        cities = stage_cities(config, stage, known) if stage is not None else known
        tiles = [number for number, entry in enumerate(entries) if entry.city in cities]
        if config.fold < 0:
            return Split(tiles, [])
        folds = assign_folds(entries, config.folds, config.fold_by, config.seed)
        split = Split([i for i in tiles if folds[i] != config.fold], [i for i in tiles if folds[i] == config.fold])
        if not split.train or not split.validation:
            of = f" of the cities of stages.{stage}.cities" if len(cities) < len(known) else ""
            other = f", or other cities for stage {stage}" if of else ""
            raise UserError(
                f"fold {config.fold} of {config.folds} leaves {len(split.train)} tiles{of} to train on and "
                f"{len(split.validation)} to validate on: choose another --fold or --folds, or --fold -1{other}"
            )
        return split

    def digest(self, store: Store) -> str:
        """Names the training tiles, in order: the sample order counts on them."""
        ids = "\n".join(store.entries[number].id for number in self.train)
        return hashlib.sha256(ids.encode()).hexdigest()[:16]


def stage_cities(config: TrainConfig, stage: str, known: Sequence[str]) -> list[str]:
    """The cities of a stage, of those that are `known`, in the order of these.

    Raises:
        UserError: it names one that is not.
    """
    wanted = [name.strip() for name in config.stages[stage].cities.split(",") if name.strip()]
    strange = next((name for name in wanted if name not in known), None)
    if strange is not None:
        raise UserError(
            f"stages.{stage}.cities: there is no city {strange!r} among the tiles to train on; "
            f"choose of {', '.join(known)}"
        )
    return [city for city in known if city in wanted or not wanted]
