"""Small real runs for the tests of the trainer: alone, interrupted, and in several gloo processes."""

import copy
import multiprocessing
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from agl_core.config import AugmentConfig, CheckpointConfig, ModelConfig, OptimizerConfig, StageConfig, TrainConfig
from agl_core.training.parallel import Parallel
from agl_core.training.trainer import StepReport, train_stage


def config(store: Path, /, steps: int = 4, **changes: Any) -> TrainConfig:
    """Two short stages with everything on: dropout, drop-connect, batch norm, augmentation, accumulation."""
    augment = AugmentConfig(rot90=1.0, flip_horizontal=0.5)
    settings: dict[str, Any] = {
        "length": f"{steps} steps",
        "crop": 64,
        "batch": 8,
        "micro_batch": 2,
        "augment": augment,
        "optimizer": OptimizerConfig(lr=1e-3),
        "validate_every": "2 steps",
    }
    first = StageConfig(**settings)
    second = StageConfig(**{**settings, "start": "first/last", "length": "2 steps"})
    values: dict[str, Any] = {
        "store": str(store),
        "encoder": "efficientnet-b0",
        "encoder_weights": "none",
        "folds": 4,
        "threads": 1,
        "workers": 0,
        "log_every": 1,
        "model": ModelConfig(decoder_channels=[16, 16, 8, 8, 8]),
        "checkpoint": CheckpointConfig(every="1 step"),
        "stages": {"first": first, "second": second},
    }
    return copy.deepcopy(TrainConfig(**{**values, **changes}))  # tests change theirs


class InterruptionError(Exception):
    """Stands for a kill between two steps."""


def train(
    config: TrainConfig, run_dir: Path, stage: str = "first", stop_after: int | None = None
) -> list[tuple[int, list[float]]]:
    """Train in this process; (step, losses) of every step. `stop_after` interrupts after that step's losses."""
    history: list[tuple[int, list[float]]] = []

    def observe(report: StepReport) -> None:
        history.append((report.step, report.losses.tolist()))
        if report.step == stop_after:
            raise InterruptionError

    try:
        with Parallel() as parallel:
            train_stage(config, stage, run_dir, parallel, observe)
    except InterruptionError:
        pass
    return history


def _rank(
    config: TrainConfig, run_dir: Path, place: tuple[int, int, str], stop_after: int | None, results: Any
) -> None:
    torch.set_num_threads(1)
    history: list[tuple[int, list[float]]] = []
    rank, world_size, address = place

    def observe(report: StepReport) -> None:
        history.append((report.step, report.losses.tolist()))
        if report.step == stop_after:
            raise InterruptionError

    try:
        with Parallel(rank, world_size, rank, address) as parallel:
            train_stage(config, "first", run_dir, parallel, observe)
    except InterruptionError:
        pass
    results.put((rank, history))


def train_together(
    config: TrainConfig, run_dir: Path, world_size: int, stop_after: int | None = None
) -> list[list[tuple[int, list[float]]]]:
    """Train the first stage in `world_size` gloo processes; every rank's history."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.preloaded"])
    results = context.Queue()
    run_dir.mkdir(parents=True, exist_ok=True)
    address = f"file://{run_dir}/rendezvous_{world_size}_{stop_after}"
    processes = [
        context.Process(target=_rank, args=(config, run_dir, (rank, world_size, address), stop_after, results))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    histories = dict(results.get(timeout=240) for _ in processes)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return [histories[rank] for rank in range(world_size)]


def weights(run_dir: Path, stage: str = "first", which: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run_dir / "weights" / stage / f"{which}.safetensors")


def same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
