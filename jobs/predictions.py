"""`python launch.py predict`: the images are predicted in this process, in several of this machine, or by a job of a
cluster whose folder, below those of the runs, holds all that the job needs."""

import csv
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from agl_core.config import PredictConfig, TrainConfig
from agl_core.config.option import TTA
from agl_core.durable.exits import InterruptedRunError
from agl_core.durable.guard import Guard
from agl_core.errors import UserError, valid_choice
from agl_core.files import is_file, whole_file, writable_folder, write_text
from jobs.cluster import ClusterConfig, load_cluster
from jobs.doctor.doctor import before_predicting
from jobs.executors import check_place, describe, enter, execute
from jobs.failure import JobError, JobInterruptedError
from jobs.local import count_gpus, run_ranks
from jobs.lock import hold
from jobs.pipeline import PREDICT, JobSpec, forget
from jobs.runs import Run, run_of
from jobs.settings import to_yaml
from jobs.stages import Place, find_place, quiet_ends
from jobs.work import predict_here


def predict(config: PredictConfig) -> None:
    """Predict the images that `config` names, or have a job do it; with `dry_run` only show it, which writes nothing.

    Raises:
        UserError: something that the user gave is wrong, missing or in use.
        JobInterruptedError: this process was asked to leave before the end; every image is whole or not there.
        JobError: one of several processes failed; the others were ended.
    """
    cluster = load_cluster(config.cluster)
    if cluster.executor == "slurm":
        _predict_as_job(config, cluster)
        return
    if config.job:
        raise UserError(
            f"job is {config.job!r}, but cluster {config.cluster} predicts on this machine, without a job: leave --job "
            "out, or give the --cluster that the job is for"
        )
    enter(cluster)
    cluster = shared_out(config, cluster, os.environ)
    if config.dry_run:
        many = "in this process" if cluster.processes == 1 else f"in {cluster.processes} processes here"
        print(f"would predict {foreseen(config)}, {many} -> {config.out}")
    elif cluster.processes == 1:
        _predict_alone(config)
    else:
        _predict_together(config, cluster)


def shared_out(config: PredictConfig, cluster: ClusterConfig, outside: Mapping[str, str]) -> ClusterConfig:
    """The cluster configuration of this machine with the number of processes that are to share the images; outside:
    this process's environment.

    Raises:
        UserError: there are GPUs, but fewer than processes.
    """
    gpus = count_gpus(cluster, dict(outside))
    own = cluster.processes if cluster.executor == "local" else max(gpus, 1)
    processes = own if config.processes is None else config.processes
    if 0 < gpus < processes:
        raise UserError(
            f"this machine has {gpus} GPU{'s' * (gpus > 1)} for {processes} processes: give --processes {gpus}, or set "
            "CUDA_VISIBLE_DEVICES to nothing for the CPU"
        )
    return replace(cluster, executor="local", processes=processes)


@dataclass(frozen=True)
class Share:
    """Predict as one of the processes of this machine that share the images."""

    config: PredictConfig

    def __call__(self) -> None:
        """Do it until all images are there; leaves with code 2 and one sentence where the user can mend something."""
        with quiet_ends(), Guard(keyboard=True) as guard:
            predict_here(self.config, guard, find_place())


def _predict_alone(config: PredictConfig) -> None:
    try:
        with Guard(keyboard=True) as guard:
            predict_here(config, guard, Place(0, 1, 0, None))
    except InterruptedRunError as error:
        raise JobInterruptedError(str(error), by_keyboard=error.signal == "INT") from None


def _predict_together(config: PredictConfig, cluster: ClusterConfig) -> None:
    threads = cluster.default_threads() if config.threads is None else config.threads
    folder = Path(tempfile.mkdtemp(prefix="predict-"))
    try:
        run_ranks(Share(replace(config, threads=threads)), folder / "ranks", cluster, apart=True)
    except JobError:  # it says that the logs are there
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


# ---- as a job


def _predict_as_job(config: PredictConfig, cluster: ClusterConfig) -> None:
    if config.processes is not None:
        raise UserError(
            f"processes is {config.processes}, but those of a job are told by the file of cluster {config.cluster} "
            f"(processes: {cluster.processes}): leave --processes out"
        )
    run = job_run(config)
    config = settled(config, run)
    check_folder(run, config)
    if not config.dry_run:
        continue_prediction(run, config, cluster)
        return
    _check_precision(config, cluster)
    print(f"prediction {run.name} in {run.path}: {foreseen(config)} -> {config.out}\nwould run\n")
    print(describe([JobSpec(run, PREDICT, PREDICT)], cluster, 1, 0))


def job_run(config: PredictConfig) -> Run:
    """The folder of the job, by its name or that of the folder of the predictions; nothing is created.

    Raises:
        UserError: the name cannot be a folder's.
    """
    name = config.job or re.sub(r"[^A-Za-z0-9._-]+", "-", f"predict-{Path(config.out).absolute().name}")
    return run_of(TrainConfig(run=name, runs=config.runs))


def settled(config: PredictConfig, run: Run) -> PredictConfig:
    """The configuration as a job can read it that runs elsewhere: with the full paths of all files and folders."""
    named = [config.weights] if is_file(config.weights) else map(str.strip, config.weights.split(","))
    weights = [full_path(part) if part.endswith(".safetensors") else part for part in named]
    return replace(
        config,
        runs=str(run.path.parent),
        job=run.name,
        weights=",".join(weights),
        data=full_path(config.data),
        images=full_path(config.images),
        out=full_path(config.out),
        archive=full_path(config.archive),
        calibration=full_path(config.calibration),
        cluster=full_path(config.cluster) if is_file(config.cluster) else config.cluster,
    )


def full_path(text: str) -> str:
    """The full path of a file, a folder or a pattern; nothing stays nothing."""
    return str(Path(os.path.expanduser(text)).absolute()) if text else ""


def check_folder(run: Run, config: PredictConfig) -> None:
    """Raise a `UserError` if the job's folder is that of something else; other settings for the same predictions are
    no other job, since what they make of the images is found out when these are looked at."""
    if run.exists() or run.is_ensemble():
        what = "an ensemble" if run.is_ensemble() else "a run"
        raise UserError(f"the job's folder {run.path} is that of {what}: choose another --job")
    if run.is_prediction():
        if (there := run.prediction().out) != config.out:
            raise UserError(f"job {run.name!r} writes to {there} already: choose another --job for {config.out}")
    elif run.path.exists() and (not run.path.is_dir() or any(map(run.foreign, run.path.iterdir()))):
        raise UserError(f"{run.path} exists but is no job's folder (it has no predict.yaml): choose another --job")


def continue_prediction(run: Run, config: PredictConfig, cluster: ClusterConfig) -> None:
    """Submit, or do here, what is left of a prediction with settled paths; what can be known to be wrong is refused
    before.

    Raises:
        UserError: something is wrong, missing or in use.
    """
    check_place(cluster)
    _check_precision(config, cluster)
    enter(cluster)
    told = foreseen(config)
    before_predicting(config, cluster, run.path.parent)
    writable_folder(Path(config.out), "--out")
    job = JobSpec(run, PREDICT, PREDICT)
    with hold(run, submits=cluster.executor == "slurm"):
        print(f"prediction {run.name} {'continues' if run.is_prediction() else 'begins'} in {run.path}: {told}")
        _write_down(run, config)
        forget([job])
        execute([job], cluster)


def _write_down(run: Run, config: PredictConfig) -> None:
    """Leave in the job's folder all that it reads there. Of a list of images that is a list of full paths, since those
    in the user's may count from the folder in which the command is given."""
    given, own = Path(config.images), run.path / "images.csv"
    is_list = given.suffix.lower() in (".csv", ".txt") and given.is_file() and given != own
    text = to_yaml(replace(config, images=str(own) if is_list else config.images, dry_run=False))
    if not run.is_prediction() or run.prediction_file.read_text(encoding="utf-8") != text:
        write_text(run.prediction_file, text)
    if is_list:
        from agl_core.inference.images import list_images

        rows = [(image.path.absolute(), image.id, image.city, image.gsd) for image in list_images(config.images)]
        with whole_file(own) as aside, aside.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("path", "id", "city", "gsd"), *rows])


def _check_precision(config: PredictConfig, cluster: ClusterConfig) -> None:
    if config.precision == "float16" and cluster.gpus_per_node == 0:
        raise UserError(
            f"precision is float16, which needs a GPU, but cluster {config.cluster} has none: use bfloat16, float32 or "
            "auto"
        )


def foreseen(config: PredictConfig) -> str:
    """What is to be predicted, in words; nothing is written, and of weights and images only the headers are read.

    Raises:
        UserError: weights, images or corrections are missing, damaged, or do not go together.
    """
    from agl_core.inference.calibration import check_tables, corrections
    from agl_core.inference.images import data_set_jobs, single_jobs
    from agl_core.inference.members import check_cities, common_cities, find_members, named, trained_tta
    from agl_core.model.weights import model_config, read_header

    members = find_members(Path(config.runs), config.run, config.weights, config.member_weights)
    headers = [read_header(member.path) for member in members]
    metadata = [about for _, about in headers]
    corrections(config, metadata)
    _check_views(config, [config.tta if config.tta != "auto" else trained_tta(about) for about in metadata])
    # As much of the networks as decides about cities.
    looks: list[Any] = [
        SimpleNamespace(cities=network["cities"], config=model_config(network, member.path))
        for member, (network, _) in zip(members, headers, strict=True)
    ]
    if config.data:
        images = data_set_jobs(config, metadata[0].get("config", {}))
    else:
        images, _ = single_jobs(config, common_cities(looks))
    cities = {image.city for image in images}
    check_cities(members, looks, cities)
    check_tables(config, cities.union(*(look.cities for look in looks)))
    count = f"{len(images)} image{'s' * (len(images) > 1)}"
    return f"{count} of {f'{config.data} ({config.split})' if config.data else config.images} with {named(members)}"


def _check_views(config: PredictConfig, tta: list[str]) -> None:
    """Raise a `UserError` for views that there are not, or too few of them for a spread; tta: of each member."""
    for name in tta:
        valid_choice("tta", name, list(TTA))
    if config.uncertainty and tta == ["none"]:
        raise UserError("one network that sees an image once has no spread: predict with several, or with --tta d4")
