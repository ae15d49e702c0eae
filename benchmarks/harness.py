"""Interleaved comparison of a few ways to do the same thing.

Times on a shared machine drift by a factor of two within minutes; what lasts is the ratio of two times taken next to
each other. So each round runs every contender once, and its times are divided by that round's time of the baseline.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from agl_core.files import write_json

Contender = Callable[[], None]

PACKAGES = ("torch", "numpy", "lmdb", "zstandard", "opencv-python-headless", "numba", "rasterio")
"""What times and sizes depend on."""


class Arguments(NamedTuple):
    """What every benchmark takes. quick: a small case in seconds, to see that it works; json: file for the result."""

    quick: bool
    json: Path | None


class Spread(NamedTuple):
    """Median, lowest and highest of the ratios of all rounds."""

    median: float
    lowest: float
    highest: float


class Table(NamedTuple):
    """What was found beside times: a title, the names of the columns, rows of text, and what must be known of it."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""

    def __str__(self) -> str:
        """In columns of equal width, under the title."""
        rows = [self.columns, *self.rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([self.title, *lines, *([self.note] if self.note else [])])


class Promise(NamedTuple):
    """What this project promises of a figure: its limit, what was measured, and whether that is within the limit."""

    what: str
    required: str
    measured: str
    held: bool


def at_most(what: str, measured: float, limit: float, unit: str, digits: int = 1) -> Promise:
    """A promise that a figure is not above `limit`."""
    return Promise(what, f"at most {limit:g} {unit}", f"{measured:.{digits}f} {unit}", measured <= limit)


def at_least(what: str, measured: float, limit: float, unit: str, digits: int = 1) -> Promise:
    """A promise that a figure is not below `limit`."""
    return Promise(what, f"at least {limit:g} {unit}", f"{measured:.{digits}f} {unit}", measured >= limit)


class Told:
    """A clock that contenders move by what they tell, instead of all the time that passes while they run."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@dataclass(frozen=True)
class Comparison:
    """Seconds of every contender in every round; the rounds of different contenders belong together."""

    baseline: str
    seconds: dict[str, list[float]]

    def ratios(self, name: str) -> list[float]:
        """Time of `name` divided by the time of the baseline, round by round."""
        return [own / base for own, base in zip(self.seconds[name], self.seconds[self.baseline], strict=True)]

    def spread(self, name: str) -> Spread:
        """How the ratios of `name` are spread over the rounds."""
        ratios = self.ratios(name)
        return Spread(statistics.median(ratios), min(ratios), max(ratios))

    def faster(self, name: str) -> Spread:
        """How many times as fast as the baseline `name` is, and how that is spread over the rounds."""
        ratios = [1 / ratio for ratio in self.ratios(name)]
        return Spread(statistics.median(ratios), min(ratios), max(ratios))

    def as_table(self, title: str) -> Table:
        """The same as `table`, and how many times as fast as the baseline each contender is."""
        rows = []
        for name, seconds in self.seconds.items():
            (ratio, lowest, highest), faster = self.spread(name), self.faster(name)
            rows.append([
                name,
                f"{1000 * statistics.median(seconds):.3f}",
                f"{ratio:.3f} ({lowest:.3f} to {highest:.3f})",
                f"{faster.median:.2f} ({faster.lowest:.2f} to {faster.highest:.2f})",
            ])  # fmt: skip
        note = f"ratio: time divided by that of '{self.baseline}' in the same round; median (lowest to highest)"
        return Table(title, ["contender", "median ms", "ratio", "times as fast"], rows, note)

    def table(self) -> str:
        """A line for each contender: median time, and median, lowest and highest ratio to the baseline."""
        width = max(len("contender"), *map(len, self.seconds))
        lines = [f"{'contender':{width}}  {'median ms':>10}  {'ratio':>8}  {'lowest':>8}  {'highest':>8}"]
        for name, seconds in self.seconds.items():
            median, lowest, highest = self.spread(name)
            milliseconds = 1000 * statistics.median(seconds)
            lines.append(f"{name:{width}}  {milliseconds:10.3f}  {median:8.3f}  {lowest:8.3f}  {highest:8.3f}")
        lines.append(f"ratio: time divided by that of '{self.baseline}' in the same round")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Times of every round in seconds, and the ratios with their spread."""
        ratios = {name: {**self.spread(name)._asdict(), "rounds": self.ratios(name)} for name in self.seconds}
        return {"baseline": self.baseline, "contenders": self.seconds, "ratios": ratios}


def turns(names: Sequence[str], number: int) -> list[str]:
    """The order of round `number`: each round begins one contender later than the one before."""
    first = number % len(names)
    return [*names[first:], *names[:first]]


def compare(
    contenders: Mapping[str, Contender], rounds: int, baseline: str, clock: Callable[[], float] = time.perf_counter
) -> Comparison:
    """Time `contenders` against each other in `rounds` rounds, after one round that is not counted.

    Args:
        contenders: what to time, by name; each is called `rounds + 1` times.
        rounds: how many rounds count, at least 1.
        baseline: the contender that the others are divided by.
        clock: seconds, from any origin.

    Raises:
        ValueError: when no round is asked for, or the baseline is not among the contenders.
    """
    if rounds < 1 or baseline not in contenders:
        raise ValueError(f"{rounds} rounds against {baseline!r}: give 1 or more, and one of {', '.join(contenders)}")
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in turns(list(contenders), number):
            began = clock()
            contenders[name]()
            seconds[name].append(clock() - began)
    return Comparison(baseline, seconds)


def parser(description: str) -> argparse.ArgumentParser:
    """The command line that every benchmark has; a script may add to it."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--quick", action="store_true", help="a small case in seconds, to see that the script works")
    result.add_argument("--json", type=Path, metavar="FILE", help="also write machine, times and ratios to this file")
    return result


def check_json(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Arguments:
    """What every benchmark takes; a result that could not be written is refused before the work."""
    if given.json is not None and not given.json.absolute().parent.is_dir():
        parser.error(f"the folder of --json {given.json} does not exist: create it first")
    return Arguments(given.quick, given.json)


def arguments(description: str, argv: Sequence[str] | None = None) -> Arguments:
    """Parse the command line of a benchmark that has no options of its own."""
    own = parser(description)
    return check_json(own, own.parse_args(argv))


def report(
    comparison: Comparison,
    title: str,
    settings: Mapping[str, Any],
    options: Arguments,
    tables: Sequence[Table] = (),
    promises: Sequence[Promise] = (),
) -> None:
    """Print the comparison, then tables and promises; write the JSON file that was asked for."""
    print(f"{title}\n{comparison.table()}")
    for table in tables:
        print(f"\n{table}")
    if promises:
        print(f"\n{promise_table(promises)}")
    if options.json is not None:
        about = {"title": title, "quick": options.quick, "settings": dict(settings), "machine": machine()}
        beside = {"tables": [table._asdict() for table in tables], "promises": [one._asdict() for one in promises]}
        write_json(options.json, {**about, **comparison.as_json(), **beside})


def promise_table(promises: Sequence[Promise]) -> Table:
    """What is promised, what was measured, and whether it holds."""
    rows = [[one.what, one.required, one.measured, "yes" if one.held else "NO"] for one in promises]
    return Table("promises", ["promise", "required", "measured", "holds"], rows)


def machine() -> dict[str, Any]:
    """What the times were taken on: usable cores, processor, memory, versions of Python and of what does the work."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = {name: version(name) for name in PACKAGES}
    about = {"cores": cores, "cpu": _cpu(), "memory_gib": round(memory, 1), "system": platform.platform()}
    return {**about, "python": platform.python_version(), **versions}


def _cpu() -> str:
    """The processor's name; `platform.processor` says less than Linux does."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
