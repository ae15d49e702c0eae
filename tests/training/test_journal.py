"""What a stage writes about itself never ends it."""

import io
from pathlib import Path
from typing import Any

import pytest

from agl_core.reporting.events import EventLog, read_all
from agl_core.reporting.live.view import LiveView
from agl_core.reporting.tensorboard.scalars import Scalars
from agl_core.training.journal import Journal


class Order:
    def epochs_done(self, step: int) -> int:
        return step // 10


def journal(run: Path, log: io.StringIO) -> Journal:
    events = run / "events.jsonl"
    view = LiveView("train", 100, stream=log)
    order: Any = Order()
    return Journal("train", order, EventLog(events, "train", 1), Scalars(run / "tensorboard", "train", 1, events), view)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), Path("/"), {1, 2}], ids=str)
def test_a_value_that_cannot_be_written_is_lost_and_said_once(tmp_path: Path, odd: Any) -> None:
    log = io.StringIO()
    told = journal(tmp_path, log)
    told.event("start", 0)
    for _ in range(2):
        told.event("validation", 3, score=odd)
    told.event("finish", 4)
    assert [event["kind"] for event in read_all(tmp_path / "events.jsonl")] == ["start", "finish"]
    assert log.getvalue().count("training goes on without them") == 1


@pytest.mark.parametrize(
    "error", [OSError("full"), RuntimeError("strange"), OverflowError(), KeyError("step")], ids=repr
)
def test_no_error_of_tensorboards_files_ends_a_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Scalars, "take", fail)
    log = io.StringIO()
    told = journal(tmp_path, log)
    for step in (1, 2):
        told.step(step, [1.0] * 5, 1e-3, 3.0, 0.1, 1.0, 0.1)
    assert [event["step"] for event in read_all(tmp_path / "events.jsonl")] == [1, 2]
    assert log.getvalue().count("training goes on without them") == 1
