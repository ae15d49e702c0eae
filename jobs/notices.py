"""What a run has to tell its owner, derived from its history and its events: pure functions, so that whoever reads the
same files at any later time finds the same notices under the same keys."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agl_core.config.option import NOTIFICATIONS
from agl_core.reporting.events import is_finite
from jobs.history import BEGIN, CRASHED, DONE, Entry, Incarnation, incarnations
from jobs.why import AGAIN, CANCELLED, GIVE_UP, REQUEUE

FORMAT = "geopose-notification-1"
START, STAGE_ENDED, INTERRUPTION, STALL, GIVEN_UP, SCORE, RUN_ENDED = NOTIFICATIONS
MOST_TEXT = 600  # characters of a sentence
MOST_TRACEBACK = 4000
SCORES = ("score", "ema_score")  # of a validation: that of the weights, and of their average if there is one
DEEDS = {
    AGAIN: "it is started again at once",
    REQUEUE: "it goes back to the queue and continues by itself",
}


@dataclass(frozen=True)
class Notice:
    """One thing to tell, once in a run's life.

    event: one of `NOTIFICATIONS`; key: the same whenever the same thing is found; time: when it happened, unix time;
    text: one sentence; step: the last that is known; restarts: of the job so far; why, deed: as the history says."""

    event: str
    key: str
    time: float
    job: str
    text: str
    step: int | None = None
    score: float | None = None
    restarts: int = 0
    why: str = ""
    deed: str = ""
    traceback: str = ""


@dataclass(frozen=True)
class Course:
    """What is known about a run beside its history. stages: names of those jobs that train; last: the job whose end is
    that of the run; finished: whether all jobs are done; scores, steps: of jobs that are done, by name; official: the
    score of the predictions."""

    run: str
    stages: Collection[str] = ()
    last: str = ""
    finished: bool = False
    scores: Mapping[str, float] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)
    official: float | None = None


def as_json(notice: Notice, run: str, path: str, host: str) -> dict[str, Any]:
    """What the command gets: every key is always there."""
    return {
        "format": FORMAT,
        "event": notice.event,
        "run": run,
        "path": path,
        "job": notice.job,
        "time": notice.time,
        "host": host,
        "text": one_line(notice.text),
        "step": notice.step,
        "score": notice.score,
        "why": one_line(notice.why),
        "deed": one_line(notice.deed),
        "restarts": notice.restarts,
        "traceback": plain(notice.traceback)[-MOST_TRACEBACK:],
    }


def from_history(entries: Sequence[Entry], course: Course) -> list[Notice]:
    """What the starts and ends of all jobs say, in the order of time."""
    found: list[Notice] = []
    for job in dict.fromkeys(entry["job"] for entry in entries if entry["job"]):
        known, earlier = incarnations(entries, job), 0
        for number, each in enumerate(known):
            if each.begin["kind"] == BEGIN:
                found.append(_started(each, course, earlier))
            if each.end is not None:
                found += _ended(each, each.end, course, earlier)
            elif number + 1 < len(known):
                found.append(_killed(each, known[number + 1].begin, course, earlier))
            earlier += each.end is None or each.end.get("end") != DONE
    return sorted(found, key=lambda notice: notice.time)


def _started(each: Incarnation, course: Course, restarts: int) -> Notice:
    begin = each.begin
    again = f", start {restarts + 1}" if restarts else ""
    step = begin.get("step") if begin["job"] in course.stages else None
    after = f" from step {step}" if step else ""
    text = f"run {course.run}: {begin['job']} has started on {begin.get('host', 'an unknown machine')}{after}{again}"
    return Notice(START, _key(START, each), begin["time"], begin["job"], text, _whole(step), restarts=restarts)


def _ended(each: Incarnation, end: Entry, course: Course, restarts: int) -> list[Notice]:
    job = str(end["job"])
    if end.get("end") == DONE:
        return _done(job, end["time"], course, restarts)
    why, deed, said = (str(end.get(name) or "") for name in ("why", "deed", "text"))
    if end.get("end") == CRASHED and why != CANCELLED:
        why = CRASHED  # which nobody outside had a part in
    step = _whole(end.get("step")) if job in course.stages else None
    at = f" at step {step}" if step else ""
    about: dict[str, Any] = {"step": step, "restarts": restarts, "why": why, "deed": deed}
    if deed == GIVE_UP:
        text = f"run {course.run}: {job} has failed{at} and is not started again: {said or 'nothing was said'}"
        traceback = str(end.get("traceback") or "")
        return [Notice(GIVEN_UP, _key(GIVEN_UP, each), end["time"], job, text, traceback=traceback, **about)]
    reasons = f" ({why})" if why else ""
    next_ = DEEDS.get(deed, f"it stays ended until `python launch.py resume {course.run}`")
    if why == CANCELLED:
        next_ = f"it was cancelled; python launch.py resume {course.run} continues it"
    text = f"run {course.run}: {job} was interrupted{at}{reasons}: {next_}" + (f"; {said}" if said else "")
    return [Notice(INTERRUPTION, _key(INTERRUPTION, each), end["time"], job, text, **about)]


def _killed(each: Incarnation, later: Entry, course: Course, restarts: int) -> Notice:
    """Of a start that left no word, and after which there was another one."""
    job = str(each.begin["job"])
    text = (
        f"run {course.run}: {job} was killed with all its processes, or its node was lost, before anything could be "
        "written down; it has started again"
    )
    key = _key(INTERRUPTION, each)
    return Notice(INTERRUPTION, key, later["time"], job, text, restarts=restarts, why="killed", deed=AGAIN)


def _done(job: str, time: float, course: Course, restarts: int) -> list[Notice]:
    found = []
    score, steps = course.scores.get(job), course.steps.get(job)
    if job in course.stages:
        text = f"run {course.run}: stage {job} has ended"
        text += (f" after {steps} steps" if steps else "") + (
            f", best validated score {score:.4f}" if score is not None else ""
        )
        found.append(Notice(STAGE_ENDED, f"{STAGE_ENDED}.{job}", time, job, text, steps, score, restarts))
    if job == course.last and course.finished:
        best = [course.scores[name] for name in course.stages if name in course.scores][-1:]
        score = course.official if course.official is not None else (best[0] if best else None)
        of = "of its predictions" if course.official is not None else "of its last stage's validations"
        text = f"run {course.run} is finished" + (f", score {score:.4f} {of}" if score is not None else "")
        found.append(Notice(RUN_ENDED, f"{RUN_ENDED}.{job}", time, job, text, steps, score, restarts))
    return found


def from_validation(event: Mapping[str, Any], wanted: float, run: str) -> Notice | None:
    """That a validation reached the score `wanted`, if it did; its key is the same for every one that does."""
    scores = [float(event[name]) for name in SCORES if is_number(event.get(name))]
    if event.get("kind") != "validation" or not scores or max(scores) < wanted or not is_number(event.get("time")):
        return None
    job, step, score = str(event.get("stage", "")), _whole(event.get("step")), max(scores)
    at = f" at step {step}" if step is not None else ""
    text = f"run {run}: {job} has reached the validated score {score:.4f}{at} ({wanted:g} was asked for)"
    return Notice(SCORE, f"{SCORE}.{wanted!r}", float(event["time"]), job, text, step, score)


def stalled(run: str, job: str, minutes: float, sign: str, now: float, step: int | None, restarts: int) -> Notice:
    """That a job that runs has given no sign of life for so many minutes. sign: stands for the last one."""
    at = f" since step {step}" if step is not None else ""
    text = (
        f"run {run}: {job} has shown no sign of life for {minutes:g} minutes{at}, though its processes have not ended; "
        f"see `python launch.py logs {run}`"
    )
    return Notice(STALL, f"{STALL}.{job}.{sign}", now, job, text, step, restarts=restarts)


def is_number(value: Any) -> bool:
    """Whether it is a finite number; what stands in a file may be anything."""
    return is_finite(value)


def one_line(text: str) -> str:
    """A text as one line without control characters, not too long: it may become the subject of a mail."""
    return plain(" ".join(text.split()))[:MOST_TEXT]


def plain(text: str) -> str:
    """A text without what a terminal would obey."""
    return "".join(char if char in "\n\t" or char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _whole(value: Any) -> int | None:
    return int(value) if is_number(value) else None


def _key(event: str, each: Incarnation) -> str:
    """Of one start of a job, whether its end is known or not."""
    begin = each.begin
    which = (begin["id"].replace(" ", "-"), begin.get("restart", 0), begin.get("attempt", 0))
    return ".".join(map(str, (event, begin["job"], *which, round(1000 * begin["time"]))))
