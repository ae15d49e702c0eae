"""Where the time goes from the launch of a process to its first training step: the stopwatch of the process's life.

| item | until |
|---|---|
| launch | the process exists (from the time that the environment variable AGL_LAUNCHED tells; otherwise left out) |
| python | the interpreter has come to this module, which is to be imported before anything large |
| imports | everything is imported, the configuration is read |
| device | the GPU is this process's own (nothing on a CPU) |
| rendezvous | the processes have met |
| lease | the first process holds the run, and all know it |
| stage-in | the store is on this node (only where that is asked for) |
| store | the index of the store is read |
| checkpoint | the newest good checkpoint is read, the same in all processes |
| model | network and optimizer are built and hold their state |
| wrap | the processes' networks are joined, and warmed up |
| files | the data loading processes, the logs and the saver are there |
| batch | the first batches are there |
| step | the first step is done |

Marking costs a look at the clock. Everything here is free of torch and numpy.
"""

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LAUNCHED = "AGL_LAUNCHED"
"""Environment variable: seconds since 1970 at which somebody has started this process."""

RESOLUTION = 0.02
"""Seconds that the age of a process may be wrong: the system counts in hundredths."""


class Stopwatch:
    """Seconds by item. Each mark ends an item, which began with the mark before; a second mark of an item adds to it.

    A process may train several stages one after the other, or be interrupted before the first step of one: what it has
    done before its first `begin` is part of that one's start alone.
    """

    def __init__(self, before: dict[str, float] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """`before`: seconds by item that have passed already; clock: seconds, monotonic."""
        self._clock, self._seconds, self._last = clock, dict(before or {}), clock()
        self._owner: int | None = os.getpid()  # until it has begun
        self._running = False

    def begin(self) -> None:
        """The imports are done; the start of a stage begins. To be called before the first `mark`."""
        now = self._clock()
        if self._owner == os.getpid():
            self._seconds["imports"] = now - self._last
        else:  # not its first one, or a process that was forked with all its imports
            self._seconds = {}
        self._owner, self._running, self._last = None, True, now

    def mark(self, item: str) -> None:
        """The end of `item`; outside a start nothing happens."""
        if self._running:
            now = self._clock()
            self._seconds[item] = self._seconds.get(item, 0.0) + now - self._last
            self._last = now

    def launched(self, now: float) -> float | None:
        """When what it measures began, in seconds since 1970 as `now` is; None outside a start."""
        return now - sum(self._seconds.values()) - (self._clock() - self._last) if self._running else None

    def end(self) -> dict[str, float]:
        """The start is over: its seconds by item, in milliseconds' resolution and in the order of the marks."""
        self._running = False
        return {item: round(seconds, 3) for item, seconds in self._seconds.items()}


def before_now(launched: str | None, age: float | None, now: float) -> dict[str, float]:
    """The items launch and python of a process that is `age` seconds old at `now` (seconds since 1970).

    What cannot be known is left out: the age, where the system does not tell it, and the launch, where `launched` is no
    time or lies after the process's birth, as it does when the clocks of two machines differ.
    """
    try:
        since = now - float(launched or "")
    except ValueError:
        since = -1.0
    if age is None:
        return {"python": since} if since >= 0 else {}
    return {"launch": max(since - age, 0.0), "python": age} if since > age - RESOLUTION else {"python": age}


def process_age() -> float | None:
    """Seconds since this process was made, to the hundredth; None where there is no /proc as Linux has it."""
    try:
        born = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - born, 0.0)
    except (OSError, AttributeError, ValueError, IndexError):
        return None


@contextmanager
def importing() -> Iterator[None]:
    """Import something large within this: its hundreds of thousands of objects are not searched for garbage.

    They stay, and Python's collector would go through them again and again, which takes a fifth of the time of the
    imports. Afterwards they are left out of every search, also while training.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def read_ahead(folder: Path) -> threading.Thread:
    """Have a thread read the newest checkpoint below `folder`, so that it is in the system's memory when it is wanted.

    On a node where the run has not been before, reading it takes as long as the imports, which need no disk of the
    run's. What is read here is used for nothing: nothing of a run may be believed before its lease is taken.
    """

    def read() -> None:
        with suppress(OSError):  # whoever wants it in earnest will say what is wrong
            newest = max(folder.glob("step_*"), key=lambda path: (len(path.name), path.name), default=None)
            block = bytearray(1 << 22)
            for path in newest.iterdir() if newest is not None else ():
                with path.open("rb", buffering=0) as file:
                    while file.readinto(block):
                        pass

    thread = threading.Thread(target=read, name="read-ahead", daemon=True)
    thread.start()
    return thread


stopwatch = Stopwatch(before_now(os.environ.get(LAUNCHED), process_age(), time.time()))
"""That of this process."""
