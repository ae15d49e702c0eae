"""The device at hand: what it is, and how much of its memory may be used."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from agl_core.errors import UserError

GB = 10**9
SHARE = 0.9  # of the main memory that is available: the rest is left to whoever else is at work


@dataclass(frozen=True)
class Device:
    """kind: "cuda" or "cpu"; memory: bytes that it has; limit: bytes of them that may be used by one process; driver:
    its version, empty on a CPU."""

    kind: str
    name: str
    memory: int
    limit: int
    driver: str = ""

    @property
    def torch(self) -> torch.device:
        """The same for torch."""
        return torch.device("cuda", 0) if self.kind == "cuda" else torch.device("cpu")

    @contextmanager
    def capped(self, limit: int | None = None) -> Iterator[None]:
        """Keep torch's tensors on a GPU below `limit` bytes, the device's own if none is given."""
        if self.kind != "cuda":
            yield
            return
        share = min((limit or self.limit) / self.memory, 1.0)
        torch.cuda.set_per_process_memory_fraction(share, self.torch)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, self.torch)


def device_at_hand(memory: float | None, processes: int = 1) -> Device:
    """The first GPU that torch can use, otherwise the CPU.

    Args:
        memory: GB (10^9 bytes) that may be used; default: all that is free on a GPU, `SHARE` of what is available on a
            CPU, divided by `processes`, which share it. What is not available may not be used in any case.
        processes: that train together on this machine.

    Raises:
        UserError: less than a tenth of a GB may be used, which torch alone takes.
    """
    if torch.cuda.is_available():
        free, whole = torch.cuda.mem_get_info(0)
        name, kind = torch.cuda.get_device_name(0), "cuda"
    else:
        free, whole = int(SHARE * available()) // processes, physical()
        name, kind = processor(), "cpu"
    limit = min(free, int(memory * GB)) if memory is not None else free
    if limit < GB // 10:
        raise UserError(
            f"{limit / GB:.2f} GB of memory are too little to try anything: free some, or give more --memory"
        )
    return Device(kind, name, whole, limit, driver_version() if kind == "cuda" else "")


def available(root: Path = Path("/")) -> int:
    """Bytes of main memory that can be had without anything being swapped out: what the kernel says is available, and
    no more than the control groups of this process leave. Where there is no /proc, half of what is built in."""
    fields = _fields(root / "proc" / "meminfo")
    free = 1024 * fields["MemAvailable"] if "MemAvailable" in fields else physical() // 2
    return min([free, *_left_in_groups(root)])


def _left_in_groups(root: Path) -> Iterator[int]:
    """What is left below each limit of this process's control groups, of both versions; pages of files that the kernel
    can drop do not count as taken."""
    groups = _text(root / "proc" / "self" / "cgroup").splitlines()
    for line in groups:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = base / path.strip().lstrip("/")
        for folder in [own, *own.parents]:
            limit, taken = _text(folder / names[0]).strip(), _text(folder / names[1]).strip()
            if limit.isdigit() and taken.isdigit():
                dropped = _fields(folder / "memory.stat", "").get(names[2], 0)
                yield max(int(limit) - int(taken) + dropped, 0)
            if folder == base:
                break


def physical() -> int:
    """Bytes of main memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def processor() -> str:
    """The processor's name; `platform.processor` says less than Linux does."""
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def driver_version() -> str:
    """Version of NVIDIA's driver, as its own tool says; empty where there is none."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout.strip() else ""


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _fields(path: Path, separator: str = ":") -> dict[str, int]:
    """The numbers of a file of lines 'name: number unit' or 'name number'."""
    found = {}
    for line in _text(path).splitlines():
        name, *rest = line.replace(separator, " ", 1).split() if separator else line.split()
        if rest and rest[0].isdigit():
            found[name] = int(rest[0])
    return found
