"""The run directory: everything about a run, and the only thing that its jobs read."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agl_core.config import PredictConfig, TrainConfig
from agl_core.errors import UserError
from agl_core.files import read_json, writable_folder, write_text
from agl_core.reporting.events import trained
from jobs.settings import apply_mapping, flat, load_train_config, read_mapping, to_yaml

MOST_DIFFERENCES = 3


@dataclass(frozen=True)
class Run:
    """The folder of one run and where everything lies in it."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name, which is its folder's."""
        return self.path.name

    @property
    def config_file(self) -> Path:
        """The full configuration; a folder that has it is a run."""
        return self.path / "config.yaml"

    @property
    def events(self) -> Path:
        """The progress of all stages, one JSON object a line."""
        return self.path / "events.jsonl"

    @property
    def jobs(self) -> Path:
        """What submitit writes: scripts, pickles of job names, logs of every rank."""
        return self.path / "jobs"

    @property
    def tensorboard(self) -> Path:
        """The scalars for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def lock(self) -> Path:
        """The file that the process that trains the run holds a lock on; it says which process."""
        return self.path / "lock"

    @property
    def submitted(self) -> Path:
        """The jobs that were submitted to Slurm last: their ids by name."""
        return self.jobs / "submitted.json"

    @property
    def history(self) -> Path:
        """What happened to the jobs of the run; see `jobs.history`."""
        return self.jobs / "history.jsonl"

    @property
    def cluster_file(self) -> Path:
        """The cluster configuration of the last start, on Slurm or here, with all that the command line changed."""
        return self.path / "cluster.yaml"

    @property
    def code(self) -> Path:
        """The copies of the code that submitted jobs run."""
        return self.path / "code"

    @property
    def predictions(self) -> Path:
        """The predictions of the test images."""
        return self.path / "predictions"

    @property
    def score_file(self) -> Path:
        """The score of the predictions, where there is a truth."""
        return self.path / "score.json"

    @property
    def report_file(self) -> Path:
        """What became of it all, in one page."""
        return self.path / "report.html"

    @property
    def ensemble_file(self) -> Path:
        """What an ensemble consists of; its folder has this instead of a configuration."""
        return self.path / "ensemble.yaml"

    @property
    def prediction_file(self) -> Path:
        """What a job of the verb `predict` does; its folder has this instead of a configuration."""
        return self.path / "predict.yaml"

    def checkpoints(self, stage: str) -> Path:
        """The folder of the complete states of a stage."""
        return self.path / "checkpoints" / stage

    def weights(self, stage: str, which: str) -> Path:
        """The weights of a stage; `which` is best or last."""
        return self.path / "weights" / stage / f"{which}.safetensors"

    def stage_record(self, stage: str) -> Path:
        """What is left at the end of a stage (by the trainer: steps, score, finished) and of other jobs."""
        return self.path / "stages" / f"{stage}.json"

    def foreign(self, path: Path) -> bool:
        """Whether something in the folder is not of a start of this run that was killed before it had written
        config.yaml: its lock, and files that are not whole yet."""
        return path != self.lock and not re.fullmatch(r"\..+\.(part|probe)(\.\w+)?", path.name)

    def exists(self) -> bool:
        """Whether the run has been created."""
        return self.config_file.exists()

    def is_ensemble(self) -> bool:
        """Whether the folder is that of an ensemble of other runs."""
        return self.ensemble_file.exists()

    def is_prediction(self) -> bool:
        """Whether the folder is that of a job of the verb `predict`."""
        return self.prediction_file.exists()

    def begun(self) -> bool:
        """Whether anything was trained in it: until then its configuration commits to nothing."""
        return trained(self.events) or any((self.path / name).exists() for name in ("checkpoints", "stages"))

    def config(self) -> TrainConfig:
        """The run's configuration."""
        return load_train_config(self.config_file)

    def prediction(self) -> PredictConfig:
        """What the job of the verb `predict` does whose folder this is."""
        path = self.prediction_file
        return apply_mapping(PredictConfig(), read_mapping(path, resolve=False), str(path))

    def finished(self, stage: str) -> bool:
        """Whether a stage, or another job, has come to its end."""
        record = self.stage_record(stage)
        return record.exists() and bool(read_json(record).get("finished", False))


def run_of(config: TrainConfig) -> Run:
    """The run that a configuration names, or its default name; nothing is created.

    Raises:
        UserError: the name cannot be a folder's.
    """
    name = config.run or default_name(config)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise UserError(f"run name {name!r}: use letters, digits, '.', '-' and '_' only, and no '.' or '-' first")
    return Run(Path(config.runs).absolute() / name)


def default_name(config: TrainConfig) -> str:
    """`<recipe>-<encoder>-fold<fold>`, with what cannot be in a folder's name replaced by '-'."""
    return member_name(recipe_name(config), config)


def recipe_name(config: TrainConfig) -> str:
    """The recipe's name, without the folder and the suffix of a file."""
    recipe = Path(config.recipe)
    return recipe.stem if recipe.suffix in (".yaml", ".yml") else recipe.name


def member_name(family: str, config: TrainConfig) -> str:
    """`<family>-<encoder>-fold<fold>`, with what cannot be in a folder's name replaced by '-'."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{family}-{config.encoder}-fold{config.fold}")
    return name.lstrip(".-")


def check_same_run(run: Run, config: TrainConfig) -> None:
    """Raise a `UserError` if the run has begun and `config` would make another one of it.

    Only keys that are part of a run's identity count: where and how fast it runs may change.
    """
    if run.is_ensemble():
        raise UserError(f"{run.path} is an ensemble of other runs: choose another --run")
    if not run.exists():
        if run.path.exists() and (not run.path.is_dir() or any(map(run.foreign, run.path.iterdir()))):
            raise UserError(f"{run.path} exists but is no run (it has no config.yaml): choose another --run")
        return
    if not run.begun():  # it was refused after its creation: what mends that must not be refused
        return
    found = differences(run.config(), config)
    if found:
        shown = ", ".join(
            f"{key} is {_spoken(there)} there and {_spoken(here)} here" for key, there, here in found[:MOST_DIFFERENCES]
        )
        more = f" (and {len(found) - MOST_DIFFERENCES} more)" if len(found) > MOST_DIFFERENCES else ""
        raise UserError(
            f"run {run.name!r} is in use with another configuration: {shown}{more}; "
            "choose another --run, or give the same values to continue it"
        )


def create(run: Run, config: TrainConfig) -> list[str]:
    """Create the run with this configuration, or open it for continuing; returns notes for the user.

    After this returns, config.yaml holds all of `config` and survives a power cut; if it raises, nothing was changed.
    A run that has not begun takes over all values, one that is continued those that are not part of its identity.

    Raises:
        UserError: the name is in use with another configuration, or the folder cannot be written to.
    """
    check_same_run(run, config)
    notes: list[str] = []
    if run.exists() and run.begun():
        before = run.config()
        notes.append(f"run {run.name} continues in {run.path}")
        notes += [
            f"{key} was {old or '(nothing)'} and is now {new or '(nothing)'}"
            for key, old, new in (("data", before.data, config.data), ("store", before.store, config.store))
            if old != new
        ]
    else:
        writable_folder(run.path.parent, "--runs")
        notes.append(f"run {run.name} begins in {run.path}")
    fresh = not run.path.exists()
    writable_folder(run.path, "--runs")
    try:
        text = to_yaml(replace(config, run=run.name, dry_run=False))
        if not run.exists() or run.config_file.read_text(encoding="utf-8") != text:
            write_text(run.config_file, text)
    except OSError:
        if fresh:
            run.path.rmdir()
        raise
    return notes


def differences(there: TrainConfig, here: TrainConfig) -> list[tuple[str, Any, Any]]:
    """The identity keys in which two configurations differ, with both values, in the order of the fields; None stands
    for a key that one of them does not have."""
    old = {path: value for path, value, identity in flat(there) if identity}
    new = {path: value for path, value, identity in flat(here) if identity}
    paths = [*old, *(path for path in new if path not in old)]
    found = [(".".join(path), old.get(path), new.get(path)) for path in paths if old.get(path) != new.get(path)]
    if list(there.stages) != list(here.stages) and not found:
        found.append(("the order of stages", list(there.stages), list(here.stages)))
    return found


def _spoken(value: Any) -> str:
    if value is None:
        return "not set"
    return str(value).lower() if isinstance(value, bool) else str(value)
