"""When a stage saves, and how it bears a disk that refuses."""

import errno
import json
import math
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from agl_core.config import CheckpointConfig
from agl_core.data.order import Order
from agl_core.durable import writer
from agl_core.durable.chain import ChainLog, StateEntry, read_chain
from agl_core.durable.checkpoint import Checkpoint, save_checkpoint
from agl_core.durable.lease import Lease, LeaseLostError
from agl_core.durable.writer import CheckpointWriter
from agl_core.errors import UserError
from agl_core.training import saver as saver_module
from agl_core.training.saver import RETRY, Saver

ORDER = Order(seed=0, stage=0, n_samples=8, global_batch=4)  # an epoch is two steps
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class State:
    """As much of a training state as is saved."""

    def __init__(self, step: int, best_step: int | None = None) -> None:
        self.step, self.best_step, self.anchor = step, best_step, step - step % 3

    def checkpoint(self, extra: dict[str, Any]) -> Checkpoint:
        value = torch.full((3,), float(self.step))
        return Checkpoint(
            self.step, {"weight": value}, {"exp_avg/weight": value}, {"best_step": self.best_step, **extra}
        )


class Journal:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.saved: list[int] = []
        self.taken: list[float] = []
        self.stalls: list[float] = []

    def event(self, kind: str, step: int, **values: Any) -> None:
        assert kind == "checkpoint"
        assert set(values) == {"stall", "seconds", "bytes", "at"}
        self.saved.append(step)
        self.taken.append(values["at"])
        self.stalls.append(values["stall"])

    def warn(self, step: int, text: str) -> None:
        self.warnings.append(text)


class Bench:
    """A saver on a disk whose errors the test chooses, by a clock that it sets."""

    def __init__(
        self, run_dir: Path, patch: pytest.MonkeyPatch, history: tuple[int, float] = (0, 0.0), **settings: Any
    ):
        self.run_dir, self.folder = run_dir, run_dir / "checkpoints" / "first"
        self.now = 1000.0
        self.errors: dict[int, BaseException] = {}
        self.attempts: list[int] = []
        self.journal: Any = Journal()
        self.chain = ChainLog(run_dir / "chain" / "first.1.jsonl")
        self.lease = Lease.take(run_dir, "test")
        patch.setattr(saver_module, "time", SimpleNamespace(monotonic=self.clock, time=self.date, sleep=self.sleep))
        patch.setattr(writer, "save_checkpoint", self.write)
        config = CheckpointConfig(**{"every": "3 steps", "interval": "10 minutes", **settings})
        self.saver = Saver(config, self.folder, self.lease, ORDER, {"tiles": "digest"}, [], history)

    def clock(self) -> float:
        return self.now

    def date(self) -> float:
        return self.now + 1_000_000.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def write(self, folder: Path, checkpoint: Checkpoint, *more: Any) -> Path | None:
        self.attempts.append(checkpoint.step)
        if checkpoint.step in self.errors:
            raise self.errors[checkpoint.step]
        return save_checkpoint(folder, checkpoint, *more)

    def begin(self, step: int, best_step: int | None = None) -> None:
        state: Any = State(step, best_step)
        self.saver.begin(state, self.journal)

    def save(self, step: int, seconds_left: float = 60.0) -> bool:
        state: Any = State(step)
        return self.saver.save(state, seconds_left)

    def look(self, step: int = 99) -> None:
        self.saver.writer.wait()
        self.saver.look(self.journal, self.chain, step)

    def state(self, step: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / f"step_{step:08d}" / "state.json").read_text())
        return found


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


# When


def test_the_clock_asks_when_the_interval_is_over_and_begins_anew_with_each_save(bench: Bench) -> None:
    assert not bench.saver.wanted()
    bench.now += 599
    assert not bench.saver.wanted()
    bench.now += 1
    assert bench.saver.wanted()
    bench.begin(1)
    bench.look()
    assert not bench.saver.wanted()
    bench.now += 600
    assert bench.saver.wanted()


def test_the_clock_never_asks_where_it_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, monkeypatch, interval="never")
    bench.now += 1e9
    assert not bench.saver.wanted()


def test_a_computed_interval_follows_the_measured_cost_and_the_observed_interruptions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, monkeypatch, interval="auto", history=(23, 13 * 86400.0))
    # Twelve hours... (24 interruptions in 14 days): sqrt(2 * cost * 50400 s), here with a stall of two seconds.
    bench.saver._ended.clear()
    bench.begin(1)
    bench.saver.writer.wait()
    outcome = bench.saver.writer.outcomes()[0]
    assert isinstance(outcome, writer.Saved)
    bench.saver.writer._outcomes.append(writer.Saved(1, 2.0, 3.0, 4, outcome.digests))
    bench.look()
    bench.now += 448.0
    assert not bench.saver.wanted()
    bench.now += 2.0  # sqrt(2 * 2 * 50400) = 449
    assert bench.saver.wanted()


def test_nothing_is_asked_for_while_a_save_is_being_written(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def slow(folder: Path, checkpoint: Checkpoint, *more: Any) -> Path | None:
        go_on.wait()
        return save_checkpoint(folder, checkpoint, *more)

    monkeypatch.setattr(writer, "save_checkpoint", slow)
    bench.begin(1)
    bench.now += 10_000
    assert not bench.saver.wanted()
    go_on.set()
    bench.look()
    assert bench.saver.wanted()


def test_what_is_due_by_steps_does_not_depend_on_the_clock(bench: Bench) -> None:
    due = [step for step in range(13) if bench.saver.scheduled(step)]
    bench.now += 10_000
    assert due == [step for step in range(13) if bench.saver.scheduled(step)] == [3, 6, 9, 12]


# What


def test_a_checkpoint_says_why_it_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, monkeypatch, keep=9, keep_every="2 epochs")
    for step, best_step in ((2, 2), (3, 2), (4, 2), (6, 6), (12, 6)):
        bench.begin(step, best_step)
    bench.look()
    flags = {
        step: [name for name in ("scheduled", "best", "milestone") if bench.state(step)[name]]
        for step in (2, 3, 4, 6, 12)
    }
    assert flags == {
        2: ["best"],
        3: ["scheduled"],
        4: ["milestone"],
        6: ["scheduled", "best"],
        12: ["scheduled", "milestone"],
    }
    assert bench.state(2)["tiles"] == "digest"


def test_without_milestones_none_is_one(bench: Bench) -> None:
    bench.begin(6)
    bench.look()
    assert bench.state(6)["milestone"] is False


def test_what_was_saved_is_told_once_with_its_digests(bench: Bench) -> None:
    bench.begin(1)
    bench.look()
    bench.look()
    bench.chain.close()
    assert bench.journal.saved == [1]
    entries = read_chain(bench.run_dir / "chain" / "first.1.jsonl")
    assert [entry.step for entry in entries if isinstance(entry, StateEntry)] == [1]
    assert (bench.saver.last_step, bench.saver.last_good) == (1, 1)


def test_a_checkpoint_is_of_the_time_at_which_its_state_was_taken(bench: Bench) -> None:
    bench.begin(1)
    bench.now += 40.0
    bench.look()
    bench.save(2)
    bench.now += 5.0
    bench.look()
    assert bench.journal.taken == [1_001_000.0, 1_001_040.0]


def test_waiting_for_an_earlier_write_is_part_of_the_stall(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real = CheckpointWriter.wait

    def wait(self: CheckpointWriter, timeout: float = math.inf) -> None:
        bench.now += 7.0 if timeout == saver_module.SLOW else 0.0
        real(self, timeout)

    monkeypatch.setattr(CheckpointWriter, "wait", wait)
    bench.begin(1)
    bench.look()
    assert (bench.journal.taken, bench.journal.stalls) == ([1_001_000.0], [pytest.approx(7.0, abs=1.0)])


def test_a_run_that_continues_has_its_checkpoint_already(bench: Bench) -> None:
    bench.saver.continues_from(7)
    assert (bench.saver.last_step, bench.saver.last_good) == (7, 7)
    assert bench.save(7)
    assert bench.attempts == []


# Refusals


def test_after_a_refusal_the_next_attempt_comes_by_the_clock_and_the_last_good_one_stays_known(bench: Bench) -> None:
    bench.begin(1)
    bench.look()
    bench.errors[2] = FULL
    bench.begin(2)
    assert bench.saver.last_step == 2
    bench.look()
    assert (bench.saver.last_step, bench.saver.last_good) == (1, 1)
    assert bench.journal.warnings == [
        f"{bench.folder} cannot be written to ({FULL}); the last good checkpoint is that of step 1; "
        "trying again in 60 s"
    ]
    bench.now += RETRY - 1
    assert not bench.saver.wanted()
    bench.now += 1
    assert bench.saver.wanted()
    bench.begin(3)
    bench.look()
    assert bench.saver.last_good == 3
    bench.now += RETRY
    assert not bench.saver.wanted()


def test_a_disk_that_never_took_one_is_said_to_have_none(bench: Bench) -> None:
    bench.errors[1] = FULL
    bench.begin(1)
    bench.look()
    assert "there is none yet" in bench.journal.warnings[0]


def test_patience_ends_with_one_sentence_and_begins_anew_with_each_success(bench: Bench) -> None:
    bench.errors = dict.fromkeys((2, 3, 5, 6, 7), FULL)
    for step in (1, 2, 3, 4, 5, 6):  # 1 and 4 are written
        bench.begin(step)
        bench.look()
        bench.now += 59 * 60 if step in (2, 5) else 1
    assert len(bench.journal.warnings) == 4
    bench.now += 60
    bench.begin(7)
    with pytest.raises(UserError) as said:
        bench.look()
    assert str(said.value) == (
        f"{bench.folder} could not be written to for 60 min ({FULL}), and the last good checkpoint is that of step "
        "4: free some space there and give the same command again"
    )


def test_a_failure_that_is_heard_of_after_a_success_does_not_start_the_clock(bench: Bench) -> None:
    """A save in the background fails, and the one at the interruption or at the end of the stage succeeds."""
    bench.errors[1] = FULL
    bench.begin(1)
    bench.saver.writer.wait()
    del bench.errors[1]
    assert bench.save(1)
    bench.look()
    assert bench.journal.saved == [1]
    assert bench.saver.last_good == 1
    assert bench.saver.last_step == 1
    bench.now += 2 * 3600
    bench.errors[2] = FULL
    bench.begin(2)
    bench.look()  # the first failure of an hour, not the end of all patience
    assert "of step 1; trying" in bench.journal.warnings[-1]


@pytest.mark.parametrize("error", [ValueError("a defect"), MemoryError("no memory"), LeaseLostError("taken over")])
def test_what_is_no_matter_of_the_disk_is_raised_as_it_is(bench: Bench, error: Exception) -> None:
    bench.errors[1] = error
    bench.begin(1)
    with pytest.raises(type(error), match=str(error)):
        bench.look()
    bench.errors[2] = error
    with pytest.raises(type(error), match=str(error)):
        bench.save(2)


def test_the_final_save_raises_what_the_disk_says_and_keeps_what_was_said_before(bench: Bench) -> None:
    bench.errors = {1: FULL, 2: FULL}
    bench.begin(1)
    with pytest.raises(OSError, match="No space left"):
        bench.save(2)
    bench.look()
    assert len(bench.journal.warnings) == 1  # of step 1; that of step 2 was raised
    assert bench.attempts == [1, 2]


def test_the_final_save_takes_the_one_in_the_background_if_it_is_of_the_same_step(bench: Bench) -> None:
    bench.begin(1)
    assert bench.save(1)
    assert bench.attempts == [1]
    bench.look()
    assert bench.journal.saved == [1]


def test_the_final_save_is_left_out_if_it_would_not_fit(bench: Bench) -> None:
    bench.begin(1)
    bench.look()
    bench.saver.writer._seconds.append(30.0)
    assert not bench.save(2, seconds_left=20.0)
    assert bench.attempts == [1]
    assert bench.saver.last_good == 1
    assert bench.save(2, seconds_left=40.0)
    assert bench.saver.last_good == 2


def test_a_lost_lease_keeps_the_checkpoint_away(bench: Bench) -> None:
    bench.begin(1)
    bench.look()
    Lease.take(bench.run_dir, "another")
    with pytest.raises(LeaseLostError):
        bench.save(2)
    bench.begin(3)
    with pytest.raises(LeaseLostError):
        bench.look()
    assert sorted(path.name for path in bench.folder.iterdir()) == ["step_00000001"]


# Insisting


def insist(bench: Bench, failures: int, give_up_after: float = 1e9) -> tuple[bool, list[int]]:
    """Whether a write that fails so often was done, and when it was tried, in seconds."""
    began = bench.now
    tried: list[int] = []

    def write() -> None:
        tried.append(round(bench.now - began))
        if len(tried) <= failures:
            raise FULL

    done = bench.saver.insist(write, bench.journal, 5, lambda: bench.now - began >= give_up_after)
    return done, tried


def test_a_write_is_insisted_on_once_a_minute(bench: Bench) -> None:
    assert insist(bench, 3) == (True, [0, 60, 120, 180])
    assert len(bench.journal.warnings) == 3


def test_insisting_ends_when_it_is_asked_to(bench: Bench) -> None:
    assert insist(bench, 99, give_up_after=70) == (False, [0, 60])


def test_insisting_ends_when_patience_does(bench: Bench) -> None:
    with pytest.raises(UserError, match=r"for 60 min .* there is none yet"):
        insist(bench, 99)
    assert len(bench.journal.warnings) == 60


def test_after_success_the_next_write_is_given_all_patience_again(bench: Bench) -> None:
    assert insist(bench, 59)[0]
    assert insist(bench, 59)[0]


def test_insisting_is_for_disks_only(bench: Bench) -> None:
    def write() -> None:
        raise LeaseLostError("taken over")

    with pytest.raises(LeaseLostError):
        bench.saver.insist(write, bench.journal, 5, lambda: False)


def test_training_goes_on_without_a_checkpoint_for_which_a_slow_disk_has_no_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver_module, "SLOW", 0.01)
    go_on = threading.Event()
    real = writer.save_checkpoint

    def slow(*arguments: Any) -> Any:
        go_on.wait()
        return real(*arguments)

    monkeypatch.setattr(writer, "save_checkpoint", slow)
    bench.begin(3)
    bench.begin(6)
    assert bench.journal.warnings == [
        f"{bench.folder}: the checkpoint of step 3 is still being written; that of step 6 is left out"
    ]
    go_on.set()
    bench.look()
    bench.begin(9)
    bench.look()
    assert bench.journal.saved == [3, 9]
