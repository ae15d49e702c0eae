"""The file of events: several writers, torn lines, full disks, and what of it is whose."""

import errno
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from agl_core.reporting import events as events_module
from agl_core.reporting.events import (
    CANCEL,
    JOB_KINDS,
    LAUNCH,
    LEAVE,
    SUBMIT,
    Appender,
    EventLog,
    JobLog,
    count_interruptions,
    read_all,
    read_events,
    seconds_spent,
    trained,
)
from agl_core.reporting.startup import Stopwatch
from agl_core.reporting.tail import Tail
from jobs.history import MOST_TEXT, History, read_history
from jobs.lock import remember
from jobs.runs import Run
from tests.reporting.histories import long_story


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "events.jsonl"


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


class Full:
    """A disk that takes so many bytes of each line, or refuses it, until there is room again."""

    def __init__(self, patch: pytest.MonkeyPatch, takes: int | None) -> None:
        self.takes = takes
        real = Path.open
        disk = self

        class File:
            def __init__(self, file: Any) -> None:
                self._file = file

            def __getattr__(self, name: str) -> Any:
                return getattr(self._file, name)

            def write(self, line: bytes) -> int:
                if disk.takes is None:
                    return int(self._file.write(line))
                if disk.takes == 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return int(self._file.write(line[: disk.takes]))

        def open_(path: Path, *how: Any, **more: Any) -> Any:
            file = real(path, *how, **more)
            return File(file) if how == ("ab+",) else file

        patch.setattr(Path, "open", open_)

    def room(self) -> None:
        self.takes = None


def test_what_jobs_do_is_not_the_trainer_s(path: Path) -> None:
    log, jobs = EventLog(path, "a", 1), JobLog(path)
    jobs.write(SUBMIT, "a", 5.0, id="17")
    jobs.write(LAUNCH, "a", 6.0, id="17", restart=0, attempt=0, host="here", step=0, reached=0)
    log.write("start", step=0)
    log.write("step", step=1)
    jobs.write(LEAVE, "a", 9.0, id="17", restart=0, attempt=0, step=1, end="done", why="", deed="done", text="")
    jobs.write(CANCEL, "", 9.5, ids="17")
    assert [event["kind"] for event in read_all(path)] == ["submit", "launch", "start", "step", "leave", "cancel"]
    assert [event["kind"] for event in read_events(path)] == ["start", "step"]
    assert all("generation" not in event for event in read_all(path) if event["kind"] in JOB_KINDS)


def test_what_jobs_do_changes_no_count_of_the_trainer_s(tmp_path: Path) -> None:
    """The interval between checkpoints follows these counts."""
    story = long_story(60, 12)
    whole = story.write(tmp_path / "whole.jsonl")
    story.events = [event for event in story.events if event["kind"] not in JOB_KINDS]
    bare = story.write(tmp_path / "bare.jsonl")
    assert count_interruptions(whole) == count_interruptions(bare) != (0, 0.0)
    assert seconds_spent(whole) == seconds_spent(bare)
    assert read_events(whole) == read_events(bare)


def test_a_line_that_another_could_not_finish_costs_only_itself(path: Path) -> None:
    log, jobs = EventLog(path, "a", 1), JobLog(path)
    log.write("start", step=0)
    with path.open("a") as file:
        file.write('{"time": 7.0, "kind": "launch", "sta')
    log.write("step", step=1)
    with path.open("a") as file:
        file.write('{"time"')
    jobs.write(CANCEL, "", 9.5, ids="17")
    assert len(lines(path)) == 5
    assert [event["kind"] for event in read_all(path)] == ["start", "step", "cancel"]


@pytest.mark.parametrize("takes", [0, 20])
def test_a_full_disk_keeps_events_in_memory_until_there_is_room(
    path: Path, monkeypatch: pytest.MonkeyPatch, takes: int
) -> None:
    disk = Full(monkeypatch, takes)
    jobs, log = JobLog(path), EventLog(path, "a", 1)
    for number in range(3):
        jobs.write(SUBMIT, "a", float(number), id=str(number))
        with pytest.raises(OSError, match=r"No space|whole line"):
            log.write("step", step=number)
    disk.room()
    jobs.write(SUBMIT, "a", 3.0, id="3")
    log.write("step", step=3)
    found = read_all(path)
    assert [event["id"] for event in found if event["kind"] == SUBMIT] == ["0", "1", "2", "3"]
    assert [event["step"] for event in found if event["kind"] == "step"] == [0, 1, 2, 3]


def test_what_was_refused_is_tried_once_more_when_the_file_is_closed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Full(monkeypatch, 0)
    log = EventLog(path, "a", 1)
    with pytest.raises(OSError, match=r"No space|whole line"):
        log.write("finish", step=3)
    disk.room()
    log.close()
    assert [event["kind"] for event in read_all(path)] == ["finish"]


def test_no_job_fails_because_of_its_events(tmp_path: Path) -> None:
    (tmp_path / "in the way").write_text("")
    JobLog(tmp_path / "in the way" / "events.jsonl").write(SUBMIT, "a", 1.0, id="1")
    History(tmp_path / "jobs" / "history.jsonl", tmp_path / "in the way" / "events.jsonl").begin("a", "1")
    assert len(read_history(tmp_path / "jobs" / "history.jsonl")) == 1


def _append(path: Path, number: int) -> None:
    file = Appender(path)
    for count in range(200):
        file.append(json.dumps({"time": 1.0, "kind": "step", "stage": str(number), "step": count, "x": "y" * 300}))


def test_writers_in_several_processes_do_not_tear_each_other_s_lines(path: Path) -> None:
    path.parent.mkdir()
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_append, args=(path, number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found = read_all(path)
    for number in range(3):
        assert [event["step"] for event in found if event["stage"] == str(number)] == list(range(200))


@pytest.mark.parametrize(
    "line",
    ["{}", "[1]", "7", '{"time": 1, "kind": "start"}', '{"time": "now", "kind": "start", "stage": "a"}',
     '{"time": NaN, "kind": "start", "stage": "a"}', '{"time": true, "kind": "start", "stage": "a"}',
     '{"time": 1, "kind": 5, "stage": "a"}', "[" * 100_000, "\\ud800", "\x00\xff"],
)  # fmt: skip
def test_what_is_no_event_is_left_out(path: Path, line: str) -> None:
    path.parent.mkdir()
    path.write_text(line + '\n{"time": 2, "kind": "start", "stage": "a", "step": 0}\n', encoding="latin-1")
    assert [event["time"] for event in read_all(path)] == [2]
    assert read_events(path)[-1]["time"] == 2
    assert count_interruptions(path)[0] == 1


def test_there_need_be_no_file(path: Path) -> None:
    assert (read_all(path), read_events(path), trained(path)) == ([], [], False)


def test_a_submission_commits_a_run_to_nothing(path: Path) -> None:
    run = Run(path.parent)
    JobLog(path).write(SUBMIT, "a", 1.0, id="17")
    History(run.history, run.events).begin("a", "17")
    assert not run.begun()
    EventLog(path, "a", 1).write("start", step=0)
    assert run.begun()


def test_the_history_tells_the_events_what_it_knows_of_time(path: Path) -> None:
    history = History(path.parent / "jobs" / "history.jsonl", path)
    history.begin("a", "17", 2, 1, 40, 55)
    text = "rank 0 failed\n" + "traceback " * 500
    history.end("a", "17", 2, 1, 60, end="crashed", why="warned", deed="again", text=text, traceback="Traceback")
    history.end("a", "17", end="crashed", text="x" * 5000)
    history.cancel(["17", "18"])
    launch, leave, long, cancel = read_all(path)
    assert {key: launch[key] for key in ("kind", "stage", "id", "restart", "attempt", "step", "reached")} == {
        "kind": "launch", "stage": "a", "id": "17", "restart": 2, "attempt": 1, "step": 40, "reached": 55
    }  # fmt: skip
    assert launch["host"]
    assert {key: leave[key] for key in leave if key not in ("time", "id")} == {
        "kind": "leave", "stage": "a", "restart": 2, "attempt": 1, "step": 60, "end": "crashed", "why": "warned",
        "deed": "again", "text": "rank 0 failed",
    }  # fmt: skip
    assert len(long["text"]) == MOST_TEXT
    assert (cancel["kind"], cancel["stage"], cancel["ids"]) == ("cancel", "", "17,18")
    entries = history.entries()
    assert [entry["time"] for entry in entries] == [event["time"] for event in read_all(path)]
    assert entries[1]["text"] == text
    assert "reached" not in entries[0]


def test_every_submission_is_told_once(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.jobs.mkdir()
    remember(run, {"a": "1"})
    remember(run, {"a": "1", "b": "2"})
    remember(run, {"b": "7"})
    run.submitted.write_text("{")
    remember(run, {"b": "8"})
    told = [(event["stage"], event["id"]) for event in read_all(run.events)]
    assert told == [("a", "1"), ("b", "2"), ("b", "7"), ("b", "8")]


def test_a_start_knows_when_its_process_was_launched() -> None:
    times = iter([100.0, 103.0, 105.0, 106.0, 109.0, 120.0])
    watch = Stopwatch({"python": 2.0}, lambda: next(times))
    assert watch.launched(1000.0) is None
    watch.begin()  # at 103
    watch.mark("device")  # at 105
    assert watch.launched(1000.0) == 1000.0 - (2.0 + 3.0 + 2.0) - 1.0
    watch.end()
    assert watch.launched(1000.0) is None


def test_the_file_is_not_kept_open_between_the_events_of_jobs(path: Path) -> None:
    log = JobLog(path)
    log.write(SUBMIT, "a", 1.0, id="1")
    path.rename(path.with_name("away"))
    log.write(SUBMIT, "a", 2.0, id="2")
    assert [event["id"] for event in read_all(path)] == ["2"]
    assert events_module.read_all(path.with_name("away"))[0]["id"] == "1"


DAMAGED: list[dict[str, Any]] = [
    {"time": 10**400}, {"time": "x"}, {"time": True}, {"time": None}, {"kind": ["start"]}, {"stage": 5},
    {"generation": "x"}, {"generation": None}, {"generation": 1.5}, {"generation": True}, {"step": "x"},
    {"step": None}, {"step": True}, {"step": 2.5},
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED, ids=str)
def test_a_line_whose_values_are_of_an_impossible_kind_is_left_out_like_a_torn_one(
    path: Path, damage: dict[str, Any]
) -> None:
    whole = {"time": 1.0, "kind": "start", "stage": "a", "generation": 1, "step": 0}
    path.parent.mkdir()
    path.write_text("".join(json.dumps(event) + "\n" for event in (whole, whole | damage, whole | {"step": 3})))
    for reader in (read_events, read_all, lambda place: Tail(place).read()[0]):
        assert [event["step"] for event in reader(path)] == [0, 3]
    assert (seconds_spent(path), count_interruptions(path)) == ({"a": 0.0}, (2, 0.0))


def test_a_start_without_its_step_is_left_out(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(
        '{"time": 1, "kind": "start", "stage": "a"}\n{"time": 1, "kind": "launch", "stage": "a", "step": null}\n'
    )
    assert read_events(path) == []
    assert [event["kind"] for event in read_all(path)] == [LAUNCH]
