"""The sample order: a pure function of (seed, stage, epoch, number of samples, global batch).

Every epoch is a permutation of all samples. The epochs follow one another in one endless stream, and global batch
`step` is the positions `step * global_batch ... (step + 1) * global_batch` of it. So every sample comes exactly once
per epoch, every batch is full (the last batch of an epoch is filled from the next one, so no sample is dropped and
no optimiser step is smaller than the others), and the one integer `step` says where a run is.

Rank and world size only choose which micro-batches of a global batch a process computes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agl_core.data.seeding import order_generator


class SampleKey(NamedTuple):
    """Names one visit of one sample; its crop and augmentation are functions of it."""

    epoch: int
    sample: int


class MicroBatch(NamedTuple):
    """One forward pass: position `number` within the global batch of `step`, and the samples."""

    step: int
    number: int
    samples: list[SampleKey]


@dataclass(frozen=True)
class Order:
    """The order of `n_samples` samples in global batches of `global_batch`, for one stage of a run."""

    seed: int
    stage: int
    n_samples: int
    global_batch: int

    def __post_init__(self) -> None:
        if self.n_samples < 1 or self.global_batch < 1:
            raise ValueError(f"an order needs samples and a batch size, got {self.n_samples} and {self.global_batch}")

    def permutation(self, epoch: int) -> NDArray[np.int64]:
        """(n_samples,) int64: all sample indices in the order of `epoch`."""
        return _permutation(self.seed, self.stage, epoch, self.n_samples)

    def batch(self, step: int) -> list[SampleKey]:
        """The global batch of the optimiser step `step`, counted from 0."""
        keys = []
        for position in range(step * self.global_batch, (step + 1) * self.global_batch):
            epoch, place = divmod(position, self.n_samples)
            keys.append(SampleKey(epoch, int(self.permutation(epoch)[place])))
        return keys

    def epochs_done(self, step: int) -> int:
        """How many epochs are complete after `step` steps."""
        return step * self.global_batch // self.n_samples

    def steps(self, epochs: int) -> int:
        """The least number of steps after which `epochs` epochs are complete."""
        return -(-epochs * self.n_samples // self.global_batch)

    def micro_batches(
        self, start: int, stop: int, micro_batch: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[MicroBatch]:
        """What process `rank` of `world_size` computes in the steps `start` to `stop`: every `world_size`-th of the
        micro-batches of each global batch."""
        for step in range(start, stop):
            samples = self.batch(step)
            for number in range(rank, self.global_batch // micro_batch, world_size):
                yield MicroBatch(step, number, samples[number * micro_batch : (number + 1) * micro_batch])


@lru_cache(maxsize=4)
def _permutation(seed: int, stage: int, epoch: int, n_samples: int) -> NDArray[np.int64]:
    order = order_generator(seed, stage, epoch).permutation(n_samples).astype(np.int64)
    order.flags.writeable = False
    return order
