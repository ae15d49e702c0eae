"""Several runs in one command: every encoder with every fold, and the ensemble that joins their predictions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from agl_core.config import TrainConfig, option
from agl_core.errors import UserError
from agl_core.files import read_json, write_text
from jobs.pipeline import ENSEMBLE, PREDICT
from jobs.runs import Run, default_name, member_name, recipe_name, run_of
from jobs.settings import Assignments, apply_mapping, read_mapping, to_yaml, train_config

LISTS = ("encoder", "fold")  # the keys that take several values, each of which is a run


@dataclass(frozen=True)
class Several:
    """Runs that are launched together: their configurations, each with its run's name, and that of their ensemble."""

    configs: list[TrainConfig]
    ensemble: str = ""


@dataclass
class EnsembleFile:
    """ensemble.yaml: what an ensemble's folder is about."""

    runs: list[str] = option(list, "names of the runs whose predictions are averaged")
    members: list[str] = option(list, "the folders of these predictions")
    data: str = option("", "folder of the data set")
    unit: str = option("cm", "unit of the predictions and of the data set's files", choices=("cm", "m"))


def read_several(assignments: Assignments) -> TrainConfig | Several:
    """What the command line asks for: one run, or several where `encoder` or `fold` is a list A,B,...

    The runs of a command with `run=NAME` are NAME-<encoder>-fold<fold>, always with both parts, so that a run keeps
    its name when the lists grow; otherwise they have their default names. Their ensemble is NAME-ensemble, or
    <recipe>-ensemble.

    Raises:
        UserError: see `jobs.settings.train_config`; a value that is given twice; weights of one encoder for several.
    """
    values = {key: _values(key, assignments[key]) for key in LISTS if "," in assignments.get(key, "")}
    if not values:
        return train_config(assignments)
    configs = [
        train_config({**assignments, **dict(zip(values, chosen, strict=True))}) for chosen in product(*values.values())
    ]
    family = configs[0].run
    if family:
        run_of(configs[0])  # the name must be one of a folder
    named = [replace(config, run=member_name(family, config) if family else default_name(config)) for config in configs]
    _check(named)
    return Several(named, f"{family or recipe_name(configs[0])}-ensemble")


def runs_of(asked: TrainConfig | Several) -> list[TrainConfig]:
    """The configurations of all runs that a command asks for."""
    return asked.configs if isinstance(asked, Several) else [asked]


def ensemble_of(asked: TrainConfig | Several) -> Run | None:
    """The folder that joins the runs of the command; None where it asks for one run. Nothing is created.

    Raises:
        UserError: the folder is that of a run, or holds something else.
    """
    if not isinstance(asked, Several):
        return None
    run = run_of(replace(asked.configs[0], run=asked.ensemble))
    if run.exists():
        raise UserError(f"the ensemble's folder {run.path} is that of a run: choose another --run")
    if run.path.is_file() or (
        run.path.is_dir() and not run.is_ensemble() and any(map(run.foreign, run.path.iterdir()))
    ):
        raise UserError(f"{run.path} exists but is no ensemble (it has no ensemble.yaml): choose another --run")
    return run


def describe_ensemble(configs: Sequence[TrainConfig], runs: Sequence[Run]) -> EnsembleFile:
    """What the ensemble of these runs, with settled configurations, consists of."""
    return EnsembleFile(
        runs=[run.name for run in runs],
        members=[str(run.predictions) for run in runs],
        data=configs[0].data,
        unit=configs[0].unit,
    )


def read_ensemble(run: Run) -> EnsembleFile:
    """Read back what `create_ensemble` wrote."""
    path = run.ensemble_file
    return apply_mapping(EnsembleFile(), read_mapping(path, resolve=False), str(path))


def changed(run: Run, content: EnsembleFile) -> bool:
    """Whether what the folder holds is not of this ensemble; the order of the members does not matter."""
    if not run.is_ensemble():
        return True
    there = read_ensemble(run)
    if (sorted(there.members), there.data, there.unit) != (sorted(content.members), content.data, content.unit):
        return True
    return run.finished(ENSEMBLE) and read_json(run.stage_record(ENSEMBLE)).get("members") != made_of(content)


def made_of(content: EnsembleFile) -> dict[str, Any]:
    """What the records of the members' predictions say, by folder: another time means other predictions."""
    records = {member: Run(Path(member).parent).stage_record(PREDICT) for member in content.members}
    return {member: read_json(record) if record.exists() else None for member, record in sorted(records.items())}


def create_ensemble(run: Run, content: EnsembleFile) -> list[str]:
    """Write down what the ensemble in the existing folder consists of; returns notes for the user."""
    if not changed(run, content):
        return []
    before = read_ensemble(run).runs if run.is_ensemble() else []
    write_text(run.ensemble_file, to_yaml(content))
    if before:
        return [f"ensemble {run.name} had {', '.join(before)} and has now {', '.join(content.runs)}"]
    return [f"ensemble {run.name} of {', '.join(content.runs)} in {run.path}"]


def _values(key: str, text: str) -> list[str]:
    values = [value.strip() for value in text.split(",")]
    if "" in values:
        raise UserError(f"{key} is {text!r}: write its values with one comma between two of them, such as A,B")
    for number, value in enumerate(values):
        if value in values[:number]:
            raise UserError(f"{key} is {text!r}, which has {value} twice: give each value once")
    return values


def _check(configs: Sequence[TrainConfig]) -> None:
    names = [config.run for config in configs]
    for number, name in enumerate(names):
        if name in names[:number]:
            other = configs[names.index(name)]
            raise UserError(
                f"encoder {other.encoder} and {configs[number].encoder}, fold {other.fold} and {configs[number].fold}, "
                f"would both be the run {name}: launch them one by one, each with its --run"
            )
    weights = configs[0].encoder_weights
    if weights not in ("imagenet", "none") and len({config.encoder for config in configs}) > 1:
        raise UserError(
            f"encoder_weights is {weights}, which can fit one encoder only: launch the encoders one by one, or use "
            "imagenet or none"
        )
