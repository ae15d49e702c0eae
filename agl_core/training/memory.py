"""When the memory of a device does not suffice: what to lower, and by how much."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from agl_core.config import StageConfig
from agl_core.errors import UserError
from agl_core.inference.memory import is_shortage

STRIDE = 32  # the side of a crop is a multiple of it
SMALLER = 0.75  # of the side of a crop: a little more than half of the memory


class MemoryShortageError(UserError):
    """The device has too little memory for a step. Raised by one process for itself: the others wait for it in the
    exchange of gradients, and it must tell them (`Parallel.fail`). The state after the last step is as it was."""


@contextmanager
def telling(advice: Callable[[str], str]) -> Iterator[None]:
    """Turn an error of the block that says that memory could not be had into a `MemoryShortageError` with the text
    `advice(what was asked for)`, "2.00 GiB" or empty where that is not said."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        raise MemoryShortageError(advice(_asked(str(error)))) from error


def _asked(text: str) -> str:
    """How much memory torch says that it has tried to get."""
    found = re.search(r"tried to allocate ([\d.]+) ?([A-Za-z]+)", text, re.IGNORECASE)
    if found is None:
        return ""
    return f"{float(found[1]) / 2**30:.2f} GiB" if found[2] == "bytes" else f"{found[1]} {found[2]}"


def advice(stage: StageConfig, name: str, model: nn.Module, device: torch.device, processes: int, asked: str) -> str:
    """One sentence: what was too much for what, what lets the run go on, and what makes a new one of it.

    name: of the stage; asked: what could not be had on top of what was taken. Micro-batch and crop are part of a run's
    identity, gradient checkpointing and the machine are not.
    """
    key = f"stages.{name}." if name else ""
    further = f", and {asked} more could not be had" if asked else ""
    go_on = [f"use {'GPUs' if device.type == 'cuda' else 'machines'} with more memory"]
    if getattr(model, "has_gradient_checkpointing", False) and not getattr(model, "gradient_checkpointing", False):
        go_on.insert(0, "give the same command with gradient_checkpointing=true (about a third slower)")
    anew = []
    if (fewer := smaller_micro_batch(stage, processes)) is not None:
        anew.append(f"{key}micro_batch={fewer} (it is {stage.micro_batch}; the batch stays {stage.batch})")
    if (crop := smaller_crop(stage)) is not None:
        anew.append(f"{key}crop={crop} (it is {stage.crop})")
    begin = f", or start a new --run with {' or with '.join(anew)}" if anew else ""
    return (
        f"{_place(device)} has too little memory for micro-batches of {stage.micro_batch} crops of {stage.crop} x "
        f"{stage.crop} pixels{further}: to go on with this run {' or '.join(go_on)}{begin}"
    )


def smaller_micro_batch(stage: StageConfig, processes: int = 1) -> int | None:
    """The next smaller divisor of the batch that the stage may have as its micro-batch; None if there is none."""
    for size in range(stage.micro_batch - 1, 0, -1):
        even = not stage.sync_batchnorm or stage.batch // size % processes == 0
        if stage.batch % size == 0 and even and _normalisable(size, stage.crop):
            return size
    return None


def smaller_crop(stage: StageConfig) -> int | None:
    """The side of a crop of a little more than half the pixels; None if the stage may not have one so small."""
    side = int(SMALLER * stage.crop) // STRIDE * STRIDE
    return side if side > 0 and _normalisable(stage.micro_batch, side) else None


def _normalisable(micro_batch: int, crop: int) -> bool:
    """Batch norm needs more than one value per channel, also at the coarsest features."""
    return micro_batch * (crop // STRIDE) ** 2 >= 2


def _place(device: torch.device) -> str:
    if device.type != "cuda":
        return "this machine"
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name} ({properties.total_memory / 2**30:.1f} GiB)"
