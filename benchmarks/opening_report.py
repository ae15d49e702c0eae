"""The report of a run of 1550 epochs and 50 starts: how large it is, and how long a browser takes to open it.

The run is that of the tests (`tests.reporting.histories.long_run`), with eight held-out tiles of noise beside, which no
picture format makes small. Opening is timed by the browser itself (Chromium without a window), from the beginning of
the navigation to the end of its load event, and to the first picture on the screen, with an empty cache each time.
"""

import contextlib
import io
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # run as a file: Python then looks for modules in this folder, not in the one above
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agl_core.config import ReportConfig
from agl_core.geometry import Pose
from agl_core.reporting.pictures.tiles import Tile, write_tiles
from benchmarks.harness import Table, arguments, at_most, compare, report
from jobs.reports import report as write_report
from tests.reporting.browser import Browser, reason
from tests.reporting.histories import long_run

WRITE, OPEN = "write the report", "open it"
SIZE, SECONDS = 5.0, 2.0
"""At most: MB, and seconds to the end of the load event."""

TIMES = """const [page] = performance.getEntriesByType('navigation');
const paints = performance.getEntriesByType('paint').map(one => one.startTime);
return [page.loadEventEnd, paints.length ? Math.min(...paints) : page.loadEventEnd];"""


@dataclass(frozen=True)
class Case:
    """epochs, starts: of the run; rounds: how often the report is written and opened."""

    epochs: int
    starts: int
    rounds: int


QUICK = Case(epochs=60, starts=5, rounds=2)
FULL = Case(epochs=1550, starts=50, rounds=9)


@dataclass
class Opened:
    """What the browser has told, milliseconds."""

    browser: Browser
    loads: list[float] = field(default_factory=list)
    paints: list[float] = field(default_factory=list)

    def open(self, page: Path) -> None:
        """Open a page once more."""
        self.browser.driver.get("about:blank")
        self.browser.open(page)
        load, paint = self.browser.run(TIMES)
        self.loads.append(load)
        self.paints.append(paint)


def add_tiles(folder: Path) -> None:
    """Eight tiles of 512 x 512 random pixels."""
    random = np.random.default_rng(0)
    tiles = []
    for number in range(8):
        rgb = random.integers(0, 255, (512, 512, 3)).astype(np.uint8)
        truth, predicted = (random.integers(0, 5000, (512, 512)).astype(np.uint16) for _ in range(2))
        tiles.append(Tile(f"X_{number}", "X", rgb, truth, predicted, Pose(0.5, 1.0), Pose(0.6, 1.1)))
    write_tiles(folder, tiles)


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments("The report of a long run: its size, and the time to open it in a browser.", argv)
    if (why := reason()) is not None:
        sys.exit(why)
    case = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory(prefix="agl-report-") as name:
        run = long_run(Path(name) / "long", case.epochs, case.starts)
        add_tiles(run / "tiles" / "full")
        page = run / "report.html"

        def write() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                write_report(ReportConfig(run=run.name, runs=name))

        opened = Opened(Browser())
        try:
            comparison = compare({WRITE: write, OPEN: lambda: opened.open(page)}, case.rounds, WRITE)
        finally:
            opened.browser.close()
        size = page.stat().st_size / 1e6
    rows = [_row("end of the load event", opened.loads), _row("first picture", opened.paints)]
    tables = [Table("opening it, by the browser's clock", ["until", "median ms", "lowest", "highest"], rows)]
    held = [
        at_most("size of the file", size, SIZE, "MB", 2),
        at_most("time to the end of the load event, median", statistics.median(opened.loads) / 1000, SECONDS, "s", 2),
    ]
    title = f"the report of {case.epochs} epochs and {case.starts} starts, {size:.2f} MB, {case.rounds} rounds"
    settings: dict[str, Any] = {**vars(case), "loads_ms": opened.loads, "bytes": round(size * 1e6)}
    report(comparison, title, settings, options, tables, held)


def _row(name: str, milliseconds: Sequence[float]) -> list[str]:
    return [
        name,
        *(f"{value:.0f}" for value in (statistics.median(milliseconds), min(milliseconds), max(milliseconds))),
    ]


if __name__ == "__main__":
    main()
