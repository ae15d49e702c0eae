"""Where in `data.mdb` each value of a sealed store lies, so that a crop is a few large reads instead of page faults.

They are found by reading LMDB's pages, see `pages`, and compared with what LMDB returns before they are kept.

`offsets.bin`: header, uint64 offsets, uint32 lengths, in the order of the keys. The header has the digest of the sealed
content and the transaction and root page of the state of `data.mdb` in which the values lie there: the file is not used
with any other.
"""

import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import numpy as np
import xxhash
from numpy.typing import NDArray

from agl_core.data.store.codec import subtiles
from agl_core.data.store.layout import TILE_PREFIX, StoreEntry, subtile_key
from agl_core.data.store.pages import State, UnknownFormatError, all_values, read_state
from agl_core.files import fsync_folder, whole_file

NAME = "offsets.bin"
VERSION = 1
SAMPLE = 16
"""Values that are compared with what LMDB returns."""

_MAGIC = b"agl-offs"
_HEADER = struct.Struct("<8sQ32sQQQQ")  # magic, version, digest, transaction, root, count, checksum of the rest


class Offsets(NamedTuple):
    """Where the values are: offsets (N,) uint64 and lengths (N,) uint32, in bytes, in the order of the keys."""

    starts: NDArray[np.uint64]
    lengths: NDArray[np.uint32]


def value_keys(entries: Iterable[StoreEntry]) -> list[bytes]:
    """The keys of all sub-tiles, in their order, of tiles in the order of their ids."""
    return [
        subtile_key(entry.id, row, column)
        for entry in entries
        for row, column, _, _ in subtiles(entry.height, entry.width)
    ]


def locate(data: Path, keys: Iterable[bytes]) -> tuple[State, Offsets] | None:
    """Find the values of `keys`, which must be all keys of sub-tiles in their order; None if that is not possible."""
    starts, lengths = [], []
    file = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
    try:
        state = read_state(file)
        if state is None:
            return None
        found = (value for value in all_values(file, state) if value[0].startswith(TILE_PREFIX))
        for expected, (key, start, length) in zip(keys, found, strict=True):
            if key != expected:
                return None
            starts.append(start)
            lengths.append(length)
    except (UnknownFormatError, ValueError):  # ValueError: not as many keys as expected
        return None
    finally:
        os.close(file)
    return state, Offsets(np.array(starts, "<u8"), np.array(lengths, "<u4"))


def agree(data: Path, environment: lmdb.Environment, keys: list[bytes], offsets: Offsets) -> bool:
    """Whether a sample of the values lies in the file as LMDB returns it."""
    with data.open("rb") as file, environment.begin(buffers=True) as transaction:
        for number in {round(place) for place in np.linspace(0, len(keys) - 1, SAMPLE)}:
            file.seek(int(offsets.starts[number]))
            there: Any = transaction.get(keys[number])
            if file.read(int(offsets.lengths[number])) != there:
                return False
    return True


def write_offsets(folder: Path, environment: lmdb.Environment, digest: str, keys: list[bytes]) -> bool:
    """Write `offsets.bin` of the store in `folder`, whole or not at all; the store must not be written meanwhile.

    Args:
        folder: of the store.
        environment: the open store.
        digest: of its sealed content.
        keys: of all sub-tiles, in their order.

    Returns:
        False when the values cannot be found, since the file is not as LMDB 0.9 writes it; nothing is written then.
    """
    data = folder / "data.mdb"
    located = locate(data, keys)
    if located is None or not agree(data, environment, keys, located[1]):
        return False
    state, (starts, lengths) = located
    content = starts.tobytes() + lengths.tobytes()
    header = _header(digest, state, len(keys), xxhash.xxh3_64_intdigest(content))
    with whole_file(folder / NAME) as aside:
        aside.write_bytes(header + content)
    return True


def have_offsets(folder: Path, digest: str, count: int) -> bool:
    """Whether the `offsets.bin` of the store in `folder` is the right one."""
    with (folder / "data.mdb").open("rb") as file:
        state = read_state(file.fileno())
    return state is not None and read_offsets(folder, digest, count, state) is not None


def read_offsets(folder: Path, digest: str, count: int, state: State) -> Offsets | None:
    """What `write_offsets` wrote; None where it is missing, damaged, or of another content or state of `data.mdb`."""
    try:
        raw = (folder / NAME).read_bytes()
    except OSError:
        return None
    content = memoryview(raw)[_HEADER.size :]
    if len(content) != 12 * count or raw[: _HEADER.size] != _header(
        digest, state, count, xxhash.xxh3_64_intdigest(content)
    ):
        return None
    return Offsets(np.frombuffer(content, "<u8", count), np.frombuffer(content, "<u4", count, 8 * count))


def remove_offsets(folder: Path) -> None:
    """Remove `offsets.bin`, if there is one, for good."""
    with suppress(FileNotFoundError):
        (folder / NAME).unlink()
        fsync_folder(folder)


def _header(digest: str, state: State, count: int, checksum: int) -> bytes:
    return _HEADER.pack(_MAGIC, VERSION, digest.encode(), state.transaction, state.root, count, checksum)
