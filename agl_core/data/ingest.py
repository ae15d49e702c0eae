"""Building the store from a data set's files: decoded in worker processes, written by this one."""

import os
import signal
import threading
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agl_core.config import PrepareConfig
from agl_core.data.catalog import TileRecord, cities, read_catalog
from agl_core.data.store import StoreEntry, StoreWriter
from agl_core.data.tiles import UNITS, UNKNOWN, read_agl_counted, read_rgb, read_vflow
from agl_core.errors import UserError, valid_choice
from agl_core.machine import cores
from agl_core.reporting.progress import Progress

MOST_LISTED = 20


@dataclass(frozen=True)
class DecodedTile:
    """A tile as it goes into the store, and where it came from."""

    entry: StoreEntry
    rgb: NDArray[np.uint8]
    agl_cm: NDArray[np.uint16]
    provenance: dict[str, Any]


def prepare(config: PrepareConfig) -> Path:
    """Build the store of a data set's train split, or bring it up to date.

    Tiles that are in the store already and whose files have not changed since are kept, so that a run that was
    killed at any moment is continued by running it again. Memory does not grow with the number of tiles, and what is
    in the store does not depend on the number of workers.

    Returns:
        The folder of the store, sealed.

    Raises:
        UserError: when the data set or the store's folder is not as it should be, or tiles are bad: these are all
            listed, the good ones are kept, and the store is not sealed.
    """
    valid_choice("unit", config.unit, list(UNITS))
    if config.workers is not None and config.workers < 1:
        raise UserError(f"workers is {config.workers}: give at least 1")
    data = Path(config.data)
    records = read_catalog(data, "train")
    folder = Path(config.store) if config.store else data / "store"
    sources = {record.id: _source(record, config.unit) for record in records}

    with StoreWriter(folder) as writer:
        finished = {tile: provenance["source"] for tile, (_, provenance) in writer.finished().items()}
        todo = [record for record in records if finished.get(record.id) != sources[record.id]]
        stale = [tile for tile in finished if finished[tile] != sources.get(tile)]  # changed or gone
        if todo or stale or not writer.sealed:
            was_usable = writer.sealed
            writer.unseal()
            for tile in stale:
                writer.remove(tile)
            bad = _write_tiles(writer, todo, len(records), config)
            if bad:
                raise UserError(_describe_bad(bad, data) + (_no_longer_usable(folder) if was_usable else ""))
            writer.seal()
        else:
            print(f"store {folder} is up to date: {len(records)} tiles, nothing to do")
        _print_summary(writer, folder)
    return folder


def _write_tiles(writer: StoreWriter, todo: list[TileRecord], total: int, config: PrepareConfig) -> list[str]:
    """Decode and write; return what is wrong with the tiles that could not be read."""
    workers = min(config.workers or cores(), max(len(todo), 1))
    bad = []
    with (
        Progress("prepare", total=total, unit="tiles", start=total - len(todo)) as progress,
        closing(_decode_all(todo, config.unit, workers)) as decoded,
    ):
        for tile in decoded:
            if isinstance(tile, DecodedTile):
                writer.write(tile.entry, tile.rgb, tile.agl_cm, tile.provenance)
            else:
                bad.append(tile)
            progress.advance()
    return bad


def _decode_all(records: list[TileRecord], unit: str, workers: int) -> Generator[DecodedTile | str]:
    """Decode tiles, in order, at most two more than there are workers ahead of the consumer."""
    if workers == 1:
        for record in records:
            yield _decode_or_say(record, unit)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)
    ahead: deque[Future[DecodedTile | str]] = deque()
    try:
        for record in records:
            ahead.append(pool.submit(_decode_or_say, record, unit))
            if len(ahead) >= workers + 2:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            f"a decoding process was killed, perhaps for want of memory: run again with --workers below {workers}; "
            "what is done is kept"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave keyboard and warnings to the parent, stay on one core, and do not outlive a parent that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A cluster warns all processes of a job of its time limit with USR2; the parent answers for all.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    os.environ["GDAL_NUM_THREADS"] = "1"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _decode_or_say(record: TileRecord, unit: str) -> DecodedTile | str:
    try:
        return decode(record, unit)
    except UserError as error:
        return str(error)


def decode(record: TileRecord, unit: str) -> DecodedTile:
    """Read the files of one tile.

    Raises:
        UserError: when a file is missing, damaged or of another unit, or RGB and AGL differ in size.
    """
    assert record.agl is not None, f"tile {record.id} of the train split has no AGL"
    source = _source(record, unit)  # before reading: a file that changes meanwhile is read again by the next run
    rgb = read_rgb(record.rgb)
    agl_cm, clipped = read_agl_counted(record.agl, unit)
    if agl_cm.shape != rgb.shape[:2]:
        raise UserError(
            f"tile {record.id}: AGL is {_size(agl_cm)} but RGB is {_size(rgb)} (in {record.agl}): "
            "replace one by the other's match"
        )
    pose = read_vflow(record.vflow, unit) if record.vflow is not None else None
    height, width = agl_cm.shape
    entry = StoreEntry(
        id=record.id,
        city=record.city,
        gsd=record.gsd,
        height=height,
        width=width,
        scale=pose.scale if pose else None,
        angle=pose.angle if pose else None,
        place=record.place,
    )
    unknown = int(np.count_nonzero(agl_cm == UNKNOWN))
    return DecodedTile(entry, rgb, agl_cm, {"source": source, "unknown": unknown, "clipped": clipped})


def _size(image: NDArray[Any]) -> str:
    return f"{image.shape[0]} x {image.shape[1]}"


def _source(record: TileRecord, unit: str) -> dict[str, Any]:
    """What a tile in the store was made of; a tile is made again when any of it has changed."""
    files = [_state(path) for path in (record.rgb, record.agl, record.vflow)]
    return {"files": files, "unit": unit, "city": record.city, "gsd": record.gsd, "place": record.place}


def _state(path: Path | None) -> list[str | int] | None:
    if path is None:
        return None
    try:
        state = path.stat()
    except FileNotFoundError:  # gone since the catalogue was read: reading it will say so
        return None
    return [path.name, state.st_size, state.st_mtime_ns]


def _describe_bad(bad: list[str], data: Path) -> str:
    """All bad tiles in one message; each has its own sentence already."""
    if len(bad) == 1:
        return bad[0]
    more = f"; and {len(bad) - MOST_LISTED} more" if len(bad) > MOST_LISTED else ""
    return f"{len(bad)} tiles of {data} are bad: " + "; ".join(bad[:MOST_LISTED]) + more


def _no_longer_usable(folder: Path) -> str:
    return (
        f"; until that is mended, or the rows of these tiles are removed, and prepare is run again, the store {folder} "
        "cannot be used for training"
    )


def _print_summary(writer: StoreWriter, folder: Path) -> None:
    finished = list(writer.finished().values())
    entries = [entry for entry, _ in finished]
    counts = ", ".join(f"{sum(entry.city == city for entry in entries)} {city}" for city in cities(entries))
    pixels = sum(entry.height * entry.width for entry in entries)
    unknown = sum(provenance["unknown"] for _, provenance in finished) / pixels
    clipped = sum(provenance["clipped"] for _, provenance in finished)
    size = (folder / "data.mdb").stat().st_blocks * 512 / 1e6
    parts = [f"{len(entries)} tiles ({counts})", f"{size:.0f} MB", f"{unknown:.1%} of the heights unknown"]
    if clipped:
        parts.append(f"{clipped} negative heights set to 0")
    unposed = sum(entry.scale is None for entry in entries)
    if unposed:
        parts.append(f"{unposed} tiles without pose")
    print(f"store {folder}: " + ", ".join(parts))
