"""What a stage does from one of its steps on, if nothing interrupts it: steps, validations and saves, by the rules of
`agl_core.training.trainer` and `agl_core.training.saver`. Times are whole nanoseconds, so that sums are exact."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from typing import NamedTuple

from agl_core.data.order import Order
from agl_core.training.schedule import Span

SECOND = 10**9
STEPS, VALIDATION, STALL = "steps", "validation", "stall"


@dataclass(frozen=True)
class StageWork:
    """A stage: its length and the nanoseconds of a step and of a validation. validate_every, save_every: None for never
    (a stage without held-out tiles validates not even at its end)."""

    name: str
    steps: int
    step: int
    validation: int
    order: Order
    validate_every: Span | None
    save_every: Span | None

    def due(self, span: Span | None) -> list[int]:
        """The steps after which something done once every `span` is due, in their order."""
        if span is None:
            return []
        if span.unit == "steps":
            return list(range(span.count, self.steps + 1, span.count))
        found: list[int] = []
        epochs = span.count
        while (step := self.order.steps(epochs)) <= self.steps:
            if not found or step > found[-1]:  # a step may complete several epochs
                found.append(step)
            epochs += span.count
        return found


@dataclass(frozen=True)
class Saving:
    """What checkpoints cost, in nanoseconds. interval: from one to the next by the clock, None for never; first: until
    the first one of a start, where that is another time; stall: by which one holds training up; write: until it is on
    the disk."""

    interval: int | None
    stall: int
    write: int
    first: int | None = None


@dataclass(frozen=True)
class Position:
    """Where a stage stands: its steps that are done, and whether the validation after the last one is."""

    step: int
    validated: bool = True


class Tally(NamedTuple):
    """What has been done, and the nanoseconds since the start's first step began, which are those of all this."""

    clock: int = 0
    steps: int = 0
    validations: int = 0
    stalls: int = 0


class Phase(NamedTuple):
    """A stretch of one kind. at: all that was done before it; step: the stage's last step then; steps: that it does."""

    kind: str
    at: Tally
    step: int
    length: int
    steps: int = 0


@dataclass(frozen=True)
class Moment:
    """Where a start is at some time. done: up to the last whole step or phase; into: nanoseconds since; step: the last
    step that is done; kept, kept_at: the state that is on the disk, and what had been done when the run had it."""

    kind: str
    step: int
    done: Tally
    into: int
    kept: Position
    kept_at: Tally


class Timeline:
    """The undisturbed course of a stage.

    From a scheduled save (`checkpoint.every`) on it is the same whatever was before, so it is computed once; only the
    stretch from a start to its first scheduled save differs.
    """

    def __init__(self, work: StageWork, saving: Saving) -> None:
        self.work, self.saving = work, saving
        self._validations = {*work.due(work.validate_every), work.steps} if work.validate_every is not None else set()
        self._saves = [step for step in work.due(work.save_every) if step < work.steps]
        self._marks = sorted({*self._saves, *self._validations, work.steps})
        self._scheduled = set(self._saves)
        self._last: tuple[Position, list[Phase]] | None = None

    def finish(self, start: Position) -> Tally:
        """What has been done when the stage has its length, last validation included."""
        tally, save = self._end_of(self._first(start))
        return tally if save is None else _plus(tally, _minus(self._at_saves[-1], self._at_saves[self._index(save)]))

    def moment(self, start: Position, clock: int) -> Moment:
        """Where a start at `start` is `clock` nanoseconds after it began to train, which must be before its end."""
        stretches = self._stretches(start, clock)
        since, phases = next(stretches)
        phase = next(phase for phase in reversed(phases) if since.clock + phase.at.clock <= clock)
        kept, kept_at = self._kept(chain([(since, phases)], stretches), clock) or (start, Tally())
        at = _plus(since, phase.at)
        if phase.kind != STEPS:
            return Moment(phase.kind, phase.step, at, clock - at.clock, kept, kept_at)
        whole = min((clock - at.clock) // self.work.step, phase.steps)
        done = _plus(at, Tally(whole * self.work.step, whole))
        return Moment(STEPS, phase.step + whole, done, clock - done.clock, kept, kept_at)

    def _stretches(self, start: Position, clock: int) -> Iterator[tuple[Tally, list[Phase]]]:
        """What is done from one scheduled save to the next, and before it, up to `clock`; the newest first."""
        first = self._first(start)
        end, save = self._end_of(first)
        if save is not None and clock >= end.clock:
            own = self._index(save)
            before = _minus(end, self._at_saves[own])
            last = bisect_right(self._at_saves, clock - before.clock, hi=len(self._saves), key=lambda at: at.clock) - 1
            for number in range(last, own - 1, -1):
                yield _plus(before, self._at_saves[number]), self._blocks[number]
        yield Tally(), first

    def _kept(self, stretches: Iterable[tuple[Tally, list[Phase]]], clock: int) -> tuple[Position, Tally] | None:
        """The newest state that is whole on the disk; None if no save of this start is."""
        for since, phases in stretches:
            for phase in reversed(phases):
                if phase.kind == STALL and since.clock + phase.at.clock + self.saving.write <= clock:
                    return Position(phase.step), _plus(since, phase.at)
        return None

    def _first(self, start: Position) -> list[Phase]:
        """What a start does until its first scheduled save. The last one is remembered, as it is asked for twice."""
        if self._last is None or self._last[0] != start:
            self._last = start, list(self._phases(start, saved=False))
        return self._last[1]

    def _end_of(self, phases: list[Phase]) -> tuple[Tally, int | None]:
        """What was done at the end of a stretch, and the step whose scheduled save comes then; None at the end of the
        stage."""
        if not phases:  # a start at the end of all steps
            return Tally(), None
        last = phases[-1]
        lengths = {STEPS: Tally(last.length, last.steps), VALIDATION: Tally(last.length, 0, 1)}
        step = last.step + last.steps
        done = _plus(last.at, lengths.get(last.kind, Tally(last.length, 0, 0, 1)))
        return done, step if step < self.work.steps else None

    def _index(self, step: int) -> int:
        return bisect_right(self._saves, step) - 1

    @cached_property
    def _blocks(self) -> list[list[Phase]]:
        """What comes from each scheduled save to the next."""
        return [list(self._phases(Position(step), saved=True)) for step in self._saves]

    @cached_property
    def _at_saves(self) -> list[Tally]:
        """What was done, since the first scheduled save began, when each begins, and at the end of the stage."""
        return list(accumulate((self._end_of(block)[0] for block in self._blocks), _plus, initial=Tally()))

    def _phases(self, start: Position, saved: bool) -> Iterator[Phase]:
        """What is done from `start` until the next scheduled save begins, or the stage has its length. saved: whether
        this begins with a save; otherwise with a start."""
        work, stall = self.work, self.saving.stall
        tally, step, since = Tally(), start.step, 0
        interval = self._interval if saved else self._first_interval
        if saved:
            yield Phase(STALL, tally, step, stall)
            tally = _plus(tally, Tally(stall, 0, 0, 1))
        if not start.validated and step in self._validations:
            yield Phase(VALIDATION, tally, step, work.validation)
            tally = _plus(tally, Tally(work.validation, 0, 1))
        while step < work.steps:
            mark = self._marks[bisect_right(self._marks, step)]
            while True:
                asked = max(-(-(interval - (tally.clock - since)) // work.step), 1) if interval is not None else None
                count = mark - step if asked is None else min(asked, mark - step)
                yield Phase(STEPS, tally, step, count * work.step, count)
                tally, step = _plus(tally, Tally(count * work.step, count)), step + count
                if step == mark:
                    break
                since, interval = tally.clock, self._interval
                yield Phase(STALL, tally, step, stall)
                tally = _plus(tally, Tally(stall, 0, 0, 1))
            if step in self._validations:
                yield Phase(VALIDATION, tally, step, work.validation)
                tally = _plus(tally, Tally(work.validation, 0, 1))
            if step in self._scheduled:
                return
            if asked == count and step < work.steps:
                since, interval = tally.clock, self._interval
                yield Phase(STALL, tally, step, stall)
                tally = _plus(tally, Tally(stall, 0, 0, 1))

    @property
    def _interval(self) -> int | None:
        """No save is begun by the clock while one is being written."""
        return None if self.saving.interval is None else max(self.saving.interval, self.saving.write)

    @property
    def _first_interval(self) -> int | None:
        return self.saving.interval if self.saving.first is None else self.saving.first


def nanoseconds(seconds: float) -> int:
    """To whole nanoseconds; infinite ones to a time that never comes."""
    return round(seconds * SECOND) if math.isfinite(seconds) else 10**6 * 366 * 86400 * SECOND


def _plus(one: Tally, other: Tally) -> Tally:
    return Tally(
        one.clock + other.clock,
        one.steps + other.steps,
        one.validations + other.validations,
        one.stalls + other.stalls,
    )


def _minus(one: Tally, other: Tally) -> Tally:
    return _plus(one, Tally(-other.clock, -other.steps, -other.validations, -other.stalls))
