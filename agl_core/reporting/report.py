"""A run in one page: what was trained, how it went, how often it was started, and what came of it.

Reading and rendering are apart, and pure: `read_stage` says what the events of a stage amount to, `render` makes
Markdown of a `Report`.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

MOST_ROWS = 60  # of a validation curve; a longer one is thinned out


@dataclass(frozen=True)
class Validation:
    """The score of the held-out fold after `step`: of all, and by city; and `ema`, that of the average of the weights,
    where there is one."""

    step: int
    epoch: float
    score: float
    cities: dict[str, float]
    ema: float | None = None

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
    `data_wait` the share of the time of training that steps have waited for data, if the events know it."""

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

    @property
    def best(self) -> Validation | None:
        """The highest score, the first of several; None without a held-out fold."""
        return max(self.curve, key=lambda point: (point.highest, -point.step), default=None)


@dataclass(frozen=True)
class Start:
    """One start of a job: when (seconds since 1970), of which job, under which id, the last step that it reached, how
    it ended and why, in words."""

    time: float
    job: str
    id: str
    step: int | None
    end: str
    text: str


@dataclass(frozen=True)
class Report:
    """All that is told. kind: run or ensemble; facts: settings by name; score: the content of score.json."""

    name: str
    kind: str
    facts: Mapping[str, str]
    stages: Sequence[Stage]
    starts: Sequence[Start]
    score: Mapping[str, Any] | None


def read_stage(events: Sequence[Mapping[str, Any]], stage: str, finished: bool, seconds: float = 0.0) -> Stage:
    """The stage as its events tell it; `events` are those of the whole run, as `read_events` gives them."""
    own = [event for event in events if event.get("stage") == stage]
    starts = [event for event in own if event["kind"] == "start"]
    if not starts:
        return Stage(stage, finished, seconds=seconds)
    last = starts[-1]
    steps = [event for event in own if isinstance(event.get("step"), int)]
    return Stage(
        name=stage,
        finished=finished,
        step=max(event["step"] for event in steps),
        steps=last.get("steps"),
        epoch=max((event["epoch"] for event in own if "epoch" in event), default=None),
        epochs=last.get("epochs"),
        starts=len(starts),
        seconds=seconds,
        where=f"{last.get('world_size', 1)} x {last.get('device', '?')}, {last.get('precision', '?')}",
        curve=[_validation(event) for event in own if event["kind"] == "validation"],
        data_wait=_data_wait(own),
    )


def _data_wait(own: Sequence[Mapping[str, Any]]) -> float | None:
    """The share of the stage's time of training that steps have waited for data: the mean of what its events say, each
    counting by the steps since the one before, with each step taken to last as long as another."""
    waited, steps, before = 0.0, 0, 0
    for event in own:
        if event["kind"] == "step" and isinstance(event.get("data_wait"), int | float):
            waited += event["data_wait"] * (event["step"] - before)
            steps += event["step"] - before
        if event["kind"] in ("start", "step"):
            before = event["step"]
    return waited / steps if steps else None


def _validation(event: Mapping[str, Any]) -> Validation:
    cities = {name: city["score"] for name, city in event.get("cities", {}).items()}
    return Validation(event["step"], event.get("epoch", 0), event["score"], cities, event.get("ema_score"))


def render(report: Report) -> str:
    """The page, in Markdown; the same report always gives the same text."""
    parts = [f"# {report.kind.capitalize()} {escape(report.name)}"]
    parts.append(table(["setting", "value"], [[name, value] for name, value in report.facts.items()]))
    if report.score is not None:
        parts += ["## Score of the test images", _score_table(report.score)]
    if report.stages:
        parts += ["## Stages", _stage_table(report.stages)]
    for stage in report.stages:
        if stage.curve:
            parts += [f"## Validation of {escape(stage.name)}", *_curve(stage)]
    if report.starts:
        parts += ["## Starts and their ends", _starts_table(report.starts)]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; whatever is in its cells stays in them."""
    lines = [head, ["---"] * len(head), *([escape(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{letter}" if letter in "\\|`*[]~#" else letter for letter in text)


def duration(seconds: float) -> str:
    """A time as people say it: 12 s, 5 min, 3 h 20 min, 6 d 4 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, days = minutes // 60, minutes // 1440
    if hours == 0:
        return f"{minutes} min"
    return f"{days} d {hours % 24} h" if days else f"{hours} h {minutes % 60} min"


def _stage_table(stages: Sequence[Stage]) -> str:
    rows = []
    for stage in stages:
        best = stage.best
        rows.append(
            [
                stage.name,
                "finished" if stage.finished else "not finished" if stage.starts else "not begun",
                f"{stage.step}" + (f" of {stage.steps}" if stage.steps is not None else ""),
                "" if stage.epochs is None else f"{stage.epoch or 0:g} of {stage.epochs:g}",
                _best(best),
                str(stage.starts),
                duration(stage.seconds),
                "" if stage.data_wait is None else f"{stage.data_wait:.0%}",
                stage.where,
            ]
        )
    return table(["stage", "state", "steps", "epochs", "best score", "starts", "time", "waiting for data", "on"], rows)


def _best(best: Validation | None) -> str:
    if best is None:
        return "none"
    return f"{best.highest:.4f} at step {best.step}" + (", of the average" if best.averaged else "")


def _curve(stage: Stage) -> list[str]:
    best = stage.best
    average = any(point.ema is not None for point in stage.curve)
    shown = thinned(stage.curve, best)
    cities = sorted({city for point in stage.curve for city in point.cities})
    rows = [
        [
            f"{point.step}",
            f"{point.epoch:g}",
            f"{point.score:.4f}" + (" (best)" if point is best and not point.averaged else ""),
            *([_number(point.ema) + (" (best)" if point is best and point.averaged else "")] if average else []),
            *(f"{point.cities[city]:.4f}" if city in point.cities else "" for city in cities),
        ]
        for point in shown
    ]
    told = [f"{len(shown)} of {len(stage.curve)} validations are shown."] if len(shown) < len(stage.curve) else []
    head = ["step", "epoch", "score", *(["average"] if average else []), *map(escape, cities)]
    return [*told, table(head, rows)]


def thinned(curve: Sequence[Validation], best: Validation | None) -> list[Validation]:
    """At most about `MOST_ROWS` points of a curve, evenly spread, with its last and its best."""
    every = -(-len(curve) // MOST_ROWS)
    return [
        point
        for number, point in enumerate(curve, 1)
        if number % max(every, 1) == 0 or number == len(curve) or point is best
    ]


def _starts_table(starts: Sequence[Start]) -> str:
    rows = [
        [
            datetime.fromtimestamp(start.time, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            start.job,
            start.id,
            "" if start.step is None else str(start.step),
            start.end,
            start.text,
        ]
        for start in starts
    ]
    return table(["start (UTC)", "job", "id", "until step", "end", "in words"], rows)


def _score_table(score: Mapping[str, Any]) -> str:
    constant = score.get("best_constant", {})
    rows = [
        [
            city,
            str(part.get("images", "")),
            _number(part.get("agl_r2")),
            _number(part.get("vflow_r2"), "no truth"),
            _number(part.get("score")),
            _number(constant.get("cities", {}).get(city, {}).get("score")),
        ]
        for city, part in score.get("cities", {}).items()
    ]
    images = sum(int(part.get("images", 0)) for part in score.get("cities", {}).values())
    rows.append(["all", str(images), "", "", _number(score.get("score")), _number(constant.get("score"))])
    return table(["city", "images", "R2 heights", "R2 flow", "score", "best constant"], rows)


def _number(value: Any, without: str = "") -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else without
