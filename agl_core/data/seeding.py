"""Random streams that are functions of what they are for, so that nothing about them needs to be saved.

Two kinds. The streams that decide results (order, crops, augmentation, the forward pass, initial weights) are Philox
streams addressed by key and counter: Philox is a bijection of the 256-bit counter for every 128-bit key, so two
different addresses never share a number. The global generators of worker processes, which only foreign code uses,
are seeded from `SeedSequence` spawn keys.
"""

import multiprocessing
import random
from dataclasses import dataclass

import numpy as np

from agl_core.data.shield import shield_worker

ORDER, SAMPLE, FORWARD, INITIAL, WORKER, AUGMENT = range(6)

OPERATIONS = (
    "stretch", "view", "rotate", "zoom",
    "dropout", "blur", "brightness", "tone", "noise", "fancy_pca", "fog", "shadow", "sun_flare",
)  # fmt: skip
"""The augmentations with a stream of their own each; new ones come last, since the position is the stream's name."""

_WORD = 2**64
_HALF = 2**32


def _stream(seed: int, purpose: int, stage: int, first: int, second: int, part: int = 0) -> np.random.Generator:
    """The Philox stream of key (seed, purpose and stage) and counter (0, part, first, second).

    The lowest word of the counter is the stream's own: 2^64 blocks before it would touch its neighbour.
    """
    if not 0 <= seed < _WORD or not 0 <= stage < _HALF:
        raise ValueError(f"seed must be in 0 ... 2^64 - 1 and stage in 0 ... 2^32 - 1, got {seed} and {stage}")
    key = np.array([seed, purpose * _HALF + stage], dtype=np.uint64)
    counter = np.array([0, part, first, second], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def order_generator(seed: int, stage: int, epoch: int) -> np.random.Generator:
    """The generator of the permutation of `epoch`."""
    return _stream(seed, ORDER, stage, epoch, 0)


def sample_generator(seed: int, stage: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of the place of the crop and of its symmetry, of sample `index` in `epoch`."""
    return _stream(seed, SAMPLE, stage, epoch, index)


@dataclass(frozen=True)
class SampleStreams:
    """The streams of the augmentations of sample `index` in `epoch`, one for each of `OPERATIONS`.

    What one of them draws, or whether it is used at all, does not move the others.
    """

    seed: int
    stage: int
    epoch: int
    index: int

    def __call__(self, operation: str) -> np.random.Generator:
        """A new generator at the beginning of the stream of `operation`."""
        part = OPERATIONS.index(operation)
        return _stream(self.seed, AUGMENT, self.stage, self.epoch, self.index, part)


def forward_seed(seed: int, stage: int, step: int, micro_batch: int) -> int:
    """63-bit seed of torch's generators for one forward pass (dropout, drop-connect)."""
    return int(_stream(seed, FORWARD, stage, step, micro_batch).integers(2**63))


def initial_seed(seed: int, stage: int) -> int:
    """63-bit seed of torch's generator for the random initial weights."""
    return int(_stream(seed, INITIAL, stage, 0, 0).integers(2**63))


def seed_torch(seed: int) -> None:
    """Seed torch's generators of the CPU and of every GPU."""
    import torch  # here, so that the order of samples can be computed without waiting for torch

    torch.manual_seed(seed)


def worker_sequence(seed: int, stage: int, epoch: int, rank: int, worker: int) -> np.random.SeedSequence:
    """The seed sequence of one (run, stage, epoch, rank, worker): another address is another spawn key."""
    return np.random.SeedSequence(seed, spawn_key=(WORKER, stage, epoch, rank, worker))


def seed_worker(seed: int, stage: int, epoch: int, rank: int, worker: int) -> None:
    """Seed the global generators of `random`, numpy and torch of this process."""
    import torch

    numpy_seed, python_seed, torch_seed = worker_sequence(seed, stage, epoch, rank, worker).spawn(3)
    np.random.seed(numpy_seed.generate_state(8))
    random.seed(int.from_bytes(python_seed.generate_state(8).tobytes(), "little"))
    torch.manual_seed(int(torch_seed.generate_state(1, np.uint64)[0] >> 1))


@dataclass(frozen=True)
class WorkerInit:
    """`worker_init_fn` of a DataLoader: seeds worker `worker` of `rank` for the epoch it starts in.

    The epoch is part of the seed: a worker that is started again, in another epoch or by a resumed run, does not
    repeat its numbers, and ranks of different nodes differ because `rank` is the global one. The dataset calls
    `seed_worker` again at every later epoch.
    """

    seed: int
    stage: int
    epoch: int
    rank: int

    def __call__(self, worker: int) -> None:
        """Seed this process as worker number `worker`, and leave the cluster's warnings to the parent."""
        if multiprocessing.parent_process() is not None:  # not where a test calls this in its own process
            shield_worker()
        seed_worker(self.seed, self.stage, self.epoch, self.rank, worker)
