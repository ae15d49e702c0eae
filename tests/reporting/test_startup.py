"""The stopwatch of a process's life, and what makes a start shorter."""

import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agl_core.reporting import startup
from agl_core.reporting.startup import Stopwatch, before_now, importing, process_age, read_ahead

IMPORTED = time.monotonic()
PATIENCE = 30.0


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def later(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_each_mark_ends_an_item_and_everything_before_the_begin_is_imports(clock: Clock) -> None:
    watch = Stopwatch({"launch": 2.0, "python": 0.25}, clock)
    clock.later(3)
    watch.begin()
    for seconds, item in ((1, "rendezvous"), (0.5, "store"), (2, "step")):
        clock.later(seconds)
        watch.mark(item)
    assert list(watch.end().items()) == [
        ("launch", 2.0), ("python", 0.25), ("imports", 3.0), ("rendezvous", 1.0), ("store", 0.5), ("step", 2.0),
    ]  # fmt: skip


def test_an_item_that_comes_twice_is_added_up(clock: Clock) -> None:
    watch = Stopwatch(clock=clock)
    watch.begin()
    for item in ("store", "model", "store"):
        clock.later(1)
        watch.mark(item)
    assert watch.end() == {"imports": 0.0, "store": 2.0, "model": 1.0}


def test_what_came_before_belongs_to_the_first_start_of_a_process_alone(clock: Clock) -> None:
    watch = Stopwatch({"python": 0.25}, clock)
    watch.begin()
    watch.end()
    clock.later(1000)  # of training
    watch.begin()
    clock.later(1)
    watch.mark("rendezvous")
    assert watch.end() == {"rendezvous": 1.0}


def test_a_start_that_was_broken_off_leaves_nothing_to_the_next(clock: Clock) -> None:
    watch = Stopwatch(clock=clock)
    watch.begin()
    clock.later(5)
    watch.mark("rendezvous")
    clock.later(5)
    watch.begin()
    clock.later(1)
    watch.mark("rendezvous")
    assert watch.end() == {"rendezvous": 1.0}


def test_a_forked_process_does_not_count_the_life_of_the_other(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch({"python": 0.25}, clock)
    monkeypatch.setattr(os, "getpid", lambda: 0)
    clock.later(1000)
    watch.begin()
    clock.later(1)
    watch.mark("rendezvous")
    assert watch.end() == {"rendezvous": 1.0}


def test_nothing_is_counted_outside_a_start(clock: Clock) -> None:
    watch = Stopwatch(clock=clock)
    watch.mark("store")
    assert watch.end() == {}
    watch.begin()
    first = watch.end()
    watch.mark("store")
    assert watch.end() == first == {"imports": 0.0}


@pytest.mark.parametrize(
    ("launched", "age", "expected"),
    [
        ("90.0", 4.0, {"launch": 6.0, "python": 4.0}),
        ("95.99", 4.005, {"launch": 0.005, "python": 4.005}),
        ("96.004", 4.01, {"launch": 0.0, "python": 4.01}),  # the age is known to a hundredth only
        ("98.0", 4.0, {"python": 4.0}),  # by another machine's clock, or set by somebody who is not the launcher
        ("200.0", 4.0, {"python": 4.0}),
        ("90.0", None, {"python": 10.0}),
        ("200.0", None, {}),
        (None, 4.0, {"python": 4.0}),
        ("soon", 4.0, {"python": 4.0}),
        ("nan", 4.0, {"python": 4.0}),
        (None, None, {}),
    ],
)
def test_the_life_before_the_first_line_is_what_can_be_known_of_it(
    launched: str | None, age: float | None, expected: dict[str, float]
) -> None:
    assert before_now(launched, age, 100.0) == pytest.approx(expected)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the age is read from /proc")
def test_a_process_is_at_least_as_old_as_what_it_has_imported() -> None:
    lower = time.monotonic() - IMPORTED
    age = process_age()
    assert age is not None
    assert lower - startup.RESOLUTION <= age < 24 * 3600


@pytest.fixture
def _as_before() -> Iterator[None]:
    yield
    gc.enable()
    gc.unfreeze()


@pytest.mark.usefixtures("_as_before")
def test_no_garbage_is_searched_for_while_importing() -> None:
    gc.enable()
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    gc.disable()
    with importing():
        pass
    assert not gc.isenabled()


def opened_by_a_reader(pipe: Path) -> int:
    """The writing end of a pipe, as soon as somebody reads from it."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            handle = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody yet
            time.sleep(0.01)
            continue
        os.set_blocking(handle, True)
        return handle
    raise AssertionError(f"nobody reads {pipe}")


def test_the_newest_checkpoint_alone_is_read_ahead(tmp_path: Path) -> None:
    """A pipe is read by nobody else, and who opens one without a writer waits for ever."""
    for name in ("step_00000009", "step_99999999", "step_100000000"):
        (tmp_path / name).mkdir()
        os.mkfifo(tmp_path / name / "model.safetensors")
    thread = read_ahead(tmp_path)
    with os.fdopen(opened_by_a_reader(tmp_path / "step_100000000" / "model.safetensors"), "wb") as file:
        file.write(bytes(10_000_000))
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_where_there_is_no_checkpoint_nothing_is_read_ahead(tmp_path: Path) -> None:
    (tmp_path / "step_00000001").write_text("no folder")
    for folder in (tmp_path, tmp_path / "absent"):
        thread = read_ahead(folder)
        thread.join(PATIENCE)
        assert not thread.is_alive()
