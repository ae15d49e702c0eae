"""Checkpoints in the background: what is written, what is waited for, and that no error is lost."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from agl_core.durable.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from agl_core.durable.lease import LeaseLostError
from agl_core.durable.retention import Retention
from agl_core.durable.snapshot import Snapshot
from agl_core.durable.tensorfile import Fingerprint
from agl_core.durable.writer import REMEMBERED, CheckpointWriter, Saved, SaveFailed

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 60.0
"""Seconds after which a test that waits for another thread gives up."""


def state_after(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(8, 4, 3, 3, generator=generator).contiguous(memory_format=torch.channels_last)
    return Checkpoint(step, {"weight": weight}, {"step/weight": torch.tensor(float(step))}, {"best_score": step / 100})


def loaded(folder: Path) -> Checkpoint:
    checkpoint, skipped = load_checkpoint(folder)
    assert checkpoint is not None
    assert skipped == []
    return checkpoint


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Gate:
    """A fence that holds the background thread until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.reached.set()
        assert self.opened.wait(PATIENCE)
        yield


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Disk:
    """Stands for `save_checkpoint`: a write takes `seconds` of the clock. With `hold` it does not end before it is
    let go, or told that it is superseded."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds
        self.hold = False
        self.elapsed = 0.0
        self.errors: list[BaseException] = []
        self.begun: list[int] = []
        self.superseded: list[int] = []
        self.discarded: list[Collection[str]] = []
        self.reached, self.let_go = threading.Event(), threading.Event()

    def __call__(
        self,
        folder: Path,
        checkpoint: Checkpoint,
        retention: Retention,
        fence: Callable[[], AbstractContextManager[Any]],
        cancelled: Callable[[], bool],
        discard: Collection[str],
    ) -> Path | None:
        self.begun.append(checkpoint.step)
        self.discarded.append(discard)
        self.reached.set()
        while self.hold:
            let_go = self.let_go.wait(0.001)
            if cancelled():
                self.superseded.append(checkpoint.step)
                self.hold = False  # only of this one
                return None
            if let_go:
                break
        self.clock.now += self.seconds - self.elapsed
        self.elapsed = 0.0
        if self.errors:
            raise self.errors.pop(0)
        return save_checkpoint(folder, checkpoint, retention, fence, discard=discard)


class Bench:
    """A writer on a disk of known speed."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.clock = Clock()
        self.disk = Disk(self.clock, seconds)
        monkeypatch.setattr("agl_core.durable.writer.save_checkpoint", self.disk)
        self.writer = CheckpointWriter(folder, discard=("step_00000099",), clock=self.clock)

    def measure(self) -> None:
        """Let the writer know how long a write takes."""
        assert self.writer.save(state_after(1))
        self.writer.outcomes()

    def hold(self, step: int, elapsed: float = 0.0) -> None:
        """Begin a write that does not end by itself; `elapsed` of its seconds have passed."""
        self.disk.hold = True
        self.disk.reached.clear()
        self.writer.begin(state_after(step))
        assert self.disk.reached.wait(PATIENCE)
        self.disk.elapsed = elapsed
        self.clock.now += elapsed

    def let_go_when_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        wait = self.writer.wait

        def waited_for(*timeout: float) -> None:
            self.disk.let_go.set()
            wait(*timeout)

        monkeypatch.setattr(self.writer, "wait", waited_for)

    def let_go(self) -> None:
        self.disk.let_go.set()
        self.writer.close()

    def saved(self) -> list[int]:
        """The steps of the outcomes, all of which are good."""
        outcomes = self.writer.outcomes()
        assert all(isinstance(outcome, Saved) for outcome in outcomes)
        return [outcome.step for outcome in outcomes]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch, seconds=10.0)


def test_what_is_written_is_the_state_of_the_begin_while_training_changes_it(tmp_path: Path) -> None:
    gate, state = Gate(), state_after(5)
    writer = CheckpointWriter(tmp_path, fence=gate)
    writer.begin(state)
    writer.copied()
    state.model["weight"].zero_()
    state.state["best_score"] = None
    assert gate.reached.wait(PATIENCE)
    assert writer.busy
    assert writer.outcomes() == []
    gate.opened.set()
    writer.wait()
    assert not writer.busy
    assert torch.equal(loaded(tmp_path).model["weight"], state_after(5).model["weight"])
    assert loaded(tmp_path).state["best_score"] == 0.05
    (outcome,) = writer.outcomes()
    assert isinstance(outcome, Saved)
    files = {path.stem: Fingerprint.of(path) for path in (tmp_path / "step_00000005").glob("*.safetensors")}
    assert outcome.step == 5
    assert outcome.digests == {name: fingerprint.xxh3 for name, fingerprint in files.items()}
    assert outcome.digests.keys() == {"model", "optimizer"}
    assert outcome.bytes == sum(path.stat().st_size for path in (tmp_path / "step_00000005").iterdir()) - (
        (tmp_path / "step_00000005" / "manifest.json").stat().st_size
    )


def test_the_digests_are_those_of_the_content(tmp_path: Path) -> None:
    def digests(folder: Path, checkpoint: Checkpoint) -> dict[str, str]:
        writer = CheckpointWriter(folder)
        assert writer.save(checkpoint)
        (outcome,) = writer.outcomes()
        assert isinstance(outcome, Saved)
        return outcome.digests

    same, other = state_after(1), state_after(1)
    same.model["weight"] = same.model["weight"].contiguous()
    other.model["weight"][0, 0, 0, 0] += 1
    expected = digests(tmp_path / "a", state_after(1))
    assert digests(tmp_path / "b", same) == expected
    changed = digests(tmp_path / "c", other)
    assert (changed["model"] == expected["model"], changed["optimizer"] == expected["optimizer"]) == (False, True)


def test_a_second_write_is_refused_and_leaves_the_snapshot_to_the_first(tmp_path: Path) -> None:
    gate = Gate()
    writer = CheckpointWriter(tmp_path, fence=gate)
    writer.begin(state_after(1))
    with pytest.raises(ValueError, match="step 2: the checkpoint before is still being written"):
        writer.begin(state_after(2))
    gate.opened.set()
    writer.wait()
    assert torch.equal(loaded(tmp_path).model["weight"], state_after(1).model["weight"])
    writer.begin(state_after(2))
    writer.close()
    assert torch.equal(loaded(tmp_path).model["weight"], state_after(2).model["weight"])


class OfNoUsualKindError(BaseException):
    """Not even an Exception."""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        LeaseLostError("taken over"),
        MemoryError(),
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        OfNoUsualKindError("!"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_any_kind_in_the_background_comes_out_and_the_next_write_works(
    error: BaseException, bench: Bench, tmp_path: Path
) -> None:
    bench.disk.errors = [error]
    bench.writer.begin(state_after(1))
    bench.writer.wait()
    assert bench.writer.outcomes() == [SaveFailed(1, error)]
    assert bench.writer.outcomes() == []
    bench.writer.begin(state_after(2))
    bench.writer.close()
    assert bench.saved() == [2]
    assert names(tmp_path) == ["step_00000002"]


def test_nobody_has_to_ask_for_outcomes_in_time(bench: Bench) -> None:
    error = OSError(errno.EIO, "Input/output error")
    bench.writer.begin(state_after(1))
    bench.writer.wait()
    bench.disk.errors = [error]
    bench.writer.begin(state_after(2))
    bench.writer.wait()
    bench.writer.begin(state_after(3))
    bench.writer.close()
    first, second, third = bench.writer.outcomes()
    assert (first.step, second, third.step) == (1, SaveFailed(2, error), 3)
    assert bench.writer.outcomes() == []


@pytest.mark.parametrize(
    ("owner", "method", "error"),
    [(Snapshot, "take", MemoryError("no memory")), (threading.Thread, "start", RuntimeError("can't start new thread"))],
)
def test_a_write_that_cannot_begin_is_one_that_failed(
    owner: type, method: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    writer = CheckpointWriter(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, fail)
        writer.begin(state_after(1))
    assert not writer.busy
    writer.wait()
    assert writer.outcomes() == [SaveFailed(1, error)]
    writer.begin(state_after(2))
    writer.close()
    assert loaded(tmp_path).step == 2


def test_closing_waits_for_the_write_in_flight_and_may_be_repeated(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.hold(4)
    bench.let_go_when_waited_for(monkeypatch)
    bench.writer.close()
    assert not bench.writer.busy
    bench.writer.close()
    assert bench.saved() == [4]
    for call in (bench.writer.begin, bench.writer.save):
        with pytest.raises(ValueError, match="closed"):
            call(state_after(5))


def test_a_trainer_that_crashes_is_not_kept_alive_by_a_write_that_hangs(tmp_path: Path) -> None:
    script = """
import sys, threading
from contextlib import contextmanager
from pathlib import Path
from agl_core.durable.writer import CheckpointWriter
from tests.durable.test_writer import state_after
reached = threading.Event()
@contextmanager
def hang():
    reached.set()
    threading.Event().wait()
    yield
writer = CheckpointWriter(Path(sys.argv[1]), fence=hang)
writer.begin(state_after(1))
assert reached.wait(60)
raise RuntimeError("the trainer crashed")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.rstrip().endswith("RuntimeError: the trainer crashed")


def test_a_process_forked_during_a_write_leaves_as_if_there_were_none(tmp_path: Path) -> None:
    gate = Gate()
    writer = CheckpointWriter(tmp_path, fence=gate)
    writer.begin(state_after(1))
    assert gate.reached.wait(PATIENCE)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            writer.close()
            writer.close()
            code = 2 if writer.busy or writer.outcomes() else 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    gate.opened.set()
    writer.close()
    assert [outcome.step for outcome in writer.outcomes()] == [1]
    assert torch.equal(loaded(tmp_path).model["weight"], state_after(1).model["weight"])


def test_the_stall_is_what_the_step_has_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    take = Snapshot.take

    def slow_take(snapshot: Snapshot, checkpoint: Checkpoint) -> Checkpoint:
        bench.clock.now += 0.25
        return take(snapshot, checkpoint)

    def slow_wait(snapshot: Snapshot) -> None:
        if threading.current_thread() is threading.main_thread():
            bench.clock.now += 0.5

    monkeypatch.setattr(Snapshot, "take", slow_take)
    bench.hold(1)
    monkeypatch.setattr(Snapshot, "wait", slow_wait)
    bench.writer.copied()
    bench.let_go()
    (outcome,) = bench.writer.outcomes()
    assert isinstance(outcome, Saved)
    assert outcome.stall == 0.75
    assert outcome.seconds == 10.5  # the step waited while it was being written


def test_a_synchronous_save_stalls_for_all_of_its_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.hold(1, elapsed=4)
    bench.let_go_when_waited_for(monkeypatch)
    assert bench.writer.save(state_after(2))
    background, final = bench.writer.outcomes()
    assert isinstance(background, Saved)
    assert isinstance(final, Saved)
    assert (background.stall, background.seconds) == (0, 10)
    assert (final.stall, final.seconds) == (16, 10)


def test_a_write_is_expected_to_take_as_long_as_the_slowest_of_the_last_ones(bench: Bench) -> None:
    expected = []
    for step, seconds in enumerate([3, 30, 5, *[4] * REMEMBERED], 1):
        expected.append(bench.writer.expected_seconds)
        bench.disk.seconds = seconds
        assert bench.writer.save(state_after(step))
    assert expected[:4] == [None, 3, 30, 30]
    assert expected[9:] == [30, 5]
    assert bench.writer.expected_seconds == 4


def test_the_final_save_works_before_anything_has_been_measured(bench: Bench, tmp_path: Path) -> None:
    assert bench.writer.save(state_after(7), seconds_left=0.5)
    assert loaded(tmp_path).step == 7
    assert bench.saved() == [7]


def test_the_final_save_needs_time_that_is_left(bench: Bench, tmp_path: Path) -> None:
    for seconds in (0.0, -1.0):
        assert not bench.writer.save(state_after(7), seconds_left=seconds)
    assert bench.disk.begun == []


def test_the_final_save_waits_for_a_write_in_flight_if_both_fit(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.measure()
    bench.hold(2, elapsed=4)
    bench.let_go_when_waited_for(monkeypatch)
    assert bench.writer.save(state_after(3), seconds_left=16)  # 6 of the first, 10 of the second
    assert bench.saved() == [2, 3]
    assert loaded(tmp_path).step == 3


def test_the_final_save_supersedes_a_write_in_flight_if_only_one_fits(bench: Bench, tmp_path: Path) -> None:
    bench.measure()
    bench.hold(2, elapsed=4)
    assert bench.writer.save(state_after(3), seconds_left=15.9)
    assert bench.disk.superseded == [2]
    assert bench.disk.begun == [1, 2, 3]
    assert bench.saved() == [3]
    assert loaded(tmp_path).step == 3


def test_a_superseded_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with the real files: the write is held until it is superseded, then ends by itself."""
    reached = threading.Event()

    def held(*arguments: Any) -> Any:
        cancelled = arguments[4]

        def hold_until_superseded() -> bool:
            reached.set()
            while arguments[1].step == 2 and not cancelled():
                threading.Event().wait(0.001)
            return bool(cancelled())

        return save_checkpoint(arguments[0], arguments[1], cancelled=hold_until_superseded)

    monkeypatch.setattr("agl_core.durable.writer.save_checkpoint", held)
    clock = Clock()
    writer = CheckpointWriter(tmp_path, clock=clock)
    writer.begin(state_after(1))
    clock.now += 10
    writer.wait()
    writer._seconds.append(10.0)
    reached.clear()
    writer.begin(state_after(2))
    assert reached.wait(PATIENCE)
    assert writer.save(state_after(3), seconds_left=16)
    assert names(tmp_path) == ["step_00000001", "step_00000003"]
    assert [outcome.step for outcome in writer.outcomes()] == [1, 3]


def test_the_final_save_is_refused_if_it_would_not_fit_alone_and_the_write_in_flight_goes_on(
    bench: Bench, tmp_path: Path
) -> None:
    bench.measure()
    assert not bench.writer.save(state_after(2), seconds_left=9)
    bench.hold(3, elapsed=9)
    assert not bench.writer.save(state_after(4), seconds_left=9)
    assert bench.writer.busy
    bench.let_go()
    assert bench.disk.superseded == []
    assert bench.saved() == [3]
    assert names(tmp_path) == ["step_00000001", "step_00000003"]


def test_the_first_write_is_waited_for_and_then_says_whether_the_final_one_fits(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.hold(1)
    bench.let_go_when_waited_for(monkeypatch)
    assert not bench.writer.save(state_after(2), seconds_left=19)  # 10 for the first, 9 are left
    assert bench.disk.begun == [1]
    assert bench.saved() == [1]


def test_a_write_in_flight_of_the_same_step_is_the_final_save(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.measure()
    bench.hold(2, elapsed=6)
    bench.let_go_when_waited_for(monkeypatch)
    assert bench.writer.save(state_after(2), seconds_left=5)  # another one would not fit
    assert bench.disk.begun == [1, 2]
    assert bench.saved() == [2]


def test_the_final_save_is_tried_again_if_the_write_in_flight_of_the_same_step_fails(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = OSError(errno.EIO, "Input/output error")
    bench.hold(2)
    bench.disk.errors = [error]
    bench.let_go_when_waited_for(monkeypatch)
    assert bench.writer.save(state_after(2), seconds_left=25)
    failed, saved = bench.writer.outcomes()
    assert failed == SaveFailed(2, error)
    assert isinstance(saved, Saved)
    assert loaded(tmp_path).step == 2


def test_the_final_save_waits_no_longer_than_there_is_time(bench: Bench) -> None:
    bench.hold(1)
    assert not bench.writer.save(state_after(2), seconds_left=0.02)
    assert bench.writer.busy
    bench.let_go()
    assert bench.disk.begun == [1]


def test_a_final_save_that_fails_says_so_and_why(bench: Bench) -> None:
    error = LeaseLostError("taken over")
    bench.disk.errors = [error]
    assert not bench.writer.save(state_after(1))
    assert bench.writer.outcomes() == [SaveFailed(1, error)]


def test_a_second_interrupt_ends_the_final_save_at_once(bench: Bench) -> None:
    bench.disk.errors = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        bench.writer.save(state_after(1))


def test_bad_checkpoints_are_discarded_until_a_save_has_succeeded_and_not_after(bench: Bench) -> None:
    """After that the run comes by the same steps again, and what it saves there is good."""
    bench.disk.errors = [OSError(errno.EIO, "Input/output error")]
    for step in (1, 2, 3):
        bench.writer.begin(state_after(step))
        bench.writer.wait()
    assert [set(discarded) for discarded in bench.disk.discarded] == [{"step_00000099"}, {"step_00000099"}, set()]


def test_retention_and_fence_reach_the_disk(tmp_path: Path) -> None:
    gate = Gate()
    gate.opened.set()
    writer = CheckpointWriter(tmp_path, Retention(last=1), gate)
    assert writer.save(state_after(1))
    writer.begin(state_after(2))
    writer.close()
    assert gate.reached.is_set()
    assert names(tmp_path) == ["step_00000002"]
