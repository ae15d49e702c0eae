"""The learning curves: score and R2 over the epochs of all stages, then losses, rates and waiting."""

from collections.abc import Callable, Sequence

from agl_core.reporting.page.chart import Chart, Series, Star, figure
from agl_core.reporting.page.markup import NOTHING, Markup, Row, el, join, table
from agl_core.reporting.report import LOSSES, Report, Stage, Validation

Point = tuple[float, float]
MOST_ROWS = 60  # of a table of validations; a longer one is thinned out
WIDE, NARROW = (940, 330), (350, 280)
LOSS_NAMES = {
    "loss": "loss",
    "agl_loss": "heights",
    "direction_loss": "direction",
    "scale_loss": "scale",
    "magnitude_loss": "magnitude",
}
PARTS = {
    "score": "Score by city",
    "agl_r2": "R² of heights by city",
    "vflow_r2": "R² of flow by city",
}


def learning_section(report: Report) -> Markup:
    """Scores of the held-out fold; nothing where nothing was validated."""
    if report.best is None:
        return NOTHING
    cities = list(dict.fromkeys(city for stage in report.stages for point in stage.curve for city in point.cities))
    charts = [
        figure(_by_city(report, part, title, sorted(cities)), None)
        for part, title in PARTS.items()
        if part != "score" or len(cities) > 1
    ]
    return join(
        [
            el("p", _about(report), class_="about"),
            figure(score_chart(report), WIDE, NARROW),
            el("div", *charts, class_="charts three"),
            validations(report),
        ]
    )


def _about(report: Report) -> str:
    told = "Scores of the held-out fold, of which no tile is trained on; 1 is perfect, 0 what the mean would reach."
    if any(stage.restarts for stage in report.stages):
        told += " Triangles on the axis: the run went on there after an interruption."
    return told


def along(report: Report, of: Callable[[Stage], Sequence[Point]]) -> list[Point]:
    """Points (step, value) of all stages, at the epochs of the whole run."""
    return [
        (begin + stage.at(step), value)
        for stage, begin in zip(report.stages, report.begins(), strict=True)
        for step, value in of(stage)
    ]


def stages_of(report: Report) -> list[Point]:
    """After how many epochs each stage begins that has begun, and its name, as `Chart.stages`."""
    begun = zip(report.begins(), report.stages, strict=True)
    return [(begin, stage.name) for begin, stage in begun if stage.starts]  # type: ignore[misc]


def restarts_of(report: Report) -> list[float]:
    """At which epochs of the run it was started again."""
    begun = zip(report.begins(), report.stages, strict=True)
    return [begin + stage.at(step) for begin, stage in begun for step in stage.restarts]


def x_name(report: Report) -> str:
    """What the axis counts."""
    return "epoch" if all(stage.epochs for stage in report.stages if stage.starts) else "step"


def _chart(report: Report, title: str, series: Sequence[Series], **more: object) -> Chart:
    axis = {"stages": stages_of(report), "restarts": restarts_of(report), "x_name": x_name(report)}
    return Chart(title, series, **axis, **more)  # type: ignore[arg-type]


def score_chart(report: Report) -> Chart:
    """The score of all cities, that of the average of the weights, and the best."""
    raw = along(report, lambda stage: [(point.step, point.score) for point in stage.curve])
    average = along(report, lambda stage: [(point.step, point.ema) for point in stage.curve if point.ema is not None])
    series = [Series("weights" if average else "score", raw, 0, bare=not average)]
    if average:
        series.append(Series("their average", average, 1))
    stars = []
    if report.best is not None:
        stage, best = report.best
        begin = report.begins()[list(report.stages).index(stage)]
        stars = [Star(begin + stage.at(best.step), best.highest, f"best {best.highest:.4f}")]
    return _chart(report, "Score", series, stars=stars, form=".4f", calm=True, note=_best_note(report))


def _best_note(report: Report) -> str:
    told = [
        f"{stage.name}: best {best.highest:.4f} at epoch {best.epoch:g} of the stage"
        + (", of the average of the weights" if best.averaged else "")
        for stage in report.stages
        if (best := stage.best) is not None
    ]
    return "; ".join(told) + "."


def _by_city(report: Report, part: str, title: str, cities: Sequence[str]) -> Chart:
    def points(city: str) -> Callable[[Stage], list[Point]]:
        return lambda stage: [
            (point.step, point.parts[part][city]) for point in stage.curve if city in point.parts.get(part, {})
        ]

    series = [Series(city, along(report, points(city)), number) for number, city in enumerate(cities)]
    return _chart(report, title, series, form=".4f", calm=True)


def rates_section(report: Report) -> Markup:
    """Losses, learning rate, throughput and waiting; nothing where no step was told of."""
    if not any(stage.curves for stage in report.stages):
        return NOTHING

    def series(name: str, told: str, colour: int, bare: bool = False) -> Series:
        return Series(told, along(report, lambda stage: stage.curves.get(name, ())), colour, bare, name != "lr")

    losses = [series(name, LOSS_NAMES[name], number) for number, name in enumerate(LOSSES)]
    charts = [
        _chart(report, "Loss and its parts", losses, log=True),
        _chart(report, "Learning rate", [series("lr", "learning rate", 0, True)], log=_wide_range(report), form=".3g"),
        _chart(report, "Crops per second", [series("crops_per_second", "crops/s", 2, True)], floor=0.0, form=".1f"),
        _chart(
            report,
            "Share of time waiting for data",
            [series("data_wait", "waiting", 1, True)],
            floor=0.0,
            ceiling=0.05,
            share=True,
        ),
    ]
    drawn = [figure(chart) for chart in charts]
    note = "Where there are more values than pixels, the line is their mean and the band goes from lowest to highest."
    note += " Parts of the loss are shown without their weights."
    return el("div", *drawn, class_="charts") + el("p", note, class_="note")


def _wide_range(report: Report) -> bool:
    rates = [rate for _, rate in along(report, lambda stage: stage.curves.get("lr", ())) if rate > 0]
    return bool(rates) and max(rates) > 30 * min(rates)


def validations(report: Report) -> Markup:
    """The numbers of the curves, on demand."""
    found = []
    for stage in report.stages:
        if stage.curve:
            shown = thinned(stage.curve, stage.best)
            told = f"{len(shown)} of {len(stage.curve)} validations of {stage.name} in numbers"
            found.append(el("details", el("summary", told), _numbers(stage, shown)))
    return join(found)


def _numbers(stage: Stage, shown: Sequence[Validation]) -> Markup:
    best = stage.best
    average = any(point.ema is not None for point in stage.curve)
    cities = sorted({city for point in shown for city in point.cities})
    rows = []
    for point in shown:
        cells = [str(point.step), f"{point.epoch:g}", f"{point.score:.4f}"]
        cells += ["" if point.ema is None else f"{point.ema:.4f}"] if average else []
        cells += [f"{point.cities[city]:.4f}" if city in point.cities else "" for city in cities]
        rows.append(Row([*cells, "best"], "differs") if point is best else [*cells, ""])
    return table(["step", "epoch", "score", *(["average"] if average else []), *cities, ""], rows, ())


def thinned(curve: Sequence[Validation], best: Validation | None) -> list[Validation]:
    """At most about `MOST_ROWS` points of a curve, evenly spread, with its last and its best."""
    every = -(-len(curve) // MOST_ROWS)
    return [
        point
        for number, point in enumerate(curve, 1)
        if number % max(every, 1) == 0 or number == len(curve) or point is best
    ]
