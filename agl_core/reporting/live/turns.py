"""What a run is doing, by the events of how its jobs began and ended: state, and a sentence about it."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from agl_core.reporting.events import CANCEL, JOB_KINDS, LAUNCH, LEAVE, SUBMIT
from agl_core.reporting.live import snapshot as states
from agl_core.reporting.words import clean, in_words, moment, reason, span

Event = Mapping[str, Any]
State = tuple[str, str, float | None]
"""One of the states of `agl_core.reporting.live.snapshot`, a sentence about it, and since when (unix time)."""

SILENCE = 600.0  # seconds without a sign of life after which a process is called silent
BEGINNINGS = (LAUNCH, "start")
ENDINGS = (LEAVE, CANCEL, SUBMIT, "interruption", "refusal", "finish")
"""Kinds of turns after which no process is expected to be there."""
TURNS = (*JOB_KINDS, "start", "startup", "rollback", "interruption", "refusal", "finish")
"""Kinds of events with which something begins or ends."""


class Turns:
    """Takes the events with which jobs begin and end, and the first step of each start.

    planned: jobs that come after the stages; done: jobs of which a record says that they are; dead: whether somebody
    has seen that the process that was launched last is gone; requeued: whether its job is in the queue again; idle:
    whether somebody has seen that no process holds the run. They may be set at any time.
    """

    def __init__(self) -> None:
        self.planned: tuple[str, ...] = ()
        self.done: Collection[str] = ()
        self.dead = self.requeued = self.idle = False
        self._job = ""  # that did something last
        self._newest: dict[str, Event] = {}  # by job
        self._launch: dict[str, Event] = {}

    def add(self, event: Event) -> None:
        """Take an event; those that turn nothing are let pass."""
        kind, job = event["kind"], event["stage"]
        if kind == CANCEL:
            self._cancel(event)
        elif kind in JOB_KINDS:
            self._take(kind, job, event)
        elif kind == "interruption" and self._newest.get(job, {}).get("kind") == CANCEL:
            self._job = job  # it is why
        elif kind in TURNS or (kind == "step" and self._newest.get(job, {}).get("kind") in (*BEGINNINGS, SUBMIT)):
            self._job, self._newest[job] = job, event
        else:
            self._job = job

    def _take(self, kind: str, job: str, event: Event) -> None:
        if kind == LEAVE and self._newest.get(job, {}).get("kind") == CANCEL and event.get("end") != "done":
            event = {**event, "why": "cancelled", "deed": "leave"}
        self._newest[job] = event
        if kind == LAUNCH:
            self._launch[job] = event
        if kind != SUBMIT:  # all jobs of a run are submitted at once
            self._job = job

    def _cancel(self, event: Event) -> None:
        ids = str(event.get("ids", "")).split(",")
        for job, turn in self._newest.items():
            if str(turn.get("id", self._launch.get(job, {}).get("id", ""))) in ids and not self.finished(job):
                self._newest[job] = {**event, "stage": job}

    def finished(self, job: str) -> bool:
        """Whether a job has come to its end."""
        turn = self._newest.get(job, {})
        return job in self.done or turn.get("kind") == "finish" or (turn.get("end") == "done" and "deed" in turn)

    def at(self, stages: Sequence[str]) -> str:
        """The job that says most: the newest that did something, or what comes next where that is done."""
        jobs = [*stages, *(job for job in self.planned if job not in stages)]
        if self._job and not self.finished(self._job):
            return self._job
        left = [job for job in jobs if not self.finished(job)]
        if self._job in jobs:
            left = [job for job in left if jobs.index(job) > jobs.index(self._job)]
        return left[0] if left else self._job or (jobs[0] if jobs else "")

    def place(self, job: str) -> tuple[str, str]:
        """Host and id of the newest launch of a job."""
        launch = self._launch.get(job, {})
        return str(launch.get("host") or ""), str(launch.get("id") or "")

    def state(self, job: str, now: float, sign: float | None) -> State:
        """What `job` does at `now` (unix time), as far as this can be known from the outside. sign: its last sign of
        life."""
        turn = self._newest.get(job)
        if self.finished(job):
            return states.FINISHED, "", turn["time"] if turn else None
        if turn is None or turn["kind"] == SUBMIT:
            return self._waiting(job, turn, now)
        kind, at = turn["kind"], turn["time"]
        if kind == LEAVE:
            return _left(turn, now, self.dead)
        if kind == CANCEL:
            return states.CANCELLED, f"was cancelled by its owner at {moment(at, now)}", at
        if kind == "interruption":
            signal = in_words(clean(turn.get("signal", "")))
            return states.INTERRUPTED, f"was interrupted at {moment(at, now)}: {signal}", at
        if kind == "refusal":
            return states.FAILED, f"failed at {moment(at, now)}: {clean(turn.get('text', ''))}", at
        sign = max(at, sign or at)
        if self.requeued:
            told = f"waits in the queue, to go on; it was killed without a warning, {_since_last_sign(sign, now)}"
            return states.WAITS, told, sign
        if self.dead:
            told = f"was killed without a warning, {_since_last_sign(sign, now)}"
            return states.INTERRUPTED, told, sign
        if now - sign > SILENCE:
            told = f"has given no sign of life for {span(now - sign)}, since {moment(sign, now)}: it may be dead"
            return states.SILENT, told, sign
        if kind in BEGINNINGS:
            return self._starting(job, turn, now)
        return states.TRAINS, "", at

    def ending(self, job: str, at: float) -> Event | None:
        """The end of a start of `job` that is known to be gone without a word, told at unix time `at`; else None."""
        turn = self._newest.get(job)
        if not (self.dead or self.requeued) or turn is None or turn["kind"] in ENDINGS or self.finished(job):
            return None
        who = {name: self._launch.get(job, {}).get(name) for name in ("id", "restart", "attempt")}
        told = {"end": "killed", "why": "", "deed": "requeue" if self.requeued else "", "text": ""}
        return {"time": at, "kind": LEAVE, "stage": job, **who, **told}

    def refused(self, job: str) -> bool:
        """Whether the newest start of `job` has ended as something must be mended first."""
        turn = self._newest.get(job, {})
        return turn.get("kind") == "refusal" or (turn.get("kind") == LEAVE and turn.get("end") == "refused")

    def works(self, job: str, now: float) -> State:
        """The same of a job that is no stage and has begun."""
        at = self._launch[job]["time"] if job in self._launch else now
        return states.WORKS, f"is at work since {_since(at, now)}", at

    def _waiting(self, job: str, turn: Event | None, now: float) -> State:
        before = self._newest.get(self._job)
        if turn is None and before is None:
            return states.NOT_STARTED, "nothing was started yet", None
        after = before["time"] if before is not None and self.finished(self._job) else None
        if turn is None:
            at = after if after is not None else before["time"] if before else now
            if self.idle and now - at > SILENCE:
                told = f"is not being worked on since {_since(at, now)}: {clean(job)} was not started"
                return states.NOT_STARTED, told, at
            return states.WAITS, f"waits for its turn since {_since(at, now)}", at
        at = max(turn["time"], after or 0.0)
        begin = "go on" if self._launch.get(turn["stage"]) else "begin"
        return states.WAITS, f"waits in the queue since {_since(at, now)}, to {begin}", at

    def _starting(self, job: str, turn: Event, now: float) -> State:
        launch = self._launch.get(job, turn)
        at = launch["time"] if 0 <= turn["time"] - launch["time"] < SILENCE else turn["time"]
        told = "its processes have met and wait for their first step" if turn["kind"] == "start" else ""
        return states.STARTS, f"is starting since {_since(at, now)}" + (f"; {told}" if told else ""), at


def _left(turn: Event, now: float, dead: bool) -> State:
    """Of a job whose newest start has ended, without being done. dead: nobody will start it again."""
    at, deed, end = turn["time"], turn.get("deed"), str(turn.get("end", ""))
    because = in_words(reason(end, str(turn.get("why", ""))))
    text = clean(turn.get("text", ""))
    if dead and deed in ("requeue", "again"):
        told = f"was interrupted at {moment(at, now)}: {text or because}; who would start it again is gone"
        return states.INTERRUPTED, told, at
    if deed == "requeue":
        return states.WAITS, f"waits in the queue since {_since(at, now)}, to go on; it was {because}", at
    if deed == "again":
        return states.STARTS, f"is started again since {_since(at, now)}: {text or because}", at
    if turn.get("why") == "cancelled":
        return states.CANCELLED, f"was cancelled by its owner at {moment(at, now)}", at
    if end in ("refused", "crashed") or deed == "give up":
        return states.FAILED, f"failed at {moment(at, now)}: {text or because}", at
    return states.INTERRUPTED, f"was interrupted at {moment(at, now)}: {because}", at


def _since_last_sign(sign: float, now: float) -> str:
    return f"after its last sign of life at {moment(sign, now)}"


def _since(at: float, now: float) -> str:
    return f"{moment(at, now)} ({span(now - at)})"
