"""The sbatch script of a job and the srun command inside it: pure functions of the cluster configuration, so that they
can be shown and tested.

The script runs one process, the conductor (`jobs.conductor`), in the place of the shell: signals reach it. It starts
the ranks with srun as often as it takes.
"""

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import _make_sbatch_string

from jobs.cluster import ClusterConfig
from jobs.pipeline import PREDICT, PREPARE, STAGE, JobSpec
from jobs.runs import Run

GPU_OPTIONS = ("gres", "gpus", "gpus-per-task", "gpus-per-socket")
MEMORY_PER_GPU = "mem-per-gpu"
SHARED = (STAGE, PREDICT)  # the jobs that several processes share, each with its GPU

DEAF = (
    "# What asks the job to leave before its process can hear it must not end it, since it would not come back.",
    "trap '' TERM USR2",
)
"""The first lines of every script. What is ignored stays ignored in the process that takes the shell's place, until
python sets its handlers; that process then asks Slurm what has happened meanwhile."""


def parameters(
    cluster: ClusterConfig, job: JobSpec, code: Path, after: Sequence[str] = (), mail: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The parameters of submitit's Slurm executor for a job.

    code: the snapshot that it runs; after: ids of the jobs that must succeed first; mail: see `jobs.mail`. A stage
    has what the configuration says; predicting has the processes and GPUs of one node; preparing the store takes
    the cores of a node's share and no GPU; the other jobs are one process's share.
    """
    assert cluster.time_hours is not None
    gpus = gpus_per_node(cluster, job.kind)
    further = {name.replace("_", "-"): value for name, value in cluster.sbatch.items()}
    own_gpus = any(name in further for name in GPU_OPTIONS)
    if not gpus:
        further = {name: value for name, value in further.items() if name not in (*GPU_OPTIONS, MEMORY_PER_GPU)}
    whole = job.kind in (*SHARED, PREPARE)
    chosen: dict[str, Any] = {
        "job_name": job_name(job),
        "nodes": nodes(cluster, job.kind),
        "ntasks_per_node": tasks(cluster, job.kind) // nodes(cluster, job.kind),
        "cpus_per_task": cpus_per_task(cluster, job.kind),
        "mem": _memory(cluster.memory_gb, 1 if whole else cluster.processes),
        "time": math.ceil(round(cluster.time_hours * 60, 6)),
        "partition": (cluster.partition if gpus else cluster.cpu_partition or cluster.partition) or None,
        "account": cluster.account or None,
        "qos": cluster.qos or None,
        "constraint": (cluster.constraint if gpus or not cluster.cpu_partition else "") or None,
    }
    # Sites without --gpus-per-node name their GPUs in another option.
    if gpus and not own_gpus:
        chosen["gpus_per_node"] = gpus
    # Slurm's default for both is the site's choice: a job that is preempted must come back, its log must not be cut.
    # Nothing is read from the working directory, which may be gone when the job comes back.
    additional: dict[str, Any] = {"requeue": True, "open-mode": "append", "chdir": str(job.run.path)}
    # submitit's own parameter takes the signal from the environment.
    additional["signal"] = f"USR2@{cluster.signal_seconds}"
    if after:
        chosen["dependency"] = f"afterok:{':'.join(after)}"
        # Otherwise the dependents of a failed job stay in the queue for ever.
        additional["kill-on-invalid-dep"] = "yes"
    chosen["additional_parameters"] = additional | further | dict(mail or {})
    chosen["setup"] = setup_lines(cluster, code)
    chosen["use_srun"] = False
    # submitit's default is a key of its own, which sites that check keys refuse.
    return {name: value for name, value in chosen.items() if value is not None} | {"wckey": None}


def job_name(job: JobSpec) -> str:
    """Slurm's name of a job."""
    return f"{job.run.name}-{job.name}"


def nodes(cluster: ClusterConfig, kind: str) -> int:
    """Number of nodes of a job."""
    return cluster.nodes if kind == STAGE else 1


def tasks(cluster: ClusterConfig, kind: str) -> int:
    """Number of ranks of a job, over all its nodes."""
    return cluster.processes * nodes(cluster, kind) if kind in SHARED else 1


def cpus_per_task(cluster: ClusterConfig, kind: str) -> int:
    """Cores of each rank of a job; building the store has those of all ranks on a node."""
    assert cluster.cpus_per_process is not None
    return cluster.cpus_per_process * (cluster.processes if kind == PREPARE else 1)


def gpus_per_node(cluster: ClusterConfig, kind: str) -> int:
    """GPUs of a job on each of its nodes."""
    return (cluster.gpus_per_node or 0) if kind in SHARED else 0


def setup_lines(cluster: ClusterConfig, code: Path) -> list[str]:
    """The lines of the script before the command: deafness to signals, the site's own, then the environment of the
    job."""
    environment = dict(cluster.environment)
    if cluster.network_interface:
        for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
            environment.setdefault(name, cluster.network_interface)
    elif cluster.nodes == 1:  # gloo looks its own address up by the host's name, which may lead nowhere
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    exports.append(f'export PYTHONPATH={shlex.quote(str(code))}"${{PYTHONPATH:+:$PYTHONPATH}}"')
    exports.append("export PYTHONSAFEPATH=1")  # python would look into the working directory first
    return [*DEAF, *cluster.setup, *exports]


def batch_python() -> str:
    """How submitit is to call python: in the place of the shell, which would keep signals to itself."""
    return f"exec {shlex.quote(sys.executable)}"


def command(folder: Path) -> str:
    """The command line that submitit's Slurm executor writes into the script."""
    return f"{batch_python()} -u -m submitit.core._submit {shlex.quote(str(folder))}"


def srun_command(cluster: ClusterConfig, run: Run, name: str, kind: str, folder: Path) -> list[str]:
    """The words that start the ranks of a job; their logs and ends go to `folder`."""
    return [
        "srun",
        f"--nodes={nodes(cluster, kind)}",
        f"--ntasks={tasks(cluster, kind)}",
        # From 22.05 on, srun does not take the cores of a task from sbatch.
        f"--cpus-per-task={cpus_per_task(cluster, kind)}",
        "--kill-on-bad-exit=1",  # a dead rank ends the others at once
        "--export=ALL",
        f"--chdir={run.path}",
        f"--output={folder / 'rank%t.log'}",
        "--open-mode=append",
        *cluster.wrapper,
        cluster.python or sys.executable,
        "-u",
        "-m",
        "jobs.rank",
        str(run.path),
        name,
        kind,
        str(folder),
    ]


def sbatch_text(
    cluster: ClusterConfig, job: JobSpec, code: Path, after: Sequence[str] = (), mail: Mapping[str, str] | None = None
) -> str:
    """The text of the script that is given to sbatch."""
    chosen = parameters(cluster, job, code, after, mail)
    return str(_make_sbatch_string(command=command(job.run.jobs), folder=job.run.jobs, **chosen))


def _memory(of_node: float | None, parts: int) -> str | None:
    """What sbatch calls one of equal parts of a node's memory in GB; None leaves it to the site."""
    if of_node is None:
        return None
    gigabytes = of_node / parts
    return f"{int(gigabytes)}GB" if gigabytes == int(gigabytes) else f"{int(gigabytes * 1024)}MB"
