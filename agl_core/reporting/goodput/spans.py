"""Intervals that overlap, made into one line of time without gaps. Part of `goodput`; times are whole milliseconds."""

import heapq
import statistics
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

SLOW = 10
"""Times the usual time of a step, and"""
SLOW_SECONDS = 600.0
"""seconds: who needs more than both for the steps between two events was suspended (a scheduler stops the processes of
a job for another one, and lets them go on later)."""


class Layer(NamedTuple):
    """What went on from begin to end. Where several layers lie over one another, that of the highest rank is seen, of
    equal ones that of the later life, of equal lives the first."""

    begin: int
    end: int
    rank: int
    item: str
    life: int = 0


class Piece(NamedTuple):
    """A stretch of time that is in one item alone."""

    begin: int
    end: int
    item: str
    life: int


def background(states: Sequence[tuple[int, str]], begin: int, end: int) -> Iterator[Layer]:
    """What there is when no life does anything: of `states`, each of which lasts until the next, in their order."""
    for (since, item), (until, _) in pairwise([*states, (end, "")]):
        yield Layer(max(since, begin), min(until, end), 0, item)


def paint(layers: Iterable[Layer], begin: int, end: int) -> list[Piece]:
    """What is seen of the layers, from `begin` to `end` without a gap; "down" where there is none."""
    waiting = sorted((layer for layer in layers if layer.begin < layer.end), key=lambda layer: layer.begin)
    cuts = {begin, end, *(time for layer in waiting for time in layer[:2] if begin < time < end)}
    seen: list[tuple[int, int, int, Layer]] = []  # a heap: the one that is to be seen is first
    found: list[Piece] = []
    number = 0
    for time, until in pairwise(sorted(cuts)):
        while number < len(waiting) and waiting[number].begin <= time:
            layer = waiting[number]
            heapq.heappush(seen, (-layer.rank, -layer.life, number, layer))
            number += 1
        while seen and seen[0][3].end <= time:
            heapq.heappop(seen)
        item, life = (seen[0][3].item, seen[0][3].life) if seen else ("down", 0)
        if found and (found[-1].item, found[-1].life) == (item, life):
            found[-1] = Piece(found[-1].begin, until, item, life)
        else:
            found.append(Piece(time, until, item, life))
    return found


def usual_step(each: Iterable[float]) -> float | None:
    """The time of a step, of those of some events: their median; None without any."""
    known = list(each)
    return statistics.median_low(known) if known else None


def suspended(time: float, steps: int, usual: float | None, unit: int = 1) -> float:
    """How much of the time of some steps, in a second's `unit` parts, is more than steps can have taken."""
    if usual is None:
        return 0.0
    return max(time - max(SLOW * usual * max(steps, 1), SLOW_SECONDS * unit), 0.0)
