"""AdamW with decay on matrices only, and its state as named tensors."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from agl_core.config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW (fused) over the trainable parameters; weight decay only on those of two or more dimensions.

    The learning rate is set at every step by the trainer (`agl_core.training.schedule`).
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr, fused=True)


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name: `<kind>/<parameter>` with the kinds exp_avg, exp_avg_sq, step."""
    return {
        f"{kind}/{name}": value
        for name, parameter in _trainable(model)
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """Put back what `optimizer_state` gave. The moments take the memory layout of their parameter, as fresh ones
    would, so that the same kernels run on them."""
    optimizer.state.clear()
    kinds: dict[str, list[str]] = {}
    for key in state:
        kind, name = key.split("/", 1)
        kinds.setdefault(name, []).append(kind)
    for name, parameter in _trainable(model):
        for kind in sorted(kinds.get(name, [])):
            value = state[f"{kind}/{name}"]
            if value.shape == parameter.shape and kind != "step":
                own = torch.empty_like(parameter, memory_format=torch.preserve_format, requires_grad=False)
                value = own.copy_(value)
            else:
                value = value.to(parameter.device)
            optimizer.state[parameter][kind] = value


def _trainable(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter
