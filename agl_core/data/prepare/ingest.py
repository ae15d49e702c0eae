"""Building the store from a data set's files: read and encoded in worker processes, written by this one."""

import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from agl_core.config import PrepareConfig
from agl_core.data.catalog import TileRecord, cities, read_catalog
from agl_core.data.prepare.check import check_store
from agl_core.data.prepare.decode import BadTile, encode
from agl_core.data.prepare.fitting import refuse_another
from agl_core.data.prepare.sources import Change, compare, look, reread
from agl_core.data.prepare.workers import in_order
from agl_core.data.store import StoreWriter
from agl_core.data.tiles import UNITS
from agl_core.errors import UserError, valid_choice
from agl_core.machine import cores
from agl_core.reporting.progress import Progress

WRONG_UNITS = 10
"""If so many tiles, the first ones, are all of another unit, then so are the rest."""

Finished = dict[str, dict[str, Any]]
"""What each tile of the store was made of (its provenance), by id."""


def prepare(config: PrepareConfig) -> Path:
    """Build the store of a data set's train split, or bring it up to date, or check it.

    What is in the store in the end is a function of the data set's files and the codec alone: not of the number of
    workers, nor of how often this was killed and run again. Tiles that are in the store already and whose files are
    the same are kept. Memory does not grow with the number of tiles.

    Returns:
        The folder of the store, sealed.

    Raises:
        UserError: when the data set or the store's folder is not as it should be, the store is another data set's or
            of another unit, or tiles are bad: of these each gets a line, the good ones are kept, and the store is not
            sealed.
    """
    _check_options(config)
    data = Path(config.data)
    folder = Path(config.store) if config.store else data / "store"
    if config.check:
        check_store(config, folder, config.workers or cores())
        return folder
    records = read_catalog(data, "train")
    redo = _to_redo(config, records)

    with StoreWriter(folder, config.codec) as writer:
        was_usable = writer.sealed
        if writer.located_anew:
            print(f"store {folder}: its offsets.bin was missing or did not fit, and was written anew")
        finished = {tile: provenance for tile, (_, provenance) in writer.finished().items()}
        refuse_another(folder, records, finished, config.unit)
        if not was_usable:
            writer.sweep()
        todo, notes = _to_do(records, finished, redo, config)
        stale = sorted(finished.keys() - {record.id for record in records} | finished.keys() & {r.id for r in todo})
        if todo or stale or notes or not writer.sealed:
            with _interruptible(writer, len(records)):
                if todo or stale:
                    writer.unseal()
                for tile, provenance in notes.items():
                    writer.note(tile, provenance)
                for tile in stale:
                    writer.remove(tile)
                bad = _write_tiles(writer, todo, len(records), config)
            if bad:
                raise UserError(_describe_bad(bad, data) + (_no_longer_usable(folder) if was_usable else ""))
            writer.seal()
        else:
            print(f"store {folder} is up to date: {len(records)} tiles, nothing to do")
        _print_summary(writer, folder, _done(records, finished, {record.id for record in todo}))
    return folder


@contextmanager
def _interruptible(writer: StoreWriter, total: int) -> Iterator[None]:
    """Whoever presses Ctrl-C is told what there is, which is kept."""
    try:
        yield
    except KeyboardInterrupt:
        there = len(writer.finished())  # commits
        line = f"interrupted: {there} of {total} tiles are in the store {writer.path}; the same command does the rest"
        print(line, file=sys.stderr, flush=True)
        raise


def _check_options(config: PrepareConfig) -> None:
    valid_choice("unit", config.unit, list(UNITS))
    if config.workers is not None and config.workers < 1:
        raise UserError(f"workers is {config.workers}: give at least 1")
    if config.check and config.redo:
        raise UserError("--check changes nothing, so that it cannot --redo tiles: give one of the two")


def _to_redo(config: PrepareConfig, records: list[TileRecord]) -> set[str]:
    redo = {tile.strip() for tile in config.redo.split(",") if tile.strip()}
    strange = sorted(redo - {record.id for record in records})
    if strange:
        raise UserError(f"redo: the data set {config.data} has no tile {strange[0]!r}: give ids of its train split")
    return redo


def _to_do(
    records: list[TileRecord], finished: Finished, redo: set[str], config: PrepareConfig
) -> tuple[list[TileRecord], Finished]:
    """The tiles that are not in the store as their files are now, in the order of `records`; and see `_changed`."""
    todo, touched = set(redo), []
    for record in records:
        if record.id not in finished:
            todo.add(record.id)
        elif record.id not in redo:
            change = compare(finished[record.id], look(record, config.unit))
            if change is Change.TIMES:
                touched.append(record)
            elif change is Change.CONTENT:
                todo.add(record.id)
    changed, notes = _changed(touched, finished, config)
    todo |= changed
    return [record for record in records if record.id in todo], notes


def _changed(touched: list[TileRecord], finished: Finished, config: PrepareConfig) -> tuple[set[str], Finished]:
    """Those of the tiles, whose files are only known to be of another time, that have another content too.

    And the others' provenance with the new times, as if they had been made now: when the store has it, they need not be
    compared again. It is for later, since to note it breaks the seal, and all files may have to be read until then.
    """
    changed, notes = set(), {}
    workers = min(config.workers or cores(), max(len(touched), 1))
    with (
        Progress("compare", total=len(touched), unit="tiles") as progress,
        closing(in_order(partial(reread, unit=config.unit), touched, workers, attrgetter("id"))) as found,
    ):
        reading = _Reading()
        for record, sources in zip(touched, found, strict=True):
            provenance = finished[record.id]
            if sources.content == provenance.get("content"):
                notes[record.id] = {**provenance, "source": sources.seen}
            else:
                changed.add(record.id)
            progress.advance(read=reading.rate(sources.size))
    return changed, notes


def _write_tiles(writer: StoreWriter, todo: list[TileRecord], total: int, config: PrepareConfig) -> list[BadTile]:
    """Read and write; return the tiles that could not be read: the first, if it speaks for all the data set."""
    workers = min(config.workers or cores(), max(len(todo), 1))
    work = partial(encode, unit=config.unit, codec=writer.codec)
    bad = []
    with (
        Progress("prepare", total=total, unit="tiles", start=total - len(todo)) as progress,
        closing(in_order(work, todo, workers, attrgetter("id"))) as encoded,
    ):
        reading = _Reading()
        for number, tile in enumerate(encoded, 1):
            if isinstance(tile, BadTile):
                bad.append(tile)
                if config.bad_tiles == "stop":
                    break
                if number == len(bad) == WRONG_UNITS and all(each.wrong_unit for each in bad):
                    return bad[:1]
            else:
                writer.write_encoded(tile.entry, tile.values, tile.provenance)
            progress.advance(read=reading.rate(tile.read), **({"bad": len(bad)} if bad else {}))
        for each in bad if len(bad) > 1 else ():
            progress.note(f"bad: {each.why}")
    return bad


class _Reading:
    """How fast source files are read, since this was made."""

    def __init__(self) -> None:
        self._began, self._bytes = time.monotonic(), 0

    def rate(self, more: int) -> str:
        """Count so many bytes more, and say how many MB/s it has been."""
        self._bytes += more
        return f"{self._bytes / 1e6 / max(time.monotonic() - self._began, 1e-9):.3g} MB/s"


def _describe_bad(bad: list[BadTile], data: Path) -> str:
    """One sentence; of several bad tiles each has its own line already."""
    if len(bad) == 1:
        return bad[0].why
    return f"{len(bad)} tiles of {data} are bad, of which each has a line `bad: ...` above; the first: {bad[0].why}"


def _no_longer_usable(folder: Path) -> str:
    return (
        f"; until that is mended, or the rows of these tiles are removed, and prepare is run again, the store {folder} "
        "cannot be used for training"
    )


def _done(records: list[TileRecord], finished: Finished, todo: set[str]) -> str:
    """What was done to a store that had tiles already, in words; empty for a new one, or if nothing was."""
    asked = {record.id for record in records}
    parts = {
        "made again": len(todo & finished.keys()),
        "added": len(todo - finished.keys()),
        "dropped": len(finished.keys() - asked),
    }
    if not finished or not any(parts.values()):
        return ""
    parts["kept"] = len(asked - todo)
    return "; " + ", ".join(f"{count} {what}" for what, count in parts.items() if count)


def _print_summary(writer: StoreWriter, folder: Path, done: str) -> None:
    finished = list(writer.finished().values())
    entries = [entry for entry, _ in finished]
    counts = ", ".join(f"{sum(entry.city == city for entry in entries)} {city}" for city in cities(entries))
    pixels = sum(entry.height * entry.width for entry in entries)
    unknown = sum(provenance["unknown"] for _, provenance in finished) / pixels
    clipped = sum(provenance["clipped"] for _, provenance in finished)
    size = (folder / "data.mdb").stat().st_blocks * 512 / 1e6
    parts = [
        f"{len(entries)} tiles ({counts})",
        f"{size:.0f} MB, {writer.codec}",
        f"{unknown:.1%} of the heights unknown",
    ]
    if clipped:
        parts.append(f"{clipped} negative heights set to 0")
    unposed = sum(entry.scale is None for entry in entries)
    if unposed:
        parts.append(f"{unposed} tiles without pose")
    print(f"store {folder}: " + ", ".join(parts) + done)
