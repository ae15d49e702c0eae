"""Where runs stand: judged from constructed folders, queues and times, and shown."""

import json
import os
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agl_core.config import StageConfig, StatusConfig, TrainConfig, WatchConfig
from agl_core.durable.lease import LeaseRecord
from agl_core.errors import UserError
from agl_core.files import write_json
from agl_core.reporting.live import snapshot as states
from agl_core.reporting.live.snapshot import LastEnd, take
from agl_core.reporting.report import Gallery
from agl_core.reporting.words import moment
from jobs.failure import JobError
from jobs.history import History
from jobs.lock import hold
from jobs.pace import reasons, seconds_left
from jobs.reports import read_report
from jobs.runs import Run
from jobs.scontrol import QueuedJob
from jobs.settings import to_yaml
from jobs.standing import JobStanding, assess, vanished
from jobs.status import standings, status, with_snapshot
from jobs.survey import Findings, Holder, find_run, read
from jobs.table import details, overview, restarts, span
from jobs.watch import Follower, watch
from tests.jobs import fake_slurm
from tests.reporting.histories import Story

NOW = 10_000.0
RUN = Run(Path("/runs/first"))
Entry = dict[str, Any]


def begin(
    job: str = "a", id: str = "17", time: float = 100.0, restart: int = 0, attempt: int = 0, **more: Any
) -> Entry:
    more = {"host": "n0", "pid": 1, "step": 0} | more
    return {"time": time, "kind": "begin", "job": job, "id": id, "restart": restart, "attempt": attempt, **more}


def end(how: str, why: str = "", deed: str = "", time: float = 200.0, **more: Any) -> Entry:
    told = {"end": how, "why": why, "deed": deed, "text": f"it was {how}", "traceback": ""}
    return {**begin(time=time), **told, "kind": "end", **more}


def findings(*entries: Entry, **more: Any) -> Findings:
    default: dict[str, Any] = {"submitted": {"a": "17", "b": "18"}, "submitted_at": 50.0}
    return Findings(run=RUN, stages=("a", "b"), entries=entries, host="login", **default | more)


def job(
    found: Findings, queue: dict[str, QueuedJob] | None = None, name: str = "a", ended: dict[str, str] | None = None
) -> JobStanding:
    run = assess(found, {} if queue is None else queue, ended or {}, NOW)
    return next(each for each in run.jobs if each.job == name)


RUNS = {"17": QueuedJob("17", "first-a", "RUNNING", time_left=3600.0, nodes="n0")}
WAITS = {"17": QueuedJob("17", "first-a", "PENDING", "BeginTime", 600.0, start="2026-11-23T18:17:00")}

STANDINGS = [
    # what happened, entries, queue, state, words of the detail
    ("it waits for the first time", [], WAITS, "waiting", ""),
    ("it was requeued", [begin(), end("interrupted", "preempted", "requeue")], WAITS, "waiting", "(preempted)"),
    ("its node died and it waits", [begin()], WAITS, "waiting", "after a requeue"),
    ("it has a node and no rank yet", [], RUNS, "running", "starting"),
    ("it runs", [begin()], RUNS, "running", ""),
    ("it runs again after a requeue", [begin(), end("interrupted"), begin(restart=1)], RUNS, "running", ""),
    ("its ranks end", [begin()], {"17": QueuedJob("17", "x", "COMPLETING")}, "ending", ""),
    ("it is suspended", [begin()], {"17": QueuedJob("17", "x", "SUSPENDED")}, "running", "suspended"),
    ("it is done", [begin(), end("done", deed="done")], {}, "done", ""),
    ("its conductor was killed", [begin()], {}, "lost", "killed with all its processes"),
    ("it was requeued and vanished", [begin(), end("crashed", "", "requeue")], {}, "lost", "went back to the queue"),
    ("it died between two attempts", [begin(), end("crashed", "", "again")], {}, "lost", ""),
    ("the user cancelled it", [begin(), end("interrupted", "cancelled", "leave")], {}, "cancelled", ""),
    ("scancel without time to say so", [begin(), {"time": 150.0, "kind": "cancel", "job": "", "id": "17,18"}], {},
     "cancelled", ""),
    ("cancelled once, and lost later", [begin(time=10.0), {"time": 20.0, "kind": "cancel", "job": "", "id": "17"},
                                        begin(time=60.0, restart=1)], {}, "lost", ""),
    ("it crashed again and again", [begin(), end("crashed", "", "give up")], {}, "gave up", ""),
    ("it was refused", [begin(), end("refused", "", "give up")], {}, "failed", "mended"),
    ("it crashed and was left", [begin(), end("crashed", "unknown", "leave")], {}, "failed", "unknown"),
    ("it was left after a warning", [begin(), end("interrupted", "unknown", "leave")], {}, "interrupted", "unknown"),
    ("another took over", [begin(), end("taken over", "", "leave")], {}, "interrupted", "another process"),
    ("it left the queue unseen", [], {}, "not started", "left the queue"),
    ("what is known is of an earlier submission", [begin(id="9", time=1.0), end("crashed", id="9", time=2.0)], {},
     "not started", "left the queue"),
]  # fmt: skip


@pytest.mark.parametrize(("entries", "queue", "state", "words"), [case[1:] for case in STANDINGS],
                         ids=[case[0] for case in STANDINGS])  # fmt: skip
def test_a_job_of_slurm_stands_where_history_and_queue_say(
    entries: list[Entry], queue: dict[str, QueuedJob], state: str, words: str
) -> None:
    found = job(findings(*entries), queue)
    assert found.state == state
    assert words in found.detail
    assert found.id == "17"


def test_what_is_finished_is_done_whatever_else_is_said() -> None:
    done = findings(begin(), end("crashed"), records={"a": {"finished": True, "steps": 300, "score": 0.5}})
    found = job(done, RUNS)
    assert (found.state, found.step, found.steps, found.score) == ("done", 300, 300, 0.5)


def test_when_slurm_does_not_answer_nothing_is_called_lost() -> None:
    run = assess(findings(begin()), None, {}, NOW)
    assert [each.state for each in run.jobs] == ["unknown", "unknown"]
    assert run.active
    ended = assess(findings(begin(), end("crashed", "", "give up")), None, {}, NOW)
    assert ended.jobs[0].state == "gave up"


def test_what_slurm_says_of_a_vanished_job_is_passed_on() -> None:
    assert vanished(assess(findings(begin()), {}, {}, NOW)) == ["17", "18"]
    lost = job(findings(begin()), {}, ended={"17": "NODE_FAIL"})
    assert (lost.state, lost.detail) == ("lost", "Slurm says NODE_FAIL")
    assert job(findings(begin()), {}, ended={"17": "CANCELLED by 1000"}).state == "cancelled"
    assert job(findings(), {}, ended={"17": "OUT_OF_MEMORY"}).detail == "Slurm says OUT_OF_MEMORY"


def test_a_requeued_job_with_its_id_used_again_tells_of_its_last_start_only() -> None:
    entries = [
        begin(), end("crashed", "", "give up"),
        begin(restart=1, time=300.0), end("interrupted", "preempted", "requeue", 400.0, restart=1),
    ]  # fmt: skip
    assert job(findings(*entries), WAITS).text == ""
    assert job(findings(*entries, begin(restart=2, time=500.0)), {}).text == ""


LOCAL: dict[str, Any] = {"submitted": {}, "submitted_at": 0.0}
HERE = Holder(5, "login")
LOCALS = [
    ("it runs", [begin(id="pid 5", host="login")], HERE, "running", "process 5 on login"),
    ("its launcher was killed", [begin(id="pid 5", host="login", time=NOW - 5)], None, "lost", "killed"),
    ("it may run on another machine", [begin(id="pid 5", host="far", time=NOW - 5)], None, "running", "on far"),
    ("it was killed on another machine", [begin(id="pid 5", host="far")], None, "lost", "killed"),
    ("Ctrl-C", [begin(id="pid 5"), end("interrupted", id="pid 5")], None, "interrupted", ""),
    ("the verb cancel", [begin(id="pid 5"), {"time": 150.0, "kind": "cancel", "job": "", "id": "pid 5"},
                         end("interrupted", id="pid 5")], None, "cancelled", ""),
    ("it crashed", [begin(id="pid 5"), end("crashed", "", "give up", id="pid 5")], None, "failed", ""),
    ("a new launcher has not come to it", [begin(id="pid 4"), end("crashed", "", "give up", id="pid 4")], HERE,
     "waiting", "turn"),
    ("it never began", [], None, "not started", ""),
    ("its launcher is about to begin it", [], HERE, "waiting", "turn"),
]  # fmt: skip


@pytest.mark.parametrize(("entries", "holder", "state", "words"), [case[1:] for case in LOCALS],
                         ids=[case[0] for case in LOCALS])  # fmt: skip
def test_a_job_of_this_machine_stands_where_history_and_lock_say(
    entries: list[Entry], holder: Holder | None, state: str, words: str
) -> None:
    found = job(findings(*entries, **LOCAL, holder=holder))
    assert found.state == state
    assert words in found.detail


def test_a_local_start_after_a_submission_counts() -> None:
    entries = [begin(time=60.0), end("crashed", "", "give up"), begin(id="pid 5", time=300.0, host="login")]
    assert job(findings(*entries, holder=HERE)).state == "running"


def event(kind: str, time: float, stage: str = "a", generation: int = 1, **more: Any) -> dict[str, Any]:
    return {"time": time, "kind": kind, "stage": stage, "generation": generation, **more}


STEPS = [
    event("start", 100.0, step=0, steps=100, epochs=10),
    *(event("step", 100.0 + 2 * n, step=n, epoch=n // 10) for n in range(1, 31)),
    event("validation", 165.0, step=30, epoch=3, score=0.25),
]


def test_step_epoch_score_and_time_left_come_from_the_events() -> None:
    found = job(findings(begin(), events=STEPS), RUNS)
    assert (found.step, found.steps, found.epoch, found.epochs, found.score) == (30, 100, 3, 10, 0.25)
    assert found.seconds_left == pytest.approx(140.0)
    assert found.limit_left == 3600.0
    assert found.last_sign == 165.0


def test_the_best_score_is_that_of_the_average_where_it_is_higher() -> None:
    validations = [event for event in STEPS if event["kind"] == "validation"]
    assert validations
    higher = {**validations[-1], "ema_score": 0.75}
    assert job(findings(begin(), events=[*STEPS, higher]), RUNS).score == 0.75
    lower = {**validations[-1], "ema_score": 0.125}
    assert job(findings(begin(), events=[*STEPS, lower]), RUNS).score == 0.25


def test_the_best_score_is_shown_and_not_the_newest() -> None:
    worse = event("validation", 170.0, step=31, epoch=3, score=0.125)
    assert job(findings(begin(), events=[*STEPS, worse]), RUNS).score == 0.25


def test_the_pause_between_two_starts_does_not_slow_the_rate() -> None:
    again = [
        event("start", 9000.0, generation=2, step=30, steps=100),
        event("step", 9010.0, generation=2, step=31),
        event("step", 9020.0, generation=2, step=41),
    ]
    assert seconds_left([*STEPS, *again], "a") == pytest.approx(59.0)
    assert seconds_left([*STEPS, *again[:2]], "a") == pytest.approx(138.0)  # one step has no rate: that of before
    assert seconds_left(STEPS[:2], "a") is None
    assert seconds_left([], "a") is None


def test_the_share_of_waiting_for_data_is_that_of_the_newest_steps_and_shown_for_one_run() -> None:
    events = [{**step, "data_wait": share} for step, share in zip(STEPS[1:], (0.9, 0.25), strict=False)]
    found = findings(begin(), events=(STEPS[0], *events))
    assert job(found, RUNS).data_wait == events[-1]["data_wait"]
    run = assess(found, RUNS, {}, NOW)
    assert [column.header for column in details(run, NOW).columns][-1] == "data"
    assert "data" not in [column.header for column in overview([run], NOW).columns]
    assert job(findings(begin()), RUNS).data_wait is None


ODD = [
    event("start", 100.0, step=0, steps=None),
    event("start", 100.0),
    event("step", 100.0),
    event("step", 100.0, step="x"),
    {"kind": "step", "stage": "a", "generation": 1, "step": 31},
    {"kind": "step", "stage": "a", "time": None, "step": 31},
    event("validation", 170.0, step=31, epoch=3, score="x"),
]


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_an_odd_event_hides_no_run(odd: dict[str, Any]) -> None:
    for events in ([odd], [odd, *STEPS], [*STEPS, odd]):
        assert job(findings(begin(), events=events), RUNS).state == "running"


def test_the_lease_is_a_sign_of_life_of_the_stage_that_runs() -> None:
    lease = LeaseRecord(1, "x", "", "n0", 1, 30, 100.0, 9990.0, None)
    found = findings(begin(), events=STEPS, lease=lease)
    assert job(found, RUNS).last_sign == 9990.0
    assert job(found, RUNS, "b").last_sign is None


def test_the_reasons_of_restarts_are_counted() -> None:
    entries = [begin(restart=n, attempt=m) for n, m in ((0, 0), (0, 1), (1, 0), (2, 0), (3, 0))]
    ends = [
        end("crashed", "warned", "again"), None, end("interrupted", "preempted", restart=1),
        end("interrupted", "preempted", restart=2), None,
    ]  # fmt: skip
    told = [part for pair in zip(entries, ends, strict=True) for part in pair if part is not None]
    found = job(findings(*told), RUNS)
    assert found.restarts == 4
    assert found.reasons == {"preempted": 2, "crashed": 1, "killed": 1}
    assert restarts(found) == "4 (2 preempted, 1 crashed, 1 killed)"
    assert reasons([]) == {}


def test_the_job_that_says_most_stands_for_the_run() -> None:
    assert assess(findings(begin()), RUNS, {}, NOW).stage == "a"
    both = {**WAITS, "18": QueuedJob("18", "x", "PENDING", "Dependency")}
    assert assess(findings(records={"a": {"finished": True}}), {"18": both["18"]}, {}, NOW).stage == "b"
    failed = assess(findings(begin(), end("crashed", "", "give up")), {}, {}, NOW)
    assert (failed.stage, failed.state, failed.active) == ("a", "gave up", False)
    done = assess(findings(records={"a": {"finished": True}, "b": {"finished": True, "score": 0.5}}), {}, {}, NOW)
    assert (done.stage, done.state, done.score) == ("b", "done", 0.5)
    assert assess(Findings(run=RUN), {}, {}, NOW).state == "not started"


def test_jobs_come_in_the_order_of_the_pipeline() -> None:
    submitted = dict.fromkeys(["report", "evaluate", "b", "predict", "a", "prepare"], "1")
    assert findings(submitted=submitted).jobs == ["prepare", "a", "b", "predict", "evaluate", "report"]
    members = Findings(run=RUN, planned=("ensemble",), submitted={"report": "1", "evaluate": "2"})
    assert members.jobs == ["ensemble", "evaluate", "report"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3.0, "0 s"), (59.0, "59 s"), (300.0, "5 min"), (9000.0, "2.5 h"), (1e6, "11.6 d")]
)
def test_a_stretch_of_time_is_spoken_in_its_unit(seconds: float, text: str) -> None:
    assert span(seconds) == text


# From here on with folders.


@pytest.fixture(autouse=True)
def _a_wide_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with two stages of which nothing was done yet."""
    run = Run(tmp_path / "runs" / "first")
    run.path.mkdir(parents=True)
    stages = {"a": StageConfig(), "b": StageConfig(start="a/last")}
    run.config_file.write_text(to_yaml(TrainConfig(run="first", recipe="demo", stages=stages, until="train")))
    return run


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return fake_slurm.install(tmp_path / "slurm", monkeypatch)


def submit(run: Run, **ids: str) -> None:
    run.jobs.mkdir(exist_ok=True)
    write_json(run.submitted, ids)


def folder(run: Run, *names: str, json: bool = False) -> StatusConfig:
    return StatusConfig(run=",".join(names), runs=str(run.path.parent), json=json)


def contents(path: Path) -> dict[str, bytes]:
    return {str(each): each.read_bytes() for each in sorted(path.rglob("*")) if each.is_file()}


def test_one_question_to_slurm_answers_for_all_runs_and_nothing_is_written(run: Run, slurm: Path, capsys) -> None:
    other = Run(run.path.parent / "second")
    other.path.mkdir()
    other.config_file.write_text(run.config_file.read_text())
    submit(run, a="17", b="18")
    submit(other, a="21")
    History(run.history).begin("a", "17")
    (slurm / "queue").write_text(
        "17|RUNNING|None|1:00:00|2026-11-22T18:12:00|n0|x\n18|PENDING|Dependency|10:00|N/A||x\n"
        "21|PENDING|Priority|10:00|2026-11-23T18:17:00||x\n"
    )
    before = contents(run.path.parent)
    status(folder(run))
    assert contents(run.path.parent) == before
    assert fake_slurm.asked(slurm) == ["squeue --noheader --jobs 17,18,21 --format %i|%T|%r|%L|%S|%N|%j"]
    shown = capsys.readouterr().out
    first, second = [line for line in shown.splitlines() if "first" in line or "second" in line]
    assert "running" in first
    assert "17" in first
    assert "in 60 min" in first
    assert "waiting: until jobs of higher priority have started; expected to start 2026-11-23 18:17" in second


def test_a_single_run_shows_its_jobs_and_the_traceback_of_what_failed(run: Run, slurm: Path, capsys) -> None:
    submit(run, a="17", b="18")
    history = History(run.history)
    history.begin("a", "17")
    history.end("a", "17", end="crashed", deed="give up", text="rank 1 failed: [bold]no[/bold]", traceback="Tr\n  [/x]")
    status(folder(run, "first"))
    shown = capsys.readouterr().out
    assert "a gave up: rank 1 failed: [bold]no[/bold]\n  Tr\n    [/x]\n" in shown
    assert "b     not started" in shown
    runs = run.path.parent
    assert f"to continue: python launch.py resume first --runs {runs}\n" in shown
    assert f"what it printed: python launch.py logs first --runs {runs}\n" in shown


def test_scripts_get_all_of_it_as_json(run: Run, slurm: Path, capsys) -> None:
    submit(run, a="17")
    (slurm / "queue").write_text("17|RUNNING|None|1:00:00|2026-11-22T18:12:00|n0|x\n")
    status(folder(run, json=True))
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["run"], found["stage"], found["state"], found["active"]) == ("first", "a", "running", True)
    assert found["jobs"][0]["limit_left"] == 3600.0
    assert found["jobs"][1]["state"] == "not started"


def test_of_vanished_jobs_slurm_is_asked_and_then_its_accounts(run: Run, slurm: Path) -> None:
    submit(run, a="17", b="18")
    (slurm / "job.17").write_text("JobId=17 JobState=NODE_FAIL Reason=NodeDown\n")
    (slurm / "accounts").write_text("18|CANCELLED by 1000\n17|FAILED\n")
    (found,) = standings([run], NOW)
    assert [each.detail for each in found.jobs] == ["Slurm says NODE_FAIL", "by scancel, or by an administrator"]
    assert [line.split()[0] for line in fake_slurm.asked(slurm)] == ["squeue", "scontrol", "scontrol", "sacct"]
    (slurm / "accounts").unlink()  # a site without accounts
    (found,) = standings([run], NOW)
    assert found.jobs[1].detail == "its job left the queue before it could start"


def test_finished_jobs_are_not_asked_about(run: Run, slurm: Path) -> None:
    submit(run, a="17", b="18")
    (run.path / "stages").mkdir()
    for stage in "ab":
        write_json(run.stage_record(stage), {"finished": True, "steps": 3, "score": None})
    (found,) = standings([run], NOW)
    assert found.state == "done"
    assert fake_slurm.asked(slurm) == []


def test_everything_works_without_slurm(run: Run, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    submit(run, a="17")
    status(folder(run))
    assert "unknown: Slurm does not answer" in capsys.readouterr().out


def test_a_run_that_is_trained_here_is_seen_by_its_lock(run: Run, slurm: Path) -> None:
    assert read(run).holder is None
    with hold(run):
        assert read(run).holder == Holder(os.getpid(), socket.gethostname())
        with pytest.raises(UserError, match="being trained by another"), hold(run):
            pass
    assert read(run).holder is None


def test_a_lock_file_that_was_left_behind_is_no_sign_of_life(run: Run) -> None:
    run.lock.write_text(f"pid {os.getpid()} on host {socket.gethostname()}\n")
    assert read(run).holder is None
    run.lock.write_text("pid")
    assert read(run).holder is None


def test_damaged_files_do_not_hide_the_other_runs(run: Run, slurm: Path, capsys) -> None:
    other = Run(run.path.parent / "second")
    other.jobs.mkdir(parents=True)
    other.config_file.write_text("stages: [")
    other.submitted.write_text('{"a":')
    other.events.write_text('{"kind": "start"}\n')
    other.history.write_text('{"kind": "begin"')
    (other.path / "lease.json").write_text("{")
    (other.path / "stages").mkdir()
    other.stage_record("a").write_text("")
    status(folder(run))
    shown = capsys.readouterr().out
    assert "first" in shown
    assert "second" in shown
    status(folder(run, "second"))
    assert "cannot be read as YAML" in capsys.readouterr().out


def test_an_unknown_run_is_answered_with_those_that_there_are_nearest_first(run: Run) -> None:
    for name in ("zeta", "alpha", "mu", "firth"):
        replace(run, path=run.path.parent / name).path.mkdir()
        Run(run.path.parent / name).config_file.write_text(run.config_file.read_text())
    with pytest.raises(UserError) as refusal:
        find_run(str(run.path.parent), "frist")
    assert str(refusal.value).endswith("there are first, firth, alpha, mu, zeta")


def test_a_run_is_also_found_by_its_path_as_the_shell_completes_it(run: Run, monkeypatch) -> None:
    monkeypatch.chdir(run.path.parent.parent)
    for name in ("runs/first/", "runs/first", str(run.path), "first"):
        assert find_run("runs", name) == run
    with pytest.raises(UserError, match="no run"):
        find_run("runs", "..")


def test_no_runs_are_no_error_but_a_missing_folder_is(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    status(StatusConfig())
    assert "no runs in runs yet" in capsys.readouterr().out
    status(StatusConfig(json=True))
    assert json.loads(capsys.readouterr().out) == []
    with pytest.raises(UserError, match="is not a folder"):
        status(StatusConfig(runs="elsewhere"))
    with pytest.raises(UserError, match="and none at all in runs"):
        status(StatusConfig(run="x"))


# What its events say of time, costs and end.


def preempted() -> Story:
    """A stage of 1000 steps that was preempted once, and trains again."""
    story = Story("a", begin=time.time() - 1564.0)
    story.submit("17")
    story.launch("17")
    story.start(30.0)
    story.train(199)
    story.interrupt()
    story.leave("interrupted", "preempted", "requeue")
    story.spend(1200.0, "queue")
    story.launch("17", restart=1)
    story.start(30.0)
    story.train(99)
    return story


@pytest.fixture
def interrupted(run: Run, slurm: Path) -> Run:
    submit(run, a="17", b="18")
    stages = {"a": StageConfig(length="1000 steps"), "b": StageConfig(length="200 steps", start="a/last")}
    run.config_file.write_text(to_yaml(TrainConfig(run="first", recipe="demo", stages=stages, until="train")))
    preempted().write(run.events)
    History(run.history).begin("a", "17", restart=1)
    (slurm / "queue").write_text(
        "17|RUNNING|None|1:00:00|2026-11-22T18:12:00|n0|x\n18|PENDING|Dependency|1:00|N/A||x\n"
    )
    return run


def test_below_the_table_stands_when_it_ends_why_it_was_interrupted_and_what_that_cost(
    interrupted: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    status(folder(interrupted, "first"))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines()[1:-3])) <= 100  # all but the path and the commands
    words = " ".join(shown.split())
    assert "all stages are done about " in words
    assert "if interruptions go on as so far started again 1 time (1 preempted), with no step done again" in words
    assert "preempted: another job needed its place; started again after 20 min" in words
    assert "of the time is training; interruptions have cost 21 min: 20 min in the queue, 1 min of starting" in words


def test_scripts_get_goodput_costs_and_end_too(interrupted: Run, capsys: pytest.CaptureFixture[str]) -> None:
    status(folder(interrupted, json=True))
    (found,) = json.loads(capsys.readouterr().out)
    snapshot = found["snapshot"]
    assert snapshot["costs"]["queue"] == pytest.approx(1200.0)
    assert 0.1 < snapshot["goodput"] < 0.5
    assert snapshot["ends_at"] > time.time()
    assert snapshot["last_end"]["reason"] == "preempted"
    assert found["jobs"][0]["seconds_left"] == pytest.approx(snapshot["seconds_left"])


def test_a_run_that_does_nothing_any_more_has_no_end_to_come(
    interrupted: Run, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (slurm / "queue").write_text("")
    status(folder(interrupted, json=True))
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["active"], found["snapshot"]["ends_at"], found["snapshot"]["seconds_left"]) == (False, None, None)


@pytest.mark.parametrize("width", [60, 80, 100, 180])
def test_the_table_of_all_runs_has_room_in_any_width(
    interrupted: Run, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    status(folder(interrupted))
    shown = capsys.readouterr().out
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= width
    for word in ("first", "running", "goodput", "ends about"):
        assert word in shown
    assert ("epoch" in shown) == (width == 180)


def test_names_and_texts_give_a_terminal_no_orders(run: Run, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submit(run, a="17")
    history = History(run.history)
    history.begin("a", "17")
    history.end("a", "17", end="crashed", deed="give up", text="\x1b[2Jgone", traceback="Tr\x07\n  \x9b31mred")
    status(folder(run, "first"))
    status(folder(run))
    shown = capsys.readouterr().out
    assert "a gave up: gone\n  Tr\n    31mred\n" in shown
    assert not set(shown) & {"\x1b", "\x07", "\x9b"}


def json_of(run: Run, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    status(folder(run, run.name, json=True))
    (found,) = json.loads(capsys.readouterr().out)
    return dict(found)


def killed(run: Run) -> Story:
    """A run of this machine whose process is gone: it was killed in its hundredth step."""
    story = Story("a", begin=time.time() - 400.0)
    id = f"pid {2**22 + 5}"
    story.launch(id, host=socket.gethostname())
    story.start(30.0)
    story.train(99)
    story.write(run.events)
    run.jobs.mkdir()
    launch = {**story.events[0], "kind": "begin", "job": "a", "pid": 2**22 + 5}
    run.history.write_text(json.dumps(launch) + "\n")
    return story


def test_a_run_that_was_killed_is_so_everywhere_and_its_goodput_stays(
    run: Run, slurm: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    story = killed(run)
    goodput = take(story.events, None, story.now).goodput
    for later in (1.0, 100.0, 5000.0):
        monkeypatch.setattr(time, "time", lambda later=later: story.now + later)
        found = json_of(run, capsys)
        told = found["snapshot"]
        assert (found["state"], told["state"]) == ("lost", states.INTERRUPTED)
        assert (told["goodput"], told["interruptions"], told["last_end"]["reason"]) == (goodput, 1, "killed")
        seen = Follower(run).look(time.time())
        assert (seen.state, seen.goodput, seen.last_end) == (states.INTERRUPTED, goodput, LastEnd(**told["last_end"]))
        (standing,) = standings([run], time.time())
        made = read_report(run, time.time(), standing, Gallery())
        assert made.account is not None
        assert made.snapshot is not None
        assert (made.account.goodput, made.account.interruptions, made.snapshot.goodput) == (goodput, 1, goodput)
    status(folder(run, "first"))
    assert "interrupted last at" in capsys.readouterr().out


def test_a_job_whose_node_died_waits_in_the_snapshot_too(
    interrupted: Run, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 7200.0))
    (slurm / "queue").write_text(f"17|PENDING|BeginTime|1:00:00|{start}||x\n")
    found = json_of(interrupted, capsys)
    told = found["snapshot"]
    assert (found["state"], told["state"]) == ("waiting", states.WAITS)
    assert told["ends_at"] == pytest.approx(told["starts_at"] + told["to_end"])
    assert told["starts_at"] == pytest.approx(time.time() + 7200.0, abs=60.0)
    status(folder(interrupted, "first"))
    words = " ".join(capsys.readouterr().out.split())
    assert "after it starts, which is expected about" in words


def test_a_finished_run_shows_its_test_score_its_restarts_and_when_it_ended(
    run: Run, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    story = preempted()
    submit(run, a="17", b="18", evaluate="19", report="20")
    for stage in "ab":
        story.turn_to(stage, 1000)
        if stage == "b":
            story.launch("18")
            story.start(30.0)
        story.train(1000 - story.step)
        story.finish()
        story.leave("done", deed="done")
    history = History(run.history)
    for job, restart in (("a", 0), ("a", 1), ("b", 0), ("evaluate", 0), ("report", 0)):
        history.begin(job, {"a": "17", "b": "18", "evaluate": "19", "report": "20"}[job], restart=restart)
        if (job, restart) == ("a", 0):
            history.end(job, "17", restart, end="interrupted", why="preempted", deed="requeue")
    for job in ("a", "b", "evaluate", "report"):
        run.stage_record(job).parent.mkdir(exist_ok=True)
        write_json(run.stage_record(job), {"finished": True, "score": 0.25})
    write_json(run.score_file, {"score": 0.625})
    story.events.insert(1, {"time": story.events[0]["time"], "kind": "submit", "stage": "evaluate", "id": "7"})
    story.write(run.events)
    status(folder(run))
    shown = capsys.readouterr().out
    assert "0.6250" in shown
    assert "1 (1 preempted)" in shown
    assert f"ended {moment(story.now, story.now)[:5]}" in shown
    first, later = (with_snapshot(standings([run], at)[0], run, at).snapshot for at in (story.now, story.now + 9000.0))
    assert first is not None
    assert later is not None
    assert (first.goodput, first.seconds) == (later.goodput, later.seconds)


@pytest.mark.parametrize(
    ("text", "words"),
    [("no such fold", "when that is mended: python launch.py resume first"), ("give up and start a new --run", None)],
)
def test_advice_is_such_that_it_can_work(
    run: Run, slurm: Path, capsys: pytest.CaptureFixture[str], text: str, words: str | None
) -> None:
    story = killed(run)
    story.leave("refused", "", "give up", text)
    story.write(run.events)
    left = {**story.events[-1], "kind": "end", "job": "a", "traceback": ""}
    run.history.write_text(run.history.read_text() + json.dumps(left) + "\n")
    status(folder(run, "first"))
    shown = capsys.readouterr().out
    assert "refused last at" in shown
    assert words in shown if words else "resume" not in shown
    with pytest.raises(JobError):
        watch(WatchConfig(run="first", runs=str(run.path.parent), once=True))
    shown = " ".join(capsys.readouterr().out.split())
    assert words in shown if words else "resume" not in shown
