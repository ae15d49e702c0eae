"""Writing the store, by one process at a time.

A tile's record of completion is committed together with its sub-tiles, so what is done survives a kill at any moment.
What ends up in the LMDB depends neither on the order of the tiles nor on where a process was killed.
"""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import lmdb
import numpy as np
import xxhash
from numpy.typing import NDArray

from agl_core.data.store.codec import CODECS, SUBTILE, encode_tile, subtiles
from agl_core.data.store.failures import explained
from agl_core.data.store.heights import with_heights
from agl_core.data.store.layout import (
    FORMAT,
    META_KEY,
    TILE_PREFIX,
    VERSION,
    StoreEntry,
    done_key,
    done_records,
    mend_length,
    open_to_write,
    read_meta,
    release,
    sealed_digest,
    subtile_key,
    tile_prefix,
    writing_lock,
)
from agl_core.data.store.offsets import have_offsets, remove_offsets, value_keys, write_offsets
from agl_core.data.store.pages import fill_up
from agl_core.errors import UserError, valid_choice
from agl_core.files import writable_folder

_COMMIT_BYTES = 64 << 20  # a transaction's pages are held in memory until it is committed
_COMMIT_SECONDS = 10.0  # of slow sources a kill is to lose little; when it is committed does not change the content


class StoreWriter:
    """Fills a store, tile by tile; one process at a time.

    What `write` was given is durable after the next commit (every 64 MB or 10 s, `seal` and the end of the `with`
    block); of a killed process the tiles committed before remain, and a new writer continues. The first change removes
    the seal.

        with StoreWriter(path) as writer:
            for entry, rgb, agl_cm in tiles:
                writer.write(entry, rgb, agl_cm)
            writer.seal()
    """

    codec: str
    """How the values are encoded: one of `CODECS`."""
    located_anew: bool
    """Whether the store was sealed, but without an `offsets.bin` that fits, which was written when it was opened."""

    def __init__(self, path: Path, codec: str = "auto") -> None:
        """Open or create the store in the folder `path`; `codec` "auto" is that of the store, zstd for a new one.

        Raises:
            UserError: when the folder cannot be written to, holds something else or a store of another codec, or
                another process is writing.
        """
        valid_choice("codec", codec, ["auto", *CODECS])
        self.path = writable_folder(Path(path), "--store")
        self._transaction: lmdb.Transaction | None = None
        self._pending, self._committed = 0, time.monotonic()
        self.located_anew = False
        with ExitStack() as opened:
            opened.enter_context(writing_lock(self.path))
            release(self.path)
            mend_length(self.path)
            self._environment = open_to_write(self.path)
            opened.callback(lambda: self._environment.close())
            self._sealed = self._begin(codec)
            self._opened = opened.pop_all()

    def _begin(self, codec: str) -> bool:
        """Write the `meta` record of a new store; say whether an existing one is sealed."""
        meta = read_meta(self.path, self._environment)
        if meta is None:
            self.codec = CODECS[0] if codec == "auto" else codec
            self._put_meta(None)
            return False
        self.codec = meta["codec"]
        if meta["subtile"] != SUBTILE or self.codec not in CODECS:
            raise UserError(
                f"store {self.path} has sub-tiles of {meta['subtile']} pixels in codec {self.codec}, which this "
                "program does not write: choose another folder with --store"
            )
        if codec not in ("auto", self.codec):
            raise UserError(
                f"store {self.path} is in codec {self.codec}, not {codec}: "
                "choose another folder with --store, or leave --codec out"
            )
        if meta["sealed"] is None:
            return False
        # A process that was killed between the seal and the offsets left none.
        keys = value_keys(StoreEntry(**entry) for entry in meta["sealed"]["entries"])
        if not have_offsets(self.path, meta["sealed"]["digest"], len(keys)):
            with suppress(UserError):  # it can be read without them
                self.located_anew = self._locate(meta["sealed"]["digest"], keys)
        return True

    def _put_meta(self, sealed: dict[str, Any] | None) -> None:
        meta = {"format": FORMAT, "version": VERSION, "subtile": SUBTILE, "codec": self.codec, "sealed": sealed}
        with self._saving(), self._environment.begin(write=True) as transaction:
            transaction.put(META_KEY, json.dumps(meta, allow_nan=False).encode())

    def _locate(self, digest: str, keys: list[bytes]) -> bool:
        try:
            with explained(self.path, "read"):
                return write_offsets(self.path, self._environment, digest, keys)
        except OSError as error:
            problem = f"the offsets of store {self.path} cannot be written ({error.strerror})"
            raise UserError(f"{problem}: make room there and run prepare again") from None

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
        with explained(self.path, "read"):
            for _, value in done_records(self._environment):
                record = json.loads(value)
                entry = StoreEntry(**record["entry"])
                records[entry.id] = (entry, record["provenance"])
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
            entry: what is known about the tile; `highest` and the sums of the heights are filled in.
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
        self.write_encoded(with_heights(entry, agl_cm), encode_tile(self.codec, rgb, agl_cm), provenance)

    def write_encoded(self, entry: StoreEntry, values: list[bytes], provenance: dict[str, Any] | None = None) -> None:
        """`write` of what `encode_tile` made, in this store's codec, of a tile, of an entry `with_heights`.

        Raises:
            ValueError: when there are more or fewer values than sub-tiles.
        """
        places = list(subtiles(entry.height, entry.width))
        if len(values) != len(places):
            raise ValueError(f"tile {entry.id}: {len(values)} values for {len(places)} sub-tiles")
        digest = xxhash.xxh3_128()
        for value in values:
            digest.update(value)
        record = {"entry": asdict(entry), "provenance": provenance or {}, "codec": self.codec}
        done = json.dumps({**record, "digest": digest.hexdigest()}, allow_nan=False).encode()

        self.remove(entry.id)
        with self._saving():
            transaction = self._writing()
            for (row, column, _, _), value in zip(places, values, strict=True):
                transaction.put(subtile_key(entry.id, row, column), value)
            # Last, so that even an exception between two puts leaves no record of half a tile.
            transaction.put(done_key(entry.id), done)
        self._pending += sum(len(value) for value in values)
        if self._pending >= _COMMIT_BYTES or time.monotonic() - self._committed >= _COMMIT_SECONDS:
            self._commit()

    def remove(self, tile: str) -> None:
        """Forget the tile of this id, if there is one."""
        prefix = tile_prefix(tile)
        with self._saving(), self._writing().cursor() as cursor:
            if cursor.set_key(done_key(tile)):
                cursor.delete()
            while cursor.set_range(prefix) and bytes(cursor.key()).startswith(prefix):
                cursor.delete()

    def note(self, tile: str, provenance: dict[str, Any]) -> None:
        """Put another provenance in the place of that of a complete tile, whose values stay as they are.

        The store stays sealed, so that who reads it is not disturbed; `seal` finds the values in the file again.

        Raises:
            KeyError: when there is no such tile.
        """
        with self._saving():
            transaction = self._begun()
            value = transaction.get(done_key(tile))
            if value is None:
                raise KeyError(tile)
            done = json.dumps({**json.loads(bytes(value)), "provenance": provenance}, allow_nan=False).encode()
            transaction.put(done_key(tile), done)

    def sweep(self) -> None:
        """Forget values without a record of completion: what an exception in the middle of `write` has left."""
        for tile in sorted(self._tiles_with_values() - self.finished().keys()):
            self.remove(tile)

    def _tiles_with_values(self) -> set[str]:
        self._commit()
        tiles = set()
        with explained(self.path, "read"), self._environment.begin() as transaction, transaction.cursor() as cursor:
            found = cursor.set_range(TILE_PREFIX)
            while found and bytes(cursor.key()).startswith(TILE_PREFIX):
                tile = bytes(cursor.key())[len(TILE_PREFIX) :].split(b"\0")[0].decode()
                tiles.add(tile)
                found = cursor.set_range(tile_prefix(tile)[:-1] + b"\1")  # past its values
        return tiles

    def seal(self) -> bool:
        """Declare the store complete; after this returns it can be read, and it survives a power cut.

        Returns:
            Whether it was found where in the file the values lie, so that they are read from there in large pieces.
            It is not if LMDB writes another format than version 0.9: then they are read through LMDB.

        Raises:
            ValueError: when there is no tile in it.
        """
        entries = [entry for entry, _ in self.finished().values()]
        if not entries:
            raise ValueError(f"store {self.path} has no tiles")
        digest = sealed_digest(self._environment)
        remove_offsets(self.path)
        self._put_meta({"digest": digest, "entries": [asdict(entry) for entry in entries]})
        fill_up(self.path / "data.mdb")
        self._sealed = True
        return self._locate(digest, value_keys(entries))

    def unseal(self) -> None:
        """Declare the store incomplete, as any change does."""
        if self._sealed:
            self._commit()
            remove_offsets(self.path)
            release(self.path)
            self._put_meta(None)
            self._sealed = False

    def close(self) -> None:
        """Commit what was written and let other processes write."""
        try:
            self._commit()
        finally:
            self._opened.close()
            release(self.path)

    def _writing(self) -> lmdb.Transaction:
        self.unseal()
        return self._begun()

    def _begun(self) -> lmdb.Transaction:
        if self._transaction is None:
            self._transaction = self._environment.begin(write=True)
        return self._transaction

    def _commit(self) -> None:
        if self._transaction is not None:
            transaction, self._transaction, self._pending = self._transaction, None, 0
            with self._saving():
                transaction.commit()
            self._committed = time.monotonic()
            # Each page of the map that was touched, and its neighbours, count as memory of this process until then.
            self._environment.close()
            self._environment = open_to_write(self.path)

    @contextmanager
    def _saving(self) -> Iterator[None]:
        """A write that fails takes back what was not committed: after an error LMDB's transaction is of no use."""
        with explained(self.path, "written"):
            try:
                yield
            except lmdb.Error:
                if self._transaction is not None:
                    self._transaction.abort()
                    self._transaction, self._pending = None, 0
                raise
