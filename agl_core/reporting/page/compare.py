"""Several runs side by side: a row for each, their curves in the same charts, and what differs between them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from agl_core.reporting.page.chart import Chart, Series, figure
from agl_core.reporting.page.curves import NARROW, WIDE, along
from agl_core.reporting.page.head import count, pill
from agl_core.reporting.page.markup import NOTHING, Markup, Row, el, join, table
from agl_core.reporting.page.scores import mapping, told
from agl_core.reporting.page.timing import percent
from agl_core.reporting.report import Report, duration

MOST_CURVES = 8  # in one chart: as many as there are colours and marks
OWN = ("run", "runs", "data", "store", "weights_cache", "workers", "threads", "stage_in")
"""Keys that say where a run lies or how fast it is; they are told last."""


def overview(reports: Sequence[Report]) -> Markup:
    """A row for each run; the best of a column is bold."""
    rows: list[list[Any]] = []
    best = [
        max((value for value in column if value is not None), default=None)
        for column in zip(*map(_scores, reports), strict=True)
    ]
    for number, report in enumerate(reports):
        scores = [
            el("b", f"{value:.4f}") if value is not None and value == most else told(value)
            for value, most in zip(_scores(report), best, strict=True)
        ]
        account = report.account
        rows.append(
            [
                el("a", report.name, href=f"#run{number}"),
                pill(report.now.state),
                *scores,
                _epochs(report),
                "" if account is None else duration(account.wall),
                "" if account is None else percent(account.goodput),
                "" if account is None else count(account.interruptions),
                "" if account is None else count(account.steps_lost),
            ]
        )
    head = [
        "run", "state", "test score", "held-out score", "epochs", "time", "goodput", "interruptions",
        "steps done twice",
    ]  # fmt: skip
    return table(head, rows, (0, 1), class_="overview")


def _scores(report: Report) -> tuple[float | None, float | None]:
    reached = (report.score or {}).get("score")
    return (
        float(reached) if isinstance(reached, int | float) else None,
        report.best[1].highest if report.best is not None else None,
    )


def _epochs(report: Report) -> str:
    return count(sum(stage.length if stage.finished else stage.at(stage.step) for stage in report.stages))


def curves(reports: Sequence[Report]) -> Markup:
    """Scores, losses and rates of all runs over their epochs."""
    shown = reports[:MOST_CURVES]

    def series(of: Any, noisy: bool = False) -> list[Series]:
        return marked([Series(report.name, of(report), number, noisy=noisy) for number, report in enumerate(shown)])

    def step(name: str) -> list[Series]:
        return series(lambda report: along(report, lambda stage: stage.curves.get(name, ())), True)

    scores = series(lambda report: along(report, lambda stage: [(p.step, p.highest) for p in stage.curve]))
    note = "Of the weights or of their average, whichever was higher."
    if len(reports) > MOST_CURVES:
        note += f" Only the first {MOST_CURVES} of {len(reports)} runs are drawn."
    losses, rates = step("loss"), step("crops_per_second")
    charts = [
        figure(Chart("Loss", losses, hidden(losses), log=True)),
        figure(Chart("Crops per second", rates, hidden(rates), floor=0.0, form=".1f")),
    ]
    note = " ".join(filter(None, [note, hidden(scores)]))
    drawn = figure(Chart("Score of the held-out fold", scores, note, form=".4f", calm=True), WIDE, NARROW)
    return join([drawn, el("div", *charts, class_="charts")]) if drawn or any(charts) else NOTHING


def marked(series: Sequence[Series]) -> list[Series]:
    """Curves of which those are dashed that would hide an earlier one, or be hidden by it: most of their points are
    the same."""
    return [replace(one, dashed=_twin(one, series[:number]) is not None) for number, one in enumerate(series)]


def _twin(one: Series, before: Sequence[Series]) -> Series | None:
    points = set(one.points)
    return next((other for other in before if 2 * len(points & set(other.points)) > len(points)), None)


def hidden(series: Sequence[Series]) -> str:
    """Which curves lie on one another, in words."""
    twins = [(one, _twin(one, series[:number])) for number, one in enumerate(series) if one.dashed]
    told = [
        f"{one.name} is {'the same as' if list(one.points) == list(twin.points) else 'mostly the same as'} {twin.name}"
        for one, twin in twins
        if twin is not None
    ]
    return f"Dashed, on top: {', '.join(told)}." if told else ""


def by_city(reports: Sequence[Report]) -> Markup:
    """The test scores of all runs, city by city."""
    cities = sorted({str(city) for report in reports for city in mapping((report.score or {}).get("cities"))})
    if not cities:
        return NOTHING
    rows = []
    for report in reports:
        found = mapping((report.score or {}).get("cities"))
        rows.append(
            [report.name, *(told(mapping(found.get(city)).get("score")) for city in cities), told(_scores(report)[0])]
        )
    return el("h3", "Test score by city") + table(["run", *cities, "all"], rows)


def differences(reports: Sequence[Report]) -> Markup:
    """The settings in which any two of the runs differ, those that make them other runs first."""
    settings = [{setting.key: setting for setting in report.settings} for report in reports]
    keys = list(dict.fromkeys(key for one in settings for key in one))
    rows: list[list[Any]] = []
    minor: list[list[Any]] = []
    for key in keys:
        values = [one[key].value if key in one else "not set" for one in settings]
        if len(set(values)) == 1 and len({one[key].hidden for one in settings if key in one}) > 1:
            values = [f"{value} (differs)" for value in values]
        if len(set(values)) > 1 or values[0].endswith(" (differs)"):
            identity = any(one[key].identity for one in settings if key in one) and key not in OWN
            row = [key, *(el("code", value) for value in values)]
            (rows if identity else minor).append(Row(row, "differs") if identity else row)
    if not rows and not minor:
        return el("p", "Their settings are the same.", class_="note")
    head = ["key", *(report.name for report in reports)]
    parts = (
        [table(head, rows, range(len(head)))] if rows else [el("p", "None that makes them other runs.", class_="note")]
    )
    if minor:
        told_minor = f"{len(minor)} that say only where, how fast or for how long they run"
        parts.append(el("details", el("summary", told_minor), table(head, minor, range(len(head)))))
    return join(parts)
