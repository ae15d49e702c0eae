"""One stage of a run, from its first step or its newest checkpoint to its end."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from agl_core.config import TrainConfig
from agl_core.data.dataset import Batch, CropDataset, batches
from agl_core.data.order import Order
from agl_core.data.split import Split
from agl_core.data.store import Store
from agl_core.errors import UserError
from agl_core.files import write_json
from agl_core.inference.predictor import Predictor
from agl_core.model.precision import Precision
from agl_core.model.weights import save_weights
from agl_core.reporting.events import EventLog
from agl_core.reporting.progress import Progress
from agl_core.reporting.scalars import Scalars
from agl_core.scoring.score import Score
from agl_core.training.build import build_state
from agl_core.training.checkpoint import save_checkpoint
from agl_core.training.parallel import Parallel, default_threads
from agl_core.training.schedule import Span, learning_rate
from agl_core.training.step import OptimizerStep
from agl_core.training.validation import validate


class StepReport(NamedTuple):
    """What one optimiser step did. step: its number, from 1; losses: (4,) float64 total, AGL, direction and scale,
    of the whole global batch; lr: its learning rate."""

    step: int
    losses: Tensor
    lr: float


MOST_OVERFLOWS = 10
"""In float16, so many losses that are not finite in a row end a run."""

Observer = Callable[[StepReport], None]


def train_stage(
    config: TrainConfig, stage: str, run_dir: Path, parallel: Parallel, observe: Observer | None = None
) -> None:
    """Train `stage` of `config` to its end, continuing from the newest good checkpoint in `run_dir`.

    Leaves weights/<stage>/best.safetensors and last.safetensors and, as its very last act, stages/<stage>.json.
    Every process of the group calls it; the first one writes. `observe` is called in every process after every step
    with losses that are the same everywhere; it makes the loss an exchange at each step instead of at logged ones.

    Raises:
        UserError: no store, no such fold, weights that do not fit, more processes than micro-batches, or a loss that
            is not finite.
    """
    trainer = StageTrainer(config, stage, run_dir, parallel)
    try:
        trainer.run(observe)
    finally:
        trainer.close()


class StageTrainer:
    """Builds what a stage needs and runs its loop; `train_stage` is the way in."""

    def __init__(self, config: TrainConfig, stage: str, run_dir: Path, parallel: Parallel) -> None:
        self.config, self.name, self.run_dir, self.parallel = config, stage, run_dir, parallel
        self.stage, number = config.stages[stage], list(config.stages).index(stage)
        self.threads = config.threads or default_threads(parallel.world_size)
        torch.set_num_threads(self.threads)
        self.store = Store(Path(config.store or Path(config.data) / "store"))
        self.split = Split.of(self.store, config)
        self.order = Order(config.seed, number, len(self.split.train), self.stage.batch)
        self.total = Span.parse(self.stage.length, f"stages.{stage}.length").steps(self.order)
        self.precision = Precision.choose(config.precision, parallel.device)
        self.tiles = self.split.digest(self.store)
        self.state, self.skipped = build_state(config, stage, run_dir, self.store.cities, self.tiles, self.precision)
        self.step = OptimizerStep(self.state, self.stage, config.seed, number, self.precision, parallel)
        self.predictor = Predictor(self.state.model, config.max_agl, precision=self.precision.name)
        self.dataset = CropDataset(self.store, self.split.train, self.stage, config.seed, number, parallel.rank)
        self.events = EventLog(run_dir / "events.jsonl" if parallel.first else None, stage)
        self.overflows = 0
        self.scalars = Scalars(run_dir / "tensorboard" if parallel.first else None, stage, self.state.step)

    def run(self, observe: Observer | None = None) -> None:
        """The loop: step, log, validate, save, until the stage has its length."""
        state, start = self.state, self.state.step
        validate_every = Span.parse(self.stage.validate_every, f"stages.{self.name}.validate_every")
        save_every = Span.parse(self.config.checkpoint.every, "checkpoint.every")
        self._announce()
        with Progress(self.name, self.total, "steps", start, shown=self.parallel.first) as progress:
            self._greet(progress)
            loader = self._loader()
            began = time.monotonic()  # moved on by what is not training, so that the rate is that of training
            while state.step < self.total:
                lr = learning_rate(self.stage.schedule, self.stage.optimizer.lr, state.step, self.total, self.order)
                losses = self.step(loader, lr)
                last = state.step == self.total
                saving = last or save_every.due(state.step, self.order)
                logging = last or state.step % self.config.log_every == 0 or state.step == start + 1
                progress.advance()
                if logging or saving or observe is not None:
                    losses = self.parallel.sum(losses).cpu()
                    self._check_finite(losses)
                    progress.advance(0, loss=float(losses[0]))
                if logging and not self.overflows:
                    rate = (state.step - start) * self.stage.batch / (time.monotonic() - began)
                    self._log_step(losses, lr, rate)
                if observe is not None:
                    observe(StepReport(state.step, losses, lr))
                paused = time.monotonic()
                if self.split.validation and (last or validate_every.due(state.step, self.order)):
                    self._validate(progress)
                if saving:
                    self._save()
                began += time.monotonic() - paused
        self._finish()

    def close(self) -> None:
        """Close the logs."""
        self.events.close()
        self.scalars.close()

    def _loader(self) -> Iterator[Batch]:
        return batches(
            self.dataset,
            self.order,
            self.state.step,
            self.total,
            self.parallel.rank,
            self.parallel.world_size,
            self.config.workers or 0,
            pin_memory=self.parallel.device.type == "cuda",
        )

    def _validate(self, progress: Progress) -> None:
        began = time.monotonic()
        result = validate(self.predictor, self.store, self.split.validation, self.parallel)
        if self.state.best_score is None or result.score > self.state.best_score:
            self.state.best_score = result.score
            self._save_weights("best", result)
        epoch = self.order.epochs_done(self.state.step)
        seconds = round(time.monotonic() - began, 3)
        self.events.write("validation", step=self.state.step, epoch=epoch, seconds=seconds, **result.as_json())
        values = {"score": result.score}
        for city, part in result.cities.items():
            values[f"{city}/agl_r2"] = part.agl_r2
            if part.vflow_r2 is not None:
                values[f"{city}/vflow_r2"] = part.vflow_r2
        self.scalars.write(self.state.step, values)
        parts = ", ".join(f"{city} {part.score:.3f}" for city, part in result.cities.items())
        progress.note(f"{self.name}: step {self.state.step}, score {result.score:.4f} ({parts})")

    def _save(self) -> None:
        if self.parallel.first:
            began = time.monotonic()
            extra = {"tiles": self.tiles, "threads": self.threads, "world_size": self.parallel.world_size}
            folder = self.run_dir / "checkpoints" / self.name
            save_checkpoint(folder, self.state.checkpoint(extra), self.config.checkpoint.keep)
            self.events.write("checkpoint", step=self.state.step, seconds=round(time.monotonic() - began, 3))
        self.parallel.barrier()

    def _save_weights(self, which: str, result: Score | None) -> None:
        if self.parallel.first:
            metadata = {
                "stage": self.name,
                "step": self.state.step,
                "score": result.as_json() if result else None,
                "config": asdict(self.config),
            }
            save_weights(self.run_dir / "weights" / self.name / f"{which}.safetensors", self.state.model, metadata)

    def _finish(self) -> None:
        state = self.state
        self._save_weights("last", None)
        if not self.split.validation:
            self._save_weights("best", None)
        if self.parallel.first:
            self.events.write("finish", step=state.step, score=state.best_score)
            (self.run_dir / "stages").mkdir(exist_ok=True)
            done = {"finished": True, "steps": state.step, "score": state.best_score}
            write_json(self.run_dir / "stages" / f"{self.name}.json", done)
        self.parallel.barrier()

    def _announce(self) -> None:
        parameters = sum(p.numel() for p in self.state.model.parameters() if p.requires_grad)
        self.events.write(
            "start",
            step=self.state.step,
            steps=self.total,
            epochs=self.order.epochs_done(self.total),
            world_size=self.parallel.world_size,
            device=str(self.parallel.device),
            precision=self.precision.name,
            threads=self.threads,
            parameters=parameters,
            tiles=len(self.split.train),
            validation_tiles=len(self.split.validation),
            skipped=self.skipped,
        )

    def _greet(self, progress: Progress) -> None:
        for line in self.skipped:
            progress.note(f"{self.name}: skipped checkpoint {line}")
        begin = f"continuing from step {self.state.step} of" if self.state.step else "from the start,"
        progress.note(
            f"{self.name}: {begin} {self.total} steps of {self.stage.batch} crops; {len(self.split.train)} tiles to "
            f"train on, {len(self.split.validation)} to validate on; {self.parallel.world_size} x "
            f"{self.parallel.device.type}, {self.precision.name}"
        )

    def _log_step(self, losses: Tensor, lr: float, rate: float) -> None:
        total, agl, direction, scale = (float(value) for value in losses)
        parts = {"loss": total, "agl_loss": agl, "direction_loss": direction, "scale_loss": scale}
        values = {**parts, "lr": lr, "crops_per_second": rate}
        epoch = self.order.epochs_done(self.state.step)
        self.events.write("step", step=self.state.step, epoch=epoch, **values)
        self.scalars.write(self.state.step, values)

    def _check_finite(self, losses: Tensor) -> None:
        """Stop a run that is lost. With scaled gradients single overflows are normal: their steps are skipped."""
        self.overflows = 0 if math.isfinite(float(losses[0])) else self.overflows + 1
        if self.overflows > (MOST_OVERFLOWS if self.precision.scaled else 0):
            raise UserError(
                f"the loss of stage {self.name} is {float(losses[0])} at step {self.state.step}: lower "
                f"stages.{self.name}.optimizer.lr or use --precision float32, and start a new --run"
            )
