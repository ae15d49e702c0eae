"""Processes that hang, and their workers: they end with their stacks, and no step is lost."""

import dataclasses
import multiprocessing
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from agl_core.config import CheckpointConfig, TrainConfig, WatchdogConfig
from agl_core.data.dataset import CropDataset
from agl_core.durable.exits import HUNG
from agl_core.training.parallel import Parallel
from agl_core.training.step import OptimizerStep
from agl_core.training.trainer import train_stage
from tests.training.faults import (
    ALL,
    PROCESSES,
    assert_same_result,
    kinds,
    small,
    train,
)

pytestmark = pytest.mark.usefixtures("threads_end")


def the_culprit() -> NoReturn:
    while True:
        time.sleep(60)


def _hanging(settings: TrainConfig, run_dir: Path, where: str, rank: int, world_size: int) -> None:
    """Hangs in step 3: in the forward pass of the last process, or in its data loading process."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of the data loading processes, as where `launch.py` runs
    real_batch, real_items = OptimizerStep._micro_batch, CropDataset.__getitems__
    taken = iter(range(ALL))

    def micro_batch(step: OptimizerStep, batch: Any, number: int) -> torch.Tensor:
        if step.state.step == 2 and where == "rank" and rank == world_size - 1:
            the_culprit()
        return real_batch(step, batch, number)

    def items(dataset: CropDataset, keys: Any) -> Any:
        if where == "worker" and next(taken) == 4:  # the first micro-batch of step 3
            the_culprit()
        return real_items(dataset, keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OptimizerStep, "_micro_batch", micro_batch)
        patch.setattr(CropDataset, "__getitems__", items)
        with Parallel(rank, world_size, rank, f"file://{run_dir}/rendezvous") as parallel:
            train_stage(settings, "first", run_dir, parallel, watch=True)


def hang(settings: TrainConfig, run_dir: Path, where: str, world_size: int) -> list[int | None]:
    """The exit codes of all processes."""
    run_dir.mkdir(exist_ok=True)
    processes = [
        PROCESSES.Process(target=_hanging, args=(settings, run_dir, where, rank, world_size))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


RARE = CheckpointConfig(every="100 steps", interval="never")


@pytest.mark.parametrize(("where", "culprit"), [("worker", "in take"), ("forward", "in the_culprit")])
def test_a_process_that_hangs_ends_with_its_stacks_and_loses_no_step(
    tiny_store: Path, tmp_path: Path, undisturbed: Path, where: str, culprit: str
) -> None:
    watched = WatchdogConfig(minutes=0.08)
    settings = small(tiny_store, checkpoint=RARE, workers=1 if where == "worker" else 0, watchdog=watched)
    assert hang(settings, tmp_path, "rank" if where == "forward" else where, 1) == [HUNG]
    text = (tmp_path / "stacks" / "first.1.rank0.txt").read_text()
    assert culprit in text
    assert f"phase '{'data' if where == 'worker' else 'step'}'" in text
    taken = [event["step"] for event in kinds(tmp_path, "step")]
    assert taken == ([1] if where == "worker" else [1, 2])  # data are read one step ahead
    rest = train(dataclasses.replace(settings, workers=0), tmp_path)
    assert taken + rest == [1, 2, 3, 4, 5]
    assert_same_result(tmp_path, undisturbed)


def test_when_one_process_hangs_all_end_with_their_stacks_and_lose_no_step(tiny_store: Path, tmp_path: Path) -> None:
    settings = small(tiny_store, encoder="tu-resnet10t", checkpoint=RARE, watchdog=WatchdogConfig(minutes=0.08))
    assert hang(settings, tmp_path, "rank", 2) == [HUNG, HUNG]
    assert "in the_culprit" in (tmp_path / "stacks" / "first.1.rank1.txt").read_text()
    assert "in the_culprit" not in (tmp_path / "stacks" / "first.1.rank0.txt").read_text()
    assert sorted(path.name for path in (tmp_path / "checkpoints" / "first").iterdir()) == ["step_00000002"]
