"""How the store lays tiles out in its LMDB, and how a process opens that file.

Layout, version 2 (all keys are bytes in sorted order):

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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import lmdb
import xxhash

from agl_core.errors import UserError

FORMAT = "agl-store"
VERSION = 2
META_KEY = b"meta"
DONE_PREFIX = b"done/"
TILE_PREFIX = b"tile/"


class StoreBusyError(UserError):
    """Another process is writing the store."""


@dataclass(frozen=True)
class StoreEntry:
    """One tile of the store: `gsd` in metres per pixel, size in pixels, `scale` in px/m and `angle` in radians.

    `scale` and `angle` are None for nadir images with heights but without pose, `place` where it is not known.
    `highest` is the highest known height above ground in metres, 0 where none is known.
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
    with environment.begin() as transaction:
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
            "run prepare again with --store and a new folder"
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
    """32 hexadecimal digits of the records of all complete tiles, and so of the whole content."""
    digest = xxhash.xxh3_128()
    for key, value in done_records(environment):
        digest.update(struct.pack("<QQ", len(key), len(value)) + key + value)
    return digest.hexdigest()


def open_file(path: Path, **options: Any) -> lmdb.Environment:
    """Open the LMDB in the folder `path`; what LMDB cannot open is a `UserError`."""
    try:
        return lmdb.open(os.fspath(path), **options)
    except lmdb.Error as error:
        raise UserError(
            f"store {path} cannot be opened ({error}): delete the folder and run prepare again, or choose another"
        ) from None


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
