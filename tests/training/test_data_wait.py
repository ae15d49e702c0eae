"""The share of the time that steps wait for data: measured by a clock that only data and computing move."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from agl_core.data.feed import Feed
from agl_core.reporting.report import read_stage
from agl_core.training import trainer as trainer_module
from agl_core.training.agreement import agree
from agl_core.training.datawait import SETTLED, DataWait
from agl_core.training.parallel import Parallel
from agl_core.training.step import NOTHING, OptimizerStep
from agl_core.training.trainer import StageTrainer
from tests.training.faults import PROCESSES, assert_same_result, kinds, small, train
from tests.training.test_agreement import Group

pytestmark = pytest.mark.usefixtures("threads_end")


class Clock:
    """Stands still but for what `work` takes: seconds for the data of a step, given its number from 0, for computing
    one, and for validating, saving and whatever else is done between two."""

    def __init__(
        self, patch: pytest.MonkeyPatch, data: Callable[[int], float], computing: float, between: float
    ) -> None:
        self.now = 1000.0
        self.taken = 0
        take, compute, boundary = Feed.take, OptimizerStep.compute, StageTrainer._boundary

        def slow_take(feed: Feed, *args: Any) -> Any:
            self.now += data(self.taken)
            self.taken += 1
            return take(feed, *args)

        def slow_compute(step: OptimizerStep, *args: Any) -> Any:
            self.now += computing
            return compute(step, *args)

        def slow_boundary(trainer: StageTrainer, *args: Any) -> bool:
            self.now += between
            return boundary(trainer, *args)

        patch.setattr(Feed, "take", slow_take)
        patch.setattr(OptimizerStep, "compute", slow_compute)
        patch.setattr(StageTrainer, "_boundary", slow_boundary)
        patch.setattr(trainer_module, "time", SimpleNamespace(monotonic=lambda: self.now))


def test_the_share_is_that_of_training_since_the_line_before(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Path
) -> None:
    # What the first step needs is part of the start, and after the last one there is nothing to wait for.
    Clock(monkeypatch, data=lambda step: {0: 500.0, 1: 0.0, 2: 1.0, 3: 3.0, 4: 0.0}[step], computing=1, between=70)
    train(small(tiny_store, log_every=2), tmp_path)
    shares = [(event["step"], event["data_wait"]) for event in kinds(tmp_path, "step")]
    assert shares == [(1, 0.0), (2, 0.5), (4, 0.6), (5, 0.0)]
    assert_same_result(tmp_path, undisturbed)
    stage = read_stage([*kinds(tmp_path, "start"), *kinds(tmp_path, "step")], "first", True)
    assert stage.data_wait == pytest.approx((0.5 + 2 * 0.6) / 5)


def test_the_progress_line_shows_the_share(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Clock(monkeypatch, data=lambda _: 1.0, computing=3, between=0)
    train(small(tiny_store), tmp_path)
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"first 5/5 .* loss .* data 20%", last), last  # of the steps after the first


def test_the_share_is_that_of_the_process_that_waits_longest() -> None:
    told: list[torch.Tensor] = []

    class Ear(Parallel):
        def gather(self, values: torch.Tensor) -> list[torch.Tensor]:
            told.append(values)
            return [values]

    waits = (0.25, 4.0, 1.0)
    for waited in waits:
        agree(Ear(), NOTHING, 0, 0, 60.0, False, waited)
    for rank, waited in enumerate(waits):
        others = told[:rank] + told[rank + 1 :]
        assert agree(Group(rank, 3, others=others), NOTHING, 0, 0, 60.0, False, waited).waited == 4.0


def steps(wait: DataWait, number: int, waited: float) -> None:
    for _ in range(number):
        wait.step(waited, 1.0)


def test_much_waiting_is_told_once_and_not_of_the_beginning() -> None:
    wait = DataWait()
    steps(wait, SETTLED, 0.9)
    assert wait.share() == (pytest.approx(0.9), "")  # this stretch holds the start
    steps(wait, 10, 0.19)
    assert wait.share() == (pytest.approx(0.19), "")
    steps(wait, 10, 0.25)
    share, warning = wait.share()
    assert share == pytest.approx(0.25)
    assert warning.startswith("25% of the time goes by in waiting for data")
    assert all(word in warning for word in ("--workers", "--stage-in", "--codec raw"))
    steps(wait, 10, 0.9)
    assert wait.share() == (pytest.approx(0.9), "")
    assert wait.share() == (0.0, "")


def test_many_short_stretches_at_the_beginning_are_not_told() -> None:
    wait = DataWait()
    for _ in range(SETTLED):
        steps(wait, 1, 0.9)
        assert not wait.share()[1]
    steps(wait, 1, 0.9)
    assert wait.share()[1]


def test_the_warning_is_an_event_and_a_line(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(DataWait, "share", lambda _: (0.3, "data is slow"))
    train(small(tiny_store, steps=2), tmp_path)
    assert [event["text"] for event in kinds(tmp_path, "warning")] == ["data is slow"] * 2
    assert "first: warning: data is slow" in capsys.readouterr().err


def _texts(folder: Path, rank: int, texts: list[list[str]], heard: Any) -> None:
    torch.set_num_threads(1)
    with Parallel(rank, len(texts[0]), rank, f"file://{folder}/rendezvous") as parallel:
        heard.put([parallel.any_text(row[rank]) for row in texts])


def test_processes_tell_each_other_the_first_reason_of_any_length(tmp_path: Path) -> None:
    texts = [["", "", ""], ["", "größer", ""], ["", "b" * 5000, "c"], ["a", "", "c"]]
    heard = PROCESSES.Queue()
    processes = [PROCESSES.Process(target=_texts, args=(tmp_path, rank, texts, heard)) for rank in range(3)]
    for process in processes:
        process.start()
    assert [heard.get(timeout=120) for _ in processes] == [["", "größer", "b" * 5000, "a"]] * 3
    for process in processes:
        process.join()
