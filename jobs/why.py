"""Why was this job signalled, and what is to be done about it: a pure function of what Slurm says about the job.

| JobState | PreemptTime | Restarts > SLURM_RESTART_COUNT | Reason | why | the run was warned: | its processes died: |
|---|---|---|---|---|---|---|
| any | | yes | | requeued | leave | leave |
| RUNNING | set | no | | preempted (in its grace) | requeue | requeue |
| RUNNING | none | no | | warned (time limit, or by hand) | requeue | again, in this allocation |
| COMPLETING | set, at EndTime, and the partition has no grace | no | | cancelled by preemption | requeue | requeue |
| COMPLETING | none | no | TimeLimit | time limit | requeue | requeue |
| COMPLETING | none | no | JobLaunchFailure, OutOfMemory, ... | conductor died | requeue | requeue |
| COMPLETING | none, or any other | no | None | cancelled | leave | leave |
| Slurm does not answer | | | | unknown | wait | wait |

Measured on Slurm 22.05: a job may requeue itself as long as one of its processes lives, even after Slurm has begun to
end it, whatever the reason; so `scancel` must be told from everything else. All signals look the same from inside.
When a grace is over and nobody has left, Slurm sets PreemptTime to that moment: it looks like a `scancel` in the first
second of a grace, and is taken for one, since `scancel` cancels always.
"""

import re
from dataclasses import dataclass
from datetime import datetime

PREEMPTED = "preempted"
WARNED = "warned"
REQUEUED = "requeued"
TIME_LIMIT = "time limit"
PREEMPTED_AWAY = "cancelled by preemption"
CONDUCTOR_DIED = "conductor died"
CANCELLED = "cancelled"
UNKNOWN = "unknown"
ENDED_BY_SLURM = (PREEMPTED, REQUEUED, TIME_LIMIT, PREEMPTED_AWAY, CANCELLED)
"""What has all processes of a job killed, whatever they do."""

REQUEUE, LEAVE, AGAIN, WAIT = "requeue", "leave", "again", "wait"
GIVE_UP, DONE = "give up", "done"

ALIVE = ("RUNNING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT", "CONFIGURING")
LAUNCH_FAILURES = (
    *("JobLaunchFailure", "NonZeroExitCode", "RaisedSignal", "OutOfMemory", "NodeDown", "SystemFailure", "Prolog"),
    *("OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL"),
)


@dataclass(frozen=True)
class JobFacts:
    """What `scontrol show job` says about a job, as far as it matters here; times in seconds of the local clock.

    preempt_time: when Slurm chose to preempt it; None if it did not. end_time: when it ended or will end at the latest.
    requeue: whether Slurm may requeue it. text: all that was said.
    """

    state: str
    reason: str
    restarts: int
    preempt_time: float | None
    end_time: float | None
    requeue: bool
    partition: str
    text: str = ""

    @classmethod
    def parse(cls, text: str) -> "JobFacts":
        """Read the one line of `scontrol show job --oneliner ID`; fields of other versions of Slurm may be missing.

        Raises:
            ValueError: this describes no job.
        """
        fields: dict[str, str] = {}
        # The name comes first, and may hold anything.
        nameless = re.sub(r"(?<=\bJobName=).*?(?=\sUserId=)", "", text, count=1)
        for name, value in re.findall(r"(?:^|\s)([A-Za-z]+)=(\S*)", nameless):
            fields.setdefault(name, value)  # later ones may be part of a comment or a path
        if "JobState" not in fields:
            raise ValueError(f"no JobState in {text[:80]!r}")
        restarts = fields.get("Restarts", "0")
        return cls(
            state=fields["JobState"],
            reason=fields.get("Reason", "None"),
            restarts=int(restarts) if restarts.isdecimal() else 0,
            preempt_time=_time(fields.get("PreemptTime")),
            end_time=_time(fields.get("EndTime")),
            requeue=fields.get("Requeue", "1") != "0",
            partition=fields.get("Partition", ""),
            text=text.strip(),
        )


def _time(text: str | None) -> float | None:
    try:
        return datetime.fromisoformat(text or "").timestamp()
    except ValueError:  # None, Unknown, N/A
        return None


def why(facts: JobFacts | None, restart_count: int, grace: float | None = None) -> str:
    """What has happened to a job.

    facts: None if Slurm does not answer. restart_count: SLURM_RESTART_COUNT of the incarnation that asks, 0 where it is
    not set. grace: GraceTime of the job's partition, seconds; None if it is not known.
    """
    if facts is None:
        return UNKNOWN
    if facts.restarts > restart_count:
        return REQUEUED
    if facts.state in ALIVE:
        return WARNED if facts.preempt_time is None else PREEMPTED
    if facts.state == "PENDING":  # of this incarnation nothing is left in Slurm's books
        return REQUEUED
    if facts.reason == "TimeLimit" or facts.state == "TIMEOUT":
        return TIME_LIMIT
    if facts.preempt_time is not None and facts.state != "CANCELLED" and _was_preempted_away(facts, grace):
        return PREEMPTED_AWAY
    if facts.reason.partition(":")[0] in LAUNCH_FAILURES or facts.state in LAUNCH_FAILURES:
        return CONDUCTOR_DIED
    return CANCELLED


def _was_preempted_away(facts: JobFacts, grace: float | None) -> bool:
    """Whether a preempted job was ended by its preemption for sure, not by a `scancel` during its grace."""
    if grace or facts.end_time is None or facts.preempt_time is None:
        return False
    # Both are whole seconds, taken one after the other. The grace may also be one of the QOS.
    return 0 <= facts.end_time - facts.preempt_time <= (0 if grace is None else 1)


def deed(reason: str, crashed: bool) -> str:
    """What to do about it. crashed: processes died of themselves; otherwise they were warned, and left in order."""
    if reason == WARNED:
        return AGAIN if crashed else REQUEUE
    if reason in (PREEMPTED, TIME_LIMIT, PREEMPTED_AWAY, CONDUCTOR_DIED):
        return REQUEUE
    return WAIT if reason == UNKNOWN else LEAVE
