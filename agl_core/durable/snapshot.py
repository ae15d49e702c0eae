"""A copy of the training state in host memory, taken between two steps."""

import copy
import ctypes
import itertools
import mmap
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from agl_core.durable.checkpoint import Checkpoint

ALIGNMENT = 64
"""Bytes; every tensor begins at a multiple of it, so that the copy's vector instructions need no second load."""


LARGE = 1 << 15
"""Elements; smaller tensors are copied by torch in one call, which does not cut them up either."""


class Snapshot:
    """Host memory for one state, allocated once and filled again by every `take`.

    `take` costs the step one pass over memory and nothing else. Each group of a checkpoint (model, optimizer,
    average) is one flat block; a tensor's view in it has the strides of the tensor itself, so that also the copy of a
    channels_last weight is a memcpy. Shapes and values of the views are the tensor's own: whoever writes row-major
    files gathers later, outside of the step.

    The first `take` (and one after a change of names, shapes or dtypes) allocates the block and touches its pages for
    the first time, which takes several times as long as the later ones.

    The views belong to whoever `take` gave them to until he is done with them; the next `take` overwrites them.
    """

    def __init__(self) -> None:
        self._groups = {"model": _Group(), "optimizer": _Group(), "average": _Group()}
        self._streams: dict[torch.device, Any] = {}
        self._copies: list[tuple[Any, list[Tensor]]] = []  # the event at the end of each device's copies, its sources

    def take(self, checkpoint: Checkpoint) -> Checkpoint:
        """Copy `checkpoint`; its tensors become views into this object's memory, its state a copy.

        Tensors in host memory have been copied when this returns. Those on a CUDA device are copied by a stream of
        their own into pinned memory, behind what has been queued before:

        - model: whatever the caller queues from now on waits on the device for the copy, since a forward pass changes
          the statistics of batch norms;
        - optimizer, average: may not be changed before `wait` has returned. Forward and backward pass can run
          meanwhile.
        """
        self.wait()
        sources = {"model": checkpoint.model, "optimizer": checkpoint.optimizer, "average": checkpoint.average}
        views = {name: self._groups[name].views(tensors) for name, tensors in sources.items()}
        for name, tensors in sources.items():
            self._copy(views[name], tensors, held=name == "model")
        return Checkpoint(checkpoint.step, state=copy.deepcopy(checkpoint.state), **views)

    def wait(self) -> None:
        """Return when all that the last `take` copies has been copied. Any thread may call it."""
        for event, _ in list(self._copies):
            event.synchronize()
        self._copies = []

    @torch.no_grad()
    def _copy(self, views: dict[str, Tensor], tensors: dict[str, Tensor], held: bool) -> None:
        """`held`: later work on the device's current stream waits for the copy."""
        pairs: dict[torch.device, list[tuple[Tensor, Tensor]]] = {}
        for view, tensor in zip(views.values(), tensors.values(), strict=True):
            pairs.setdefault(tensor.device, []).append((view, tensor))
        # What is on a device is queued first: it is copied while the host copies its own.
        for device in sorted(pairs, key=lambda device: device.type == "cpu"):
            targets, sources = [view for view, _ in pairs[device]], [tensor for _, tensor in pairs[device]]
            if device.type == "cuda":
                self._queue(device, targets, sources, held)
            else:
                copy_host(targets, sources)

    def _queue(self, device: torch.device, targets: list[Tensor], sources: list[Tensor], held: bool) -> None:
        if device not in self._streams:
            self._streams[device] = cast(Any, torch.cuda.Stream)(device)
        stream, current = self._streams[device], torch.cuda.current_stream(device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source, non_blocking=True)
            copied = stream.record_event()
        if held:
            current.wait_event(copied)
        # The sources are kept until then: freed, their memory could be given to others before it has been read.
        self._copies.append((copied, sources))


class _Form(NamedTuple):
    """All that decides about the place of a tensor and its view."""

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype


class _Group:
    """The block of one group of tensors and the views into it."""

    def __init__(self) -> None:
        self._forms: list[_Form] = []
        self._views: list[Tensor] = []
        self._block = host_block(0)
        self._pinned = False

    def views(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A view for each of `tensors`, by name; into the same memory as before unless it does not fit them."""
        forms = [_Form(tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors.values()]
        pinned = any(tensor.is_cuda for tensor in tensors.values())
        if forms != self._forms or pinned != self._pinned:
            self._lay_out(forms, pinned)
        return dict(zip(tensors, self._views, strict=True))

    def _lay_out(self, forms: list[_Form], pinned: bool) -> None:
        # clone keeps the strides of what is dense, and makes the rest (slices, expanded tensors) row-major.
        strides = [torch.empty_strided(*form[:2], dtype=form.dtype, device="meta").clone().stride() for form in forms]
        sizes = [form.shape.numel() * form.dtype.itemsize for form in forms]
        places = [0, *itertools.accumulate(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)]
        total = places.pop()
        self._forms, self._views = [], []
        if total != len(self._block) or pinned != self._pinned:
            self._block, self._pinned = host_block(0), pinned  # the old one goes first: both may not fit
            self._block = pinned_block(total) if pinned else host_block(total)
        self._views = [
            self._block[place : place + size].view(form.dtype).as_strided(form.shape, stride)
            for place, size, form, stride in zip(places, sizes, forms, strides, strict=True)
        ]
        self._forms = forms


@torch.no_grad()
def copy_host(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy `sources` to `targets`, of the same shapes and dtypes, in host memory, with torch's number of threads.

    Each thread takes the next large tensor when it is done with one. torch itself would cut each tensor into equal
    parts and wait for the slowest thread hundreds of times: where data loading processes want the cores too, that was
    measured to take up to 3 s instead of 0.13 s.
    """
    large: list[tuple[int, int, int]] = []
    rest: tuple[list[Tensor], list[Tensor]] = [], []
    for target, source in zip(targets, sources, strict=True):
        same = target.stride() == source.stride() and not source.is_conj() and not source.is_neg()
        if same and source.numel() >= LARGE:
            large.append((target.data_ptr(), source.data_ptr(), source.numel() * source.element_size()))
        else:
            rest[0].append(target)
            rest[1].append(source)
    # The largest first, so that all threads end at about the same time.
    waiting = iter(sorted(large, key=lambda call: -call[2]))

    def work() -> None:
        for to, origin, size in waiting:
            ctypes.memmove(to, origin, size)  # lets go of the interpreter meanwhile

    helpers = [threading.Thread(target=work, daemon=True) for _ in range(torch.get_num_threads() - 1) if large]
    for helper in helpers:
        helper.start()
    work()
    torch._foreach_copy_(*rest)
    for helper in helpers:
        helper.join()


def host_block(size: int) -> Tensor:
    """(size,) uint8 of private host memory that forked processes do not see.

    Memory that a child shares is copied page by page when the parent next writes to it, as long as the child lives.
    Every start of data loading processes would make the next snapshot some 30 times slower than a memcpy. Huge pages
    make the first touch cheaper, where the system has them.
    """
    if not size:
        return torch.empty(0, dtype=torch.uint8)
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for advice in ("MADV_DONTFORK", "MADV_HUGEPAGE"):
        if hasattr(mmap, advice):
            _advise(block, getattr(mmap, advice))
    return torch.frombuffer(block, dtype=torch.uint8)


def pinned_block(size: int) -> Tensor:
    """(size,) uint8 of page-locked host memory, which CUDA devices write to by themselves. torch takes a power of two
    bytes for it."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


def _advise(block: mmap.mmap, advice: int) -> None:
    """Advice is a matter of speed alone; a kernel built without a feature answers with EINVAL."""
    try:
        block.madvise(advice)
    except OSError:
        return
