"""What a run has measured of itself: its times and how far it has come, from its events.

Times are means: they are added up to that of a whole run, in which what is slow now and then comes again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from agl_core.config import TrainConfig
from agl_core.reporting.events import read_all
from agl_core.reporting.goodput.account import Account, account
from jobs.runs import Run

Event = Mapping[str, Any]


@dataclass(frozen=True)
class StageTimes:
    """Of a stage, in seconds, None where nothing tells: a step, a validation. waits: share of the time of steps in
    which data was waited for; tiles, processes: of its last start; done: its last step; finished: whether it is."""

    step: float | None = None
    validation: float | None = None
    waits: float = 0.0
    tiles: int | None = None
    processes: int | None = None
    done: int = 0
    finished: bool = False


@dataclass(frozen=True)
class Measured:
    """A run, and its times in seconds, None where nothing tells.

    stall: by which a save holds training up; write: from its begin until it is on the disk; startup: from the launch to
    the end of the first step; first_startup: that of the first start of all, which compiles and fetches more; ending:
    from the last step to the end of the processes, with the last save; jobs: of those beside the stages;
    running_since: when the job that runs now was given its nodes, unix time, None if none is.
    """

    run: Run
    config: TrainConfig
    account: Account
    stages: Mapping[str, StageTimes]
    stall: float | None = None
    write: float | None = None
    startup: float | None = None
    first_startup: float | None = None
    ending: float | None = None
    jobs: Mapping[str, float] = field(default_factory=dict)
    running_since: float | None = None

    @property
    def finished(self) -> bool:
        """Whether all of its stages are."""
        return all(self.stages[name].finished for name in self.config.stages)


def measure(run: Run, now: float) -> Measured | None:
    """What `run` tells at `now` (unix time); None if it has not begun."""
    config, events = run.config(), read_all(run.events)
    found = account(events, now)
    if found is None:
        return None
    trained = [event for event in events if event.get("generation") is not None]
    stages = {name: _stage(name, trained, run.finished(name)) for name in config.stages}
    saves = _of_kind(trained, "checkpoint")
    # The last save of a start holds up all that is left to do, which is no stall of training.
    beside = [event for event in saves if _number(event, "stall") < 0.9 * _number(event, "seconds")] or saves
    stage_lives = [life for life in found.lives if life.job in config.stages]
    times = [life.started - life.launched for life in stage_lives if life.started is not None]
    return Measured(
        run,
        config,
        found,
        stages,
        stall=_mean(_number(event, "stall") for event in beside),
        write=_mean(_number(event, "seconds") for event in saves),
        startup=_mean(times[1:] or times),
        first_startup=times[0] if times else None,
        ending=_ending(found, config),
        jobs={
            life.job: life.ended - life.launched
            for life in found.lives
            if life.ended is not None and life.end in ("", "done") and life.job not in config.stages
        },
        running_since=_running(found, now),
    )


def _stage(name: str, events: Sequence[Event], finished: bool) -> StageTimes:
    own = [event for event in events if event.get("stage") == name]
    starts = _of_kind(own, "start")
    last: Event = starts[-1] if starts else {}
    count, waited, spent = _steps(own)
    newest = [event for event in own if event.get("generation") == last.get("generation")]
    return StageTimes(
        step=spent / count if count else _by_rate(own),
        validation=_mean(_number(event, "seconds") for event in _of_kind(own, "validation")),
        waits=waited / spent if spent else 0.0,
        tiles=last.get("tiles"),
        processes=last.get("world_size"),
        done=max((int(event["step"]) for event in newest if isinstance(event.get("step"), int)), default=0),
        finished=finished,
    )


def _steps(events: Sequence[Event]) -> tuple[int, float, float]:
    """How many steps have told their time, the seconds of them in which data was waited for, and all of their seconds.
    The first step of a start, which warms up, is left out."""
    count, waited, spent = 0, 0.0, 0.0
    before: tuple[Any, int] | None = None
    for event in _of_kind(events, "step"):
        place = event.get("generation"), int(event["step"])
        if before is not None and before[0] == place[0] and place[1] > before[1] and "seconds" in event:
            count += place[1] - before[1]
            waited, spent = waited + _number(event, "waited"), spent + _number(event, "seconds")
        before = place
    return count, waited, spent


def _by_rate(events: Sequence[Event]) -> float | None:
    """Seconds of a step by the time from one event to the next, for runs that did not measure it: the median, which has
    little of what went on beside."""
    times = []
    steps = _of_kind(events, "step")
    for before, event in pairwise(steps):
        count = event["step"] - before["step"]
        if before.get("generation") == event.get("generation") and count > 0:
            times.append((event["time"] - before["time"]) / count)
    return median(times) if times else None


def _ending(found: Account, config: TrainConfig) -> float | None:
    ends: dict[int, float] = {}
    for span in found.spans:
        if span.item == "ending" and span.job in config.stages:
            ends[span.life] = ends.get(span.life, 0.0) + span.end - span.begin
    return _mean(ends.values())


def _running(found: Account, now: float) -> float | None:
    if not found.lives or found.lives[-1].ended is not None:
        return None
    last = found.lives[-1]
    same = [life for life in found.lives if (life.job, life.id, life.restart) == (last.job, last.id, last.restart)]
    return min(same[0].launched, now)


def _of_kind(events: Iterable[Event], kind: str) -> list[Event]:
    return [event for event in events if event.get("kind") == kind]


def _number(event: Event, key: str) -> float:
    value = event.get(key)
    return float(value) if isinstance(value, int | float) else 0.0


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return fmean(found) if found else None
