"""One folder of results and the processes, of one machine or of many, that fill it together."""

import contextlib
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from agl_core.durable.lock import UNSUPPORTED, LockTakenError, file_lock

CLAIMS = ".claims"
"""Folder of the locks, inside that of the results, while anybody works there."""

# What those leave behind who are killed: see `agl_core.files`.
_TORN = re.compile(r"\..*\.[0-9a-f]{8}\.part(\.\w+)*|\.[0-9a-f]{8}\.probe")

Begun = TypeVar("Begun")


class Claims:
    """Who works on what. A claim is a lock that ends with its process, whatever ends that: a killed owner's is free
    at once. (Where the file system knows no locks: see `file_lock`.)"""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, ExitStack] = {}

    def take(self, name: str) -> bool:
        """Claim what is called `name`; False if another process, or another thread, has it."""
        stack = ExitStack()
        try:
            stack.enter_context(file_lock(self._folder / f"{name}.lock", patience=0))
        except LockTakenError:
            return False
        self._held[name] = stack
        return True

    def give_back(self, name: str) -> None:
        """End the claim of `name`, which this object has taken; from any thread."""
        self._held.pop(name).close()

    def give_all_back(self) -> None:
        """End all claims."""
        for name in list(self._held):
            self.give_back(name)


@contextmanager
def joined(folder: Path, begin: Callable[[bool], Begun]) -> Iterator[tuple[Claims, Begun]]:
    """Work in `folder` together with whoever else does; yields the claims and what `begin` has answered.

    `begin(alone)` is called before the work, while nobody else begins or ends his; `alone` says whether nobody works
    here. What it raises ends this. Who leaves last removes the locks, and the torn files of those who were killed.
    """
    claims = folder / CLAIMS
    with ExitStack() as stack:
        while True:
            claims.mkdir(exist_ok=True)
            try:
                with file_lock(claims / "lock"):
                    users = os.open(claims / "users", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                    stack.callback(_leave, folder, users)
                    begun = begin(_locked(users, fcntl.LOCK_EX))
                    _locked(users, fcntl.LOCK_SH)
                break
            except FileNotFoundError:  # the last one has just left, and taken the locks away
                if claims.exists():
                    raise
        held = Claims(claims)
        stack.callback(held.give_all_back)
        yield held, begun


def _leave(folder: Path, users: int) -> None:
    """Sign off; errors of the file system do not hide what the work has ended with."""
    claims = folder / CLAIMS
    with contextlib.suppress(OSError), file_lock(claims / "lock"):
        fcntl.flock(users, fcntl.LOCK_UN)
        if _locked(users, fcntl.LOCK_EX):
            for path in folder.iterdir():
                if _TORN.fullmatch(path.name):
                    path.unlink(missing_ok=True)
            shutil.rmtree(claims, ignore_errors=True)
    os.close(users)


def _locked(handle: int, kind: int) -> bool:
    """Take or change the lock on an open file; False if others have it. True as well where there are no locks."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno not in UNSUPPORTED:
            raise
    return True
