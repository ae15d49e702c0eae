"""Losses, gradients and answers that are not finite: skipped in all processes, gone back from, and given up on."""

import dataclasses
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from agl_core.config import CheckpointConfig, DivergenceConfig, TrainConfig
from agl_core.errors import UserError
from agl_core.inference.predictor import NotFiniteError, Predictor
from agl_core.training import trainer as trainer_module
from agl_core.training.parallel import Parallel
from agl_core.training.step import OptimizerStep
from agl_core.training.trainer import train_stage
from agl_core.training.validation import validate
from tests.training.faults import (
    OFTEN,
    PROCESSES,
    Poison,
    assert_same_best,
    assert_same_result,
    disturb,
    interrupted,
    kinds,
    small,
    train,
)
from tests.training.runs import InterruptionError, weights

pytestmark = pytest.mark.usefixtures("threads_end")


def test_a_step_that_is_not_finite_is_skipped_and_counted(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Poison(monkeypatch, {2, 4})
    train(small(tiny_store), tmp_path / "whole")
    assert [(event["step"], event["losses"][0]) for event in kinds(tmp_path / "whole", "skip")] == [
        (2, "nan"), (4, "nan"),
    ]  # fmt: skip
    assert [event["step"] for event in kinds(tmp_path / "whole", "step")] == [1, 3, 5]
    end = weights(tmp_path / "whole")
    assert all(torch.isfinite(value).all() for value in end.values())
    for step in (2, 3, 4):
        with suppress(InterruptionError):
            train(small(tiny_store), tmp_path / "parts", lambda done, step=step: disturb("kill" * (done == step)))  # type: ignore[misc]
    train(small(tiny_store), tmp_path / "parts")
    assert_same_result(tmp_path / "parts", tmp_path / "whole")


BAD = {3, 4, 6, 7}
TWICE = [("rollback", 4, 2), ("rollback", 7, 4)]
# A signal is agreed on with the step after: these leave after the steps 3, 5 and 7.
PLANS = [
    ("kill 3, kill 4, kill 5", "0.001 seconds"),
    ("signal 2, signal 4, signal 6", "never"),
    ("peer 3, peer 4, peer 7", "0.001 seconds"),
    ("kill 7, peer 8", "never"),
]


def diverging(store: Path, every: str, interval: str, steps: int = 8) -> TrainConfig:
    checkpoint = CheckpointConfig(every=every, interval=interval)
    return small(store, steps=steps, checkpoint=checkpoint, divergence=DivergenceConfig(max_skips=2, max_rollbacks=2))


def rollbacks(run_dir: Path) -> list[tuple[str, int, int]]:
    return [("rollback", event["step"], event["to"]) for event in kinds(run_dir, "rollback")]


@pytest.fixture(scope="module")
def gone_back(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run that goes back twice, first to step 2 and then to where it went on from there."""
    run_dir = tmp_path_factory.mktemp("gone_back")
    with pytest.MonkeyPatch.context() as patch:
        Poison(patch, BAD)
        train(diverging(tiny_store, "2 steps", "never"), run_dir)
    assert rollbacks(run_dir) == TWICE
    return run_dir


@pytest.mark.parametrize(("plan", "interval"), PLANS)
def test_going_back_ends_the_same_whatever_happens_around_it(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone_back: Path, plan: str, interval: str
) -> None:
    Poison(monkeypatch, BAD)
    interrupted(diverging(tiny_store, "2 steps", interval), tmp_path, plan)
    assert rollbacks(tmp_path) == TWICE
    assert_same_result(tmp_path, gone_back)


@pytest.mark.parametrize("stage", ["first", "second"])
def test_without_a_checkpoint_that_was_due_a_stage_goes_back_to_its_beginning(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    settings = diverging(tiny_store, "100 steps", "never", steps=5)
    settings.stages["second"].length = "5 steps"
    for run in ("whole", "parts"):
        if stage == "second":
            train(dataclasses.replace(settings, checkpoint=OFTEN), tmp_path / run)
    Poison(monkeypatch, {2, 3})
    train(settings, tmp_path / "whole", stage=stage)
    settings.checkpoint.interval = "0.001 seconds"
    interrupted(settings, tmp_path / "parts", "signal 1, peer 3, kill 4", stage)
    assert rollbacks(tmp_path / "whole") == rollbacks(tmp_path / "parts") == [("rollback", 3, 0)]
    assert_same_result(tmp_path / "parts", tmp_path / "whole", stage)


def test_going_back_too_often_ends_the_run_at_the_same_step_however_often_it_was_interrupted(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Poison(monkeypatch, range(3, 99))
    settings = diverging(tiny_store, "2 steps", "never", steps=20)
    message = (
        "stage first diverges: 2 losses or gradients in a row were not finite at step 8, after going back 2 times; "
        "lower stages.first.optimizer.lr or use --precision float32, and start a new --run"
    )
    for _ in range(2):  # giving the same command again does not help
        with pytest.raises(UserError) as said:
            interrupted(settings, tmp_path, "kill 4, signal 5, peer 7")
        assert str(said.value) == message


def _poisoned_rank(settings: TrainConfig, run_dir: Path, rank: int, results: Any) -> None:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        # Only the second process sees that the loss of its micro-batch is no number.
        real = OptimizerStep._micro_batch

        def micro_batch(step: OptimizerStep, batch: Any, number: int) -> torch.Tensor:
            losses = real(step, batch, number)
            return losses * math.nan if step.state.step == 1 and number == 1 else losses

        patch.setattr(OptimizerStep, "_micro_batch", micro_batch)
        weights_then: dict[int, torch.Tensor] = {}
        real_next = OptimizerStep._next

        def next_step(step: OptimizerStep) -> None:
            real_next(step)
            first = next(iter(step.state.model.parameters()))
            weights_then[step.state.step] = first.detach().clone()

        patch.setattr(OptimizerStep, "_next", next_step)
        with Parallel(rank, 2, rank, f"file://{run_dir}/rendezvous") as parallel:
            train_stage(settings, "first", run_dir, parallel)
    same = [torch.equal(weights_then[step], weights_then[step - 1]) for step in (2, 3)]
    results.put((rank, same, weights_then[3].tolist()))


def test_what_is_not_finite_in_one_process_is_skipped_in_all(tiny_store: Path, tmp_path: Path) -> None:
    results = PROCESSES.Queue()
    settings = small(tiny_store, steps=3, encoder="tu-resnet10t")
    processes = [PROCESSES.Process(target=_poisoned_rank, args=(settings, tmp_path, rank, results)) for rank in (0, 1)]
    for process in processes:
        process.start()
    first, second = sorted(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert first[1] == second[1] == [True, False]  # nothing moved in step 2, all moved in step 3
    assert first[2] == second[2]
    assert [event["step"] for event in kinds(tmp_path, "skip")] == [2]


def test_a_validation_without_a_finite_answer_is_passed_over_in_every_incarnation(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small(tiny_store, validate=True)
    real_predict = Predictor.predict
    validated: list[int] = []

    def noted(*args: Any) -> Any:
        validated.append(steps[-1])
        return validate(*args)

    def predict(*args: Any) -> Any:
        if steps[-1] == 2:
            raise NotFiniteError("the network's answer is not finite")
        return real_predict(*args)

    monkeypatch.setattr(trainer_module, "validate", noted)
    monkeypatch.setattr(Predictor, "predict", predict)
    steps: list[int] = []
    train(settings, tmp_path / "whole", steps.append)
    assert validated == [2, 4, 5]
    assert [event["step"] for event in kinds(tmp_path / "whole", "validation")] == [4, 5]
    assert "no score after step 2" in kinds(tmp_path / "whole", "warning")[0]["text"]
    steps.clear()
    validated.clear()

    def watch(step: int) -> None:
        steps.append(step)
        if step == 3 and steps.count(3) == 1:
            disturb("kill")  # the newest checkpoint is that of step 2, after its validation

    with pytest.raises(InterruptionError):
        train(settings, tmp_path / "parts", watch)
    train(settings, tmp_path / "parts", watch)
    assert validated == [2, 4, 5]
    assert_same_result(tmp_path / "parts", tmp_path / "whole")
    assert_same_best(tmp_path / "parts", tmp_path / "whole")
