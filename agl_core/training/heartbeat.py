"""The pulse of the other processes, for where their death would not be noticed otherwise."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

PERIOD = 1.0  # seconds between two beats
LIMIT = 15.0  # seconds without a beat after which a process is taken for dead; a busy one may be late by a few


class Heartbeat:
    """Beats for this process and calls `on_loss` once, from its own thread, when another one has stopped beating.

    gloo sees at once that a peer is gone. NCCL does not: a GPU waits for the data of a dead peer for ever, and the CPU
    for that GPU. So each process counts up a number in the `store` of the process group and watches the numbers of the
    others; a store that cannot be reached any more was the first process's. A process that leaves in order says so,
    and one that cannot go on too: the others need not wait until its pulse is missed.

    store: torch.distributed.Store. clock: seconds, monotonic.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        world_size: int,
        on_loss: Callable[[], None],
        period: float = PERIOD,
        limit: float = LIMIT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._rank, self._on_loss = store, rank, on_loss
        self._period, self._limit, self._clock = period, limit, clock
        self._others = [other for other in range(world_size) if other != rank]
        self._seen: dict[int, tuple[int, float]] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.lost = False

    def start(self) -> None:
        """Begin to beat and to watch."""
        self._thread.start()

    def close(self) -> None:
        """Say that this process leaves in order, and stop."""
        self._closed.set()
        self._thread.join(self._limit)  # a store that does not answer must not keep a process that has saved
        if not self.lost:
            try:
                self._store.add(f"left/{self._rank}", 1)
            except RuntimeError:  # the first process is gone already, and with it all who could want to know
                return

    def fail(self) -> None:
        """Say that this process cannot go on: the others lose it at once."""
        with suppress(RuntimeError):  # the first process is gone already
            self._store.add(f"failed/{self._rank}", 1)

    def look(self) -> bool:
        """Beat once, and look at the others once; whether one of them is lost."""
        try:
            self._store.add(f"beat/{self._rank}", 1)
            return any(self._silent(other) for other in self._others)
        except RuntimeError:
            return True

    def _silent(self, other: int) -> bool:
        if self._store.add(f"failed/{other}", 0):
            return True
        count, now = self._store.add(f"beat/{other}", 0), self._clock()
        if self._seen.get(other, (-1, now))[0] != count or self._store.add(f"left/{other}", 0):
            self._seen[other] = count, now
        return bool(now - self._seen[other][1] > self._limit)

    def _run(self) -> None:
        before = self._clock()
        while not self._closed.wait(self._period):
            now = self._clock()
            if now - before > self._period + self._limit / 2:
                self._seen.clear()  # this process was stopped itself, and perhaps the others with it
            before = now
            if self.look():
                if not self._closed.is_set():
                    self.lost = True
                    self._on_loss()
                return
