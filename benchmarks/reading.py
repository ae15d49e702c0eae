"""Reading crops: the store, in both codecs, against the reference's way, which unpickles whole tiles.

- End to end, from warm memory through torch's DataLoader: batches of 8 crops, nothing augmented, the same number of
  workers on both sides. Each turn starts its workers anew and counts from the first batch on, so that nothing is read
  ahead in another's time. `reference, float32` is the reference with a cheaper normalisation than its own.
- One crop in this process, from warm memory: the store by its offsets and through LMDB, the reference, GeoTIFF windows.
- What a tile takes on disk.
- What one crop asks of the disk: read calls of the sealed store, counted by it and by Linux, and what the disk then
  has to deliver, the file dropped from the page cache before each crop.
- Opening the index of 6000 tiles in a new process.
- Memory of a data loading process after many crops, of a store and of one with ten times the tiles.
"""

import argparse
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # run as a file: Python then looks for modules in this folder, not in the one above
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agl_core.config import StageConfig
from agl_core.data.dataset import CropDataset, batches
from agl_core.data.order import Order
from agl_core.data.store import Store
from agl_core.data.store.codec import CODECS
from benchmarks import footprint, reference_way
from benchmarks.harness import (
    Comparison,
    Contender,
    Promise,
    Table,
    Told,
    at_least,
    at_most,
    check_json,
    compare,
    report,
)
from benchmarks.harness import parser as command_line
from benchmarks.layouts import REFERENCE, Reader, readers, write_index, write_store
from benchmarks.stored import Cold, cold_table, content_table, disk_table, opening
from benchmarks.tiles import CONTENT, Tile, copies, read_tiles, rendered, rough

CAREFUL = "reference, float32"
BATCH = 8


@dataclass(frozen=True)
class Case:
    """size, crop: pixels; tiles: of the small stores; turns: batches of the reference in a turn, the others take as
    much time; index: tiles of the store that is opened; opens: how often; crops: before memory is looked at."""

    size: int
    crop: int
    tiles: int
    rounds: int
    turn: int
    single_rounds: int
    index: int
    opens: int
    crops: int


QUICK = Case(size=512, crop=128, tiles=1, rounds=1, turn=1, single_rounds=3, index=20, opens=1, crops=16)
FULL = Case(size=2048, crop=512, tiles=8, rounds=7, turn=8, single_rounds=60, index=6000, opens=11, crops=480)
TIMES_MORE = 10
FASTER = {REFERENCE: 1, CAREFUL: 2, "zstd": 4, "raw": 10}
"""About how many times as many batches as the reference each contender makes in the same time."""

Source = Callable[[int, int], Iterator[Any]]
"""(number of batches, workers) to the batches."""


def own_source(path: Path, crop: int) -> Source:
    """This project's batches."""
    store = Store(path)
    config = StageConfig(crop=crop, batch=BATCH, micro_batch=BATCH)
    dataset = CropDataset(store, range(len(store)), config, seed=0, stage=0)
    order = Order(0, 0, len(store), BATCH)
    return lambda count, workers: batches(dataset, order, 0, count, workers=workers)


def reference_source(path: Path, tiles: Sequence[Tile], crop: int, careful: bool = False) -> Source:
    """The reference's batches."""
    dataset = reference_way.ReferenceDataset(path, tiles, crop, careful)
    return lambda count, workers: iter(reference_way.loader(dataset, BATCH, count, workers))


def turn(source: Source, count: int, workers: int, told: Told) -> Contender:
    """Takes `count` batches from new workers, after a first one; tells the seconds per crop."""

    def run() -> None:
        iterator = source(count + 1, workers)
        next(iterator)
        began = time.perf_counter()
        for _ in range(count):
            next(iterator)
        told.seconds += (time.perf_counter() - began) / (count * BATCH)
        del iterator  # with its workers

    return run


def end_to_end(sources: Mapping[str, Source], case: Case, workers: int) -> Comparison:
    """Seconds per crop through the DataLoader."""
    told = Told()
    contenders = {
        name: turn(source, case.turn * FASTER[name] * workers, workers, told) for name, source in sources.items()
    }
    return compare(contenders, case.rounds, REFERENCE, told)


def in_turn(reader: Reader, corners: Sequence[tuple[int, int]], side: int) -> Contender:
    """Each call reads the crop at the next of `corners`, so that a round is the same crop for all."""
    waiting = iter(corners)

    def read_next() -> None:
        reader(*next(waiting), side)

    return read_next


def one_crop(tile: Tile, case: Case, folder: Path) -> Comparison:
    """Seconds of one crop in this process."""
    generator = np.random.default_rng(1)
    corners = generator.integers(0, case.size - case.crop + 1, (case.single_rounds + 1, 2)).tolist()
    with readers(folder, tile) as layouts:
        contenders = {name: in_turn(reader, corners, case.crop) for name, reader in layouts.items()}
        return compare(contenders, case.single_rounds, REFERENCE)


def worker_memory(source: Source, crops: int) -> footprint.Memory:
    """Memory of a data loading process that has read `crops` crops."""
    count = max(crops // BATCH, 2)
    iterator = source(count + 1, 1)
    for _ in range(count):
        next(iterator)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    found = footprint.memory(worker.pid)
    for _ in iterator:
        pass
    return found


def memory_table(sources: Sequence[Mapping[str, Source]], case: Case) -> tuple[Table, dict[str, list[float]]]:
    """Memory of a worker with the small store and with the large one."""
    rows, own = [], {}
    for name in (REFERENCE, *CODECS):
        found = [worker_memory(size[name], case.crops) for size in sources]
        own[name] = [memory.own for memory in found]
        rows.append([name, *(f"{memory.own:.0f}" for memory in found), *(f"{memory.resident:.0f}" for memory in found)])
    few, many = f"{case.tiles} tiles", f"{TIMES_MORE * case.tiles} tiles"
    columns = ["layout", f"own, {few}", f"own, {many}", f"resident, {few}", f"resident, {many}"]
    note = f"MB after {case.crops} crops; own: what this process alone has written to; resident: with pages of files"
    return Table("memory of a data loading process", columns, rows, note), own


def write_all(folder: Path, tiles: Sequence[Tile]) -> dict[str, Path]:
    """All layouts of `tiles`."""
    folder.mkdir()
    own = {codec: write_store(folder / codec, tiles, codec) for codec in CODECS}
    return {REFERENCE: reference_way.write(folder / "reference", tiles), **own}


def all_sources(stores: Mapping[str, Path], tiles: Sequence[Tile], crop: int) -> dict[str, Source]:
    """The batches of all layouts."""
    careful = reference_source(stores[REFERENCE], tiles, crop, careful=True)
    own = {codec: own_source(stores[codec], crop) for codec in CODECS}
    return {REFERENCE: reference_source(stores[REFERENCE], tiles, crop), CAREFUL: careful, **own}


def promises(
    fast: Mapping[int, Comparison], sizes: Mapping[str, float], cold: Mapping[str, Cold], opened: float,
    memory: Mapping[str, Sequence[float]],
) -> list[Promise]:  # fmt: skip
    """What the figures have to be."""
    found = []
    for workers, comparison in fast.items():
        for codec, least in (("raw", 10.0), ("zstd", 4.0)):
            what = f"crops per second, {codec}, {workers} worker{'s' * (workers > 1)}"
            found.append(at_least(what, comparison.faster(codec).median, least, "x the reference"))
    found.append(at_least("disk, zstd", sizes[REFERENCE] / sizes["zstd"], 3.0, "x smaller", 2))
    found.append(at_most("read requests of a cold crop, zstd, highest", cold["zstd"].requests, 4, "requests", 0))
    found.append(at_most("bytes of a cold crop, zstd, mean", cold["zstd"].mean_mb, 1.5, "MB", 2))
    found.append(at_most("opening the index in a new process, offsets included", opened, 100, "ms"))
    for codec in CODECS:
        few, many = memory[codec]
        found.append(at_most(f"growth of a worker's own memory with 10 x the tiles, {codec}", many - few, 10, "MB"))
    return found


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    own = command_line("Reading crops: the store against the reference's way.")
    own.add_argument(
        "--data", type=Path, metavar="FOLDER", help="also say how well the tiles of this data set compress"
    )
    given = own.parse_args(argv)
    check_json(own, given)
    return given


def check_room(case: Case) -> None:
    """Refuse to fill the disk."""
    needed = 16 * case.size**2 * case.tiles * (1 + TIMES_MORE) + 2e9 * (case.index / 6000)
    folder = Path(tempfile.gettempdir())
    if shutil.disk_usage(folder).free < needed:
        raise SystemExit(f"{folder} has less than {needed / 1e9:.0f} GB left: make room, or set TMPDIR to another disk")


def main(argv: Sequence[str] | None = None) -> None:
    given = parse(argv)
    case = QUICK if given.quick else FULL
    check_room(case)
    distinct = read_tiles(rendered(case.size))
    few, many = copies(distinct, case.tiles), copies(distinct, TIMES_MORE * case.tiles)
    with tempfile.TemporaryDirectory(prefix="agl-reading-") as name:
        folder = Path(name)
        small, large = write_all(folder / "small", few), write_all(folder / "large", many)
        sources = [all_sources(small, few, case.crop), all_sources(large, many, case.crop)]
        through = {workers: end_to_end(sources[1], case, workers) for workers in (1, 2)}
        single = one_crop(distinct[0], case, folder)
        disk, sizes = disk_table(large, len(many))
        cold, counted = cold_table(large, many, case.crop, max(min(case.crops // 4, 64), 2))
        opened = opening(write_index(folder / "index", case.index), case.opens)
        memory, own = memory_table(sources, case)
    kinds = {"the tiles above": distinct, "the same, heights with a noise of 5 cm": [rough(tile) for tile in distinct]}
    if given.data is not None:
        kinds[f"tiles of {given.data.name}"] = read_tiles(given.data)
    opening_row = [str(case.index), str(case.opens), *(f"{f(opened):.1f}" for f in (statistics.median, min, max))]
    tables = [
        through[2].as_table("through the DataLoader, per crop, 2 workers"),
        single.as_table("one crop in one process, warm"),
        disk, content_table(kinds), cold,
        Table("opening a store", ["tiles", "processes", "median ms", "lowest", "highest"], [opening_row]),
        memory,
    ]  # fmt: skip
    title = (
        f"through the DataLoader, per crop of {case.crop} x {case.crop} from tiles of {case.size} x {case.size}, "
        f"batches of {BATCH}, 1 worker, {case.rounds} rounds"
    )
    held = promises(through, sizes, counted, statistics.median(opened), own)
    settings = {**vars(case), "content": CONTENT, "two_workers": through[2].as_json(), "one_crop": single.as_json()}
    report(through[1], title, settings, check_json(command_line(""), given), tables, held)


if __name__ == "__main__":
    main()
