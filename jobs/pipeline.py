"""From a configuration to a chain of jobs: prepare the store where there is none, then the stages in their order."""

from dataclasses import dataclass, replace
from pathlib import Path

from agl_core.config import TrainConfig
from agl_core.errors import UserError
from jobs.cluster import ClusterConfig
from jobs.runs import Run

PREPARE = "prepare"


@dataclass(frozen=True)
class JobSpec:
    """One job: building the store, or one stage of training, after the job `depends_on` has succeeded."""

    name: str
    depends_on: str | None = None
    trains: bool = True


def plan(config: TrainConfig, run: Run, store_missing: bool) -> list[JobSpec]:
    """The jobs that are left to do for a run, in order, each after the one before it."""
    names = [stage for stage in config.stages if not run.finished(stage)]
    chain: list[JobSpec] = []
    if names and store_missing:
        chain.append(JobSpec(PREPARE, trains=False))
    for name in names:
        chain.append(JobSpec(name, chain[-1].name if chain else None))
    return chain


def settle(config: TrainConfig, cluster: ClusterConfig, run: Run) -> TrainConfig:
    """The configuration with everything filled in that depends on the place: names, folders, workers and threads."""
    data = str(Path(config.data).absolute()) if config.data else ""
    store = config.store or (str(Path(data) / "store") if data else "")
    return replace(
        config,
        run=run.name,
        runs=str(run.path.parent),
        data=data,
        store=str(Path(store).absolute()) if store else "",
        workers=cluster.workers if config.workers is None else config.workers,
        threads=cluster.default_threads() if config.threads is None else config.threads,
    )


def store_missing(config: TrainConfig) -> bool:
    """Whether there is no store yet where a settled configuration expects it."""
    return not config.store or not Path(config.store).exists()


def check_inputs(config: TrainConfig, cluster: ClusterConfig) -> None:
    """Raise a `UserError` if a file or folder that the run starts from is missing; nothing is written."""
    if not config.store:
        raise UserError("no data: give the folder of a data set with --data, or of a prepared store with --store")
    if store_missing(config):
        if cluster.executor != "slurm" or not config.data:
            where = config.data or "DATA"
            raise UserError(f"no store at {config.store}: run `python launch.py prepare --data {where}` first")
        if not Path(config.data).is_dir():
            raise UserError(f"{config.data} is not a folder: give the folder of a data set with --data")
    else:
        from agl_core.data.store import Store

        Store(Path(config.store))
    if config.encoder_weights not in ("imagenet", "none") and not Path(config.encoder_weights).is_file():
        raise UserError(
            f"encoder weights {config.encoder_weights} do not exist: "
            "give imagenet, none, or an existing safetensors file"
        )
    for name, stage in config.stages.items():
        if stage.start.endswith(".safetensors") and not Path(stage.start).is_file():
            raise UserError(f"stages.{name}.start: {stage.start} does not exist; give an existing weights file")
