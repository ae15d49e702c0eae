"""What a layout costs on the disk: its size, what one crop asks of the disk, and opening the index."""

import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np

from agl_core.data.store import Store
from agl_core.data.store.codec import encode_tile
from benchmarks import footprint, reference_way
from benchmarks.harness import Table
from benchmarks.layouts import REFERENCE
from benchmarks.tiles import CONTENT, Tile


class Cold(NamedTuple):
    """What crops of a store ask of the disk, as it counts itself: most requests, and MB, mean and most."""

    requests: int
    mean_mb: float
    most_mb: float


def disk_table(stores: Mapping[str, Path], tiles: int) -> tuple[Table, dict[str, float]]:
    """MB of a tile on disk, and how many times smaller than the reference's."""
    sizes = {name: footprint.size_on_disk(path) / tiles / 1e6 for name, path in stores.items()}
    rows = [[name, f"{size:.1f}", f"{sizes[REFERENCE] / size:.2f}"] for name, size in sizes.items()]
    return Table("on disk", ["layout", "MB per tile", "times smaller"], rows, f"content: {CONTENT}"), sizes


def content_table(kinds: Mapping[str, Sequence[Tile]]) -> Table:
    """What the codec makes of tiles of other content, beside the 7 bytes per pixel of the reference."""
    rows = []
    for name, tiles in kinds.items():
        pixels = sum(tile.agl.size for tile in tiles)
        packed = sum(len(value) for tile in tiles for value in encode_tile("zstd", tile.rgb, tile.agl))
        sides = ", ".join(sorted({f"{tile.entry.height} x {tile.entry.width}" for tile in tiles}))
        rows.append([name, str(len(tiles)), sides, f"{packed / pixels:.2f}", f"{7 * pixels / packed:.2f}"])
    columns = ["content", "tiles", "pixels", "zstd, bytes per pixel", "times smaller than the reference (7)"]
    return Table("compression depends on content", columns, rows)


def cold_table(
    stores: Mapping[str, Path], tiles: Sequence[Tile], side: int, count: int
) -> tuple[Table, dict[str, Cold]]:
    """What one crop asks of the disk; the file is dropped from the page cache before each."""
    rows, counted = [], {}
    for name, path in stores.items():
        crops = [_cold_crop(name, path, tiles, side, seed) for seed in range(count)]
        if name != REFERENCE:
            requests, bytes_read = [own[0] for own, _ in crops], [own[1] / 1e6 for own, _ in crops]
            counted[name] = Cold(max(requests), statistics.mean(bytes_read), max(bytes_read))
            own = f"{statistics.mean(requests):.2f} (at most {max(requests)})"
            size = f"{statistics.mean(bytes_read):.2f} (at most {max(bytes_read):.2f})"
        else:
            own, size = "through the map", "through the map"
        linux = [statistics.mean(values) for values in zip(*(seen for _, seen in crops), strict=True)]
        rows.append([name, own, size, *(f"{value:.2f}" for value in linux)])
    columns = ["layout", "requests", "MB", "read calls (Linux)", "MB", "faults that waited", "MB from the disk"]
    note = f"means of {count} random crops; requests and MB as the store counts them, the rest as Linux does"
    return Table(f"one crop of {side} x {side}, cold", columns, rows, note), counted


def _cold_crop(
    name: str, path: Path, tiles: Sequence[Tile], side: int, seed: int
) -> tuple[tuple[int, int], footprint.Reading]:
    """(requests, bytes) as the store counts them, and all as Linux does."""
    generator = np.random.default_rng(seed)
    number = int(generator.integers(len(tiles)))
    entry = tiles[number].entry
    y, x = int(generator.integers(entry.height - side + 1)), int(generator.integers(entry.width - side + 1))
    if name == REFERENCE:
        footprint.forget(path / "data.mdb")
        with reference_way.open_reading(path) as environment:
            return (0, 0), footprint.asked(lambda: reference_way.read_crop(environment, entry.id, y, x, side))
    with closing(Store(path)) as store:
        store.read_crop(0, 0, 0, 1, 1)  # opens the file, which a process does once
        footprint.forget(path / "data.mdb")
        requests, size = store.read_requests, store.read_bytes
        seen = footprint.asked(lambda: store.read_crop(number, y, x, side, side))
        return (store.read_requests - requests, store.read_bytes - size), seen


def opening(path: Path, times: int) -> list[float]:
    """Milliseconds in which a new process opens the store of `write_index` and finds its first value, with the offsets
    of all, its modules imported before."""
    code = """
import sys, time
from pathlib import Path
from agl_core.data.store import Store
from agl_core.errors import UserError

began = time.perf_counter()
store = Store(Path(sys.argv[1]))
try:
    store.read_crop(0, 0, 0, 1, 1)
except UserError:  # there is nothing in the values
    assert store.read_requests == 1
    print(1000 * (time.perf_counter() - began))
"""
    top = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-c", code, str(path)]
    return [float(subprocess.check_output(command, cwd=top, text=True)) for _ in range(times)]
