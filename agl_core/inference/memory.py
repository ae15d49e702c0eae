"""What memory a forward pass takes, what there is, and how large the windows may therefore be.

All of it is counted and none of it depends on what is free at the moment, so that all processes that share the images
of one machine, and one that goes on after an interruption, choose the same windows.
"""

import math
import os
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from agl_core.data.stagein.room import memory_limits
from agl_core.errors import UserError

SIGNS = ("out of memory", "not enough memory", "DefaultCPUAllocator", "STATUS_ALLOC_FAILED")
"""What CUDA and NCCL, torch for the CPU, and cuBLAS and cuDNN say."""

WINDOWS = (2048, 1536, 1024, 768, 512, 384, 256)
"""Sides of windows to choose from: multiples of 128 (see `tta.ZOOMS`). Larger ones share a smaller part with their
neighbours, but beyond this the gain is small and rows of them become large in the host's memory."""

MOST_PIXELS = 2**26
"""Of an image that is predicted as a whole, 8192 x 8192."""

MOST_ELEMENTS = 2**31 - 1
"""Of one tensor: libraries count the elements with 32 bits, beyond them there are slow ways or none."""

SHARE = {"cuda": 0.8, "cpu": 0.5}
"""Of the device's memory that a forward pass may be counted to take. On a CPU the images that are read and written lie
there as well, and the libraries' own copies (see `COPIES`) are as large as a layer's tensors."""

COPIES = 1.5
"""Times the tensors of a forward pass that it takes: what libraries need within a layer is not counted, and freed
memory is in pieces. Peaks of processes on a CPU were 0.9 to 1.2 times as high, and 1.4 without channels_last."""


class TooLargeError(UserError):
    """The device has too little memory for an image or a window of it."""


def is_shortage(error: BaseException) -> bool:
    """Whether `error` says that memory could not be had."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def device_memory(device: torch.device, processes: int = 1, system: Path = Path("/")) -> int:
    """Bytes that each of `processes` that share a device may have: of what is built in, and on a CPU of what the
    control groups of this process allow. system: where /proc and /sys are."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // processes
    built_in = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([built_in, *(limit for limit, _ in memory_limits(system))]) // processes


@dataclass(frozen=True)
class Need:
    """What forward passes take: bytes of tensors at the same time, and elements of the largest of them."""

    fixed: float
    per_pixel: float
    elements_per_pixel: float

    def bytes(self, height: int, width: int) -> int:
        """Of an image of that size, with what libraries need beside."""
        return math.ceil(COPIES * (self.fixed + self.per_pixel * height * width))

    def elements(self, height: int, width: int) -> int:
        """Of the largest tensor."""
        return math.ceil(self.elements_per_pixel * height * width)


def measured_need(forward: Callable[[int], Any], sides: tuple[int, int]) -> Need:
    """What `forward(side)`, which predicts one image of side x side pixels, takes at any size.

    The tensors of two small images are counted; a convolutional network's grow with the pixels. Sums of sizes are the
    same on every machine and at any time, which peaks of a process are not.
    """
    (few, small, _), (many, large, largest) = ((side * side, *_counted(forward, side)) for side in sides)
    per_pixel = max((large - small) / (many - few), 0.0)
    return Need(max(large - per_pixel * many, 0.0), per_pixel, largest / many)


def _counted(forward: Callable[[int], Any], side: int) -> tuple[int, int]:
    """Bytes that the tensors made on the way have at most at the same time, and elements of the largest."""
    with _Counter() as counter:
        forward(side)
    return counter.most, counter.largest


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the memory of all tensors that are made while it is active, as long as they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = self.largest = 0
        self._live: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        taken = {storage.data_ptr() for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            place = storage.data_ptr()
            if place not in taken and place not in self._live:
                self._live[place] = storage.nbytes()
                weakref.finalize(storage, self._live.pop, place, None)
        self.most = max(self.most, sum(self._live.values()))
        self.largest = max([self.largest, *(leaf.numel() for leaf in tree_leaves(result) if torch.is_tensor(leaf))])
        return result


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    for leaf in tree_leaves(values):
        if torch.is_tensor(leaf) and leaf.layout == torch.strided and leaf.untyped_storage().nbytes():
            yield leaf.untyped_storage()


def fitting_window(height: int, width: int, fits: Callable[[int, int], bool], most_pixels: int = MOST_PIXELS) -> int:
    """The side of the windows in which an image of that size is predicted, 0 if it is predicted as a whole.

    fits: whether there is memory for one forward pass of (height, width) pixels; most_pixels: that one may have. Where
    not even the smallest windows fit, they are tried nevertheless.
    """
    if height * width <= most_pixels and fits(height, width):
        return 0
    sides = [side for side in WINDOWS if side < max(height, width) and side * side <= most_pixels]
    return next((side for side in sides if fits(min(side, height), min(side, width))), min(sides, default=0))


def smaller(pixels: int) -> int | None:
    """How many pixels the next forward pass may have when one of `pixels` was too much; None if that is hopeless."""
    return pixels // 2 if pixels // 2 >= WINDOWS[-1] ** 2 else None


def gib(count: float) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.1f} GiB"
