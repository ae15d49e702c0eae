"""A batch in one piece of memory, as it travels from a worker to the trainer, and the memory that is used for it.

A worker writes its crops into shared memory that the trainer maps. Fresh shared memory costs as much as the reading
itself (every page of it is cleared first), so a piece is used again when the trainer is done with it.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes: a line of the CPU's cache
KEPT = 16
"""Pieces of memory that a worker keeps at least, if as many batches are under way."""


class Batch(NamedTuple):
    """A micro-batch as it travels to the device: small integers, converted there.

    image: (B, 3, S, S) uint8; agl: (B, S, S) uint16 centimetres, 65535 unknown; scale: (B,) float32 pixels per metre
    and angle: (B,) float32 radians, NaN where the tile has no vector flow; gsd: (B,) float32 metres per pixel;
    city: (B,) int64; epoch and sample: (B,) int64, the sample keys.
    """

    image: Tensor
    agl: Tensor
    scale: Tensor
    angle: Tensor
    gsd: Tensor
    city: Tensor
    epoch: Tensor
    sample: Tensor


def parts_of(count: int, size: int) -> list[tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of the parts of a `Batch` of `count` crops of `size` pixels."""
    images = [(torch.uint8, (count, 3, size, size)), (torch.uint16, (count, size, size))]
    return [*images, *[(torch.float32, (count,))] * 3, *[(torch.int64, (count,))] * 3]


def places_of(count: int, size: int) -> list[int]:
    """Where the parts of a `Batch` begin in its buffer, in bytes, and where the last one ends. The buffer has one byte
    more: whether the trainer still needs it."""
    places = [0]
    for dtype, shape in parts_of(count, size):
        places.append(places[-1] + -(-dtype.itemsize * math.prod(shape) // ALIGNMENT) * ALIGNMENT)
    return places


def unpack(buffer: Tensor, count: int, size: int) -> Batch:
    """The batch of `count` crops of `size` pixels that lies in `buffer`, a flat uint8 tensor: views of it."""
    views = []
    for (dtype, shape), place in zip(parts_of(count, size), places_of(count, size)[:-1], strict=True):
        views.append(buffer[place : place + dtype.itemsize * math.prod(shape)].view(dtype).view(shape))
    return Batch(*views)


def release(batch: Batch) -> None:
    """Let the worker that made `batch` write another one there: its tensors must not be used any more."""
    torch.empty(0, dtype=torch.uint8).set_(cast(Any, batch.image.untyped_storage()))[-1] = 0


class Buffers:
    """The shared memory of one worker: at most `most` pieces are kept; batches beyond those get memory of their own."""

    def __init__(self, most: int = KEPT) -> None:
        self._most = most
        self._kept: list[Tensor] = []

    def take(self, count: int, size: int) -> Tensor:
        """A buffer for `count` crops of `size` pixels that nobody uses, whatever is in it."""
        length = places_of(count, size)[-1] + 1
        for buffer in self._kept:
            if not buffer[-1] and len(buffer) == length:
                break
        else:
            buffer = torch.empty(0, dtype=torch.uint8).set_(cast(Any, torch.UntypedStorage)._new_shared(length))
            if len(self._kept) < self._most:  # those in use come back: one of them must not give way to this one
                self._kept.append(buffer)
        buffer[-1] = 1
        return buffer


@dataclass(frozen=True)
class Packed:
    """A batch on its way: its buffer."""

    buffer: Tensor

    def pin_memory(self) -> "Packed":
        """A copy in memory from which a GPU can read, made by the DataLoader; what it was made from is free again."""
        pinned = Packed(self.buffer.pin_memory())
        self.buffer[-1] = 0
        return pinned


@dataclass(frozen=True)
class Refusal:
    """Stands for a batch that could not be read: the sentence for the user. An exception from a worker would arrive as
    a page of text."""

    text: str
