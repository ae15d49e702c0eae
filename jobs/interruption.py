"""What interrupts a rehearsed run, and when: all of it drawn from one seed before the run begins."""

from dataclasses import dataclass

import numpy as np

SIGNALS = {"KILL": 0.4, "TERM": 0.3, "USR2": 0.3}
"""Shares of the signals among mixed ones."""

PHASES = {"step": 0.6, "start-up": 0.14, "validation": 0.1, "save": 0.16}
"""Shares of what the run is meant to be doing when it is interrupted."""

ONE, ALL, WORKERS, LAUNCHER, EVERYTHING = "one rank", "all ranks", "ranks and workers", "the launcher", "everything"


@dataclass(frozen=True)
class Interruption:
    """One interruption; `spread`, `fraction` and `rank` are even draws from [0, 1)."""

    signal: str
    target: str
    phase: str
    spread: float
    fraction: float
    rank: float

    @property
    def announced(self) -> bool:
        """Whether the run is warned and can save: then it must lose nothing."""
        return self.signal != "KILL"


@dataclass(frozen=True)
class Pace:
    """How an undisturbed run goes. total: its steps; every, validate_every: steps from one save or validation to the
    next; the others in seconds: from the launch to the start of training, and for one step, validation and save."""

    total: int
    every: int
    validate_every: int
    startup: float
    step: float
    validation: float
    save: float


@dataclass(frozen=True)
class Moment:
    """When to strike: `delay` seconds after the run has done step number `step`."""

    phase: str
    step: int
    delay: float


def targets(signal: str, processes: int) -> list[str]:
    """What may be hit: with one process the launcher is the only rank."""
    if signal == "KILL":
        return [ONE, EVERYTHING]
    return [ONE, ALL, WORKERS, LAUNCHER] if processes > 1 else [ONE, WORKERS]


def draw(count: int, signal: str, processes: int, seed: int) -> list[Interruption]:
    """The interruptions of a drill: a pure function of its arguments."""
    random = np.random.Generator(np.random.Philox(seed))
    found = []
    for _ in range(count):
        mixed = str(random.choice(list(SIGNALS), p=list(SIGNALS.values())))
        chosen = mixed if signal == "mixed" else signal
        choices = targets(chosen, processes)
        target = choices[int(random.integers(len(choices)))]
        phase = str(random.choice(list(PHASES), p=list(PHASES.values())))
        found.append(Interruption(chosen, target, phase, *(float(value) for value in random.random(3))))
    return found


def aim(interruption: Interruption, start: int, left: int, pace: Pace) -> Moment:
    """When to interrupt a run that continues from step `start`, with `left` more interruptions to come after this one.

    The moment lies before the last step but one, so that the run cannot end before it, and on average as far ahead as
    spreads the interruptions evenly over the steps that are left. A validation or save is waited for if one lies within
    that stretch; otherwise a step is interrupted. (Start-up is over when a run's `start` is known.)
    """
    reach = max(pace.total - 2 - start, 0)
    window = min(reach, -(-2 * reach // (left + 1)))
    fraction = interruption.fraction
    for phase, every, seconds in (
        ("validation", pace.validate_every, pace.validation),
        ("save", pace.every, pace.save),
    ):
        # Saving goes on beside the following steps: there must be as many as it takes.
        beside = seconds / max(pace.step, 1e-3) if phase == "save" else 0
        due = [step for step in range(start + 1, start + window + 1) if step % every == 0]
        due = [step for step in due if step + beside <= pace.total - 2]
        if interruption.phase == phase and due:
            step = due[int(interruption.spread * len(due))]
            before = pace.validation if phase == "save" and step % pace.validate_every == 0 else 0.0
            return Moment(phase, step, before + fraction * seconds)
    if not reach:
        return Moment("step", start, 0.0)
    return Moment("step", start + int(interruption.spread * (window + 1)), fraction * pace.step)
