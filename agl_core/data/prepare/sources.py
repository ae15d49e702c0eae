"""What a tile of the store was made of, and whether it still is what the data set holds.

A file is taken for unchanged if its name, size and time of change are the same. Where only the time differs, as after
copying a data set, the content decides, of which the store keeps a hash.
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import xxhash

from agl_core.data.catalog import TileRecord
from agl_core.data.store.layout import VERSION
from agl_core.errors import UserError

_BLOCK = 1 << 20


class Change(Enum):
    """What has become of the files of a tile since it was put into the store."""

    NONE = "none"
    TIMES = "times"
    """Only when they were changed is another: their content may be the same."""
    CONTENT = "content"


def look(record: TileRecord, unit: str) -> dict[str, Any]:
    """All that a tile is made of, as far as that can be told without reading it; JSON, for the store to keep.

    `files` are name, size in bytes and time of change in nanoseconds of RGB, AGL and VFLOW, None where there is none.
    """
    files = [_state(path) for path in _files(record)]
    facts = {"unit": unit, "city": record.city, "gsd": record.gsd, "place": record.place}
    return {"files": files, **facts, "version": VERSION}


def size(seen: dict[str, Any]) -> int:
    """Bytes of the files that `look` has seen."""
    return sum(state[1] for state in seen["files"] if state is not None)


def contents(record: TileRecord) -> list[str | None]:
    """The hash (xxh3, 128 bits) of the content of each file of a tile, None where there is none.

    Raises:
        UserError: when a file cannot be read.
    """
    return [_hash(path) for path in _files(record)]


@dataclass(frozen=True)
class Sources:
    """What `look` has seen of a tile's files, and then `contents`, None where they could not be read; `size` in
    bytes."""

    seen: dict[str, Any]
    content: list[str | None] | None
    size: int


def reread(record: TileRecord, unit: str) -> Sources:
    """Look at the files of a tile and hash them, in this order: what changes meanwhile differs the next time."""
    seen = look(record, unit)
    try:
        content = contents(record)
    except UserError:  # whoever decodes the tile will say so
        content = None
    return Sources(seen, content, size(seen))


def compare(provenance: dict[str, Any], seen: dict[str, Any]) -> Change:
    """Compare what a tile of the store was made of with what `look` sees now."""
    made_of = provenance.get("source")
    if made_of == seen:
        return Change.NONE
    return Change.TIMES if _timeless(made_of) == _timeless(seen) else Change.CONTENT


def _timeless(source: Any) -> Any:
    if not isinstance(source, dict):
        return source
    return {**source, "files": [state and state[:2] for state in source.get("files", [])]}


def _files(record: TileRecord) -> tuple[Path | None, ...]:
    return record.rgb, record.agl, record.vflow


def _state(path: Path | None) -> list[Any] | None:
    if path is None:
        return None
    try:
        state = path.stat()
    except OSError:  # gone since the catalogue was read: reading it will say so
        return None
    return [path.name, state.st_size, state.st_mtime_ns]


def _hash(path: Path | None) -> str | None:
    if path is None:
        return None
    digest = xxhash.xxh3_128()
    try:
        with path.open("rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): replace the file") from None
    return digest.hexdigest()
