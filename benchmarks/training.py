"""One optimiser step on one CPU thread: `OptimizerStep` against a bare PyTorch loop; the ratio is the overhead.

Both train the same network from the same weights on the same micro-batches, made beforehand, with the same loss,
gradient clipping and fused AdamW. The bare loop (the baseline) gets heights in metres and knows nothing of seeds,
precision, processes or statistics over micro-batches; what `OptimizerStep` does for these, and the conversion of
uint16 centimetres, is what the ratio shows. Dropout and weight decay are off, so that both compute the same numbers.
"""

import copy
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

if not __package__:  # run as a file: Python then looks for modules in this folder, not in the one above
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agl_core.config import ModelConfig, OptimizerConfig, StageConfig
from agl_core.data.batch import Batch
from agl_core.data.tiles import UNKNOWN
from agl_core.durable.chain import ChainLog
from agl_core.model.losses import Target, geopose_loss
from agl_core.model.network import GeoposeNet
from agl_core.model.precision import Precision
from agl_core.training.agreement import agree, samples_digest
from agl_core.training.batchnorm import RunningStatistics
from agl_core.training.optimizer import build_optimizer
from agl_core.training.parallel import Parallel
from agl_core.training.state import TrainingState
from agl_core.training.step import OptimizerStep
from benchmarks.harness import Contender, arguments, compare, report

CITIES = ("AAA", "BBB")
STEPS_OF_DATA = 2


@dataclass(frozen=True)
class Case:
    """What is trained: `batch` crops of `crop` x `crop` pixels a step, in forward passes of `micro_batch`."""

    encoder: str
    crop: int
    batch: int
    micro_batch: int
    rounds: int

    def stage(self) -> StageConfig:
        """The settings that both loops follow."""
        optimizer = OptimizerConfig(weight_decay=0.0)
        return StageConfig(crop=self.crop, batch=self.batch, micro_batch=self.micro_batch, optimizer=optimizer)


QUICK = Case("tu-resnet10t", crop=64, batch=4, micro_batch=2, rounds=4)
FULL = Case("resnet18", crop=256, batch=8, micro_batch=4, rounds=12)


def synthetic_batches(case: Case) -> list[Batch]:
    """The micro-batches of a few steps."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for number in range(STEPS_OF_DATA * case.batch // case.micro_batch):
        count, side = case.micro_batch, case.crop
        image = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
        agl = torch.randint(0, 3000, (count, side, side), dtype=torch.int32, generator=generator)
        agl[:, :4] = UNKNOWN
        scale, angle, gsd = (torch.rand(3, count, generator=generator) + 0.5).unbind()
        city = torch.arange(count) % len(CITIES)
        keys = torch.full((count,), number)
        batches.append(Batch(image, agl.to(torch.uint16), scale, angle, gsd, city, keys, keys))
    return batches


def bare_loop(model: GeoposeNet, batches: Sequence[Batch], stage: StageConfig) -> Contender:
    """The loop that one would write without this project; each call is one step."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=stage.optimizer.lr, weight_decay=0.0, fused=True)
    ready = []
    for batch in batches:
        heights = batch.agl.to(torch.float32)
        agl = torch.where(heights == UNKNOWN, math.nan, heights / 100)
        ready.append((batch.image, batch.city, batch.gsd, Target(agl, batch.scale, batch.angle)))
    loader = itertools.cycle(ready)
    micro_batches = stage.batch // stage.micro_batch

    def step() -> None:
        model.train()
        for _ in range(micro_batches):
            image, city, gsd, target = next(loader)
            loss = geopose_loss(model(image, city, gsd), target, stage.loss).total / micro_batches
            cast(Any, loss).backward()
        nn.utils.clip_grad_norm_(parameters, stage.optimizer.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def project_step(model: GeoposeNet, batches: Sequence[Batch], stage: StageConfig) -> Contender:
    """The trainer's step in one process, on the CPU even where there is a GPU: with its agreement and its chain."""
    parallel = Parallel()
    parallel.device = torch.device("cpu")
    precision = Precision.choose("float32", parallel.device)
    scaler = torch.amp.GradScaler("cpu", enabled=precision.scaled)
    state = TrainingState(model, build_optimizer(model, stage.optimizer), scaler, RunningStatistics(model))
    optimizer_step = OptimizerStep(state, stage, seed=0, number=0, precision=precision, parallel=parallel)
    loader: Iterator[Batch] = itertools.cycle(batches)
    numbers, chain = range(optimizer_step.micro_batches), ChainLog(None)

    def step() -> None:
        taken = [next(loader) for _ in numbers]
        computed = optimizer_step.compute(taken)
        verdict = agree(parallel, computed, samples_digest(numbers, taken), 0, math.inf, False)
        chain.step(state.step + 1, verdict.samples, verdict.losses)
        optimizer_step.commit(stage.optimizer.lr)

    return step


def networks(case: Case) -> tuple[GeoposeNet, GeoposeNet]:
    """Two networks of the same random weights, in the memory layout of training."""
    torch.manual_seed(0)
    model = GeoposeNet(case.encoder, CITIES, ModelConfig(pose_dropout=0.0))
    cast(Any, model).to(memory_format=torch.channels_last)
    return model, copy.deepcopy(model)


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments("One optimiser step: OptimizerStep against a bare PyTorch loop, on one CPU thread.", argv)
    case = QUICK if options.quick else FULL
    torch.set_num_threads(1)
    batches, (bare, own) = synthetic_batches(case), networks(case)
    contenders = {
        "bare loop": bare_loop(bare, batches, case.stage()),
        "OptimizerStep": project_step(own, batches, case.stage()),
    }
    comparison = compare(contenders, case.rounds, baseline="bare loop")
    title = (
        f"one optimiser step of {case.encoder}, {case.batch} crops of {case.crop} x {case.crop} "
        f"in micro-batches of {case.micro_batch}, {case.rounds} rounds"
    )
    report(comparison, title, {**vars(case), "threads": 1}, options)
    median, lowest, highest = comparison.spread("OptimizerStep")
    print(f"overhead of OptimizerStep: {median - 1:+.1%} (rounds from {lowest - 1:+.1%} to {highest - 1:+.1%})")


if __name__ == "__main__":
    main()
