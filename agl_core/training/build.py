"""The state a stage begins with: fresh, from weights, or from the newest good checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from agl_core.config import TrainConfig
from agl_core.data.seeding import initial_seed, seed_torch
from agl_core.durable.checkpoint import Checkpoint, load_checkpoint
from agl_core.errors import UserError
from agl_core.model.network import GeoposeNet
from agl_core.model.precision import Precision
from agl_core.model.weights import load_state
from agl_core.training.batchnorm import RunningStatistics
from agl_core.training.optimizer import build_optimizer
from agl_core.training.parallel import Parallel
from agl_core.training.state import TrainingState


@dataclass
class Origin:
    """Where the state of a stage comes from: fresh, from weights, or from the newest good checkpoint.

    `tiles` is the digest of the training tiles (`Split.digest`); the state is on the device of `precision`.
    """

    config: TrainConfig
    stage: str
    run_dir: Path
    cities: Sequence[str]
    tiles: str
    precision: Precision
    parallel: Parallel

    def build(self) -> tuple[TrainingState, list[str]]:
        """The state to go on from, and why newer checkpoints were skipped.

        Raises:
            UserError: the checkpoint was made with other tiles, or the weights to start from are missing or do not fit.
        """
        checkpoint, skipped = self._load()
        if checkpoint is not None and checkpoint.state["tiles"] != self.tiles:
            raise UserError(
                f"run {self.run_dir.name} was started with other tiles than those of this store: give the --store of "
                "the first start, or another --run"
            )
        model = self._model(fresh=checkpoint is None)
        scaler = torch.amp.GradScaler(self.precision.device.type, enabled=self.precision.scaled)
        optimizer = build_optimizer(model, self.config.stages[self.stage].optimizer)
        state = TrainingState(model, optimizer, scaler, RunningStatistics(model))
        if checkpoint is not None:
            state.restore(checkpoint)
        return state, skipped

    def roll_back(self, state: TrainingState) -> int:
        """Put weights, moments and gradient scale back to what they were at the newest checkpoint that was due by the
        number of steps, or at the beginning of the stage; returns the step of that. The counters stay.

        Only checkpoints that every run saves count: those that an interruption or the clock has caused would make the
        result depend on them.
        """
        checkpoint, _ = self._load(lambda known: bool(known["scheduled"]))
        if checkpoint is None:
            state.model.load_state_dict(self._model(fresh=True).state_dict())
            state.statistics.reload()
            state.optimizer.state.clear()
            scaler = torch.amp.GradScaler(self.precision.device.type, enabled=self.precision.scaled)
            if self.precision.scaled:
                state.scaler.load_state_dict(scaler.state_dict())
            return 0
        state.restore_training(checkpoint)
        return checkpoint.step

    def _load(self, accept: Callable[[dict[str, Any]], bool] = lambda _: True) -> tuple[Checkpoint | None, list[str]]:
        """The same checkpoint in all processes, also where a file system shows them different ones for a while."""
        folder = self.run_dir / "checkpoints" / self.stage
        checkpoint, skipped = load_checkpoint(folder, accept)
        step = checkpoint.step if checkpoint is not None else -1
        steps = [int(other) for other in self.parallel.gather(torch.tensor([step]))]
        if len(set(steps)) > 1:
            oldest = min(steps)
            checkpoint, _ = load_checkpoint(folder, lambda known: known["step"] <= oldest and accept(known))
            found = checkpoint.step if checkpoint is not None else -1
            if self.parallel.any(found != oldest):
                raise UserError(
                    f"the processes see different checkpoints in {folder} (steps {steps}): give the command again when "
                    "the file system has settled"
                )
        return checkpoint, skipped

    def _model(self, fresh: bool) -> GeoposeNet:
        config, start = self.config, self.config.stages[self.stage].start
        seed_torch(initial_seed(config.seed, list(config.stages).index(self.stage)))
        weights = config.encoder_weights if fresh and start == "encoder" else "none"
        model = GeoposeNet(config.encoder, self.cities, config.model, weights)
        if fresh and start != "encoder":
            load_state(model, start_weights(start, self.run_dir))
        model.to(self.precision.device)
        if config.channels_last:
            cast(Any, model).to(memory_format=torch.channels_last)
        return model


def start_weights(start: str, run_dir: Path) -> Path:
    """The weights file that a stage's `start` names: a path, or '<stage>/best', '<stage>/last' of the same run."""
    return Path(start) if start.endswith(".safetensors") else run_dir / "weights" / f"{start}.safetensors"
