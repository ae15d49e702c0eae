"""From configurations to jobs: prepare the store where there is none, train the stages in their order, predict,
evaluate and report, and join the predictions of several runs."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from agl_core.config import StageConfig, TrainConfig
from agl_core.durable.retention import list_checkpoints
from agl_core.errors import UserError
from agl_core.files import expanded
from jobs.cluster import ClusterConfig
from jobs.runs import Run

if TYPE_CHECKING:  # numpy comes with it, which no launch needs to wait for
    from agl_core.data.folds import Placed

PREPARE, STAGE, PREDICT, EVALUATE, REPORT, ENSEMBLE = KINDS = (
    "prepare",
    "stage",
    "predict",
    "evaluate",
    "report",
    "ensemble",
)

TRAIN_TABLE, TEST_TABLE, TRUTH = "geopose_train.csv", "geopose_test.csv", "test_truth"  # of a data set


@dataclass(frozen=True)
class JobSpec:
    """One job: what is done in which run's folder, after the jobs with the keys `after` have succeeded."""

    run: Run
    name: str
    kind: str
    after: tuple[str, ...] = ()
    """Keys of jobs of the same submission; every one comes before this job in its list."""

    @property
    def key(self) -> str:
        """The job's name among all of a submission."""
        return f"{self.run.name}/{self.name}"


def plan_all(
    configs: Sequence[TrainConfig],
    runs: Sequence[Run],
    missing: Collection[str] = (),
    ensemble: Run | None = None,
    renewed: bool = False,
) -> list[JobSpec]:
    """The jobs that are left to do for some runs and their ensemble; those that a job comes after are before it.

    missing: the stores that must be prepared first, each once; ensemble: where the predictions of all runs are joined,
    if there are any, None if they are not to be; renewed: it is made again though it is done, since its members are
    others.

    A job that is done is left out, unless one before it in its run is not: what follows a stage that must be trained
    is done again. A job comes after those of this list only; what is done already needs no waiting for.
    """
    jobs: list[JobSpec] = []
    prepared: dict[str, str] = {}
    for config, run in zip(configs, runs, strict=True):
        left = _left(config, run)
        after: tuple[str, ...] = ()
        if config.store in missing and any(kind == STAGE for _, kind in left):
            if config.store not in prepared:
                jobs.append(JobSpec(run, PREPARE, PREPARE))
                prepared[config.store] = jobs[-1].key
            after = (prepared[config.store],)
        for name, kind in left:
            jobs.append(JobSpec(run, name, kind, after))
            after = (jobs[-1].key,)
    if ensemble is not None and PREDICT in follow_ups(configs[0]):
        predictions = tuple(job.key for job in jobs if job.kind == PREDICT)
        jobs += _plan_ensemble(configs[0], ensemble, predictions, renewed)
    return jobs


def follow_ups(config: TrainConfig) -> list[str]:
    """The jobs that a run has after its stages, as far as its data set has something for them."""
    if config.until == "train":
        return []
    data, found = Path(config.data), []
    if config.data and (data / TEST_TABLE).is_file():
        found.append(PREDICT)
        if (data / TRUTH).is_dir():
            found.append(EVALUATE)
    return [*found, REPORT]


def forget(jobs: Sequence[JobSpec]) -> None:
    """Remove the records of what is about to be done again, so that nobody takes an earlier result for its end."""
    for job in jobs:
        if job.kind not in (PREPARE, STAGE):
            job.run.stage_record(job.name).unlink(missing_ok=True)


def _left(config: TrainConfig, run: Run) -> list[tuple[str, str]]:
    """Name and kind of what is left of a run but the preparation of its store."""
    left = [(stage, STAGE) for stage in config.stages if not run.finished(stage)]
    after = follow_ups(config)
    begin = 0 if left else next((n for n, name in enumerate(after) if not run.finished(name)), len(after))
    return [*left, *((name, name) for name in after[begin:])]


def _plan_ensemble(config: TrainConfig, ensemble: Run, predictions: tuple[str, ...], renewed: bool) -> list[JobSpec]:
    names = [ENSEMBLE, *(name for name in follow_ups(config) if name != PREDICT)]
    undone = (number for number, name in enumerate(names) if not ensemble.finished(name))
    begin = 0 if predictions or renewed else next(undone, len(names))
    jobs: list[JobSpec] = []
    for name in names[begin:]:
        jobs.append(JobSpec(ensemble, name, name, (jobs[-1].key,) if jobs else predictions))
    return jobs


def settle(config: TrainConfig, cluster: ClusterConfig, run: Run) -> TrainConfig:
    """The configuration with everything filled in that depends on the place: names, workers, threads, stage-in, and
    the full paths of folders and files, since jobs run elsewhere."""
    data = str(Path(config.data).absolute()) if config.data else ""
    store = config.store or (str(Path(data) / "store") if data else "")
    return replace(
        config,
        run=run.name,
        runs=str(run.path.parent),
        data=data,
        store=str(Path(store).absolute()) if store else "",
        encoder_weights=_full_path(config.encoder_weights),
        weights_cache=str(expanded(config.weights_cache, "--weights-cache")),
        stages={name: replace(stage, start=_full_path(stage.start)) for name, stage in config.stages.items()},
        workers=cluster.workers if config.workers is None else config.workers,
        threads=cluster.default_threads() if config.threads is None else config.threads,
        stage_in=_on_node(config.stage_in) or cluster.stage_in,
        notify=replace(config.notify, command=_full_words(config.notify.command)),
    )


def _full_words(command: Sequence[str]) -> list[str]:
    """A command that finds its files in another folder too. Its first word stays, if it is looked up in PATH."""
    return [_full_path(word) if number or "/" in word else word for number, word in enumerate(command)]


def _on_node(folder: str) -> str:
    """The full path of a folder of the nodes, whose variables are theirs."""
    return folder if folder in ("", "none") or folder.startswith("$") else str(Path(folder).absolute())


def _full_path(text: str) -> str:
    """The full path of a file that exists; other words, such as imagenet, stay."""
    return str(Path(text).absolute()) if Path(text).is_file() else text


def store_missing(config: TrainConfig) -> bool:
    """Whether there is no finished store yet where a settled configuration expects it."""
    path = Path(config.store)
    return not config.store or not path.exists() or (path.is_dir() and not _sealed(path))


def _sealed(path: Path) -> bool:
    from agl_core.data.store.layout import read_meta, shared_mapping

    if not (path / "data.mdb").is_file():
        return False
    mapping = shared_mapping(path)
    meta = read_meta(path, mapping.environment)
    return meta is not None and meta["sealed"] is not None


def check_data(config: TrainConfig) -> None:
    """Raise a `UserError` if there is no store and none can be prepared, or if its tiles cannot be split into folds,
    images that are to be predicted at the end are missing or of a city that is unknown then, or a stage names such a
    city; nothing is written."""
    if not config.store:
        raise UserError("no data: give the folder of a data set with --data, or of a prepared store with --store")
    from agl_core.data.catalog import cities as cities_of
    from agl_core.data.split import Split

    tiles = _tiles_to_come(config) if store_missing(config) else _tiles_of_store(config)
    cities = cities_of(tiles)
    for stage in config.stages:
        Split.among(tiles, cities, config, stage)
    if PREDICT in follow_ups(config):
        _check_test(config, cities)


def check_inputs(config: TrainConfig, cluster: ClusterConfig) -> None:
    """Raise a `UserError` if what the run starts from is missing or does not go together; nothing is written."""
    if not store_missing(config):
        _check_store(config)
    _check_device(config, cluster)
    if config.encoder_weights not in ("imagenet", "none") and not Path(config.encoder_weights).is_file():
        raise UserError(
            f"encoder weights {config.encoder_weights} do not exist: "
            "give imagenet, none, or an existing safetensors file"
        )
    for name, stage in config.stages.items():
        if stage.start.endswith(".safetensors") and not Path(stage.start).is_file():
            raise UserError(f"stages.{name}.start: {stage.start} does not exist; give an existing weights file")


def _tiles_of_store(config: TrainConfig) -> "Sequence[Placed]":
    from agl_core.data.store import Store

    return Store(Path(config.store)).entries


def _tiles_to_come(config: TrainConfig) -> "Sequence[Placed]":
    """The tiles that the store will have; raises a `UserError` if it cannot be prepared."""
    from agl_core.data.catalog import read_catalog

    state = "is not finished" if Path(config.store).exists() else "does not exist"
    table = Path(config.data) / TRAIN_TABLE
    if not config.data or not table.is_file():
        where = f"{table} does not exist" if config.data else "no data set is given"
        raise UserError(
            f"the store {config.store} {state}, and to prepare it there is nothing ({where}): give the folder of a "
            "data set with --data, or a finished store with --store"
        )
    return read_catalog(Path(config.data), "train")


def _check_test(config: TrainConfig, known: list[str]) -> None:
    """Raise a `UserError` now if the images could not be predicted when all is trained."""
    from agl_core.data.catalog import cities, read_catalog

    try:
        found = cities(read_catalog(Path(config.data), "test"))
    except UserError as error:
        raise UserError(f"{error} (or train without predicting: --until train)") from None
    if unknown := [city for city in found if config.model.use_city and city not in known]:
        raise UserError(
            f"{Path(config.data) / TEST_TABLE} has images of {unknown[0]}, a city that is not in the train split "
            f"({', '.join(known)}): remove them, or train with model.use_city=false, or with --until train"
        )


def imagenet_weights(
    configs: Sequence[TrainConfig], runs: Sequence[Run], jobs: Sequence[JobSpec]
) -> list[tuple[str, str]]:
    """Encoder and cache of the ImageNet weights that a stage begins with, whether the cache has them or not; a stage
    that has a checkpoint goes on from there."""
    found = [
        (config.encoder, config.weights_cache)
        for config, run in zip(configs, runs, strict=True)
        if config.encoder_weights == "imagenet"
        and any(
            config.stages[job.name].start == "encoder" and not list_checkpoints(run.checkpoints(job.name))
            for job in jobs
            if job.kind == STAGE and job.run == run
        )
    ]
    return list(dict.fromkeys(found))


def fetch_encoder_weights(configs: Sequence[TrainConfig], runs: Sequence[Run], jobs: Sequence[JobSpec]) -> None:
    """Have the ImageNet weights that a job starts from in the cache, and right: what trains never tries the network.

    Raises:
        UserError: they are not in the cache and cannot be fetched, or there are none for this encoder.
    """
    for encoder, cache in imagenet_weights(configs, runs, jobs):
        from agl_core.model.imagenet import obtain

        obtain(encoder, cache)


def _check_store(config: TrainConfig) -> None:
    from agl_core.data.split import Split
    from agl_core.data.store import Store

    store = Store(Path(config.store))
    for stage in config.stages:
        Split.of(store, config, stage)
    # The defaults are for the challenge's cities and do no harm elsewhere.
    strange = [city for city in config.max_agl if city not in (*TrainConfig().max_agl, *store.cities)]
    if strange:
        raise UserError(
            f"max_agl.{strange[0]}: the store {config.store} has no city {strange[0]!r}; "
            f"choose one of {', '.join(['default', *store.cities])}"
        )


def _check_device(config: TrainConfig, cluster: ClusterConfig) -> None:
    """Raise a `UserError` for what needs GPUs where there are none, or another number of them."""
    needs = []
    if config.precision == "float16":  # the only one that a device refuses
        needs.append("precision is float16, which needs a GPU: use bfloat16, float32 or auto on a CPU")
    for name, stage in config.stages.items():
        key = f"stages.{name}"
        if stage.sync_batchnorm:
            _check_shares(key, stage, cluster)
            needs.append(
                f"{key}.sync_batchnorm is true, which needs GPUs: use a --cluster that has some, or "
                f"{key}.sync_batchnorm=false"
            )
        if stage.optimizer.name == "apex":
            needs.append(
                f"{key}.optimizer.name is apex, which needs a GPU: use a --cluster that has some, or "
                f"{key}.optimizer.name=auto"
            )
    if needs and _without_gpus(cluster):
        raise UserError(needs[0])


def _without_gpus(cluster: ClusterConfig) -> bool:
    if cluster.gpus_per_node == 0:
        return True
    if cluster.executor == "slurm":
        return False
    from agl_core.training.parallel import Parallel

    return Parallel().device.type == "cpu"


def _check_shares(key: str, stage: StageConfig, cluster: ClusterConfig) -> None:
    micro_batches = stage.batch // stage.micro_batch
    if micro_batches % cluster.world_size:
        raise UserError(
            f"{key}.sync_batchnorm is true, so that all {cluster.world_size} processes must have as many of the "
            f"{micro_batches} micro-batches a step: use another number of processes, another {key}.micro_batch, or "
            f"{key}.sync_batchnorm=false"
        )
