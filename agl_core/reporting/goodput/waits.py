"""What a run waits for while none of its lives does anything. Part of `goodput`; times are whole milliseconds."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from agl_core.reporting.events import CANCEL, LAUNCH, LEAVE, SUBMIT
from agl_core.reporting.goodput.lives import OTHER_JOBS, Call, Life

SILENCE = 600_000
"""Milliseconds without a sign after which a start that trains is taken for dead, unless it is known to be slower."""
LONG_SILENCE = 3_600_000
"""The same before its first step, when the store may be copied."""
PATIENCE = 10
"""Times the longest pause between two signs of a start, after which it is taken for dead."""


class Reach(NamedTuple):
    """How far a life goes. ended: when it had, None while nothing says or shows so; until: when it was over at the
    latest; stop: until when it is known to have done anything."""

    ended: int | None
    until: int
    stop: int


class _Turn(NamedTuple):
    """Something that changes what is waited for; in this order where the time is the same."""

    time: int
    order: int
    number: int
    kind: str
    life: Life | None = None
    call: Call | None = None


def states(lives: Sequence[Life], calls: Sequence[Call]) -> tuple[list[tuple[int, str]], bool]:
    """Since when the run was in which item apart from what its lives did, in order of time; and whether anything is
    left to wait for in the end."""
    found: list[tuple[int, str]] = []
    waiting: set[str] = set()
    newest = 0
    for turn in sorted(_turns(lives, calls), key=lambda turn: turn[:3]):
        life, call, state = turn.life, turn.call, ""
        if call is not None and turn.kind == SUBMIT:
            waiting |= set(call.ids)
            state = "queue"
        elif call is not None:
            waiting -= set(call.ids)
            state = "stopped"
        elif life is not None and turn.kind == LAUNCH:
            waiting.discard(life.id)
            newest, state = max(newest, life.number), "down"
        elif life is not None and life.number >= newest:  # else what comes after it goes on already
            state = _left(life, bool(waiting)) if turn.kind == LEAVE else _fell_silent(life)
            if state == "queue" and life.id:
                waiting |= {life.id} if not life.done else set()
        if state:
            found.append((turn.time, state))
    return found, bool(waiting)


def _turns(lives: Sequence[Life], calls: Sequence[Call]) -> list[_Turn]:
    found = [
        _Turn(call.time, 0 if call.kind == CANCEL else 2, number, call.kind, call=call)
        for number, call in enumerate(calls)
    ]
    for life in lives:
        if life.launch is not None or life.start is not None or life.marks:
            found.append(_Turn(life.first, 3, life.number, LAUNCH, life))
        if life.leave is not None:
            found.append(_Turn(max(life.leave, life.last_sign), 1, life.number, LEAVE, life))
        elif life.last_word is not None:
            found.append(_Turn(life.last_sign, 1, life.number, "", life))
    return found


def _left(life: Life, waiting: bool) -> str:
    """What the run is in after a life has left; empty where that changes nothing."""
    end, why, deed = (life.left.get(name, "") for name in ("end", "why", "deed"))
    if end == "done":
        return "queue" if waiting else "stopped"
    if deed == "requeue" or why == "requeued":
        return "queue"
    if deed == "again" or why == "unknown":
        return "down"
    return "" if end == "taken over" else "stopped"


def _fell_silent(life: Life) -> str:
    """The same where nobody has written down how it ended, by the last that its trainer has said."""
    word = life.last_word
    if word is None or (word.kind == "interruption" and word.signal != "INT"):
        return ""
    return "queue" if word.kind == "finish" else "stopped"


def running(lives: Sequence[Life], calls: Sequence[Call], now: int) -> Life | None:
    """The life that goes on at `now`, as far as that can be known."""
    newest = max(lives, key=lambda life: (life.first, life.number), default=None)
    if newest is None or newest.leave is not None or (newest.last_word is not None and newest.launch is None):
        return None
    if any(call.kind == SUBMIT and call.job == newest.job and call.time > newest.last_sign for call in calls):
        return None
    silence = now - newest.last_sign
    if newest.start is None and not newest.marks:
        return newest if newest.job in OTHER_JOBS or silence <= LONG_SILENCE else None
    pauses = [after.time - before.time for before, after in pairwise(newest.marks)]
    longest = max(SILENCE if newest.stepped else LONG_SILENCE, PATIENCE * max(pauses, default=0))
    return newest if silence <= longest else None


def reach(life: Life, lives: Sequence[Life], calls: Sequence[Call], alive: Life | None, end: int) -> Reach:
    """How far a life goes, where `alive` goes on until `end`."""
    if life.leave is not None:
        ended = max(life.leave, life.last_sign)
        return Reach(ended, ended, ended)
    if life is alive:
        return Reach(None, end, end)
    after = [other.first for other in lives if other.number > life.number and other.first >= life.first]
    after += [c.time for c in calls if c.kind == SUBMIT and c.job == life.job and c.time > life.last_sign]
    until = max(min(after, default=end), life.last_sign)
    return Reach(life.last_sign if after or life.last_word else None, until, life.last_sign)
