"""How long a checkpoint holds the training step up: a background write from a snapshot against other ways.

The state is that of the network with AdamW after a step, weights in channels_last. Timed is what the step waits for:

- memcpy: as many bytes, in one piece, from memory to memory that has been used before (the baseline, and the limit);
- memcpy, piecewise: the same tensor by tensor;
- CheckpointWriter: `begin`, which takes the snapshot;
- torch.save + fsync: all of it;
- dcp.async_save: the call of `torch.distributed.checkpoint.async_save` in one process without a process group, which
  copies the state and writes it in a thread.

Background writes, the deletion of what was written and a pause for the disk to settle lie between the timed parts, so
that none of them runs into another's time. The snapshot's memory is allocated in the round that is not counted. Files
go to the folder for temporary files (TMPDIR).
"""

import ctypes
import itertools
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict_saver import async_save

if not __package__:  # run as a file: Python then looks for modules in this folder, not in the one above
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agl_core.config import ModelConfig, OptimizerConfig
from agl_core.durable.checkpoint import Checkpoint
from agl_core.durable.retention import Retention
from agl_core.durable.writer import CheckpointWriter, Saved
from agl_core.model.network import GeoposeNet
from agl_core.training.optimizer import build_optimizer, optimizer_state
from agl_core.training.parallel import default_threads
from benchmarks.harness import Contender, arguments, compare, report

Rest = Callable[[], AbstractContextManager[None]]
"""Entered for what is not timed; pauses the clock."""

OURS, BASELINE, BLOCKING = "CheckpointWriter", "memcpy", "torch.save + fsync"
MOST_OF_MEMCPY, LEAST_OF_BLOCKING = 1.5, 5.0
"""What is promised: the stall in units of the memcpy, and how many times less than the blocking save it is."""


@dataclass(frozen=True)
class Case:
    """What is saved: the state of a network with this encoder. settle: seconds of rest after each contender."""

    encoder: str
    rounds: int
    settle: float


QUICK = Case("tu-resnet10t", rounds=3, settle=0.0)
FULL = Case("efficientnet-b7", rounds=7, settle=1.0)


class Stopwatch:
    """Seconds that pass except while it is paused."""

    def __init__(self) -> None:
        self._paused = 0.0

    def __call__(self) -> float:
        return time.perf_counter() - self._paused

    @contextmanager
    def paused(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - began


class State:
    """A network and its optimizer after one step; every call gives the tensors as a trainer would collect them."""

    def __init__(self, encoder: str) -> None:
        torch.manual_seed(0)
        self.model = GeoposeNet(encoder, ("AAA", "BBB"), ModelConfig())
        cast(Any, self.model).to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(self.model, OptimizerConfig())
        for parameter in self.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def __call__(self) -> dict[str, dict[str, Tensor]]:
        return {"model": self.model.state_dict(), "optimizer": optimizer_state(self.model, self.optimizer)}

    def tensors(self) -> list[Tensor]:
        return [tensor for group in self().values() for tensor in group.values()]


class Memcpy:
    """libc's memmove of `sources`, one after the other, to memory of its own."""

    def __init__(self, sources: Sequence[Tensor], rest: Rest) -> None:
        self._rest, self._sources = rest, list(sources)
        sizes = [state_bytes([tensor]) for tensor in sources]
        self._target = torch.ones(sum(sizes), dtype=torch.uint8)
        places = itertools.accumulate(sizes, initial=self._target.data_ptr())
        self._calls = list(zip(places, [tensor.data_ptr() for tensor in sources], sizes, strict=False))

    def __call__(self) -> None:
        for target, source, size in self._calls:
            ctypes.memmove(target, source, size)
        with self._rest():
            pass


def background(state: State, folder: Path, rest: Rest) -> Contender:
    """`CheckpointWriter.begin` and `copied`."""
    writer = CheckpointWriter(folder, Retention(last=1))
    step = 0

    def save() -> None:
        nonlocal step
        step += 1
        writer.begin(Checkpoint(step, **state(), state={}))
        writer.copied()
        with rest():
            writer.wait()
            (outcome,) = writer.outcomes()
            if not isinstance(outcome, Saved):
                raise outcome.error
            check_size(state, folder)

    return save


def blocking(state: State, path: Path, rest: Rest) -> Contender:
    """`torch.save` into a new file, fsynced."""

    def save() -> None:
        with path.open("wb") as file:
            torch.save(state(), file)
            file.flush()
            os.fsync(file.fileno())
        with rest():
            check_size(state, path)
            path.unlink()

    return save


def distributed(state: State, folder: Path, rest: Rest) -> Contender:
    """`torch.distributed.checkpoint.async_save` into a new folder."""

    def save() -> None:
        future = async_save(state(), checkpoint_id=folder, no_dist=True)
        with rest():
            cast(Any, future).result()
            check_size(state, folder)
            shutil.rmtree(folder)

    return save


def state_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def check_size(state: State, path: Path) -> None:
    """A contender that had not written the whole state to `path` would be no contender."""
    written = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
    needed = state_bytes(state.tensors())
    assert needed <= written < 1.1 * needed + 1e6, f"{path} has {written} bytes instead of {needed}"


def contenders(state: State, folder: Path, rest: Rest) -> Mapping[str, Contender]:
    """All ways to save `state` below `folder`; what they do within `rest()` is not timed."""
    tensors = state.tensors()
    whole = torch.ones(state_bytes(tensors), dtype=torch.uint8)
    return {
        BASELINE: Memcpy([whole], rest),
        "memcpy, piecewise": Memcpy(tensors, rest),
        OURS: background(state, folder / "own", rest),
        BLOCKING: blocking(state, folder / "state.pt", rest),
        "dcp.async_save": distributed(state, folder / "dcp", rest),
    }


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments("The stall of the step by a checkpoint: a background write against other ways.", argv)
    case = QUICK if options.quick else FULL
    threads = default_threads(1)
    torch.set_num_threads(threads)
    state, clock = State(case.encoder), Stopwatch()

    @contextmanager
    def rest() -> Iterator[None]:
        with clock.paused():
            yield
            time.sleep(case.settle)

    with tempfile.TemporaryDirectory(prefix="checkpoint-") as name, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # which is what no_dist says
        comparison = compare(contenders(state, Path(name), rest), case.rounds, BASELINE, clock)
    size = state_bytes(state.tensors())
    title = f"stall by a checkpoint of {case.encoder} with AdamW, {size / 1e6:.0f} MB, {case.rounds} rounds"
    report(comparison, title, {**vars(case), "threads": threads, "bytes": size}, options)
    times = comparison.seconds
    less = median(theirs / ours for theirs, ours in zip(times[BLOCKING], times[OURS], strict=True))
    print(
        f"stall of {OURS}: {comparison.spread(OURS).median:.2f} times the memcpy (promised: at most {MOST_OF_MEMCPY}), "
        f"{less:.1f} times less than {BLOCKING} (promised: at least {LEAST_OF_BLOCKING:g})"
    )


if __name__ == "__main__":
    main()
