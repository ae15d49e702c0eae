"""Handing jobs to Slurm, through submitit."""

from collections.abc import Sequence

from agl_core.errors import UserError
from jobs.cluster import ClusterConfig
from jobs.lock import remember
from jobs.pipeline import JobSpec
from jobs.sbatch import batch_python, parameters
from jobs.scontrol import cancel
from jobs.snapshot import take_snapshot
from jobs.submitted import SubmittedJob


def submit(jobs: Sequence[JobSpec], cluster: ClusterConfig) -> dict[str, str]:
    """Submit the jobs, each to start when those it comes after have succeeded; returns their ids by key.

    The run directories must exist, with the cluster configuration in them. Each gets a copy of the present code.

    Raises:
        UserError: sbatch refused a job; then none of them stays submitted.
    """
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    code = {}
    for run in dict.fromkeys(job.run for job in jobs):
        code[run] = take_snapshot(run.code)
    submitted: dict[str, str] = {}
    for job in jobs:
        after = [submitted[key] for key in job.after]
        executor = SlurmExecutor(job.run.jobs, python=batch_python())
        executor.update_parameters(**parameters(cluster, job, code[job.run], after))
        try:
            submitted[job.key] = executor.submit(SubmittedJob(job.run.path, job.name, job.kind)).job_id
        except (FailedJobError, FailedSubmissionError) as error:
            cancel(list(submitted.values()))
            reason = " ".join(str(error).split())
            raise UserError(f"sbatch refused the job {job.key!r} ({reason}): adapt the cluster configuration") from None
        remember(job.run, {other.name: submitted[other.key] for other in jobs if other.run == job.run
                           and other.key in submitted})  # fmt: skip
        print(f"{job.key}: job {submitted[job.key]}" + (f" after {', '.join(after)}" if after else ""), flush=True)
    return submitted
