"""Where a chain of jobs runs: in this process, in several on this machine, or on a Slurm cluster."""

import os
import shutil
import subprocess

from agl_core.durable.exits import InterruptedRunError
from agl_core.durable.lease import LeaseLostError
from agl_core.errors import UserError
from jobs.cluster import ClusterConfig
from jobs.failure import JobError, JobInterruptedError
from jobs.local import check_gpus, fresh_folder, run_ranks, visible_gpus
from jobs.lock import remember
from jobs.pipeline import JobSpec
from jobs.runs import Run
from jobs.sbatch import parameters, prepare_cpus, sbatch_text
from jobs.stages import Place, PrepareJob, StageJob, train_here

UNLIMITED_TIMEOUTS = 1_000_000  # submitit would not requeue a job that was warned of its time limit more often

CACHES = ("HF_HOME", "HF_HUB_CACHE")


def execute(chain: list[JobSpec], run: Run, cluster: ClusterConfig) -> None:
    """Run the jobs one after the other, or submit them; returns at their end, or when all are submitted.

    Raises:
        JobInterruptedError: this process was asked to leave before the end; the run is saved.
    """
    if cluster.executor == "slurm":
        submit_chain(chain, run, cluster)
    else:
        for job in chain:
            asked = _train_locally(job, run) if cluster.executor == "debug" else _run_ranks(job, run, cluster)
            if asked and job is not chain[-1]:
                raise JobInterruptedError(f"interrupted at the end of {job.name}")


def _run_ranks(job: JobSpec, run: Run, cluster: ClusterConfig) -> bool:
    grace = run.config().checkpoint.grace
    return run_ranks(StageJob(run.path, job.name), fresh_folder(run.jobs, job.name), cluster, grace)


def _train_locally(job: JobSpec, run: Run) -> bool:
    try:
        return train_here(run.path, job.name, Place(0, 1, 0, None), keyboard=True)
    except InterruptedRunError as error:
        raise JobInterruptedError(str(error), by_keyboard=error.signal == "INT") from None
    except LeaseLostError as error:
        raise JobError(str(error)) from None


def check_place(cluster: ClusterConfig) -> None:
    """Raise a `UserError` if jobs cannot be submitted from this machine, or it has too few GPUs for the processes."""
    if cluster.executor == "local":
        check_gpus(cluster, {**os.environ, **cluster.environment})
    if cluster.executor == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise UserError(
            "there is no Slurm here (sbatch and srun are not found): submit from a login node, "
            "use --cluster local or debug, or look at the scripts with --dry-run"
        )


def enter(cluster: ClusterConfig) -> None:
    """Give this process what it needs of the environment of the jobs; torch and others read it when imported."""
    if cluster.executor == "debug":
        os.environ.update(cluster.environment)
        if (visible := visible_gpus(cluster, dict(os.environ))) is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible
    elif cluster.executor == "slurm":  # weights are fetched here to where the jobs will look for them
        os.environ.update({name: cluster.environment[name] for name in CACHES if name in cluster.environment})


def submit_chain(chain: list[JobSpec], run: Run, cluster: ClusterConfig) -> list[str]:
    """Submit the jobs to Slurm, each to start when the one before it has succeeded; returns their job ids.

    Raises:
        UserError: sbatch refused a job; then none of them stays submitted.
    """
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    submitted: dict[str, str] = {}
    for job in chain:
        dependency = submitted[job.depends_on] if job.depends_on is not None else None
        executor = SlurmExecutor(run.jobs, max_num_timeout=UNLIMITED_TIMEOUTS)
        executor.update_parameters(**parameters(cluster, job, run.name, dependency))
        call = StageJob(run.path, job.name) if job.trains else PrepareJob(run.path, prepare_cpus(cluster))
        try:
            submitted[job.name] = executor.submit(call).job_id
            remember(run, submitted)
        except (FailedJobError, FailedSubmissionError) as error:
            if submitted:
                subprocess.run(["scancel", *submitted.values()], check=False)
            reason = " ".join(str(error).split())
            raise UserError(
                f"sbatch refused the job {job.name!r} ({reason}): adapt the cluster configuration"
            ) from None
        after = f" after {submitted[job.depends_on]}" if job.depends_on is not None else ""
        print(f"{job.name}: job {submitted[job.name]}{after}")
    return list(submitted.values())


def describe(chain: list[JobSpec], run: Run, cluster: ClusterConfig, threads: int, workers: int) -> str:
    """What `execute` would do with this chain: for Slurm the scripts word by word, otherwise a line per job."""
    if cluster.executor == "slurm":
        parts = []
        for job in chain:
            before = f"after {job.depends_on} has succeeded" if job.depends_on else "at once"
            # Slurm gives the ids when the jobs are submitted.
            dependency = f"ID_OF_{job.depends_on.upper()}" if job.depends_on else None
            parts.append(
                f"# ---- {job.name}: submitted with sbatch, starts {before}\n"
                + sbatch_text(cluster, job, run.name, run.jobs, dependency)
            )
        return "\n".join(parts)
    where = "in this process" if cluster.executor == "debug" else f"in {_count(cluster.processes, 'process')} here"
    gpus = {None: "every visible GPU, or the CPU", 0: "the CPU"}.get(
        cluster.gpus_per_node, _count(cluster.gpus_per_node or 0, "GPU")
    )
    return "\n".join(
        f"{number}. {job.name}: {where}, on {gpus}; per process {_count(threads, 'thread')}, "
        f"{_count(workers, 'data loading process')}" + (f"; after {job.depends_on}" if job.depends_on else "")
        for number, job in enumerate(chain, 1)
    )


def _count(number: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number} {noun if number == 1 else plural}"
