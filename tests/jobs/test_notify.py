"""Who is told what: what is derived from the files of a run, how the command is run, and when."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agl_core.config import RestartConfig, StageConfig, TrainConfig
from agl_core.config.train import NotifyConfig
from agl_core.errors import UserError
from agl_core.files import write_json, write_text
from agl_core.validate import validate
from jobs import allocation, conductor, executors, notify, telling
from jobs.allocation import Allocation
from jobs.cluster import ClusterConfig, load_cluster
from jobs.conductor import Conductor
from jobs.executors import describe, execute
from jobs.failure import JobError, JobInterruptedError
from jobs.history import History
from jobs.mail import check_notify, mail_options
from jobs.many import EnsembleFile
from jobs.notices import Course, as_json, from_history, from_validation, one_line
from jobs.notify import Stall, environment, following
from jobs.pipeline import EVALUATE, PREDICT, REPORT, STAGE, JobSpec, settle
from jobs.runs import Run
from jobs.settings import load_train_config, to_yaml, train_config
from jobs.snapshot import ROOT
from jobs.telling import MOST_LOG, Outcome, Teller, hand_over
from tests.jobs.fakes import FakeSlurm
from tests.jobs.test_why import PREEMPTED_AT, line

EVERYTHING = ["start", "stage", "interruption", "stall", "give-up", "score", "end"]
LOCAL = load_cluster("local")
DEBUG = replace(load_cluster("debug"), post_mortem=False)
SLURM = replace(load_cluster("slurm"), processes=2, gpus_per_node=0)
COMMAND = (
    "import os, sys; os.write(os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT), sys.stdin.buffer.read())"
)


@pytest.fixture
def heard(tmp_path: Path) -> Path:
    return tmp_path / "heard.jsonl"


@pytest.fixture
def config(heard: Path) -> TrainConfig:
    told = NotifyConfig(command=[sys.executable, "-c", COMMAND, str(heard)], events=EVERYTHING, score=0.5)
    return TrainConfig(
        stages={"pretrain": StageConfig()}, restart=RestartConfig(crashes=3, inside=5, fruitless=8), notify=told
    )


@pytest.fixture
def run(tmp_path: Path, config: TrainConfig) -> Run:
    return made(Run(tmp_path / "runs" / "first"), config)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "LOOK", 0.05)


def made(run: Run, config: TrainConfig, **values: Any) -> Run:
    """The run with this configuration, or with other values of `notify`."""
    run.path.mkdir(parents=True, exist_ok=True)
    write_text(run.config_file, to_yaml(replace(config, notify=replace(config.notify, **values))))
    write_text(run.cluster_file, to_yaml(SLURM))
    return run


def told(heard: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in heard.read_text().splitlines()] if heard.exists() else []


def events(heard: Path) -> list[str]:
    return [each["event"] for each in told(heard)]


def until(holds: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := holds()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def validated(run: Run, score: float, step: int = 40, **further: Any) -> None:
    write_event(run, {"kind": "validation", "step": step, "score": score, **further})


def write_event(run: Run, event: dict[str, Any]) -> None:
    with run.events.open("a") as file:
        file.write(json.dumps({"time": time.time(), "stage": "pretrain", "generation": 1, **event}) + "\n")


def finished(run: Run, job: str, **values: Any) -> None:
    run.stage_record(job).parent.mkdir(exist_ok=True)
    write_json(run.stage_record(job), {"finished": True, **values})


# ---- what the files say


def history(run: Run, *attempts: dict[str, Any]) -> History:
    """A history of starts of the stage, one after the other; an empty one was killed."""
    found = History(run.history)
    for number, end in enumerate(attempts):
        found.begin("pretrain", "17", 0, number, 10 * number)
        if end:
            found.end("pretrain", "17", 0, number, 10 * number + 5, **end)
    return found


def test_every_start_and_every_end_is_told_once_with_what_is_done_about_it(run: Run) -> None:
    known = history(
        run,
        {"end": "interrupted", "why": "preempted", "deed": "requeue", "text": "interrupted by TERM; step 5 is saved"},
        {"end": "crashed", "why": "warned", "deed": "again", "text": "rank 0 failed: boom"},
        {},
        {"end": "interrupted", "why": "cancelled", "deed": "leave", "text": "interrupted by TERM"},
        {"end": "crashed", "why": "", "deed": "give up", "text": "it has crashed 4 times", "traceback": "Trace\nback"},
    )
    found = from_history(known.entries(), Course("first", ["pretrain"], "report"))
    assert [each.event for each in found] == [
        "start", "interruption", "start", "interruption", "start", "interruption", "start", "interruption", "start",
        "give-up",
    ]  # fmt: skip
    assert [each.restarts for each in found] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    ends = [each for each in found if each.event != "start"]
    assert [each.step for each in ends] == [5, 15, None, 35, 45]
    assert "it goes back to the queue and continues by itself" in ends[0].text
    assert "(crashed): it is started again at once; rank 0 failed: boom" in ends[1].text
    assert (ends[2].why, ends[2].time) == ("killed", known.entries()[5]["time"])
    assert "python launch.py resume first continues it" in ends[3].text
    assert "is not started again: it has crashed 4 times" in ends[4].text
    assert ends[4].traceback == "Trace\nback"
    assert len({each.key for each in found}) == len(found)
    assert from_history(known.entries(), Course("first", ["pretrain"], "report")) == found


def test_an_end_that_is_found_out_later_has_the_key_that_it_had_when_it_was_guessed(run: Run) -> None:
    known = history(run, {}, {"end": "done", "deed": "done"})
    course = Course("first", ["pretrain"], "report")
    guessed = [each for each in from_history(known.entries(), course) if each.event == "interruption"]
    known.end("pretrain", "17", 0, 0, 5, end="interrupted", why="preempted", deed="requeue")
    known_now = [each for each in from_history(known.entries(), course) if each.event == "interruption"]
    assert [each.key for each in guessed] == [each.key for each in known_now]


def test_the_end_of_a_stage_and_that_of_the_run_have_their_scores(run: Run) -> None:
    known = history(run, {"end": "done", "deed": "done"})
    known.begin("report", "18")
    known.end("report", "18", end="done", deed="done")
    course = Course("first", ["pretrain"], "report", True, {"pretrain": 0.75}, {"pretrain": 500}, 0.8125)
    stage, end = (each for each in from_history(known.entries(), course) if each.event != "start")
    assert (stage.event, stage.score, stage.step) == ("stage", 0.75, 500)
    assert stage.text == "run first: stage pretrain has ended after 500 steps, best validated score 0.7500"
    assert (end.event, end.score) == ("end", 0.8125)
    assert end.text == "run first is finished, score 0.8125 of its predictions"
    unfinished = from_history(known.entries(), replace(course, finished=False))
    assert [each.event for each in unfinished if each.event != "start"] == ["stage"]
    assert "of its last stage's validations" in from_history(known.entries(), replace(course, official=None))[-1].text


@pytest.mark.parametrize(
    "strange",
    [{"score": "0.9"}, {"score": True}, {"score": None}, {"score": 0.9, "time": "now"}, {"score": 0.9, "kind": "step"}],
)
def test_what_is_no_score_reaches_nothing(strange: dict[str, Any]) -> None:
    assert from_validation({"time": 1.0, "kind": "validation", **strange}, 0.5, "first") is None


def test_the_average_of_the_weights_may_reach_the_score_too() -> None:
    event = {"time": 1.0, "kind": "validation", "stage": "a", "step": 7, "score": 0.4, "ema_score": 0.6}
    found = from_validation(event, 0.5, "first")
    assert found is not None
    assert (found.score, found.step) == (0.6, 7)
    assert from_validation(event, 0.7, "first") is None
    later = from_validation({**event, "stage": "b", "score": 0.9}, 0.5, "first")
    assert later is not None
    assert later.key == found.key


def test_a_text_from_elsewhere_stays_data(run: Run) -> None:
    known = history(
        run, {"end": "crashed", "deed": "give up", "text": "\x1b[31mred\nSubject: $(rm -rf /) " + "x" * 9999,
              "traceback": "\x07line\nline" + "y" * 9999},
    )  # fmt: skip
    content = as_json(from_history(known.entries(), Course("first", ["pretrain"], "a"))[-1], "first", "/runs", "node")
    assert len(content["text"]) < 1000
    assert len(content["traceback"]) <= 4000
    assert not any(char in content["text"] for char in "\x1b\n\r")
    assert "�[31mred Subject: $(rm -rf /)" in content["text"]
    assert one_line("a\u202eb\x00c") == "a�b�c"


# ---- the command


def test_the_command_gets_one_json_object_on_its_standard_input_and_no_shell_reads_it(
    run: Run, heard: Path, tmp_path: Path
) -> None:
    known = history(run, {"end": "crashed", "deed": "give up", "text": f"`touch {tmp_path}/hit`; $(touch hit) 'x\""})
    with following(run, "pretrain", STAGE):
        pass
    assert told(heard) == []  # what was before anybody wanted to know of it is told nobody
    known.begin("pretrain", "18", 0, 0, 7)
    known.end(
        "pretrain", "18", 0, 0, 9, end="crashed", deed="give up", text=f"`touch {tmp_path}/hit`", traceback="a\nb"
    )
    with following(run, "pretrain", STAGE):
        pass
    start, end = told(heard)
    assert list(end) == [
        "format", "event", "run", "path", "job", "time", "host", "text", "step", "score", "why", "deed", "restarts",
        "traceback",
    ]  # fmt: skip
    assert end == end | {
        "format": "geopose-notification-1", "event": "give-up", "run": "first", "path": str(run.path),
        "job": "pretrain", "step": 9, "score": None, "deed": "give up", "restarts": 1, "traceback": "a\nb",
    }  # fmt: skip
    assert (start["event"], start["step"]) == ("start", 7)
    assert not (tmp_path / "hit").exists()


def given(command: list[str], timeout: float = 30.0, stop: threading.Event | None = None) -> Any:
    return hand_over(command, "{}\n", timeout, dict(os.environ), stop or threading.Event())


def test_a_command_that_fails_is_missing_or_no_program_says_so(tmp_path: Path) -> None:
    assert given(["sh", "-c", "echo it is so; echo bad >&2; exit 3"]).problem == "ended with exit code 3"
    assert given(["sh", "-c", "echo it is so; echo bad >&2; exit 3"]).output == "it is so\nbad\n"
    for command in ("absent", str(tmp_path / "absent"), str(tmp_path)):
        assert given([command]).problem == "could not be started (it is not found, or is no program)"
    (tmp_path / "strange").write_bytes(b"\x7fELF nonsense")
    (tmp_path / "strange").chmod(0o755)
    assert "exit code" in given([str(tmp_path / "strange")]).problem
    assert given(["true"]).problem == ""
    assert given(["sh", "-c", "exec <&-; sleep 0.1"]).problem == ""  # who does not read has been told too


def test_a_command_does_not_hear_that_its_job_goes_back_to_the_queue() -> None:
    outcome = given(["sh", "-c", "kill -TERM $$; sleep 0.1; echo still here"])
    assert (outcome.problem, outcome.output) == ("", "still here\n")
    assert given(["sh", "-c", "kill -KILL $$"]).problem == "was killed by SIGKILL"


def test_a_command_that_is_hit_before_it_could_be_made_deaf_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hit = f'[ -e {tmp_path}/hit ] || {{ touch {tmp_path}/hit; kill -TERM $$; }}; exec "$@"'
    monkeypatch.setattr(telling, "DEAF", ("sh", "-c", hit, "sh"))
    assert given(["cat"]) == Outcome(output="{}\n")


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    deaf = f"(trap '' TERM; echo $BASHPID >> {pid}; exec sleep 600)"
    body = f"trap '' TERM; {deaf} & setsid sleep 601 & echo $! >> {pid}; wait"
    outcome = given(["bash", "-c", body], 0.7)
    assert outcome.problem == "was killed after 0.7 seconds (notify.timeout)"
    assert not outcome.broken
    children = [int(word) for word in pid.read_text().split()]
    assert len(children) == 2
    assert until(lambda: not any(alive(child) for child in children))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_what_a_command_says_is_kept_as_far_as_it_fits(run: Run) -> None:
    teller = Teller(run.jobs, ["sh", "-c", "yes 'no end' | head -c 3000000; printf '\\033[2Jend\\n'"], 30, os.environ)
    teller.since()
    for number in range(100):
        if number % 99:
            teller._write_down("stage", f"key {number}", replace(OUTCOME, output="z" * 3900), 0.0)
        else:
            teller.tell("stage", f"stage.{number}", {})
    size = teller.log.stat().st_size
    assert MOST_LOG / 4 < size < MOST_LOG + 10000
    assert "\x1b" not in teller.log.read_text()
    assert teller.log.read_text().endswith("�[2Jend\n")


OUTCOME = given(["true"])


def test_a_failure_is_said_once_and_every_one_is_in_the_log(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    teller = Teller(run.jobs, ["false"], 30, os.environ)
    teller.since()
    for number in range(3):
        teller.tell("stage", f"stage.{number}", {})
    assert capsys.readouterr().err == (
        f"warning: notify.command, told of stage, ended with exit code 1; the run goes on, and {teller.log} has what "
        "it said\n"
    )
    assert teller.log.read_text().count("ended with exit code 1") == 3


def test_neither_the_log_nor_the_marks_show_what_the_command_is_called_with_or_the_environment(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", "hidden-in-the-environment")
    teller = Teller(run.jobs, ["sh", "-c", "echo refused: $0; exit 1", "https://hook/secret-token"], 30, os.environ)
    teller.since()
    teller.tell("stage", "stage.a", {})
    text = "".join(path.read_text() for path in run.jobs.rglob("*") if path.is_file())
    assert "refused: <word 4 of notify.command>" in text
    assert "secret-token" not in text
    assert "hidden-in-the-environment" not in text


def test_an_event_is_handed_over_by_one_of_many_that_know_of_it(run: Run, heard: Path, config: TrainConfig) -> None:
    tellers = [Teller(run.jobs, config.notify.command, 30, os.environ) for _ in range(8)]
    assert len({teller.since() for teller in tellers}) == 1
    threads = [threading.Thread(target=teller.tell, args=("stage", "stage.a/b", {"n": 1})) for teller in tellers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    Teller(run.jobs, config.notify.command, 30, os.environ).tell("stage", "stage.a/b", {"n": 2})
    Teller(run.jobs, config.notify.command, 30, os.environ).tell("stage", "stage.a-b", {"n": 3})  # another one
    assert told(heard) == [{"n": 1}, {"n": 3}]


def test_what_was_broken_off_is_handed_over_once_more_when_nobody_can_be_at_it(
    run: Run, heard: Path, config: TrainConfig
) -> None:
    def teller(command: list[str]) -> Teller:
        return Teller(run.jobs, command, 30, os.environ)

    def is_old() -> None:
        for mark in (run.jobs / "notified").iterdir():
            os.utime(mark, (1, 1))

    killed = ["sh", "-c", "kill -KILL $$"]  # as Slurm does to what is left of a job
    first = teller(killed)
    first.since()
    first.tell("stage", "stage.a", {})
    teller(config.notify.command).tell("stage", "stage.a", {"n": 1})
    assert told(heard) == []  # it may still be told
    is_old()
    first.tell("stage", "stage.a", {})  # which is killed again
    is_old()
    teller(config.notify.command).tell("stage", "stage.a", {"n": 2})
    assert told(heard) == []  # twice is enough
    teller(killed).tell("stage", "stage.b", {})
    is_old()
    for number in range(3):
        teller(config.notify.command).tell("stage", "stage.b", {"n": number})
        is_old()
    teller(config.notify.command).tell("stage", "stage.c", {"n": 7})
    is_old()
    teller(config.notify.command).tell("stage", "stage.c", {"n": 8})
    assert told(heard) == [{"n": 0}, {"n": 7}]


def test_where_no_file_can_be_created_a_process_remembers_what_it_has_told(
    run: Run, heard: Path, config: TrainConfig
) -> None:
    run.jobs.write_text("no folder")
    teller = Teller(run.jobs, config.notify.command, 30, os.environ)
    assert teller.since() > 0
    for _ in range(2):
        teller.tell("give-up", "give-up.a", {"n": 1})
    assert told(heard) == [{"n": 1}]


def test_the_command_finds_the_users_python_path(run: Run) -> None:
    outside = {"PYTHONPATH": f"{run.code}/0123:/mine", "PYTHONSAFEPATH": "1", "HOME": "/me"}
    assert environment(run, outside) == {"PYTHONPATH": "/mine", "HOME": "/me"}
    assert environment(run, {"PYTHONPATH": f"{run.code}/0123", "PYTHONSAFEPATH": "1"}) == {}
    assert environment(run, {"PYTHONPATH": "/mine", "PYTHONSAFEPATH": "1"}) == {
        "PYTHONPATH": "/mine", "PYTHONSAFEPATH": "1",
    }  # fmt: skip


# ---- stalls


def test_a_stall_is_told_once_and_again_after_it_came_on() -> None:
    stall = Stall(minutes=1.0, overslept=50)
    seconds = {0: "a", 30: "a", 59: "a", 60: "a", 61: "a", 90: "a", 100: "b", 130: "b", 159: "b", 161: "b", 200: "b"}
    assert [now for now, sign in seconds.items() if stall.look(sign, float(now))] == [60, 161]


def test_who_was_stopped_himself_waits_anew() -> None:
    stall = Stall(minutes=1.0, overslept=50)
    assert not stall.look("a", 0.0)
    assert not stall.look("a", 500.0)
    assert not stall.look("a", 540.0)
    assert stall.look("a", 561.0)
    assert not stall.look("a", 900.0)


# ---- on this machine


class Ranks:
    """In place of `run_ranks`: does what it is told with the folder of the run, while it is watched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, run: Run, *deeds: Callable[[], object]) -> None:
        self.deeds, self.run = list(deeds), run
        monkeypatch.setattr(executors, "run_ranks", self)

    def __call__(self, *_: Any, **__: Any) -> bool:
        self.deeds.pop(0)()
        return False


def raises(error: BaseException) -> Callable[[], None]:
    def deed() -> None:
        raise error

    return deed


TRAIN = (STAGE, "pretrain")


def do(run: Run, cluster: ClusterConfig = LOCAL) -> None:
    execute([JobSpec(run, "pretrain", STAGE)], cluster)


def test_a_stage_that_stalls_twice_is_told_twice_and_of_its_end_too(
    run: Run, config: TrainConfig, heard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(run, config, stall_minutes=0.3 / 60)

    def stalls() -> None:
        assert until(lambda: events(heard) == ["start", "stall"])
        time.sleep(0.7)
        assert events(heard) == ["start", "stall"]
        write_event(run, {"kind": "step", "step": 7})
        assert until(lambda: events(heard) == ["start", "stall", "stall"])
        finished(run, "pretrain", steps=9, score=0.25)

    Ranks(monkeypatch, run, stalls)
    do(run)
    assert events(heard) == ["start", "stall", "stall", "stage"]
    assert [each["step"] for each in told(heard)] == [0, None, 7, 9]
    assert "has shown no sign of life for 0.005 minutes since step 7" in told(heard)[2]["text"]


def test_the_score_is_told_once_however_often_and_in_whatever_life_it_is_reached(
    run: Run, heard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reaches() -> None:
        validated(run, 0.4)
        validated(run, 0.55, step=80)
        validated(run, 0.6)
        assert until(lambda: "score" in events(heard))
        raise JobError("rank 1 was killed by SIGKILL")

    Ranks(monkeypatch, run, reaches, lambda: validated(run, 0.7), lambda: finished(run, "pretrain"))
    with pytest.raises(JobError):
        do(run)
    for _ in range(2):
        do(run)
    assert events(heard).count("score") == 1
    (score,) = (each for each in told(heard) if each["event"] == "score")
    assert (score["score"], score["step"]) == (0.55, 80)
    assert events(heard) == ["start", "score", "give-up", "start", "stage", "start"]


ENDS: list[tuple[BaseException, str, str]] = [
    (UserError("the store is gone"), "give-up", "is not started again: the store is gone"),
    (JobError("rank 1 was killed"), "give-up", "is not started again: rank 1 was killed"),
    (
        JobInterruptedError("interrupted by TERM"),
        "interruption",
        "it stays ended until `python launch.py resume first`",
    ),
    (KeyboardInterrupt(), "interruption", "interrupted by the keyboard"),
]


@pytest.mark.parametrize(("error", "event", "words"), ENDS, ids=[type(case[0]).__name__ for case in ENDS])
def test_an_end_that_is_not_a_good_one_is_told_before_the_command_ends(
    run: Run, heard: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, event: str, words: str
) -> None:
    Ranks(monkeypatch, run, raises(error))
    with pytest.raises(type(error)):
        do(run)
    assert events(heard) == ["start", event]
    assert words in told(heard)[-1]["text"]


def test_a_defect_in_this_process_is_told_with_its_traceback(
    run: Run, heard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "carry_out", lambda *_, **__: raises(RuntimeError("the sky is falling"))())
    with pytest.raises(RuntimeError):
        do(run, DEBUG)
    assert events(heard) == ["start", "give-up"]
    assert "RuntimeError: the sky is falling" in told(heard)[-1]["traceback"]


def test_a_launcher_that_was_killed_is_told_of_by_the_next_one(
    run: Run, heard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with following(run, "pretrain", STAGE):
        History(run.history).begin("pretrain", "pid 1", step=3)
    Ranks(monkeypatch, run, lambda: None)
    do(run)
    assert events(heard) == ["start", "interruption", "start", "stage"]
    assert "was killed with all its processes" in told(heard)[1]["text"]


def test_only_what_is_wanted_is_told_and_without_a_command_nothing_is_done(
    run: Run, config: TrainConfig, heard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(run, config, events=["give-up"])
    Ranks(monkeypatch, run, lambda: None, raises(JobError("boom")), lambda: None)
    do(run)
    with pytest.raises(JobError):
        do(run)
    assert events(heard) == ["give-up"]
    made(run, config, command=[])
    monkeypatch.setattr(notify, "Follower", None)
    do(run)
    assert events(heard) == ["give-up"]


@pytest.mark.parametrize("command", [["sleep", "600"], ["/nowhere/tell"], ["false"]], ids=" ".join)
def test_a_command_that_does_not_do_harms_nothing(
    run: Run, config: TrainConfig, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    made(run, config, command=command, timeout=0.2)
    Ranks(monkeypatch, run, lambda: validated(run, 0.9))
    do(run)
    assert (run.jobs / "notify.log").read_text().splitlines()
    assert [entry["kind"] for entry in History(run.history).entries()] == ["begin", "end"]
    assert not [thread for thread in threading.enumerate() if thread.name == "notify"]


def test_what_goes_wrong_while_it_is_watched_is_said_once_and_ends_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notify, "from_history", lambda *_: raises(ValueError("strange"))())
    with following(run, "pretrain", STAGE):
        history(run, {})
        time.sleep(0.3)
    assert capsys.readouterr().err == "warning: notify: nobody can be told (ValueError: strange); the run goes on\n"


def test_the_run_ends_with_its_last_job_and_an_ensemble_asks_its_first_member(
    run: Run, config: TrainConfig, heard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    (data / "test_truth").mkdir(parents=True)
    (data / "geopose_test.csv").touch()
    made(run, replace(config, data=str(data)))
    both = Run(run.path.with_name("both"))
    both.path.mkdir()
    write_text(both.ensemble_file, to_yaml(EnsembleFile(["first"], [str(run.predictions)], str(data))))

    def works(run_dir: Path, name: str, *_: Any, **__: Any) -> bool:
        finished(Run(run_dir), name, score=0.25)
        if name == EVALUATE:
            write_json(Run(run_dir).score_file, {"score": 0.75})
        return False

    monkeypatch.setattr(executors, "carry_out", works)
    jobs = [JobSpec(run, "pretrain", STAGE), *(JobSpec(run, name, name) for name in (PREDICT, EVALUATE, REPORT))]
    execute([*jobs, *(JobSpec(both, name, name) for name in ("ensemble", EVALUATE, REPORT))], DEBUG)
    ended = [(each["event"], each["run"], each["score"]) for each in told(heard) if each["event"] != "start"]
    assert ended == [("stage", "first", 0.25), ("end", "first", 0.75), ("end", "both", 0.75)]


def test_a_real_run_in_one_process_and_then_in_two_is_told_of_from_its_start_to_its_end(
    tiny_store: Path, tmp_path: Path, heard: Path
) -> None:
    (tmp_path / "tell.py").write_text(f"import helper; {COMMAND}")
    (tmp_path / "helper.py").touch()
    words = [
        "recipe=demo", "encoder=tu-resnet10t", "folds=4", "fold_by=city", "threads=1", "run=first", "until=train",
        "stages.train.length=60 steps", "stages.train.crop=64", "stages.train.batch=4",
        "stages.train.micro_batch=2", "encoder_weights=none", "stages.train.validate_every=30 steps",
        "checkpoint.every=3 steps", f"store={tiny_store}", "notify.score=-1e9",
        f"notify.command=[{sys.executable}, tell.py, {heard}]", f"notify.events=[{', '.join(EVERYTHING)}]",
    ]  # fmt: skip
    run = Run(tmp_path / "runs" / "first")
    two = ["cluster=local", "cluster.processes=2", "cluster.gpus_per_node=0"]
    for interrupted in (True, False):
        command = [sys.executable, str(ROOT / "launch.py"), *words, *([] if interrupted else two)]
        with (tmp_path / "said").open("w") as said:
            process = subprocess.Popen(
                command, cwd=tmp_path, stdout=said, stderr=said, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
        if interrupted:
            assert until(lambda: list(run.checkpoints("train").glob("step*")), 120), (tmp_path / "said").read_text()
            process.send_signal(signal.SIGTERM)
        assert process.wait(120) == (75 if interrupted else 0), (tmp_path / "said").read_text()
    assert events(heard) == ["start", "interruption", "start", "score", "stage", "end"]
    assert [each["job"] for each in told(heard)] == ["train"] * 6
    assert told(heard)[2]["step"] == told(heard)[1]["step"]
    assert (told(heard)[3]["step"], told(heard)[4]["step"]) == (30, 60)
    assert told(heard)[4]["score"] == told(heard)[5]["score"]
    assert run.config().notify.command[1] == str(tmp_path / "tell.py")
    lines = (run.jobs / "notify.log").read_text().splitlines()
    assert [line.split()[3] for line in lines] == events(heard)
    assert all(": told (" in line for line in lines)


# ---- under Slurm


WELL: dict[str, Any] = {"code": 0}
TERM = {"code": 75, "text": "interrupted by TERM; step 7 is saved", "signal": "TERM"}
DEFECT = {"code": 1, "text": "RuntimeError: out of memory", "traceback": "Traceback\nRuntimeError: out of memory\n"}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    slurm = FakeSlurm(tmp_path / "slurm", monkeypatch)
    for module in (allocation, conductor):
        monkeypatch.setattr(module, "ASK_AGAIN", 0.01)
    monkeypatch.setattr(conductor, "PATIENCE", 0.3)
    return slurm


def conducts(run: Run, restart: int) -> None:
    Conductor(run, "pretrain", STAGE, Allocation("17", restart), SLURM).conduct()


def test_a_conductor_tells_of_what_it_answers(run: Run, heard: Path, slurm: FakeSlurm) -> None:
    slurm.says(line(), line(preempted=PREEMPTED_AT))
    slurm.attempt(1, [DEFECT, DEFECT])
    slurm.attempt(75, [TERM, TERM])
    finished_line = 'mkdir -p $RUN/stages; echo \'{"finished": true, "steps": 40}\' > $RUN/stages/pretrain.json'
    slurm.attempt(0, [WELL, WELL], before=finished_line)
    with pytest.raises(SystemExit):
        conducts(run, 0)
    conducts(run, 1)
    assert events(heard) == ["start", "interruption", "start", "interruption", "start", "stage"]
    assert [each["restarts"] for each in told(heard)] == [0, 0, 1, 1, 2, 2]
    assert "(crashed): it is started again at once; rank 0 failed: RuntimeError: out of" in told(heard)[1]["text"]
    assert "(preempted): it goes back to the queue and continues by itself" in told(heard)[3]["text"]


def test_a_conductor_that_gives_up_says_why(run: Run, heard: Path, slurm: FakeSlurm) -> None:
    slurm.says(line())
    slurm.attempt(1, [DEFECT, DEFECT])
    with pytest.raises(SystemExit):  # the last crash but one sends it back
        conducts(run, 0)
    with pytest.raises(JobError):
        conducts(run, 1)
    assert events(heard) == ["start", "interruption"] * 2 + ["start", "give-up"]
    assert "it has crashed 3 times in a row" in told(heard)[-1]["text"]
    assert told(heard)[-1]["traceback"] == DEFECT["traceback"]


def test_a_conductor_that_was_killed_is_told_of_by_the_next(run: Run, heard: Path, slurm: FakeSlurm) -> None:
    slurm.says(line())
    with following(run, "pretrain", STAGE):
        History(run.history).begin("pretrain", "17", 0, 0, 3)
    slurm.attempt(0, [WELL, WELL])
    conducts(run, 1)
    assert events(heard) == ["start", "interruption", "start", "stage"]


# ---- mail


MAILS = [
    # events, kind, whether it is the last job, type of mail
    (EVERYTHING, STAGE, False, "BEGIN,REQUEUE,FAIL,INVALID_DEPEND,END"),
    (EVERYTHING, REPORT, False, "BEGIN,REQUEUE,FAIL,INVALID_DEPEND"),
    (EVERYTHING, REPORT, True, "BEGIN,REQUEUE,FAIL,INVALID_DEPEND,END"),
    (["end"], STAGE, False, None),
    (["end", "stage"], STAGE, True, "END"),
    (["give-up"], REPORT, True, "FAIL,INVALID_DEPEND"),
]


@pytest.mark.parametrize(("wanted", "kind", "last", "types"), MAILS)
def test_slurm_writes_of_the_same_events(wanted: list[str], kind: str, last: bool, types: str | None) -> None:
    found = mail_options(NotifyConfig(mail="me@site", events=wanted), kind, last)
    assert found == ({} if types is None else {"mail-user": "me@site", "mail-type": types})
    assert mail_options(NotifyConfig(events=wanted), kind, last) == {}


def test_the_scripts_have_the_mail(run: Run) -> None:
    jobs = [JobSpec(run, "pretrain", STAGE), JobSpec(run, "report", REPORT)]
    shown = describe(jobs, SLURM, 1, 0, NotifyConfig(mail="me@site", events=["stage", "end"]))
    assert shown.count("#SBATCH --mail-user=me@site\n") == 2
    assert shown.count("#SBATCH --mail-type=END\n") == 2
    assert "--mail" not in describe(jobs, SLURM, 1, 0)


def mailing(mail: str = "me@site", **values: Any) -> TrainConfig:
    return TrainConfig(notify=NotifyConfig(mail=mail, **values))


def test_mail_needs_slurm_and_nobody_else_who_asks_for_it() -> None:
    check_notify(mailing(), SLURM)
    check_notify(mailing(""), LOCAL)
    with pytest.raises(UserError, match=r"cluster debug is none of Slurm's: give notify.mail= without"):
        check_notify(mailing(), LOCAL)
    for name in ("mail-type", "mail_user"):
        with pytest.raises(UserError, match=rf"has sbatch\.{name} already: remove one of the two"):
            check_notify(mailing(), replace(SLURM, sbatch={name: "x"}))
        check_notify(mailing(""), replace(SLURM, sbatch={name: "x"}))


def test_a_command_that_is_not_here_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    check_notify(TrainConfig(notify=NotifyConfig(command=["no-such-command"])), SLURM)
    assert "no-such-command is not found here, or is no program; the machines that do" in capsys.readouterr().out
    check_notify(TrainConfig(notify=NotifyConfig(command=["sh", "tell.sh"])), SLURM)
    assert capsys.readouterr().out == ""


# ---- settings


def test_a_command_is_given_as_a_list_on_the_command_line_and_in_recipes(tmp_path: Path) -> None:
    recipe = tmp_path / "own.yaml"
    recipe.write_text("notify:\n  command: [python, tell.py]\n  events: [stage, end]\nstages: {a: {length: 1 step}}\n")
    assert train_config({"recipe": str(recipe)}).notify == NotifyConfig(["python", "tell.py"], ["stage", "end"])
    typed = train_config({"recipe": str(recipe), "notify.command": '[curl, -d, "a b, c"]', "notify.events": "[start]"})
    assert typed.notify == NotifyConfig(["curl", "-d", "a b, c"], ["start"])
    write_text(tmp_path / "config.yaml", to_yaml(typed))
    assert load_train_config(tmp_path / "config.yaml").notify == typed.notify


def test_words_that_name_files_are_found_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tell.py", "python"):
        (tmp_path / name).touch()
    for given, settled in (
        (["python", "tell.py", "other"], ["python", f"{tmp_path}/tell.py", "other"]),
        (["./tell.py"], [f"{tmp_path}/tell.py"]),
    ):
        config = TrainConfig(store="s", notify=NotifyConfig(command=given))
        assert settle(config, DEBUG, Run(tmp_path / "runs" / "a")).notify.command == settled


REFUSED = [
    (
        {"events": ["give_up"]},
        "notify.events has 'give_up', which is no event: did you mean give-up? there are start, ",
    ),
    ({"events": ["everything"]}, "which is no event: there are start, stage, interruption, stall, give-up, score, end"),
    ({"events": "stage"}, "notify.events is 'stage': must be a list of texts"),
    ({"command": "tell.py"}, "notify.command is 'tell.py': must be a list of texts, such as ['a', 'b']"),
    ({"command": ["tell", 5]}, "must be a list of texts"),
    ({"command": [""]}, "its first word must be a program"),
    ({"command": ["tell", "a\0b"]}, "no word has a NUL"),
    ({"command": ["tell"], "events": []}, "notify.events is empty, so that nobody would be told"),
    ({"score": 0.9, "events": ["stage"]}, "notify.score is 0.9, but notify.events has no score: add it there"),
    ({"mail": "me site"}, "notify.mail is 'me site': give an address such as me@example.org"),
    ({"mail": "me@site\n--wrap=x"}, "give an address"),
    ({"mail": "--wrap=x"}, "give an address"),
    ({"mail": "me@site", "events": ["score", "stall"]}, "of notify.events (score, stall) Slurm knows nothing"),
    ({"timeout": 0.0}, "notify.timeout is 0.0: must be greater than 0"),
    ({"stall_minutes": 0.0}, "notify.stall_minutes is 0.0: must be greater than 0"),
    ({"score": float("nan")}, "notify.score is nan: give a finite number"),
]


@pytest.mark.parametrize(("values", "words"), REFUSED)
def test_what_makes_no_sense_is_refused_in_one_sentence(values: dict[str, Any], words: str) -> None:
    config = TrainConfig(stages={"a": StageConfig()}, notify=NotifyConfig(**values))
    with pytest.raises(UserError) as refusal:
        validate(config)
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    "values", [{}, {"score": 0.9}, {"command": ["tell"]}, {"mail": "me@site,you@site"}, {"mail": "me"}, {"events": []}]
)
def test_what_makes_sense_is_taken(values: dict[str, Any]) -> None:
    validate(TrainConfig(stages={"a": StageConfig()}, notify=NotifyConfig(**values)))


@pytest.mark.parametrize("place", [(threading.Thread, "start"), (notify, "Teller")], ids=["start", "make"])
def test_a_machine_that_has_no_room_for_a_thread_does_the_job_all_the_same(
    run: Run,
    config: TrainConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: tuple[Any, str],
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    made(run, config)
    monkeypatch.setattr(*place, refuse)
    done = []
    with following(run, "pretrain", STAGE):
        done.append("job")
    assert done == ["job"]
    assert capsys.readouterr().err == (
        "warning: notify: nobody can be told (RuntimeError: can't start new thread); the run goes on\n"
    )
    with pytest.raises(JobError), following(run, "pretrain", STAGE):
        raise JobError("its own")
