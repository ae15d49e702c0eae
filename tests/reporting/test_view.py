"""What training shows, and that it never holds training up."""

import io
import itertools
import json
import os
import pty
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from agl_core.config import StageConfig, TrainConfig
from agl_core.reporting.live import view as view_module
from agl_core.reporting.live.tracker import Tracker
from agl_core.reporting.live.view import Drawer, LiveView
from agl_core.reporting.progress import pause
from agl_core.reporting.tail import Tail
from tests.reporting.histories import Story
from tests.reporting.terminal import Terminal

RECIPE = TrainConfig(run="first", stages={"train": StageConfig(length="1000 steps", batch=8)})


def story() -> Story:
    told = Story()
    told.launch()
    told.start(30.0)
    told.train(99)
    return told


def show(view: LiveView, told: Story) -> None:
    with view:
        for event in told.events:
            view.event(event)
            if event["kind"] == "step":
                view.advance(event["step"])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, which only a test moves."""
    now = [0.0]

    class Time:
        time = staticmethod(lambda: 1_750_000_000.0 + now[0])
        monotonic = staticmethod(lambda: now[0])

    monkeypatch.setattr(view_module, "time", Time)
    return now


def test_a_log_holds_plain_lines_at_growing_intervals(clock: list[float]) -> None:
    log, told = io.StringIO(), story()
    with LiveView("train", 1000, config=RECIPE, stream=log) as view:
        for event in told.events:
            view.event(event)
        at = []
        for step in range(101, 1000):
            clock[0] += 10.0
            before = log.getvalue()
            view.advance(step)
            if log.getvalue() != before:
                at.append(clock[0])
    assert at[:4] == [20.0, 40.0, 60.0, 80.0]
    pauses = [later - earlier for earlier, later in itertools.pairwise(at)]
    assert pauses == sorted(pauses)
    assert at[-1] - at[-2] == 60.0
    lines = log.getvalue().splitlines()
    assert len(lines) == len(at) + (at[-1] < clock[0])  # and one at the end
    assert lines[0].startswith("train 102/1000  epoch 10/100  loss 2.622 (agl 1.682, direction ")
    assert lines[-1].startswith("train 999/1000 ")
    assert lines[0].endswith("about 15 min left")
    assert "lr " in lines[0]
    assert "crops/s" in lines[0]
    assert "data 0%" in lines[0]
    assert not set(log.getvalue()) & {"\x1b", "\r"}


def test_pauses_grow_from_a_quarter_of_a_minute_to_a_minute() -> None:
    assert [pause(seconds) for seconds in (0.0, 150.0, 300.0, 600.0, 1e6)] == [15.0, 15.0, 30.0, 60.0, 60.0]


def test_the_other_processes_are_silent(capfd: pytest.CaptureFixture[str]) -> None:
    view = LiveView("train", 1000, config=RECIPE, shown=False)
    show(view, story())
    view.note("x")
    assert capfd.readouterr() == ("", "")


class Refusing(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_log_on_a_full_disk_ends_nothing(clock: list[float]) -> None:
    view = LiveView("train", 1000, config=RECIPE, stream=Refusing())
    clock[0] = 100.0
    show(view, story())
    view.note("x")
    closed = io.StringIO()
    view = LiveView("train", 1000, config=RECIPE, stream=closed)
    closed.close()
    show(view, story())


def test_what_cannot_be_shown_ends_nothing() -> None:
    log = io.StringIO()
    with LiveView("train", 1000, config=RECIPE, stream=log) as view:
        view.event({"kind": "step"})
        view.event({"time": "x", "kind": 5, "stage": []})
        view.advance(5)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Both ends of a terminal."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(view_module, "OFTEN", 0.01)
    master, slave = pty.openpty()
    stream = os.fdopen(slave, "w")
    yield master, stream
    for end in (master, slave):
        try:
            os.close(end)
        except OSError:
            continue


def test_on_a_terminal_the_view_is_drawn_with_what_was_before(terminal: Any, tmp_path: Path) -> None:
    master, stream = terminal
    told = story()
    told.save()
    told.leave("crashed", "", "again", "rank 1 was killed")
    told.launch(attempt=1)
    history = told.write(tmp_path / "events.jsonl")
    before = len(told.events)
    told.start(30.0)
    told.train(9)
    with LiveView("train", 1000, 100, RECIPE, history, stream) as view:
        with history.open("a") as file:  # what comes now is told, and must not count twice
            file.writelines(json.dumps(event) + "\n" for event in told.events[before:])
        for event in told.events[before:]:
            view.event(event)
        view.advance(111)
        view.note("a note")
    text = Terminal(80).feed(os.read(master, 1 << 20).decode()).text
    assert text.splitlines()[0] == "a note"
    assert "step 111 of 1000" in text
    assert "restarts  1 (1 crashed); no step done again" in text
    assert text.count("learning rate") == 1


def test_a_terminal_that_takes_nothing_holds_nobody_up(
    terminal: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_module, "PATIENCE", 0.1)
    _, stream = terminal
    stuck, free = threading.Event(), threading.Event()

    class Stuck:
        def isatty(self) -> bool:
            return True

        def fileno(self) -> int:
            return int(stream.fileno())

        def write(self, text: str) -> int:
            stuck.set()
            free.wait()
            return len(text)

        def flush(self) -> None:
            pass

    view = LiveView("train", 1000, config=RECIPE, stream=Stuck())  # type: ignore[arg-type]
    with view:
        view.event(story().events[0])
        assert stuck.wait(60)
        for event in story().events:
            view.event(event)
            view.note("x")
            view.advance(5)
    free.set()


def test_a_terminal_that_is_closed_ends_nothing(terminal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    master, stream = terminal
    fallen: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", fallen.append)
    with LiveView("train", 1000, config=RECIPE, stream=stream) as view:
        assert view._drawer is not None
        thread = view._drawer._thread
        os.close(master)
        for event in story().events:
            view.event(event)
            view.note("x")
        thread.join(60)
        assert not thread.is_alive()  # it has noticed
        view.advance(5)
    view.note("x")
    assert fallen == []


def test_the_events_of_a_growing_file_come_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = Tail(path)
    assert tail.read() == ([], False)
    one, two = '{"time": 1, "kind": "a", "stage": "s"}\n', '{"time": 2, "kind": "b", "stage": "s"}\n'
    path.write_text(one + two[:10])
    assert [event["kind"] for event in tail.read()[0]] == ["a"]
    assert tail.read() == ([], False)
    with path.open("a") as file:
        file.write(two[10:] + 'no\n[]\n{"time": "x", "kind": "c", "stage": "s"}\n{"time": 3, "kind": 5}\n' + one)
    assert [event["kind"] for event in tail.read()[0]] == ["b", "a"]
    path.unlink()
    assert tail.read() == ([], False)
    path.write_text(one)
    events, another = tail.read()
    assert (len(events), another) == (1, True)


def test_of_a_file_that_grows_only_the_beginning_is_read_if_that_is_asked_for(tmp_path: Path) -> None:
    path = story().write(tmp_path / "events.jsonl")
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    assert len(Tail(path).read(first)[0]) == 1
    assert len(Tail(path).read(first - 1)[0]) == 0


def test_where_nothing_can_be_drawn_plain_lines_come_instead(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(view_module, "can_draw", lambda stream: True)
    monkeypatch.setattr("agl_core.reporting.live.screen.can_draw", lambda stream: True)
    for place, name in ((threading.Thread, "start"), (view_module, "Drawer")):
        before = sys.stdout, sys.stderr
        monkeypatch.setattr(place, name, refuse)
        clock[0] = 0.0
        log = io.StringIO()
        with LiveView("train", 1000, config=RECIPE, stream=log) as view:
            for event in story().events:
                view.event(event)
            clock[0] = 20.0
            view.advance(101)
            assert (sys.stdout, sys.stderr) == before
        first, second = log.getvalue().splitlines()
        assert first.startswith("warning: the view cannot be drawn (RuntimeError: can't start new thread)")
        assert second.startswith("train 101/1000")


def test_a_history_that_cannot_be_looked_at_is_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def away(path: Path, **_: object) -> None:
        raise OSError(116, "Stale file handle")

    tracker = Tracker("first", RECIPE)
    monkeypatch.setattr(Path, "stat", away)
    assert Drawer(io.StringIO(), tracker, "train", tmp_path / "events.jsonl")._upto == 0
