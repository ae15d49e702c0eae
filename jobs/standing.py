"""Where a run and each of its jobs stand: pure functions of what its folder says, of Slurm's queue and of the time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agl_core.reporting.live.snapshot import Snapshot
from jobs.history import (
    CANCEL,
    CRASHED,
    DONE,
    INTERRUPTED,
    REFUSED,
    TAKEN_OVER,
    Entry,
    Incarnation,
    incarnations,
    restarts,
)
from jobs.pace import last_sign, of_kind, progress, reasons, seconds_left
from jobs.pipeline import EVALUATE, PREDICT
from jobs.scontrol import QueuedJob
from jobs.survey import Findings
from jobs.why import CANCELLED, GIVE_UP

WAITING, RUNNING, ENDING, UNKNOWN = "waiting", "running", "ending", "unknown"
FAILED, GAVE_UP, LOST, NOT_STARTED = "failed", "gave up", "lost", "not started"
ACTIVE = (WAITING, RUNNING, ENDING, UNKNOWN)
"""States in which a job may still do something; beside these there are done, interrupted and cancelled."""

SILENCE = 600.0
"""Seconds without a sign of life after which a process that nobody can look at is taken for dead."""

TURN = "until its turn comes"
Queue = Mapping[str, QueuedJob]
WAITS = {
    "Dependency": "until the jobs before it are done",
    "DependencyNeverSatisfied": "for a job that has failed: cancel it",
    "Priority": "until jobs of higher priority have started",
    "Resources": "until nodes are free",
    "BeginTime": "after a requeue, until Slurm lets it start again",
    "JobHeldUser": "held by its owner: scontrol release it",
    "JobHeldAdmin": "held by an administrator",
}


@dataclass(frozen=True)
class JobStanding:
    """One job. detail: what the state means here; steps, epochs: in total; score: best validated so far, of `evaluate`
    that of the predictions; reasons: of its restarts, with their number; last_sign: unix time; seconds_left: at its
    recent rate; limit_left: seconds of the time limit; start: when Slurm expects to start it; text, traceback: of an
    end that was not a good one; data_wait: share of the time (0 to 1) that its newest steps have waited for data."""

    job: str
    state: str
    detail: str = ""
    id: str = ""
    step: int | None = None
    steps: int | None = None
    epoch: int | None = None
    epochs: int | None = None
    score: float | None = None
    restarts: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    last_sign: float | None = None
    seconds_left: float | None = None
    limit_left: float | None = None
    start: str = ""
    text: str = ""
    traceback: str = ""
    data_wait: float | None = None


@dataclass(frozen=True)
class RunStanding:
    """A run: `stage` is the job that says most about it now. snapshot: what its events say of time, costs and end."""

    run: str
    path: str
    stage: str
    state: str
    last_sign: float | None
    note: str
    jobs: tuple[JobStanding, ...]
    snapshot: Snapshot | None = None

    @property
    def current(self) -> JobStanding | None:
        """The standing of `stage`."""
        return next((job for job in self.jobs if job.job == self.stage), None)

    @property
    def active(self) -> bool:
        """Whether any of its jobs may still do something."""
        return any(job.state in ACTIVE for job in self.jobs)

    @property
    def score(self) -> float | None:
        """The newest validated score of its stages."""
        return next((job.score for job in reversed(self.jobs) if job.score is not None and job.job != EVALUATE), None)


def assess(findings: Findings, queue: Queue | None, ended: Mapping[str, str], now: float) -> RunStanding:
    """Where a run stands. queue: the jobs that Slurm has, None if it does not answer; ended: what it says about those
    that it has no more, by id; now: unix time."""
    jobs: list[JobStanding] = []
    for name in findings.jobs:
        jobs.append(_assess_job(findings, name, queue, ended, now, jobs))
    current = _current(jobs)
    signs = [job.last_sign for job in jobs if job.last_sign is not None]
    return RunStanding(
        run=findings.run.name,
        path=str(findings.run.path),
        stage=current.job if current else "",
        state=current.state if current else NOT_STARTED,
        last_sign=max(signs, default=None),
        note=findings.damage,
        jobs=tuple(jobs),
    )


def vanished(standing: RunStanding) -> list[str]:
    """The Slurm ids of jobs of which it is not known how they ended."""
    return [job.id for job in standing.jobs if job.id.isdecimal() and job.state in (LOST, NOT_STARTED)]


def _current(jobs: Sequence[JobStanding]) -> JobStanding | None:
    """The job that runs; else the first that is not done and was begun or waits; else what comes next, or the last."""
    for wanted in ((RUNNING, ENDING), (FAILED, GAVE_UP, LOST, CANCELLED, INTERRUPTED), (WAITING, UNKNOWN)):
        for job in jobs:
            if job.state in wanted:
                return job
    left = [job for job in jobs if job.state != DONE] or jobs[-1:]
    return left[0] if left else None


@dataclass(frozen=True)
class _Case:
    """One job with all that is known about it. newest: its last start, of the last submission or later; queued: what
    Slurm has of it now; sign: its last sign of life."""

    findings: Findings
    name: str
    newest: Incarnation | None
    queued: QueuedJob | None
    slurm_answers: bool
    ended: Mapping[str, str]
    sign: float | None
    now: float

    @property
    def id(self) -> str:
        """The job's id, Slurm's or that of a process; empty if it has none."""
        if self.queued is not None:
            return self.queued.id
        return str(self.newest.begin["id"]) if self.newest else self.findings.submitted.get(self.name, "")

    @property
    def local(self) -> bool:
        """Whether a process of a machine did it, without Slurm."""
        return not self.id.isdecimal()

    @property
    def end(self) -> Entry:
        """How the last start ended; empty if it did not."""
        return (self.newest.end if self.newest else None) or {}


def _assess_job(
    findings: Findings, name: str, queue: Queue | None, ended: Mapping[str, str], now: float, before: list[JobStanding]
) -> JobStanding:
    known = incarnations(findings.entries, name)
    newest = _newest(findings, name, known)
    queued = (queue or {}).get(findings.submitted.get(name, ""))
    sign = last_sign(findings, name, newest)
    case = _Case(findings, name, newest, queued, queue is not None, ended, sign, now)
    state, detail = (
        _recorded(case) or _in_queue(case) or _from_history(case) or _from_events(case) or _next(findings, before)
    )
    if state == RUNNING and name == PREDICT:
        detail = ", ".join(
            filter(None, [detail, f"{findings.predicted} image{'s' * (findings.predicted != 1)} predicted"])
        )
    bad = state in (FAILED, GAVE_UP, LOST, INTERRUPTED, CANCELLED)
    return JobStanding(
        job=name,
        state=state,
        detail=detail,
        id=case.id,
        **progress(findings, name),
        restarts=restarts(findings.entries, name)
        if known
        else max(len(of_kind(findings.events, name, "start")) - 1, 0),
        reasons=reasons(known),
        last_sign=sign,
        seconds_left=None if state == DONE else seconds_left(findings.events, name),
        limit_left=queued.time_left if queued is not None and queued.state == "RUNNING" else None,
        start=queued.start if queued is not None and queued.state == "PENDING" else "",
        text=str(case.end.get("text", "")) if bad else "",
        traceback=str(case.end.get("traceback", "")) if bad else "",
    )


def _newest(findings: Findings, name: str, known: Sequence[Incarnation]) -> Incarnation | None:
    """The last start of a job, if it belongs to the last submission or came after it."""
    if not known:
        return None
    begin, id = known[-1].begin, findings.submitted.get(name)
    earlier = id is not None and begin["id"] != id and begin["time"] < findings.submitted_at
    return None if earlier else known[-1]


def _recorded(case: _Case) -> tuple[str, str] | None:
    return (DONE, "") if case.name in case.findings.records else None


def _in_queue(case: _Case) -> tuple[str, str] | None:
    job = case.queued
    if job is None:
        return None
    if job.state == "PENDING":
        reason = WAITS.get(job.reason, job.reason)
        return WAITING, " ".join([reason, *([f"({case.end['why']})"] if case.end.get("why") else [])])
    if job.state == "COMPLETING":
        return ENDING, ""
    if case.newest is None or case.newest.begin["id"] != job.id:
        return RUNNING, "starting"
    return RUNNING, "" if job.state == "RUNNING" else job.state.lower()


def _from_history(case: _Case) -> tuple[str, str] | None:
    """What the last start of a job says that is not in the queue, or that there was none of the last submission."""
    if not case.id:
        return None
    told = _told(case.end, case.local) if case.end else None
    holder = case.findings.holder
    if case.local and holder is not None and case.id != f"pid {holder.pid}" and told != (DONE, ""):
        return WAITING, TURN  # of what the launcher has to do
    cancelled = _cancelled(case.findings.entries, case.id, case.newest)
    if told is not None:
        return (CANCELLED, "") if told[0] == INTERRUPTED and cancelled else told
    if case.local and holder is not None:
        return RUNNING, f"process {holder.pid} on {holder.host}"
    if cancelled:
        return CANCELLED, ""
    if not case.local and not case.slurm_answers:
        return UNKNOWN, "Slurm does not answer"
    if case.local and _elsewhere(case):
        return RUNNING, f"on {case.newest.begin['host']}" if case.newest else ""
    return _gone(case)


def _gone(case: _Case) -> tuple[str, str]:
    """Of a job that should be there, and is not."""
    said = case.ended.get(case.id, "")
    if said.startswith("CANCELLED"):
        return CANCELLED, "by scancel, or by an administrator"
    if case.newest is None:
        return NOT_STARTED, f"Slurm says {said}" if said else "its job left the queue before it could start"
    if said:
        return LOST, f"Slurm says {said}"
    if case.end:
        return LOST, "it went back to the queue and is not there any more"
    return LOST, "killed with all its processes" if case.local else "killed with all its processes, or its node was"


def _told(end: Entry, local: bool) -> tuple[str, str] | None:
    """The state that the end of a job's last start tells; None if it was to be started again, but is not there."""
    how, why, deed = str(end.get("end", "")), str(end.get("why", "")), str(end.get("deed", ""))
    if how == DONE:
        return DONE, ""
    if why == CANCELLED:
        return CANCELLED, ""
    if how == REFUSED:
        return FAILED, "something must be mended first"
    if deed == GIVE_UP:  # on this machine nobody has tried more than once
        return (FAILED if local else GAVE_UP), ""
    if deed in ("again", "requeue"):
        return None
    if how == TAKEN_OVER:
        return INTERRUPTED, "another process has taken it over"
    return (FAILED, why) if how == CRASHED else (INTERRUPTED, why)


def _cancelled(entries: Sequence[Entry], id: str, newest: Incarnation | None) -> bool:
    """Whether the user has cancelled the job `id` since it began."""
    since = newest.begin["time"] if newest is not None else 0.0
    local = not id.isdecimal()  # the launcher was told, whichever process wrote the begin
    return any(
        entry["kind"] == CANCEL
        and entry["time"] >= since
        and (id in entry["id"].split(",") or (local and entry["id"].startswith("pid ")))
        for entry in entries
    )


def _elsewhere(case: _Case) -> bool:
    """Whether a process on another machine, whose locks may not be seen here, was alive just now."""
    away = case.newest is not None and case.newest.begin.get("host", case.findings.host) != case.findings.host
    return away and case.sign is not None and case.now - case.sign < SILENCE


def _from_events(case: _Case) -> tuple[str, str] | None:
    """For a run without a history: what its events say."""
    findings = case.findings
    own = [event for event in findings.events if event.get("stage") == case.name]
    if not own:
        return None
    last = findings.events[-1].get("stage") == case.name
    if last and findings.holder is not None:
        return RUNNING, f"process {findings.holder.pid} on {findings.holder.host}"
    left = own[-1].get("kind") == "interruption"
    return (INTERRUPTED, str(own[-1].get("signal", ""))) if left else (LOST, "it did not come to its end")


def _next(findings: Findings, before: Sequence[JobStanding]) -> tuple[str, str]:
    """Of a job that never began."""
    if findings.holder is None:
        return NOT_STARTED, ""
    return WAITING, WAITS["Dependency"] if any(job.state in ACTIVE for job in before) else TURN
