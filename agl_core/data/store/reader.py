"""The store: all training tiles in one LMDB, cut into sub-tiles, so that a crop reads little more than itself.

Only a sealed store can be read: it is complete. `StoreWriter` fills one.
"""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import xxhash
from numpy.typing import NDArray

from agl_core.data.store.codec import CODECS, SUBTILE, Crop, Part, Value, decode_into
from agl_core.data.store.crops import check_inside, interleaved, touched
from agl_core.data.store.heights import Heights, heights_of
from agl_core.data.store.layout import (
    META_KEY,
    Mapping,
    StoreEntry,
    done_key,
    read_meta,
    releases,
    shared_mapping,
    subtile_key,
)
from agl_core.data.store.pages import cut_off
from agl_core.data.store.ranges import Counter, ValueFile, changed, shortened, unreadable
from agl_core.data.store.writer import StoreWriter
from agl_core.errors import UserError

__all__ = ["Store", "StoreEntry", "StoreWriter"]

PASSING = (errno.EIO, errno.ESTALE)
"""What a file on another machine answers with once in a while: it is opened and read once more."""


class Store:
    """A sealed store, for reading. Cheap to hold, to pickle and to fork: each process opens the file when it reads.

    Where `offsets.bin` fits, values are read at their offsets in the file, else through LMDB. Threads may read at the
    same time.
    """

    entries: list[StoreEntry]
    """The tiles, sorted by id; their positions are the indices of `read_crop` and `read_tile`."""

    cities: list[str]
    """The cities of the tiles, each once, sorted."""

    codec: str
    """How the values are encoded: one of `codec.CODECS`."""

    digest: str
    """Of all that is in the store, 32 hexadecimal digits."""

    def __init__(self, path: Path) -> None:
        """Read the index of the store in the folder `path`.

        Raises:
            UserError: when there is no store, it is not finished, of another version, damaged, or cannot be read.
        """
        self.path = Path(path)
        try:
            if not (self.path / "data.mdb").is_file():
                raise UserError(f"no store at {self.path}: run `python launch.py prepare --data ...` first")
            short = cut_off(self.path / "data.mdb")
        except OSError as error:
            raise unreadable(self.path, error) from None
        if short:
            raise shortened(self.path)
        mapping = shared_mapping(self.path)  # not kept: with offsets nothing more is read through it
        meta = read_meta(self.path, mapping.environment)
        if meta is None or meta["sealed"] is None:
            raise UserError(f"store {self.path} is not finished: run prepare again, it continues where it stopped")
        if meta["subtile"] != SUBTILE or meta["codec"] not in CODECS:
            raise UserError(
                f"store {self.path} has sub-tiles of {meta['subtile']} pixels in codec {meta['codec']}, which this "
                "program does not read: run prepare again with --store and a new folder"
            )
        self.codec, self.digest = meta["codec"], meta["sealed"]["digest"]
        self.entries = [StoreEntry(**entry) for entry in meta["sealed"]["entries"]]
        self.cities = sorted({entry.city for entry in self.entries})
        sizes = np.array([(entry.height, entry.width) for entry in self.entries], np.int64)
        counts = np.prod(-(-sizes // SUBTILE), axis=1)
        self._first = np.cumsum(counts) - counts  # the number of each tile's first value, in the order of the keys
        self._count = int(counts.sum())
        self._begin_process()

    def _begin_process(self) -> None:
        """What belongs to a process and is not sent to another."""
        self._mapping: Mapping | None = None
        self._file: ValueFile | None = None
        self._without: tuple[int, int] | None = None
        self._verified: tuple[Mapping, int] | None = None  # the state that was found to be the one that was opened
        self._counter = Counter()

    def __len__(self) -> int:
        return len(self.entries)

    def __getstate__(self) -> dict[str, Any]:
        own = ("_mapping", "_file", "_without", "_verified", "_counter")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin_process()

    @property
    def read_requests(self) -> int:
        """How often this process asked the operating system for values of this store at their offsets."""
        return self._counter.totals()[0]

    @property
    def read_bytes(self) -> int:
        """How many bytes it got by that."""
        return self._counter.totals()[1]

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
            UserError: when the store is damaged there, cannot be read, or was changed since it was opened.
        """
        check_inside(self.entries[index], y, x, height, width)
        planes = np.empty((3, height, width), np.uint8)
        agl = np.empty((height, width), np.uint16)
        self.read_into(index, y, x, planes, agl)
        return interleaved(planes), agl

    def read_into(self, index: int, y: int, x: int, planes: NDArray[np.uint8], agl: NDArray[np.uint16]) -> None:
        """`read_crop` straight into arrays of the caller, without copies in between.

        Args:
            index: position in `entries`.
            y, x: upper left pixel.
            planes: (3, height, width) uint8, R, G, B; of any strides, but the pixels of a row lie side by side.
            agl: (height, width) uint16, likewise; centimetres, 65535 where unknown.

        Raises:
            ValueError: when the part does not lie inside the tile, or the arrays are not of one size.
            UserError: when the store is damaged there, cannot be read, or was changed since it was opened; the arrays
                are then partly written.
        """
        height, width = agl.shape
        if planes.shape != (3, height, width) or planes.dtype != np.uint8 or agl.dtype != np.uint16:
            raise ValueError(f"planes {planes.shape} {planes.dtype} and AGL {agl.shape} {agl.dtype} are not one crop")
        check_inside(self.entries[index], y, x, height, width)
        entry = self.entries[index]
        parts, crop = list(touched(entry, y, x, height, width)), Crop(planes, agl)
        for part in self._decode_located(index, parts, crop):
            with self._mapped_value(entry, part) as value:
                decode_into(self.codec, value, part, crop)

    def _decode_located(self, index: int, parts: list[Part], crop: Crop) -> list[Part]:
        """Decode the values that are where the offsets say; return the other parts."""
        left = dict(enumerate(parts))
        for place, value in self._located_values([self._number(index, part) for part in parts]):
            with suppress(ValueError):  # LMDB has the last word
                decode_into(self.codec, value, parts[place], crop)
                left.pop(place, None)
        return list(left.values())

    def _located_values(self, numbers: list[int]) -> Iterator[tuple[int, memoryview]]:
        """`ValueFile.read`, none without offsets that fit; some may come twice.

        Raises:
            UserError: the system does not give the file, or the store was changed meanwhile.
        """
        for again in (True, False):
            try:
                file = self._located()
                if file is None:
                    return
                yield from file.read(numbers)
                if not file.usable():  # cut off, or written to, between two values?
                    self._located()
                    self._check_state()
                return
            except OSError as error:
                self._file = None
                if not again or error.errno not in PASSING:
                    raise unreadable(self.path, error) from None

    @contextmanager
    def _mapped_value(self, entry: StoreEntry, part: Part) -> Iterator[Value]:
        """A value through LMDB; what is wrong with it in the block, a `ValueError`, is a `UserError` that names it."""
        try:
            with self._map().environment.begin(buffers=True) as transaction:
                self._check_same(transaction)
                value = transaction.get(subtile_key(entry.id, part.row, part.column))
                if value is None:
                    raise ValueError("it is missing")
                yield value
            self._check_state()  # whoever writes may reuse the pages of a value that is being read
        except UserError:
            raise
        except (ValueError, lmdb.Error) as error:
            with suppress(lmdb.Error):
                self._check_state()
            raise UserError(
                f"store {self.path} is damaged at tile {entry.id} (sub-tile {part.row}, {part.column}): {error}; "
                "delete the store and run prepare again"
            ) from None

    def _check_same(self, transaction: lmdb.Transaction) -> None:
        """See that a transaction reads what was opened: pixels of one state and labels of another are no sample."""
        state = self._map(), transaction.id()
        if self._verified == state:
            return
        meta: Any = transaction.get(META_KEY)  # parsed, it would take as long as a crop: it has all entries
        if self.digest.encode() not in bytes(meta or b""):
            raise changed(self.path)
        self._verified = state

    def _check_state(self) -> None:
        """`_check_same` of the state that the file is in now."""
        with self._map().environment.begin() as transaction:
            self._check_same(transaction)

    def verify(self, index: int) -> str | None:
        """Read all of a tile and compare it with what was written; one sentence if anything is wrong, else None."""
        entry = self.entries[index]
        crop = Crop(np.empty((3, SUBTILE, SUBTILE), np.uint8), np.empty((SUBTILE, SUBTILE), np.uint16))
        digest, heights = xxhash.xxh3_128(), Heights()
        try:
            for part in touched(entry, 0, 0, entry.height, entry.width):
                digest.update(self._decoded_value(index, part._replace(to_row=0, to_column=0), crop))
                heights = heights.joined(heights_of(crop.agl[: part.rows, : part.columns]))
            record = self._record(entry)
        except UserError as error:
            return str(error)
        made = digest.hexdigest(), asdict(replace(entry, **heights._asdict()))
        if record is None or (record["digest"], record["entry"]) != made or made[1] != asdict(entry):
            return (
                f"store {self.path} is damaged at tile {entry.id}: it does not agree with the record of its making; "
                "delete the store and run prepare again"
            )
        return None

    def _decoded_value(self, index: int, part: Part, crop: Crop) -> Value:
        """A value that can be decoded into `crop`; good until the next one is asked for."""
        for _, value in self._located_values([self._number(index, part)]):
            with suppress(ValueError):  # LMDB has the last word
                decode_into(self.codec, value, part, crop)
                return value
        with self._mapped_value(self.entries[index], part) as mapped:
            decode_into(self.codec, mapped, part, crop)
            return bytes(mapped)

    def _record(self, entry: StoreEntry) -> Any:
        """The record of a tile's completion, None if it is missing."""
        with self._map().environment.begin() as transaction:
            self._check_same(transaction)
            raw = transaction.get(done_key(entry.id))
        return None if raw is None else json.loads(raw)

    def close(self) -> None:
        """Let go of the file; the next read opens it again."""
        self._mapping = self._file = self._without = self._verified = None

    def _number(self, index: int, part: Part) -> int:
        """Of a sub-tile's value, in the order of the keys."""
        return int(self._first[index]) + part.row * -(-self.entries[index].width // SUBTILE) + part.column

    def _located(self) -> ValueFile | None:
        """The file whose offsets are known in this process, None where there are none that fit."""
        file = self._file
        if file is None or not file.usable():
            if file is not None and file.cut_off():
                raise shortened(self.path)
            now = os.getpid(), releases()
            if self._without == now:
                return None
            self._file = file = ValueFile.open(self.path, self.digest, self._count, self._counter)
            self._without = now if file is None else None
        return file

    def _map(self) -> Mapping:
        if self._mapping is None or not self._mapping.usable():
            self._mapping = shared_mapping(self.path)
        return self._mapping
