"""Batch-norm running statistics that do not depend on how micro-batches are spread over processes.

PyTorch moves the running statistics once per forward pass, in each process by itself, so after a step they depend on
which process computed which micro-batch. Here one optimiser step is one move: the statistics of all micro-batches of
the global batch are averaged, over processes too, and the running ones move towards that average by the layer's
momentum.

While a step is being computed each layer runs with momentum 1, so that its buffers simply hold the statistics of the
last forward pass (also when gradient checkpointing runs a forward pass twice). All buffers are views of one flat
tensor, so that adding, reducing and moving are single operations.
"""

import agl_core.model  # isort: skip  # noqa: F401  # before timm: it repairs torchvision

from typing import Any

import timm.layers
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from agl_core.errors import UserError
from agl_core.training.parallel import Parallel

DEFAULT_MOMENTUM = 0.1


def synchronised(model: nn.Module, parallel: Parallel, stage: str) -> nn.Module:
    """`model` with batch norms that normalise over the micro-batches that all processes compute at the same time; its
    parameters and buffers, and their names, stay the same. With one process there is nothing to be changed.

    Raises:
        UserError: this is no GPU, which torch's SyncBatchNorm needs.
    """
    if parallel.device.type != "cuda":
        raise UserError(
            f"stages.{stage}.sync_batchnorm is true, which needs GPUs, and this is a {parallel.device.type}: give "
            f"stages.{stage}.sync_batchnorm=false, or a --cluster with GPUs"
        )
    return convert_batchnorm(model) if parallel.world_size > 1 else model


def convert_batchnorm(model: nn.Module) -> nn.Module:
    """`model` with every batch norm replaced by a `SyncBatchNorm` with the same tensors. torch's own function for it
    would lose the activations that are part of timm's layers."""
    convert: Any = timm.layers.convert_sync_batchnorm  # type: ignore[attr-defined]
    converted: nn.Module = convert(model)
    return converted


class RunningStatistics:
    """Owns the running mean and variance of every batch norm of `model`."""

    def __init__(self, model: nn.Module) -> None:
        named = [
            (name, layer)
            for name, layer in model.named_modules()
            if isinstance(layer, _BatchNorm) and layer.track_running_stats
        ]
        layers = [layer for _, layer in named]
        buffers: list[Tensor] = []
        momenta: list[float] = []
        for layer in layers:
            momentum = DEFAULT_MOMENTUM if layer.momentum is None else layer.momentum
            for buffer in (layer.running_mean, layer.running_var):
                assert buffer is not None
                buffers.append(buffer)
                momenta.append(momentum)
            layer.momentum = 1.0
        device = buffers[0].device if buffers else torch.device("cpu")
        sizes = [buffer.numel() for buffer in buffers]
        self._flat = torch.cat([buffer.detach().flatten() for buffer in buffers]) if buffers else torch.zeros(0)
        self._momentum = torch.repeat_interleave(
            torch.tensor(momenta, dtype=torch.float32), torch.tensor(sizes, dtype=torch.int64)
        ).to(device)
        self._counts = torch.zeros(len(layers), dtype=torch.int64, device=device)
        views = iter(torch.split(self._flat, sizes) if buffers else ())
        for number, layer in enumerate(layers):
            assert layer.num_batches_tracked is not None
            self._counts[number] = layer.num_batches_tracked
            layer.running_mean, layer.running_var = next(views), next(views)
            layer.num_batches_tracked = self._counts[number]
        self._running = self._flat.clone()
        self._running_counts = self._counts.clone()
        running = iter(torch.split(self._running, sizes) if buffers else ())
        self._finished: dict[str, Tensor] = {}
        for number, (name, _) in enumerate(named):
            prefix = f"{name}." if name else ""
            self._finished[f"{prefix}running_mean"], self._finished[f"{prefix}running_var"] = (
                next(running), next(running),
            )  # fmt: skip
            self._finished[f"{prefix}num_batches_tracked"] = self._running_counts[number]
        self._sum = torch.zeros_like(self._flat)

    def finished(self) -> dict[str, Tensor]:
        """The statistics after the last finished step, by the names that they have in the model's state, whatever a
        forward pass is writing into the model's buffers meanwhile."""
        return dict(self._finished)

    def reload(self) -> None:
        """Take over what has just been loaded into the model's buffers."""
        self._running.copy_(self._flat)
        self._running_counts.copy_(self._counts)

    def add_forward(self) -> None:
        """Count the statistics of the forward pass that has just been done."""
        self._sum += self._flat

    def forget_step(self) -> None:
        """Put the running statistics of the last finished step back, as if nothing had been computed since."""
        self._flat.copy_(self._running)
        self._counts.copy_(self._running_counts)
        self._sum.zero_()

    def reduce(self, parallel: Parallel) -> None:
        """Add up what the processes have counted; the running statistics stay as they are."""
        if self._sum.numel():  # without batch norm it is empty, on the CPU, and GPUs do not exchange such
            parallel.sum(self._sum)

    def finish_step(self, micro_batches: int) -> None:
        """Move the running statistics by one step of `micro_batches` forward passes over all processes, and leave
        them in the model's buffers."""
        self._running.lerp_(self._sum / micro_batches, self._momentum)
        self._running_counts += 1
        self.forget_step()
