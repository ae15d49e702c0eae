"""Everything that changes while a stage trains, as one object that can be saved and put back."""

from dataclasses import dataclass
from typing import Any

import torch

from agl_core.model.network import GeoposeNet
from agl_core.training.batchnorm import RunningStatistics
from agl_core.training.checkpoint import Checkpoint
from agl_core.training.optimizer import load_optimizer_state, optimizer_state


@dataclass
class TrainingState:
    """The state after `step` optimiser steps. Random streams are functions of the step and not part of it."""

    model: GeoposeNet
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    statistics: RunningStatistics
    step: int = 0
    best_score: float | None = None

    def checkpoint(self, extra: dict[str, Any]) -> Checkpoint:
        """The state as tensors and JSON values; `extra` is kept beside it."""
        state = {"best_score": self.best_score, "scaler": self.scaler.state_dict(), **extra}
        return Checkpoint(self.step, self.model.state_dict(), optimizer_state(self.model, self.optimizer), state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Become the state that `checkpoint` holds, bit for bit."""
        self.model.load_state_dict(checkpoint.model)
        self.statistics.reload()
        load_optimizer_state(self.model, self.optimizer, checkpoint.optimizer)
        if checkpoint.state["scaler"]:
            self.scaler.load_state_dict(checkpoint.state["scaler"])
        self.step = checkpoint.step
        self.best_score = checkpoint.state["best_score"]
