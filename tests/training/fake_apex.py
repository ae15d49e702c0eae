"""A package like NVIDIA's apex, on the CPU, for tests of what this project does with the real one."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from agl_core.training import apex


class FusedAdam(torch.optim.Optimizer):
    """Counts the steps of a group in the group, and its `zero_grad` takes no arguments, as the real one."""

    def __init__(self, params: Any, lr: float = 1e-3, adam_w_mode: bool = True, weight_decay: float = 0.0) -> None:
        assert adam_w_mode
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": weight_decay})

    def zero_grad(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            (first, second), step = group["betas"], group["step"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if len(state) == 0:
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                assert state.keys() == {"exp_avg", "exp_avg_sq"}
                mean = state["exp_avg"].lerp_(parameter.grad, 1 - first) / (1 - first**step)
                square = state["exp_avg_sq"].mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
                update = mean / ((square / (1 - second**step)).sqrt() + group["eps"])
                parameter -= group["lr"] * (update + group["weight_decay"] * parameter)


def install(patch: pytest.MonkeyPatch, fused_adam: Any = FusedAdam, extension: bool = True) -> None:
    """From now on there is an apex, for the CPU; `extension`: with what it needs beside Python."""
    package, optimizers = ModuleType("apex"), ModuleType("apex.optimizers")
    optimizers.FusedAdam = fused_adam  # type: ignore[attr-defined]
    package.optimizers = optimizers  # type: ignore[attr-defined]
    patch.setattr(apex, "KIND", "cpu")
    patch.setitem(sys.modules, "apex", package)
    patch.setitem(sys.modules, "apex.optimizers", optimizers)
    patch.setitem(sys.modules, "amp_C", ModuleType("amp_C") if extension else None)  # type: ignore[arg-type]
