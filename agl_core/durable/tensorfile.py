"""Tensors in files: plain safetensors, written straight from memory and hashed on the way.

The layout is that of safetensors (github.com/huggingface/safetensors): the length of the header as 8 bytes little
endian, a JSON header of dtype, shape and byte range per tensor padded with spaces to 8 bytes, then the raw data. Any
safetensors library reads it. They are written here, since the library's own writer wants a second copy of the whole
state in memory, cannot be stopped half-way, leaves the file readable by its owner alone and does not hash.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import xxhash
from torch import Tensor

from agl_core.files import naming

CHUNK = 1 << 24
"""Bytes between two looks at `cancelled`: at 100 MB/s a sixth of a second."""

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The dtypes that can be written and what the safetensors header calls them."""


class Fingerprint(NamedTuple):
    """What a manifest says of a file. size: bytes; xxh3: xxh3_128 of the content in hexadecimal."""

    size: int
    xxh3: str

    @classmethod
    def of(cls, path: Path) -> "Fingerprint":
        """Read the file `path` to its end."""
        size, digest = 0, xxhash.xxh3_128()
        with path.open("rb") as file:
            while block := file.read(CHUNK):
                size += len(block)
                digest.update(block)
        return cls(size, digest.hexdigest())


def never() -> bool:
    """The answer of a write that nobody cancels."""
    return False


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], cancelled: Callable[[], bool] = never
) -> Fingerprint | None:
    """Write `tensors` to the new file `path` in safetensors format; None if `cancelled` said so half-way.

    After this returns a fingerprint the content survives a power cut; the name does once the folder is fsynced.
    Contiguous CPU tensors are written from where they are; of another one at a time a contiguous copy is made. Nobody
    may change them meanwhile.

    Raises:
        OSError: the file cannot be written, by its name; a part of it may be there.
        ValueError: a tensor has a dtype that is not in `DTYPES`.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{name} is {tensor.dtype}, which is not written to {path.name}")
    # The safetensors library's own order, widest dtypes first: every tensor stays aligned to its dtype.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    return write_file(path, _blocks(ordered), cancelled)


def write_file(
    path: Path, blocks: Iterable[bytes | memoryview], cancelled: Callable[[], bool] = never
) -> Fingerprint | None:
    """Write `blocks` one after the other to the new file `path` and fsync it; None if `cancelled` said so half-way.

    The file has the mode that the user's umask asks for.

    Raises:
        OSError: the file cannot be written, by its name (also FileExistsError); a part of it may be there.
    """
    size, digest = 0, xxhash.xxh3_128()
    with naming(path):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            for block in blocks:
                for start in range(0, len(block), CHUNK):
                    if cancelled():
                        return None
                    chunk = block[start : start + CHUNK]
                    digest.update(chunk)
                    size += len(chunk)
                    _write_all(handle, memoryview(chunk))
            os.fsync(handle)
        finally:
            os.close(handle)
    return Fingerprint(size, digest.hexdigest())


def _write_all(handle: int, chunk: memoryview) -> None:
    """Write all of `chunk`: the system may take less at a time, and does so just before a disk is full."""
    while chunk:
        chunk = chunk[os.write(handle, chunk) :]


def _blocks(tensors: list[tuple[str, Tensor]]) -> Iterator[bytes | memoryview]:
    header, end = {}, 0
    for name, tensor in tensors:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in tensors:
        if tensor.numel():
            # A conjugate or a negative may be but a mark on the tensor: its memory holds other numbers.
            plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
            # A dimension of size 1 may have any stride in a contiguous tensor, which only a view as bytes minds.
            yield plain.as_strided((plain.numel(),), (1,)).view(torch.uint8).numpy().data
