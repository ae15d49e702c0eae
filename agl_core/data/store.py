"""The store: all training tiles in one LMDB, cut into sub-tiles, so that a crop reads little more than itself.

A tile's record of completion is committed together with its sub-tiles, so what is done survives a kill at any moment.
Only a sealed store can be read: it is complete.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import lmdb
import numpy as np
from numpy.typing import NDArray

from agl_core.data.layout import (
    AGL_KIND,
    CODEC,
    DONE_PREFIX,
    FORMAT,
    META_KEY,
    RGB_KIND,
    SUBTILE,
    VERSION,
    Mapping,
    StoreEntry,
    done_key,
    open_file,
    read_meta,
    release,
    shared_mapping,
    subtile_key,
    tile_prefix,
    writing_lock,
)
from agl_core.errors import UserError
from agl_core.files import writable_folder

__all__ = ["Store", "StoreEntry", "StoreWriter"]

_MAP_SIZE = 1 << 40  # address space, not disk: the file grows with what is in it
_COMMIT_BYTES = 64 << 20  # a transaction's pages are held in memory until it is committed


class StoreWriter:
    """Fills a store, tile by tile; one process at a time.

    What `write` was given is durable after the next commit (every 64 MB, `seal` and the end of the `with` block);
    of a process that is killed, the tiles committed before remain, and a new writer continues with them.
    The first change to a sealed store removes the seal.

        with StoreWriter(path) as writer:
            for entry, rgb, agl_cm in tiles:
                writer.write(entry, rgb, agl_cm)
            writer.seal()
    """

    def __init__(self, path: Path) -> None:
        """Open or create the store in the folder `path`.

        Raises:
            UserError: when the folder cannot be written to, holds something else, or another process is writing.
        """
        self.path = writable_folder(Path(path), "--store")
        self._transaction: lmdb.Transaction | None = None
        self._pending = 0
        with ExitStack() as opened:
            opened.enter_context(writing_lock(self.path))
            release(self.path)
            self._environment = opened.enter_context(open_file(self.path, map_size=_MAP_SIZE, lock=False))
            self._sealed = self._begin()
            self._opened = opened.pop_all()

    def _begin(self) -> bool:
        """Write the `meta` record of a new store; say whether an existing one is sealed."""
        meta = read_meta(self.path, self._environment)
        if meta is None:
            self._put_meta(None)
            return False
        if meta["subtile"] != SUBTILE or meta["codec"] != CODEC:
            raise UserError(
                f"store {self.path} has sub-tiles of {meta['subtile']} pixels in codec {meta['codec']}: "
                "choose another folder with --store"
            )
        return meta["entries"] is not None

    def _put_meta(self, entries: list[dict[str, Any]] | None) -> None:
        meta = {"format": FORMAT, "version": VERSION, "subtile": SUBTILE, "codec": CODEC, "entries": entries}
        with self._saving(), self._environment.begin(write=True) as transaction:
            transaction.put(META_KEY, json.dumps(meta, allow_nan=False).encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def sealed(self) -> bool:
        """Whether the store is sealed and has not been changed since."""
        return self._sealed

    def finished(self) -> dict[str, tuple[StoreEntry, dict[str, Any]]]:
        """Entry and provenance of each complete tile, by id, in the order of the keys, which is sorted."""
        self._commit()
        records = {}
        with self._environment.begin() as transaction, transaction.cursor() as cursor:
            found = cursor.set_range(DONE_PREFIX)
            while found and bytes(cursor.key()).startswith(DONE_PREFIX):
                record = json.loads(cursor.value())
                entry = StoreEntry(**record["entry"])
                records[entry.id] = (entry, record["provenance"])
                found = cursor.next()
        return records

    def write(
        self,
        entry: StoreEntry,
        rgb: NDArray[np.uint8],
        agl_cm: NDArray[np.uint16],
        provenance: dict[str, Any] | None = None,
    ) -> None:
        """Add a tile, or replace the tile of the same id.

        Args:
            entry: what is known about the tile.
            rgb: (H, W, 3) uint8.
            agl_cm: (H, W) uint16 centimetres, 65535 where unknown.
            provenance: anything JSON that `finished` shall give back, such as the state of the source files.

        Raises:
            ValueError: when arrays and entry do not agree.
        """
        height, width = entry.height, entry.width
        if rgb.shape != (height, width, 3) or rgb.dtype != np.uint8:
            raise ValueError(f"tile {entry.id}: RGB is {rgb.shape} {rgb.dtype}, expected ({height}, {width}, 3) uint8")
        if agl_cm.shape != (height, width) or agl_cm.dtype != np.uint16:
            raise ValueError(f"tile {entry.id}: AGL is {agl_cm.shape} {agl_cm.dtype}, not ({height}, {width}) uint16")
        record = {"entry": asdict(entry), "provenance": provenance or {}}
        done = json.dumps(record, allow_nan=False).encode()

        self.remove(entry.id)
        with self._saving():
            transaction = self._writing()
            for row, top in enumerate(range(0, height, SUBTILE)):
                for column, left in enumerate(range(0, width, SUBTILE)):
                    part = np.s_[top : top + SUBTILE, left : left + SUBTILE]
                    for kind, values in ((AGL_KIND, agl_cm[part].astype("<u2", copy=False)), (RGB_KIND, rgb[part])):
                        transaction.put(subtile_key(entry.id, row, column, kind), values.tobytes())
            # Last, so that even an exception between two puts leaves no record of half a tile.
            transaction.put(done_key(entry.id), done)
        self._pending += rgb.nbytes + agl_cm.nbytes
        if self._pending >= _COMMIT_BYTES:
            self._commit()

    def remove(self, tile: str) -> None:
        """Forget the tile of this id, if there is one."""
        prefix = tile_prefix(tile)
        with self._saving(), self._writing().cursor() as cursor:
            if cursor.set_key(done_key(tile)):
                cursor.delete()
            while cursor.set_range(prefix) and bytes(cursor.key()).startswith(prefix):
                cursor.delete()

    def seal(self) -> None:
        """Declare the store complete; after this returns it can be read, and it survives a power cut.

        Raises:
            ValueError: when there is no tile in it.
        """
        entries = [asdict(entry) for entry, _ in self.finished().values()]
        if not entries:
            raise ValueError(f"store {self.path} has no tiles")
        self._put_meta(entries)
        self._sealed = True

    def unseal(self) -> None:
        """Declare the store incomplete, as any change does."""
        if self._sealed:
            self._put_meta(None)
            self._sealed = False

    def close(self) -> None:
        """Commit what was written and let other processes write."""
        try:
            self._commit()
        finally:
            self._opened.close()

    def _writing(self) -> lmdb.Transaction:
        self.unseal()
        if self._transaction is None:
            self._transaction = self._environment.begin(write=True)
        return self._transaction

    def _commit(self) -> None:
        if self._transaction is not None:
            transaction, self._transaction, self._pending = self._transaction, None, 0
            with self._saving():
                transaction.commit()

    @contextmanager
    def _saving(self) -> Iterator[None]:
        """A write that fails takes back what was not committed: after an error LMDB's transaction is of no use."""
        try:
            yield
        except lmdb.Error as error:
            if self._transaction is not None:
                self._transaction.abort()
                self._transaction, self._pending = None, 0
            raise UserError(
                f"store {self.path} cannot be written ({error}): make room there and run prepare again, "
                "or choose another disk with --store"
            ) from None


class Store:
    """A sealed store, for reading. Cheap to hold, to pickle and to fork: each process maps the file when it reads."""

    entries: list[StoreEntry]
    """The tiles, sorted by id; their positions are the indices of `read_crop` and `read_tile`."""

    cities: list[str]
    """The cities of the tiles, each once, sorted."""

    def __init__(self, path: Path) -> None:
        """Read the index of the store in the folder `path`.

        Raises:
            UserError: when there is no store, it is not finished, of another version, or damaged.
        """
        self.path = Path(path)
        if not (self.path / "data.mdb").is_file():
            raise UserError(f"no store at {self.path}: run `python launch.py prepare --data ...` first")
        self._mapping: Mapping | None = None
        meta = read_meta(self.path, self._map().environment)
        if meta is None or meta["entries"] is None:
            raise UserError(f"store {self.path} is not finished: run prepare again, it continues where it stopped")
        self._subtile: int = meta["subtile"]
        self.entries = [StoreEntry(**entry) for entry in meta["entries"]]
        self.cities = sorted({entry.city for entry in self.entries})

    def __len__(self) -> int:
        return len(self.entries)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapping": None}

    def read_tile(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """The whole tile: RGB (H, W, 3) uint8 and AGL (H, W) uint16 centimetres, 65535 where unknown."""
        entry = self.entries[index]
        return self.read_crop(index, 0, 0, entry.height, entry.width)

    def read_crop(
        self, index: int, y: int, x: int, height: int, width: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """A part of a tile, copied from the sub-tiles that it touches.

        Args:
            index: position in `entries`.
            y, x: upper left pixel.
            height, width: size in pixels; the part must lie inside the tile.

        Returns:
            RGB (height, width, 3) uint8 and AGL (height, width) uint16 centimetres, 65535 where unknown; contiguous.

        Raises:
            ValueError: when the part does not lie inside the tile.
            UserError: when the store is damaged there.
        """
        entry = self.entries[index]
        if min(y, x) < 0 or min(height, width) < 1 or y + height > entry.height or x + width > entry.width:
            raise ValueError(
                f"crop of {height} x {width} at ({y}, {x}) is not inside tile {entry.id} "
                f"of {entry.height} x {entry.width}"
            )
        rgb = np.empty((height, width, 3), np.uint8)
        agl = np.empty((height, width), np.uint16)
        with self._map().environment.begin(buffers=True) as transaction:
            for row, rows, to_rows in _spans(y, height, self._subtile):
                for column, columns, to_columns in _spans(x, width, self._subtile):
                    high = min(self._subtile, entry.height - row * self._subtile)
                    wide = min(self._subtile, entry.width - column * self._subtile)
                    for kind, shape, target in ((AGL_KIND, (high, wide), agl), (RGB_KIND, (high, wide, 3), rgb)):
                        raw = transaction.get(subtile_key(entry.id, row, column, kind))
                        dtype = np.dtype("<u2") if kind == AGL_KIND else np.dtype(np.uint8)
                        if raw is None or len(raw) != dtype.itemsize * int(np.prod(shape)):
                            raise UserError(
                                f"store {self.path} is damaged at tile {entry.id} (sub-tile {row}, {column}): "
                                "delete the store and run prepare again"
                            )
                        target[to_rows, to_columns] = np.frombuffer(raw, dtype).reshape(shape)[rows, columns]
        return rgb, agl

    def close(self) -> None:
        """Let go of the map; the next read maps the file again."""
        self._mapping = None

    def _map(self) -> Mapping:
        if self._mapping is None or not self._mapping.usable():
            self._mapping = shared_mapping(self.path)
        return self._mapping


def _spans(start: int, length: int, side: int) -> Iterator[tuple[int, slice, slice]]:
    """The sub-tiles that [start, start + length) touches: number, part within the sub-tile, part within the result."""
    for number in range(start // side, (start + length - 1) // side + 1):
        first, last = max(start, number * side), min(start + length, (number + 1) * side)
        yield number, slice(first - number * side, last - number * side), slice(first - start, last - start)
