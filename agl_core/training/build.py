"""The state a stage begins with: fresh, from weights, or from the newest good checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from agl_core.config import TrainConfig
from agl_core.data.seeding import initial_seed, seed_torch
from agl_core.errors import UserError
from agl_core.model.network import GeoposeNet
from agl_core.model.precision import Precision
from agl_core.model.weights import load_state
from agl_core.training.batchnorm import RunningStatistics
from agl_core.training.checkpoint import load_checkpoint
from agl_core.training.optimizer import build_optimizer
from agl_core.training.state import TrainingState


def build_state(
    config: TrainConfig, stage: str, run_dir: Path, cities: Sequence[str], tiles: str, precision: Precision
) -> tuple[TrainingState, list[str]]:
    """The state of `stage` to go on from, on the device of `precision`, and why newer checkpoints were skipped.

    `tiles` is the digest of the training tiles (`Split.digest`).

    Raises:
        UserError: the checkpoint was made with other tiles, or the weights to start from are missing or do not fit.
    """
    checkpoint, skipped = load_checkpoint(run_dir / "checkpoints" / stage)
    start = config.stages[stage].start
    fresh = checkpoint is None and start == "encoder"
    seed_torch(initial_seed(config.seed, list(config.stages).index(stage)))
    model = GeoposeNet(config.encoder, cities, config.model, config.encoder_weights if fresh else "none")
    if checkpoint is None and not fresh:
        load_state(model, start_weights(start, run_dir))
    model.to(precision.device)
    if config.channels_last:
        cast(Any, model).to(memory_format=torch.channels_last)
    scaler = torch.amp.GradScaler(precision.device.type, enabled=precision.scaled)
    optimizer = build_optimizer(model, config.stages[stage].optimizer)
    state = TrainingState(model, optimizer, scaler, RunningStatistics(model))
    if checkpoint is not None:
        if checkpoint.state["tiles"] != tiles:
            raise UserError(
                f"run {run_dir.name} was started with other tiles than those of this store: give the --store of the "
                "first start, or another --run"
            )
        state.restore(checkpoint)
    return state, skipped


def start_weights(start: str, run_dir: Path) -> Path:
    """The weights file that a stage's `start` names: a path, or '<stage>/best', '<stage>/last' of the same run."""
    return Path(start) if start.endswith(".safetensors") else run_dir / "weights" / f"{start}.safetensors"
