"""Folders and the file systems that they lie on, as seen from this machine."""

import fcntl
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agl_core.files import fsync_file, fsync_folder
from jobs.doctor.asking import run

NETWORK = (
    *("nfs", "nfs4", "cifs", "smb3", "9p", "afs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "panfs", "pvfs2"),
    *("orangefs", "wekafs", "quobyte", "davfs", "ocfs2", "gfs2", "virtiofs"),
)
SLOW = ("nfs", "nfs4", "cifs", "smb3", "9p", "afs", "davfs", "fuse")
"""File systems on which many small reads at random places are slow."""
IN_MEMORY = ("tmpfs", "ramfs")
LOCK_PATIENCE = 1.5  # seconds for the other process that tries a lock

LOCKER = """
import fcntl, sys
try:
    with open(sys.argv[1]) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("taken")
except OSError as error:
    print("none", error.strerror)
else:
    print("free")
"""


@dataclass(frozen=True)
class Folder:
    """Where a folder or a file lies. path: with all links followed; exists: itself, not only its parent; kind: of the
    file system; mount: its root; device: what is mounted there; free, size: bytes; files: how many more it takes; each
    None where it is not told."""

    path: str
    exists: bool = True
    kind: str = "ext4"
    mount: str = "/"
    free: int | None = None
    size: int | None = None
    files: int | None = None
    device: str = ""

    @property
    def network(self) -> bool:
        """Whether other machines can see the file system."""
        return self.kind in NETWORK or self.kind.startswith("fuse")

    @property
    def slow(self) -> bool:
        """Whether many small reads from it take long."""
        return self.kind.partition(".")[0] in SLOW


@dataclass(frozen=True)
class Written:
    """What became of a file that was written and removed again. error: why it could not be; skew: the file server's
    clock minus this machine's, seconds; lock: taken (another process noticed the lock), free (it did not) or none
    (there are no locks here); unknown where that could not be found out."""

    error: str = ""
    skew: float = 0.0
    lock: str = "taken"


@dataclass(frozen=True)
class Quota:
    """What the user may still store on a file system, bytes and files; None where there is no limit. sure: whether it
    is known to be the file system that was asked about; else it is the one with the least left."""

    left: int | None = None
    files: int | None = None
    sure: bool = True


def look(path: Path, mounts: str = "") -> Folder:
    """Where `path`, or as much of it as exists, lies. mounts: the content of /proc/mounts; empty: this machine's."""
    real = Path(os.path.realpath(path))
    there = existing(real)
    kind, mount, device = mount_of(there, mounts or _mounts())
    known = os.statvfs(there)
    return Folder(
        str(real),
        there == real,
        kind,
        mount,
        known.f_bavail * known.f_frsize if known.f_blocks else None,
        known.f_blocks * known.f_frsize or None,
        known.f_favail if known.f_files else None,
        device,
    )


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(each for each in (path, *path.parents) if each.exists())


def mount_of(path: Path, mounts: str) -> tuple[str, str, str]:
    """Kind, root and device of the file system that a path lies on; all empty where that is not known."""
    found = "", "", ""
    for line in mounts.splitlines():
        words = line.split()
        if len(words) < 3:
            continue
        root = words[1].replace("\\040", " ")
        if (path == Path(root) or Path(root) in path.parents) and len(root) >= len(found[1]):
            device = words[0].replace("\\040", " ")
            found = words[2], root, device  # a later one of the same place lies over the earlier
    return found


def try_writing(folder: Path) -> Written:
    """Write, lock, rename and remove a file in `folder`, or in the nearest folder above it that exists."""
    there = existing(Path(os.path.realpath(folder)))
    name = f".{secrets.token_hex(4)}.probe"
    first, second = there / f"{name}.part", there / name
    try:
        before = time.time()
        first.write_bytes(b"x" * 4096)
        stamp, after = first.stat().st_mtime, time.time()
        fsync_file(first)
        os.replace(first, second)
        fsync_folder(there)
        skew = 0.0 if before - 0.1 <= stamp <= after + 0.1 else stamp - (before + after) / 2
        return Written("", skew, try_lock(second))
    except OSError as error:
        return Written(f"{there}: {error.strerror or error}")
    finally:
        for path in (first, second):
            with suppress(OSError):
                path.unlink(missing_ok=True)


def try_lock(path: Path) -> str:
    """Whether another process notices that this one holds a lock on the file `path`; see `Written.lock`."""
    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return "none"
        answer = run([sys.executable, "-ISc", LOCKER, str(path)], LOCK_PATIENCE)
    words = answer.out.split() if answer is not None else []
    return words[0] if words[:1] in (["taken"], ["free"], ["none"]) else "unknown"


def quota_of(folder: Folder, user: str) -> Quota | None:
    """What the user may still store there, where the file system's own command tells; None if nobody does."""
    if folder.kind == "lustre":
        answer = run(["lfs", "quota", "-q", "-u", user, folder.mount])
        return parse_quota(answer.out, [folder.mount]) if answer is not None and answer.code == 0 else None
    answer = run(["quota", "-w", "-p", "-u", user])
    return parse_quota(answer.out, [folder.mount, folder.device]) if answer is not None else None


def parse_quota(text: str, places: Collection[str]) -> Quota | None:
    """The line of `quota -w -p` or `lfs quota -q` about one of `places`, mounts and devices; where there is none, what
    is tightest in all: after the name kilobytes, soft and hard limit, grace, then the same of files."""
    lefts: list[tuple[int | None, int | None]] = []
    own: list[tuple[int | None, int | None]] = []
    for line in text.splitlines():
        words = [word.rstrip("*") for word in line.split()]
        if len(words) >= 9 and all(word.isdecimal() for word in (*words[1:4], *words[5:8])) and words[0][:1] != "-":
            used, soft, hard, files, files_soft, files_hard = (int(word) for word in (*words[1:4], *words[5:8]))
            limit, most = hard or soft, files_hard or files_soft
            lefts.append(((limit - used) * 1024 if limit else None, most - files if most else None))
            if line.split()[0] in places:
                own.append(lefts[-1])
    if not lefts:
        return None
    left, files_left = ([value for pair in own or lefts if (value := pair[at]) is not None] for at in (0, 1))
    return Quota(min(left, default=None), min(files_left, default=None), bool(own))


def held_bytes(folders: Sequence[Path]) -> int:
    """What the files below these folders take; those that go meanwhile count for nothing."""
    total = 0
    for folder in folders:
        for root, _, names in os.walk(folder):
            for name in names:
                with suppress(OSError):
                    total += os.lstat(os.path.join(root, name)).st_size
    return total


def questions(folders: dict[str, Path], runs: Path) -> dict[str, Callable[[], Any]]:
    """What is asked about these folders, by name."""
    asked: dict[str, Callable[[], Any]] = {f"folder {name}": _looking(path) for name, path in folders.items()}
    asked["written"] = lambda: try_writing(runs)
    return asked


def local_names() -> Sequence[str]:
    """Names and addresses that mean this machine."""
    host = socket.gethostname()
    return host, host.partition(".")[0], "localhost", "127.0.0.1", "::1"


def _looking(path: Path) -> Callable[[], Folder]:
    return lambda: look(path)


def _mounts() -> str:
    with suppress(OSError):
        return Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    return ""
