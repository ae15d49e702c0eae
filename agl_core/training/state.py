"""Everything that changes while a stage trains, as one object that can be saved and put back."""

from dataclasses import dataclass
from typing import Any

import torch

from agl_core.durable.chain import START
from agl_core.durable.checkpoint import Checkpoint
from agl_core.model.network import GeoposeNet
from agl_core.training.batchnorm import RunningStatistics
from agl_core.training.ema import Average
from agl_core.training.optimizer import load_optimizer_state, optimizer_state


@dataclass
class TrainingState:
    """The state after `step` optimiser steps. Random streams are functions of the step and not part of it.

    `validated` is the last step after which the held-out fold was scored; `best_step` the one with the best score, of
    the average of the weights if `best_ema`, otherwise of the weights themselves. Without `average` there is none.
    `skips` counts the steps left out in a row because they were not finite, `rollbacks` how often the stage went back
    because of them, and `anchor` is the step that it would go back to. `link` is the digest of all that has been done
    so far (`agl_core.durable.chain`).
    """

    model: GeoposeNet
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    statistics: RunningStatistics
    step: int = 0
    best_score: float | None = None
    best_step: int | None = None
    validated: int = 0
    skips: int = 0
    rollbacks: int = 0
    anchor: int = 0
    link: str = START
    average: Average | None = None
    best_ema: bool = False

    def checkpoint(self, extra: dict[str, Any]) -> Checkpoint:
        """The state as tensors and JSON values; `extra` is kept beside it. The tensors are the live ones.

        Between two steps it is the same at any time, also while the next one is being computed.
        """
        state = {
            "best_score": self.best_score,
            "best_step": self.best_step,
            "validated": self.validated,
            "skips": self.skips,
            "rollbacks": self.rollbacks,
            "anchor": self.anchor,
            "link": self.link,
            "scaler": self.scaler.state_dict(),
            **({"best_ema": self.best_ema} if self.average is not None else {}),
            **extra,
        }
        model = {**self.model.state_dict(), **self.statistics.finished()}
        average = self.average.tensors() if self.average is not None else {}
        return Checkpoint(self.step, model, optimizer_state(self.model, self.optimizer), state, average)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Become the state that `checkpoint` holds, bit for bit."""
        self.restore_training(checkpoint)
        self.step = checkpoint.step
        self.best_score = checkpoint.state["best_score"]
        self.best_step = checkpoint.state["best_step"]
        self.best_ema = checkpoint.state.get("best_ema", False)
        self.validated = checkpoint.state["validated"]
        self.skips = checkpoint.state["skips"]
        self.rollbacks = checkpoint.state["rollbacks"]
        self.anchor = checkpoint.state["anchor"]
        self.link = checkpoint.state["link"]

    def restore_training(self, checkpoint: Checkpoint) -> None:
        """Take over what is trained, without the counters: weights, buffers, moments, the average, the gradient
        scale."""
        self.model.load_state_dict(checkpoint.model)
        self.statistics.reload()
        if self.average is not None:
            self.average.load(checkpoint.average)
        load_optimizer_state(self.model, self.optimizer, checkpoint.optimizer)
        if checkpoint.state["scaler"]:
            self.scaler.load_state_dict(checkpoint.state["scaler"])
