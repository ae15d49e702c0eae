"""What training an encoder takes on the device at hand: the largest micro-batch, memory, time."""

from collections.abc import Callable
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import NamedTuple

from agl_core.config import TrainConfig
from agl_core.errors import UserError
from agl_core.model.precision import Precision
from agl_core.training.fit_bench import GpuTries, Job, Outcome, Tries
from agl_core.training.fit_device import GB, Device
from agl_core.training.fit_forecast import Pace, usable
from agl_core.training.fit_process import CpuTries
from agl_core.training.fit_search import TooFewCropsError, largest_by_line, largest_by_trying

WARM_UP = 2  # steps before those that are timed
PROMISED_CROPS, PROMISED_SIDE, PROMISED_PRECISION, PROMISED = 8, 512, "float16", 32 * GB
"""What training promises to fit into a GPU of 32 GB. GB are 10^9 bytes here, which leaves the driver's own 2 GB of
such a GPU's 32 x 2^30."""

Tell = Callable[[str], None]


class Promise(NamedTuple):
    """Whether what is promised of 32 GB holds: held is None where this GPU has less and the answer is not known; peak:
    bytes that torch has reserved, 0 if it did not fit."""

    held: bool | None
    peak: int


@dataclass(frozen=True)
class Fitted:
    """What one encoder takes.

    reason: why nothing was measured, empty if it was; largest: the largest micro-batch that fits, 0 for none; bounded:
    no larger one was tried; of_largest: what that took; pace and of_pace: time and memory of the micro-batch that the
    stage would train with.
    """

    encoder: str
    reason: str = ""
    largest: int = 0
    bounded: bool = False
    of_largest: Outcome | None = None
    pace: Pace | None = None
    of_pace: Outcome | None = None
    promise: Promise | None = None


def measure(job: Job, device: Device, processes: int, most: int, steps: int, tell: Tell) -> Fitted:
    """Measure one encoder.

    Args:
        job: what to train; its stage gives crop, loss, optimiser and moving average.
        device: where.
        processes: that will train together, a device for each.
        most: largest micro-batch to try.
        steps: to time.
        tell: told in a line what each try has found.

    Raises:
        UserError: the settings are impossible for this encoder or this device.
    """
    encoder, stage = job.config.encoder, job.config.stages[job.stage]
    with device.capped(), closing(tries_on(device, job)) as tries:
        found: dict[int, Outcome] = {}

        def peak(micro_batch: int) -> int | None:
            outcome = tries(micro_batch)
            if outcome is None or outcome.peak > device.limit:
                tell(f"{encoder}: {micro_batch} x {stage.crop} x {stage.crop} does not fit")
                return None
            found[micro_batch] = outcome
            tell(f"{encoder}: {micro_batch} x {stage.crop} x {stage.crop} takes {outcome.peak / GB:.2f} GB")
            return outcome.peak

        largest = _search(device, peak, most)
        if not largest:
            reason = (
                f"{encoder} does not fit {device.limit / GB:.1f} GB with a single crop of {stage.crop} x {stage.crop} "
                f"in {job.precision}: give a smaller --crop, --gradient-checkpointing (tu- encoders) or more --memory"
            )
            return Fitted(encoder, reason, promise=_promise(job, device, tell))
        micro_batch = usable(stage, largest, processes)
        timed = tries(micro_batch, steps, WARM_UP)
    if timed is None:
        raise UserError(f"{encoder}: {micro_batch} crops fitted and do not any more: is the device used by others?")
    pace = Pace(micro_batch, stage.crop, timed.compute, timed.commit)
    tell(f"{encoder}: {pace.crops_per_second:.3g} crops/s in micro-batches of {micro_batch}")
    promise = _promise(job, device, tell)
    return Fitted(encoder, "", largest, largest == most, found[largest], pace, timed, promise)


def choose_precision(name: str, device: Device) -> str:
    """The precision that `name` stands for on this device.

    Raises:
        UserError: the device does not have it.
    """
    return Precision.choose(name, device.torch).name


def promised(config: TrainConfig, stage: str) -> Job:
    """The settings of `stage` with what the promise of 32 GB names."""
    config = deepcopy(config)
    config.stages[stage] = replace(config.stages[stage], crop=PROMISED_SIDE)
    return Job(config, stage, PROMISED_PRECISION, threads=1)


def keep_promise(job: Job, device: Device) -> Promise:
    """Whether the crops that are promised to fit 32 GB do; torch is given no more, so that a larger GPU proves it too.

    Args:
        job: as `promised` makes it.
        device: a GPU.
    """
    with device.capped(min(PROMISED, device.limit)), closing(GpuTries(job, device.torch)) as tries:
        outcome = tries(PROMISED_CROPS, warm_up=2)
    if outcome is not None:
        return Promise(True, outcome.peak)
    return Promise(False if device.limit >= PROMISED else None, 0)


def _promise(job: Job, device: Device, tell: Tell) -> Promise | None:
    if device.kind != "cuda":
        return None
    tell(f"{job.config.encoder}: {PROMISED_CROPS} x {PROMISED_SIDE} x {PROMISED_SIDE} in {PROMISED_PRECISION}")
    return keep_promise(replace(promised(job.config, job.stage), threads=job.threads), device)


def tries_on(device: Device, job: Job) -> Tries:
    """What tries micro-batches of `job`: in this process on a GPU, each in a process of its own on a CPU."""
    return GpuTries(job, device.torch) if device.kind == "cuda" else CpuTries(job, device.limit)


def _search(device: Device, peak: Callable[[int], int | None], most: int) -> int:
    """The largest micro-batch that fits, 0 for none; some networks cannot train on single crops."""
    for least in (1, 2):
        try:
            if least > most:
                break
            if device.kind == "cuda":
                return largest_by_trying(lambda number: peak(number) is not None, most, least)
            return largest_by_line(peak, device.limit, most, least)
        except TooFewCropsError:
            continue
    raise UserError("this network cannot train on single crops of this size: give --most 2 or more")
