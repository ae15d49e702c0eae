"""What processes take of memory and ask of the disk, as Linux counts it in /proc."""

import os
import resource
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

POLL = 0.05  # seconds between two looks at the processes of a `Watch`


class Memory(NamedTuple):
    """MB of a process. own: what it alone has written to; resident: all that is mapped, pages of files included."""

    own: float
    resident: float


class Reading(NamedTuple):
    """What reading has cost: read calls and their MB, page faults that waited for the disk, and MB from the disk."""

    calls: int
    call_mb: float
    faults: int
    disk_mb: float

    def since(self, before: "Reading") -> "Reading":
        """What has come since `before`."""
        calls, call_mb, faults, disk_mb = (now - then for now, then in zip(self, before, strict=True))
        return Reading(int(calls), call_mb, int(faults), disk_mb)


def _fields(path: Path) -> dict[str, int]:
    """The numbers of a file of lines 'name: number unit'."""
    fields = {}
    for line in path.read_text().splitlines():
        name, _, rest = line.partition(":")
        if rest.split() and rest.split()[0].isdigit():
            fields[name] = int(rest.split()[0])
    return fields


def memory(process: int) -> Memory:
    """Memory of a process now. Pages of files and pages that it shares since a fork are not its own."""
    fields = _fields(Path(f"/proc/{process}/smaps_rollup"))
    return Memory(fields["Private_Dirty"] * 1024 / 1e6, fields["Rss"] * 1024 / 1e6)


def asked(action: Callable[[], object]) -> Reading:
    """What this process reads while `action` runs."""
    first, before = _read_so_far(), _read_so_far()
    action()
    looking = before.since(first)  # looking is reading too
    return _read_so_far().since(before).since(looking)


def _read_so_far() -> Reading:
    fields = _fields(Path("/proc/self/io"))
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    return Reading(fields["syscr"], fields["rchar"] / 1e6, faults, fields["read_bytes"] / 1e6)


def forget(path: Path) -> None:
    """Drop a file from the page cache, as far as no process maps it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def size_on_disk(folder: Path) -> int:
    """Bytes that the files of a folder take on the disk."""
    return sum(512 * path.stat().st_blocks for path in folder.rglob("*") if path.is_file())


class Watch:
    """Follows a process and those that it starts, and their children's; remembers the highest memory of each.

    with Watch(process.pid) as watch:
        process.wait()
    watch.peaks
    """

    def __init__(self, process: int) -> None:
        self.peaks: dict[int, float] = {}
        """Highest resident memory (VmHWM) of each process, MB; that of `process` comes first."""
        self._root = process
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._over.is_set():
            for process in family(self._root):
                try:
                    peak = _fields(Path(f"/proc/{process}/status")).get("VmHWM", 0) * 1024 / 1e6
                except OSError:  # it has just ended
                    continue
                self.peaks[process] = max(peak, self.peaks.get(process, 0.0))
            self._over.wait(POLL)


def family(process: int) -> list[int]:
    """A process, its children, theirs, and so on."""
    found = [process]
    for one in found:
        for listing in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += [int(child) for child in listing.read_text().split()]
            except OSError:
                continue
    return found
