"""The state a stage begins with: fresh, from weights, or from the newest good checkpoint."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from agl_core.config import TrainConfig
from agl_core.data.seeding import initial_seed, seed_torch
from agl_core.durable.checkpoint import Checkpoint, load_checkpoint
from agl_core.errors import UserError
from agl_core.files import read_json
from agl_core.model.network import GeoposeNet
from agl_core.model.precision import Precision
from agl_core.model.unfilled import unfilled
from agl_core.model.weights import load_state
from agl_core.reporting.startup import stopwatch
from agl_core.training.apex import choose
from agl_core.training.batchnorm import RunningStatistics, synchronised
from agl_core.training.ema import Average
from agl_core.training.memory import telling
from agl_core.training.optimizer import build_optimizer, load_optimizer_state
from agl_core.training.parallel import Parallel
from agl_core.training.state import TrainingState

PATIENCE = 60  # seconds until a file that one process has written is seen by all


@dataclass
class Origin:
    """Where the state of a stage comes from: fresh, from weights, or from the newest good checkpoint.

    `tiles` is the digest of the training tiles (`Split.digest`); the state is on the device of `precision`. `no_apex`
    says after `build` why the optimiser is not apex's, where that was to be decided.
    """

    config: TrainConfig
    stage: str
    run_dir: Path
    cities: Sequence[str]
    tiles: str
    precision: Precision
    parallel: Parallel
    no_apex: str = ""

    def build(self) -> tuple[TrainingState, list[str], dict[str, Any]]:
        """The state to go on from, why newer checkpoints were skipped, and what else the checkpoint says.

        Raises:
            UserError: in all processes, if the checkpoint was made with other tiles, the weights or moments to start
                from are missing or do not fit, or the optimiser, batch norm or gradient checkpointing asked for cannot
                be had in one.
            MemoryShortageError: in one process, whose device has no room for the state.
        """
        stage = self.config.stages[self.stage]
        name, self.no_apex = choose(stage.optimizer.name, self.parallel)
        checkpoint, skipped = self._load()
        stopwatch.mark("checkpoint")
        if checkpoint is not None and checkpoint.state["tiles"] != self.tiles:
            raise UserError(
                f"run {self.run_dir.name} was started with other tiles than those of this store: give the --store of "
                "the first start, or another --run"
            )
        with telling(self._too_large):
            model = self._model_of_all(fresh=checkpoint is None)
            scaler = torch.amp.GradScaler(self.precision.device.type, enabled=self.precision.scaled)
            optimizer = build_optimizer(model, stage.optimizer, name)
            state = TrainingState(model, optimizer, scaler, RunningStatistics(model))
            if stage.ema:
                state.average = Average(model, stage.ema)  # after the statistics, which give the network other buffers
            if checkpoint is not None:
                state.restore(checkpoint)
            else:
                load_optimizer_state(model, optimizer, self._first_moments())
        return state, skipped, checkpoint.state if checkpoint is not None else {}

    def roll_back(self, state: TrainingState) -> int:
        """Put weights and moments back to what they were at the state's anchor, the last step after which a checkpoint
        was due and which was not skipped, or at the beginning of the stage; returns the step. The counters stay.

        The anchor is a function of the steps done. Checkpoints that an interruption or the clock has caused are none,
        since they would make the result depend on them. If that of the anchor was never written (a survivor went on
        from a later step, or the disk refused), the newest older one must do.
        """
        scale = state.scaler.state_dict()
        checkpoint = self._anchored(state.anchor)
        if checkpoint is None and state.anchor:
            checkpoint, _ = self._load(lambda known: bool(known["scheduled"]) and known["step"] <= state.step)
        if checkpoint is None:
            state.model.load_state_dict(self._model(fresh=True).state_dict())
            state.statistics.reload()
            if state.average is not None:
                state.average.restart()
            load_optimizer_state(state.model, state.optimizer, self._first_moments())
        else:
            state.restore_training(checkpoint)
        if self.precision.scaled:
            # What was learnt about the gradient scale stays: the way down from a larger one may take all the skips.
            restored = state.scaler.state_dict()["scale"] if checkpoint is not None else scale["scale"]
            state.scaler.load_state_dict({**scale, "scale": min(scale["scale"], restored)})
        return checkpoint.step if checkpoint is not None else 0

    def _first_moments(self) -> dict[str, torch.Tensor]:
        """The optimiser's state that the stage begins with: none, or what the stage before ended with, if it is to be
        continued.

        Raises:
            UserError: in all processes, if its last checkpoint is not there in one.
        """
        stage = self.config.stages[self.stage]
        if not stage.optimizer.resume:
            return {}
        earlier = stage.start.partition("/")[0]
        folder, record = self.run_dir / "checkpoints" / earlier, self.run_dir / "stages" / f"{earlier}.json"
        for _ in range(PATIENCE):
            steps = read_json(record)["steps"] if record.is_file() else None
            checkpoint, _ = load_checkpoint(folder, lambda known, end=steps: known["step"] == end)  # type: ignore[misc]
            found = [bool(flag) for flag in self.parallel.gather(torch.tensor([int(checkpoint is not None)]))]
            if checkpoint is not None and all(found):
                return checkpoint.optimizer
            if not any(found):
                break
            time.sleep(1)  # a network file system may show it to the others a while later
        raise UserError(
            f"stages.{self.stage}.optimizer.resume is true, but the checkpoint of the end of stage {earlier} is "
            f"not in {folder} any more: start a new --run with stages.{self.stage}.optimizer.resume=false"
        )

    def _model_of_all(self, fresh: bool) -> GeoposeNet:
        """The network; a file that one process does not see or cannot use is told in all of them."""
        model, reason = None, ""
        try:
            model = self._model(fresh)
        except UserError as error:
            reason = str(error)
        if reason := self.parallel.any_text(reason):
            raise UserError(reason)
        assert model is not None
        return model

    def _too_large(self, asked: str) -> str:
        further = f" ({asked} more could not be had)" if asked else ""
        return (
            f"{self.precision.device} has too little memory for the weights and moments of {self.config.encoder!r}"
            f"{further}: use devices with more memory, or start a new --run with a smaller --encoder"
        )

    def _anchored(self, anchor: int) -> Checkpoint | None:
        """The checkpoint of the step `anchor` in all processes, as soon as a network file system shows it to all."""
        checkpoint = None
        for _ in range(PATIENCE if anchor else 0):
            folder = self.run_dir / "checkpoints" / self.stage
            checkpoint, _ = load_checkpoint(folder, lambda known: bool(known["scheduled"]) and known["step"] == anchor)
            found = [bool(flag) for flag in self.parallel.gather(torch.tensor([int(checkpoint is not None)]))]
            if all(found):
                return checkpoint
            if not found[0]:
                break
            time.sleep(1)
        return None

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
        with nullcontext() if fresh and start == "encoder" else unfilled():
            model = GeoposeNet(config.encoder, self.cities, config.model, weights, config.weights_cache)
        if fresh and start != "encoder":
            load_state(model, start_weights(start, self.run_dir))
        if config.gradient_checkpointing:
            model.set_gradient_checkpointing(True)
        model.to(self.precision.device)
        if config.channels_last:
            cast(Any, model).to(memory_format=torch.channels_last)
        if config.stages[self.stage].sync_batchnorm:
            model = cast(GeoposeNet, synchronised(model, self.parallel, self.stage))
        return model


def start_weights(start: str, run_dir: Path) -> Path:
    """The weights file that a stage's `start` names: a path, or '<stage>/best', '<stage>/last' or
    '<stage>/last-ema' of the same run."""
    return Path(start) if start.endswith(".safetensors") else run_dir / "weights" / f"{start}.safetensors"
