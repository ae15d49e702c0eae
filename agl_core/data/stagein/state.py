"""Which state of a store it is: what another process, or this one later, can recognise it by without reading it all."""

import os
from dataclasses import dataclass
from pathlib import Path

import xxhash

from agl_core.data.store.layout import META_KEY, shared_mapping
from agl_core.data.store.offsets import NAME

DATABASE, OFFSETS = "data.mdb", NAME
"""The files of a sealed store; it can be read without the second one too."""


@dataclass(frozen=True)
class StoreState:
    """The state of the sealed store in the folder `path`.

    files: names and sizes in bytes of all that a copy of it needs. digest: of the store's place, the number of its last
    transaction and its index. head: the first pages of the database, which every change changes.
    """

    path: Path
    files: tuple[tuple[str, int], ...]
    digest: str
    head: bytes

    @staticmethod
    def of(path: Path) -> "StoreState":
        """The present one.

        Raises:
            OSError: it cannot be read.
            UserError: it cannot be opened as a database.
        """
        mapping = shared_mapping(path)  # held: it is closed when nobody has it any more
        page = mapping.environment.stat()["psize"]
        head = _head(path, page)
        with mapping.environment.begin() as transaction:
            meta, number = transaction.get(META_KEY), transaction.id()
        used = (mapping.environment.info()["last_pgno"] + 1) * page  # there may be a tail that is not in use
        files = [(DATABASE, min(used, (path / DATABASE).stat().st_size))]
        if (path / OFFSETS).is_file():
            files.append((OFFSETS, (path / OFFSETS).stat().st_size))
        index = xxhash.xxh3_128(meta or b"").hexdigest()
        text = f"{os.path.realpath(path)}\n{number}\n{files}\n{index}"
        return StoreState(path, tuple(files), xxhash.xxh3_128(text.encode()).hexdigest(), head)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.files)

    def changed(self) -> bool:
        """Whether somebody has written to the store since."""
        return _head(self.path, len(self.head) // 2) != self.head


def _head(path: Path, page: int) -> bytes:
    """The two pages that LMDB writes in turn at the end of each transaction."""
    with (path / DATABASE).open("rb", buffering=0) as file:
        return file.read(2 * page)
