"""The logs of a run: its incarnations in their order, of the rank that was asked for, and followed across restarts."""

import os
from pathlib import Path

import pytest

from agl_core.config import LogsConfig, StageConfig, TrainConfig
from agl_core.errors import UserError
from agl_core.files import write_json
from jobs import logs as module
from jobs.history import History
from jobs.logs import Joined, follow, logs
from jobs.runs import Run
from jobs.settings import to_yaml
from tests.jobs import fake_slurm


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run with two stages on a cluster whose queue is empty."""
    fake_slurm.install(tmp_path / "slurm", monkeypatch)
    run = Run(tmp_path / "runs" / "first")
    run.jobs.mkdir(parents=True)
    stages = {"a": StageConfig(), "b": StageConfig(start="a/last")}
    run.config_file.write_text(to_yaml(TrainConfig(run="first", recipe="demo", stages=stages, until="train")))
    return run


def asked(run: Run, **more: object) -> LogsConfig:
    return LogsConfig(run="first", runs=str(run.path.parent), **more)  # type: ignore[arg-type]


def rank_log(run: Run, start: str, rank: int, text: str, time: float | None = None) -> Path:
    path = run.jobs / start / f"rank{rank}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if time is not None:
        os.utime(path, (time, time))
    return path


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_incarnations_are_joined_in_the_order_in_which_they_began(run: Run, capsys) -> None:
    history = History(run.history)
    for restart, attempt, why in ((0, 0, ""), (0, 1, "preempted"), (1, 0, "")):
        history.begin("b", "17", restart, attempt)
        rank_log(run, f"b.17/{restart}.{attempt}", 0, f"{restart}.{attempt}\n")
        rank_log(run, f"b.17/{restart}.{attempt}", 1, "of rank 1\n")
        history.end("b", "17", restart, attempt, end="crashed" if not why else "interrupted", why=why, deed="again")
    history.begin("a", "9")  # later, though its name and id come first
    rank_log(run, "a.9/0.0", 0, "submitit INFO (2026) - Starting\nlast\nunfinished")
    logs(asked(run))
    shown = lines(capsys)
    assert [line for line in shown if not line.startswith("==>")] == ["0.0", "0.1", "1.0", "last", "unfinished"]
    headers = [line for line in shown if line.startswith("==>")]
    assert len(headers) == 4
    assert headers[1].startswith("==> b, job 17, restart 0, attempt 1, on ")
    assert headers[1].endswith(": interrupted (preempted, then: again) <==")
    assert headers[3].endswith(": no end yet <==")


def test_another_rank_or_one_stage_can_be_asked_for(run: Run, capsys) -> None:
    rank_log(run, "a.17/0.0", 0, "a0\n", 100.0)
    rank_log(run, "a.17/0.0", 1, "a1\n", 100.0)
    rank_log(run, "b.18/0.0", 0, "b0\n", 200.0)
    logs(asked(run, rank=1))
    assert lines(capsys)[1:] == ["a1"]
    logs(asked(run, stage="b"))
    assert lines(capsys)[1:] == ["b0"]
    logs(asked(run))
    assert [line for line in lines(capsys) if "==>" not in line] == ["a0", "b0"]


def test_the_conductors_own_log_stands_in_where_there_was_no_rank(run: Run, capsys) -> None:
    history = History(run.history)
    (run.jobs / "17_0_log.out").write_text("submitit INFO x\nout\n")
    (run.jobs / "17_0_log.err").write_text("Traceback\n")
    (run.jobs / "18_0_log.err").write_text("of a job whose ranks have logs\n")
    (run.jobs / "17_submitted.pkl").touch()
    write_json(run.submitted, {"a": "17", "b": "18"})
    history.begin("b", "18")
    rank_log(run, "b.18/0.0", 0, "rank\n")
    logs(asked(run, stage="b"))
    assert lines(capsys)[1:] == ["rank"]
    logs(asked(run, stage="a"))
    header, *rest = lines(capsys)
    assert "a, the process that starts the ranks" in header
    assert rest == ["out", "Traceback"]


def test_a_start_without_a_log_is_told_though_others_have_theirs(run: Run, capsys) -> None:
    history = History(run.history)
    history.begin("a", "17")
    rank_log(run, "a.17/0.0", 0, "one\n")
    history.begin("a", "17", restart=1)
    history.end("a", "17", restart=1, end="crashed", why="", deed="requeue")
    logs(asked(run))
    assert lines(capsys)[-1] == "(this rank has left no log: the jobs/17_0_log.err of the run tells more)"


def local_logs(run: Run, folder: str, time: float, out: str, err: str = "", rank: int = 0) -> None:
    path = run.jobs / folder
    path.mkdir(exist_ok=True)
    for name, text in (("400_submitted.pkl", ""), (f"400_{rank}_log.out", out), (f"400_{rank}_log.err", err)):
        (path / name).write_text(text)
        os.utime(path / name, (time, time))


def test_logs_of_processes_on_this_machine_belong_to_the_start_before_them(run: Run, capsys) -> None:
    history = History(run.history)
    history.begin("a", "pid 1")
    history.end("a", "pid 1", end="interrupted", deed="leave")
    began = history.entries()[0]["time"]
    local_logs(run, "a.1", began + 0.5, "out\n", "submitit WARNING (x) - Bypassing\nerr\n")
    logs(asked(run))
    header, *rest = lines(capsys)
    assert "a, pid 1, on" in header
    assert header.endswith(": interrupted (then: leave) <==")
    assert rest == ["out", "err"]


def test_logs_without_a_history_are_shown_too(run: Run, capsys) -> None:
    local_logs(run, "a.2", 200.0, "second\n")
    local_logs(run, "a.1", 100.0, "first\n")
    logs(asked(run))
    assert [line for line in lines(capsys) if "==>" not in line] == ["first", "second"]


def test_of_a_run_in_a_terminal_it_says_so(run: Run, capsys) -> None:
    history = History(run.history)
    history.begin("a", "pid 1")
    logs(asked(run))
    header, told = lines(capsys)
    assert "a, pid 1" in header
    assert told == "(its output went to the terminal that it was started from)"


def test_a_run_that_has_printed_nothing_says_so(run: Run, capsys) -> None:
    logs(asked(run))
    assert lines(capsys)[0].startswith("nothing was printed yet: python launch.py status first")


REFUSED = [
    ({"stage": "c"}, "run first has no stage or job 'c': choose one of a, b"),
    ({"rank": 4}, "rank 4 of run first has printed nothing: there are ranks 0 to 1"),
    ({"rank": -1}, "rank -1 of run first"),
]


@pytest.mark.parametrize(("more", "words"), REFUSED)
def test_what_is_not_there_is_refused_with_what_is(run: Run, more: dict[str, object], words: str) -> None:
    rank_log(run, "a.17/0.0", 0, "")
    rank_log(run, "a.17/0.0", 1, "")
    with pytest.raises(UserError) as refusal:
        logs(asked(run, **more))
    assert str(refusal.value).startswith(words)


def test_a_single_rank_is_told_as_one(run: Run) -> None:
    rank_log(run, "a.17/0.0", 0, "")
    with pytest.raises(UserError, match="there is rank 0 only"):
        logs(asked(run, rank=3))


def test_following_goes_on_across_a_restart_until_the_jobs_have_ended(run: Run) -> None:
    shown: list[str] = []
    history = History(run.history)
    history.begin("a", "17")
    first = rank_log(run, "a.17/0.0", 0, "one\nhalf")
    joined = Joined(run, 0, say=shown.append)
    joined.show()

    def finish_line() -> None:
        first.write_text("one\nhalf a line\n")

    def restart() -> None:
        history.end("a", "17", end="interrupted", why="preempted", deed="requeue")
        history.begin("a", "17", restart=1)  # its ranks are not there yet

    def two() -> None:
        rank_log(run, "a.17/1.0", 0, "two\n")

    def last() -> None:
        rank_log(run, "a.17/1.0", 0, "two\nthree\n")

    deeds, times = [finish_line, restart, two, last], iter(range(0, 1000, 10))

    def sleep(seconds: float) -> None:
        deeds.pop(0)()

    follow(joined, lambda: bool(deeds), sleep, lambda: float(next(times)))
    assert [line for line in shown if "==>" not in line] == ["one", "half a line", "two", "three"]
    assert sum("==>" in line for line in shown) == 2


def test_slurm_is_not_asked_at_every_look(run: Run) -> None:
    looks, questions = [], []
    times = iter(range(1000))

    def goes_on() -> bool:
        questions.append(len(looks))
        return len(questions) < 3

    follow(Joined(run, 0, say=lambda line: None), goes_on, looks.append, lambda: float(next(times)))
    assert len(looks) >= (len(questions) - 1) * module.ASK / 2


def test_following_a_run_that_has_ended_shows_it_and_ends(run: Run, capsys) -> None:
    history = History(run.history)
    history.begin("a", "17")
    history.end("a", "17", end="crashed", deed="give up")
    rank_log(run, "a.17/0.0", 0, "one\nunfinished")
    logs(asked(run, follow=True))
    assert lines(capsys)[1:] == ["one", "unfinished"]


def test_ctrl_c_ends_following(run: Run, monkeypatch) -> None:
    write_json(run.submitted, {"a": "17"})
    slurm = run.path.parent.parent / "slurm"
    (slurm / "queue").write_text("17|RUNNING|None|1:00:00|2026-11-22T18:12:00|n0|x\n")

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        follow(Joined(run, 0), lambda: module.active(run, ""), sleep=interrupt)
