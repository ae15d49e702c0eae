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


def store_missing(config: TrainConfig, cluster: ClusterConfig) -> bool:
    """Whether there is no store yet where a settled configuration expects it.

    For Slurm one that is not finished counts as missing too, since a job can finish it.
    """
    path = Path(config.store)
    if not config.store or not path.exists():
        return True
    return cluster.executor == "slurm" and path.is_dir() and not _sealed(path)


def _sealed(path: Path) -> bool:
    from agl_core.data.layout import read_meta, shared_mapping

    if not (path / "data.mdb").is_file():
        return False
    mapping = shared_mapping(path)
    meta = read_meta(path, mapping.environment)
    return meta is not None and meta["entries"] is not None


def check_inputs(config: TrainConfig, cluster: ClusterConfig) -> None:
    """Raise a `UserError` if what the run starts from is missing or does not go together; nothing is written."""
    if not config.store:
        raise UserError("no data: give the folder of a data set with --data, or of a prepared store with --store")
    if not store_missing(config, cluster):
        _check_store(config)
    elif cluster.executor != "slurm" or not config.data:
        where = config.data or "DATA"
        raise UserError(f"no store at {config.store}: run `python launch.py prepare --data {where}` first")
    elif not Path(config.data).is_dir():
        raise UserError(f"{config.data} is not a folder: give the folder of a data set with --data")
    _check_precision(config, cluster)
    if config.encoder_weights not in ("imagenet", "none") and not Path(config.encoder_weights).is_file():
        raise UserError(
            f"encoder weights {config.encoder_weights} do not exist: "
            "give imagenet, none, or an existing safetensors file"
        )
    for name, stage in config.stages.items():
        if stage.start.endswith(".safetensors") and not Path(stage.start).is_file():
            raise UserError(f"stages.{name}.start: {stage.start} does not exist; give an existing weights file")


def fetch_encoder_weights(config: TrainConfig, chain: list[JobSpec]) -> None:
    """Have the ImageNet weights in the cache if a job of `chain` starts from them: compute nodes have no network.

    Raises:
        UserError: they are not in the cache and cannot be fetched, or there are none for this encoder.
    """
    if config.encoder_weights == "imagenet" and any(
        config.stages[job.name].start == "encoder" for job in chain if job.trains
    ):
        from agl_core.model.encoders import build_encoder

        build_encoder(config.encoder, "imagenet")


def _check_store(config: TrainConfig) -> None:
    from agl_core.data.split import Split
    from agl_core.data.store import Store

    store = Store(Path(config.store))
    Split.of(store, config)
    # The defaults are for the challenge's cities and do no harm elsewhere.
    strange = [city for city in config.max_agl if city not in (*TrainConfig().max_agl, *store.cities)]
    if strange:
        raise UserError(
            f"max_agl.{strange[0]}: the store {config.store} has no city {strange[0]!r}; "
            f"choose one of {', '.join(['default', *store.cities])}"
        )


def _check_precision(config: TrainConfig, cluster: ClusterConfig) -> None:
    if config.precision != "float16":  # the only one that a device refuses
        return
    from agl_core.training.parallel import Parallel

    here = cluster.executor != "slurm"
    if cluster.gpus_per_node == 0 or (here and Parallel().device.type == "cpu"):
        raise UserError("precision is float16, which needs a GPU: use bfloat16, float32 or auto on a CPU")
