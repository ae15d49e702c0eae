"""Building the store: `launch.py prepare` against the reference's way, which holds all images in memory at once.

Both run in processes of their own; the time is per tile. That of `prepare` is of the whole command, from the launch of
Python to the sealed store; that of the reference is of its loop alone, in one process, as it has been. Between turns
the disk settles. The sources are a few distinct tiles under many names (hard links), so that they are read from warm
memory: decoding and writing are measured, not the disk that the data set lies on.

Memory is the highest resident memory of each process (VmHWM), pages of mapped files included. A second run of `prepare`
with ten times the tiles shows whether it grows.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a file: Python then looks for modules in this folder, not in the one above
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agl_core.machine import cores
from benchmarks.footprint import Watch, size_on_disk
from benchmarks.harness import Contender, Promise, Table, Told, at_most, check_json, compare, report
from benchmarks.harness import parser as command_line
from benchmarks.tiles import CONTENT, linked, rendered

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = "reference"
MOST_MB = 400.0
TIMES_MORE = 10


@dataclass(frozen=True)
class Case:
    """tiles of `size` x `size` pixels in each turn."""

    size: int
    tiles: int
    rounds: int


QUICK = Case(size=512, tiles=3, rounds=1)
FULL = Case(size=2048, tiles=48, rounds=3)


@dataclass(frozen=True)
class Outcome:
    """What building once has cost: seconds, MB of the store, highest MB of the processes, the first one first."""

    seconds: float
    stored: float
    peaks: tuple[float, ...]


def watched(command: Sequence[str], store: Path) -> tuple[Outcome, str]:
    """Run a command that builds `store`, which is removed; its outcome and what it has printed."""
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with Watch(process.pid) as watch:
        printed, errors = process.communicate()
    seconds = time.perf_counter() - began
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {errors}")
    outcome = Outcome(seconds, size_on_disk(store) / 1e6, tuple(watch.peaks.values()))
    shutil.rmtree(store)
    os.sync()
    return outcome, printed


def prepare(data: Path, store: Path, codec: str) -> Outcome:
    """This project's way."""
    command = [sys.executable, "launch.py", "prepare", "--data", str(data), "--store", str(store), "--codec", codec]
    return watched(command, store)[0]


def reference(data: Path, store: Path) -> Outcome:
    """The reference's way."""
    code = (
        "import sys, time; from pathlib import Path; from benchmarks.reference_way import build\n"
        "began = time.perf_counter(); build(*map(Path, sys.argv[1:])); print('seconds', time.perf_counter() - began)"
    )
    outcome, printed = watched([sys.executable, "-c", code, str(data), str(store)], store)
    found = re.search(r"seconds (\S+)", printed)
    assert found is not None, printed
    return Outcome(float(found[1]), outcome.stored, outcome.peaks)


def contenders(
    data: Path, case: Case, folder: Path, told: Told, outcomes: dict[str, Outcome]
) -> Mapping[str, Contender]:
    """Each builds a store of the tiles of `data` below `folder` and leaves its last outcome in `outcomes`."""

    def own(codec: str) -> Contender:
        def run() -> None:
            outcomes[codec] = prepare(data, folder / codec, codec)
            told.seconds += outcomes[codec].seconds / case.tiles

        return run

    def theirs() -> None:
        outcomes[REFERENCE] = reference(data, folder / REFERENCE)
        told.seconds += outcomes[REFERENCE].seconds / case.tiles

    return {REFERENCE: theirs, "zstd": own("zstd"), "raw": own("raw")}


def memory_table(rows: Sequence[tuple[str, int, Outcome]]) -> Table:
    """One row for each of (name, tiles, outcome)."""
    columns = ["way", "tiles", "tiles per second", "MB stored per tile", "highest MB: first process", "others, highest"]
    cells = []
    for name, tiles, outcome in rows:
        others = f"{max(outcome.peaks[1:]):.0f} ({len(outcome.peaks) - 1})" if len(outcome.peaks) > 1 else "none"
        first = f"{outcome.peaks[0]:.0f}"
        cells.append(
            [name, str(tiles), f"{tiles / outcome.seconds:.2f}", f"{outcome.stored / tiles:.1f}", first, others]
        )
    note = "in brackets: how many other processes there were; Python's own resource tracker is one of them"
    return Table("memory of the processes (VmHWM)", columns, cells, note)


def promises(rows: Sequence[tuple[str, int, Outcome]]) -> list[Promise]:
    """The memory that `prepare` may take."""
    return [
        at_most(f"peak memory of any process of prepare, {name}, {tiles} tiles", max(outcome.peaks), MOST_MB, "MB", 0)
        for name, tiles, outcome in rows
        if name != REFERENCE
    ]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    own = command_line("Building the store: prepare against the reference's way.")
    own.add_argument("--format", choices=("tif", "j2k"), default="tif", help="of the images; default: tif")
    given = own.parse_args(argv)
    check_json(own, given)
    return given


def check_room(case: Case) -> None:
    """Refuse to fill the disk."""
    needed = 3.2 * case.size**2 * case.tiles * TIMES_MORE
    folder = Path(tempfile.gettempdir())
    if shutil.disk_usage(folder).free < needed + 1e9:
        raise SystemExit(f"{folder} has not the {needed / 1e9:.0f} GB and one more: make room, or set TMPDIR elsewhere")


def main(argv: Sequence[str] | None = None) -> None:
    given = parse(argv)
    case = QUICK if given.quick else FULL
    check_room(case)
    source = rendered(case.size, given.format)
    told, outcomes = Told(), dict[str, Outcome]()
    with tempfile.TemporaryDirectory(prefix="preparing-", dir=source.parent) as name:  # hard links need the same disk
        folder = Path(name)
        few, many = (linked(source, count, folder / f"data-{count}") for count in (case.tiles, TIMES_MORE * case.tiles))
        ways = contenders(few, case, folder, told, outcomes)
        comparison = compare(ways, case.rounds, REFERENCE, told)
        large = prepare(many, folder / "large", "zstd")
    rows = [(way, case.tiles, outcomes[way]) for way in ways] + [("zstd", TIMES_MORE * case.tiles, large)]
    held = 7 * case.size**2 / 1e6
    title = (
        f"building the store, per tile of {case.size} x {case.size} ({given.format}), {case.tiles} tiles, "
        f"{cores()} decoding processes of prepare, {case.rounds} rounds"
    )
    settings = {**vars(case), "format": given.format, "content": CONTENT, "held_by_reference_mb_per_tile": held}
    tables = [memory_table(rows)]
    report(comparison, title, settings, check_json(command_line(""), given), tables, promises(rows))
    print(
        f"the reference holds {held:.1f} MB more for every tile: {held * 5923 / 1000:.0f} GB for the challenge's 5923"
    )


if __name__ == "__main__":
    main()
