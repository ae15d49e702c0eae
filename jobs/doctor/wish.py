"""What is to be run, as far as the checks need to know it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agl_core.config import DoctorConfig, TrainConfig
from jobs.cluster import ClusterConfig, load_cluster
from jobs.pipeline import STAGE, JobSpec, follow_ups, settle, store_missing
from jobs.runs import Run, run_of
from jobs.sbatch import GPU_OPTIONS, parameters
from jobs.settings import Assignments, train_config
from jobs.submission import DEFAULTS, cleaned, kept

NAME = "doctor"
"""Of a run that does not exist, in whose place things are asked."""


@dataclass(frozen=True)
class Wish:
    """A configuration on a site. configs: one for each encoder, with everything settled; empty for predictions. runs:
    the folder of all runs. jobs: how many are submitted at once. outside: the environment of the command."""

    cluster: ClusterConfig
    runs: Path
    configs: tuple[TrainConfig, ...] = ()
    jobs: int = 1
    outside: Mapping[str, str] = field(default_factory=dict)
    run: str = ""
    """Name of the run whose measured times count; empty: the newest that has any."""

    @property
    def slurm(self) -> bool:
        """Whether jobs are submitted."""
        return self.cluster.executor == "slurm"

    @property
    def config(self) -> TrainConfig | None:
        """The first configuration: what does not depend on the encoder is the same in all."""
        return self.configs[0] if self.configs else None

    @property
    def gpus(self) -> int:
        """GPUs asked for on each node."""
        return self.cluster.gpus_per_node or 0

    @property
    def gpu_type(self) -> str:
        """The GPUs' type as an option of sbatch names it (gres=gpu:v100:4), in lower case; empty: any."""
        for name, value in self.cluster.sbatch.items():
            if name.replace("_", "-") in (*GPU_OPTIONS, "gpus-per-node"):
                for part in str(value).split(","):
                    words = part.removeprefix("gres/").removeprefix("gpu:").split(":")
                    if words[0] and not words[0].isdecimal():
                        return words[0].lower()
        return ""

    @property
    def cpus(self) -> int:
        """Cores asked for on each node."""
        return (self.cluster.cpus_per_process or 1) * self.cluster.processes

    @property
    def partition(self) -> str:
        """The partition by the configuration or else by the user's environment; empty: the site's default."""
        return self.cluster.partition or self.outside.get("SBATCH_PARTITION", "")

    def chosen(self, name: str) -> str:
        """Account, qos or constraint, by the configuration or else by the user's environment."""
        return str(getattr(self.cluster, name)) or self.outside.get(f"SBATCH_{name.upper()}", "")

    def job(self) -> JobSpec:
        """A stage of a run that does not exist."""
        return JobSpec(Run(self.runs / NAME), NAME, STAGE)

    def parameters(self) -> dict[str, Any]:
        """submitit's parameters of a stage."""
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


def wish_to_train(configs: Sequence[TrainConfig], cluster: ClusterConfig, run: str = "") -> Wish:
    """To train with these settled configurations."""
    jobs = sum(len(config.stages) + len(follow_ups(config)) for config in configs)
    jobs += any(map(_to_prepare, configs))
    runs = Path(configs[0].runs).absolute()
    return Wish(cluster, runs, tuple(configs), jobs, dict(os.environ), run)


def _to_prepare(config: TrainConfig) -> bool:
    return bool(config.store) and store_missing(config)


def wish_to_predict(cluster: ClusterConfig, runs: Path) -> Wish:
    """To predict, with a job's folder below `runs`."""
    return Wish(cluster, runs.absolute(), (), 1, dict(os.environ))
