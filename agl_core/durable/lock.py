"""One process at a time, on whatever file system the runs lie."""

import contextlib
import errno
import fcntl
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 300.0  # seconds to wait for a lock that is taken
ABANDONED = 240.0  # seconds, see _numbered
BEAT = 5.0  # seconds between two signs of life, see _numbered
POLL = 0.01  # seconds between two attempts
KEPT = 16  # old numbered files that are left, see _numbered
FREE = "free"
UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)

# By path: the highest number and what is in its file, and since when both have been seen so, see _numbered.
_watched: dict[Path, tuple[tuple[int, str], float]] = {}


class LockTakenError(TimeoutError):
    """Somebody else held the lock for as long as the caller was ready to wait."""


@contextmanager
def file_lock(path: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the lock `path`, which nobody else holds meanwhile: no thread, no process, no other machine.

    The lock is flock(2), which ends with its process whatever ends that; Linux passes it on to an NFS server. Where
    the file system knows no locks, numbered files take its place. The file `path` stays.

    Raises LockTakenError after `patience` seconds of waiting (at 0 after one attempt), and any other OSError of the
    folder, which is not created: FileNotFoundError if it is gone.
    """
    deadline = time.monotonic() + patience
    handle = -1
    try:
        handle = _flock(path, deadline)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    if handle == -1:
        with _numbered(path, deadline):
            yield
        return
    try:
        yield
    finally:
        # A process that was forked meanwhile has a copy of the handle, and closing this one would not unlock.
        fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def held(path: Path) -> bool:
    """Whether anybody holds the lock `path`.

    Where the file system knows no locks, a holder on another machine must give a sign of life: this takes up to `BEAT`
    seconds if there is one, and `ABANDONED` if not.
    """
    before = None
    while True:
        try:
            with file_lock(path, patience=0):
                return False
        except LockTakenError:
            watched = _watched.get(path.absolute())
            if watched is None or before not in (None, watched[0]):
                return True
            before = watched[0]
            time.sleep(POLL)


def _wait(path: Path, deadline: float) -> None:
    if time.monotonic() >= deadline:
        raise LockTakenError(errno.ETIMEDOUT, "another process holds the lock", str(path))
    time.sleep(POLL)


def _flock(path: Path, deadline: float) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever removed or replaced the file meanwhile has made this a lock that nobody else looks at.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(path)):
                    return handle
        except BlockingIOError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        _wait(path, deadline)


def _machine() -> str:
    """Who can say whether a process id of ours is alive: this machine since it was booted, in this container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _dead(holder: str) -> bool:
    """Whether the process that wrote `holder` runs on this machine no more."""
    _, pid, machine = (holder + "\n\n").split("\n")[:3]
    if machine != _machine() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def _numbered(path: Path, deadline: float) -> Iterator[None]:
    """The lock without locks: who creates `path`.<n + 1> exclusively holds it, once n is free or abandoned.

    Creation that fails if the file exists (O_EXCL) is atomic on every file system, also on NFS since version 3. A
    lock file of one fixed name could be neither released nor broken safely: between the look at a file and its
    removal another may have taken its place. Numbers are never used again, so that looking at n and creating n + 1 is
    a compare-and-swap, and the highest number is never removed, only marked as free by its owner.

    A number is abandoned if its process is dead, which only its own machine can tell, or if its file has not changed
    for `ABANDONED` seconds by the clock of the one that waits, in one call or in several; the holder changes it every
    `BEAT` seconds. This is the only place where a clock decides.
    """
    key = path.absolute()
    number = max(_numbers(path), default=0)
    while True:
        holder = _holder(path, number)
        watched = _watched.get(key)
        if watched is None or watched[0] != (number, holder):
            watched = _watched[key] = (number, holder), time.monotonic()
        if holder == FREE or _dead(holder) or time.monotonic() - watched[1] > ABANDONED:
            own = _claim(path, number + 1)
            if own is not None and max(_numbers(path)) == number + 1:
                number += 1
                break
            if own is not None:  # this was an old number, which its next holders have removed
                own.unlink(missing_ok=True)
                number = max(_numbers(path), default=0)
                continue
            number += 1
            continue
        _wait(path, deadline)
    _watched.pop(key, None)
    try:
        for old in _numbers(path):
            if old <= number - KEPT:
                _name(path, old).unlink(missing_ok=True)
        with _beating(own):
            yield
    finally:
        # If this fails the number is given up by the rules above.
        with contextlib.suppress(OSError):
            own.write_text(FREE, encoding="utf-8")


@contextmanager
def _beating(own: Path) -> Iterator[None]:
    """Change the file of a number again and again, as a sign of life."""
    ended = threading.Event()
    end = own.stat().st_size

    def beat() -> None:
        count = 0
        while not ended.wait(BEAT):
            count += 1
            # If it is gone, others have taken it for abandoned. What is written only grows: nobody reads it half.
            with contextlib.suppress(OSError), open(own, "r+b") as file:
                file.seek(end)
                file.write(b"\n%d" % count)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _name(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _numbers(path: Path) -> list[int]:
    tails = [name.removeprefix(f"{path.name}.") for name in os.listdir(path.parent) if name.startswith(f"{path.name}.")]
    return sorted(int(tail) for tail in tails if tail.isdecimal())


def _holder(path: Path, number: int) -> str:
    """Who holds `number`: token, process id and machine; empty if that is not written yet."""
    try:
        return _name(path, number).read_text(encoding="utf-8")
    except FileNotFoundError:
        return FREE


def _claim(path: Path, number: int) -> Path | None:
    """Create the file of `number`, or return None if it exists."""
    own = _name(path, number)
    try:
        with open(own, "x", encoding="utf-8") as file:
            file.write(f"{secrets.token_hex(8)}\n{os.getpid()}\n{_machine()}")
    except FileExistsError:
        return None
    return own
