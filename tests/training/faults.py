"""Runs to which something happens: refusing disks, losses that are no numbers, warnings, kills, lost peers."""

import dataclasses
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch

from agl_core.config import CheckpointConfig, TrainConfig
from agl_core.durable import writer
from agl_core.durable.chain import first_difference, read_chains
from agl_core.durable.checkpoint import Checkpoint, save_checkpoint
from agl_core.durable.exits import InterruptedRunError, PeerLostError
from agl_core.durable.guard import Guard
from agl_core.model.losses import GeoposeLoss, Losses
from agl_core.model.weights import read_header
from agl_core.reporting.events import read_events
from agl_core.scoring.score import Score
from agl_core.training import trainer as trainer_module
from agl_core.training.parallel import Parallel
from agl_core.training.step import OptimizerStep
from agl_core.training.trainer import StepReport, train_stage
from agl_core.training.validation import validate
from tests.training.runs import InterruptionError, config, same_bits, weights

OFTEN = CheckpointConfig(every="1 step", interval="never")
ALL = 10**9

PROCESSES: Any = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.training.preloaded"])

Watch = Callable[[int], None]
"""Called after every step with its number, before anything is saved or gone back to."""


def small(store: Path, /, steps: int = 5, validate: bool = False, **changes: Any) -> TrainConfig:
    """The quickest stage that has everything: two micro-batches a step, dropout, batch norm."""
    made = config(store, **{"steps": steps, "checkpoint": OFTEN, "fold": 0 if validate else -1, **changes})
    for stage in made.stages.values():
        stage.batch, stage.micro_batch = 4, 2
    return made


def train(settings: TrainConfig, run_dir: Path, watch: Watch = lambda step: None, stage: str = "first") -> list[int]:
    """Train in this process, which takes signals meanwhile; the steps that were done."""
    steps: list[int] = []

    def observe(report: StepReport) -> None:
        steps.append(report.step)
        watch(report.step)

    with Guard() as guard, Parallel() as parallel:
        train_stage(settings, stage, run_dir, parallel, observe, guard)
    return steps


def kinds(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run_dir / "events.jsonl") if event["kind"] == kind]


def published(run_dir: Path) -> set[str]:
    """What is there for others to see of checkpoints, weights and records."""
    return {
        path.relative_to(run_dir).as_posix()
        for room in ("checkpoints", "weights", "stages")
        for path in (run_dir / room).rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(run_dir).parts)
    }


class Disk:
    """Refuses what the saves of some steps ask of it; `saves` are the steps of all attempts.

    Only the thread that saves is concerned, so that which attempt fails depends on the step and on no clock.
    """

    def __init__(self, patch: pytest.MonkeyPatch, call: str, code: int, refuses: Callable[[int, int], bool]) -> None:
        """`refuses` is asked with the step and the number of the attempt, from 1."""
        self.saves: list[int] = []
        self._refusing = threading.local()
        real = getattr(os, call)

        def fails(*args: Any, **more: Any) -> Any:
            if getattr(self._refusing, "now", False):
                raise OSError(code, os.strerror(code))
            return real(*args, **more)

        def save(folder: Path, checkpoint: Checkpoint, *more: Any) -> Path | None:
            self.saves.append(checkpoint.step)
            self._refusing.now = refuses(checkpoint.step, len(self.saves))
            try:
                return save_checkpoint(folder, checkpoint, *more)
            finally:
                self._refusing.now = False

        patch.setattr(os, call, fails)
        patch.setattr(writer, "save_checkpoint", save)


def assert_same_result(run_dir: Path, whole: Path, stage: str = "first") -> None:
    assert same_bits(weights(run_dir, stage), weights(whole, stage))
    assert first_difference(read_chains(run_dir, stage), read_chains(whole, stage)[0]) is None


def assert_same_best(run_dir: Path, whole: Path) -> None:
    """Not by the bytes of the files: the library writes the entries of a header in any order."""
    assert same_bits(weights(run_dir, which="best"), weights(whole, which="best"))
    one, two = (read_header(path / "weights" / "first" / "best.safetensors") for path in (run_dir, whole))
    assert one == two


def rescored(result: Score | None, score: float) -> Score:
    assert result is not None
    return dataclasses.replace(result, score=score)


def scored(patch: pytest.MonkeyPatch, scores: dict[int, float]) -> None:
    """Validation as it is, but for the score after each step."""
    given = iter(scores.values())
    patch.setattr(trainer_module, "validate", lambda *args: rescored(validate(*args), next(given)))


def disturb(how: str) -> None:
    """What may happen to a process after a step: it is killed, warned, or loses its peer."""
    if how == "kill":
        raise InterruptionError
    if how == "peer":
        raise PeerLostError("gone")
    if how == "signal":
        os.kill(os.getpid(), signal.SIGTERM)


class Poison:
    """Losses of the steps `at` are not a number, those of the first micro-batch of each."""

    def __init__(self, patch: pytest.MonkeyPatch, at: Collection[int]) -> None:
        real_batch, real_loss = OptimizerStep._micro_batch, GeoposeLoss.forward
        poisoned = [False]

        def micro_batch(step: OptimizerStep, batch: Any, number: int) -> torch.Tensor:
            poisoned[0] = number == 0 and step.state.step + 1 in at
            return real_batch(step, batch, number)

        def loss(*args: Any) -> Losses:
            parts = real_loss(*args)
            return parts._replace(total=parts.total * math.nan) if poisoned[0] else parts

        patch.setattr(OptimizerStep, "_micro_batch", micro_batch)
        patch.setattr(GeoposeLoss, "forward", loss)


def interrupted(settings: TrainConfig, run_dir: Path, plan: str, stage: str = "first") -> None:
    """Train with what `plan` says ('kill 3, signal 4'): one incarnation for each, and one to the end."""
    for part in plan.split(", "):
        how, at = part.split()

        def watch(step: int, how: str = how, at: str = at) -> None:
            if step == int(at):
                disturb(how)

        with pytest.raises((InterruptionError, InterruptedRunError, PeerLostError)):
            train(settings, run_dir, watch, stage)
    train(settings, run_dir, stage=stage)
