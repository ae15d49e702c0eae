"""Where jobs run: in this process, in several on this machine, or on a Slurm cluster."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from agl_core.config import CheckpointConfig
from agl_core.config.train import NotifyConfig
from agl_core.durable.exits import InterruptedRunError
from agl_core.durable.lease import LeaseLostError
from agl_core.errors import UserError
from agl_core.files import write_text
from jobs.attempt import CRASHED, ENDED_WELL, LEFT, OVERTAKEN, REFUSED, RankEnd, end_of
from jobs.cluster import ClusterConfig
from jobs.debug import post_mortem
from jobs.failure import JobError, JobInterruptedError
from jobs.history import History
from jobs.local import check_gpus, fresh_folder, run_ranks, visible_gpus
from jobs.mail import is_last, mail_options
from jobs.notify import following
from jobs.pipeline import PREDICT, STAGE, JobSpec
from jobs.progress import kept, reached
from jobs.sbatch import SHARED, sbatch_text
from jobs.settings import to_yaml
from jobs.snapshot import snapshot_path
from jobs.stages import Place, StageJob
from jobs.submission import submit
from jobs.why import DONE, GIVE_UP, LEAVE
from jobs.work import SharedJob, carry_out

CACHES = ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME")


def execute(jobs: Sequence[JobSpec], cluster: ClusterConfig) -> None:
    """Do the jobs one after the other, or submit them; returns at their end, or when all are submitted.

    Raises:
        JobInterruptedError: this process was asked to leave before the end; what is done is kept.
        JobError: a job failed; those after it were not begun.
    """
    for run in dict.fromkeys(job.run for job in jobs):
        write_text(run.cluster_file, to_yaml(cluster))
    if cluster.executor == "slurm":
        submit(jobs, cluster)
        return
    for job in jobs:
        with following(job.run, job.name, job.kind), _told(job):
            asked = _run_ranks(job, cluster) if _has_ranks(job, cluster) else _do_here(job, cluster)
        if asked and job is not jobs[-1]:
            raise JobInterruptedError(f"interrupted at the end of {job.key}")


def _has_ranks(job: JobSpec, cluster: ClusterConfig) -> bool:
    return cluster.executor == "local" and job.kind in SHARED and (job.kind == STAGE or cluster.processes > 1)


def _run_ranks(job: JobSpec, cluster: ClusterConfig) -> bool:
    grace = (job.run.config().checkpoint if job.run.exists() else CheckpointConfig()).grace
    folder = fresh_folder(job.run.jobs, job.name)
    if job.kind == STAGE:
        return run_ranks(StageJob(job.run.path, job.name), folder, cluster, grace)
    return run_ranks(SharedJob(job.run.path, job.name, job.kind), folder, cluster, grace, apart=True)


def _do_here(job: JobSpec, cluster: ClusterConfig) -> bool:
    try:
        with post_mortem(cluster.executor == "debug" and cluster.post_mortem):
            return carry_out(job.run.path, job.name, job.kind, Place(0, 1, 0, None), keyboard=True)
    except InterruptedRunError as error:
        raise JobInterruptedError(str(error), by_keyboard=error.signal == "INT") from None


@contextmanager
def _told(job: JobSpec) -> Iterator[None]:
    """Write the beginning and the end of a job on this machine into the history of its run."""
    history, id = History(job.run.history, job.run.events), f"pid {os.getpid()}"
    before = reached(job.run, job.name, job.kind)
    history.begin(job.name, id, step=kept(job.run, job.name, job.kind), reached=before)

    def end(how: str, deed: str, error: BaseException | None = None) -> None:
        told = RankEnd(0) if error is None else end_of(error)
        text = told.text if error is None else str(error) or told.text
        # A rank's crash is told in its own log; that of this process only here.
        traceback = told.traceback if how == CRASHED and not isinstance(error, JobError) else ""
        history.end(
            job.name, id, step=reached(job.run, job.name, job.kind), end=how, deed=deed, text=text, traceback=traceback
        )

    try:
        yield
    except (JobInterruptedError, KeyboardInterrupt) as error:
        end(LEFT, LEAVE, error)
        raise
    except UserError as error:
        end(REFUSED, GIVE_UP, error)
        raise
    except LeaseLostError as error:
        end(OVERTAKEN, LEAVE, error)
        raise JobError(str(error)) from None
    except BaseException as error:
        end(CRASHED, GIVE_UP, error)
        raise
    end(ENDED_WELL, DONE)


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
    if cluster.executor in ("debug", "local"):  # what has no ranks of its own is done in this process
        os.environ.update(cluster.environment)
        if (visible := visible_gpus(cluster, dict(os.environ))) is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible
    elif cluster.executor == "slurm":  # weights are fetched here to where the jobs will look for them
        os.environ.update({name: cluster.environment[name] for name in CACHES if name in cluster.environment})


def describe(
    jobs: Sequence[JobSpec], cluster: ClusterConfig, threads: int, workers: int, notify: NotifyConfig | None = None
) -> str:
    """What `execute` would do with these jobs: for Slurm the scripts word by word, otherwise a line per job.

    notify: whom Slurm is to write to."""
    if cluster.executor == "slurm":
        wanted = notify or NotifyConfig()
        return "\n".join(_script(job, cluster, mail_options(wanted, job.kind, is_last(job, jobs))) for job in jobs)
    return "\n".join(
        f"{number}. {job.key}: {_where(job, cluster, threads, workers)}"
        + (f"; after {', '.join(job.after)}" if job.after else "")
        for number, job in enumerate(jobs, 1)
    )


def _where(job: JobSpec, cluster: ClusterConfig, threads: int, workers: int) -> str:
    where = f"in {_count(cluster.processes, 'process')} here" if _has_ranks(job, cluster) else "in this process"
    if job.kind not in (STAGE, PREDICT):
        return where
    gpus = {None: "every visible GPU, or the CPU", 0: "the CPU"}.get(
        cluster.gpus_per_node, _count(cluster.gpus_per_node or 0, "GPU")
    )
    loading = f", {_count(workers, 'data loading process')}" if job.kind == STAGE else ""
    return f"{where}, on {gpus}; per process {_count(threads, 'thread')}{loading}"


def _script(job: JobSpec, cluster: ClusterConfig, mail: dict[str, str]) -> str:
    before = f"after {', '.join(job.after)} succeeded" if job.after else "at once"
    # Slurm gives the ids when the jobs are submitted.
    ids = [f"ID_OF_{key.replace('/', '_').upper()}" for key in job.after]
    return f"# ---- {job.key}: submitted with sbatch, starts {before}\n" + sbatch_text(
        cluster, job, snapshot_path(job.run.code), ids, mail
    )


def _count(number: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number} {noun if number == 1 else plural}"
