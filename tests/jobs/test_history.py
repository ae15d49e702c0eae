"""The history of a run's jobs: what is written, and what is read when not all of it got to the disk."""

from pathlib import Path

import pytest

from jobs.history import History, incarnations, last_end, read_history, restarts


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "jobs" / "history.jsonl")


def kinds(history: History) -> list[str]:
    return [entry["kind"] for entry in history.entries()]


def test_what_is_written_is_read_back_in_order(history: History) -> None:
    history.begin("train", "17", restart=1, attempt=2, step=120)
    history.end("train", "17", 1, 2, 240, end="interrupted", why="preempted", deed="requeue", text="t", traceback="b")
    history.cancel(["17", "18"])
    begin, end, cancel = history.entries()
    assert (begin["kind"], begin["job"], begin["id"], begin["step"]) == ("begin", "train", "17", 120)
    assert begin["pid"] > 0
    assert {name: end[name] for name in ("end", "why", "deed", "text", "traceback", "step")} == {
        "end": "interrupted", "why": "preempted", "deed": "requeue", "text": "t", "traceback": "b", "step": 240,
    }  # fmt: skip
    assert cancel["id"] == "17,18"
    assert begin["time"] <= end["time"] <= cancel["time"]


def test_a_run_without_a_history_has_no_entries(history: History, tmp_path: Path) -> None:
    assert history.entries() == []
    (tmp_path / "file").touch()
    assert read_history(tmp_path / "file" / "history.jsonl") == []


def test_a_torn_line_costs_only_itself(history: History, tmp_path: Path) -> None:
    history.begin("train", "17")
    path = tmp_path / "jobs" / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert history.entries() == []
    history.begin("train", "17", restart=1)
    history.end("train", "17", restart=1, end="done")
    assert kinds(history) == ["begin", "end"]
    with path.open("ab") as file:
        file.write(b'[1]\n{"kind": "begin"}\n\xff\x00\nnull\n{"time": 1, "kind": "end", "id"')
    assert kinds(history) == ["begin", "end"]


def test_what_the_disk_refuses_is_written_with_the_next_entry(history: History, tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("in the way")
    history.begin("train", "17")
    (tmp_path / "jobs").unlink()
    history.end("train", "17", end="done")
    assert kinds(history) == ["begin", "end"]


def entry(kind: str, job: str, id: str, restart: int = 0, attempt: int = 0, **values: object) -> dict:
    return {"time": 0.0, "kind": kind, "job": job, "id": id, "restart": restart, "attempt": attempt, **values}


def test_each_start_has_its_own_end_though_ids_come_again() -> None:
    entries = [
        entry("begin", "a", "17"),  # killed with everything
        entry("begin", "a", "17", restart=1),
        entry("end", "a", "17", restart=1, end="interrupted"),
        entry("begin", "a", "pid 5"),
        entry("begin", "b", "pid 5"),
        entry("end", "a", "pid 5", end="crashed"),
        entry("begin", "a", "pid 5"),  # the same process id, another day
        entry("end", "a", "pid 5", end="done"),
    ]
    ends = [(each.begin["restart"], each.end and each.end["end"]) for each in incarnations(entries, "a")]
    assert ends == [(0, None), (1, "interrupted"), (0, "crashed"), (0, "done")]
    assert [each.end for each in incarnations(entries, "b")] == [None]
    assert len(incarnations(entries)) == 5


def test_an_end_whose_begin_was_lost_still_counts() -> None:
    (only,) = incarnations([entry("end", "a", "17", end="crashed")])
    assert only.end is not None
    first, second = incarnations(
        [entry("begin", "a", "17"), entry("end", "a", "17", end="done"), entry("end", "a", "17", end="crashed")]
    )
    assert (first.end or {})["end"] == "done"
    assert (second.end or {})["end"] == "crashed"


def test_restarts_are_the_starts_that_did_not_do_the_job_but_the_last() -> None:
    entries = [entry("begin", "a", "17", restart=n) for n in range(3)]
    assert restarts(entries, "a") == 2
    assert restarts(entries, "b") == 0
    done = [entry("begin", "a", "1"), entry("end", "a", "1", end="done"), entry("begin", "a", "2")]
    assert restarts(done, "a") == 0


def test_the_last_end_is_that_of_the_job_even_if_it_runs_again() -> None:
    entries = [entry("begin", "a", "17"), entry("end", "a", "17", end="crashed"), entry("end", "b", "18", end="done")]
    assert (last_end([*entries, entry("begin", "a", "17", attempt=1)], "a") or {})["end"] == "crashed"
    assert last_end(entries, "c") is None
