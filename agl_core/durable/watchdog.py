"""The end of a process that makes no progress any more."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from types import TracebackType

from agl_core.durable.exits import HUNG

START = 3.0  # start-up may take so many times the limit: it compiles, opens and connects
UNUSUAL = 3  # first step times that are not learnt from, for the same reason
LEARNT = 50  # step times that the usual one is the median of
REPORT = 60.0  # seconds after which the process ends even if its report hangs too


class Watchdog:
    """A context manager whose thread ends the process with exit code `HUNG` when `beat` is not called for too long.

    Too long is `minutes`, or `factor` times the usual step time if that is longer; three times as long before the
    first step. The usual step time is the median of the last ones, without those in which something else was done
    than steps and waiting for data. `minutes` = 0 turns it off.

    Before the end the stacks of all threads are appended to the file `stacks` and `on_hang` is called. Both may hang
    on what the process hangs on, so that they get a minute. With `processes` > 1 the end then waits for a tenth of
    the limit: the others wait for this process, and reach their own limit meanwhile, instead of a lost peer.

    Time in which the process was stopped (SIGSTOP, a suspended machine) is not time without progress. A thread that
    keeps the interpreter's lock for ever stops this thread as well; only the other processes' watchdogs see that.

    clock: seconds, monotonic. exit: ends the process without waiting for its threads.
    """

    def __init__(
        self,
        stacks: Path,
        minutes: float = 10.0,
        factor: float = 30.0,
        on_hang: Callable[[], None] | None = None,
        processes: int = 1,
        exit: Callable[[int], object] = os._exit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stacks = Path(stacks)
        self._least = minutes * 60
        self._factor = factor
        self._on_hang = on_hang
        self._processes = processes
        self._exit = exit
        self._clock = clock
        # Replaced as a whole: the watching thread must not see the phase of one beat with the time of another.
        self._beat = (clock(), "start")
        self._awake = clock()  # since when this process has been running without having been stopped
        self._step: float | None = None  # time of the last "step", None if the present one is no usual step
        self._steps = 0
        self._times: deque[float] = deque(maxlen=LEARNT)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Watchdog":
        self.beat("start")
        if self._least > 0:
            self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def beat(self, phase: str) -> None:
        """Progress was made, and `phase` begins: "start", "data", "step", "validation" or "save"."""
        now = self._clock()
        self._beat = (now, phase)
        if phase == "step":
            if self._step is not None:
                self._steps += 1
                if self._steps > UNUSUAL:
                    self._times.append(now - self._step)
            self._step = now
        elif phase != "data":
            self._step = None

    def usual(self) -> float:
        """Usual time of a step, seconds; 0 until it is known."""
        times = list(self._times)
        return median(times) if times else 0.0

    def limit(self, phase: str) -> float:
        """Seconds without a beat after which a process in `phase` is taken for hung."""
        longest = max(self._least, self._factor * self.usual())
        return START * longest if phase == "start" else longest

    def _run(self) -> None:
        poll = min(self._least / 20, 5.0)
        before = self._clock()
        while not self._closed.wait(poll):
            now = self._clock()
            if self._look(now, overslept=now - before > 2 * poll + 1.0):
                return
            before = now

    def _look(self, now: float, overslept: bool) -> bool:
        """One look at the last beat; True if the process was ended (with an `exit` that returns, in tests)."""
        at, phase = self._beat
        if overslept:
            self._awake = now
            return False
        idle = now - max(at, self._awake)
        if idle <= self.limit(phase):
            return False
        report = threading.Thread(target=self._report, args=(phase, idle), name="watchdog report", daemon=True)
        report.start()
        report.join(REPORT)
        if self._processes > 1:
            self._closed.wait(self.limit(phase) / 10)
        self._exit(HUNG)
        return True

    def _report(self, phase: str, idle: float) -> None:
        what = f"no progress for {idle:.0f} s in phase {phase!r} (limit {self.limit(phase):.0f} s)"
        try:
            self.stacks.parent.mkdir(exist_ok=True)
            with open(self.stacks, "a", encoding="utf-8") as file:
                file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, process {os.getpid()}: {what}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
                file.write("\n")
            where = f"the stacks of its threads are in {self.stacks}"
        except OSError as error:
            with contextlib.suppress(OSError, ValueError):  # a stderr that is closed, or no file
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
            where = f"the stacks of its threads are above, since {self.stacks} cannot be written ({error.strerror})"
        _say(f"{what}: this process ends; {where}")
        if self._on_hang is None:
            return
        try:
            self._on_hang()
        except BaseException:  # nothing may keep the process from ending
            text = traceback.format_exc()
            _say(text)
            with contextlib.suppress(OSError), open(self.stacks, "a", encoding="utf-8") as file:
                file.write(f"{text}\n")


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # a stderr that is closed must not keep the process from ending
        print(line, file=sys.stderr, flush=True)
