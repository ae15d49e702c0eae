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
from agl_core.model.losses import Target, geopose_loss
from agl_core.model.precision import Precision
from agl_core.training.parallel import Parallel
from agl_core.training.state import TrainingState


class Computed(NamedTuple):
    """What one process has computed of a step: its part of the mean losses (total, AGL, direction, scale), which add up
    over processes; the norm of the gradient of all, the same in every process; and whether they are finite."""

    losses: list[float]
    norm: float
    finite: bool


NOTHING = Computed([0.0] * 4, 0.0, True)
"""What a process has to say where no step was computed."""


class OptimizerStep:
    """Computes this process's micro-batches of a global batch, and the step that all processes take together.

    The loss of a global batch is the mean over its micro-batches, whoever computes them. Each forward pass draws its
    dropout from a stream keyed by (seed, stage, step, micro-batch).
    """

    def __init__(
        self, state: TrainingState, stage: StageConfig, seed: int, number: int, precision: Precision, parallel: Parallel
    ) -> None:
        """`number` is the position of the stage in its recipe."""
        self.state, self.stage, self.precision, self.parallel = state, stage, precision, parallel
        self._key = (seed, number)
        self.micro_batches = stage.batch // stage.micro_batch
        if parallel.world_size > self.micro_batches:
            raise UserError(
                f"there are {self.micro_batches} micro-batches a step (batch {stage.batch}, micro_batch "
                f"{stage.micro_batch}) for {parallel.world_size} processes: use fewer processes or a smaller "
                "micro_batch"
            )
        with parallel.exchanging():
            self._model = parallel.wrap(state.model)
            if parallel.world_size > 1:
                self._warm_up()

    def compute(self, batches: Sequence[Batch]) -> Computed:
        """Forward and backward of this process's micro-batches `batches` of the next step.

        Only gradients change, and what is collected for batch norm: until `commit` the state is that after the step
        before, and `forget` takes everything back.

        Raises:
            PeerLostError: another process is gone.
        """
        state, parallel = self.state, self.parallel
        state.model.train()
        losses = torch.zeros(4, dtype=torch.float64, device=parallel.device)
        mine = range(parallel.rank, self.micro_batches, parallel.world_size)
        with parallel.exchanging():
            for number, batch in zip(mine, batches, strict=True):
                local = number != mine[-1] and parallel.world_size > 1
                with cast(Any, self._model).no_sync() if local else nullcontext():
                    losses += self._micro_batch(batch, number)
        state.statistics.reduce(parallel)
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), self.stage.optimizer.clip or math.inf)
        # The one moment of a step at which the CPU waits for the GPU: whether to take the step is decided on the CPU.
        values = torch.cat([losses, norm.double().reshape(1)]).tolist()
        return Computed(values[:4], values[4], math.isfinite(sum(values)))

    def commit(self, lr: float) -> None:
        """Take the step that was computed, with the learning rate `lr`; no other process is waited for."""
        state = self.state
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        state.statistics.finish_step(self.micro_batches)
        state.scaler.step(state.optimizer)
        self._next()

    def skip(self) -> None:
        """Leave the step that was computed out: only the step's number and the gradient scale move on."""
        self.state.statistics.forget_step()
        self._next()

    def forget(self) -> None:
        """Be in the state after the last step that was taken or skipped, whatever has been computed since."""
        self.state.statistics.forget_step()
        self.state.optimizer.zero_grad(set_to_none=True)

    def _next(self) -> None:
        self.state.scaler.update()
        self.state.optimizer.zero_grad(set_to_none=True)
        self.state.step += 1

    def _warm_up(self) -> None:
        """One forward and backward pass that changes nothing.

        DistributedDataParallel arranges its buckets anew after the first backward pass, and with three or more
        processes another arrangement adds gradients up in another order. The first step after a resume would then
        differ in its last bits from the same step of an undisturbed run.
        """
        device, size = self.parallel.device, self.stage.crop
        images = torch.zeros(2, 3, size, size, dtype=torch.uint8, device=device)
        self.state.model.train()
        output = self._model(images, torch.zeros(2, dtype=torch.int64, device=device), torch.ones(2, device=device))
        (0 * (output.agl.sum() + output.pose.sum())).backward()
        self.state.optimizer.zero_grad(set_to_none=True)
        self.state.statistics.forget_step()

    def _micro_batch(self, batch: Batch, number: int) -> Tensor:
        """Forward and backward of micro-batch `number`; its part of the losses."""
        seed_torch(forward_seed(*self._key, self.state.step, number))
        batch, target = to_device(batch, self.parallel.device)
        with self.precision.autocast():
            output = self._model(batch.image, batch.city, batch.gsd)
        loss = geopose_loss(output, target, self.stage.loss)
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
