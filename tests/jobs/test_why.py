"""The decision table of `jobs.why`, on what Slurm 22.05 really says about a job."""

from datetime import datetime

import pytest

from jobs.why import (
    AGAIN,
    CANCELLED,
    CONDUCTOR_DIED,
    LEAVE,
    PREEMPTED,
    PREEMPTED_AWAY,
    REQUEUE,
    REQUEUED,
    TIME_LIMIT,
    UNKNOWN,
    WAIT,
    WARNED,
    JobFacts,
    deed,
    why,
)

PREEMPTED_AT = "2026-11-22T18:24:47"


def line(
    state: str = "RUNNING",
    preempted: str | None = "None",
    restarts: int = 0,
    reason: str = "None",
    end: str = "2026-11-22T18:32:09",
    requeue: int = 1,
    name: str = "first-pretrain",
    comment: str = "",
) -> str:
    """What `scontrol show job -o` prints; a job that was requeued has no PreemptTime any more (None)."""
    preemption = "" if preempted is None else f"PreemptEligibleTime=2026-11-22T18:22:09 PreemptTime={preempted} "
    return (
        f"JobId=17 JobName={name} UserId=me(1000) GroupId=me(1000) MCS_label=N/A Priority=4294901759 Nice=0 "
        f"Account=(null) QOS=(null) JobState={state} Reason={reason} Dependency=(null) Requeue={requeue} "
        f"Restarts={restarts} BatchFlag=1 Reboot=0 ExitCode=0:0 RunTime=00:00:00 TimeLimit=00:10:00 TimeMin=N/A "
        "SubmitTime=2026-11-22T18:22:08 EligibleTime=2026-11-22T18:22:08 AccrueTime=2026-11-22T18:22:08 "
        f"StartTime=2026-11-22T18:22:09 EndTime={end} Deadline=N/A {preemption}SuspendTime=None SecsPreSuspend=0 "
        "LastSchedEval=2026-11-22T18:22:09 Scheduler=Backfill Partition=preemptible AllocNode:Sid=vm:14412 "
        "ReqNodeList=n0 ExcNodeList=(null) NodeList=n0 BatchHost=n0 NumNodes=1 NumCPUs=2 NumTasks=2 CPUs/Task=1 "
        "ReqB:S:C:T=0:0:*:* TRES=cpu=2,node=1,billing=2 Socks/Node=* NtasksPerN:B:S:C=0:0:*:* CoreSpec=* "
        "MinCPUsNode=1 MinMemoryNode=0 MinTmpDiskNode=0 Features=(null) DelayBoot=00:00:00 OverSubscribe=OK "
        f"Contiguous=0 Licenses=(null) Network=(null) Command=/scratch/j.sh WorkDir=/scratch/runs/first {comment}"
        "StdErr=/dev/null StdIn=/dev/null StdOut=/dev/null Power=\n"
    )


def at(seconds: int) -> str:
    """That many seconds after the preemption."""
    return f"2026-11-22T18:24:{47 + seconds:02d}"


# What happened; what Slurm says; SLURM_RESTART_COUNT; the partition's grace; why; the deed for a run that was warned,
# and for one whose processes died.
Row = tuple[str, str | None, int, float | None, str, str, str]
TABLE: list[Row] = [
    ("preempted, in its grace", line(preempted=PREEMPTED_AT, end=at(60)), 0, 60, PREEMPTED, REQUEUE, REQUEUE),
    ("the same with --no-requeue", line(preempted=PREEMPTED_AT, requeue=0), 0, 60, PREEMPTED, REQUEUE, REQUEUE),
    ("the same, and its grace is over", line(preempted=PREEMPTED_AT, end=at(0)), 0, 3, PREEMPTED, REQUEUE, REQUEUE),
    ("preempted again", line(preempted=PREEMPTED_AT, restarts=2), 2, 60, PREEMPTED, REQUEUE, REQUEUE),
    ("time limit to come, or by hand", line(), 0, None, WARNED, REQUEUE, AGAIN),
    ("the same after a requeue", line(restarts=1), 1, None, WARNED, REQUEUE, AGAIN),
    ("preempted without grace", line("COMPLETING", None, restarts=1), 0, 0, REQUEUED, LEAVE, LEAVE),
    ("requeued, waiting", line("PENDING", None, restarts=1, reason="BeginTime"), 0, None, REQUEUED, LEAVE, LEAVE),
    ("another incarnation runs", line(restarts=2), 1, None, REQUEUED, LEAVE, LEAVE),
    ("the same was preempted", line(preempted=PREEMPTED_AT, restarts=2), 1, None, REQUEUED, LEAVE, LEAVE),
    ("requeued, and its count is old", line("PENDING", None, reason="BeginTime"), 0, None, REQUEUED, LEAVE, LEAVE),
    ("past its time limit", line("COMPLETING", reason="TimeLimit"), 0, None, TIME_LIMIT, REQUEUE, REQUEUE),
    ("the same in a grace", line("COMPLETING", at(0), reason="TimeLimit"), 0, 60, TIME_LIMIT, REQUEUE, REQUEUE),
    ("ended at its limit", line("TIMEOUT", reason="TimeLimit"), 0, None, TIME_LIMIT, REQUEUE, REQUEUE),
    ("mode CANCEL, no grace", line("COMPLETING", at(0), end=at(0)), 0, 0, PREEMPTED_AWAY, REQUEUE, REQUEUE),
    ("the same at a tick", line("COMPLETING", at(0), end=at(1)), 0, 0, PREEMPTED_AWAY, REQUEUE, REQUEUE),
    ("the same, grace unknown", line("COMPLETING", at(0), end=at(0)), 0, None, PREEMPTED_AWAY, REQUEUE, REQUEUE),
    ("its conductor was killed", line("COMPLETING", reason="NonZeroExitCode"), 0, None, CONDUCTOR_DIED, REQUEUE,
     REQUEUE),
    ("it could not be started", line("COMPLETING", reason="JobLaunchFailure"), 0, None, CONDUCTOR_DIED, REQUEUE,
     REQUEUE),
    ("its conductor took a signal", line("COMPLETING", reason="RaisedSignal:9(Killed)"), 0, None, CONDUCTOR_DIED,
     REQUEUE, REQUEUE),
    ("its node failed", line("NODE_FAIL"), 0, None, CONDUCTOR_DIED, REQUEUE, REQUEUE),
    ("scancel", line("COMPLETING"), 0, None, CANCELLED, LEAVE, LEAVE),
    ("scancel of an incarnation", line("COMPLETING", restarts=1), 1, None, CANCELLED, LEAVE, LEAVE),
    ("scancel in the grace", line("COMPLETING", at(0), end=at(1)), 0, 60, CANCELLED, LEAVE, LEAVE),
    ("scancel in its first second", line("COMPLETING", at(0), end=at(0)), 0, 60, CANCELLED, LEAVE, LEAVE),
    ("scancel when it was over", line("COMPLETING", at(0), end=at(4)), 0, 3, CANCELLED, LEAVE, LEAVE),
    ("scancel, grace unknown", line("COMPLETING", at(0), end=at(1)), 0, None, CANCELLED, LEAVE, LEAVE),
    ("scancel in the grace of a QOS", line("COMPLETING", at(0), end=at(2)), 0, 0, CANCELLED, LEAVE, LEAVE),
    ("cancelled, all over", line("CANCELLED", at(0), end=at(0)), 0, 0, CANCELLED, LEAVE, LEAVE),
    ("no time of its end", line("COMPLETING", at(0), end="Unknown"), 0, 0, CANCELLED, LEAVE, LEAVE),
    ("suspended", line("SUSPENDED"), 0, None, WARNED, REQUEUE, AGAIN),
    ("stopped in its grace", line("STOPPED", at(0)), 0, 60, PREEMPTED, REQUEUE, REQUEUE),
    ("a state of the future", line("HIBERNATING"), 0, None, CANCELLED, LEAVE, LEAVE),
    ("Slurm does not answer", None, 0, None, UNKNOWN, WAIT, WAIT),
]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "restart_count", "grace", "reason", "warned", "died"),
    [row[1:] for row in TABLE],
    ids=[r[0] for r in TABLE],
)
def test_each_row_of_the_table_has_its_reason_and_its_deed(
    said: str | None, restart_count: int, grace: float | None, reason: str, warned: str, died: str
) -> None:
    found = why(None if said is None else JobFacts.parse(said), restart_count, grace)
    assert found == reason
    assert deed(found, crashed=False) == warned
    assert deed(found, crashed=True) == died


def test_nothing_but_a_cancellation_a_take_back_and_silence_leaves_a_job_that_was_warned() -> None:
    known = {PREEMPTED, WARNED, REQUEUED, TIME_LIMIT, PREEMPTED_AWAY, CONDUCTOR_DIED, CANCELLED, UNKNOWN}
    assert {reason for *_, reason, _, _ in TABLE} == known
    assert {reason for reason in known if deed(reason, crashed=False) != REQUEUE} == {REQUEUED, CANCELLED, UNKNOWN}


def test_the_facts_are_read_word_by_word() -> None:
    facts = JobFacts.parse(line(preempted=PREEMPTED_AT, restarts=3, end=at(5), requeue=0))
    assert (facts.state, facts.reason, facts.restarts, facts.requeue) == ("RUNNING", "None", 3, False)
    assert facts.preempt_time == datetime(2026, 11, 22, 18, 24, 47).timestamp()
    assert facts.end_time == datetime(2026, 11, 22, 18, 24, 52).timestamp()
    assert facts.partition == "preemptible"
    assert facts.text.startswith("JobId=17 JobName=first-pretrain")


@pytest.mark.parametrize(
    "lie",
    [
        {"name": "x JobState=CANCELLED Restarts=7"},
        {"name": "a PreemptTime=2020-01-01T00:00:00 EndTime=2020-01-01T00:00:00 Reason=TimeLimit"},
        {"comment": "Comment=JobState=FAILED Restarts=9 PreemptTime=2020-01-01T00:00:00 "},
        {"comment": "Comment=a UserId=you JobState=COMPLETING Reason=TimeLimit "},
    ],
    ids=str,
)
def test_what_a_name_or_a_comment_says_is_not_what_slurm_says(lie: dict[str, str]) -> None:
    facts = JobFacts.parse(line(**lie))
    assert (facts.state, facts.reason, facts.restarts, facts.preempt_time) == ("RUNNING", "None", 0, None)
    assert why(facts, 0) == WARNED


def test_fields_that_another_version_leaves_out_have_their_usual_values() -> None:
    facts = JobFacts.parse("JobId=17 JobState=RUNNING Restarts=many")
    assert (facts.reason, facts.restarts, facts.preempt_time, facts.end_time) == ("None", 0, None, None)
    assert facts.requeue
    assert why(facts, 0) == WARNED


@pytest.mark.parametrize("text", ["", "slurm_load_jobs error: Invalid job id specified", "JobId=17 JobName=JobState=x"])
def test_what_describes_no_job_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no JobState"):
        JobFacts.parse(text)
