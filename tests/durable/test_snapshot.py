"""The copy that a checkpoint is written from."""

import os
import resource
import select
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agl_core.durable.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from agl_core.durable.snapshot import ALIGNMENT, LARGE, Snapshot, host_block


def state_after(step: int) -> Checkpoint:
    """A state with all that occurs in one: channels_last weights, counters, scalars, nothing, half precision."""
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(6, 4, 3, 3, generator=generator).contiguous(memory_format=torch.channels_last)
    model = {
        "weight": weight,
        "bias": torch.randn(5, generator=generator),
        "half": torch.randn(3, 3, generator=generator).to(torch.bfloat16),
        "count": torch.tensor(step),
        "empty": torch.zeros(0, 3),
        "flag": torch.tensor([True, False, True]),
    }
    optimizer = {
        "exp_avg/weight": torch.randn(6, 4, 3, 3, generator=generator).contiguous(memory_format=torch.channels_last),
        "step/weight": torch.tensor(float(step)),
    }
    average = {"weight": weight * 2, "bias": torch.randn(5, generator=generator)}
    return Checkpoint(step, model, optimizer, {"best_score": 0.5, "scaler": {"scale": 2.0}}, average)


def tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    parts = {"optimizer": checkpoint.optimizer, "average": checkpoint.average}
    return checkpoint.model | {f"{part}/{name}": value for part in parts for name, value in parts[part].items()}


def places(checkpoint: Checkpoint) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors(checkpoint).values()]


def assert_same_bits(one: Checkpoint, other: Checkpoint) -> None:
    assert (one.step, one.state) == (other.step, other.state)
    assert list(one.model) == list(other.model)
    assert list(one.optimizer) == list(other.optimizer)
    assert list(one.average) == list(other.average)
    for name, tensor in tensors(one).items():
        assert tensor.dtype == tensors(other)[name].dtype, name
        assert torch.equal(tensor, tensors(other)[name]), name


def test_a_snapshot_does_not_change_when_training_goes_on() -> None:
    source, expected = state_after(3), state_after(3)
    taken = Snapshot().take(source)
    for tensor in tensors(source).values():
        tensor.zero_()
    source.state["best_score"] = None
    source.state["scaler"]["scale"] = 1.0
    assert_same_bits(taken, expected)


def test_the_views_have_the_strides_of_their_tensors_so_that_the_copy_is_a_memcpy() -> None:
    source = state_after(3)
    taken = Snapshot().take(source)
    assert not taken.model["weight"].is_contiguous()
    for name, tensor in tensors(taken).items():
        assert tensor.stride() == tensors(source)[name].stride(), name
        assert tensor.numel() == 0 or tensor.data_ptr() % ALIGNMENT == 0, name


def test_a_file_written_from_a_snapshot_holds_the_content_in_its_own_order(tmp_path: Path) -> None:
    saved = save_checkpoint(tmp_path, Snapshot().take(state_after(3)))
    assert saved is not None
    loaded, _ = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded.model["weight"].is_contiguous()
    for name, tensor in tensors(state_after(3)).items():
        assert torch.equal(tensors(loaded)[name], tensor), name


def test_tensors_with_holes_or_shared_elements_are_stored_densely() -> None:
    base = torch.arange(24.0).reshape(4, 6)
    model = {"slice": base[:, ::2], "expanded": torch.tensor([7.0]).expand(1000), "transposed": base.t()}
    taken = Snapshot().take(Checkpoint(1, model, {}, {}))
    for name, tensor in model.items():
        assert torch.equal(taken.model[name], tensor)
    assert taken.model["slice"].is_contiguous()
    assert taken.model["expanded"].stride() == (1,)
    assert taken.model["transposed"].stride() == (1, 6)


@pytest.mark.parametrize("threads", [1, 3])
def test_large_tensors_are_copied_whole_by_any_number_of_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(2 * LARGE + 6, generator=generator)
    model = {
        **{f"large {number}": torch.randn(LARGE + number, generator=generator) for number in range(8)},
        "small": wide[: LARGE - 1],
        "channels_last": wide[: 2 * LARGE].reshape(2, 64, 16, 32).contiguous(memory_format=torch.channels_last),
        "every second": wide[::2],
        "double": wide.double(),
        "conjugate": torch.complex(wide, wide.flip(0)).conj(),
        "negative": torch.complex(wide, wide).conj().imag,
    }
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    taken = Snapshot().take(Checkpoint(1, model, {}, {}))
    for name, tensor in model.items():
        assert torch.equal(taken.model[name], tensor), name


def test_memory_is_allocated_once_and_filled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    allocated: list[int] = []

    def counted(size: int) -> Tensor:
        allocated.append(size)
        return host_block(size)

    monkeypatch.setattr("agl_core.durable.snapshot.host_block", counted)
    snapshot = Snapshot()
    first = snapshot.take(state_after(1))
    before = places(first), list(allocated)
    second = snapshot.take(state_after(2))
    assert (places(second), allocated) == before
    assert_same_bits(second, state_after(2))
    source = state_after(3)
    source.model["weight"] = source.model["weight"].contiguous()
    third = snapshot.take(source)  # another layout of the same bytes
    assert (places(third), allocated) == before
    assert third.model["weight"].is_contiguous()
    assert_same_bits(third, source)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model | {"more": torch.ones(1000)},
        lambda model: model | {"bias": torch.ones(1000)},
        lambda model: model | {"bias": torch.ones(5, dtype=torch.int64)},
        lambda model: model | {"weight": model["weight"].contiguous()},
        lambda model: {name: tensor for name, tensor in model.items() if name != "bias"},
        lambda model: {f"module.{name}": tensor for name, tensor in model.items()},
    ],
    ids=["one more", "shape", "dtype", "layout", "one less", "names"],
)
def test_a_state_of_another_form_is_copied_as_well(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    snapshot = Snapshot()
    snapshot.take(state_after(1))
    source = state_after(2)
    source.model = change(source.model)
    taken = snapshot.take(source)
    assert_same_bits(taken, source)
    for name, tensor in tensors(taken).items():
        assert tensor.stride() == tensors(source)[name].stride(), name


def test_a_network_and_its_optimizer_are_copied_without_a_trace_in_the_graph() -> None:
    layer = nn.Linear(3, 2)
    source = Checkpoint(1, dict(layer.named_parameters()), {}, {})
    snapshot = Snapshot()
    taken = snapshot.take(source)
    assert torch.equal(taken.model["weight"], layer.weight)
    assert not taken.model["weight"].requires_grad


def test_a_state_without_tensors_is_a_state() -> None:
    taken = Snapshot().take(Checkpoint(0, {}, {}, {"scaler": {}}))
    assert (taken.model, taken.optimizer, taken.state) == ({}, {}, {"scaler": {}})


def test_a_forked_process_does_not_have_the_memory_so_that_no_page_is_copied_for_it() -> None:
    """In memory that is shared with a child the parent's next snapshot faults on every page."""
    size = 1 << 22
    block = host_block(size)
    block.fill_(1)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        select.select([reader], [], [], 60)
        os._exit(0)
    try:
        before = _page_faults()
        block.fill_(2)
        faults = _page_faults() - before
    finally:
        os.write(writer, b"x")
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)
    assert faults < size // os.sysconf("SC_PAGE_SIZE") // 4
    assert bool((block == 2).all())


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt


def test_the_copies_of_a_device_are_ordered_by_its_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of CUDA, in order, by a device that does everything at once and writes it down."""
    done: list[str] = []

    class Event:
        def __init__(self, name: str) -> None:
            self.name = name

        def synchronize(self) -> None:
            done.append(f"host waits for {self.name}")

    class Stream:
        def __init__(self, name: str) -> None:
            self.name, self.events = name, 0

        def wait_stream(self, other: "Stream") -> None:
            done.append(f"{self.name} waits for {other.name}")

        def wait_event(self, event: Event) -> None:
            done.append(f"{self.name} waits for {event.name}")

        def record_event(self) -> Event:
            self.events += 1
            return Event(f"{self.name} {self.events}")

        def __enter__(self) -> None:
            done.append(f"on {self.name}")

        def __exit__(self, *_: Any) -> None:
            done.append(f"off {self.name}")

    compute, side = Stream("compute"), Stream("side")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: compute)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    snapshot, device = Snapshot(), torch.device("cuda", 0)
    target, source = torch.zeros(3), torch.ones(3)
    snapshot._queue(device, [target], [source], held=True)
    snapshot._queue(device, [target], [source], held=False)
    copying = ["side waits for compute", "on side", "off side"]
    assert done == [*copying, "compute waits for side 1", *copying]
    assert torch.equal(target, source)
    assert [kept for _, kept in snapshot._copies] == [[source], [source]]
    done.clear()
    snapshot.wait()
    snapshot.wait()
    assert done == ["host waits for side 1", "host waits for side 2"]
    assert snapshot._copies == []


def test_cuda_is_left_alone_where_the_state_is_in_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("CUDA was asked for")

    for name in ("Stream", "Event", "current_stream", "stream", "synchronize", "is_available", "_lazy_init"):
        monkeypatch.setattr(torch.cuda, name, forbidden)
    snapshot = Snapshot()
    taken = snapshot.take(state_after(1))
    snapshot.wait()
    assert_same_bits(taken, state_after(1))
