"""Whether a copy fits: on a disk, and in memory where the file system is one that lives there."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

RESERVE = (0.05, 1 << 30)
"""What is left free of a file system: a share of its size, and at least so many bytes."""

MEMORY_RESERVE = (0.30, 2 << 30)
"""The same of a node's or a job's memory: the processes that train have still to take theirs."""

IN_MEMORY = ("tmpfs", "ramfs")
UNLIMITED = 1 << 60  # a limit above this is none; version 1 of the control groups says so by a number


def shortage(folder: Path, needed: int, system: Path = Path("/")) -> str | None:
    """Why a file that takes `needed` bytes more should not be written to `folder`, in words; None if it may.

    system: where /proc and /sys are.

    Raises:
        OSError: nothing can be learnt about the folder.
    """
    rooms = [(free_space(folder), f"on the file system of {folder}")]
    if in_memory(folder, system):
        rooms += memory_rooms(system)
    room, where = min(rooms)
    if needed <= room:
        return None
    return (
        f"{_size(needed)} more are needed, but only {_size(max(room, 0))} {where} may be taken (a part must stay free)"
    )


def free_space(folder: Path) -> int:
    """Bytes of the folder's file system that a copy may take."""
    known = os.statvfs(folder)
    if known.f_blocks == 0:  # a ramfs knows no limit but that of memory
        return UNLIMITED
    return known.f_bavail * known.f_frsize - _reserve(RESERVE, known.f_blocks * known.f_frsize)


def in_memory(folder: Path, system: Path = Path("/")) -> bool:
    """Whether what is written to the folder lies in memory."""
    device = os.stat(folder).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in _text(system / "proc/self/mountinfo").splitlines():
        mount, _, kind = line.partition(" - ")
        if mount.split()[2:3] == [number] and kind.split()[:1]:
            return kind.split()[0] in IN_MEMORY
    return False


def memory_rooms(system: Path = Path("/")) -> list[tuple[int, str]]:
    """Bytes of memory that a copy may take, and of what: of the node's, and of each limited control group's."""
    rooms = []
    node = {line.split(":")[0]: line.split() for line in _text(system / "proc/meminfo").splitlines()}
    with suppress(KeyError, IndexError, ValueError):
        total, available = (int(node[name][1]) * 1024 for name in ("MemTotal", "MemAvailable"))
        rooms.append((available - _reserve(MEMORY_RESERVE, total), "of this node's memory"))
    for limit, used in memory_limits(system):
        rooms.append((limit - used - _reserve(MEMORY_RESERVE, limit), "of this job's memory"))
    return rooms


def memory_limits(system: Path) -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of the control groups that this process is in; files that could be dropped from the
    system's cache do not count as used."""
    for line in _text(system / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":  # version 2
            root, names = system / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = system / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # In a container the path may be that on the node, which cannot be seen here; then its root is the group.
        group = root / path.strip("/")
        for folder in dict.fromkeys([group, *group.parents]):
            if folder == root.parent:
                break
            limit, used = (_text(folder / name).strip() for name in names[:2])
            if limit.isdecimal() and used.isdecimal() and int(limit) < UNLIMITED:
                statistics = dict(row.split()[:2] for row in _text(folder / "memory.stat").splitlines() if " " in row)
                droppable = statistics.get(names[2], "0")
                yield int(limit), int(used) - (int(droppable) if droppable.isdecimal() else 0)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{math.ceil(count / 1e6)} MB"


def _reserve(rule: tuple[float, int], whole: int) -> int:
    share, least = rule
    return max(int(share * whole), least)


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""
