"""What the trainer writes is enough for an account of its time."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from agl_core.durable.exits import InterruptedRunError
from agl_core.reporting.events import read_all
from agl_core.reporting.goodput.account import account
from tests.training.faults import OFTEN, kinds, small, train
from tests.training.test_data_wait import Clock

pytestmark = pytest.mark.usefixtures("threads_end")


def test_steps_tell_what_they_took_and_waited(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch, data=lambda step: {0: 500.0, 1: 0.0, 2: 1.0, 3: 3.0, 4: 0.0}[step], computing=1, between=70)
    train(small(tiny_store, log_every=2), tmp_path)
    told = [(event["step"], event["seconds"], event["waited"]) for event in kinds(tmp_path, "step")]
    assert told == [(1, 1.0, 0.0), (2, 2.0, 1.0), (4, 5.0, 3.0), (5, 1.0, 0.0)]


def test_a_run_that_was_interrupted_and_one_that_lost_steps_are_accounted_for(tiny_store: Path, tmp_path: Path) -> None:
    def term(step: int) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    def crash(step: int) -> None:
        if step == 6:
            raise RuntimeError("a defect")

    settings = small(tiny_store, steps=8, log_every=1, checkpoint=OFTEN)
    with pytest.raises(InterruptedRunError):
        train(settings, tmp_path, term)
    with pytest.raises(RuntimeError, match="a defect"):
        train(settings, tmp_path, crash)
    train(settings, tmp_path)
    events = read_all(tmp_path / "events.jsonl")
    starts: list[dict[str, Any]] = [event for event in events if event["kind"] == "start"]
    saved = {event["step"]: event["at"] for event in events if event["kind"] == "checkpoint"}
    steps = {event["step"]: event["time"] for event in events if event["kind"] == "step"}
    (left,) = [event for event in events if event["kind"] == "interruption"]
    assert all(start["launched"] <= start["time"] and start["job"] == "" for start in starts)
    assert steps[left["step"]] - 1 <= left["at"] <= left["time"]
    assert left["waited"] == 0.0  # since the event before: its last step
    assert all(at <= event["time"] for event in events if event["kind"] == "checkpoint" for at in [event["at"]])
    assert len(saved) >= 3
    found = account(events)
    assert found is not None
    assert round(1000 * sum(found.seconds.values())) == round(1000 * found.wall)
    assert [life.from_step for life in found.lives] == [start["step"] for start in starts]
    assert (found.steps, found.steps_lost) == (8, 6 - starts[2]["step"])
    assert found.lives[0].lost == 0
    assert found.begin == starts[0]["launched"]
