"""What is known of a run, for the page that `agl_core.reporting.page` makes of it: plain values, read from its files.

`read_stage` says what the events of a stage amount to. Files may be of an older version, or damaged: what is not there,
or not of the kind that it should be, is left out.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

from agl_core.reporting.events import is_finite

if TYPE_CHECKING:  # tiles are arrays, for which not everything that knows of reports must wait
    from agl_core.reporting.goodput.account import Account
    from agl_core.reporting.live.snapshot import Snapshot
    from agl_core.reporting.pictures.tiles import Tile

Point = tuple[float, float]
LOSSES = ("loss", "agl_loss", "direction_loss", "scale_loss", "magnitude_loss")
CURVES = (*LOSSES, "lr", "crops_per_second", "data_wait")
"""What the events of steps tell that is drawn."""
CITY_VALUES = ("score", "agl_r2", "vflow_r2")


@dataclass(frozen=True)
class Validation:
    """The score of the held-out fold after `step`: of all, and by city; and `ema`, that of the average of the weights,
    where there is one. parts: R2 of heights and of flow by city, as `CITY_VALUES`."""

    step: int
    epoch: float
    score: float
    cities: dict[str, float]
    ema: float | None = None
    parts: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def averaged(self) -> bool:
        """Whether the average scored higher."""
        return self.ema is not None and self.ema > self.score

    @property
    def highest(self) -> float:
        """The higher of the two."""
        return self.score if self.ema is None else max(self.score, self.ema)


@dataclass(frozen=True)
class Stage:
    """What the events of a stage amount to; `seconds` is the time from its starts to their ends, all together,
    `data_wait` the share of the time of training that steps have waited for data, if the events know it; curves: of
    `CURVES`, (step, value); restarts: the steps from which it went on; machines: what its starts say of where they ran,
    each once; warnings: (step, text)."""

    name: str
    finished: bool
    step: int = 0
    steps: int | None = None
    epoch: float | None = None
    epochs: float | None = None
    starts: int = 0
    seconds: float = 0.0
    where: str = ""
    curve: list[Validation] = field(default_factory=list)
    data_wait: float | None = None
    curves: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    restarts: Sequence[int] = ()
    machines: Sequence[Mapping[str, str]] = ()
    warnings: Sequence[tuple[int, str]] = ()

    @property
    def best(self) -> Validation | None:
        """The highest score, the first of several; None without a held-out fold."""
        return max(self.curve, key=lambda point: (point.highest, -point.step), default=None)

    @property
    def length(self) -> float:
        """Epochs that it has when it is done, as far as is known; where epochs are not known, steps."""
        return float(self.epochs or self.steps or self.step)

    def at(self, step: float) -> float:
        """How many epochs are done after `step` steps."""
        return step * self.length / self.steps if self.steps else float(step)


@dataclass(frozen=True)
class Setting:
    """A key of the configuration: its value, that of the recipe (None: the recipe does not say, or is not known), and
    whether it is part of what makes the run this one. hidden: where the value is told in part only, all of it, to
    compare runs with; it is never shown."""

    key: str
    value: str
    usual: str | None
    identity: bool
    hidden: str = field(default="", repr=False)

    @property
    def differs(self) -> bool:
        """Whether it is not what the recipe says."""
        return self.usual is not None and self.usual != self.value


@dataclass(frozen=True)
class Now:
    """Where a run stands. state: in one or two words; job: that which says most about it; detail: what the state means;
    problem, traceback: of an end that was not a good one; advice: a command, and what it does."""

    state: str = "not started"
    job: str = ""
    id: str = ""
    host: str = ""
    detail: str = ""
    problem: str = ""
    traceback: str = ""
    last_sign: float | None = None
    advice: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Gallery:
    """Tiles to look at. best, worst: by what each takes from the score; fixed: those that training shows, where nothing
    is predicted yet; lost: that share by id; note: of what they are, or why there are none."""

    best: "Sequence[Tile]" = ()
    worst: "Sequence[Tile]" = ()
    fixed: "Sequence[Tile]" = ()
    lost: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Report:
    """All that is told of one run. kind: run, ensemble or prediction; made: when (seconds since 1970); alive: number of
    the start in `account` that is at work, 0 for none; maker: of that which makes this report; facts: what it is, by
    name; score: the content of score.json; notes: what could not be read."""

    name: str
    kind: str
    path: str
    made: float
    version: str
    now: Now = field(default_factory=Now)
    alive: int = 0
    maker: int = 0
    facts: Mapping[str, str] = field(default_factory=dict)
    stages: Sequence[Stage] = ()
    account: "Account | None" = None
    snapshot: "Snapshot | None" = None
    score: Mapping[str, Any] | None = None
    gallery: Gallery = field(default_factory=Gallery)
    settings: Sequence[Setting] = ()
    cluster: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def best(self) -> tuple[Stage, Validation] | None:
        """The highest score of the last stage that has any."""
        found = [(stage, stage.best) for stage in self.stages]
        return next(((stage, best) for stage, best in reversed(found) if best is not None), None)

    def begins(self) -> list[float]:
        """After how many epochs of the run each stage begins."""
        lengths = [stage.length for stage in self.stages]
        return [math.fsum(lengths[:number]) for number in range(len(lengths))]


def read_stage(events: Sequence[Mapping[str, Any]], stage: str, finished: bool, seconds: float = 0.0) -> Stage:
    """The stage as its events tell it; `events` are those of the whole run, as `read_events` gives them."""
    own = [event for event in events if event.get("stage") == stage]
    starts = _of(own, "start")
    if not starts:
        return Stage(stage, finished, seconds=seconds)
    last = starts[-1]
    steps = [event["step"] for event in own if _whole(event.get("step"))]
    machines = [_machine(start) for start in starts]
    return Stage(
        name=stage,
        finished=finished,
        step=max(steps, default=0),
        steps=last.get("steps") if _whole(last.get("steps")) else None,
        epoch=max((event["epoch"] for event in own if number(event.get("epoch"))), default=None),
        epochs=last.get("epochs") if number(last.get("epochs")) else None,
        starts=len(starts),
        seconds=seconds,
        where=f"{last.get('world_size', 1)} x {last.get('device', '?')}, {last.get('precision', '?')}",
        curve=[found for event in _of(own, "validation") if (found := _validation(event)) is not None],
        data_wait=_data_wait(own),
        curves=_curves(own),
        restarts=[start["step"] for start in starts[1:] if _whole(start.get("step"))],
        machines=[machine for n, machine in enumerate(machines) if machine not in machines[:n]],
        warnings=[(event.get("step", 0), str(event.get("text", ""))) for event in _of(own, "warning")],
    )


def _of(events: Iterable[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
    return [event for event in events if event.get("kind") == kind]


def number(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a finite number."""
    return is_finite(value)


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53


MACHINE = (
    "host", "world_size", "device", "device_name", "precision", "torch", "cuda", "driver", "python", "project",
    "optimizer", "threads", "parameters", "tiles", "validation_tiles",
)  # fmt: skip
"""What a start says of where it ran and with what."""


def _machine(start: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(start[name]) for name in MACHINE if start.get(name) not in (None, "", [])}


def _curves(own: Sequence[Mapping[str, Any]]) -> dict[str, list[Point]]:
    steps = [event for event in _of(own, "step") if _whole(event.get("step"))]
    found = {
        name: [(float(step["step"]), float(step[name])) for step in steps if number(step.get(name))] for name in CURVES
    }
    return {name: points for name, points in found.items() if points}


def _data_wait(own: Sequence[Mapping[str, Any]]) -> float | None:
    """The share of the stage's time of training that steps have waited for data: the mean of what its events say, each
    counting by the steps since the one before, with each step taken to last as long as another."""
    waited, steps, before = 0.0, 0, 0
    for event in own:
        if event["kind"] in ("start", "step") and _whole(event.get("step")):
            if event["kind"] == "step" and number(event.get("data_wait")):
                waited += event["data_wait"] * (event["step"] - before)
                steps += event["step"] - before
            before = event["step"]
    return waited / steps if steps else None


def _validation(event: Mapping[str, Any]) -> Validation | None:
    if not _whole(event.get("step")) or not number(event.get("score")):
        return None
    told = event.get("cities")
    cities = (
        {str(name): city for name, city in told.items() if isinstance(city, dict)} if isinstance(told, dict) else {}
    )
    parts = {
        value: {name: float(city[value]) for name, city in cities.items() if number(city.get(value))}
        for value in CITY_VALUES
    }
    epoch, ema = event.get("epoch"), event.get("ema_score")
    return Validation(
        event["step"],
        epoch if number(epoch) else 0,
        event["score"],
        parts["score"],
        ema if number(ema) else None,
        {value: found for value, found in parts.items() if found},
    )


def duration(seconds: float) -> str:
    """A time as people say it, in its two largest units: 12 s, 5 min 3 s, 3 h 20 min, 6 d 4 h."""
    whole, minutes, hours = round(seconds), round(seconds / 60), round(seconds / 3600)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 1440 else f"{hours // 24} d {hours % 24} h"
