"""What interrupts a simulated run, and when: known events, or events drawn from a seed.

Drawn ones hit a job while it runs, at a rate per day of running. They are drawn such that a higher rate has all of the
events of a lower one, each with the same wait in the queue, and more: what is compared differs by the rate alone.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge

import numpy as np

from agl_core.durable.interval import DAY
from jobs.planning.timeline import nanoseconds

PREEMPT, RANK, CRASH, NODE, STOP, KILL = KINDS = ("preempt", "rank", "crash", "node", "stop", "kill")
"""preempt: warned, saves, comes back through the queue; rank: one of several ranks dies, the others save, and all start
again in the allocation; crash: all die, and start again in the allocation from the newest checkpoint; node: the same,
through the queue; stop: as preempt, but until its owner gives the command again; kill: as node, and the same."""
WARNED, SURVIVED, INSIDE, BY_OWNER = (PREEMPT, STOP), (RANK,), (RANK, CRASH), (STOP, KILL)

QUEUES, RATES = 90, 91  # numbers of streams of random numbers beside those of the kinds
CHUNK = 32
LONGEST = 10 * 366 * DAY
"""Seconds after which nothing comes any more, and a run counts as one that does not end."""


@dataclass(frozen=True)
class Strike:
    """Something that hits the run. at: nanoseconds, on the run's clock; draw: from which its wait in the queue comes,
    in [0, 1); back: nanoseconds from `at` until the job is started again, where that is known."""

    at: int
    kind: str
    draw: float = 0.0
    back: int | None = None


@dataclass(frozen=True)
class Queue:
    """Seconds in the queue before a start: drawn from `samples` where there are any, otherwise exponential with the
    mean `mean`. requeue: seconds that Slurm holds a job back after a requeue, beside these."""

    mean: float = 0.0
    samples: tuple[float, ...] = ()
    requeue: float = 0.0

    def wait(self, draw: float, again: bool) -> int:
        """Nanoseconds in the queue of a job that is submitted, or comes `again`. `draw` is even in [0, 1)."""
        seconds = self.samples[int(draw * len(self.samples))] if self.samples else -math.log1p(-draw) * self.mean
        return nanoseconds(seconds + (self.requeue if again else 0.0))


@dataclass(frozen=True)
class Rate:
    """Events per day of running: exactly `per_day`, or drawn for each simulated run from what a measurement leaves
    possible: a gamma distribution of this `shape` and the mean `per_day`."""

    per_day: float
    shape: float | None = None

    @staticmethod
    def measured(events: int, days: float, prior: float, weight: float = 1.0) -> "Rate":
        """Of a kind of event that was seen so often, in so many days of running.

        As in `agl_core.durable.interval`: a Poisson process, and a gamma prior of shape 1, here with the mean `prior`
        per day; `weight` is this kind's share of it, where several kinds have one prior together.
        """
        return Rate((weight + events) / (1 / prior + days), weight + events)

    def draw(self, random: np.random.Generator) -> float:
        """That of one simulated run."""
        unit = float(random.gamma(self.shape or 1.0))  # the same use of the stream whether it was measured or not
        return self.per_day if self.shape is None else unit / self.shape * self.per_day


class Strikes:
    """All that hits one simulated run. It is asked in the order of time."""

    def __init__(
        self,
        queue: Queue,
        rates: Mapping[str, Rate] | None = None,
        known: Sequence[Strike] = (),
        seed: int = 0,
        draw: int = 0,
    ) -> None:
        """`seed` and `draw` name the random numbers of this one of the simulated runs."""
        self._queue, self._seed, self._draw = queue, seed, draw
        self._waits = self._random(QUEUES, 0)
        random = self._random(RATES, 0)
        drawn = {kind: rates[kind].draw(random) for kind in KINDS if rates is not None and kind in rates}
        self._drawn = merge(*(self._events(kind, rate) for kind, rate in drawn.items()))
        self._next = self._draw_next()
        self._known = sorted(known, key=lambda strike: strike.at)

    def next(self, launched: int, ran: int) -> Strike | None:
        """The first strike at a start that was launched at `launched`, after the run had run for `ran` nanoseconds over
        all its starts."""
        while self._next is not None and self._next[0] < ran:
            self._next = self._draw_next()
        found = None
        if self._next is not None:
            at, kind, draw = self._next
            found = Strike(launched + at - ran, kind, draw)
        number = bisect_left(self._known, launched, key=lambda strike: strike.at)
        if number < len(self._known) and (found is None or self._known[number].at <= found.at):
            found = self._known[number]
        return found

    def struck(self, strike: Strike) -> None:
        """It has hit; it does not do so again."""
        if strike in self._known:
            self._known = self._known[self._known.index(strike) + 1 :]
        else:
            self._next = self._draw_next()

    def wait(self, again: bool, draw: float | None = None) -> int:
        """Nanoseconds in the queue; `draw` of the strike that sent the job there, if one did."""
        return self._queue.wait(float(self._waits.random()) if draw is None else draw, again)

    def _random(self, *stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, self._draw, *stream])))

    def _draw_next(self) -> tuple[int, str, float] | None:
        return next((event for event in self._drawn if event[1]), None)

    def _events(self, kind: str, rate: float) -> Iterator[tuple[int, str, float]]:
        """The events of a kind in the order of the running time at which they come; those without a name are none.

        Points are spread evenly over time and over rates from 0 upwards, in bands of rates 0 to 1, 1 to 2, 2 to 4 and
        so on; the events are those below `rate`.
        """
        bands: list[Iterator[tuple[int, str, float]]] = []
        top = 0.0
        while top < rate:
            low, top = top, 2 * top or 1.0
            bands.append(self._band(kind, len(bands), low, top, rate))
        return merge(*bands)

    def _band(self, kind: str, number: int, low: float, top: float, rate: float) -> Iterator[tuple[int, str, float]]:
        random, at = self._random(KINDS.index(kind), number), 0.0
        while True:
            gaps, rates, waits = random.standard_exponential(CHUNK), random.random(CHUNK), random.random(CHUNK)
            if at > LONGEST:
                return
            # However rare the events of this band are, those of the others must not wait for them to be drawn.
            yield nanoseconds(at), "", 0.0
            for gap, share, wait in zip(gaps.tolist(), rates.tolist(), waits.tolist(), strict=True):
                at += gap * DAY / (top - low)
                if low + share * (top - low) < rate:
                    yield nanoseconds(at), kind, wait
