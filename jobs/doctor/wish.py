"""What is to be run, as far as the checks need to know it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agl_core.config import DoctorConfig, TrainConfig
from jobs.cluster import ClusterConfig, load_cluster
from jobs.pipeline import EVALUATE, PREDICT, PREPARE, STAGE, JobSpec, follow_ups, settle, store_missing
from jobs.runs import Run, run_of
from jobs.sbatch import GPU_OPTIONS, SHARED, cpus_per_task, gpus_per_node, nodes, parameters, tasks
from jobs.settings import Assignments, train_config
from jobs.submission import DEFAULTS, cleaned, kept

NAME = "doctor"
"""Of a run that does not exist, in whose place things are asked."""


@dataclass(frozen=True)
class Wish:
    """A configuration on a site. configs: one for each encoder, with everything settled; empty for predictions. runs:
    the folder of all runs. kinds: those of all jobs that are submitted at once. outside: the environment of the
    command."""

    cluster: ClusterConfig
    runs: Path
    configs: tuple[TrainConfig, ...] = ()
    kinds: tuple[str, ...] = (STAGE,)
    outside: Mapping[str, str] = field(default_factory=dict)
    run: str = ""
    """Name of the run whose measured times count; empty: the one that is to run, else the newest that has any."""
    stages: Mapping[str, tuple[str, ...]] | None = None
    """The stages that are left to train, by name of the run; None: all of all runs."""
    only: str = ""
    """The one of several partitions that is looked at."""

    @property
    def slurm(self) -> bool:
        """Whether jobs are submitted."""
        return self.cluster.executor == "slurm"

    @property
    def config(self) -> TrainConfig | None:
        """The first configuration: what does not depend on the encoder is the same in all."""
        return self.configs[0] if self.configs else None

    @property
    def jobs(self) -> int:
        """How many jobs are submitted at once."""
        return len(self.kinds)

    @property
    def kind(self) -> str:
        """The kind of job that asks for most."""
        return next((kind for kind in (STAGE, PREDICT, PREPARE) if kind in self.kinds), EVALUATE)

    @property
    def trains(self) -> bool:
        """Whether there is a stage among the jobs."""
        return STAGE in self.kinds

    @property
    def own(self) -> set[str]:
        """Names of the runs whose times are those of what is to run."""
        return {config.run for config in self.configs} | ({self.run} if self.run else set())

    @property
    def in_partition(self) -> int:
        """How many of the jobs go to the partition of the first kind."""
        apart = self.kind in SHARED and self.cluster.cpu_partition
        return sum(kind in SHARED for kind in self.kinds) if apart else self.jobs

    def left(self, config: TrainConfig) -> tuple[str, ...]:
        """The stages of a run that are left to train."""
        return tuple(config.stages) if self.stages is None else self.stages.get(config.run, ())

    @property
    def nodes(self) -> int:
        """Nodes asked for."""
        return nodes(self.cluster, self.kind)

    @property
    def gpus(self) -> int:
        """GPUs asked for on each node."""
        return gpus_per_node(self.cluster, self.kind)

    @property
    def gpu_type(self) -> str:
        """The GPUs' type as an option of sbatch names it (gres=gpu:v100:4), in lower case; empty: any."""
        for name, value in self.cluster.sbatch.items():
            if name.replace("_", "-") in (*GPU_OPTIONS, "gpus-per-node"):
                for part in str(value).lower().split(","):
                    words = part.strip().removeprefix("gres/").split(":")
                    if name == "gres" and words.pop(0) != "gpu":  # there is gres of other things
                        continue
                    if words and words[0] and not words[0].isdecimal():
                        return words[0]
        return ""

    @property
    def cpus(self) -> int:
        """Cores asked for on each node."""
        return cpus_per_task(self.cluster, self.kind) * (tasks(self.cluster, self.kind) // self.nodes)

    @property
    def memory_gb(self) -> float | None:
        """Main memory asked for on each node, GB; None: what the site gives."""
        whole = self.cluster.memory_gb
        shared = whole is None or self.kind in (*SHARED, PREPARE)
        return whole if shared or whole is None else whole / self.cluster.processes

    @property
    def partitions(self) -> tuple[str, ...]:
        """The partitions by the configuration or else by the user's environment, any of which will do; none: the
        site's default."""
        return _names(self.chosen("partition"))

    @property
    def cpu_partitions(self) -> tuple[str, ...]:
        """Those of the jobs without GPU, where they are others."""
        others = self.kind in SHARED and any(kind not in SHARED for kind in self.kinds)
        return _names(self.cluster.cpu_partition) if others else ()

    @property
    def partition(self) -> str:
        """The partition that is looked at; empty: the site's default."""
        return self.only or next(iter(self.partitions), "")

    def chosen(self, name: str) -> str:
        """Partition, account, qos or constraint, by the configuration or else by the user's environment."""
        if not self.slurm:
            return ""
        return str(self.parameters().get(name, "")) or self.environment().get(f"SBATCH_{name.upper()}", "")

    def job(self) -> JobSpec:
        """A job of the first kind, of a run that does not exist."""
        return JobSpec(Run(self.runs / NAME), NAME, self.kind)

    def parameters(self) -> dict[str, Any]:
        """submitit's parameters of that job."""
        return parameters(self.cluster, self.job(), self.runs / NAME)

    def environment(self) -> dict[str, str]:
        """The environment that sbatch gets."""
        return cleaned(dict(self.outside), kept(self.cluster, self.parameters()))

    def overrides(self) -> dict[str, str]:
        """Options that the user has set for all their jobs and that count here."""
        names = [f"SBATCH_{name.upper()}" for name in DEFAULTS]
        inside = self.environment()
        return {name: inside[name] for name in names if inside.get(name)}


def wish_of(config: DoctorConfig, cluster_keys: Assignments) -> Wish:
    """What the verb `doctor` is asked to look at.

    Raises:
        UserError: an unknown cluster, recipe or encoder, or values that do not go together.
    """
    cluster = load_cluster(config.cluster, cluster_keys)
    given = {"recipe": config.recipe, "data": config.data, "store": config.store, "runs": config.runs}
    asked = train_config({name: value for name, value in given.items() if value})
    encoders = [name.strip() for name in config.encoder.split(",") if name.strip()] or [asked.encoder]
    configs = []
    for encoder in encoders:
        each = replace(asked, encoder=encoder, cluster=config.cluster)
        configs.append(settle(each, cluster, run_of(each)))
    return wish_to_train(configs, cluster, config.run)


def wish_to_train(
    configs: Sequence[TrainConfig], cluster: ClusterConfig, run: str = "", jobs: Sequence[JobSpec] | None = None
) -> Wish:
    """To train with these settled configurations. jobs: what is left to do; None: all of new runs."""
    runs, outside = Path(configs[0].runs).absolute(), dict(os.environ)
    if jobs is not None:
        left = {config.run: tuple(job.name for job in jobs if job.kind == STAGE and job.run.name == config.run)
                for config in configs}  # fmt: skip
        return Wish(cluster, runs, tuple(configs), tuple(job.kind for job in jobs), outside, run, left)
    kinds = [PREPARE] * any(map(_to_prepare, configs))
    for config in configs:
        kinds += [*[STAGE] * len(config.stages), *follow_ups(config)]
    return Wish(cluster, runs, tuple(configs), tuple(kinds), outside, run)


def _to_prepare(config: TrainConfig) -> bool:
    return bool(config.store) and store_missing(config)


def wish_to_predict(cluster: ClusterConfig, runs: Path) -> Wish:
    """To predict, with a job's folder below `runs`."""
    return Wish(cluster, runs.absolute(), (), (PREDICT,), dict(os.environ))


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
