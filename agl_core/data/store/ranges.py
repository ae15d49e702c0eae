"""Reading values of a sealed store at their offsets in `data.mdb`: a crop is a few large requests to the system."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from agl_core.data.store.layout import releases
from agl_core.data.store.offsets import Offsets, read_offsets
from agl_core.data.store.pages import State, read_state
from agl_core.errors import UserError

GAP = 64 << 10
"""Values that lie no farther apart, in bytes, are read in one request, with what is between them."""

MOST = 2 << 20
"""Bytes that one request reads at most: the size of each thread's buffer."""

_local = threading.local()


def unreadable(folder: Path, error: OSError) -> UserError:
    """What to say when the system does not give the files of the store in `folder`."""
    reason = error.strerror or type(error).__name__
    return UserError(
        f"store {folder} cannot be read ({reason}): see to it that this machine can read its files and start again"
    )


def changed(folder: Path) -> UserError:
    """What to say when the store in `folder` is not the one any more whose index was read."""
    return UserError(f"store {folder} was changed while it was read: start the run again when prepare has finished")


def shortened(folder: Path) -> UserError:
    """What to say when the `data.mdb` of the store in `folder` was cut off."""
    return UserError(
        f"store {folder} is damaged (data.mdb is shorter than it was): copy it again, or delete the store "
        "and run prepare again"
    )


class Counter:
    """Requests to the operating system for values, and the bytes that they read, by this process."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._requests = self._bytes = 0

    def add(self, requests: int, read: int) -> None:
        """Count."""
        if self._process != os.getpid():  # counted by the parent of a fork
            self._begin()
        with self._lock:
            self._requests += requests
            self._bytes += read

    def totals(self) -> tuple[int, int]:
        """Requests and bytes."""
        return (self._requests, self._bytes) if self._process == os.getpid() else (0, 0)


class ValueFile:
    """The `data.mdb` of a sealed store, open in this process, and where in it the values are."""

    def __init__(self, file: int, offsets: Offsets, stamp: tuple[int, int], state: State, counter: Counter) -> None:
        """Take over the open `file`, which had this `stamp` before it was found that the offsets fit its `state`."""
        self._file, self._offsets, self._stamp, self._state, self._counter = file, offsets, stamp, state, counter
        self._process, self._releases = os.getpid(), releases()

    @classmethod
    def open(cls, folder: Path, digest: str, count: int, counter: Counter) -> "ValueFile | None":
        """Open the store in `folder`; None where there are no offsets for its `count` values that fit its content.

        Raises:
            OSError: the system does not give the file.
        """
        file = os.open(folder / "data.mdb", os.O_RDONLY | os.O_CLOEXEC)
        try:
            stamp, state = _stamp(file), read_state(file)
            offsets = read_offsets(folder, digest, count, state) if state is not None else None
            if state is None or offsets is None:
                return None
            # The system reads ahead of what looks like a sequence, which crops are not.
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
            opened, file = cls(file, offsets, stamp, state, counter), -1
            return opened
        finally:
            if file >= 0:
                os.close(file)

    def __del__(self) -> None:
        os.close(self._file)

    def usable(self) -> bool:
        """Opened by this process, not by the parent of a fork, and not written since, as far as the system says."""
        return self._process == os.getpid() and self._releases == releases() and self._stamp == _stamp(self._file)

    def cut_off(self) -> bool:
        """Whether the file has lost its end, in the state for which the offsets are: LMDB would die of touching it."""
        whole = self._state.pages * self._state.page_size
        return os.fstat(self._file).st_size < whole and read_state(self._file) in (None, self._state)

    def read(self, numbers: list[int]) -> Iterator[tuple[int, memoryview]]:
        """The values of these numbers (in the order of the keys): positions in `numbers` and values.

        They come in the order of the file. Each memoryview is of the thread's buffer: it is good until the next one
        is asked for. A value that is not where it should be is left out.

        Raises:
            OSError: the system does not give the bytes.
        """
        starts, lengths = self._offsets.starts[numbers].tolist(), self._offsets.lengths[numbers].tolist()
        order = sorted(range(len(numbers)), key=starts.__getitem__)
        for first, last in _merged(order, starts, lengths):
            begin = starts[order[first]]
            view = self._request(begin, starts[order[last]] + lengths[order[last]] - begin)
            for place in order[first : last + 1]:
                value = view[starts[place] - begin : starts[place] - begin + lengths[place]]
                if len(value) == lengths[place]:
                    yield place, value

    def _request(self, begin: int, length: int) -> memoryview:
        """Read `length` bytes at `begin` into the thread's buffer; fewer at the end of the file."""
        view, done, requests = _buffer()[:length], 0, 0
        while done < length:
            got = os.preadv(self._file, [view[done:]], begin + done)
            requests += 1
            if got == 0:
                break
            done += got
        self._counter.add(requests, done)
        return view[:done]


def _merged(order: list[int], starts: list[int], lengths: list[int]) -> Iterator[tuple[int, int]]:
    """Which values, first and last in `order`, are read together."""
    first = 0
    for last in range(len(order)):
        end = starts[order[last]] + lengths[order[last]]
        following = starts[order[last + 1]] if last + 1 < len(order) else None
        if (
            following is None
            or following - end > GAP
            or following + lengths[order[last + 1]] - starts[order[first]] > MOST
        ):
            yield first, last
            first = last + 1


def _buffer() -> memoryview:
    if not hasattr(_local, "buffer"):
        _local.buffer = memoryview(bytearray(MOST))
    return cast(memoryview, _local.buffer)


def _stamp(file: int) -> tuple[int, int]:
    state = os.fstat(file)
    return state.st_mtime_ns, state.st_size
