"""Handing jobs to Slurm, through submitit."""

import os
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agl_core.errors import UserError
from agl_core.reporting.events import CANCEL, JobLog
from jobs.cluster import ClusterConfig
from jobs.lock import remember
from jobs.mail import is_last, mail_options
from jobs.notify import wanted_of
from jobs.pipeline import JobSpec
from jobs.runs import Run
from jobs.sbatch import batch_python, job_name, parameters
from jobs.scontrol import call, cancel
from jobs.snapshot import take_snapshot
from jobs.submitted import SubmittedJob

DEFAULTS = ("account", "partition", "qos", "constraint", "reservation")
"""What users may choose for all their jobs with SBATCH_<NAME>, which goes over the script's own options."""


def submit(jobs: Sequence[JobSpec], cluster: ClusterConfig) -> dict[str, str]:
    """Submit the jobs, each to start when those it comes after have succeeded; returns their ids by key.

    The run directories must exist, with the cluster configuration in them. Each gets a copy of the present code.

    Raises:
        UserError: sbatch refused a job, or a folder cannot be one of Slurm's. Whatever is raised, none of the jobs
            stays submitted.
    """
    runs = dict.fromkeys(job.run for job in jobs)
    for run in runs:
        check_path(run)
    code = {run: take_snapshot(run.code) for run in runs}
    wanted = wanted_of(list(runs))
    submitted: dict[str, str] = {}
    try:
        for job in jobs:
            after = [submitted[key] for key in job.after]
            mail = mail_options(wanted, job.kind, is_last(job, jobs))
            _submit(job, cluster, parameters(cluster, job, code[job.run], after, mail), submitted)
            own = {other.name: submitted[other.key] for other in jobs
                   if other.run == job.run and other.key in submitted}  # fmt: skip
            remember(job.run, own)
            print(f"{job.key}: job {submitted[job.key]}" + (f" after {', '.join(after)}" if after else ""), flush=True)
    except BaseException:  # Ctrl-C too: half a pipeline is of no use
        missed = [job for job in jobs if job.key not in submitted][:1]
        for run in runs:
            if ids := [submitted[job.key] for job in jobs if job.run == run and job.key in submitted]:
                JobLog(run.events).write(CANCEL, "", time.time(), ids=",".join(ids))
        _take_back([*submitted.values(), *(id for job in missed for id in _unheard(job))])
        raise
    return submitted


def check_path(run: Run) -> None:
    """Raise a `UserError` if Slurm would not take the path of a run as it is written."""
    if "%" in str(run.path):
        raise UserError(
            f"run directory {run.path} has a '%', which Slurm replaces: choose other --runs or another --run"
        )


def kept(cluster: ClusterConfig, parameters: dict[str, Any]) -> list[str]:
    """The variables that stand for what the cluster configuration leaves open and a job's script does too."""
    chosen = {**parameters["additional_parameters"], **parameters}
    return [f"SBATCH_{name.upper()}" for name in DEFAULTS if not (getattr(cluster, name, "") or chosen.get(name))]


def cleaned(outside: dict[str, str], kept: Collection[str]) -> dict[str, str]:
    """The environment for sbatch, which jobs inherit: without what belongs to another job, in which the command may
    run, and without options that its user has set for other jobs, except those in `kept`."""
    strange = ("SLURM_", "SBATCH_", "SRUN_", "SUBMITIT_")
    return {
        name: value
        for name, value in outside.items()
        if name == "SLURM_CONF" or name in kept or not name.startswith(strange)
    }


@contextmanager
def clean_environment(kept: Collection[str]) -> Iterator[None]:
    """This process's environment as `cleaned` leaves it, for a while; submitit gives it to sbatch."""
    before = dict(os.environ)
    for name in set(before) - set(cleaned(before, kept)):
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(before)


def _submit(job: JobSpec, cluster: ClusterConfig, parameters: dict[str, Any], submitted: dict[str, str]) -> None:
    """Submit one job and enter its id, as soon as sbatch has said it."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    class Executor(SlurmExecutor):
        """Submitit's, whose work after sbatch may fail too."""

        @staticmethod
        def _get_job_id_from_submission_command(string: bytes | str) -> str:
            id = str(SlurmExecutor._get_job_id_from_submission_command(string))
            submitted[job.key] = id
            return id

    executor = Executor(Path(job.run.jobs), python=batch_python())
    executor.update_parameters(**parameters)
    try:
        with clean_environment(kept(cluster, parameters)):
            executor.submit(SubmittedJob(job.run.path, job.name, job.kind))
    except (FailedJobError, FailedSubmissionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"sbatch refused the job {job.key!r} ({reason}): adapt the cluster configuration") from None


def _unheard(job: JobSpec) -> list[str]:
    """Ids of what Slurm has of a job whose sbatch was interrupted before it could say them; a guess where Slurm is
    slow."""
    asked = call(["squeue", "--noheader", "--name", job_name(job), "--format", "%i|%Z"])
    lines = [line.split("|", 1) for line in asked.stdout.splitlines()] if asked is not None else []
    return [words[0] for words in lines if words[1:] == [str(job.run.path)]]


def _take_back(ids: Sequence[str]) -> None:
    """Cancel jobs that were submitted in vain, and say so."""
    if not ids:
        return
    refusal = cancel(ids)
    told = "taken back" if refusal is None else f"could not be taken back ({refusal}), give `scancel {' '.join(ids)}`"
    print(f"job{'s' if len(ids) > 1 else ''} {', '.join(ids)}: {told}", file=sys.stderr, flush=True)
