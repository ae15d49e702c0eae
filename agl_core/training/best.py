"""The weights with the best validated score, on the disk as soon as the disk takes them."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from agl_core.durable.lease import Lease
from agl_core.model.network import GeoposeNet
from agl_core.model.weights import save_weights

RETRY = 60.0  # seconds from a refusal to the next attempt


class BestWeights:
    """Writes weights/<stage>/best.safetensors. What a full disk refuses is kept in memory and tried again.

    While something is `pending` no checkpoint may be saved: it would say that this score is dealt with, and a run that
    continued from it would never write these weights.
    """

    def __init__(self, path: Path, model: GeoposeNet, lease: Lease) -> None:
        self._path, self._model, self._lease = path, model, lease
        self._held: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        self._again = 0.0
        self.missing = False
        """Whether the first process could not write the newest ones at once: all that the other processes know."""

    @property
    def pending(self) -> bool:
        """Whether the best weights are not on the disk yet."""
        return self._held is not None

    def offer(self, weights: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
        """These weights of the model, its own or their average, are the best so far.

        Raises:
            OSError: the disk refuses; they are kept.
            LeaseLostError: another incarnation of the run has taken over.
        """
        state = {name: value.detach().to("cpu", copy=True) for name, value in weights.items()}
        self._held = state, metadata
        self.write()

    def retry(self) -> None:
        """Try again what was refused a while ago; raises what `offer` does."""
        if self._held is not None and time.monotonic() >= self._again:
            self.write()

    def write(self) -> None:
        """Write what is held, if anything; raises what `offer` does."""
        if self._held is None:
            return
        state, metadata = self._held
        self._again = time.monotonic() + RETRY
        with self._lease.writing():
            save_weights(self._path, self._model, metadata, state)
        self._held = None
