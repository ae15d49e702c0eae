"""Negative controls: of everything that makes an interrupted run equal an undisturbed one, one piece is taken out, and
the comparison notices.

Three pieces have theirs elsewhere: the fsync of the parent folder (tests/durable/test_crash_points.py), the check and
the lock of the lease (tests/durable/test_lease.py), the shield of the workers (here, below, and in tests/data).
"""

import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from agl_core.config import CheckpointConfig, DivergenceConfig, ScheduleConfig, TrainConfig
from agl_core.data import dataset as dataset_module
from agl_core.data.feed import Feed
from agl_core.data.seeding import WorkerInit, forward_seed, sample_generator
from agl_core.durable.chain import first_difference, read_chains
from agl_core.durable.checkpoint import Checkpoint, load_checkpoint
from agl_core.durable.exits import InterruptedRunError
from agl_core.training import build as build_module
from agl_core.training import state as state_module
from agl_core.training import step as step_module
from agl_core.training import trainer as trainer_module
from agl_core.training import workbench as workbench_module
from agl_core.training.batchnorm import RunningStatistics
from agl_core.training.ema import Average
from agl_core.training.schedule import learning_rate
from agl_core.training.state import TrainingState
from tests.training.faults import PROCESSES, Poison, disturb, scored, small, train
from tests.training.runs import InterruptionError, same_bits, weights

Patch = pytest.MonkeyPatch


# What the runs of a control have in common: one that needs a piece to have an effect


def plain(patch: Patch) -> None:
    """A run as it is."""


def scaled(patch: Patch) -> None:
    """Gradients are scaled, at first by so much that they overflow in step 1; so the scale then is another."""
    made = torch.amp.GradScaler
    patch.setattr(
        torch.amp,
        "GradScaler",
        lambda device, enabled: made(device, init_scale=2.0**127, backoff_factor=2.0**-20, enabled=True),
    )


def judged(patch: Patch) -> None:
    """The first score is the best."""
    scored(patch, {2: 0.9, 4: 0.1})


def poisoned(patch: Patch) -> None:
    """Two steps in a row are not finite, after which the stage goes back."""
    Poison(patch, {4, 5})


def averaged(patch: Patch) -> None:
    """There is an average of the weights."""


def settings(store: Path, common: Callable[[Patch], None]) -> TrainConfig:
    made = small(
        store,
        steps=6 if common is poisoned else 4,
        validate=common is judged,
        checkpoint=CheckpointConfig(every="3 steps" if common is poisoned else "1 step", interval="never"),
        divergence=DivergenceConfig(max_skips=2),
    )
    made.stages["first"].schedule = ScheduleConfig(name="cosine")
    made.stages["first"].ema = 0.9 if common is averaged else 0.0
    return made


# What is taken out


def nothing(patch: Patch) -> None:
    """The positive control."""


def in_state(patch: Patch, name: str, function: Callable[[TrainingState, Any, Checkpoint], None]) -> None:
    """Put `function` around a method of the state that takes a checkpoint."""
    real = getattr(TrainingState, name)
    patch.setattr(TrainingState, name, lambda state, checkpoint: function(state, partial(real, state), checkpoint))


def gradient_scale(patch: Patch) -> None:
    def restore(state: TrainingState, real: Any, checkpoint: Checkpoint) -> None:
        checkpoint.state["scaler"] = {}
        real(checkpoint)

    in_state(patch, "restore_training", restore)


def moments(patch: Patch) -> None:
    patch.setattr(state_module, "load_optimizer_state", lambda *args: None)


def running_statistics(patch: Patch) -> None:
    patch.setattr(RunningStatistics, "reload", lambda statistics: statistics.forget_step())


def step_number(patch: Patch) -> None:
    """The learning rate knows only how many steps this incarnation has done."""
    calls = count()
    patch.setattr(
        trainer_module,
        "learning_rate",
        lambda schedule, peak, step, total, order: learning_rate(schedule, peak, next(calls), total, order),
    )


def cursor(patch: Patch) -> None:
    """The order begins anew."""
    patch.setattr(
        workbench_module,
        "Feed",
        lambda dataset, order, start, stop, *more, **named: Feed(dataset, order, 0, stop - start, *more, **named),
    )


def forward_keys(patch: Patch) -> None:
    """Dropout and drop-connect are seeded by a count of calls."""
    calls = count()
    patch.setattr(step_module, "forward_seed", lambda *key: forward_seed(0, 0, next(calls), 0))


def crop_keys(patch: Patch) -> None:
    """Crops and symmetries are drawn from one stream after the other."""
    calls = count()
    patch.setattr(dataset_module, "sample_generator", lambda *key: sample_generator(0, 0, 0, next(calls)))


def best_score(patch: Patch) -> None:
    def restore(state: TrainingState, real: Any, checkpoint: Checkpoint) -> None:
        real(checkpoint)
        state.best_score = None

    in_state(patch, "restore", restore)


def link(patch: Patch) -> None:
    def restore(state: TrainingState, real: Any, checkpoint: Checkpoint) -> None:
        real(checkpoint)
        state.link = state.link[::-1]

    in_state(patch, "restore", restore)


def skips(patch: Patch) -> None:
    def restore(state: TrainingState, real: Any, checkpoint: Checkpoint) -> None:
        real(checkpoint)
        state.skips = 0

    in_state(patch, "restore", restore)


def average(patch: Patch) -> None:
    """The average begins anew."""
    load = Average.load
    patch.setattr(Average, "load", lambda average, tensors: load(average, {}))


def steps_of_average(patch: Patch) -> None:
    """The warm-up of the average knows only how many steps this incarnation has done."""
    update, calls = Average.update, count(1)
    patch.setattr(Average, "update", lambda average, step: update(average, next(calls)))


def choice_of_checkpoint(patch: Patch) -> None:
    """A stage goes back to whatever was saved last."""
    patch.setattr(build_module, "load_checkpoint", lambda folder, accept: load_checkpoint(folder))


@dataclass(frozen=True)
class Control:
    """taken_out: the piece; notices: the first thing that differs; common: what both runs do; at: the step in whose
    course the run is warned or killed."""

    taken_out: Callable[[Patch], None]
    notices: str
    common: Callable[[Patch], None] = plain
    how: str = "kill"
    at: int = 3


CONTROLS = [
    Control(nothing, "nothing"),
    Control(nothing, "nothing", scaled),
    Control(nothing, "nothing", judged),
    Control(nothing, "nothing", poisoned, how="signal"),
    Control(gradient_scale, "state", scaled),
    Control(moments, "state"),
    Control(running_statistics, "state"),
    Control(step_number, "state"),
    Control(cursor, "samples"),
    Control(forward_keys, "losses"),
    Control(crop_keys, "losses"),
    Control(nothing, "nothing", averaged),
    Control(average, "state", averaged),
    Control(steps_of_average, "state", averaged),
    Control(best_score, "best", judged),
    Control(link, "link"),
    Control(skips, "order", poisoned, how="signal"),
    Control(choice_of_checkpoint, "order", poisoned, how="signal"),
]


def first_noticed(run_dir: Path, whole: Path) -> str:
    """What differs: a kind of difference of the chains, or whose weights."""
    difference = first_difference(read_chains(run_dir, "first"), read_chains(whole, "first")[0])
    if difference is not None:
        return difference.what
    for which in ("last", "best"):
        if not same_bits(weights(run_dir, which=which), weights(whole, which=which)):
            return which
    return "nothing"


@pytest.fixture(scope="module")
def whole(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[Patch], None]], Path]:
    """The undisturbed run of each kind."""
    made: dict[str, Path] = {}

    def get(common: Callable[[Patch], None]) -> Path:
        if common.__name__ not in made:
            made[common.__name__] = tmp_path_factory.mktemp(common.__name__)
            with Patch.context() as patch:
                common(patch)
                train(settings(tiny_store, common), made[common.__name__])
        return made[common.__name__]

    return get


def name_of(control: Control) -> str:
    return f"{control.taken_out.__name__}-{control.common.__name__}"


@pytest.mark.parametrize("control", CONTROLS, ids=name_of)
def test_whatever_is_taken_out_is_noticed(
    tiny_store: Path, tmp_path: Path, whole: Callable[[Callable[[Patch], None]], Path], control: Control
) -> None:
    expected = whole(control.common)
    for strike in (True, False):  # one incarnation that is cut off, one to the end
        with Patch.context() as patch, suppress(InterruptionError, InterruptedRunError):
            control.common(patch)
            if control.common is judged and not strike:
                scored(patch, {4: 0.1})
            control.taken_out(patch)
            train(
                settings(tiny_store, control.common),
                tmp_path,
                lambda step, strike=strike: disturb(control.how) if strike and step == control.at else None,  # type: ignore[misc]
            )
    assert first_noticed(tmp_path, expected) == control.notices


# The shield of the workers


def _warn_the_workers(settings: TrainConfig, run_dir: Path, shielded: bool, notes: Any) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of the data loading processes, as where `launch.py` runs
    with Patch.context() as patch:
        if not shielded:
            patch.setattr(WorkerInit, "__call__", lambda init, worker: signal.pthread_sigmask(signal.SIG_SETMASK, []))

        def warn(step: int) -> None:
            for worker in multiprocessing.active_children():
                if step == 1 and worker.pid is not None:
                    os.kill(worker.pid, signal.SIGTERM)

        said: list[str] = []

        def listen(feed: Feed, real: Callable[[Feed], list[str]] = Feed.notes) -> list[str]:
            said.extend(found := real(feed))
            return found

        patch.setattr(Feed, "notes", listen)
        train(settings, run_dir, warn)
        notes.put(said)


@pytest.mark.parametrize("shielded", [True, False])
def test_without_the_shield_a_warning_to_all_processes_kills_the_workers(
    tiny_store: Path, tmp_path: Path, shielded: bool
) -> None:
    notes = PROCESSES.Queue()
    run = small(tiny_store, steps=8)  # more than is read ahead
    train(run, tmp_path / "whole")
    run.workers = 1
    process = PROCESSES.Process(target=_warn_the_workers, args=(run, tmp_path / "warned", shielded, notes))
    process.start()
    said = notes.get(timeout=120)
    process.join()
    assert process.exitcode == 0
    assert bool(said) is not shielded
    assert first_noticed(tmp_path / "warned", tmp_path / "whole") == "nothing"  # and even then no bit is lost
