"""The lives of a run: its events, grouped by the start of a job that they tell of. Part of `goodput`.

Nothing is promised about the events: numbers may be of any kind, lines missing, clocks wrong and writers several. Times
are whole milliseconds since 1970.

Each life tells the time by the clock of its machine, and clocks of machines differ. What is taken for granted is the
order of the file: a launch is written after its job was submitted, and after the starts before it of the same job of a
scheduler (of the same id, with an earlier restart or attempt) have begun, and left if they did so in order. So where
the clock of a launch is behind that, all times of its life are shifted by as much as is lacking. By how much a clock is
ahead cannot be told from a longer wait in the queue, and stays; of what lies between two machines, only the order is
sure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agl_core.reporting.events import CANCEL, LAUNCH, LEAVE, SUBMIT, is_finite

OTHER_JOBS = ("prepare", "predict", "evaluate", "report", "ensemble")
STEPPED = ("startup", "step", "skip")
"""Events that come with the end of a step."""
LAST_WORDS = ("interruption", "refusal", "finish")
"""Events after which a start does no more steps."""
FARTHEST = 10**14
"""Milliseconds from 1970 beyond which a time is none."""
LONGEST_STARTUP = 86_400_000
"""Milliseconds before its start event that a process can have been launched."""


@dataclass(frozen=True)
class Mark:
    """What a start says of itself at a time. seconds: how long what it tells of took; waited: for data, of it; share:
    of data wait, where only that is known; at: see `events`; to: of a rollback; all in milliseconds, None if not
    told."""

    time: int
    kind: str
    step: int | None = None
    seconds: int | None = None
    waited: int | None = None
    share: float | None = None
    at: int | None = None
    stall: int = 0
    to: int | None = None
    signal: str = ""


@dataclass
class Life:
    """A start of a job in the making. launch, leave: times of these events; begun: the step of its start event;
    before: what the launch says that the starts before had reached; left: the words of its leave event; shift: by how
    much the clock of its machine was behind, which is in all its times."""

    number: int
    job: str
    id: str = ""
    restart: int = 0
    attempt: int = 0
    host: str = ""
    launch: int | None = None
    before: int | None = None
    launched: int | None = None
    start: int | None = None
    begun: int | None = None
    marks: list[Mark] = field(default_factory=list)
    leave: int | None = None
    leave_step: int | None = None
    left: dict[str, str] = field(default_factory=dict)
    shift: int = 0

    @property
    def first(self) -> int:
        """When it began, as far as anything tells."""
        known = [time for time in (self.launch, self.launched, self.start) if time is not None]
        signs = [*known[:1], *([self.start] if self.start is not None else []), *(mark.time for mark in self.marks[:1])]
        return min(signs, default=self.leave or 0)

    @property
    def last_sign(self) -> int:
        """When it last told anything of itself."""
        return max([self.first, *([self.start] if self.start is not None else []), *(m.time for m in self.marks[-1:])])

    @property
    def last_word(self) -> Mark | None:
        """How the trainer said that it leaves."""
        return next((mark for mark in reversed(self.marks) if mark.kind in LAST_WORDS), None)

    @property
    def stepped(self) -> bool:
        """Whether it has done a step."""
        return any(mark.kind in STEPPED for mark in self.marks)

    @property
    def done(self) -> bool:
        """Whether its job was done when it ended."""
        return self.left.get("end") == "done" or any(mark.kind == "finish" for mark in self.marks)


@dataclass(frozen=True)
class Call:
    """A submission, or a cancellation, of the jobs with some ids."""

    time: int
    kind: str
    job: str
    ids: tuple[str, ...]


def group(events: Iterable[Mapping[str, Any]]) -> tuple[list[Life], list[Call]]:
    """The lives that events tell of, in the order of their first sign in the file, and what was submitted and
    cancelled."""
    lives: list[Life] = []
    calls: list[Call] = []
    speaking: dict[tuple[str, int | None], Life] = {}  # by stage and generation
    for event in events:
        time, kind, job = milliseconds(event.get("time")), event.get("kind"), event.get("stage")
        if time is None or not isinstance(kind, str) or not isinstance(job, str):
            continue
        generation = whole(event.get("generation"))
        if kind in (SUBMIT, CANCEL):
            ids = text(event.get("id" if kind == SUBMIT else "ids")).split(",")
            calls.append(Call(time, kind, job, tuple(ids)))
        elif kind == LAUNCH:
            lives.append(_launched(len(lives) + 1, job, time, event))
            _settle(lives, calls)
        elif kind == LEAVE:
            _leave(_leaver(lives, job, event), time, event)
        elif kind == "start":
            life = speaking[job, generation] = speaking[job, None] = _silent(lives, job, text(event.get("job")))
            _start(life, time, event)
        else:
            if (job, generation) not in speaking:  # its start could not be written
                speaking[job, generation] = speaking[job, None] = _silent(lives, job, "")
            _mark(speaking[job, generation], time, kind, event)
    return lives, calls


def _launched(number: int, job: str, time: int, event: Mapping[str, Any]) -> Life:
    life = Life(number, job, **_who(event), host=text(event.get("host")), launch=time)
    life.before = whole(event.get("reached"))
    return life


def _settle(lives: Sequence[Life], calls: Sequence[Call]) -> None:
    """Set right the clock of the life that was launched last, as far as it must be behind."""
    life = lives[-1]
    assert life.launch is not None
    turn = (life.restart, life.attempt)
    if not life.id:
        return
    before = [call.time for call in calls if call.kind == SUBMIT and call.job == life.job and life.id in call.ids]
    for other in lives[:-1]:
        if (other.job, other.id) == (life.job, life.id) and (other.restart, other.attempt) < turn:
            # Who has left no word may live on beside the new one: only its beginning was surely before.
            before.append(other.first if other.leave is None else max(other.last_sign, other.leave))
    life.shift = max([0, *(time - life.launch for time in before)])
    life.launch += life.shift


def _who(event: Mapping[str, Any]) -> dict[str, Any]:
    counts = {name: whole(event.get(name)) or 0 for name in ("restart", "attempt")}
    return {"id": text(event.get("id")), **counts}


def _leaver(lives: list[Life], job: str, event: Mapping[str, Any]) -> Life:
    """The latest life with the same job, id, restart and attempt that has not left yet (process ids come again)."""
    who = _who(event)
    for life in reversed(lives):
        if (life.job, life.id, life.restart, life.attempt, life.leave) == (job, *who.values(), None):
            return life
    lives.append(Life(len(lives) + 1, job, **who))
    return lives[-1]


def _leave(life: Life, time: int, event: Mapping[str, Any]) -> None:
    life.leave, life.leave_step = time + life.shift, whole(event.get("step"))
    life.left = {name: text(event.get(name)) for name in ("end", "why", "deed", "text")}


def _silent(lives: list[Life], job: str, id: str) -> Life:
    """The latest launch of the job of which the trainer has not told yet, or a life without a launch."""
    for life in reversed(lives):
        silent = life.start is None and not life.marks and life.leave is None
        if life.job == job and life.launch is not None and silent and id in ("", life.id):
            return life
    lives.append(Life(len(lives) + 1, job))
    return lives[-1]


def _start(life: Life, time: int, event: Mapping[str, Any]) -> None:
    life.start, life.begun = time + life.shift, whole(event.get("step")) or 0
    launched = milliseconds(event.get("launched"))
    if launched is not None and 0 <= time - launched <= LONGEST_STARTUP:
        life.launched = launched + life.shift


def _mark(life: Life, time: int, kind: str, event: Mapping[str, Any]) -> None:
    # A clock that was set back: what comes later in one life is later.
    time = max(
        [time + life.shift, *(mark.time for mark in life.marks[-1:]), *([life.start] if life.start is not None else [])]
    )
    told = event.get("total" if kind == "startup" else "seconds")
    share, at = number(event.get("data_wait")), milliseconds(event.get("at"))
    mark = Mark(
        time,
        kind,
        whole(event.get("step")),
        milliseconds(told, 0),
        milliseconds(event.get("waited"), 0),
        None if share is None else min(max(share, 0.0), 1.0),
        None if at is None else at + life.shift,
        milliseconds(event.get("stall"), 0) or 0,
        whole(event.get("to")),
        text(event.get("signal")),
    )
    life.marks.append(mark)
    if kind == "startup" and life.launched is None and mark.seconds is not None and life.start is not None:
        life.launched = min(time - min(mark.seconds, LONGEST_STARTUP), life.start)


def number(value: Any) -> float | None:
    """A finite number, or None."""
    return float(value) if is_finite(value) else None


def milliseconds(value: Any, least: int = -FARTHEST) -> int | None:
    """Seconds as whole milliseconds; None for what is none, or too far away to be meant."""
    seconds = number(value)
    if seconds is None or not least <= seconds * 1000 <= FARTHEST:
        return None
    return round(seconds * 1000)


def whole(value: Any) -> int | None:
    """A number of steps and the like, from 0; or None."""
    right = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
    return int(value) if right else None


def text(value: Any) -> str:
    """A text, or the empty one."""
    return value if isinstance(value, str) else ""
