"""Which tiles of a store a run trains on and which it holds out."""

import hashlib
from dataclasses import dataclass

from agl_core.config import TrainConfig
from agl_core.data.folds import assign_folds
from agl_core.data.store import Store
from agl_core.errors import UserError


@dataclass(frozen=True)
class Split:
    """Positions in the store of the tiles to train on and to validate on."""

    train: list[int]
    validation: list[int]

    @staticmethod
    def of(store: Store, config: TrainConfig) -> "Split":
        """Hold out fold `config.fold`; -1 holds nothing out.

        Raises:
            UserError: a side is left without tiles, or the folds cannot be made.
        """
        everything = list(range(len(store.entries)))
        if config.fold < 0:
            return Split(everything, [])
        folds = assign_folds(store.entries, config.folds, config.fold_by, config.seed)
        split = Split(
            [i for i in everything if folds[i] != config.fold], [i for i in everything if folds[i] == config.fold]
        )
        if not split.train or not split.validation:
            raise UserError(
                f"fold {config.fold} of {config.folds} leaves {len(split.train)} tiles to train on and "
                f"{len(split.validation)} to validate on: choose another --fold or --folds, or --fold -1"
            )
        return split

    def digest(self, store: Store) -> str:
        """Names the training tiles, in order: the sample order counts on them."""
        ids = "\n".join(store.entries[number].id for number in self.train)
        return hashlib.sha256(ids.encode()).hexdigest()[:16]
