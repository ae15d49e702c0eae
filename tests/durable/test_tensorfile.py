import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from agl_core.durable import tensorfile
from agl_core.durable.tensorfile import DTYPES, Fingerprint, write_file, write_tensors


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def sample(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Any bits at all (infinities, NaN with payload, subnormals), except for bool."""
    generator = torch.Generator().manual_seed(3)
    count = torch.Size(shape).numel()
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    raw = torch.randint(0, 256, (count * dtype.itemsize,), generator=generator, dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_library_reads_the_same_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    shapes = {"scalar": (), "empty": (0, 3), "vector": (5,), "matrix": (3, 4), "kernel": (2, 3, 3, 1)}
    tensors = {name: sample(dtype, shape) for name, shape in shapes.items()}
    write_tensors(tmp_path / "a.safetensors", tensors)
    loaded = load_file(tmp_path / "a.safetensors")
    assert {name: bits(tensor) for name, tensor in loaded.items()} == {
        name: bits(tensor) for name, tensor in tensors.items()
    }


def test_the_file_is_the_one_that_the_library_writes(tmp_path: Path) -> None:
    tensors = {f"layer.{number}.µ": sample(dtype, (3, number)) for number, dtype in enumerate(DTYPES)}
    write_tensors(tmp_path / "ours.safetensors", tensors)
    save_file(tensors, tmp_path / "theirs.safetensors")
    ours, theirs = (tmp_path / f"{name}.safetensors" for name in ("ours", "theirs"))
    data = {}
    for path in (ours, theirs):
        content = path.read_bytes()
        header = int.from_bytes(content[:8], "little")
        assert header % 8 == 0
        data[path] = len(content) - 8 - header
    assert data[ours] == data[theirs]
    with safe_open(ours, framework="pt") as file:
        assert sorted(file.keys()) == sorted(tensors)


@given(
    lengths=st.lists(st.integers(0, 40), max_size=5),
    dtypes=st.lists(st.sampled_from(list(DTYPES)), min_size=5, max_size=5),
    chunk=st.integers(1, 50),
)
@settings(max_examples=60, deadline=None)
def test_any_set_of_tensors_comes_back_whatever_the_size_of_a_chunk(
    lengths: list[int], dtypes: list[torch.dtype], chunk: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("any") / "a.safetensors"
    tensors = {str(number): sample(dtype, (n,)) for number, (n, dtype) in enumerate(zip(lengths, dtypes, strict=False))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorfile, "CHUNK", chunk)
        written = write_tensors(path, tensors)
    assert written == Fingerprint.of(path)
    assert {name: bits(tensor) for name, tensor in load_file(path).items()} == {
        name: bits(tensor) for name, tensor in tensors.items()
    }


def test_transposed_strided_conjugated_and_gradient_tensors_are_written_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    waves = torch.complex(base, base + 1)  # conj() and its imag are but marks on this memory
    tensors = {
        "transposed": base.t(),
        "strided": base[:, ::2],
        "channels_last": torch.arange(24.0).reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
        "conjugate": waves.conj(),
        "negative": waves.conj().imag,
        "contiguous negative": waves[0, :1].conj().imag,
        "one of a stride": base[0, 1:2:2],
        "one of a stride, and more": base.as_strided((1, 3, 1), (7, 1, 5), 4),
        "parameter": torch.nn.Parameter(base.clone()),
        "broadcast": torch.ones(1).expand(4),
    }
    write_tensors(tmp_path / "a.safetensors", tensors)
    loaded = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_contiguous_tensors_are_written_from_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"a": torch.arange(1000.0), "b": torch.ones(3, 5, dtype=torch.bfloat16)}
    places = []
    write = tensorfile._write_all

    def spy(handle: int, chunk: memoryview) -> None:
        if chunk:
            places.append(np.frombuffer(chunk, dtype=np.uint8).ctypes.data)
        write(handle, chunk)

    monkeypatch.setattr(tensorfile, "_write_all", spy)
    write_tensors(tmp_path / "a.safetensors", tensors)
    assert places[1:] == [tensors["a"].data_ptr(), tensors["b"].data_ptr()]


def test_nothing_at_all_can_be_written(tmp_path: Path) -> None:
    assert write_tensors(tmp_path / "a.safetensors", {}) == Fingerprint.of(tmp_path / "a.safetensors")
    assert load_file(tmp_path / "a.safetensors") == {}


def test_a_dtype_that_cannot_be_written_is_named_before_a_file_is_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"moments is torch\.complex128, which is not written to a\.safetensors"):
        write_tensors(tmp_path / "a.safetensors", {"moments": torch.zeros(2, dtype=torch.complex128)})
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_the_system_takes_in_small_parts_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:7]))
    written = write_tensors(tmp_path / "a.safetensors", {"a": torch.arange(100.0)})
    assert written == Fingerprint.of(tmp_path / "a.safetensors")
    assert torch.equal(load_file(tmp_path / "a.safetensors")["a"], torch.arange(100.0))


@pytest.mark.parametrize("call", ["write", "fsync", "close"])
def test_a_full_disk_is_an_os_error_with_the_name_of_the_file(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(os, call)

    def full(handle: int, *data: Any) -> None:
        if call == "close":
            real(handle)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match=r"No space left on device: .*a\.safetensors") as caught:
        write_tensors(tmp_path / "a.safetensors", {"a": torch.arange(100.0)})
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "a", [b"new"])
    assert (tmp_path / "a").read_bytes() == b"precious"


def test_it_is_asked_between_chunks_whether_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorfile, "CHUNK", 100)
    asked = []

    def cancelled() -> bool:
        asked.append((tmp_path / "a").stat().st_size)
        return len(asked) == 4

    assert write_file(tmp_path / "a", [bytes(1000)], cancelled) is None
    assert asked == [0, 100, 200, 300]


@pytest.mark.parametrize(("umask", "mode"), [(0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_of_the_users_umask(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "a", {"a": torch.ones(1)})
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode
