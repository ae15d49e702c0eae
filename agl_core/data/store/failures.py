"""What LMDB reports of a store, as one sentence that says what to do: only a damaged one has to be deleted."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from agl_core.errors import UserError

_DAMAGE = (lmdb.InvalidError, lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.VersionMismatchError)
_ADVICE = {
    (errno.ENOMEM,): "raise the limit of virtual memory (ulimit -v)",
    (errno.EMFILE, errno.ENFILE): "raise the limit of open files (ulimit -n)",
    (errno.EACCES, errno.EPERM, errno.EROFS): "change the permissions of its files, or choose another folder",
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG): "make room there and run prepare again, or choose another disk with "
    "--store",
    # LMDB also calls it so when only a part of what it wrote found room.
    (errno.EIO,): "see whether its disk is broken, or full, then make room there, or choose another with --store",
}
_OTHERWISE = "see whether its disk is there and works, and try again or choose another folder"


def sentence(path: Path, action: str, error: lmdb.Error) -> str:
    """Why the store in the folder `path` cannot be `action` ("opened", "read", "written"), and what to do."""
    if isinstance(error, _DAMAGE):
        problem = f"store {path} cannot be {action} since it is damaged ({error})"
        return f"{problem}: delete the folder and run prepare again, or choose another"
    if isinstance(error, lmdb.MapFullError):
        return (
            f"store {path} cannot be {action}: it would be larger than the memory map that this process could get, "
            "raise the limit of virtual memory (ulimit -v) and run prepare again"
        )
    return f"store {path} cannot be {action} ({error}): {_advice(error)}"


def _advice(error: lmdb.Error) -> str:
    # Most failed system calls have no class of their own; the text ends with what the system calls them.
    for codes, advice in _ADVICE.items():
        if str(error).endswith(tuple(os.strerror(code) for code in codes)):
            return advice
    return _OTHERWISE


@contextmanager
def explained(path: Path, action: str) -> Iterator[None]:
    """Make a `UserError` of what LMDB reports in the block, see `sentence`."""
    try:
        yield
    except lmdb.Error as error:
        raise UserError(sentence(path, action, error)) from None
