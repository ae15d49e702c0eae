"""The batches of one process, step by step, read ahead; waiting for them can be broken off."""

import queue
import threading
import time
from collections.abc import Callable

from agl_core.data.batch import Batch, release
from agl_core.data.dataset import Batches, CropDataset, batches
from agl_core.data.order import Order
from agl_core.data.shield import end_workers, worker_fork

PATIENCE = 0.2  # seconds between two looks at whether waiting has become pointless
NOTICED = 2.0  # seconds within which the death of a process is seen after a line to it has broken
BROKEN_LINE = (EOFError, ConnectionError, FileNotFoundError)
"""What handing on a tensor ends with when its worker dies in the middle of it."""
MOST_DEATHS = 3  # of data loading processes without a batch in between


class Feed:
    """Gives the micro-batches that process `rank` of `world_size` computes, one optimiser step at a time.

    With workers, a thread of this process talks to them. So a signal is noticed while there is nothing to compute, and
    a worker that was killed costs nothing: others are started, which go on at the first batch that is missing, since
    every batch is a function of the step.
    """

    def __init__(
        self, dataset: CropDataset, order: Order, start: int, stop: int, rank: int, world_size: int, workers: int,
        pin_memory: bool = False,
    ) -> None:  # fmt: skip
        """Batches of the steps `start` (from 0) to `stop`."""
        self._dataset, self._order, self._next, self._stop = dataset, order, start, stop
        self._rank, self._world_size, self._workers, self._pin = rank, world_size, workers, pin_memory
        config = dataset.config
        self._each = len(range(rank, config.batch // config.micro_batch, world_size))
        self._notes: list[str] = []
        self._given: list[Batch] = []
        self._closed = threading.Event()
        self._loader: Batches | None = None
        self._read: queue.Queue[list[Batch] | BaseException] = queue.Queue(maxsize=1)
        self._thread: threading.Thread | None = None
        if workers > 0:
            dataset.load_code()
            self._thread = threading.Thread(target=self._read_ahead, name="feed", daemon=True)
            self._thread.start()

    def take(self, give_up: Callable[[], bool] = lambda: False) -> list[Batch] | None:
        """The micro-batches of the next step, or None if `give_up` says so before they are there.

        They are good until the next call, after which others are written to their memory.

        Raises:
            UserError: the store is damaged at a tile of this step.
            RuntimeError: data loading processes die again and again.
        """
        for batch in self._given:
            release(batch)
        self._given = []
        while not give_up():
            if self._thread is None:
                return self._step()
            try:
                found = self._read.get(timeout=PATIENCE)
            except queue.Empty:
                continue
            if isinstance(found, BaseException):
                raise found
            self._given = found
            return found
        return None

    def notes(self) -> list[str]:
        """What the user should know and has not been told yet, one sentence each."""
        told, self._notes = self._notes, []
        return told

    def close(self) -> None:
        """End the data loading processes."""
        self._closed.set()
        self._end_workers()
        if self._thread is not None:
            # It may need some seconds to notice that they are gone, and is of no use any more.
            self._thread.join(2 * PATIENCE)

    def _step(self) -> list[Batch]:
        if self._loader is None:
            with worker_fork():
                self._loader = batches(
                    self._dataset, self._order, self._next, self._stop, self._rank, self._world_size, self._workers,
                    self._pin,
                )  # fmt: skip
        step = [next(self._loader) for _ in range(self._each)]
        self._next += 1
        return step

    def _read_ahead(self) -> None:
        deaths = 0
        while self._next < self._stop and not self._closed.is_set():
            try:
                found: list[Batch] | BaseException = self._step()
                deaths = 0
            except Exception as error:
                if self._closed.is_set():
                    return
                told = _tells_of_a_death(error) or (isinstance(error, BROKEN_LINE) and self._lost_a_worker())
                self._end_workers()
                deaths += 1
                if not told or deaths > MOST_DEATHS:
                    found = error
                else:
                    self._notes.append(f"{_spoken(error)}; data loading goes on with new processes")
                    continue
            while not self._closed.is_set():
                try:
                    self._read.put(found, timeout=PATIENCE)
                    break
                except queue.Full:
                    continue
            if isinstance(found, BaseException):
                return

    def _lost_a_worker(self) -> bool:
        """Whether one of the data loading processes is dead, or will be found to be in a moment."""
        workers = self._loader.workers if self._loader is not None else []
        until = time.monotonic() + NOTICED
        while not (lost := any(not worker.is_alive() for worker in workers)) and time.monotonic() < until:
            time.sleep(0.01)
        return lost

    def _end_workers(self) -> None:
        loader = self._loader
        end_workers(loader.workers if loader is not None else [])
        self._loader = None


def _spoken(error: Exception) -> str:
    return (
        str(error) if isinstance(error, RuntimeError) else "a data loading process was lost while it handed on a batch"
    )


def _tells_of_a_death(error: Exception) -> bool:
    """torch raises a plain RuntimeError both for a worker that was killed and for some errors within one."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error) and "exited unexpectedly" in str(error)
