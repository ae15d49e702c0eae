"""From the store to batches: each sample is a pure function of (seed, stage, epoch, sample)."""

import math
import sys
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from agl_core.config import StageConfig
from agl_core.data.augment import draw_symmetry
from agl_core.data.order import MicroBatch, Order, SampleKey
from agl_core.data.seeding import WorkerInit, sample_generator, seed_worker
from agl_core.data.store import Store
from agl_core.data.tiles import UNKNOWN
from agl_core.geometry import Pose, apply, apply_pose


class Batch(NamedTuple):
    """A micro-batch as it travels to the device: small integers, converted there.

    image: (B, 3, S, S) uint8; agl: (B, S, S) uint16 centimetres, 65535 unknown; scale: (B,) float32 pixels per metre
    and angle: (B,) float32 radians, NaN where the tile has no vector flow; gsd: (B,) float32 metres per pixel;
    city: (B,) int64; epoch and sample: (B,) int64, the sample keys.
    """

    image: Tensor
    agl: Tensor
    scale: Tensor
    angle: Tensor
    gsd: Tensor
    city: Tensor
    epoch: Tensor
    sample: Tensor


@dataclass(frozen=True)
class Sample:
    """One crop. rgb: (S, S, 3) uint8; agl: (S, S) uint16 centimetres, 65535 unknown; pose of the crop or None."""

    rgb: NDArray[np.uint8]
    agl: NDArray[np.uint16]
    pose: Pose | None
    gsd: float
    city: int


class CropDataset(Dataset[Any]):
    """Crops of the tiles `tiles` of a store, addressed by `SampleKey`.

    `sample` in a key is a position in `tiles`. The pixels depend on the key alone, not on the process, the worker or
    anything read before. Tiles smaller than the crop are padded at the right and bottom, black and unknown.
    """

    def __init__(
        self, store: Store, tiles: Sequence[int], config: StageConfig, seed: int, stage: int, rank: int = 0
    ) -> None:
        self.store, self.tiles, self.config = store, list(tiles), config
        self.seed, self.stage, self.rank = seed, stage, rank
        self._city = {city: position for position, city in enumerate(store.cities)}
        self._epoch: int | None = None

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, key: SampleKey) -> Sample:
        generator = sample_generator(self.seed, self.stage, key.epoch, key.sample)
        number = self.tiles[key.sample]
        entry = self.store.entries[number]
        size = self.config.crop
        height, width = min(size, entry.height), min(size, entry.width)
        top = int(generator.integers(entry.height - height + 1))
        left = int(generator.integers(entry.width - width + 1))
        rgb, agl = self.store.read_crop(number, top, left, height, width)
        if (height, width) != (size, size):
            missing = ((0, size - height), (0, size - width))
            rgb = np.pad(rgb, (*missing, (0, 0)))
            agl = np.pad(agl, missing, constant_values=UNKNOWN)
        symmetry = draw_symmetry(self.config.augment, generator)
        pose = None
        if entry.scale is not None and entry.angle is not None:
            pose = apply_pose(Pose(entry.scale, entry.angle), symmetry)
        return Sample(apply(rgb, symmetry), apply(agl, symmetry), pose, entry.gsd, self._city[entry.city])

    def __getitems__(self, keys: list[SampleKey]) -> Batch:
        """A whole micro-batch at once, written into one array per kind."""
        self._seed_globals(keys[0].epoch)
        size, count = self.config.crop, len(keys)
        image = np.empty((count, 3, size, size), np.uint8)
        agl = np.empty((count, size, size), np.uint16)
        labels = np.empty((3, count), np.float32)
        city = np.empty(count, np.int64)
        for place, key in enumerate(keys):
            sample = self[key]
            image[place] = sample.rgb.transpose(2, 0, 1)
            agl[place] = sample.agl
            pose = sample.pose
            labels[:, place] = (pose.scale, pose.angle, sample.gsd) if pose else (math.nan, math.nan, sample.gsd)
            city[place] = sample.city
        scale, angle, gsd = map(torch.from_numpy, labels)
        visits = torch.tensor(keys, dtype=torch.int64)
        return Batch(
            torch.from_numpy(image), torch.from_numpy(agl), scale, angle, gsd, torch.from_numpy(city), *visits.unbind(1)
        )

    def _seed_globals(self, epoch: int) -> None:
        """In a worker process, give the global generators the stream of the epoch that begins."""
        worker = get_worker_info()
        if worker is not None and self._epoch is not None and epoch > self._epoch:
            seed_worker(self.seed, self.stage, epoch, self.rank, worker.id)
        self._epoch = epoch if self._epoch is None else max(epoch, self._epoch)


class MicroBatchSampler(Sampler[list[SampleKey]]):
    """Gives the DataLoader the micro-batches of one process, from step `start` to step `stop`."""

    def __init__(self, micro_batches: Iterable[MicroBatch]) -> None:
        self._micro_batches = micro_batches

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for micro_batch in self._micro_batches:
            yield micro_batch.samples


def _as_it_is(batch: Any) -> Any:
    return batch


def batches(
    dataset: CropDataset,
    order: Order,
    start: int,
    stop: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """The micro-batches of process `rank` in the steps `start` to `stop`, in order, read ahead by `workers` processes.

    With 0 workers the crops are cut in this process. The batches are the same for any number of workers. To be called
    in the thread that takes the batches.
    """
    config = dataset.config
    loader: Any = DataLoader(
        dataset,
        batch_sampler=MicroBatchSampler(order.micro_batches(start, stop, config.micro_batch, rank, world_size)),
        collate_fn=_as_it_is,
        num_workers=workers,
        # Forked by this very process, whose death they must notice; Linux will have another default.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        worker_init_fn=WorkerInit(dataset.seed, dataset.stage, order.epochs_done(start), rank),
        pin_memory=pin_memory,
        generator=torch.Generator(),  # the loader draws a base seed from it and not from the global generator
    )
    return typing.cast(Iterator[Batch], iter(loader))
