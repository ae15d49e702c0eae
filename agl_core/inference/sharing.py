"""One folder of results and the processes, of one machine or of many, that fill it together."""

import contextlib
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from agl_core.durable.lock import LockTakenError, file_lock, held

CLAIMS = ".claims"
"""Folder of the locks, inside that of the results, while anybody works there."""

# Locks in it. No image's is called like these: its name ends in .lock.
_DOOR, _USER = "door", "user-"
_ATTEMPTS = 100

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
    Where the file system knows no locks, the folder `CLAIMS` stays, and whether a stranger who was killed on another
    machine is still at work takes minutes to find out.
    """
    with ExitStack() as stack:
        begun = _join(folder, begin, stack)
        held_claims = Claims(folder / CLAIMS)
        stack.callback(held_claims.give_all_back)
        yield held_claims, begun


def _join(folder: Path, begin: Callable[[bool], Begun], stack: ExitStack) -> Begun:
    """Sign on, and have `stack` sign off; the answer of `begin`. Who works here holds a lock of his own."""
    claims = folder / CLAIMS
    user, attempts = claims / f"{_USER}{secrets.token_hex(8)}", 0
    while True:
        claims.mkdir(exist_ok=True)
        with ExitStack() as door:
            own = ExitStack()
            try:
                door.enter_context(file_lock(claims / _DOOR))
                own.enter_context(file_lock(user))
            except FileNotFoundError:  # the last one has just left, and taken the locks away
                attempts += 1
                if attempts == _ATTEMPTS:
                    raise
                continue
            stack.callback(_leave, folder, user, own)
            return begin(not _others(claims, user))


def _leave(folder: Path, user: Path, own: ExitStack) -> None:
    """Sign off; errors of the file system do not hide what the work has ended with."""
    claims = folder / CLAIMS
    with contextlib.suppress(OSError), file_lock(claims / _DOOR):
        own.close()
        _remove(claims, user.name)
        if not any(_taken(other) for other in _users(claims)):
            for path in folder.iterdir():
                if _TORN.fullmatch(path.name):
                    path.unlink(missing_ok=True)
            _remove(claims, "")
            # Whoever waits at the door finds it removed and goes to a new one: so it is the last. Numbered files, which
            # take its place where there are no locks, must stay, since their numbers may never be used again.
            (claims / _DOOR).unlink()
    with contextlib.suppress(OSError):
        own.close()
    with contextlib.suppress(OSError):  # it is not empty where others work, or have just come
        claims.rmdir()


def _others(claims: Path, user: Path) -> bool:
    """Whether others work here; what is left of those who were killed is removed."""
    for other in _users(claims):
        if other != user:
            if held(other):
                return True
            _remove(claims, other.name)
    return False


def _users(claims: Path) -> list[Path]:
    """The locks of those who work here, or were killed."""
    found = [re.fullmatch(rf"({_USER}[0-9a-f]{{16}})(\.\d+)?", path.name) for path in claims.iterdir()]
    return [claims / name for name in sorted({match[1] for match in found if match})]


def _remove(claims: Path, beginning: str) -> None:
    """Remove the locks whose names begin so, but not that of the door."""
    for path in claims.iterdir():
        if path.name.startswith(beginning) and not re.fullmatch(_DOOR + r"(\.\d+)?", path.name):
            path.unlink(missing_ok=True)


def _taken(path: Path) -> bool:
    try:
        with file_lock(path, patience=0):
            return False
    except LockTakenError:
        return True
