"""How the store lays tiles out in its LMDB, and how a process opens that file.

Layout, version 3 (all keys are bytes in sorted order):

    meta                        JSON: format, version, subtile, codec, and sealed: null, or digest and entries
    done/<id>                   JSON: entry, provenance, codec and digest (of the values) of a tile that is complete
    tile/<id> 0 <row> <column>  checksum and encoded sub-tile, see `codec`; row and column two bytes big-endian

Beside `data.mdb` of a sealed store lies `offsets.bin`, see `offsets`: where in the file each value is.
"""

import fcntl
import json
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import lmdb
import xxhash

from agl_core.data.store.failures import explained
from agl_core.data.store.pages import cut_off, fill_up
from agl_core.errors import UserError

FORMAT = "agl-store"
VERSION = 3
META_KEY = b"meta"
DONE_PREFIX = b"done/"
TILE_PREFIX = b"tile/"

# Address space, not disk: the file grows with what is in it. The smaller ones are for where address space is limited.
_MAP_SIZES = (1 << 40, 1 << 38, 1 << 36, 1 << 34)


class StoreBusyError(UserError):
    """Another process is writing the store."""


@dataclass(frozen=True)
class StoreEntry:
    """One tile of the store: `gsd` in metres per pixel, size in pixels, `scale` in px/m and `angle` in radians.

    `scale` and `angle` are None for nadir images with heights but without pose, `place` where it is not known.
    `highest` is the highest known height above ground in metres, 0 where none is known; `known` the number of pixels of
    known height, `sum_cm` and `sum_cm2` the sums of their centimetres and of the squares of them.
    """

    id: str
    city: str
    gsd: float
    height: int
    width: int
    scale: float | None = None
    angle: float | None = None
    place: str | None = None
    highest: float = 0.0
    known: int = 0
    sum_cm: int = 0
    sum_cm2: int = 0


def done_key(tile: str) -> bytes:
    """Where the record of a complete tile is."""
    return DONE_PREFIX + tile.encode()


def tile_prefix(tile: str) -> bytes:
    """What the keys of all sub-tiles of a tile begin with."""
    return TILE_PREFIX + tile.encode() + b"\0"


def subtile_key(tile: str, row: int, column: int) -> bytes:
    """Where a sub-tile is."""
    return tile_prefix(tile) + struct.pack(">HH", row, column)


def read_meta(path: Path, environment: lmdb.Environment) -> dict[str, Any] | None:
    """The `meta` record, None in an empty database; of another format or version: `UserError`."""
    with explained(path, "read"), environment.begin() as transaction:
        raw = transaction.get(META_KEY)
        empty = transaction.stat()["entries"] == 0
    if raw is None and empty:
        return None
    meta = json.loads(raw) if raw is not None else {}
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise UserError(f"{path} holds another program's database: choose another folder with --store")
    if meta.get("version") != VERSION:
        raise UserError(
            f"store {path} has version {meta.get('version')}, this program reads version {VERSION}: "
            "delete the folder, or choose another with --store, and run prepare again"
        )
    return meta


def done_records(environment: lmdb.Environment) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of the records of all complete tiles, in the order of the keys, which is that of the tiles."""
    with environment.begin() as transaction, transaction.cursor() as cursor:
        found = cursor.set_range(DONE_PREFIX)
        while found and bytes(cursor.key()).startswith(DONE_PREFIX):
            yield bytes(cursor.key()), bytes(cursor.value())
            found = cursor.next()


def sealed_digest(environment: lmdb.Environment) -> str:
    """32 hexadecimal digits of all complete tiles: labels and values, but not where and when their files were."""
    digest = xxhash.xxh3_128()
    for key, value in done_records(environment):
        record = {name: part for name, part in json.loads(value).items() if name != "provenance"}
        content = json.dumps(record, sort_keys=True).encode()
        digest.update(struct.pack("<QQ", len(key), len(content)) + key + content)
    return digest.hexdigest()


def open_file(path: Path, **options: Any) -> lmdb.Environment:
    """Open the LMDB in the folder `path`; what LMDB cannot open is a `UserError`."""
    with explained(path, "opened"):
        return lmdb.open(os.fspath(path), **options)


def open_to_write(path: Path) -> lmdb.Environment:
    """`open_file` with the largest map that this process may have: the file cannot become larger than that."""
    for size in _MAP_SIZES[:-1]:
        with explained(path, "opened"), suppress(lmdb.MemoryError):
            return lmdb.open(os.fspath(path), map_size=size, lock=False)
    return open_file(path, map_size=_MAP_SIZES[-1], lock=False)


def mend_length(path: Path) -> None:
    """Fill up a store that is to be written, as a process should have that was killed in sealing it.

    Raises:
        UserError: when the file has been cut off: LMDB would die of touching what is missing.
    """
    data = path / "data.mdb"
    if data.is_file() and cut_off(data) and not fill_up(data):
        raise UserError(
            f"store {path} is damaged (data.mdb is shorter than it was): copy it again, or delete the folder and run "
            "prepare again"
        )


@contextmanager
def writing_lock(path: Path) -> Iterator[None]:
    """Be the only process that writes the store in the folder `path`; a second one gets a `UserError`."""
    with (path / "writer.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreBusyError(f"another process is writing the store {path}: wait until it ends") from None
        except OSError as error:
            raise UserError(
                f"the store {path} cannot be locked ({error.strerror}): choose a local disk with --store"
            ) from None
        yield


class Mapping:
    """The file mapped into this process: LMDB allows it once per process, so that all `Store` objects share it."""

    def __init__(self, path: Path) -> None:
        self._process = os.getpid()
        self._closed = False
        self.environment = open_file(
            path, readonly=True, lock=False, readahead=False, meminit=False, max_spare_txns=8, create=False
        )

    def usable(self) -> bool:
        """Not in a forked child: the map was made by its parent."""
        return self._process == os.getpid() and not self._closed

    def close(self) -> None:
        """Unmap the file."""
        self._closed = True
        self.environment.close()

    def __del__(self) -> None:
        if hasattr(self, "environment"):
            self.environment.close()


_mappings: "WeakValueDictionary[str, Mapping]" = WeakValueDictionary()
_mappings_lock = threading.Lock()
_releases = 0


def _renew_lock() -> None:
    # Another thread of the parent may have held it at the fork; nobody would ever release it here.
    global _mappings_lock
    _mappings_lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def shared_mapping(path: Path) -> Mapping:
    """The mapping of the store in the folder `path` in this process, made when there is none."""
    key = os.path.realpath(path)
    with _mappings_lock:
        mapping = _mappings.get(key)
        if mapping is None or not mapping.usable():
            if mapping is not None:
                mapping.close()  # inherited through a fork: this closes the child's copy only
            mapping = _mappings[key] = Mapping(path)
        return mapping


def release(path: Path) -> None:
    """Unmap a store in this process before it is written here; `Store` objects map it again when they read."""
    global _releases
    with _mappings_lock:
        _releases += 1
        mapping = _mappings.pop(os.path.realpath(path), None)
        if mapping is not None:
            mapping.close()


def releases() -> int:
    """How often `release` was called in this process: what was known of a file before may not be true any more."""
    return _releases
