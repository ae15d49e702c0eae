"""AdamW with decay on matrices only, and its state as named tensors, the same for each of its implementations."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from agl_core.config import OptimizerConfig
from agl_core.training.apex import fused_adam


def build_optimizer(model: nn.Module, config: OptimizerConfig, name: str = "") -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; weight decay only on those of two or more dimensions.

    name: adamw (fused), adamw-plain or apex (see `agl_core.training.apex.choose`); by default what `config` says, which
    must be one of these. The learning rate is set at every step by the trainer (`agl_core.training.schedule`).
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups, name = [group for group in groups if group["params"]], name or config.name
    if name == "apex":
        made: torch.optim.Optimizer = fused_adam()(groups, lr=config.lr, adam_w_mode=True)
        return made
    if name not in ("adamw", "adamw-plain"):
        raise ValueError(f"there is no optimiser {name}")
    # Not fused=False, which would also refuse the kernels over all parameters that torch's plain one has for GPUs.
    return torch.optim.AdamW(groups, lr=config.lr, fused=True if name == "adamw" else None)


def optimizer_name(optimizer: torch.optim.Optimizer) -> str:
    """Which one it is, by the name that it has in a configuration."""
    if not isinstance(optimizer, torch.optim.AdamW):
        return "apex"
    return "adamw" if optimizer.defaults["fused"] else "adamw-plain"


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name: `<kind>/<parameter>` with the kinds exp_avg, exp_avg_sq, step.

    Where the number of steps is kept for each group of parameters, as in apex, it is given for each parameter
    nevertheless: a run may go on with another implementation.
    """
    steps = _steps_of_groups(optimizer)
    named: dict[str, Tensor] = {}
    for name, parameter in _trainable(model):
        kinds = dict(optimizer.state.get(parameter, {}))
        if kinds and parameter in steps:
            kinds = {"step": torch.tensor(float(steps[parameter])), **kinds}
        named |= {f"{kind}/{name}": value for kind, value in kinds.items()}
    return named


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """Put back what `optimizer_state` gave, of this implementation or of another; an empty `state` makes it as new.

    The moments take the memory layout of their parameter, as fresh ones would, so that the same kernels run on them.
    """
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group.pop("step", None)
    kinds: dict[str, list[str]] = {}
    for key in state:
        kind, name = key.split("/", 1)
        kinds.setdefault(name, []).append(kind)
    plain = optimizer_name(optimizer) == "adamw-plain"
    for name, parameter in _trainable(model):
        for kind in sorted(kinds.get(name, [])):
            value = state[f"{kind}/{name}"]
            if value.shape == parameter.shape and kind != "step":
                own = torch.empty_like(parameter, memory_format=torch.preserve_format, requires_grad=False)
                value = own.copy_(value)
            else:  # the plain one counts its steps on the CPU
                value = value.to("cpu" if plain else parameter.device)
            optimizer.state[parameter][kind] = value
    if optimizer_name(optimizer) == "apex":
        _hand_to_groups(optimizer)


def _steps_of_groups(optimizer: torch.optim.Optimizer) -> dict[Tensor, int]:
    """The number of steps by parameter, where it is kept in their group."""
    return {
        parameter: int(group["step"])
        for group in optimizer.param_groups
        if "step" in group
        for parameter in group["params"]
    }


def _hand_to_groups(optimizer: torch.optim.Optimizer) -> None:
    """Move the number of steps from the parameters to their groups; it is that of the parameter that has most, all of
    them having taken every step."""
    for group in optimizer.param_groups:
        states = [optimizer.state[parameter] for parameter in group["params"] if parameter in optimizer.state]
        steps = [int(state.pop("step")) for state in states if "step" in state]
        if steps:
            group["step"] = max(steps)


def _trainable(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter
