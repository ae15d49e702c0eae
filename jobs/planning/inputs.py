"""What a plan starts from, and where each number comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from agl_core.config import PlanConfig, TrainConfig
from agl_core.data.order import Order
from agl_core.errors import UserError
from agl_core.training.schedule import Span
from agl_core.validate import validate
from jobs.pipeline import EVALUATE, PREDICT, REPORT, TRAIN_TABLE
from jobs.planning.measured import Measured, measure
from jobs.planning.references import Reference, references
from jobs.planning.timeline import StageWork, nanoseconds
from jobs.settings import train_config
from jobs.survey import find_run

RECIPE = "kbrodt"
STALL, WRITE, STARTUP, LEAVE = 2.0, 10.0, 60.0, 5.0
"""Seconds that are taken where nothing was measured or given."""
AFTER = (PREDICT, EVALUATE, REPORT)


class Told(NamedTuple):
    """A number and where it comes from."""

    value: float
    source: str


@dataclass(frozen=True)
class Inputs:
    """Of the run, wherever it runs. rest: whether the progress of `measured` counts; tiles, references, validations: by
    stage; the others in seconds."""

    train: TrainConfig
    what: str
    measured: Measured | None
    rest: bool
    tiles: Mapping[str, Told]
    references: Mapping[str, Reference]
    validations: Mapping[str, Told]
    stall: Told
    write: Told
    startup: Told
    first_startup: Told
    leave: Told
    before: Mapping[str, Told] = field(default_factory=dict)
    after: Mapping[str, Told] = field(default_factory=dict)

    def work(self, number: int, name: str, processes: int) -> StageWork:
        """A stage as `processes` processes do it."""
        stage = self.train.stages[name]
        order = Order(self.train.seed, number, max(int(self.tiles[name].value), 1), stage.batch)
        scored = self.train.fold >= 0
        return StageWork(
            name,
            Span.parse(stage.length, f"stages.{name}.length").steps(order),
            max(nanoseconds(self.references[name].step(stage, processes)), 1),
            nanoseconds(self.validation(name, processes).value) if scored else 0,
            order,
            Span.parse(stage.validate_every, f"stages.{name}.validate_every") if scored else None,
            Span.parse(self.train.checkpoint.every, "checkpoint.every"),
        )

    def validation(self, name: str, processes: int) -> Told:
        """Seconds of a validation of a stage."""
        if name in self.validations:
            return self.validations[name]
        stage, held_out = self.train.stages[name], self.tiles[name].value / max(self.train.folds - 1, 1)
        seconds = self.references[name].step(stage, processes) * held_out / stage.batch
        return Told(seconds, "default: the held-out tiles at the rate of training; --validation-seconds")


def gather(config: PlanConfig, processes: int, now: float) -> Inputs:
    """Read everything; `processes` are those of the cluster, by which --step-seconds was measured.

    Raises:
        UserError: something that has no default is not known, or a file cannot be read.
    """
    measured = _measured(config, now)
    rest = measured is not None and not config.recipe
    train = _recipe(config, measured if rest else None)
    if rest and measured is not None and measured.finished:
        raise UserError(f"run {config.run} has finished its stages: give --recipe to plan another with its times")
    source = f"run {config.run}"
    tiles = _tiles(config, train, measured)
    stall = _first(
        ("--save-seconds", config.save_seconds),
        (source, measured.stall if measured is not None else None),
        ("default; --save-seconds", STALL),
    )
    write = _first(
        (source, measured.write if measured is not None else None),
        ("default; a run's with --run", max(WRITE, stall.value)),
    )
    startup = _first(
        ("--startup-seconds", config.startup_seconds),
        (source, measured.startup if measured is not None else None),
        ("default; --startup-seconds", STARTUP),
    )
    begun = measured.first_startup if measured is not None and not rest else None
    ending = measured.ending if measured is not None else None
    jobs = {name: Told(seconds, source) for name, seconds in (measured.jobs if measured is not None else {}).items()}
    done = {name for name in jobs if rest and measured is not None and measured.run.finished(name)}
    return Inputs(
        train,
        f"the rest of run {config.run}" if rest else f"recipe {train.recipe}, encoder {train.encoder}",
        measured,
        rest,
        tiles,
        references(config, train, measured, processes),
        _validations(config, train, measured),
        stall,
        write,
        startup,
        _first(("--startup-seconds", config.startup_seconds), (source, begun), (startup.source, startup.value)),
        _first(
            (source, None if ending is None else max(ending - write.value, 0.0)), ("default; a run's with --run", LEAVE)
        ),
        after={name: jobs[name] for name in AFTER if name in jobs and name not in done},
    )


def _measured(config: PlanConfig, now: float) -> Measured | None:
    if not config.run:
        return None
    run = find_run(config.runs, config.run)
    if not run.exists():
        raise UserError(f"{config.run} is an ensemble or a prediction, which trains nothing: give a run with --run")
    found = measure(run, now)
    if found is None:
        raise UserError(f"run {config.run} has not begun, so nothing is measured: give --step-seconds or --fit")
    return found


def _recipe(config: PlanConfig, rest: Measured | None) -> TrainConfig:
    if rest is not None:
        train = rest.config
        if config.encoder and config.encoder != train.encoder:
            raise UserError(
                f"run {config.run} trains {train.encoder}, not {config.encoder}: leave out --encoder, or give --recipe"
            )
        return train
    encoder = {"encoder": config.encoder} if config.encoder else {}
    train = train_config({"recipe": config.recipe or RECIPE, **encoder})
    validate(train)
    return train


def _first(*known: tuple[str, float | None]) -> Told:
    """The first of some values that is there."""
    return next(Told(value, source) for source, value in known if value is not None)


def _tiles(config: PlanConfig, train: TrainConfig, measured: Measured | None) -> dict[str, Told]:
    if config.tiles:
        return dict.fromkeys(train.stages, Told(config.tiles, "--tiles"))
    if config.data:
        return {name: Told(count, f"{config.data}") for name, count in _of_data(config, train).items()}
    found = {}
    of_run = measured.stages if measured is not None else {}
    any_stage = next((stage.tiles for stage in of_run.values() if stage.tiles), None)
    for name, stage in train.stages.items():
        count = of_run[name].tiles if name in of_run else None
        if (known := count or any_stage) is not None:
            found[name] = Told(known, f"run {config.run}")
            continue
        if any("step" not in text for text in (stage.length, stage.validate_every, train.checkpoint.every)):
            raise UserError(
                f"stage {name} of {train.recipe} counts epochs, and how many tiles one has is unknown: give --tiles, "
                "--data or --run"
            )
        found[name] = Told(0, "not needed")
    return found


def _of_data(config: PlanConfig, train: TrainConfig) -> dict[str, int]:
    """Training tiles of each stage by a data set's table, without those held out."""
    from agl_core.data.catalog import cities, read_catalog
    from agl_core.data.folds import assign_folds
    from agl_core.data.split import stage_cities

    records = read_catalog(Path(config.data), "train")
    folds = assign_folds(records, train.folds, train.fold_by, train.seed) if train.fold >= 0 else [-2] * len(records)
    found = {}
    for name in train.stages:
        wanted = stage_cities(train, name, cities(records))
        kept = sum(record.city in wanted and fold != train.fold for record, fold in zip(records, folds, strict=True))
        if not kept:
            raise UserError(f"{Path(config.data) / TRAIN_TABLE} leaves stage {name} no tile to train on: check --data")
        found[name] = kept
    return found


def _validations(config: PlanConfig, train: TrainConfig, measured: Measured | None) -> dict[str, Told]:
    if config.validation_seconds is not None:
        return dict.fromkeys(train.stages, Told(config.validation_seconds, "--validation-seconds"))
    of_run = measured.stages if measured is not None else {}
    known = [times.validation for times in of_run.values() if times.validation is not None]
    found = {}
    for name in train.stages:
        seconds = of_run[name].validation if name in of_run else None
        if seconds is not None or known:
            found[name] = Told(seconds if seconds is not None else known[0], f"run {config.run}")
    return found


def told_steps(inputs: Inputs, processes: int) -> Sequence[tuple[str, Told]]:
    """Seconds of a step of each stage, by so many processes."""
    return [
        (name, Told(inputs.references[name].step(stage, processes), inputs.references[name].source))
        for name, stage in inputs.train.stages.items()
    ]
