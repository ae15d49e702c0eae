"""What a plan says: first in a sentence, then in tables."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from agl_core.durable.interval import DAY, HOUR
from jobs.planning.inputs import Told
from jobs.planning.prediction import Advice, Prediction
from jobs.planning.references import duration
from jobs.planning.scenario import Scenario
from jobs.planning.simulation import GAVE_UP

Row = tuple[Scenario, Prediction]


def moment(at: float, now: float) -> str:
    """A clock time: with the day of the week within a week, with the date beyond."""
    then, today = datetime.fromtimestamp(at), datetime.fromtimestamp(now)
    if then.date() == today.date():
        return f"today at {then:%H:%M}"
    if then - today < timedelta(days=6):
        return f"on {then:%A} at {then:%H:%M}"
    return f"on {then:%A}, {then:%Y-%m-%d} at {then:%H:%M}"


def headline(row: Row, now: float) -> str:
    """When it ends, in a sentence."""
    _, found = row
    if not found.finished:
        return never(row)
    middle, low, high = found.end
    sure = "" if found.finished == 1 else f"; in {1 - found.finished:.0%} of the simulated runs it does not end at all"
    between = f" ({duration(low)} to {duration(high)})" if duration(low) != duration(high) else ""
    return f"ends in {duration(middle)}, {moment(now + middle, now)}{between}{sure}"


def never(row: Row) -> str:
    """Why a run does not come to its end, in a sentence."""
    scenario, found = row
    inputs, config = scenario.inputs, scenario.config
    start = inputs.startup.value
    limit = config.time_hours * HOUR if config.executor == "slurm" and config.time_hours is not None else None
    if (
        limit is not None
        and limit - config.signal_seconds <= start + inputs.references[next(iter(inputs.train.stages))].seconds
    ):
        why = (
            f"a job of {duration(limit)} (time_hours) is warned {duration(config.signal_seconds)} before its end "
            f"(signal_seconds), and needs {duration(start)} for its start: give cluster.time_hours more"
        )
    else:
        often = scenario.interruptions.per_day()
        between = f"an interruption comes after {duration(DAY / often)} in the mean" if often else "it is interrupted"
        why = f"{between}, and a start takes {duration(start)}: too often to come on"
    what = "gives up (restart.fruitless)" if found.how == GAVE_UP else "does not come to its end in any simulated run"
    return f"never ends: {why}; it {what}"


def comparison(rows: Sequence[Row], now: float) -> Table:
    """A row for each place."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    names = (
        "cluster",
        "processes",
        "s a step",
        "ends in",
        "10 to 90 %",
        "at",
        "goodput",
        "steps lost",
        "interruptions",
    )
    for name in names:
        # On a narrow terminal words go on below, and nothing is cut off.
        justify: JustifyMethod = "left" if name in ("cluster", "at") else "right"
        table.add_column(name, overflow="fold", justify=justify)
    table.columns[0].min_width = max(len(scenario.cluster) for scenario, _ in rows)
    for scenario, found in rows:
        stage, values = next(iter(scenario.inputs.train.stages.items()))
        step = f"{scenario.inputs.references[stage].step(values, scenario.processes):.3g}"
        first = (Text(scenario.cluster), str(scenario.processes), step)
        if not found.finished:
            table.add_row(*first, "never", "", "", "", "", "")
            continue
        table.add_row(
            *first,
            duration(found.end[0]),
            f"{duration(found.end[1])} to {duration(found.end[2])}",
            moment(now + found.end[0], now),
            f"{found.goodput[0]:.1%}",
            f"{found.lost[0]:,.0f}",
            f"{found.interruptions[0]:,.0f}",
        )
    return table


def assumed(places: Sequence[Scenario]) -> list[str]:
    """What the times of steps rest on that nobody has measured, in a sentence, if there is anything."""
    measured = {reference.processes for reference in places[0].inputs.references.values()}
    other = {place.processes for place in places} - measured
    told = []
    if other:
        told.append("a step is taken to share its crops among the processes without loss")
    if len({place.cluster for place in places}) > 1:
        told.append("the GPUs of all clusters are taken to be as fast as the one that was measured")
    return [f"not measured: {', and '.join(told)}"] if told else []


def items(found: Prediction) -> Table:
    """Where the time goes, in the mean, which long runs pull above the median."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("where the time goes", f"mean of {found.draws} runs", "share"):
        table.add_column(name, justify="left" if name == "where the time goes" else "right")
    wall = sum(found.items.values())
    for name, seconds in found.items.items():
        if seconds:
            table.add_row(name, duration(seconds), f"{seconds / wall:.1%}")
    table.add_row("all", duration(wall), "100%")
    return table


def sources(scenario: Scenario, saving: str) -> Table:
    """Every number that went in, and where it comes from."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("reckoned with", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("from")
    for name, told in numbers(scenario):
        table.add_row(Text(name), f"{told.value:,.4g}", Text(told.source))
    table.add_row("checkpoint.interval", saving, "the recipe" if not scenario.inputs.rest else "the run")
    return table


def numbers(scenario: Scenario) -> list[tuple[str, Told]]:
    """What a plan reckons with, by name."""
    inputs, found = scenario.inputs, list[tuple[str, Told]]()
    for number, (name, stage) in enumerate(inputs.train.stages.items()):
        if number < scenario.begin.stage:
            continue
        work, reference = inputs.work(number, name, scenario.processes), inputs.references[name]
        begun = scenario.begin.position.step if number == scenario.begin.stage else 0
        told = f"{stage.length}, {inputs.tiles[name].value:g} tiles ({inputs.tiles[name].source})"
        found.append((f"steps of {name}", Told(work.steps - begun, told + (f", {begun} done" if begun else ""))))
        found.append((f"seconds a step, {name}", Told(reference.step(stage, scenario.processes), reference.source)))
        if inputs.train.fold >= 0:
            found.append((f"seconds a validation, {name}", inputs.validation(name, scenario.processes)))
    found += [
        ("seconds of stall, a save", inputs.stall),
        ("seconds to write one", inputs.write),
        ("seconds of a start", inputs.startup),
        *([("seconds of the first", inputs.first_startup)] if inputs.first_startup != inputs.startup else []),
        ("seconds to leave", inputs.leave),
    ]
    found += [(f"seconds of {name}", told) for name, told in inputs.after.items()]
    if scenario.config.executor == "slurm" and scenario.config.time_hours is not None:
        found.append(("hours of a job", Told(scenario.config.time_hours, f"time_hours of {scenario.cluster}")))
    return [*found, *scenario.interruptions.sources]


def advice(found: Advice, scenario: Scenario, written: str) -> list[str]:
    """How often to save, a sentence each."""
    every = scenario.inputs.train.checkpoint.every
    if not found.matters:
        told = [
            f'checkpoints: leave checkpoint.interval="{written}": none from 1 to 60 minutes makes a difference above '
            f"0.1 % (checkpoint.every={every!r} saves too)"
        ]
    elif found.keep:
        told = [
            f'checkpoints: leave checkpoint.interval="{written}": the best that was simulated, '
            f"{duration(found.seconds)}, is less than 0.1 % faster"
        ]
    else:
        told = [
            f"checkpoints: give {found.option}, the best that was simulated: {found.gain:.1%} faster than {written}"
        ]
    if found.young_daly is None:
        return [*told, "nothing is expected to kill the run without a warning, so Young/Daly has nothing to say"]
    word = "agree" if found.agree else "do NOT agree"
    return [*told, f"Young/Daly says {duration(found.young_daly)} for the crashes alone: it and the simulation {word}"]


def as_json(rows: Sequence[Row], found: Advice | None, now: float) -> dict[str, Any]:
    """All that is known, in seconds."""
    return {
        "time": round(now, 3),
        "scenarios": [
            {
                "cluster": scenario.cluster,
                "gpus": scenario.processes,
                **prediction.as_json(),
                "end_time": round(now + prediction.end[0], 3) if prediction.finished else None,
                "text": headline((scenario, prediction), now),
                "numbers": {name: told._asdict() for name, told in numbers(scenario)},
                "notes": list(scenario.notes),
            }
            for scenario, prediction in rows
        ],
        "checkpoint": None if found is None else _advice_json(found),
    }


def _advice_json(found: Advice) -> Mapping[str, Any]:
    return {
        "seconds": found.seconds,
        "option": found.option,
        "young_daly_seconds": found.young_daly,
        "agree": found.agree,
        "keep": found.keep,
        "matters": found.matters,
        "mean_end_seconds": {f"{seconds:g}": end for seconds, end in found.ends.items()},
    }
