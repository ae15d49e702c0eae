"""The process that stays while the ranks of a submitted job come and go; srun and scontrol are shell scripts."""

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agl_core.config import RestartConfig, TrainConfig
from agl_core.durable.exits import HUNG, INTERRUPTED, PEER_LOST, TAKEN_OVER
from agl_core.durable.lease import Lease
from agl_core.files import write_text
from agl_core.reporting.startup import LAUNCHED
from jobs import allocation, conductor
from jobs.allocation import Allocation
from jobs.cluster import ClusterConfig, load_cluster
from jobs.conductor import Conductor, attempt_folder, conduct, free_port, stand_in
from jobs.failure import MISTAKE, JobError
from jobs.history import Entry, History
from jobs.pipeline import PREPARE, REPORT, STAGE
from jobs.rank import CONDUCTOR, PORT
from jobs.runs import Run
from jobs.settings import to_yaml
from tests.jobs.fakes import FakeSlurm
from tests.jobs.test_why import PREEMPTED_AT, line

RUNNING, PREEMPTED, CANCELLED = line(), line(preempted=PREEMPTED_AT), line("COMPLETING")
WELL: dict[str, Any] = {"code": 0}
TERM = {"code": INTERRUPTED, "text": "interrupted by TERM; step 7 is saved", "signal": "TERM"}
USR2 = {"code": INTERRUPTED, "text": "interrupted by USR2; step 7 is saved", "signal": "USR2"}
LOST = {"code": PEER_LOST, "text": "rank 1 is gone"}
DEFECT = {"code": 1, "text": "RuntimeError: out of memory", "traceback": "Traceback\nRuntimeError: out of memory\n"}
CLUSTER = replace(load_cluster("slurm"), processes=2, gpus_per_node=0)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    slurm = FakeSlurm(tmp_path / "slurm", monkeypatch)
    slurm.says(RUNNING)
    monkeypatch.setattr(conductor, "PATIENCE", 0.3)
    monkeypatch.setattr(conductor, "STAND_IN", 0.3)
    monkeypatch.setattr(conductor, "ASK_AGAIN", 0.01)
    monkeypatch.setattr(allocation, "ASK_AGAIN", 0.01)
    return slurm


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "runs" / "first")
    run.path.mkdir(parents=True)
    write_text(run.config_file, to_yaml(TrainConfig(restart=RestartConfig(crashes=3, inside=5, fruitless=8))))
    write_text(run.cluster_file, to_yaml(CLUSTER))
    return run


def work(
    run: Run, restart: int = 0, id: str = "17", kind: str = STAGE, cluster: ClusterConfig = CLUSTER, name: str = ""
) -> None:
    Conductor(run, name or ("pretrain" if kind == STAGE else kind), kind, Allocation(id, restart), cluster).conduct()


def leaves(run: Run, **place: Any) -> int:
    """The code with which the batch process of the job leaves."""
    with pytest.raises(SystemExit) as left:
        work(run, **place)
    assert isinstance(left.value.code, int)
    return left.value.code


def fails(run: Run, **place: Any) -> str:
    with pytest.raises(JobError) as failure:
        work(run, **place)
    return str(failure.value)


def entries(run: Run, kind: str) -> list[Entry]:
    return [entry for entry in History(run.history).entries() if entry["kind"] == kind]


def deeds(run: Run) -> list[tuple[str, str, str]]:
    return [(entry["end"], entry["why"], entry["deed"]) for entry in entries(run, "end")]


# ---- ends without a word from Slurm


def test_a_job_that_is_done_is_done_and_nobody_asks_slurm(run: Run, slurm: FakeSlurm) -> None:
    slurm.attempt(0, [WELL, WELL])
    work(run)
    assert slurm.starts == 1
    assert slurm.calls("scontrol") == []
    assert deeds(run) == [("done", "", "done")]


def test_the_history_has_a_line_for_each_beginning_and_each_end(run: Run, slurm: FakeSlurm) -> None:
    step = "mkdir -p $RUN/checkpoints/pretrain/step_00000100"
    slurm.attempt(1, [DEFECT, LOST], before=step)
    slurm.attempt(0, [WELL, WELL])
    work(run, restart=2)
    first, crash, second, end = (
        {name: value for name, value in entry.items() if name not in ("time", "host", "pid")}
        for entry in History(run.history).entries()
    )
    here = {"job": "pretrain", "id": "17", "restart": 2}
    assert first == {"kind": "begin", **here, "attempt": 0, "step": 0}
    assert crash == {
        "kind": "end", **here, "attempt": 0, "step": 100, "end": "crashed", "why": "warned", "deed": "again",
        "text": "rank 0 failed: RuntimeError: out of memory", "traceback": DEFECT["traceback"],
    }  # fmt: skip
    assert second == {"kind": "begin", **here, "attempt": 1, "step": 100}
    assert end == {
        "kind": "end", **here, "attempt": 1, "step": 100, "end": "done", "why": "", "deed": "done", "text": "",
        "traceback": "",
    }  # fmt: skip
    for begin in entries(run, "begin"):
        assert (begin["host"], begin["pid"]) == (socket.gethostname(), os.getpid())


def test_a_mistake_of_the_user_is_told_and_no_second_try_is_made(run: Run, slurm: FakeSlurm) -> None:
    slurm.attempt(2, [{"code": MISTAKE, "text": "the store is not there"}, LOST])
    assert fails(run) == "the store is not there"
    assert slurm.starts == 1
    assert slurm.calls() == []
    assert deeds(run) == [("refused", "", "give up")]


def test_who_was_taken_over_leaves_without_touching_the_queue(run: Run, slurm: FakeSlurm) -> None:
    Lease.take(run.path, "another")
    slurm.attempt(78, [{"code": TAKEN_OVER, "text": "another process has the run"}, None])
    assert leaves(run) == TAKEN_OVER
    assert slurm.calls("scontrol") == []
    assert deeds(run) == [("taken over", "", "leave")]


def test_a_lease_that_nobody_has_was_lost_and_is_taken_again(run: Run, slurm: FakeSlurm) -> None:
    slurm.attempt(78, [{"code": TAKEN_OVER, "text": "lease.json is missing"}, None])
    slurm.attempt(0, [WELL, WELL])
    work(run)
    assert deeds(run) == [("crashed", "warned", "again"), ("done", "", "done")]


def test_what_could_be_done_once_is_no_mistake_of_the_user(run: Run, slurm: FakeSlurm) -> None:
    (run.checkpoints("pretrain") / "step_00000040").mkdir(parents=True)
    slurm.attempt(MISTAKE, [{"code": MISTAKE, "text": "no store at /data/store"}, None])
    assert leaves(run) == INTERRUPTED
    assert slurm.calls() == ["scontrol requeue 17"]
    assert deeds(run) == [("crashed", "warned", "requeue")]


def test_a_disk_that_refuses_for_a_moment_ends_nothing(run: Run, slurm: FakeSlurm, monkeypatch) -> None:
    whole, refused = Path.mkdir, [0]

    def mkdir(path: Path, *arguments: Any, **options: Any) -> None:
        if path.name == "0.0" and refused[0] < 2:
            refused[0] += 1
            raise OSError(28, "No space left on device", str(path))
        whole(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    slurm.attempt(0, [WELL, WELL])
    work(run)
    assert (refused, deeds(run)) == ([2], [("done", "", "done")])


def test_a_job_that_is_cancelled_while_slurm_refuses_to_take_it_back_stays_cancelled(
    run: Run, slurm: FakeSlurm
) -> None:
    slurm.says(PREEMPTED, CANCELLED)
    slurm.refuses("Unable to contact slurm controller (connect failure)")
    slurm.attempt(75, [TERM, TERM])
    assert leaves(run) == INTERRUPTED
    assert slurm.calls() == ["scontrol requeue 17"]
    assert deeds(run) == [("interrupted", "cancelled", "leave")]


def test_a_requeue_whose_command_was_ended_by_it_has_worked(run: Run, slurm: FakeSlurm) -> None:
    slurm.says(PREEMPTED, line("COMPLETING", restarts=1))
    slurm.refuses("")  # killed together with everything else of the job
    slurm.attempt(75, [TERM, TERM])
    assert leaves(run) == INTERRUPTED
    assert slurm.calls() == ["scontrol requeue 17"]
    assert deeds(run) == [("interrupted", "preempted", "requeue")]


# ---- crashes

CRASHES: list[tuple[str, list[dict[str, Any] | None], int]] = [
    ("a rank was killed", [TERM, None], 137),
    ("all were", [None, None], 137),
    ("one hung", [TERM, None], HUNG),
    ("a defect", [DEFECT, LOST], 76),
    ("they lost each other", [LOST, LOST], 76),
]


@pytest.mark.parametrize(("ends", "code"), [case[1:] for case in CRASHES], ids=[case[0] for case in CRASHES])
def test_ranks_that_crash_are_started_again_in_the_allocation(
    run: Run, slurm: FakeSlurm, ends: list[dict[str, Any] | None], code: int
) -> None:
    slurm.attempt(code, ends)
    slurm.attempt(0, [WELL, WELL])
    work(run)
    assert slurm.starts == 2
    assert slurm.calls() == []
    assert deeds(run) == [("crashed", "warned", "again"), ("done", "", "done")]


def test_a_crash_that_repeats_at_the_same_step_ends_the_job_with_its_traceback(run: Run, slurm: FakeSlurm) -> None:
    slurm.attempt(1, [DEFECT, LOST])
    assert leaves(run) == INTERRUPTED  # the last try is on other nodes, if there are any
    assert slurm.starts == 2
    slurm.says(line(restarts=1))
    assert fails(run, restart=1) == (
        "rank 0 failed: RuntimeError: out of memory; it has crashed 3 times in a row at step 0 (restart.crashes)\n"
        "Traceback\nRuntimeError: out of memory"
    )
    assert slurm.starts == 3
    assert slurm.calls() == ["scontrol requeue 17"]
    assert deeds(run) == [("crashed", "warned", deed) for deed in ("again", "requeue", "give up")]
    last = entries(run, "end")[-1]
    assert last["traceback"] == DEFECT["traceback"]
    assert "crashed 3 times" in last["text"]


def test_the_crashes_of_earlier_incarnations_count(run: Run, slurm: FakeSlurm) -> None:
    for restart in range(2):
        history = History(run.history)
        history.begin("pretrain", "17", restart, 0, 0)
        history.end("pretrain", "17", restart, 0, 0, end="crashed", why="preempted", deed="requeue")
    slurm.attempt(1, [DEFECT, LOST])
    assert "crashed 3 times" in fails(run, restart=2)
    assert slurm.starts == 1


def test_a_job_that_crashes_and_comes_on_goes_to_other_nodes_at_last(run: Run, slurm: FakeSlurm) -> None:
    slurm.attempt(
        1, [DEFECT, LOST], before="d=$RUN/checkpoints/pretrain; mkdir -p $d/step_$(ls ${RUN}/../../slurm/seen | wc -l)"
    )
    assert leaves(run) == INTERRUPTED
    assert slurm.starts == 5
    assert slurm.calls() == ["scontrol requeue 17"]
    assert deeds(run) == [("crashed", "warned", "again")] * 4 + [("crashed", "warned", "requeue")]


def test_a_crash_in_the_grace_of_a_preemption_goes_back_to_the_queue(run: Run, slurm: FakeSlurm) -> None:
    slurm.says(PREEMPTED)
    slurm.attempt(137, [TERM, None])
    assert leaves(run) == INTERRUPTED
    assert slurm.calls() == ["scontrol requeue 17"]
    assert deeds(run) == [("crashed", "preempted", "requeue")]


def test_ranks_that_die_of_a_preemption_before_they_can_listen_have_not_crashed(run: Run, slurm: FakeSlurm) -> None:
    slurm.says(*(line(preempted=PREEMPTED_AT, restarts=restart) for restart in range(5)))
    slurm.attempt(143, [None, None])
    for restart in range(5):  # restart.crashes is 3
        assert leaves(run, restart=restart) == INTERRUPTED
    assert deeds(run) == [("interrupted", "preempted", "requeue")] * 5


def test_ranks_that_die_of_term_while_nobody_ends_the_job_have_crashed(run: Run, slurm: FakeSlurm) -> None:
    slurm.attempt(143, [None, None])
    assert leaves(run) == INTERRUPTED
    assert deeds(run) == [("crashed", "warned", "again"), ("crashed", "warned", "requeue")]


def test_a_crash_after_the_warning_of_the_time_limit_does_not_begin_again(run: Run, slurm: FakeSlurm) -> None:
    slurm.attempt(137, [USR2, None])
    assert leaves(run) == INTERRUPTED
    assert slurm.starts == 1
    assert deeds(run) == [("crashed", "warned", "requeue")]


# ---- interruptions


def test_a_preempted_job_goes_back_to_the_queue(run: Run, slurm: FakeSlurm, capsys) -> None:
    slurm.says(PREEMPTED)
    slurm.attempt(75, [TERM, TERM])
    assert leaves(run) == INTERRUPTED
    assert slurm.starts == 1
    assert slurm.calls() == ["scontrol requeue 17"]
    assert deeds(run) == [("interrupted", "preempted", "requeue")]
    assert "interrupted by TERM; step 7 is saved (preempted): back to the queue" in capsys.readouterr().err


@pytest.mark.parametrize("said", [line("COMPLETING", reason="TimeLimit"), RUNNING], ids=["passed", "announced"])
def test_a_time_limit_sends_the_job_back_to_the_queue(run: Run, slurm: FakeSlurm, said: str) -> None:
    slurm.says(said)
    slurm.attempt(75, [USR2, USR2])
    assert leaves(run) == INTERRUPTED
    assert slurm.calls() == ["scontrol requeue 17"]


@pytest.mark.parametrize("ends", [[TERM, TERM], [TERM, None]], ids=["in order", "killed"])
def test_a_cancelled_job_stays_cancelled(run: Run, slurm: FakeSlurm, ends) -> None:
    slurm.says(CANCELLED)
    slurm.attempt(137, ends)
    assert leaves(run) == INTERRUPTED
    assert slurm.starts == 1
    assert slurm.calls() == []
    assert [(why, deed) for _, why, deed in deeds(run)] == [("cancelled", "leave")]


def test_a_scancel_in_the_grace_of_a_preemption_cancels(run: Run, slurm: FakeSlurm) -> None:
    slurm.says(line("COMPLETING", PREEMPTED_AT, end=PREEMPTED_AT))
    (slurm.folder / "partition").write_text("PartitionName=preemptible GraceTime=60 Hidden=NO")
    slurm.attempt(75, [TERM, TERM])
    assert leaves(run) == INTERRUPTED
    assert slurm.calls("scontrol show partition") == ["scontrol show partition -o preemptible"]
    assert slurm.calls() == []
    assert deeds(run) == [("interrupted", "cancelled", "leave")]


def test_a_job_that_a_preemption_cancels_without_grace_comes_back(run: Run, slurm: FakeSlurm) -> None:
    slurm.says(line("COMPLETING", PREEMPTED_AT, end=PREEMPTED_AT))
    (slurm.folder / "partition").write_text("PartitionName=preemptible GraceTime=0 Hidden=NO")
    slurm.attempt(75, [TERM, TERM])
    assert leaves(run) == INTERRUPTED
    assert slurm.calls() == ["scontrol requeue 17"]
    assert deeds(run) == [("interrupted", "cancelled by preemption", "requeue")]


REQUEUED = [line("COMPLETING", None, restarts=1), line("PENDING", None, restarts=1, reason="BeginTime")]


@pytest.mark.parametrize("said", REQUEUED, ids=["ending", "waiting"])
def test_a_job_that_is_requeued_already_is_not_requeued_again(run: Run, slurm: FakeSlurm, said: str) -> None:
    slurm.says(said)
    slurm.attempt(75, [TERM, TERM])
    assert leaves(run) == INTERRUPTED
    assert slurm.calls() == []
    assert deeds(run) == [("interrupted", "requeued", "leave")]


def test_the_count_of_restarts_is_that_of_this_incarnation(run: Run, slurm: FakeSlurm) -> None:
    slurm.says(line(preempted=PREEMPTED_AT, restarts=1))
    slurm.attempt(75, [TERM, TERM])
    assert leaves(run, restart=1) == INTERRUPTED
    assert slurm.calls() == ["scontrol requeue 17"]


def test_a_job_without_the_right_to_come_back_gives_itself_that_right(run: Run, slurm: FakeSlurm) -> None:
    slurm.says(line(preempted=PREEMPTED_AT, requeue=0))
    slurm.refuses("Requested operation is presently disabled for job 17")
    slurm.attempt(75, [TERM, TERM])
    assert leaves(run) == INTERRUPTED
    assert slurm.calls() == ["scontrol requeue 17", "scontrol update JobId=17 Requeue=1", "scontrol requeue 17"]


def test_a_refusal_because_the_job_waits_already_is_none(run: Run, slurm: FakeSlurm) -> None:
    slurm.says(PREEMPTED)
    slurm.refuses("Job is pending execution for job 17")
    slurm.attempt(75, [TERM, TERM])
    assert leaves(run) == INTERRUPTED
    assert slurm.calls() == ["scontrol requeue 17"]


def test_a_requeue_that_fails_is_tried_again(run: Run, slurm: FakeSlurm) -> None:
    slurm.says(PREEMPTED)
    slurm.refuses("Unable to contact slurm controller (connect failure)", "Socket timed out on send/recv operation")
    slurm.attempt(75, [TERM, TERM])
    assert leaves(run) == INTERRUPTED
    assert slurm.calls() == ["scontrol requeue 17"] * 3


def test_a_slurm_that_never_takes_the_job_back_is_told_with_the_command_that_continues(
    run: Run, slurm: FakeSlurm
) -> None:
    slurm.says(PREEMPTED)
    slurm.refuses(*["Access/permission denied for job 17"] * 1000)
    slurm.attempt(75, [TERM, TERM])
    said = fails(run)
    assert "Slurm does not take the job back (Access/permission denied for job 17)" in said
    assert "python launch.py resume first" in said


def test_starts_that_bring_nothing_new_end_the_run_even_if_all_were_interrupted(run: Run, slurm: FakeSlurm) -> None:
    slurm.says(*(line(preempted=PREEMPTED_AT, restarts=restart) for restart in range(8)))
    slurm.attempt(75, [TERM, TERM])
    for restart in range(7):
        assert leaves(run, restart=restart) == INTERRUPTED
    assert "8 starts in a row have brought nothing new (restart.fruitless)" in fails(run, restart=7)
    assert len(slurm.calls("scontrol requeue")) == 7
    assert deeds(run)[-1] == ("interrupted", "preempted", "give up")


# ---- a Slurm that does not answer


def test_a_silent_slurm_is_asked_again(run: Run, slurm: FakeSlurm) -> None:
    slurm.says("silent", "silent", PREEMPTED)
    slurm.attempt(75, [TERM, TERM])
    assert leaves(run) == INTERRUPTED
    assert len(slurm.calls("scontrol show job")) == 3
    assert deeds(run) == [("interrupted", "preempted", "requeue")]


@pytest.mark.parametrize("ends", [[TERM, TERM], [TERM, None]], ids=["interrupted", "crashed"])
def test_a_job_that_a_silent_slurm_neither_explains_nor_ends_goes_on(run: Run, slurm: FakeSlurm, ends) -> None:
    slurm.says("silent")
    slurm.attempt(137, ends)
    slurm.attempt(0, [WELL, WELL])
    work(run)
    assert [(why, deed) for _, why, deed in deeds(run)] == [("unknown", "again"), ("", "done")]


def test_a_job_that_a_silent_slurm_is_ending_leaves(run: Run, slurm: FakeSlurm) -> None:
    slurm.says("silent")
    slurm.attempt(75, [TERM, TERM], before="kill -TERM $PPID")
    slurm.attempt(0, [WELL, WELL])
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # a conductor without handlers must not end the tests
    try:
        assert leaves(run) == INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    assert slurm.starts == 1
    assert deeds(run) == [("interrupted", "unknown", "leave")]


# ---- what the ranks are given


def test_the_ranks_are_told_who_their_conductor_is_where_they_meet_and_when_they_were_started(
    run: Run, slurm: FakeSlurm
) -> None:
    slurm.attempt(137, [None, None])
    slurm.attempt(0, [WELL, WELL])
    work(run)
    first, second = slurm.environment(0), slurm.environment(1)
    assert first[CONDUCTOR] == second[CONDUCTOR] == str(os.getpid())
    assert first[PORT] != second[PORT]
    assert float(first[LAUNCHED]) < float(second[LAUNCHED])
    folder = attempt_folder(run, "pretrain", Allocation("17", 0), 1)
    assert slurm.words[-4:] == [str(run.path), "pretrain", STAGE, str(folder)]
    assert folder == run.jobs / "pretrain.17" / "0.1"


def test_ends_that_an_incarnation_of_the_same_name_left_are_not_believed(run: Run, slurm: FakeSlurm) -> None:
    folder = attempt_folder(run, "pretrain", Allocation("17", 0), 0)
    folder.mkdir(parents=True)
    for rank in range(2):
        (folder / f"rank{rank}.json").write_text('{"code": 0}')
    slurm.attempt(137, [None, None])
    slurm.attempt(0, [WELL, WELL])
    work(run)
    assert slurm.starts == 2


@pytest.mark.parametrize("kind", [PREPARE, REPORT])
def test_the_other_jobs_have_one_rank_and_the_same_answers(run: Run, slurm: FakeSlurm, kind: str) -> None:
    slurm.attempt(137, [None])
    slurm.attempt(0, [WELL])
    work(run, kind=kind)
    assert "--ntasks=1" in slurm.words
    assert [deed for _, _, deed in deeds(run)] == ["again", "done"]
    assert {entry["job"] for entry in History(run.history).entries()} == {kind}


def test_the_job_of_an_ensemble_has_no_configuration_and_the_usual_limits(run: Run, slurm: FakeSlurm) -> None:
    run.config_file.unlink()
    slurm.attempt(1, [DEFECT])
    crashes = RestartConfig().crashes
    assert leaves(run, kind=REPORT) == INTERRUPTED
    assert slurm.starts == crashes - 1
    slurm.says(line(restarts=1))
    assert f"crashed {crashes} times" in fails(run, kind=REPORT, restart=1)


def test_the_cluster_and_the_allocation_are_read_from_where_the_job_is(run: Run, slurm: FakeSlurm, monkeypatch) -> None:
    slurm.says(PREEMPTED.replace("Restarts=0", "Restarts=3"))
    slurm.attempt(75, [TERM, TERM])
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    with pytest.raises(SystemExit):
        conduct(run.path, "pretrain", STAGE)
    assert "--ntasks=2" in slurm.words
    assert (run.jobs / "pretrain.17" / "3.0").is_dir()
    assert slurm.calls() == ["scontrol requeue 17"]


def test_the_handlers_of_before_are_back_afterwards(run: Run, slurm: FakeSlurm) -> None:
    before = {number: signal.getsignal(number) for number in conductor.SIGNALS}
    slurm.attempt(0, [WELL, WELL])
    work(run)
    assert {number: signal.getsignal(number) for number in conductor.SIGNALS} == before


# ---- signals


def test_signals_do_not_end_the_conductor_while_its_ranks_live(run: Run, slurm: FakeSlurm) -> None:
    every = "for s in TERM USR2 USR1 INT HUP CONT TERM; do kill -$s $PPID; done; touch $RUN/told; sleep 0.2"
    slurm.says(PREEMPTED)
    slurm.attempt(75, [TERM, TERM], before=every)
    environment = {**os.environ, "SLURM_JOB_ID": "17"}
    code = f"import pathlib, jobs.conductor as c; c.conduct(pathlib.Path({str(run.path)!r}), 'pretrain', 'stage')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (run.path / "told").exists()
    assert done.returncode == INTERRUPTED, done.stderr
    assert slurm.calls() == ["scontrol requeue 17"]
    assert deeds(run) == [("interrupted", "preempted", "requeue")]


# ---- in the place of a conductor that was killed


@pytest.mark.parametrize(
    ("said", "refusal", "calls", "expected"),
    [
        (line("COMPLETING", reason="NonZeroExitCode"), "", 1, ("interrupted", "conductor died", "requeue")),
        (PREEMPTED, "", 1, ("interrupted", "preempted", "requeue")),
        (CANCELLED, "", 0, ("interrupted", "cancelled", "leave")),
        (PREEMPTED, "Access/permission denied for job 17", 1, ("interrupted", "preempted", "leave")),
        ("silent", "", 0, ("interrupted", "unknown", "leave")),
    ],
    ids=["it died", "preempted too", "cancelled", "refused", "silent"],
)
def test_a_rank_hands_the_job_back_in_the_place_of_its_conductor(
    run: Run, slurm: FakeSlurm, monkeypatch, said: str, refusal: str, calls: int, expected: tuple[str, str, str]
) -> None:
    slurm.says(said)
    if refusal:
        slurm.refuses(*[refusal] * 1000)
    for name, value in {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "0", "SLURM_STEP_ID": "2"}.items():
        monkeypatch.setenv(name, value)
    History(run.history).begin("pretrain", "17", 0, 2, 0)
    for _ in range(2):  # the second time it has been dealt with
        stand_in(run.path, "pretrain", STAGE, 2)
        slurm.says(line("PENDING", restarts=1) if calls else said)
    assert set(slurm.calls()) == {"scontrol requeue 17"} if calls else slurm.calls() == []
    assert refusal or len(slurm.calls()) == calls
    assert deeds(run) == [expected]
    (end,) = entries(run, "end")
    assert (end["id"], end["restart"], end["attempt"]) == ("17", 0, 2)


# ---- ports


def test_two_incarnations_and_two_attempts_do_not_share_a_port() -> None:
    names = [f"{id}.{restart}.{attempt}" for id in (17, 18) for restart in range(4) for attempt in range(4)]
    ports = {free_port(name) for name in names}
    assert len(ports) == len(names)
    assert all(20000 <= port < 30000 for port in ports)
    assert free_port("17.0.0") == free_port("17.0.0")


def test_a_port_that_somebody_holds_is_not_taken() -> None:
    port = free_port("17.0.0")
    with socket.create_server(("", port)):
        assert free_port("17.0.0") != port
    with socket.create_server(("127.0.0.1", port)):
        assert free_port("17.0.0") != port


def refuses(error: Exception) -> Any:
    def refuse(*_: object, **__: object) -> None:
        raise error

    return refuse


@pytest.mark.parametrize("error", [OSError(116, "Stale file handle"), RuntimeError("strange"), ValueError("nan")])
def test_ranks_that_run_are_waited_for_whatever_cannot_be_written_down(
    run: Run, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    slurm.attempt(ends=[WELL, WELL], before="sleep 0.3; touch done")
    monkeypatch.setattr(History, "begin", refuses(error))
    work(run)
    assert slurm.starts == 1
    assert (slurm.folder / "done").exists()


def test_what_cannot_be_read_about_a_stage_starts_no_ranks_beside_those_that_run(
    run: Run, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked before the ranks are started: then it can be asked again."""
    slurm.attempt(ends=[WELL, WELL])
    seen = []

    def reached(*_: object) -> int:
        seen.append(slurm.starts)
        if len(seen) == 1:
            raise OSError(116, "Stale file handle")
        return 7

    monkeypatch.setattr(conductor, "reached", reached)
    work(run)
    assert slurm.starts == 1
    assert seen[:2] == [0, 0]
