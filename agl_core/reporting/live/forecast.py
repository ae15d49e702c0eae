"""When a stage and a run will end: pure arithmetic on what was measured of it so far.

The time that is left of a stage, undisturbed:

    steps left * seconds of a step + validations left * seconds of one + steps left * stall of checkpoints per step

with the step of the newest events and the means of the rest. Stages to come are taken to cost the same per pixel of a
crop and the same for a validation. What interruptions have cost so far, in seconds per second of undisturbed progress,
is taken to go on.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from agl_core.config import StageConfig, TrainConfig
from agl_core.reporting.goodput.account import Account, Life, Span
from agl_core.reporting.live.seen import StageSeen, is_whole

KEPT = ("training", "data wait", "validation", "checkpoint")
"""Items of an account that belong to an undisturbed run too."""

INTERRUPTED = ("queue", "start-up", "lost", "ending", "down")
"""Items that there would be less of, or nothing."""
CLOCK = 0.01  # seconds that times of an account may be off by rounding


@dataclass(frozen=True)
class Costs:
    """What interruptions have cost so far, seconds: in all, and by item of the account.

    kept: seconds of undisturbed progress; begin: of the queue and the start-up before the first step of a stage, in
    the mean, which every stage has once.
    """

    total: float
    items: Mapping[str, float]
    kept: float
    begin: float

    @property
    def per_second(self) -> float:
        """For each second of undisturbed progress."""
        return self.total / self.kept if self.kept > 0 else 0.0


def costs(account: Account | None, stages: Collection[str]) -> Costs:
    """What interruptions have cost the `stages` of a run; the first start of each is no interruption."""
    if account is None:
        return Costs(0.0, {}, 0.0, 0.0)
    lives = [life for life in account.lives if life.job in stages]
    first = {life.job: life.number for life in reversed(lives)}
    last = {life.job: life.number for life in lives}
    items: dict[str, float] = {}
    kept = begin = 0.0
    for part in account.spans:
        seconds = part.end - part.begin
        life = _concerned(part, lives) if part.item in INTERRUPTED else None
        if part.item in KEPT:
            kept += seconds
        elif part.item not in INTERRUPTED or (part.job and part.job not in stages):
            continue
        elif part.item in ("queue", "start-up") and (life is None or first[life.job] == life.number):
            begin += seconds
        elif part.item != "ending" or life is None or last[life.job] != life.number:  # it was started again
            items[part.item] = items.get(part.item, 0.0) + seconds
    return Costs(sum(items.values()), items, kept, begin / max(len(first), 1))


def _concerned(part: Span, lives: Sequence[Life]) -> Life | None:
    """The start of a stage in which a stretch of time lies, or for which it was waited: where that is still to come,
    the last one, unless it was done; None if there is none."""
    if part.life:
        return next((life for life in lives if life.number == part.life), None)
    after = [life for life in lives if life.launched >= part.end - CLOCK]
    if after:
        return min(after, key=lambda life: life.launched)
    return lives[-1] if lives and lives[-1].end != "done" else None


def steps_of(length: str, batch: int, tiles: int | None) -> float | None:
    """How many steps a length of the configuration is ('N epochs' or 'N steps'); None if it cannot be known."""
    match = re.fullmatch(r"\s*(\d+)[\s_-]*(epoch|step)s?\s*", length)
    if match is None:
        return None
    if match[2] == "step":
        return float(match[1])
    return None if not tiles else int(match[1]) * tiles / batch


def seconds_left(seen: StageSeen, config: StageConfig | None = None) -> float | None:
    """How long the rest of a stage takes undisturbed, from its newest step on; None if no rate is known."""
    each, total = seen.step_seconds(), seen.total
    if each is None or total is None or seen.step is None:
        return None
    steps = max(total - seen.step, 0)
    stall = seen.stalled / seen.stepped if seen.stepped else 0.0
    return steps * (each + stall) + _validating(seen, config, seen.step, total)


def _validating(seen: StageSeen, config: StageConfig | None, step: int, total: int) -> float:
    """Seconds of the validations after `step`."""
    each = seen.validation_seconds()
    if each is None or total <= step:
        return 0.0
    tiles = seen.start.get("tiles")
    every = steps_of(config.validate_every, config.batch, tiles if is_whole(tiles) else None) if config else None
    if every is None:
        return len(seen.validations) * each / step * (total - step) if step else 0.0
    return each * (int(total / every) - int(step / every) + (total % every > 0))


def whole_seconds(config: TrainConfig, stage: str, basis: StageSeen) -> float | None:
    """How long all of `stage` takes undisturbed, by the times of the stage `basis` per pixel of a crop; None if they
    are not known, or not how many steps it has."""
    each, tiles = basis.step_seconds(), basis.start.get("tiles")
    tiles = tiles if is_whole(tiles) else None
    here, there = config.stages[stage], config.stages[basis.name]
    steps = steps_of(here.length, here.batch, tiles)
    every = steps_of(here.validate_every, here.batch, tiles)
    if each is None or steps is None:
        return None
    each *= (here.batch * here.crop**2) / (there.batch * there.crop**2)
    stall = basis.stalled / basis.stepped if basis.stepped else 0.0
    return steps * (each + stall) + (basis.validation_seconds() or 0.0) * (math.ceil(steps / every) if every else 0)


def ends_at(config: TrainConfig, stage: str, seen: Mapping[str, StageSeen], spent: Costs, since: float) -> float | None:
    """The unix time at which the last stage will end, if interruptions go on to cost what they did, counted from
    `since`, the time of the newest step or the present; None if no rate is known."""
    names = list(config.stages)
    known = [seen[name] for name in names[: names.index(stage) + 1] if name in seen and seen[name].step_seconds()]
    if not known:
        return None
    here = seconds_left(seen[stage], config.stages[stage]) if stage in seen else None
    begun = here is not None
    here = whole_seconds(config, stage, known[-1]) if here is None else here
    later = [whole_seconds(config, name, known[-1]) for name in names[names.index(stage) + 1 :]]
    left = [seconds for seconds in [here, *later] if seconds is not None]
    if len(left) != len(later) + 1:
        return None
    starts = len(later) + (not begun)
    return since + sum(left) * (1.0 + spent.per_second) + starts * spent.begin
