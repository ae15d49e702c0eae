"""One optimiser step: the same optimisation for any number of processes."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from agl_core.config import StageConfig
from agl_core.data.batch import Batch
from agl_core.data.seeding import forward_seed, seed_torch
from agl_core.data.tiles import UNKNOWN
from agl_core.errors import UserError
from agl_core.model.losses import PARTS, GeoposeLoss, Target
from agl_core.model.precision import Precision
from agl_core.training.memory import advice, telling
from agl_core.training.parallel import Parallel
from agl_core.training.state import TrainingState


class Computed(NamedTuple):
    """What one process has computed of a step: its part of the mean losses (`PARTS`), which add up over processes; the
    norm of the gradient of all, the same in every process; and whether they are finite."""

    losses: list[float]
    norm: float
    finite: bool


NOTHING = Computed([0.0] * len(PARTS), 0.0, True)
"""What a process has to say where no step was computed."""


class OptimizerStep:
    """Computes this process's micro-batches of a global batch, and the step that all processes take together.

    The loss of a global batch is the mean over its micro-batches, whoever computes them. Each forward pass draws its
    dropout from a stream keyed by (seed, stage, step, micro-batch).
    """

    def __init__(
        self,
        state: TrainingState,
        stage: StageConfig,
        seed: int,
        number: int,
        precision: Precision,
        parallel: Parallel,
        loss: GeoposeLoss | None = None,
        name: str = "",
    ) -> None:
        """`number` is the position of the stage in its recipe and `name` its name, for what the user is told; `loss` is
        by default the stage's, for which it must not need statistics of the data.

        Raises:
            UserError: the micro-batches cannot be shared among so many processes.
            MemoryShortageError: see `compute`.
        """
        self.state, self.stage, self.precision, self.parallel = state, stage, precision, parallel
        self._loss = (GeoposeLoss(stage.loss) if loss is None else loss).to(parallel.device)
        self._key, self._name = (seed, number), name
        self.micro_batches = stage.batch // stage.micro_batch
        if parallel.world_size > self.micro_batches:
            raise UserError(
                f"there are {self.micro_batches} micro-batches a step (batch {stage.batch}, micro_batch "
                f"{stage.micro_batch}) for {parallel.world_size} processes: use fewer processes or a smaller "
                "micro_batch"
            )
        if stage.sync_batchnorm and self.micro_batches % parallel.world_size:
            # All have to be in the same layer of the same pass, or those who have one more wait for ever.
            raise UserError(
                f"there are {self.micro_batches} micro-batches a step (batch {stage.batch}, micro_batch "
                f"{stage.micro_batch}) for {parallel.world_size} processes, and with sync_batchnorm each must have as "
                "many: use another number of processes, another micro_batch, or sync_batchnorm=false"
            )
        with parallel.exchanging(), telling(self._advice):
            self._model = parallel.wrap(state.model)
            if parallel.world_size > 1:
                self._warm_up()

    def compute(self, batches: Sequence[Batch]) -> Computed:
        """Forward and backward of this process's micro-batches `batches` of the next step.

        Only gradients change, and what is collected for batch norm: until `commit` the state is that after the step
        before, and `forget` takes everything back.

        Raises:
            PeerLostError: another process is gone.
            MemoryShortageError: this process's device has too little memory; the others do not know of it.
        """
        state, parallel = self.state, self.parallel
        state.model.train()
        losses = torch.zeros(len(PARTS), dtype=torch.float64, device=parallel.device)
        mine = range(parallel.rank, self.micro_batches, parallel.world_size)
        with parallel.exchanging(), telling(self._advice):
            for number, batch in zip(mine, batches, strict=True):
                local = number != mine[-1] and parallel.world_size > 1
                with cast(Any, self._model).no_sync() if local else nullcontext():
                    losses += self._micro_batch(batch, number)
        state.statistics.reduce(parallel)
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), self.stage.optimizer.clip or math.inf)
        # The one moment of a step at which the CPU waits for the GPU: whether to take the step is decided on the CPU.
        values = torch.cat([losses, norm.double().reshape(1)]).tolist()
        return Computed(values[:-1], values[-1], math.isfinite(sum(values)))

    def commit(self, lr: float) -> None:
        """Take the step that was computed, with the learning rate `lr`; no other process is waited for.

        Raises:
            MemoryShortageError: no room for the moments, which the first step of a stage begins.
        """
        state = self.state
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        state.statistics.finish_step(self.micro_batches)
        with telling(self._advice):
            state.scaler.step(state.optimizer)
            self._next()
            if state.average is not None:
                state.average.update(state.step)

    def skip(self) -> None:
        """Leave the step that was computed out: only the step's number and the gradient scale move on."""
        self.state.statistics.forget_step()
        self._next()

    def forget(self) -> None:
        """Be in the state after the last step that was taken or skipped, whatever has been computed since."""
        self.state.statistics.forget_step()
        self.state.optimizer.zero_grad()  # to None, as all of them do by themselves: apex's takes no word for it

    def _next(self) -> None:
        self.state.scaler.update()
        self.state.optimizer.zero_grad()
        self.state.step += 1

    def _advice(self, asked: str) -> str:
        parallel = self.parallel
        return advice(self.stage, self._name, self.state.model, parallel.device, parallel.world_size, asked)

    def _warm_up(self) -> None:
        """One forward and backward pass that changes nothing.

        DistributedDataParallel arranges its buckets anew after the first backward pass, and with three or more
        processes another arrangement adds gradients up in another order. The first step after a resume would then
        differ in its last bits from the same step of an undisturbed run. It takes no more memory than a step.
        """
        device, size, count = self.parallel.device, self.stage.crop, min(2, self.stage.micro_batch)
        images = torch.zeros(count, 3, size, size, dtype=torch.uint8, device=device)
        cities, gsd = torch.zeros(count, dtype=torch.int64, device=device), torch.ones(count, device=device)
        self.state.model.train()
        with self.precision.autocast():
            output = self._model(images, cities, gsd)
        (0 * (output.agl.sum() + output.pose.sum())).backward()
        self.state.optimizer.zero_grad()
        self.state.statistics.forget_step()

    def _micro_batch(self, batch: Batch, number: int) -> Tensor:
        """Forward and backward of micro-batch `number`; its part of the losses."""
        seed_torch(forward_seed(*self._key, self.state.step, number))
        batch, target = to_device(batch, self.parallel.device)
        with self.precision.autocast():
            output = self._model(batch.image, batch.city, batch.gsd)
        loss = self._loss(output, target, batch.city)
        # DistributedDataParallel averages over processes: this makes gradients the mean over all micro-batches.
        share = self.parallel.world_size / self.micro_batches
        cast(Any, self.state.scaler.scale(loss.total * share)).backward()
        self.state.statistics.add_forward()
        return torch.stack([part.detach().double() for part in loss]) / self.micro_batches


def to_device(batch: Batch, device: torch.device) -> tuple[Batch, Target]:
    """Move a batch to the device and convert its truth there: uint16 centimetres to float32 metres, 65535 to NaN."""
    batch = Batch(*(part.to(device, non_blocking=True) for part in batch))
    centimetres = batch.agl.to(torch.float32)
    agl = torch.where(centimetres == UNKNOWN, math.nan, centimetres / 100)
    return batch, Target(agl, batch.scale, batch.angle)
