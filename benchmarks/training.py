"""Training on one CPU thread: the trainer with everything on against a bare PyTorch loop; the ratio is its overhead.

Both train the same network from the same weights on the same samples in the same order, with the same loss, gradient
clipping and fused AdamW, and their losses are compared in the end. The trainer is `train_stage` itself, stepped from
outside: it reads its crops from a store by one data loading process, agrees on every step, keeps the digest chain,
writes events and TensorBoard at every step, renews its lease, and writes a checkpoint in every round, which is far more
often than any recipe does. The bare loop (the baseline) finds its batches in memory, heights in metres, and saves and
writes nothing. Both once more with a moving average of the weights: in the bare loop that of `torch.optim.swa_utils`.

Validation is left out, which a bare loop without it does not do either. Dropout and weight decay are off, so that both
compute the same numbers.
"""

import io
import itertools
import math
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

if not __package__:  # run as a file: Python then looks for modules in this folder, not in the one above
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agl_core.config import CheckpointConfig, ModelConfig, OptimizerConfig, ScheduleConfig, StageConfig, TrainConfig
from agl_core.data.batch import Batch
from agl_core.data.dataset import CropDataset
from agl_core.data.dataset import batches as read_batches
from agl_core.data.order import Order
from agl_core.data.seeding import initial_seed, seed_torch
from agl_core.data.store import Store, StoreEntry, StoreWriter
from agl_core.data.tiles import UNKNOWN
from agl_core.model.losses import GeoposeLoss, Target
from agl_core.model.network import GeoposeNet
from agl_core.training.parallel import Parallel
from agl_core.training.trainer import StepReport, train_stage
from benchmarks.harness import Comparison, Contender, Table, arguments, at_most, compare, report

STAGE = "train"
CITIES = ("AAA", "BBB")
DECAY = 0.999
MOST = 3.0  # per cent that the trainer may cost
BARE, OWN, BARE_EMA, OWN_EMA = "bare loop", "train_stage", "bare loop, average", "train_stage, average"


@dataclass(frozen=True)
class Case:
    """What is trained: `batch` crops of `crop` x `crop` pixels a step, in forward passes of `micro_batch`, `steps`
    steps in each round."""

    encoder: str
    crop: int
    batch: int
    micro_batch: int
    steps: int
    rounds: int
    tiles: int

    def config(self, store: Path, ema: float = 0.0) -> TrainConfig:
        """The settings that both loops follow."""
        stage = StageConfig(
            length="1000000 steps",
            crop=self.crop,
            batch=self.batch,
            micro_batch=self.micro_batch,
            optimizer=OptimizerConfig(weight_decay=0.0),
            schedule=ScheduleConfig(name="constant"),
            ema=ema,
        )
        return TrainConfig(
            store=str(store),
            encoder=self.encoder,
            encoder_weights="none",
            fold=-1,
            precision="float32",
            workers=1,
            threads=1,
            log_every=1,
            model=ModelConfig(pose_dropout=0.0),
            checkpoint=CheckpointConfig(every=f"{self.steps} steps", interval="never"),
            stages={STAGE: stage},
        )


QUICK = Case("tu-resnet10t", crop=64, batch=4, micro_batch=2, steps=2, rounds=3, tiles=8)
FULL = Case("resnet18", crop=256, batch=8, micro_batch=4, steps=2, rounds=9, tiles=32)


def write_store(folder: Path, tiles: int, side: int, codec: str = "zstd") -> Path:
    """A store of `tiles` tiles of noise of `side` x `side` pixels in two cities."""
    generator = np.random.default_rng(0)
    with StoreWriter(folder, codec) as writer:
        for number in range(tiles):
            agl = generator.integers(0, 3000, (side, side)).astype(np.uint16)
            agl[:4] = UNKNOWN
            rgb = generator.integers(0, 255, (side, side, 3)).astype(np.uint8)
            city, scale, angle = CITIES[number % 2], 0.5 + generator.random(), 6 * generator.random()
            writer.write(StoreEntry(f"{city}_{number:03d}", city, 0.5, side, side, scale, angle), rgb, agl)
        writer.seal()
    return folder


class BareLoop:
    """The loop that one would write without this project; each call is `steps` steps on the next of `batches`."""

    def __init__(self, config: TrainConfig, cities: Sequence[str], batches: Iterator[Batch], steps: int) -> None:
        self.stage, self.steps, self.losses = config.stages[STAGE], steps, list[float]()
        seed_torch(initial_seed(config.seed, 0))
        self.model = GeoposeNet(config.encoder, cities, config.model)
        cast(Any, self.model).to(memory_format=torch.channels_last)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=self.stage.optimizer.lr, weight_decay=0.0, fused=True)
        self.loss = GeoposeLoss(self.stage.loss)
        self.average: AveragedModel | None = None
        if self.stage.ema:
            averaging = cast(Any, get_ema_multi_avg_fn)(self.stage.ema)
            self.average = AveragedModel(self.model, multi_avg_fn=averaging)
        self.loader = ((batch.image, batch.city, batch.gsd, in_metres(batch)) for batch in batches)

    def __call__(self) -> None:
        for _ in range(self.steps):
            self.step()

    def step(self) -> None:
        """One optimiser step."""
        micro_batches = self.stage.batch // self.stage.micro_batch
        self.model.train()
        total = torch.zeros(())
        for _ in range(micro_batches):
            image, city, gsd, target = next(self.loader)
            loss = self.loss(self.model(image, city, gsd), target, city).total / micro_batches
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(self.parameters, self.stage.optimizer.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.losses.append(float(total))


def in_metres(batch: Batch) -> Target:
    """The truth of a batch as one would keep it: float32 metres, NaN where unknown."""
    heights = batch.agl.to(torch.float32)
    return Target(torch.where(heights == UNKNOWN, math.nan, heights / 100), batch.scale, batch.angle)


class StopError(Exception):
    """Ends the trainer from outside."""


class Trainer:
    """`train_stage` in a thread of its own, which goes on only while it is called: each call is `steps` steps, with all
    that lies between two of them. As a context manager it does the first step, and in the end it ends the training."""

    def __init__(self, config: TrainConfig, run_dir: Path, steps: int, device: str = "cpu") -> None:
        self.losses: list[float] = []
        self._config, self._run_dir, self._steps, self._device = config, run_dir, steps, device
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._stopped, self._error = False, cast(BaseException | None, None)
        self._thread = threading.Thread(target=self._run, name="trainer", daemon=True)

    def __enter__(self) -> "Trainer":
        with redirect_stderr(io.StringIO()):  # two bars in one terminal would disturb each other
            self._thread.start()
            self._wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._go.release(self._steps + 1)
        self._thread.join()

    def __call__(self) -> None:
        for _ in range(self._steps):
            self._go.release()
            self._wait()

    def _wait(self) -> None:
        self._done.acquire()
        if self._error is not None:
            raise self._error

    def _pause(self) -> None:
        """Tell that a step is done, and go on when the next one is asked for."""
        self._done.release()
        self._go.acquire()
        if self._stopped:
            raise StopError

    def _observe(self, step: StepReport) -> None:
        self.losses.append(float(step.losses[0]))
        self._pause()

    def _run(self) -> None:
        try:
            parallel = Parallel()
            parallel.device = torch.device(self._device)
            with parallel:
                train_stage(self._config, STAGE, self._run_dir, parallel, self._observe)
        except StopError:
            pass
        except BaseException as error:
            self._error = error
            self._done.release()


def the_same_batches(config: TrainConfig, steps: int) -> list[Batch]:
    """All micro-batches of the first `steps` steps, as the trainer will take them."""
    stage = config.stages[STAGE]
    store = Store(Path(config.store))
    tiles = range(len(store.entries))
    dataset = CropDataset(store, tiles, stage, config.seed, 0)
    order = Order(config.seed, 0, len(tiles), stage.batch)
    count = steps * (stage.batch // stage.micro_batch)
    found = list(itertools.islice(read_batches(dataset, order, 0, steps), count))
    store.close()
    return found


def overhead(comparison: Comparison, own: str, bare: str) -> float:
    """Median over the rounds of how much longer `own` takes than `bare`, in per cent."""
    seconds = comparison.seconds
    return 100 * (median(one / other for one, other in zip(seconds[own], seconds[bare], strict=True)) - 1)


def difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest relative difference of two courses of losses."""
    return max(abs(one - other) / abs(other) for one, other in zip(ours, theirs, strict=True))


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(
        "Training: the trainer with everything on against a bare PyTorch loop, on one CPU thread.", argv
    )
    case = QUICK if options.quick else FULL
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="training-") as name, ExitStack() as stack:
        folder = Path(name)
        store = write_store(folder / "store", case.tiles, case.crop + case.crop // 2)
        configs = {BARE: case.config(store), BARE_EMA: case.config(store, DECAY)}
        batches = the_same_batches(configs[BARE], 1 + case.steps * (case.rounds + 1))
        bare = {name: BareLoop(config, CITIES, iter(batches), case.steps) for name, config in configs.items()}
        for loop in bare.values():
            loop.step()  # as the trainers do
        own = {
            one: stack.enter_context(Trainer(replace(configs[other]), folder / f"run {number}", case.steps))
            for number, (one, other) in enumerate(((OWN, BARE), (OWN_EMA, BARE_EMA)))
        }
        contenders: dict[str, Contender] = {
            BARE: bare[BARE],
            OWN: own[OWN],
            BARE_EMA: bare[BARE_EMA],
            OWN_EMA: own[OWN_EMA],
        }
        comparison = compare(contenders, case.rounds, baseline=BARE)
    pairs = ((OWN, BARE), (OWN_EMA, BARE_EMA))
    rows = [[one, f"{len(own[one].losses)}", f"{difference(own[one].losses, bare[other].losses):.1e}"]
            for one, other in pairs]  # fmt: skip
    same = Table("both compute the same", ["trainer", "steps", "largest relative difference of the losses"], rows)
    promises = [
        at_most(f"overhead of {one} over {other}", overhead(comparison, one, other), MOST, "%") for one, other in pairs
    ]
    title = (
        f"{case.steps} optimiser steps of {case.encoder}, {case.batch} crops of {case.crop} x {case.crop} "
        f"in micro-batches of {case.micro_batch}, {case.rounds} rounds"
    )
    report(comparison, title, {**vars(case), "threads": 1, "workers": 1}, options, [same], promises)


if __name__ == "__main__":
    main()
