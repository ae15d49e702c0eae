"""A batch in one piece of memory, and the memory of a worker."""

import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from agl_core.data.batch import KEPT, Buffers, Packed, Refusal, release, unpack


def test_a_buffer_is_given_again_only_after_its_batch_was_released() -> None:
    buffers = Buffers()
    first, second = buffers.take(2, 16), buffers.take(2, 16)
    assert first.is_shared()
    assert first.data_ptr() != second.data_ptr()
    release(unpack(first, 2, 16))
    assert buffers.take(2, 16).data_ptr() == first.data_ptr()
    assert buffers.take(2, 16).data_ptr() not in (first.data_ptr(), second.data_ptr())


def test_a_released_buffer_is_not_given_for_a_batch_of_another_size() -> None:
    buffers = Buffers()
    small = buffers.take(1, 16)
    release(unpack(small, 1, 16))
    assert len(buffers.take(2, 16)) > len(small)


def test_a_worker_keeps_a_bounded_number_of_buffers() -> None:
    buffers = Buffers()
    for _ in range(3 * KEPT):
        buffers.take(1, 16)
    assert len(buffers._kept) == KEPT


def test_buffers_in_use_are_used_again_however_many_there_were_for_a_moment() -> None:
    buffers = Buffers(4)
    held = [buffers.take(1, 16) for _ in range(9)]
    for buffer in held:
        release(unpack(buffer, 1, 16))
    again = [buffers.take(1, 16) for _ in range(4)]
    assert {buffer.data_ptr() for buffer in again} == {buffer.data_ptr() for buffer in held[:4]}


def test_a_batch_that_was_copied_for_a_gpu_frees_its_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the DataLoader's thread does it; a copy stands for memory that a GPU can read, which needs one."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    buffers = Buffers()
    buffer = buffers.take(2, 16)
    unpack(buffer, 2, 16).image.fill_(7)
    pinned = pin_memory(Packed(buffer))
    assert isinstance(pinned, Packed)
    again = buffers.take(2, 16)
    assert again.data_ptr() == buffer.data_ptr()
    again.zero_()
    assert (unpack(pinned.buffer, 2, 16).image == 7).all()
    assert pin_memory(Refusal("why")) == Refusal("why")
