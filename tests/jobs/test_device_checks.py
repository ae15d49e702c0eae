"""What a stage needs of the devices is known before a job is submitted."""

from dataclasses import replace
from pathlib import Path

import pytest

from agl_core.config import OptimizerConfig, StageConfig, TrainConfig
from agl_core.errors import UserError
from jobs.cluster import ClusterConfig
from jobs.pipeline import check_inputs

GPUS = ClusterConfig("slurm", processes=4, gpus_per_node=4, time_hours=1)
CPUS = [
    replace(GPUS, gpus_per_node=0),
    ClusterConfig("local", processes=4),
    ClusterConfig("local", processes=4, gpus_per_node=0),
]


@pytest.fixture(autouse=True)
def _login_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def config(tmp_path: Path, stage: StageConfig) -> TrainConfig:
    """A run whose store is still to be prepared."""
    return TrainConfig(store=str(tmp_path / "store"), encoder_weights="none", stages={"a": StageConfig(), "b": stage})


@pytest.mark.parametrize("cluster", CPUS, ids=lambda c: f"{c.executor}-{c.gpus_per_node}")
@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (StageConfig(sync_batchnorm=True), "stages.b.sync_batchnorm is true, which needs GPUs"),
        (StageConfig(optimizer=OptimizerConfig(name="apex")), "stages.b.optimizer.name is apex, which needs a GPU"),
    ],
)
def test_what_needs_gpus_is_refused_without(
    tmp_path: Path, cluster: ClusterConfig, stage: StageConfig, words: str
) -> None:
    with pytest.raises(UserError) as refusal:
        check_inputs(config(tmp_path, stage), cluster)
    assert words in str(refusal.value)
    check_inputs(config(tmp_path, stage), GPUS)  # they are there, though not on this machine


@pytest.mark.parametrize("cluster", [*CPUS, GPUS], ids=lambda c: f"{c.executor}-{c.gpus_per_node}")
@pytest.mark.parametrize("name", ["adamw", "adamw-plain", "auto"])
def test_what_runs_everywhere_is_not_refused(tmp_path: Path, cluster: ClusterConfig, name: str) -> None:
    check_inputs(config(tmp_path, StageConfig(optimizer=OptimizerConfig(name=name))), cluster)


def test_with_synchronised_norms_every_process_must_have_as_many_micro_batches(tmp_path: Path) -> None:
    asked = config(tmp_path, StageConfig(batch=32, micro_batch=8, sync_batchnorm=True))
    for nodes, processes in ((1, 1), (1, 2), (2, 2)):
        check_inputs(asked, replace(GPUS, nodes=nodes, processes=processes))
    with pytest.raises(UserError, match=r"all 3 processes must have as many of the 4 micro-batches a step"):
        check_inputs(asked, replace(GPUS, processes=3))
