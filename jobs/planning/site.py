"""How often a site interrupts jobs, and how long they wait in its queue: counted from earlier runs, or read from a file
of known events."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from agl_core.config import TrainConfig
from agl_core.durable.interval import DAY
from agl_core.errors import UserError
from agl_core.reporting.goodput.account import Account, Life
from jobs.history import CRASHED, DONE, INTERRUPTED, REFUSED, TAKEN_OVER
from jobs.planning.strikes import CRASH, KINDS, NODE, PREEMPT, RANK, Strike
from jobs.planning.timeline import nanoseconds
from jobs.why import CANCELLED, GIVE_UP, LEAVE, PREEMPTED, PREEMPTED_AWAY, REQUEUED, TIME_LIMIT, WARNED

TAKEN = (PREEMPTED, PREEMPTED_AWAY, REQUEUED)
OWN = (CANCELLED, TIME_LIMIT, WARNED)  # the owner's, and what the simulation does by itself
FORMAT = '{"events": [{"at": 3600, "kind": "preempt", "back": 400}], "queue": [120]}'


@dataclass(frozen=True)
class Observed:
    """What was seen of a site. days: of jobs that ran; counts: of interruptions, by the kinds of
    `jobs.planning.strikes`; waits: seconds in the queue before each start; source: in words."""

    days: float
    counts: dict[str, int]
    waits: tuple[float, ...] = ()
    source: str = ""
    held: bool = field(default=True)
    """Whether `waits` include the time for which Slurm holds a requeued job back."""


def observed(accounts: Iterable[tuple[Account, TrainConfig]], source: str) -> Observed:
    """What the stages of some runs have met with."""
    days, counts, waits = 0.0, dict.fromkeys(KINDS, 0), []
    for account, config in accounts:
        lives = [life for life in account.lives if life.job in config.stages]
        for number, life in enumerate(lives):
            days += max((account.end if life.ended is None else life.ended) - life.launched, 0.0) / DAY
            if life.queued is not None:
                waits.append(max(life.launched - life.queued, 0.0))
            if (kind := _kind(life, lives[number + 1] if number + 1 < len(lives) else None)) is not None:
                counts[kind] += 1
    return Observed(days, counts, tuple(sorted(waits)), source)


def _kind(life: Life, after: Life | None) -> str | None:
    """What has ended a start, by what it has cost: steps or none, the queue or not. None for what interrupts nobody
    else: its end, its owner, its time limit, its own mistake."""
    if life.ended is None or life.end in (DONE, REFUSED, TAKEN_OVER) or life.why in OWN or life.deed == GIVE_UP:
        return None
    if life.why in TAKEN:
        return PREEMPT
    if life.end == INTERRUPTED and life.deed == LEAVE:
        return None  # Ctrl-C, or a signal that somebody has sent to it on his own machine
    if after is None and life.end != CRASHED:
        return None  # nobody knows whether anything has ended it
    inside = after is not None and (after.id, after.restart) == (life.id, life.restart) and after.job == life.job
    if inside:
        return CRASH if life.lost else RANK
    return NODE if life.lost else PREEMPT


def read_known(path: Path) -> tuple[list[Strike], tuple[float, ...]]:
    """The events of a file, and the waits in the queue that it tells.

    It is `{"events": [...], "queue": [...]}`: objects with `at` (seconds since submission), `kind` (see
    `jobs.planning.strikes`) and, where it is known, `back` (seconds from then until the job was started again); and,
    where they are known, the seconds that starts have waited in the queue, from which those of other starts are drawn.

    Raises:
        UserError: it cannot be read or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"--interruptions {path} cannot be read ({error}): give run, runs, sacct, or a file like {FORMAT}"
        ) from None
    events, waits = (content.get("events"), content.get("queue", [])) if isinstance(content, dict) else (None, None)
    if not isinstance(events, list):
        raise UserError(f"--interruptions {path} holds no list of events: write it like {FORMAT}")
    if not isinstance(waits, list) or not all(map(_time, waits)):
        raise UserError(f"--interruptions {path}: queue is {waits!r}: give a list of seconds, or leave it out")
    strikes = known([_event(path, number, event) for number, event in enumerate(events, 1)])
    return strikes, tuple(sorted(map(float, waits)))


def _event(path: Path, number: int, event: Any) -> tuple[float, str, float | None]:
    values = event if isinstance(event, dict) else {}
    at, kind, back = values.get("at"), values.get("kind"), values.get("back")
    if not _time(at) or not (back is None or _time(back)) or kind not in KINDS:
        raise UserError(
            f"--interruptions {path}: event {number} is {event!r}: give at (seconds since submission), kind (one of "
            f"{', '.join(KINDS)}) and perhaps back (seconds until it was started again)"
        )
    return float(at), str(kind), None if back is None else float(back)


def known(events: Sequence[tuple[float, str, float | None]]) -> list[Strike]:
    """Known events: seconds since submission, kind, seconds until the job was started again or None."""
    strikes = [
        Strike(nanoseconds(at), kind, back=None if back is None else nanoseconds(back)) for at, kind, back in events
    ]
    return sorted(strikes, key=lambda strike: strike.at)


def _time(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
