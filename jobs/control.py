"""`python launch.py cancel` ends a run's jobs, `python launch.py resume` continues a run that has ended."""

import os
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from agl_core.config import CancelConfig, PredictConfig, ResumeConfig, TrainConfig
from agl_core.errors import UserError
from jobs import scontrol, survey
from jobs.cli import check_processes
from jobs.cluster import ClusterConfig, check, load_cluster
from jobs.history import DONE, History
from jobs.many import Several, read_ensemble
from jobs.pipeline import PREDICT
from jobs.runs import Run
from jobs.settings import Assignments, apply_assignments
from jobs.standing import ACTIVE, ENDING, UNKNOWN, RunStanding
from jobs.status import command, standings

ENDING_PATIENCE, ENDING_PAUSE = 180.0, 1.0
"""Seconds for jobs that are about to end, which save first, and between two looks."""


def cancel(config: CancelConfig) -> None:
    """Cancel the jobs of a run that wait or run under Slurm, or ask the process on this machine that trains it to save
    and leave; of an ensemble, those of its members too. Says what was done.

    Raises:
        UserError: there is no such run, nothing of it is active, or it cannot be reached.
    """
    run = survey.find_run(config.runs, config.run)
    runs = family(run)
    holders = {holder: each for each in runs if (holder := survey.holder(each)) is not None}
    told = _cancel_jobs(runs)
    for holder, each in holders.items():
        told.append(_end(holder, each))
    if not told:
        (standing,) = standings([run], time.time())
        after = "" if standing.state == DONE else f"; to continue: {command('resume', config.run, config.runs)}"
        raise UserError(f"run {run.name} is not active ({standing.state}), so that nothing is to be cancelled{after}")
    print(f"{'; '.join(told)}; to continue: {command('resume', config.run, config.runs)}")


def family(run: Run) -> list[Run]:
    """A run, or an ensemble with its members, as far as they exist."""
    names = read_ensemble(run).runs if run.is_ensemble() else []
    return [*(each for name in names if (each := Run(run.path.parent / name)).exists()), run]


def _cancel_jobs(runs: Sequence[Run]) -> list[str]:
    """Cancel what Slurm has of the runs, all at once, and note it in their histories; says what."""
    submitted = {run: survey.submitted(run) for run in runs}
    queue = scontrol.queue([id for jobs in submitted.values() for id in jobs.values()])
    if queue is None:
        if any(job.state == UNKNOWN for standing in standings(runs, time.time()) for job in standing.jobs):
            raise UserError("Slurm does not answer (squeue), so that nothing was cancelled: try again, on a login node")
        return []
    active = {run: {job: id for job, id in jobs.items() if id in queue} for run, jobs in submitted.items()}
    ids = [id for jobs in active.values() for id in jobs.values()]
    if not ids:
        return []
    refusal = scontrol.cancel(ids)
    if refusal is not None:
        raise UserError(f"Slurm does not cancel the jobs {', '.join(ids)} ({refusal}): try again, as their owner")
    for run, jobs in active.items():
        if jobs:
            History(run.history, run.events).cancel(jobs.values())
    names = [
        f"{job if len(runs) == 1 else f'{run.name}/{job}'} (job {id})" for run, jobs in active.items()
        for job, id in jobs.items()
    ]  # fmt: skip
    return [f"cancelled: {', '.join(names)}"]


def _end(holder: survey.Holder, run: Run) -> str:
    """Ask the launcher on this machine to have its processes save and leave; says so."""
    if holder.host != socket.gethostname():
        raise UserError(
            f"run {run.name} is being trained by process {holder.pid} on {holder.host}: give the command there"
        )
    if not _holds(holder.pid, run.lock):
        raise UserError(f"run {run.name} is just being started by another process: try again in a moment")
    try:
        os.kill(holder.pid, signal.SIGTERM)
    except ProcessLookupError:
        raise UserError(f"run {run.name} has ended just now, so that nothing is to be cancelled") from None
    except PermissionError:
        raise UserError(
            f"process {holder.pid}, which trains run {run.name}, belongs to another user: only they can end it"
        ) from None
    History(run.history, run.events).cancel([f"pid {holder.pid}"])
    return f"process {holder.pid} was asked to save and leave"


def _holds(pid: int, lock: Path) -> bool:
    """Whether the process has the file open, as far as this system tells: the name in the file may be that of an
    earlier holder, while the present one has not written its own yet."""
    folder = Path(f"/proc/{pid}/fd")
    if not folder.is_dir():
        return not Path("/proc/self/fd").is_dir()
    try:
        links = list(folder.iterdir())
    except OSError:
        return True  # of another user, whose processes cannot be ended anyway
    for link in links:
        with suppress(OSError):
            if os.path.samestat(link.stat(), lock.stat()):
                return True
    return False


def resume(config: ResumeConfig, cluster_keys: Assignments) -> None:
    """Continue a run that has ended as the command that began it would; of an ensemble, its members and itself.

    cluster_keys: values that go over those of the cluster configuration.

    Raises:
        UserError: there is no such run, it is active, or what it needs is missing.
    """
    run = survey.find_run(config.runs, config.run)
    if run.is_prediction():
        _resume_prediction(run, config, cluster_keys)
        return
    runs = [each for each in family(run) if each.exists()]
    if not runs:
        raise UserError(f"{run.path} has none of its runs beside it any more: there is nothing to continue")
    _check_active([*runs, run], config)
    configs = [replace(each.config(), run=each.name, runs=str(each.path.parent)) for each in runs]
    if config.doctor != "as-begun":
        configs = [replace(each, doctor=config.doctor) for each in configs]
    before, cluster = find_cluster(config, cluster_keys, runs[0], configs[0])
    if config.cluster:
        configs = [
            replace(each, cluster=config.cluster, workers=_workers(each, before), stage_in=_stage_in(each, before))
            for each in configs
        ]
    for each in configs:
        check_processes(each, cluster)
    _continue(configs, run.name if run.is_ensemble() else "", cluster)


def _resume_prediction(run: Run, config: ResumeConfig, cluster_keys: Assignments) -> None:
    from jobs.predictions import continue_prediction

    if run.finished(PREDICT):
        print(f"nothing to do: prediction {run.name} is finished ({run.prediction().out})")
        return
    _check_active([run], config)
    asked = run.prediction()
    _, cluster = find_cluster(config, cluster_keys, run, asked)
    doctor = asked.doctor if config.doctor == "as-begun" else config.doctor
    asked = replace(asked, cluster=config.cluster or asked.cluster, doctor=doctor)
    continue_prediction(run, asked, cluster)


def find_cluster(
    config: ResumeConfig, cluster_keys: Assignments, run: Run, trained: TrainConfig | PredictConfig
) -> tuple[ClusterConfig | None, ClusterConfig]:
    """Where the run ran last, if that is still known, and where it will: as last, or as asked for, with
    `cluster_keys`."""
    before = _last_cluster(run, trained)
    if config.cluster:
        return before, load_cluster(config.cluster, cluster_keys)
    if before is None:
        return None, load_cluster(trained.cluster, cluster_keys)  # refused, with what there is
    try:
        cluster = apply_assignments(before, cluster_keys)
        check(cluster)
    except UserError as error:
        raise UserError(f"cluster {trained.cluster}: {error}") from None
    return before, cluster


def _last_cluster(run: Run, trained: TrainConfig | PredictConfig) -> ClusterConfig | None:
    """What the last submission had, with all that its command changed, unless the run was continued elsewhere since."""
    named = None
    with suppress(UserError):  # its file may be gone
        named = load_cluster(trained.cluster)
    if run.cluster_file.exists():
        submitted = load_cluster(str(run.cluster_file), resolve=False)
        if named is None or named.executor == submitted.executor:
            return submitted
    return named


def _workers(config: TrainConfig, before: ClusterConfig | None) -> int | None:
    """The data loading processes on another cluster: its own number, unless the user had chosen one."""
    return None if before is not None and config.workers == before.workers else config.workers


def _stage_in(config: TrainConfig, before: ClusterConfig | None) -> str:
    """The folder for a copy of the store on another cluster, likewise."""
    return "" if before is not None and config.stage_in == before.stage_in else config.stage_in


def _check_active(runs: Sequence[Run], config: ResumeConfig) -> None:
    """Raise a `UserError` if any of the runs is active; jobs that are about to end, such as after `cancel`, are waited
    for."""
    until, told = time.monotonic() + ENDING_PATIENCE, False
    while active := _active(runs):
        ending = all(job.state == ENDING for standing in active for job in standing.jobs if job.state in ACTIVE)
        if not ending or time.monotonic() > until:
            look = command("status", active[0].run, config.runs)
            raise UserError(
                f"run {active[0].run} is active ({active[0].state}): nothing is to be continued, see `{look}`"
            )
        if not told:
            print(f"waiting until the jobs of run {active[0].run} have ended", flush=True)
        told = True
        time.sleep(ENDING_PAUSE)


def _active(runs: Sequence[Run]) -> list[RunStanding]:
    """Those of the runs that may still do something, as far as that can be seen."""
    found = standings(list(dict.fromkeys(runs)), time.time())
    return [each for each in found if any(job.state in ACTIVE and job.state != UNKNOWN for job in each.jobs)]


def _continue(configs: Sequence[TrainConfig], ensemble: str, cluster: ClusterConfig) -> None:
    """Launch what is left of the runs, and of the ensemble with this name, if they have one."""
    from jobs.train import train

    train(Several(list(configs), ensemble) if ensemble else configs[0], cluster)
