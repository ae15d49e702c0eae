"""`python launch.py` without a verb: create or continue runs and have what is left of them done."""

from collections.abc import Sequence
from contextlib import ExitStack

from agl_core.config import TrainConfig
from agl_core.errors import UserError
from agl_core.files import read_json
from jobs.cluster import ClusterConfig
from jobs.doctor.doctor import before_training
from jobs.executors import check_place, describe, enter, execute
from jobs.lock import hold
from jobs.mail import check_notify
from jobs.many import (
    EnsembleFile,
    Several,
    changed,
    create_ensemble,
    describe_ensemble,
    ensemble_of,
    runs_of,
)
from jobs.pipeline import (
    ENSEMBLE,
    PREDICT,
    JobSpec,
    check_data,
    check_inputs,
    fetch_encoder_weights,
    follow_ups,
    forget,
    imagenet_weights,
    plan_all,
    settle,
    store_missing,
)
from jobs.runs import Run, check_same_run, create, run_of


def train(asked: TrainConfig | Several, cluster: ClusterConfig) -> None:
    """Do what is left of one run or of several and their ensemble, or with `dry_run` only show it; that writes nothing.

    Everything that can be known to be wrong about any of the runs is refused before anything is created or submitted.

    Raises:
        UserError: something that the user gave is wrong, missing or in use.
    """
    runs = [run_of(config) for config in runs_of(asked)]
    configs = [settle(config, cluster, run) for config, run in zip(runs_of(asked), runs, strict=True)]
    for config, run in zip(configs, runs, strict=True):
        check_same_run(run, config)
    check_notify(configs[0], cluster)
    ensemble = ensemble_of(asked) if PREDICT in follow_ups(configs[0]) else None
    content = describe_ensemble(configs, runs)
    jobs = _plan(configs, runs, ensemble, content)
    if not jobs:
        _tell_end(runs, ensemble, "nothing to do: ")
        return
    enter(cluster)
    from agl_core.model.encoders import check_encoder

    for encoder in dict.fromkeys(config.encoder for config in configs):
        check_encoder(encoder)
    if configs[0].dry_run:
        _show(configs, runs, jobs, cluster)
        return
    check_place(cluster)
    check_data(configs[0])  # all runs have the same
    for config in configs:
        check_inputs(config, cluster)
    before_training(configs, cluster, jobs)
    fetch_encoder_weights(configs, runs, jobs)
    with ExitStack() as held:
        for run in [*runs, *([ensemble] if ensemble is not None else [])]:
            held.enter_context(hold(run, submits=cluster.executor == "slurm"))
        jobs = _plan(configs, runs, ensemble, content)  # what another launch has done meanwhile is left out
        for config, run in zip(configs, runs, strict=True):
            notes = create(run, config)
            _say(notes if any(job.run == run for job in jobs) else [])
        if ensemble is not None:
            _say(create_ensemble(ensemble, content))
        forget(jobs)
        execute(jobs, cluster)
    if cluster.executor != "slurm":
        _tell_end(runs, ensemble)


def _plan(
    configs: Sequence[TrainConfig], runs: Sequence[Run], ensemble: Run | None, content: EnsembleFile
) -> list[JobSpec]:
    missing = {config.store for config in configs if store_missing(config)}
    renewed = ensemble is not None and changed(ensemble, content)
    return plan_all(configs, runs, missing, ensemble, renewed)


def _show(configs: Sequence[TrainConfig], runs: Sequence[Run], jobs: Sequence[JobSpec], cluster: ClusterConfig) -> None:
    for config, run in zip(configs, runs, strict=True):
        print(f"run {run.name} in {run.path}, recipe {config.recipe}, encoder {config.encoder}, fold {config.fold}")
    for ensemble in dict.fromkeys(job.run for job in jobs if job.kind == ENSEMBLE):
        print(f"ensemble {ensemble.name} in {ensemble.path}")
    first = configs[0]
    if first.until != "train" and PREDICT not in follow_ups(first):
        print(f"nothing is predicted: {first.data or 'no --data is given, so it'} has no geopose_test.csv")
    from agl_core.model.encodercache import cached

    for encoder, cache in imagenet_weights(configs, runs, jobs):
        if cached(encoder, cache) is None:
            print(f"would fetch the ImageNet weights of {encoder} into {cache}")
    try:
        check_data(first)
        for config in configs:
            check_inputs(config, cluster)
    except UserError as error:
        print(f"would be refused as things are: {error}")
    print("would run\n")
    print(describe(jobs, cluster, first.threads or 1, first.workers or 0, first.notify))


def _tell_end(runs: Sequence[Run], ensemble: Run | None, prefix: str = "") -> None:
    """Where the results of what is finished are."""
    for run in [*runs, *([ensemble] if ensemble is not None else [])]:
        what = "ensemble" if run == ensemble else "run"
        told = f"{prefix}{what} {run.name} is finished ({run.path})"
        if (score := _score(run)) is not None:
            told += f", score {score:.4f}"
        print(told + (f", see {run.report_file}" if run.report_file.exists() else ""))


def _score(run: Run) -> float | None:
    try:
        score = read_json(run.score_file)["score"]
    except (UserError, KeyError, TypeError):
        return None
    return score if isinstance(score, float) else None


def _say(notes: Sequence[str]) -> None:
    for note in notes:
        print(note, flush=True)
