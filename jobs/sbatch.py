"""The sbatch script of a job: a pure function of the cluster configuration, so that it can be shown and tested."""

import math
import shlex
import sys
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import _make_sbatch_string

from jobs.cluster import ClusterConfig
from jobs.pipeline import JobSpec

ROOT = Path(__file__).parent.parent
GPU_OPTIONS = ("gres", "gpus", "gpus-per-task", "gpus-per-socket")


def parameters(cluster: ClusterConfig, job: JobSpec, run_name: str, dependency: str | None = None) -> dict[str, Any]:
    """The parameters of submitit's Slurm executor for a job; `dependency` is the id of the job that must succeed first.

    A job that prepares the store is one process with all the cores of a node's share and no GPU.
    """
    assert cluster.time_hours is not None
    assert cluster.memory_gb is not None
    assert cluster.cpus_per_process is not None
    further = {name.replace("_", "-"): value for name, value in cluster.sbatch.items()}
    cpus = cluster.cpus_per_process if job.trains else prepare_cpus(cluster)
    chosen: dict[str, Any] = {
        "job_name": f"{run_name}-{job.name}",
        "nodes": cluster.nodes if job.trains else 1,
        "ntasks_per_node": cluster.processes if job.trains else 1,
        "cpus_per_task": cpus,
        "mem": _memory(cluster.memory_gb),
        "time": math.ceil(cluster.time_hours * 60),
        "signal_delay_s": cluster.signal_seconds,
        "partition": cluster.partition or None,
        "account": cluster.account or None,
        "qos": cluster.qos or None,
        "constraint": cluster.constraint or None,
    }
    # Sites without --gpus-per-node name their GPUs in another option.
    if job.trains and cluster.gpus_per_node and not any(name in further for name in GPU_OPTIONS):
        chosen["gpus_per_node"] = cluster.gpus_per_node
    # Slurm's default for both is the site's choice: a job that is preempted must come back, its log must not be cut.
    additional: dict[str, Any] = {"requeue": True, "open-mode": "append"}
    if dependency is not None:
        chosen["dependency"] = f"afterok:{dependency}"
        # Otherwise the dependents of a failed job stay in the queue for ever.
        additional["kill-on-invalid-dep"] = "yes"
    chosen["additional_parameters"] = additional | further
    chosen["setup"] = setup_lines(cluster)
    # A dead rank ends the others at once. From 22.05 on, srun does not take the cores of a task from sbatch.
    chosen["srun_args"] = ["--kill-on-bad-exit=1", f"--cpus-per-task={cpus}"]
    return {name: value for name, value in chosen.items() if value is not None}


def prepare_cpus(cluster: ClusterConfig) -> int:
    """Cores of the job that prepares the store: as many as a training job has on a node."""
    assert cluster.cpus_per_process is not None
    return cluster.cpus_per_process * cluster.processes


def setup_lines(cluster: ClusterConfig) -> list[str]:
    """The lines of the script before the command: the site's own, then the environment of the job."""
    exports = [f"export {name}={shlex.quote(value)}" for name, value in cluster.environment.items()]
    exports.append(f'export PYTHONPATH={shlex.quote(str(ROOT))}"${{PYTHONPATH:+:$PYTHONPATH}}"')
    return [*cluster.setup, *exports]


def command(folder: Path) -> str:
    """The command line that submitit's Slurm executor gives to srun."""
    return f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"


def sbatch_text(
    cluster: ClusterConfig, job: JobSpec, run_name: str, folder: Path, dependency: str | None = None
) -> str:
    """The text of the script that is given to sbatch; logs go to `folder`."""
    chosen = parameters(cluster, job, run_name, dependency)
    return str(_make_sbatch_string(command=command(folder), folder=folder, **chosen))


def _memory(gigabytes: float) -> str:
    return f"{int(gigabytes)}GB" if gigabytes == int(gigabytes) else f"{int(gigabytes * 1024)}MB"
