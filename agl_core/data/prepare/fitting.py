"""Whether a store is that of a data set at all, before a tile of it is touched."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agl_core.data.catalog import TileRecord
from agl_core.data.prepare.sources import Change, compare, look
from agl_core.errors import UserError


def refuse_another(folder: Path, records: Sequence[TileRecord], made_of: dict[str, dict[str, Any]], unit: str) -> None:
    """Raise a `UserError` when a store is of another data set, or was made of the same files in another unit.

    Args:
        folder: of the store.
        records: of the data set.
        made_of: the provenance of each tile of the store, by id.
        unit: of the data set's files, as it was given.
    """
    shared = [record for record in records if record.id in made_of]
    if made_of and not shared:
        raise UserError(
            f"store {folder} holds {len(made_of)} tiles of another data set ({some(sorted(made_of), 3)}): choose "
            "another folder with --store, or delete it"
        )
    units = [other for other in (_other_unit(record, made_of[record.id], unit) for record in shared) if other]
    if 2 * len(units) > len(shared):
        raise UserError(f"store {folder} was made of the same files with --unit {units[0]}, not {unit}: give that unit")


def _other_unit(record: TileRecord, provenance: dict[str, Any], unit: str) -> str | None:
    """The unit that a tile was made with, if nothing but the unit differs."""
    source = provenance.get("source")
    other: Any = source.get("unit") if isinstance(source, dict) else None
    if not isinstance(other, str) or other == unit:
        return None
    return other if compare(provenance, look(record, other)) is not Change.CONTENT else None


def some(tiles: Sequence[str], most: int = 10) -> str:
    """The first of the ids, and how many more there are."""
    more = f" and {len(tiles) - most} more" if len(tiles) > most else ""
    return ", ".join(tiles[:most]) + more
