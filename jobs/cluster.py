"""Cluster configurations: where a job runs, with which resources and under which limits."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from agl_core.config import option
from agl_core.errors import UserError, valid_choice
from agl_core.machine import cores
from jobs.settings import Assignments, apply_assignments, apply_mapping, named_file, read_mapping, to_yaml

CLUSTERS = Path(__file__).parent.parent / "cluster_configs"

# Options of sbatch that have a key here or that the chain of stages depends on.
OWN_OPTIONS = {
    "nodes": "nodes",
    "gpus-per-node": "gpus_per_node",
    "ntasks-per-node": "processes",
    "cpus-per-task": "cpus_per_process",
    "mem": "memory_gb",
    "time": "time_hours",
    "signal": "signal_seconds",
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
    **dict.fromkeys(
        (
            "ntasks",
            "array",
            "dependency",
            "kill-on-invalid-dep",
            "requeue",
            "no-requeue",
            "open-mode",
            "output",
            "error",
            "job-name",
            "chdir",
            "kill-on-bad-exit",
            "export",
        ),
        "",
    ),
}

MEMORY_OPTIONS = ("mem", "mem-per-cpu", "mem-per-gpu")  # sbatch takes one of them

SLURM_ONLY = (
    *("memory_gb", "time_hours", "partition", "account", "qos", "constraint", "cpu_partition", "sbatch", "setup"),
    *("wrapper", "python", "network_interface"),
)


@dataclass
class ClusterConfig:
    """A file of cluster_configs: the keys of `cluster.<key>=VALUE`."""

    executor: str = option(
        "debug",
        "debug: in this process, breakpoints work; local: several processes on this machine; slurm: sbatch",
        choices=("debug", "local", "slurm"),
    )
    nodes: int = option(1, "number of machines")
    processes: int = option(1, "processes (ranks) per node; with GPUs, one for each")
    gpus_per_node: int | None = option(None, "GPUs per node; 0: use none; null: all that are visible (not for slurm)")
    cpus_per_process: int | None = option(None, "CPU cores for each process; null: an even share (not for slurm)")
    memory_gb: float | None = option(
        None, "main memory per node in GB; null: as sbatch.mem-per-gpu or the site says (slurm)"
    )
    time_hours: float | None = option(None, "time limit of one job in hours (slurm)")
    signal_seconds: int = option(180, "how long before the time limit Slurm sends USR2, seconds (slurm)")
    partition: str = option("", "partition to submit to; empty: the site's default (slurm)")
    account: str = option("", "account to charge; empty: the user's default (slurm)")
    qos: str = option("", "quality of service; empty: the site's default (slurm)")
    constraint: str = option("", "required node features, such as v100-32g (slurm)")
    sbatch: dict[str, Any] = option(
        dict, "further options of sbatch by name without dashes; true for a bare flag (slurm)"
    )
    cpu_partition: str = option("", "partition for jobs without GPU; empty: the same as the others' (slurm)")
    environment: dict[str, str] = option(dict, "environment variables of the job, literally: no $NAME in them")
    setup: list[str] = option(list, "lines of the sbatch script before the command, such as 'module load cuda' (slurm)")
    wrapper: list[str] = option(
        list, "words before the ranks' python, such as [apptainer, exec, --nv, image.sif] (slurm)"
    )
    python: str = option("", "python of the ranks, for instance inside the image; empty: the submitting one (slurm)")
    network_interface: str = option("", "interface for NCCL and gloo between nodes, such as ib0; empty: theirs (slurm)")
    post_mortem: bool = option(True, "open the debugger where training crashes, on a terminal (debug)")
    workers: int = option(0, "data loading processes per rank, where --workers is not given; 0: in the rank itself")
    threads: int | None = option(None, "CPU threads per rank, where --threads is not given; null: cores / processes")
    stage_in: str = option(
        "", "folder of each node for a copy of the store, where --stage-in is not given: $TMPDIR, /dev/shm; empty: none"
    )

    @property
    def world_size(self) -> int:
        """Number of processes of a job over all nodes."""
        return self.nodes * self.processes

    def default_threads(self) -> int:
        """CPU threads per rank: as configured, or the cores of a process, or this machine's cores shared out."""
        if self.threads is not None:
            return self.threads
        if self.cpus_per_process is not None:
            return self.cpus_per_process
        return max(1, cores() // self.processes)


def load_cluster(name: str, overrides: Assignments | None = None, resolve: bool = True) -> ClusterConfig:
    """Read a cluster configuration by its name in cluster_configs/ or by its path, and apply `overrides` to it.

    resolve: whether `${...}` in it is an interpolation; in what `to_yaml` wrote it is not.

    Raises:
        UserError: no such file, key or value, or values that do not go together.
    """
    path = named_file("cluster", name, CLUSTERS)
    config = apply_mapping(ClusterConfig(), read_mapping(path, resolve), str(path))
    try:
        config = apply_assignments(config, overrides or {})
        check(config)
    except UserError as error:
        raise UserError(f"cluster {name}: {error}") from None
    try:
        to_yaml(config)  # as every run directory holds it
    except OmegaConfBaseException as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cluster {name} holds a '${{' that cannot be kept ({reason}): put it into a script") from None
    return config


def check(config: ClusterConfig) -> None:
    """Raise a `UserError` if values are out of range or do not go together."""
    valid_choice("executor", config.executor, ["debug", "local", "slurm"])
    for name in ("nodes", "processes", "cpus_per_process", "threads"):
        if (value := getattr(config, name)) is not None and value < 1:
            raise UserError(f"{name} is {value}: must be 1 or more")
    for name in ("memory_gb", "time_hours"):
        if (value := getattr(config, name)) is not None and not 0 < value < float("inf"):
            raise UserError(f"{name} is {value:g}: must be greater than 0")
    for name in ("workers", "gpus_per_node", "signal_seconds"):
        if (value := getattr(config, name)) is not None and value < 0:
            raise UserError(f"{name} is {value}: must be 0 or more")
    for name in config.environment:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UserError(f"environment has a variable {name!r}: use letters, digits and _, and no digit first")
    if config.stage_in not in ("", "none") and not config.stage_in.startswith(("/", "$")):
        raise UserError(f"stage_in is {config.stage_in!r}: give a full path, which may begin with a $VARIABLE, or none")
    if config.executor == "slurm":
        _check_slurm(config)
        return
    if config.executor == "debug" and config.processes != 1:
        raise UserError(f"processes is {config.processes}, but executor debug runs in one process: use executor local")
    if config.nodes != 1:
        raise UserError(f"nodes is {config.nodes}, but executor {config.executor} runs on this machine: use 1")
    default = ClusterConfig()
    for name in SLURM_ONLY:
        if getattr(config, name) != getattr(default, name):
            raise UserError(f"{name} is for executor slurm only: remove it, since executor is {config.executor}")
    if config.gpus_per_node and config.processes > config.gpus_per_node:
        raise UserError(_per_gpu(config))


def _check_slurm(config: ClusterConfig) -> None:
    for name in ("gpus_per_node", "cpus_per_process", "time_hours"):
        if getattr(config, name) is None:
            raise UserError(f"executor slurm needs {name}")
    assert config.time_hours is not None
    if config.gpus_per_node and config.processes != config.gpus_per_node:
        raise UserError(_per_gpu(config))
    if not 0 < config.signal_seconds < config.time_hours * 3600:
        raise UserError(
            f"signal_seconds is {config.signal_seconds}: must be greater than 0 and less than the time limit, "
            f"{config.time_hours * 3600:g} seconds"
        )
    if not all(word.strip() for word in config.wrapper):
        raise UserError(f"wrapper is {config.wrapper}: no word of it may be empty")
    if not re.fullmatch(r"[A-Za-z0-9._:,-]*", config.network_interface):
        raise UserError(
            f"network_interface is {config.network_interface!r}: give the name of an interface, such as ib0, or "
            "several with commas"
        )
    for name in ("partition", "account", "qos", "constraint", "cpu_partition"):
        if "\n" in getattr(config, name):
            raise UserError(f"{name} is {getattr(config, name)!r}: must be one line")
    for name, value in config.sbatch.items():
        _check_option(config, name, value)


def _check_option(config: ClusterConfig, name: str, value: Any) -> None:
    flag = name.replace("_", "-")
    key = OWN_OPTIONS.get(flag)
    if flag in MEMORY_OPTIONS:
        if config.memory_gb is not None:
            raise UserError(f"sbatch.{name}: use the key memory_gb, or set memory_gb to null")
    elif key is not None:
        raise UserError(f"sbatch.{name}: " + (f"use the key {key}" if key else "is set by this project, remove it"))
    if "\n" in f"{name}{value}":
        raise UserError(f"sbatch.{name!r} is {value!r}: name and value must be one line")
    if value is False or not isinstance(value, str | int | float):
        raise UserError(f"sbatch.{name} is {value!r}: must be text, a number, or true for a bare flag")


def _per_gpu(config: ClusterConfig) -> str:
    return f"processes is {config.processes} but gpus_per_node is {config.gpus_per_node}: each process uses one GPU"
