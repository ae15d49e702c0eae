"""A stage tells how long its start took, item by item."""

import signal
from pathlib import Path

import pytest

from agl_core.durable.exits import InterruptedRunError
from agl_core.durable.guard import Guard
from agl_core.reporting.events import count_interruptions, read_events
from agl_core.training.parallel import Parallel
from agl_core.training.trainer import train_stage
from tests.training.incarnations import events
from tests.training.runs import config, train, train_together

ITEMS = ["device", "rendezvous", "lease", "store", "checkpoint", "model", "wrap", "files", "batch", "step"]


def test_every_start_tells_its_items_after_its_first_step(tiny_store: Path, tmp_path: Path) -> None:
    settings = config(tiny_store, encoder="tu-resnet10t")
    train(settings, tmp_path, stop_after=3)
    train(settings, tmp_path)
    told = events(tmp_path, "startup")
    assert [event["step"] for event in told] == [1, 3]
    assert [event["generation"] for event in told] == [1, 2]
    for event in told:
        known = [item for item in event["seconds"] if item not in ("launch", "python", "imports")]
        assert known == ITEMS
        assert event["total"] == pytest.approx(sum(event["seconds"].values()), abs=1e-6)
    # What the process has done before is part of its first start alone; this one was not its first.
    assert list(told[1]["seconds"]) == ITEMS
    kinds = [event["kind"] for event in read_events(tmp_path / "events.jsonl") if event["generation"] == 2]
    assert kinds[:3] == ["start", "step", "startup"]
    assert count_interruptions(tmp_path / "events.jsonl")[0] == 1


def test_a_start_without_a_step_tells_nothing_and_leaves_nothing_to_the_next(tiny_store: Path, tmp_path: Path) -> None:
    settings = config(tiny_store, steps=1, encoder="tu-resnet10t")
    with Guard(30) as guard, Parallel() as parallel:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(InterruptedRunError):
            train_stage(settings, "first", tmp_path, parallel, guard=guard)
    assert not (tmp_path / "events.jsonl").exists()
    train(settings, tmp_path)
    (told,) = events(tmp_path, "startup")
    assert list(told["seconds"]) == ITEMS
    (tmp_path / "stages" / "first.json").unlink()
    train(settings, tmp_path)  # only the end is left to do
    assert events(tmp_path, "startup") == [told]


def test_of_several_processes_the_first_tells(tiny_store: Path, tmp_path: Path) -> None:
    train_together(config(tiny_store, steps=1, encoder="tu-resnet10t"), tmp_path, 2)
    (told,) = events(tmp_path, "startup")
    # Forked with all imports done; whether this process has trained before depends on the tests before this one.
    assert [item for item in told["seconds"] if item not in ("launch", "python", "imports")] == ITEMS
