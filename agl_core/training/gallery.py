"""The fixed held-out tiles of a stage that are shown with their predictions, in TensorBoard and as files."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from agl_core.data.store import Store, StoreEntry
from agl_core.geometry import Pose
from agl_core.inference.predictor import Prediction
from agl_core.reporting.pictures.panel import highest, panel
from agl_core.reporting.pictures.tile import Tile, smaller_heights, smaller_shape
from agl_core.reporting.pictures.tiles import write_tiles
from agl_core.reporting.tensorboard.scalars import Pictures
from agl_core.training.parallel import Parallel

PARTS = 50
"""Of so many equal parts of a stage, TensorBoard shows the first new best score of each."""

WIDTH = 1600  # pixels of a picture
_POSE = 16  # bytes


class Shown(NamedTuple):
    """A prediction as it is shown: (h, w) uint16 centimetres, at most 512 pixels along a side, and the pose."""

    agl_cm: NDArray[np.uint16]
    pose: Pose


def choose(entries: Sequence[StoreEntry], validation: Sequence[int], count: int) -> list[int]:
    """Up to `count` of the tiles `validation`, by turns of every city; whoever has the same tiles chooses the same."""
    by_city: dict[str, list[int]] = {}
    for number in sorted(validation, key=lambda number: hashlib.sha256(entries[number].id.encode()).digest()):
        by_city.setdefault(entries[number].city, []).append(number)
    turns = [(turn, city, number) for city, those in by_city.items() for turn, number in enumerate(those)]
    return [number for _, _, number in sorted(turns)[:count]]


def worth_a_picture(step: int, total: int, last: int | None, new_best: bool) -> bool:
    """Whether TensorBoard is to show the tiles after `step` of `total`: after the first and the last validation, and
    where the best score is new and that before, after the step `last`, lies in an earlier part of the stage.

    All best scores of a stage of a thousand validations would take gigabytes. What is shown depends on steps and
    scores alone, so an interrupted stage shows the same.
    """
    if step == total or last is None:
        return True
    return new_best and PARTS * step // total != PARTS * last // total


class Gallery:
    """Keeps what is predicted for the chosen tiles in a validation, and has the first process show it.

    Every process has one. What a process predicts of them travels to the first one, made small before, and only when
    it is shown.
    """

    def __init__(
        self, store: Store, validation: Sequence[int], count: int, parallel: Parallel, pictures: Pictures, folder: Path
    ) -> None:
        """validation: the held-out tiles in their order; count: how many to show; folder: where the tiles of the best
        score are written to."""
        self.tiles = choose(store.entries, validation, count)
        self._rank = {number: row % parallel.world_size for row, number in enumerate(validation)}
        self._store, self._parallel, self._pictures, self._folder = store, parallel, pictures, folder
        self._kept: list[dict[int, Prediction]] = []
        self._truth: list[Tile] = []

    def forget(self) -> None:
        """Let go of what is kept: before a validation, and when it has been shown."""
        self._kept = []

    def look(self) -> Callable[[int, Prediction], None]:
        """What `validate` is to show the predictions of one more network to."""
        kept: dict[int, Prediction] = {}
        self._kept.append(kept)

        def keep(number: int, predicted: Prediction) -> None:
            if number in self.tiles:
                kept[number] = predicted

        return keep

    def collect(self, network: int) -> list[Shown]:
        """What the `network`-th network that was validated, from 0, has predicted for the chosen tiles: in the first
        process; nothing in the others. All processes call it.

        Raises:
            PeerLostError: another process is gone.
        """
        found = []
        for number in self.tiles:
            entry = self._store.entries[number]
            shape = smaller_shape((entry.height, entry.width))
            predicted = self._kept[network].get(number)
            mine = Shown(smaller_heights(predicted.agl_cm), predicted.pose) if predicted is not None else None
            found.append(_unpacked(self._parallel.to_first(_packed(mine, shape), self._rank[number]), shape))
        return found if self._parallel.first else []

    def tiles_with(self, shown: Sequence[Shown]) -> list[Tile]:
        """The chosen tiles with their truth and what `collect` has found for them.

        Raises:
            UserError: the store is damaged.
        """
        if not self._truth:
            self._truth = [self._true(number) for number in self.tiles]
        return [
            replace(tile, predicted_cm=prediction.agl_cm, prediction=prediction.pose)
            for tile, prediction in zip(self._truth, shown, strict=True)
        ]

    def draw(self, step: int, tiles: Sequence[Tile]) -> None:
        """Show `tiles`, of `tiles_with`, in TensorBoard. Raises OSError."""
        end = highest(self._truth)  # the same as long as the stage lasts
        self._pictures.write(step, {f"{tile.city}/{tile.id}": panel(tile, WIDTH, end) for tile in tiles})

    def write(self, tiles: Sequence[Tile], step: int, score: float) -> None:
        """Leave `tiles` as the files of the best score so far. Raises OSError."""
        write_tiles(self._folder, tiles, step=step, score=score)

    def _true(self, number: int) -> Tile:
        """A tile as if it had been predicted rightly."""
        entry = self._store.entries[number]
        rgb, agl = self._store.read_tile(number)
        known = entry.scale is not None and entry.angle is not None
        pose = Pose(entry.scale, entry.angle) if known else None  # type: ignore[arg-type]
        return Tile(entry.id, entry.city, rgb, agl, agl, pose, pose or Pose(0, 0)).smaller()


def _packed(shown: Shown | None, shape: tuple[int, int]) -> torch.Tensor:
    """(bytes,) uint8: scale and angle, and the heights of the given (h, w); zeros for what is not here."""
    if shown is None:
        return torch.zeros(_POSE + 2 * shape[0] * shape[1], dtype=torch.uint8)
    pose = np.array([shown.pose.scale, shown.pose.angle], np.float64)
    return torch.from_numpy(np.concatenate([pose.view(np.uint8), shown.agl_cm.reshape(-1).view(np.uint8)]))


def _unpacked(packed: torch.Tensor, shape: tuple[int, int]) -> Shown:
    values = packed.numpy()
    scale, angle = values[:_POSE].copy().view(np.float64).tolist()
    return Shown(values[_POSE:].copy().view(np.uint16).reshape(shape), Pose(scale, angle))
