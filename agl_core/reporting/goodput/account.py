"""Where the time of a run has gone: effective training time over wall time, itemised, from its events alone.

| item | what |
|---|---|
| training | steps whose result counts |
| data wait | seconds of these steps in which data was waited for |
| validation | of states that count |
| checkpoint | seconds by which saving held these steps up |
| start-up | from the launch of a job to the end of its first step |
| lost | steps that were done again or rolled back, with all that went on meanwhile |
| ending | from the last step to the end of the processes: the last save, leaving |
| queue | submitted or requeued, until launched |
| down | dead before anybody noticed, suspended by a scheduler, or nobody knows |
| stopped | ended by its owner, refused or given up, until it was started again |
| other jobs | prepare, predict, evaluate, report, ensemble |

Every moment from the first event to the last is in exactly one item; times are counted in whole milliseconds, so that
the items add up to the wall time to the last one. Where several things went on at once, steps that count go first, then
whatever a later start of a job was doing. Of the time that an event gives for its steps, without waiting for data, what
is more than ten times the usual (the median of the stage) and more than ten minutes is taken for a suspension. Clocks
of several machines are set right as far as the order of the file tells that one is behind (`goodput.lives`).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agl_core.reporting.goodput import lives as lived
from agl_core.reporting.goodput.courses import Course, chart
from agl_core.reporting.goodput.lives import group, milliseconds
from agl_core.reporting.goodput.shares import shares
from agl_core.reporting.goodput.spans import Layer, Piece, background, paint
from agl_core.reporting.goodput.waits import Reach, reach, running, states

ITEMS = (
    "training", "data wait", "validation", "checkpoint", "start-up", "lost", "ending", "queue", "down", "stopped",
    "other jobs",
)  # fmt: skip


@dataclass(frozen=True)
class Span:
    """A stretch of time (seconds since 1970) in one item; job, life: whose it is. Waiting in the queue is of the life
    that it comes before, being down or stopped of the one it comes after; "" and 0 where there is none."""

    begin: float
    end: float
    item: str
    job: str
    life: int


@dataclass(frozen=True)
class Life:
    """One start of one job; times in seconds since 1970.

    number: from 1, in the order in which they appeared. job: its name; id, restart, attempt, host: as its launch says,
    or "" and 0. queued: since when it waited to be launched, None if it did not. started: end of its first step, None
    if it has come to none. ended: None while nothing says or shows that it has. from_step, reached: the step it went on
    from, and the last it has done; kept: the last of these whose result counts; None for what is no stage or has not
    come so far. lost: how many of its steps were done again later, or rolled back. end, why, deed, text: see
    `jobs.history`, "" where its end was not written down.
    """

    number: int
    job: str
    id: str
    restart: int
    attempt: int
    host: str
    queued: float | None
    launched: float
    started: float | None
    ended: float | None
    from_step: int | None
    reached: int | None
    kept: int | None
    lost: int
    end: str
    why: str
    deed: str
    text: str


@dataclass(frozen=True)
class Account:
    """begin, end: of all, seconds since 1970; spans: contiguous from one to the other; lives: in their order; seconds:
    by item, all of `ITEMS`; steps: those whose result counts, of all stages; steps_lost: those that were done in vain;
    interruptions: how many starts of stages have ended before their stage was done, refusals left out."""

    begin: float
    end: float
    spans: tuple[Span, ...]
    lives: tuple[Life, ...]
    seconds: dict[str, float]
    steps: int
    steps_lost: int
    interruptions: int

    @property
    def wall(self) -> float:
        """Seconds from the first event to the last, or to now."""
        return round(self.end - self.begin, 3)

    @property
    def goodput(self) -> float:
        """The share of training, 0 to 1, in the time for which the run was wanted: without that in which its owner had
        stopped it."""
        wanted = self.wall - self.seconds["stopped"]
        return min(self.seconds["training"] / wanted, 1.0) if wanted > 0 else 0.0

    def as_json(self) -> dict[str, Any]:
        """For scripts: totals only."""
        return {
            "begin": self.begin,
            "end": self.end,
            "wall": self.wall,
            "goodput": round(self.goodput, 4),
            "seconds": self.seconds,
            "steps": self.steps,
            "steps_lost": self.steps_lost,
            "interruptions": self.interruptions,
        }


def account(events: Iterable[Mapping[str, Any]], now: float | None = None) -> Account | None:
    """Where the time has gone by the events of a run, as `agl_core.reporting.events.read_all` gives them; None if there
    are none.

    now: seconds since 1970; a run that is not finished is followed up to then: what runs goes on with what it does,
    what waits is in the queue. Events of runs from before there were launches, and any others that say less, are
    accounted for too: what is not known is put into the nearest item.
    """
    lives, calls = group(events)
    if not lives and not calls:
        return None
    begin = min([*(life.first for life in lives), *(call.time for call in calls)])
    last = max([*(max(life.last_sign, life.leave or begin) for life in lives), *(call.time for call in calls)])
    present = max(milliseconds(now) or last, last)
    since, waiting = states(lives, calls)
    alive = running(lives, calls, present)
    newest = max(lives, key=lambda life: (life.first, life.number), default=None)
    over = newest is not None and newest is not alive and newest.done and not waiting
    end = last if over else present
    reaches = {life.number: reach(life, lives, calls, alive, end) for life in lives}
    courses = _courses(lives, reaches, alive)
    layers = [*background(since, begin, end)]
    for life in lives:
        layers += _activity(life, courses.get(life.number), reaches[life.number])
    spans = _attributed(paint(layers, begin, end), lives)
    return _summary(begin, end, spans, lives, reaches, courses)


def _courses(lives: Sequence[lived.Life], reaches: Mapping[int, Reach], alive: lived.Life | None) -> dict[int, Course]:
    """The courses of stages, by the number of the life."""
    found: dict[int, Course] = {}
    for job in dict.fromkeys(life.job for life in lives):
        own = [life for life in lives if life.job == job]
        courses = chart(own, [reaches[life.number].until for life in own], alive)
        found |= {course.life.number: course for course in courses}
    return found


def _activity(life: lived.Life, course: Course | None, reach: Reach) -> Iterator[Layer]:
    """What a life did when: what counts over what others did at the same time."""
    number = life.number
    if course is None or course.started is None:
        item = "other jobs" if course is None and life.job in lived.OTHER_JOBS else "start-up"
        yield Layer(life.first, reach.stop, 1, item, number)
        return
    yield Layer(life.first, course.started, 1, "start-up", number)
    for (begin, end), item, waited, stalled, suspended in shares(course):
        if item != "training":
            yield Layer(begin, end, 1 if item == "lost" else 2, item, number)
            continue
        resting = end - min(suspended, end - begin)
        yield Layer(resting, end, 2, "down", number)
        end = resting
        saving = end - min(stalled, end - begin)
        waiting = saving - min(waited, saving - begin)
        yield Layer(begin, waiting, 2, "training", number)
        yield Layer(waiting, saving, 2, "data wait", number)
        yield Layer(saving, end, 2, "checkpoint", number)
    in_order = life.last_word is not None or life.left.get("end") in ("done", "interrupted", "refused")
    yield Layer(course.trained, reach.stop, 1, "ending" if in_order else "down", number)


def _attributed(pieces: Sequence[Piece], lives: Sequence[lived.Life]) -> list[Piece]:
    """What no life did is given to the one it was before or after; see `Span`."""
    ordered = sorted(lives, key=lambda life: (life.first, life.number))
    firsts = [life.first for life in ordered]
    found = []
    for piece in pieces:
        place = bisect_left(firsts, piece.end) if piece.item == "queue" else bisect_right(firsts, piece.begin) - 1
        if piece.life == 0 and 0 <= place < len(ordered):
            piece = piece._replace(life=ordered[place].number)
        found.append(piece)
    return found


def _summary(
    begin: int,
    end: int,
    pieces: Sequence[Piece],
    lives: Sequence[lived.Life],
    reaches: Mapping[int, Reach],
    courses: Mapping[int, Course],
) -> Account:
    jobs = {life.number: life.job for life in lives}
    queued = {piece.end: piece.begin for piece in pieces if piece.item == "queue"}
    sums = dict.fromkeys(ITEMS, 0)
    for piece in pieces:
        sums[piece.item] += piece.end - piece.begin
    told = tuple(_told(life, reaches[life.number], courses.get(life.number), queued) for life in lives)
    stages = {course.life.job for course in courses.values()}
    return Account(
        begin=begin / 1000,
        end=end / 1000,
        spans=tuple(Span(p.begin / 1000, p.end / 1000, p.item, jobs.get(p.life, ""), p.life) for p in pieces),
        lives=told,
        seconds={item: amount / 1000 for item, amount in sums.items()},
        steps=sum(course.steps_kept for course in courses.values()),
        steps_lost=sum(life.lost for life in told),
        interruptions=sum(_interrupted(life, one, stages) for life, one in zip(lives, told, strict=True)),
    )


def _told(life: lived.Life, reach: Reach, course: Course | None, queued: Mapping[int, int]) -> Life:
    """What is said of a life."""
    ended = reach.ended
    if ended is not None and course is not None and course.started is not None:
        ended = max(ended, course.trained)
    since = queued.get(life.first)
    left = {name: life.left.get(name, "") for name in ("end", "why", "deed", "text")}
    return Life(
        number=life.number,
        job=life.job,
        id=life.id,
        restart=life.restart,
        attempt=life.attempt,
        host=life.host,
        queued=None if since is None else since / 1000,
        launched=life.first / 1000,
        started=course.started / 1000 if course is not None and course.started is not None else None,
        ended=None if ended is None else ended / 1000,
        from_step=course.from_step if course else None,
        reached=course.reached if course else None,
        kept=course.kept_until if course else None,
        lost=course.reached - course.from_step - course.steps_kept if course else 0,
        **left,
    )


def _interrupted(life: lived.Life, told: Life, stages: Collection[str]) -> bool:
    """Whether this start of a stage has ended before its time."""
    stage = life.job in stages or life.job not in lived.OTHER_JOBS
    word = life.last_word
    refused = told.end == "refused" or (word is not None and word.kind == "refusal")
    return stage and told.ended is not None and not life.done and not refused
