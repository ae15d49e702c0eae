"""NVIDIA's apex, where somebody has built it: whether its FusedAdam can be used, and if not, why.

PyPI has another package of this name, a toolkit for web applications; and apex without its CUDA extension can be
imported too, but its FusedAdam cannot be made. So nothing is believed before a step has been taken.
"""

from importlib import import_module
from typing import Any

import torch
from torch import nn

from agl_core.errors import UserError
from agl_core.training.parallel import Parallel

KIND = "cuda"
"""The kind of device that its kernels run on."""

BUILD = (
    "git clone https://github.com/NVIDIA/apex && cd apex && APEX_CPP_EXT=1 APEX_CUDA_EXT=1 "
    "pip install -v --no-build-isolation ."
)
"""How it is built, against the torch that is installed, with the nvcc of the same CUDA."""


def fused_adam() -> Any:
    """The class `apex.optimizers.FusedAdam`.

    Raises:
        ImportError: why it cannot be used; whatever a package of the same name raises is this too.
    """
    try:
        package = import_module("apex")
    except ModuleNotFoundError as error:
        if error.name == "apex":
            raise ImportError("apex is not installed") from error
        raise ImportError(_other(error)) from error
    except Exception as error:
        raise ImportError(_other(error)) from error
    try:
        found = import_module("apex.optimizers").FusedAdam
    except Exception as error:
        raise ImportError(_other(error, str(getattr(package, "__file__", "") or ""))) from error
    try:
        import_module("amp_C")
    except ImportError as error:  # also one that was built for another torch
        raise ImportError(f"apex was built without its CUDA extension amp_C, or for another torch ({error})") from error
    return found


def _other(error: BaseException, place: str = "") -> str:
    where = f" in {place}" if place else ""
    return f"the package apex{where} is not NVIDIA's ({type(error).__name__}: {error}): PyPI's is for web applications"


def missing(device: torch.device) -> str:
    """Why FusedAdam cannot be used on `device`; empty if it can: it has taken a step there."""
    if device.type != KIND:
        return f"apex needs a GPU, and this is a {device.type}"
    try:
        parameter = nn.Parameter(torch.zeros(1, device=device))
        parameter.grad = torch.ones_like(parameter)
        fused_adam()([parameter], lr=1.0).step()
        moved = bool(parameter.detach().cpu() != 0)  # waits for the device, which is late to say what it cannot do
    except ImportError as error:
        return str(error)
    except Exception as error:
        return f"apex's FusedAdam fails on {device} ({type(error).__name__}: {error})".splitlines()[0]
    return "" if moved else f"apex's FusedAdam does nothing on {device}"


def choose(name: str, parallel: Parallel) -> tuple[str, str]:
    """Which optimiser `name` stands for, the same in all processes: adamw, adamw-plain or apex; and why it is not apex,
    if that was to be decided (auto).

    Raises:
        UserError: apex is asked for, and one of the processes cannot use it.
    """
    if name not in ("apex", "auto"):
        return name, ""
    reason = parallel.any_text(missing(parallel.device))
    if reason and name == "apex":
        raise UserError(f"optimizer.name is apex, but {reason}: build it with `{BUILD}`, or give optimizer.name=adamw")
    return ("adamw", reason) if reason else ("apex", "")
