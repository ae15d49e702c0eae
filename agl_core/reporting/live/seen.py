"""What is known of one stage from its events, one after the other: where it is, how fast it goes, what it scored."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from agl_core.reporting.events import is_finite
from agl_core.reporting.goodput.spans import suspended, usual_step

RECENT = 50  # events of steps from which the present rate is taken
VALIDATING = "validating"  # an event that is not written
STEPPED = ("startup", "step", "skip", "rollback", "validation", "checkpoint", "interruption", "refusal", "finish")
"""Kinds of events whose step was done, or skipped."""
FEW = 5  # newest validations from which the time of the next ones is taken


@dataclass(frozen=True)
class Validated:
    """One validation. score: the better one of that of the weights and that of their average; cities: those of it;
    average: whether it is the average's; seconds: None where nobody wrote them down."""

    step: int
    epoch: int | None
    score: float
    cities: dict[str, float]
    average: bool
    time: float
    seconds: float | None


@dataclass(frozen=True)
class Stretch:
    """The steps between two events: how many, in how many seconds, how many of them in waiting for data (None: not
    known). first: whether they began with the first step of a start, which is slow."""

    generation: int
    steps: int
    seconds: float
    waited: float | None
    first: bool
    end: float


@dataclass
class StageSeen:
    """Takes the events of one stage in the order of the file, those that a restart took back included.

    step, epoch: of the newest event; at: its unix time; newest: the newest event of a step; validating: since when it
    says that it validates, which only the process that trains does, for its own view; earlier: the best before,
    where their events are not known.
    """

    name: str
    start: Mapping[str, Any] = field(default_factory=dict)
    step: int | None = None
    epoch: int | None = None
    at: float | None = None
    newest: Mapping[str, Any] = field(default_factory=dict)
    validations: list[Validated] = field(default_factory=list)
    finish: Mapping[str, Any] | None = None
    stretches: deque[Stretch] = field(default_factory=lambda: deque(maxlen=RECENT))
    stepped: int = 0
    stalled: float = 0.0
    validated: float = 0.0
    stalls_of_start: float = 0.0
    validating: float | None = None
    earlier: Validated | None = None
    _before: tuple[int, int, float] | None = None  # generation, step and time of the event before
    _aside: float = 0.0  # seconds of validations and saves since

    def add(self, event: Mapping[str, Any]) -> None:
        """Take the next event; one of a generation that is over must not come here."""
        kind = event["kind"]
        self.validating = event["time"] if kind == VALIDATING else None
        taker = getattr(self, f"_take_{kind}", None)
        if taker is not None:
            taker(event)
        if is_whole(event.get("step")) and kind in STEPPED:
            self.step = max(self.step or 0, event["step"])
        if is_number(event.get("time")):
            self.at = event["time"]
        if is_whole(event.get("epoch")):
            self.epoch = event["epoch"]

    @property
    def total(self) -> int | None:
        """Steps of the stage."""
        return self.start["steps"] if is_whole(self.start.get("steps")) else None

    @property
    def best(self) -> Validated | None:
        """The validation of the highest score, of several the first."""
        known = [*self.validations, *([self.earlier] if self.earlier is not None else [])]
        return max(known, key=lambda each: each.score, default=None)

    def recent(self) -> list[Stretch]:
        """The newest stretches of steps that tell a rate: of the newest start if there are any, without its first step
        if there are others, and without those in which it was suspended."""
        usual = usual_step(stretch.seconds / stretch.steps for stretch in self.stretches)
        rated = [stretch for stretch in self.stretches if not _suspended(stretch, usual)]
        for generation in dict.fromkeys(stretch.generation for stretch in reversed(rated)):
            own = [stretch for stretch in rated if stretch.generation == generation]
            return [stretch for stretch in own if not stretch.first] or own
        return []

    def suspended(self) -> bool:
        """Whether the newest stretch of steps is one in which it was suspended."""
        usual = usual_step(stretch.seconds / stretch.steps for stretch in self.stretches)
        return bool(self.stretches) and _suspended(self.stretches[-1], usual)

    def step_seconds(self) -> float | None:
        """Seconds of a step at the present rate, waiting for data included; None if none is known."""
        recent = self.recent()
        steps = sum(stretch.steps for stretch in recent)
        return sum(stretch.seconds for stretch in recent) / steps if steps else None

    def usual_pause(self) -> float | None:
        """Seconds between two events of its steps at most, of the newest ones; None if none is known."""
        return max((stretch.seconds for stretch in self.recent()), default=None)

    def data_wait(self) -> float | None:
        """The share of the time of the newest steps in which data was waited for, 0 to 1."""
        known = [stretch for stretch in self.recent() if stretch.waited is not None]
        seconds = sum(stretch.seconds for stretch in known)
        if not seconds:
            last = self.newest.get("data_wait")
            return last if is_number(last) else None
        return min(sum(stretch.waited or 0.0 for stretch in known) / seconds, 1.0)

    def checkpoint_share(self) -> float | None:
        """The share of the time since the newest start in which training stood still for checkpoints, 0 to 1."""
        begun = self.start.get("time")
        if self.at is None or not is_number(begun) or self.at <= begun:
            return None
        return min(self.stalls_of_start / (self.at - begun), 1.0)

    def validation_seconds(self) -> float | None:
        """Seconds of a validation, the mean of the newest; None if none is known."""
        known = [each.seconds for each in self.validations[-FEW:] if each.seconds is not None]
        return sum(known) / len(known) if known else None

    def _take_start(self, event: Mapping[str, Any]) -> None:
        at = event["step"] if is_whole(event.get("step")) else 0
        self.start, self.step, self.finish, self._before = event, at, None, None
        self._aside = self.stalls_of_start = 0.0
        self.validations = [each for each in self.validations if each.step <= at]

    def _take_step(self, event: Mapping[str, Any]) -> None:
        self.newest = event
        step, at, generation = event.get("step"), event.get("time"), event.get("generation", 0)
        if not is_whole(step) or not is_number(at):
            return
        before, first = self._before, self._before is None or self._before[0] != generation
        done = step - (before[1] if before and not first else int(self.step or 0))
        seconds: Any = event.get("seconds")
        if not is_number(seconds):  # runs of earlier versions: from the clock, without what was done beside training
            seconds = None if first or before is None else at - before[2] - self._aside
        if done > 0 and seconds is not None and seconds >= 0:
            waited = event.get("waited")
            waited = waited if is_number(waited) else None
            self.stretches.append(Stretch(generation, done, float(seconds), waited, first, at))
            self.stepped += done
        self._before, self._aside = (generation, step, at), 0.0

    def _take_validation(self, event: Mapping[str, Any]) -> None:
        seconds = event["seconds"] if is_number(event.get("seconds")) else None
        self.validated += seconds or 0.0
        self._aside += seconds or 0.0
        scores = {prefix: event.get(f"{prefix}score") for prefix in ("", "ema_")}
        known = {prefix: score for prefix, score in scores.items() if is_number(score)}
        if not known or not is_whole(event.get("step")):
            return
        prefix = max(known, key=lambda name: known[name])
        cities = event.get(f"{prefix}cities")
        parts = {
            str(city): float(part["score"])
            for city, part in (cities.items() if isinstance(cities, dict) else ())
            if isinstance(part, dict) and is_number(part.get("score"))
        }
        epoch = event["epoch"] if is_whole(event.get("epoch")) else None
        self.validations.append(
            Validated(event["step"], epoch, known[prefix], parts, prefix != "", event["time"], seconds)
        )

    def _take_checkpoint(self, event: Mapping[str, Any]) -> None:
        if is_number(stall := event.get("stall")):
            self.stalled += stall
            self.stalls_of_start += stall
            self._aside += stall

    def _take_finish(self, event: Mapping[str, Any]) -> None:
        self.finish = event


def _suspended(stretch: Stretch, usual: float | None) -> bool:
    return suspended(stretch.seconds, stretch.steps, usual) > 0


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value of an event is a number that can be reckoned with, and neither true nor false."""
    return is_finite(value)


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether it is a whole number, of a size that can be meant."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53
