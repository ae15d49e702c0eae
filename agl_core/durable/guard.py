"""The warning before the kill: signals that only set a flag."""

import math
import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

_pipes: set[int] = set()  # that signals of this process are written to


def _let_go_in_child() -> None:
    if _pipes:
        # A signal to the child would be taken for one that reached its parent.
        signal.set_wakeup_fd(-1)
        _pipes.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


class Guard:
    """A context manager that takes warning signals and remembers them; everything else is left to who polls it.

    Warnings are USR2 and TERM, and USR1 with `usr1`. With `keyboard` the first Ctrl-C asks too, and the second raises
    KeyboardInterrupt, whatever other signals came before: who presses twice wants an end now, and a TERM that a
    scheduler sent is not a press. The handlers do nothing but record, so that nothing is torn in the middle of a step;
    they print nothing either; a thread answers the first Ctrl-C with a line.

    A forked child inherits the handlers; in it they do nothing. On exit the handlers that were there before are back
    (the default action for one that was not set by Python, which cannot be named). What was asked stays readable.

    Python runs a handler only between two bytecodes, so that a signal that comes during a backward pass or while the
    other processes are waited for is handled when that is over. The grace is counted from its arrival nevertheless:
    a thread reads the pipe to which the C part of the handler writes at once (`signal.set_wakeup_fd`).

    grace: seconds from the first warning to the kill. Only the main thread may enter (ValueError elsewhere).
    """

    def __init__(self, grace: float = 30.0, usr1: bool = False, keyboard: bool = False) -> None:
        self.grace = grace
        self._signals = [signal.SIGUSR2, signal.SIGTERM]
        if usr1:
            self._signals.append(signal.SIGUSR1)
        if keyboard:
            self._signals.append(signal.SIGINT)
        # One handler may interrupt another, so they only append; everything is derived from this list.
        self._received: list[tuple[int, float]] = []
        self._previous: dict[signal.Signals, Any] = {}
        self._arrived = math.inf
        self._pid = 0
        self._pipe = (-1, -1)
        self._wakeup = -1
        self._reader: threading.Thread | None = None

    @classmethod
    def off(cls) -> "Guard":
        """A guard that touches no signal and never asks."""
        guard = cls()
        guard._signals = []
        return guard

    def __enter__(self) -> "Guard":
        assert not self._previous, "this guard is already on"
        self._pid = os.getpid()
        for number in self._signals:
            self._previous[number] = signal.signal(number, self._record)
        if self._signals:
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            _pipes.add(self._pipe[1])
            self._reader = threading.Thread(target=self._note_arrival, name="guard", daemon=True)
            self._reader.start()
            # Who has held them back, so that they would not end a process that was only starting, wants them now.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()
        if self._reader is None:
            return
        signal.set_wakeup_fd(self._wakeup)
        if os.getpid() == self._pid:
            # Closing the pipe would not end the reader, as long as a child has it open too.
            os.write(self._pipe[1], b"\0")
            self._reader.join()
        self._reader = None
        _pipes.discard(self._pipe[1])
        for end in self._pipe:
            os.close(end)

    def _note_arrival(self) -> None:
        told = False
        while True:
            numbers = os.read(self._pipe[0], 64)
            now = time.monotonic()
            if any(number in self._signals and number != signal.SIGINT for number in numbers):
                self._arrived = min(self._arrived, now)
            if signal.SIGINT in numbers and not told and signal.SIGINT in self._signals:
                told = True  # a step may take long, and who pressed should know that it was heard
                print("\nsaving at the end of this step; Ctrl-C once more ends at once", file=sys.stderr, flush=True)
            if 0 in numbers:
                return

    def _record(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return
        self._received.append((number, time.monotonic()))
        if number == signal.SIGINT and [n for n, _ in self._received].count(signal.SIGINT) > 1:
            raise KeyboardInterrupt

    @property
    def requested(self) -> bool:
        """Whether a signal has asked to leave."""
        return bool(self._received)

    @property
    def signal(self) -> str | None:
        """Short name of the first signal that asked, such as "TERM"; None if none did."""
        return signal.Signals(self._received[0][0]).name.removeprefix("SIG") if self._received else None

    def remaining(self) -> float:
        """Seconds until the grace is over, not below 0; infinite if nothing asked, or only Ctrl-C.

        The grace runs from the first warning; later ones do not lengthen it. Nobody kills after Ctrl-C.
        """
        warned = [at for number, at in self._received if number != signal.SIGINT]
        return max(0.0, min(warned[0], self._arrived) + self.grace - time.monotonic()) if warned else math.inf
