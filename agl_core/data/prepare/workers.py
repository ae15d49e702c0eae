"""Work on many tiles in other processes: answers come in the order of the tiles, and memory does not grow with them."""

import signal
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar

from agl_core.data.shield import end_workers, shield_worker, worker_fork
from agl_core.errors import UserError

Item = TypeVar("Item")
Answer = TypeVar("Answer")

ATTEMPTS = 3
"""How often a process may die over the same tile."""

AHEAD = 2
"""Tiles that a process has been given and whose answers have not been taken: one ready, one in the making."""


def in_order(
    function: Callable[[Item], Answer],
    items: Sequence[Item],
    workers: int,
    name: Callable[[Item], str],
) -> Generator[Answer]:
    """`function` of each item, in the order of the items, worked out by `workers` processes; one is this process.

    The n-th process has every n-th item, and an answer stays in the process that has made it until it is its turn: of
    however many processes, this one never holds more than one answer. The processes are deaf to a cluster's warnings,
    end with this one, and are killed when the generator is closed, whatever they are doing. One that dies is replaced.

    Args:
        function: what is done, of a module, so that another process finds it; it must not change anything.
        items: what it is done to; they and the answers must be picklable.
        workers: number of processes, at least 1.
        name: what to call an item in a message.

    Raises:
        UserError: when processes die again and again over the same item.
        RuntimeError: when `function` raises in another process; holds the traceback.
    """
    if workers == 1:
        yield from map(function, items)
        return
    shares: list[_Share[Item]] = []
    try:
        for first in range(min(workers, len(items))):
            shares.append(_Share(function, items[first::workers]))
            shares[-1].start()
        for number, item in enumerate(items):
            done, answer = shares[number % workers].answer(f"tile {name(item)}", workers)
            if not done:
                raise RuntimeError(f"a process has failed at tile {name(item)}:\n{answer}")
            yield answer
    finally:
        end_workers(share.process for share in shares if share.process is not None)


class _Share(Generic[Item]):
    """A process, and the items that it works on, one after the other."""

    def __init__(self, function: Callable[[Item], Any], items: Sequence[Item]) -> None:
        self._function, self._items = function, items
        self._asked = self._answered = 0
        self.process: BaseProcess | None = None

    def start(self) -> None:
        """Start the process on its first items."""
        self._start()
        self._ask(AHEAD)

    def answer(self, what: str, workers: int) -> tuple[bool, Any]:
        """Whether the next item could be done, and the answer, or else a traceback."""
        for _ in range(ATTEMPTS):
            try:
                answer: tuple[bool, Any] = self._pipe.recv()
            except (EOFError, OSError):
                code = self._restart()
                self._ask(1)  # alone, so that the next one cannot be taken for what killed it
            else:
                self._answered += 1
                self._ask(AHEAD)
                return answer
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        raise UserError(
            f"a worker process was killed {ATTEMPTS} times at {what}, {how}, perhaps for want of memory or by what is "
            f"in this tile's files: run again with --workers below {workers}, or replace the files; what is done is "
            "kept"
        )

    def _start(self) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        with worker_fork():  # whoever is interrupted here has either started it and knows it, or not
            process = context.Process(target=_serve, args=(self._function, theirs), daemon=True)
            process.start()
            self.process = process
        theirs.close()

    def _restart(self) -> int:
        """Put another process in the place of the dead one, which left with the exit code that is returned."""
        assert self.process is not None
        self.process.join()
        code = self.process.exitcode or 0
        self._pipe.close()
        self._start()
        self._asked = self._answered
        return code

    def _ask(self, ahead: int) -> None:
        """Have the process know of so many items whose answers are not taken."""
        with suppress(OSError):  # it is dead, which shows when its answer is waited for
            while self._asked < min(self._answered + ahead, len(self._items)):
                self._pipe.send(self._items[self._asked])
                self._asked += 1


def _serve(function: Callable[[Any], Any], pipe: Connection) -> None:
    """Answer what comes through the pipe until this process is killed; an answer waits in a thread to be taken."""
    shield_worker()
    answers: SimpleQueue[tuple[bool, Any]] = SimpleQueue()
    Thread(target=_send, args=(pipe, answers), daemon=True).start()
    with suppress(EOFError, OSError):  # the parent is gone
        while True:
            item = pipe.recv()
            try:
                answers.put((True, function(item)))
            except Exception:
                answers.put((False, traceback.format_exc()))


def _send(pipe: Connection, answers: "SimpleQueue[tuple[bool, Any]]") -> None:
    with suppress(OSError):
        while True:
            pipe.send(answers.get())
