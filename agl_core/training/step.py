"""One optimiser step: the same optimisation for any number of processes."""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from agl_core.config import StageConfig
from agl_core.data.dataset import Batch
from agl_core.data.seeding import forward_seed, seed_torch
from agl_core.data.tiles import UNKNOWN
from agl_core.errors import UserError
from agl_core.model.losses import Target, geopose_loss
from agl_core.model.precision import Precision
from agl_core.training.parallel import Parallel
from agl_core.training.state import TrainingState


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
        self._model = parallel.wrap(state.model)
        if parallel.world_size > 1:
            self._warm_up()

    def __call__(self, loader: Iterator[Batch], lr: float) -> Tensor:
        """Take the next micro-batches from `loader` and step with the learning rate `lr`.

        Returns (4,) float64 on the device: this process's part of the mean losses (total, AGL, direction, scale);
        added up over processes they are the losses of the global batch.
        """
        state, parallel = self.state, self.parallel
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        state.model.train()
        losses = torch.zeros(4, dtype=torch.float64, device=parallel.device)
        mine = range(parallel.rank, self.micro_batches, parallel.world_size)
        for number in mine:
            local = number != mine[-1] and parallel.world_size > 1
            with cast(Any, self._model).no_sync() if local else nullcontext():
                losses += self._micro_batch(next(loader), number)
        state.statistics.finish_step(self.micro_batches, parallel)
        if self.stage.optimizer.clip > 0:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(state.model.parameters(), self.stage.optimizer.clip)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        return losses

    def _warm_up(self) -> None:
        """One forward and backward pass that changes nothing.

        DistributedDataParallel arranges its buckets anew after the first backward pass, and with three or more
        processes another arrangement adds gradients up in another order. The first step after a resume would then
        differ in its last bits from the same step of an undisturbed run.
        """
        device, size = self.parallel.device, self.stage.crop
        images = torch.zeros(2, 3, size, size, dtype=torch.uint8, device=device)
        self.state.model.train()
        for _ in range(2):  # the new arrangement is made at the second forward pass
            output = self._model(images, torch.zeros(2, dtype=torch.int64, device=device), torch.ones(2, device=device))
            (0 * (output.agl.sum() + output.pose.sum())).backward()
        self.state.optimizer.zero_grad(set_to_none=True)
        self.state.statistics.forget_forward()

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
