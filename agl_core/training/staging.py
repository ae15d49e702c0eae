"""Where the processes of a stage read the store: from a copy on each node if there can be one, else where it lies."""

import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import torch
import xxhash

from agl_core.data.stagein.reading import StagedStore
from agl_core.data.stagein.staged import NotStagedError, StagedCopy, expand
from agl_core.data.stagein.state import StoreState
from agl_core.data.store import Store
from agl_core.data.store.layout import release
from agl_core.durable.exits import InterruptedRunError
from agl_core.durable.lease import LeaseLostError
from agl_core.errors import UserError
from agl_core.reporting.progress import Progress
from agl_core.training.parallel import Parallel

OFF = ("", "none")
PAUSE = 0.25  # seconds between two agreements of the processes while one of them copies
ENDING = 1.0  # seconds that a thread has to stop copying
FOR_GOOD = (InterruptedRunError, LeaseLostError, UserError, KeyboardInterrupt)
"""How a stage ends that does not begin anew on this node within seconds, as after a crash."""


@dataclass(frozen=True)
class StageIn:
    """What has become of a stage-in, for this process and its node.

    outcome: "copied", "continued" (after a kill), "found" or "in place"; where: the folder that the store is read from;
    bytes: what this process has copied; seconds: until all nodes had theirs; processes: how many of all read a copy;
    reason: why it is read in place, empty otherwise.
    """

    outcome: str
    where: str
    bytes: int
    seconds: float
    processes: int
    reason: str

    def line(self) -> str:
        """One line for the user."""
        if self.outcome == "in place":
            return f"the store is read where it lies, {self.where}: {self.reason}"
        if self.outcome == "found":
            return f"the store is read from the copy that was found in {self.where}"
        rate = f"{self.bytes / 1e6 / max(self.seconds, 1e-3):.0f} MB/s"
        return f"the store is read from {self.where}: {self.bytes / 1e9:.2f} GB copied in {self.seconds:.0f} s ({rate})"

    def values(self) -> dict[str, Any]:
        """For events.jsonl."""
        return asdict(self)


class _Copying:
    """One process's part: a thread that obtains the copy, if this is the first process of its node; as a context
    manager it lets go of the copy at the end of the stage."""

    def __init__(self) -> None:
        self.copy: StagedCopy | None = None
        self.reason = ""
        self.used = False  # what is only begun, or not read yet, stays for the next start
        self.finished = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def __enter__(self) -> "_Copying":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self.copy is not None and not self.running:
            for_good = self.used and (kind is None or issubclass(kind, FOR_GOOD))
            if for_good:
                release(self.copy.path)  # what is mapped takes its place also when it is removed
            self.copy.leave(remove=for_good)

    def plan(self, store: Path, stage_in: str) -> str:
        """Choose the folder of the copy; where that is, the same text for all who share it, and "" without one."""
        try:
            self.copy = StagedCopy(StoreState.of(store), expand(stage_in))
            return self.copy.place()
        except (NotStagedError, UserError, OSError) as error:
            self.copy, self.reason = None, str(error)
            return ""

    def start(self) -> None:
        """Obtain the copy beside the main thread, which is to hear signals."""
        self._thread = threading.Thread(target=self._obtain, name="stage-in", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the copying within a second, or leave the thread to what it waits for."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(ENDING)

    @property
    def running(self) -> bool:
        """Whether the thread is still at it."""
        return self._thread is not None and not self.finished.is_set()

    def conclude(self) -> None:
        """When all nodes are done: hold the copy that another process of the node has obtained, or know why not."""
        if self._error is not None:
            known = isinstance(self._error, NotStagedError)
            self.copy, self.reason = None, str(self._error) if known else repr(self._error)
        elif self._thread is None and self.copy is not None and not self._attach(self.copy):
            self.copy, self.reason = None, "the first process of this node has no copy"

    @staticmethod
    def _attach(copy: StagedCopy) -> bool:
        try:
            return copy.attach()
        except (NotStagedError, OSError):
            return False

    def _obtain(self) -> None:
        assert self.copy is not None
        try:
            self.copy.obtain(self._stop.is_set)
        except Exception as error:  # whatever it is, the store can be read where it lies
            self._error = error
        finally:
            self.finished.set()


def open_store(
    path: Path,
    stage_in: str,
    parallel: Parallel,
    requested: Callable[[], bool],
    leave: Callable[[], NoReturn],
    beat: Callable[[], None],
    resources: ExitStack,
) -> tuple[Store, StageIn | None]:
    """Open the store in the folder `path`, or a copy of it on this node's disk or in its memory; every process of the
    group calls it. The second value is None without stage-in.

    The processes wait for each other, and leave together as soon as `requested` says so in one of them: `leave` is
    called then, and raises. `beat` is called as long as any copy comes on. The copy is let go when `resources` ends.

    stage_in: the folder for the copy, with variables of the node's environment; "" or "none" for no copy.

    Raises:
        UserError: there is no store, or it is not finished.
        PeerLostError: another process is gone.
    """
    store = Store(path)
    if stage_in in OFF:
        return store, None
    began = time.monotonic()
    copying = resources.enter_context(_Copying())
    place = copying.plan(path, stage_in)
    number = xxhash.xxh3_64_intdigest(place.encode()) >> 1 if place else -1
    places = [int(each) for each in parallel.gather(torch.tensor([number]))]
    leaders = [rank for rank, each in enumerate(places) if each >= 0 and places.index(each) == rank]
    if parallel.rank in leaders:
        copying.start()
    _wait(copying, len(leaders), parallel, requested, leave, beat)
    copying.conclude()
    copy = copying.copy
    if copy is not None:
        try:
            staged = StagedStore(copy.path, path)
            store.close()
            store, copying.used = staged, True
        except UserError as error:
            copy.leave(remove=True)
            copying.copy = copy = None
            copying.reason = str(error)
    readers = sum(int(each) for each in parallel.gather(torch.tensor([int(copy is not None)])))
    result = _result(copying, store, time.monotonic() - began, readers)
    if copy is None and not parallel.first:  # the first process says it in its journal
        print(result.line(), file=sys.stderr, flush=True)
    return store, result


def _wait(
    copying: _Copying,
    leaders: int,
    parallel: Parallel,
    requested: Callable[[], bool],
    leave: Callable[[], NoReturn],
    beat: Callable[[], None],
) -> None:
    """Until all nodes have their copies, or know that they have none."""
    signs, progress = -1, None
    with ExitStack() as shown:
        while True:
            if copying.running:
                copying.finished.wait(PAUSE)
            running = copying.running  # before the other values, which are the last ones if it is not
            copy = copying.copy
            own = [running, requested(), copy.signs if copy else 0, copy.bytes_done if copy and running else 0]
            own.append(copy.source.size if copy else 0)
            table = torch.stack(parallel.gather(torch.tensor([int(value) for value in own])))
            if bool(table[:, 1].any()):
                copying.stop()
                leave()
            if int(table[:, 2].sum()) != signs:  # a copy that does not come on is the watchdog's business
                signs = int(table[:, 2].sum())
                beat()
            left = int(table[:, 0].sum())
            size = int(table[:, 4].max())
            done = (int(table[:, 3].sum()) + (leaders - left) * size) // 1_000_000
            if left == 0:
                if progress is not None:
                    progress.advance(progress.total - progress.done)
                return
            if progress is None:
                total = leaders * size // 1_000_000
                progress = shown.enter_context(Progress("stage-in", total, "MB", done, shown=parallel.first))
            progress.advance(max(done - progress.done, 0))


def _result(copying: _Copying, store: Store, seconds: float, readers: int) -> StageIn:
    copy = copying.copy
    outcome, copied = "in place", 0
    if copy is not None:
        copied = copy.copied or 0
        outcome = "found" if copy.copied is None else "copied" if copied == copy.source.size else "continued"
    return StageIn(outcome, str(store.path), copied, round(seconds, 3), readers, copying.reason)
