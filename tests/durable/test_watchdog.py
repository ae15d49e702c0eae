"""The end of a process that makes no progress any more."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import pytest

from agl_core.durable import watchdog as watchdog_module
from agl_core.durable.exits import HUNG
from agl_core.durable.watchdog import UNUSUAL, Watchdog

ROOT = Path(__file__).parents[2]


class Dog:
    """A watchdog whose clock is turned by hand and which says what it would have ended."""

    def __init__(self, stacks: Path, **parameters: Any) -> None:
        self.now = 1000.0
        self.codes: list[int] = []
        self.watchdog = Watchdog(
            stacks, **{"minutes": 1.0, "factor": 10.0, **parameters}, exit=self.codes.append, clock=lambda: self.now
        )

    def beat(self, phase: str, after: float = 0.0) -> None:
        self.now += after
        self.watchdog.beat(phase)

    def look(self, after: float, overslept: bool = False) -> bool:
        """Whether the process has been ended after so many more seconds."""
        self.now += after
        ended = self.watchdog._look(self.now, overslept)
        assert self.codes == ([HUNG] if ended else [])
        return ended


@pytest.fixture(name="dog")
def _dog(tmp_path: Path) -> Dog:
    return Dog(tmp_path / "stacks.txt")


@pytest.mark.parametrize("phase", ["step", "data", "validation", "save"])
def test_a_process_without_progress_ends(dog: Dog, phase: str) -> None:
    dog.beat(phase)
    assert not dog.look(60.0)
    assert dog.look(0.1)


def test_every_beat_counts_as_progress(dog: Dog) -> None:
    for phase in ("step", "data", "step", "validation", "validation", "save", "step"):
        dog.beat(phase)
        assert not dog.look(59.0)


def test_the_start_may_take_three_times_as_long(dog: Dog) -> None:
    assert not dog.look(180.0)
    dog.beat("start")
    assert not dog.look(180.0)
    assert dog.look(0.1)


def test_slow_steps_make_it_patient(dog: Dog) -> None:
    for _ in range(UNUSUAL + 5):
        dog.beat("step", after=20.0)
    assert dog.watchdog.usual() == 20.0
    assert not dog.look(200.0)
    assert dog.look(0.1)


def test_quick_steps_do_not_make_it_impatient(dog: Dog) -> None:
    for _ in range(UNUSUAL + 50):
        dog.beat("step", after=0.1)
    assert not dog.look(60.0)


def test_the_first_steps_are_not_learnt_from(dog: Dog) -> None:
    dog.beat("step")
    for _ in range(UNUSUAL):
        dog.beat("step", after=500.0)
    assert dog.watchdog.usual() == 0.0
    dog.beat("step", after=2.0)
    assert dog.watchdog.usual() == 2.0


def test_the_usual_step_is_without_validation_and_saving_but_with_waiting_for_data(dog: Dog) -> None:
    for _ in range(UNUSUAL + 1):
        dog.beat("step", after=1.0)
    for phase in ("validation", "save", "start"):
        for _ in range(3):
            dog.beat("data", after=1.0)
            dog.beat("step", after=2.0)
            dog.beat(phase, after=1.0)
            dog.beat("step", after=50.0)
    assert dog.watchdog.usual() == 3.0


def test_one_slow_step_is_not_usual(dog: Dog) -> None:
    for seconds in [1.0] * (UNUSUAL + 4) + [50.0] + [1.0] * 4:
        dog.beat("step", after=seconds)
    assert dog.watchdog.usual() == 1.0


def test_time_in_which_the_process_was_stopped_does_not_count(dog: Dog) -> None:
    dog.beat("step")
    assert not dog.look(50.0)
    assert not dog.look(36000.0, overslept=True)
    assert not dog.look(60.0)
    assert dog.look(0.1)


def test_it_leaves_the_stacks_of_all_threads_and_says_where(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    release = threading.Event()

    def waits_for_a_batch() -> None:
        release.wait()

    thread = threading.Thread(target=waits_for_a_batch)
    thread.start()
    stacks = tmp_path / "hung" / "rank0.txt"
    for _ in range(2):
        dog = Dog(stacks)
        dog.beat("data")
        dog.look(75.0)
    release.set()
    thread.join()
    text = stacks.read_text()
    assert text.count("no progress for 75 s in phase 'data' (limit 60 s)") == 2
    assert text.count("in waits_for_a_batch") == 2
    assert text.count("test_it_leaves_the_stacks") == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert str(stacks) in lines[0]


def test_it_calls_back_before_the_end(tmp_path: Path) -> None:
    codes_at_call: list[list[int]] = []
    dog: Dog = Dog(tmp_path / "stacks", on_hang=lambda: codes_at_call.append(list(dog.codes)))
    dog.beat("step")
    assert dog.look(61.0)
    assert codes_at_call == [[]]


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, KeyboardInterrupt])
def test_an_error_in_the_call_is_written_and_does_not_stop_the_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], error: type[BaseException]
) -> None:
    def fail() -> NoReturn:
        raise error("the disk is away")

    dog = Dog(tmp_path / "stacks", on_hang=fail)
    dog.beat("step")
    assert dog.look(61.0)
    assert f"{error.__name__}: the disk is away" in (tmp_path / "stacks").read_text()
    assert f"{error.__name__}: the disk is away" in capfd.readouterr().err


def test_a_report_that_hangs_itself_does_not_stop_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog_module, "REPORT", 0.05)
    release = threading.Event()
    dog = Dog(tmp_path / "stacks", on_hang=lambda: release.wait(60.0))
    dog.beat("step")
    assert dog.look(61.0)
    release.set()


def test_without_its_folder_the_stacks_go_to_standard_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    called = []
    dog = Dog(tmp_path / "gone" / "hung" / "stacks", on_hang=lambda: called.append(1))
    dog.beat("step")
    assert dog.look(61.0)
    error = capfd.readouterr().err
    assert "test_without_its_folder" in error
    assert "cannot be written (No such file or directory)" in error
    assert not (tmp_path / "gone").exists()
    assert called == [1]


@pytest.mark.parametrize(("processes", "waits"), [(1, []), (4, [6.0])])
def test_it_gives_the_processes_that_wait_for_it_time_to_write_their_stacks(
    tmp_path: Path, processes: int, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    dog = Dog(tmp_path / "stacks", processes=processes)
    waited: list[float] = []
    monkeypatch.setattr(dog.watchdog._closed, "wait", waited.append)
    dog.beat("step")
    assert dog.look(61.0)
    assert waited == waits


def test_with_0_minutes_nothing_watches(tmp_path: Path) -> None:
    before = threading.active_count()
    with Watchdog(tmp_path / "stacks", minutes=0.0) as watchdog:
        assert threading.active_count() == before
        watchdog.beat("step")


def test_the_thread_ends_with_the_block(tmp_path: Path) -> None:
    before = threading.active_count()
    with Watchdog(tmp_path / "stacks", minutes=60.0) as watchdog:
        assert threading.active_count() == before + 1
        watchdog.beat("step")
    assert threading.active_count() == before


def looks(dog: Dog, monkeypatch: pytest.MonkeyPatch, count: int, seconds: float) -> float:
    """Let the watching loop run for `count` looks, `seconds` apart; the time at which it ended."""
    left = iter([False] * count)

    def wait(poll: float) -> bool:
        dog.now += seconds
        return next(left, True)

    monkeypatch.setattr(dog.watchdog._closed, "wait", wait)
    dog.watchdog._run()
    return dog.now


def test_the_loop_ends_a_process_at_the_first_look_after_its_limit(dog: Dog, monkeypatch: pytest.MonkeyPatch) -> None:
    dog.beat("step")
    assert looks(dog, monkeypatch, count=100, seconds=3.0) == 1063.0
    assert dog.codes == [HUNG]


def test_the_loop_notices_that_it_was_stopped_too(dog: Dog, monkeypatch: pytest.MonkeyPatch) -> None:
    dog.beat("step")
    looks(dog, monkeypatch, count=20, seconds=3600.0)
    assert dog.codes == []
    assert not dog.watchdog.stacks.exists()


def test_the_loop_ends_with_the_block(dog: Dog, monkeypatch: pytest.MonkeyPatch) -> None:
    dog.beat("step")
    assert looks(dog, monkeypatch, count=5, seconds=3.0) == 1018.0
    assert dog.codes == []


HANGS = """
import ctypes, sys, time
from pathlib import Path
from agl_core.durable.watchdog import Watchdog

def in_python():
    time.sleep(600)

def in_c():
    libc = ctypes.CDLL(None)  # lets go of the interpreter's lock, as NCCL and gloo do
    mutex = ctypes.create_string_buffer(256)
    libc.pthread_mutex_init(mutex, None)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)

with Watchdog(Path(sys.argv[1]), minutes=0.002) as watchdog:
    watchdog.beat("step")
    in_python() if sys.argv[2] == "in_python" else in_c()
"""


@pytest.mark.parametrize("where", ["in_python", "in_c"])
def test_a_process_that_hangs_is_ended_with_its_own_code(tmp_path: Path, where: str) -> None:
    stacks = tmp_path / "stacks.txt"
    process = subprocess.run(
        [sys.executable, "-c", HANGS, stacks, where], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert process.returncode == HUNG
    assert f"in {where}" in stacks.read_text()
    assert str(stacks) in process.stderr
