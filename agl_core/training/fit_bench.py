"""Training steps of one encoder on made-up crops, to see what they take: memory and time."""

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import NamedTuple, Protocol

import numpy as np
import torch

from agl_core.config import TrainConfig
from agl_core.data.batch import Batch
from agl_core.data.statistics import CityStatistics
from agl_core.data.tiles import UNKNOWN
from agl_core.inference.memory import is_shortage
from agl_core.model.losses import GeoposeLoss
from agl_core.model.precision import Precision
from agl_core.training.build import Origin
from agl_core.training.fit_forecast import CHALLENGE
from agl_core.training.fit_search import TooFewCropsError
from agl_core.training.parallel import Parallel
from agl_core.training.step import OptimizerStep

STATISTICS = CityStatistics(
    tuple(CHALLENGE), np.full(len(CHALLENGE), 1e9), np.full(len(CHALLENGE), 5.0), np.full(len(CHALLENGE), 60.0)
)
"""Made up, for losses that need some: they change neither time nor memory."""


@dataclass(frozen=True)
class Job:
    """What is measured: a stage of `config`, with the settings that it has there, from random weights. precision: by
    name, not auto; threads: of the CPU."""

    config: TrainConfig
    stage: str
    precision: str
    threads: int


class Outcome(NamedTuple):
    """What a try took. peak: bytes that count against the device's memory (on a GPU those that torch has reserved, on
    a CPU those of the process); allocated: bytes of tensors, of a GPU only; compute and commit: median seconds of
    forward and backward, and of the rest of a step, 0 if none was timed."""

    peak: int
    allocated: int
    compute: float
    commit: float


class Tries(Protocol):
    """What tries micro-batches on a device."""

    def __call__(self, micro_batch: int, steps: int = 0, warm_up: int = 1) -> Outcome | None:
        """What `micro_batch` crops take, None if they do not fit; `steps` are timed, after `warm_up` that are not."""
        ...

    def close(self) -> None:
        """Free what the tries have taken."""
        ...


def out_of_memory(error: BaseException | None) -> bool:
    """Whether `error`, or what it was raised from, says that memory has come to its end."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if is_shortage(error):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


class Bench:
    """The state of a stage on a device, as `train_stage` makes it, and steps with micro-batches of any size."""

    def __init__(self, job: Job, device: torch.device) -> None:
        """
        Raises:
            UserError: there is no such encoder, or it cannot do what its settings ask for.
        """
        torch.set_num_threads(job.threads)
        config = deepcopy(job.config)
        stage = config.stages[job.stage]
        # Neither weights nor moments of others are needed to see what they take.
        config.encoder_weights, stage.start, stage.optimizer.resume, stage.sync_batchnorm = (
            "none",
            "encoder",
            False,
            False,
        )
        self.stage, self._seed, self._number = stage, config.seed, list(config.stages).index(job.stage)
        self._parallel = Parallel()
        self._parallel.device = device
        self._precision = Precision.choose(job.precision, device)
        with tempfile.TemporaryDirectory() as empty:  # a run without checkpoints
            origin = Origin(
                config, job.stage, Path(empty), STATISTICS.cities, "", self._precision, self._parallel
            )  # fmt: skip
            self.state, _, _ = origin.build()
        self._loss = GeoposeLoss(stage.loss, STATISTICS).to(device)
        self._fill_gradients()
        for group in self.state.optimizer.param_groups:
            group["lr"] = 0.0
        self.state.optimizer.step()  # makes the moments, which a step whose gradients are not finite would not
        self.state.optimizer.zero_grad()

    def steps(self, micro_batch: int) -> Callable[[], tuple[float, float]]:
        """A function that does one step of `micro_batch` crops at each call; seconds of both its parts."""
        stage = replace(self.stage, batch=micro_batch, micro_batch=micro_batch)
        step = OptimizerStep(
            self.state, stage, self._seed, self._number, self._precision, self._parallel, self._loss
        )  # fmt: skip
        batches = made_up(micro_batch, stage.crop, self._parallel.device)

        def one() -> tuple[float, float]:
            began = self._now()
            try:
                computed = step.compute([next(batches)])
                between = self._now()
                if computed.finite:
                    step.commit(self.stage.optimizer.lr)
                else:
                    step.skip()
            except BaseException:
                step.forget()
                raise
            return between - began, self._now() - between

        return one

    def run(self, micro_batch: int, steps: int, warm_up: int) -> tuple[float, float]:
        """Do `warm_up` steps of `micro_batch` crops, and time `steps` more; median seconds of both their parts.

        The first ones add their gradients to others that are there before, as later micro-batches of a step do: that
        is when training takes most memory.

        Raises:
            TooFewCropsError: batch norm needs more than `micro_batch` crops, which is 1.
        """
        one = self.steps(micro_batch)
        try:
            for _ in range(warm_up):
                self._fill_gradients()
                one()
            times = [one() for _ in range(steps)] or [(0.0, 0.0)]
        except ValueError as error:
            if micro_batch == 1 and "more than 1 value per channel" in str(error):
                raise TooFewCropsError from None
            raise
        return median(compute for compute, _ in times), median(commit for _, commit in times)

    def _fill_gradients(self) -> None:
        for parameter in self.state.model.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def _now(self) -> float:
        if self._parallel.device.type == "cuda":
            torch.cuda.synchronize(self._parallel.device)
        return time.perf_counter()


class GpuTries:
    """Tries in this process, one after the other on the same state; what a GPU has reserved is counted."""

    def __init__(self, job: Job, device: torch.device) -> None:
        self._job, self._device = job, device
        self._bench: Bench | None = None

    def __call__(self, micro_batch: int, steps: int = 0, warm_up: int = 1) -> Outcome | None:
        """What `micro_batch` crops take, None if they do not fit.

        Raises:
            TooFewCropsError, UserError: see `Bench`.
        """
        self._tidy()
        try:
            if self._bench is None:
                self._bench = Bench(self._job, self._device)
            compute, commit = self._bench.run(micro_batch, steps, warm_up)
        except Exception as error:
            if not out_of_memory(error):
                raise
            error.__traceback__ = None  # its frames hold tensors
            return None
        peak, allocated = _reserved(self._device)
        return Outcome(peak, allocated, compute, commit)

    def close(self) -> None:
        """Free all that the tries have taken."""
        self._bench = None
        self._tidy()

    def _tidy(self) -> None:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)


def _reserved(device: torch.device) -> tuple[int, int]:
    if device.type != "cuda":
        return 0, 0
    return torch.cuda.max_memory_reserved(device), torch.cuda.max_memory_allocated(device)


def made_up(count: int, side: int, device: torch.device) -> Iterator[Batch]:
    """Two batches of `count` crops of `side` pixels in turn, of noise, with and without known heights and pose."""
    generator = torch.Generator().manual_seed(0)
    both = []
    for number in range(2):
        image = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
        agl = torch.randint(0, 3000, (count, side, side), dtype=torch.int32, generator=generator)
        agl[:, :4] = UNKNOWN
        scale, angle, gsd = (torch.rand(3, count, generator=generator) + 0.5).unbind()
        city = torch.arange(count) % len(CHALLENGE)
        keys = torch.full((count,), number)
        batch = Batch(image, agl.to(torch.uint16), scale, angle, gsd, city, keys, keys)
        both.append(Batch(*(part.pin_memory() for part in batch)) if device.type == "cuda" else batch)
    while True:
        yield from both
