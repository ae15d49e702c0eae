"""From the store to batches: each sample is a pure function of (seed, stage, epoch, sample)."""

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from agl_core.config import StageConfig
from agl_core.data.batch import KEPT, Batch, Buffers, Packed, Refusal, places_of, unpack
from agl_core.data.order import MicroBatch, Order, SampleKey
from agl_core.data.sampling import load_code, make_sample
from agl_core.data.seeding import SampleStreams, WorkerInit, sample_generator, seed_worker
from agl_core.data.store import Store
from agl_core.errors import UserError


class CropDataset(Dataset[Any]):
    """Crops of the tiles `tiles` of a store, addressed by `SampleKey`.

    `sample` in a key is a position in `tiles`. The pixels depend on the key alone, not on the process, the worker or
    anything read before. What lies outside a tile is black and unknown.
    """

    def __init__(
        self, store: Store, tiles: Sequence[int], config: StageConfig, seed: int, stage: int, rank: int = 0
    ) -> None:
        self.store, self.tiles, self.config = store, list(tiles), config
        self.seed, self.stage, self.rank = seed, stage, rank
        self._city = {city: position for position, city in enumerate(store.cities)}
        self._epoch: int | None = None
        # Under way are three steps, in the feed's hands, and what the loader reads ahead.
        self._buffers = Buffers(max(KEPT, 3 * (config.batch // config.micro_batch) + 4))

    def __len__(self) -> int:
        return len(self.tiles)

    def load_code(self) -> None:
        """Load all that reading and augmenting needs, before other processes are forked.

        They share it then, instead of loading a hundred megabytes each; and none of them can wait for ever for a lock
        of Python's imports that a thread of this process held at the fork.
        """
        load_code(self.store.codec, self.config)

    def __getitems__(self, keys: list[SampleKey]) -> Packed | Refusal:
        """A whole micro-batch, in shared memory if this is a worker process."""
        self._seed_globals(keys[0].epoch)
        count, size = len(keys), self.config.crop
        if get_worker_info() is not None:
            buffer = self._buffers.take(count, size)
        else:
            buffer = torch.empty(places_of(count, size)[-1] + 1, dtype=torch.uint8)
        try:
            self.fill(unpack(buffer, count, size), keys)
        except UserError as error:
            return Refusal(str(error))
        return Packed(buffer)

    def fill(self, batch: Batch, keys: Sequence[SampleKey]) -> None:
        """Write the samples `keys` into the tensors of `batch`.

        Raises:
            UserError: the store is damaged.
        """
        image, agl, scale, angle, gsd, city, epoch, sample = (part.numpy() for part in batch)
        for place, key in enumerate(keys):
            number = self.tiles[key.sample]
            pose, gsd[place] = make_sample(
                self.store,
                number,
                self.config,
                SampleStreams(self.seed, self.stage, key.epoch, key.sample),
                sample_generator(self.seed, self.stage, key.epoch, key.sample),
                image[place],
                agl[place],
            )
            scale[place], angle[place] = (pose.scale, pose.angle) if pose is not None else (math.nan, math.nan)
            city[place] = self._city[self.store.entries[number].city]
            epoch[place], sample[place] = key

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


class Batches:
    """The micro-batches of one process, in order; `workers` are the processes that read them ahead.

    Who is done with one should `release` it, or its memory is not used again.
    """

    def __init__(self, loader: Any, config: StageConfig) -> None:
        """`loader`: iterator over what `CropDataset.__getitems__` returns."""
        self._loader, self._config = loader, config

    @property
    def workers(self) -> list[BaseProcess]:
        """The data loading processes."""
        return list(getattr(self._loader, "_workers", []))

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        found = next(self._loader)
        if isinstance(found, Refusal):
            raise UserError(found.text)
        return unpack(found.buffer, self._config.micro_batch, self._config.crop)


def batches(
    dataset: CropDataset,
    order: Order,
    start: int,
    stop: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> Batches:
    """The micro-batches of process `rank` in the steps `start` to `stop`, in order, read ahead by `workers` processes.

    With 0 workers the crops are cut in this process. The batches are the same for any number of workers. To be called
    in the thread that takes the batches, which raise `UserError` where the store is damaged.
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
    return Batches(iter(loader), config)
