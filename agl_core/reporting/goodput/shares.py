"""What the time of a life of a stage went into, from its first step to its last. Part of `goodput`; times are whole
milliseconds."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from agl_core.reporting.goodput.courses import Course, Interval, told_steps
from agl_core.reporting.goodput.lives import STEPPED
from agl_core.reporting.goodput.spans import suspended

WAITED, SUSPENDED = 2, 4
"""Columns of stretches in the making: begin, end, waited, stalled, suspended."""


class Share(NamedTuple):
    """A stretch of the time from the first step of a life to its last: when; its item ("training", "validation" or
    "lost"); and of training the milliseconds in which data and the saving of checkpoints were waited for, and in which
    the processes were suspended."""

    when: Interval
    item: str
    waited: int
    stalled: int
    suspended: int


def shares(course: Course) -> list[Share]:
    """All of that time, without gaps."""
    assert course.started is not None
    kept = course.times_kept()
    cuts = {course.started, course.trained, *(time for interval in kept for time in interval)}
    scored = _validations(course)
    cuts |= {time for interval in scored for time in interval}
    times = sorted(cuts)
    found: list[list[int]] = [[begin, end, 0, 0, 0] for begin, end in pairwise(times)]
    validating = [_covered(begin, scored) for begin, *_ in found]
    saves = sorted(course.saves())
    _add_waits(course, found, times, validating, saves)
    for at, stall in saves:
        place = min(max(bisect_right(times, at) - 1, 0), len(found) - 1)
        if found and not validating[place]:
            found[place][3] += stall
    named = []
    for (begin, end, *waits), scoring in zip(found, validating, strict=True):
        item = "lost" if not _covered(begin, kept) else "validation" if scoring else "training"
        named.append(Share((begin, end), item, *waits))
    return named


def _validations(course: Course) -> list[Interval]:
    """When the held-out fold was scored, in disjoint intervals; what was done with the result before the next step is a
    part of it: the time between two events of steps that no step, no save and no validation has taken."""
    found: list[Interval] = []
    before = least = course.started or 0
    saves = sorted(course.saves())
    since = 0  # of the intervals, the first after the step event before
    for mark in course.life.marks:
        if mark.kind == "validation":
            begin = max(mark.time - (mark.seconds or 0), least)
            end = least = max(min(mark.time, course.trained), least)
            if begin < end:
                found.append((begin, end))
        elif mark.kind == "step":
            if mark.seconds is not None and since < len(found):
                known = mark.seconds + sum(end - begin for begin, end in found[since:])
                known += sum(stall for at, stall in _between(saves, before, mark.time))
                begin, end = found[-1]
                found[-1] = (begin, min(end + max(mark.time - before - known, 0), course.trained))
            before, since = mark.time, len(found)
            least = max([least, *(end for _, end in found[-1:])])
    return found


def _busy(begin: int, end: int, saves: Sequence[tuple[int, int]]) -> int:
    """How much of the time between two moments no save has taken."""
    return max(end - begin - sum(stall for _, stall in _between(saves, begin, end)), 0)


def _between(saves: Sequence[tuple[int, int]], begin: int, end: int) -> Sequence[tuple[int, int]]:
    """Those saves, of some in their order, that were begun between two times."""
    return saves[bisect_left(saves, (begin, 0)) : bisect_left(saves, (end, 0))]


def _covered(time: int, intervals: Sequence[Interval]) -> bool:
    """Whether a time lies in one of some disjoint intervals in their order."""
    place = bisect_right(intervals, (time, 1 << 62)) - 1
    return place >= 0 and time < intervals[place][1]


def _add_waits(
    course: Course,
    found: list[list[int]],
    times: Sequence[int],
    validating: Sequence[bool],
    saves: Sequence[tuple[int, int]],
) -> None:
    """Spread what each event says of waiting for data, and what it shows of being suspended, over the stretches of
    training since the one before."""
    before = course.started or 0
    idle = {place: suspended(time, steps, course.usual, 1000) for place, steps, time in told_steps(course)}
    for number, mark in enumerate(course.life.marks):
        if mark.kind not in STEPPED and mark.kind not in ("interruption", "refusal"):
            continue
        end = min(mark.at if mark.at is not None else mark.time, course.trained)
        if mark.kind in ("startup", "skip") or end <= before:
            continue
        first, last = bisect_right(times, before) - 1, bisect_left(times, end)
        places = [place for place in range(max(first, 0), min(last, len(found))) if not validating[place]]
        parts = [_busy(max(found[place][0], before), min(found[place][1], end), saves) for place in places]
        waited = mark.waited if mark.waited is not None else round((mark.share or 0.0) * max(sum(parts), 1))
        for column, amount in ((WAITED, waited), (SUSPENDED, round(idle.get(number, 0)))):
            for place, part in zip(places, _spread(amount, parts), strict=True):
                found[place][column] += part
        before = end


def _spread(amount: int, parts: Sequence[int]) -> Iterator[int]:
    """An amount in proportion to some parts, in whole numbers that add up to it."""
    busy, given, done = max(sum(parts), 1), 0, 0
    for part in parts:
        done += part
        yield amount * done // busy - given
        given = amount * done // busy
