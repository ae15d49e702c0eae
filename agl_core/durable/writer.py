"""Checkpoints written in the background, while training goes on from a snapshot."""

import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from agl_core.durable.checkpoint import Checkpoint, Fence, read_digests, save_checkpoint
from agl_core.durable.retention import MANIFEST, Retention
from agl_core.durable.snapshot import Snapshot

REMEMBERED = 8
"""Writes whose times are remembered; the slowest of them is what the next one is expected to take."""

SLACK = 1.5
"""Times that a write takes, by which there must be time left before another one is given up for it."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that survives a power cut."""

    step: int
    stall: float
    """Seconds by which the step was held up."""
    seconds: float
    """Seconds from the begin of its write to its end, in the background or not."""
    bytes: int
    """Size of its files."""
    digests: dict[str, str]
    """xxh3_128 of the files of "model", "optimizer" and, if there is one, "average", in hexadecimal."""


@dataclass(frozen=True)
class SaveFailed:
    """A checkpoint that was not written, and why."""

    step: int
    error: BaseException


@dataclass
class _Write:
    """One write, from its begin to its outcome."""

    step: int
    began: float
    stall: float = 0.0
    saved: bool = False
    superseded: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None


class CheckpointWriter:
    """Writes the checkpoints of one stage, at most one at a time.

    All methods are for the thread that trains. Whatever goes wrong with a write, in the background or not, comes out
    of `outcomes` and is raised nowhere. The background thread is a daemon: it keeps no process alive that leaves
    without `close`. Forked data loading processes may be started at any time; they have neither the thread nor the
    memory of the snapshot, and `close` does nothing there.
    """

    def __init__(
        self,
        folder: Path,
        retention: Retention = Retention(),  # noqa: B008  (frozen)
        fence: Fence = nullcontext,
        discard: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """See `save_checkpoint`; `discard` holds until the first save has succeeded. clock: seconds, monotonic."""
        self.folder, self.retention = folder, retention
        self._fence, self._clock = fence, clock
        self._discard = frozenset(discard)
        self._snapshot = Snapshot()
        self._write: _Write | None = None
        # Appended to by the background thread, emptied by the other. No lock is needed, so none can be held by a
        # thread that a forked process does not have.
        self._outcomes: deque[Saved | SaveFailed] = deque()
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)
        self._closed = False

    @property
    def busy(self) -> bool:
        """Whether a write is in flight. Its outcome is there before this becomes False."""
        thread = self._write.thread if self._write else None
        return thread is not None and thread.is_alive()

    @property
    def expected_seconds(self) -> float | None:
        """How long a write takes, seconds: the slowest of the last `REMEMBERED`. None before the first has ended.

        Those in the background share the machine with training, so this errs on the side that is safe at a deadline.
        """
        return max(self._seconds, default=None)

    def begin(self, checkpoint: Checkpoint) -> None:
        """Copy `checkpoint` and write the copy in the background.

        From the first one on the copy takes as much host memory as the state: three times the weights, for them and
        their moments, and four times where there is an average of them.

        When this returns, tensors in host memory may be changed; those on a device after `copied` has returned (see
        `Snapshot.take`).

        Raises:
            ValueError: a write is in flight, or the writer is closed.
        """
        self._check_open()
        if self.busy:
            raise ValueError(f"step {checkpoint.step}: the checkpoint before is still being written")
        began = self._clock()
        write = _Write(checkpoint.step, began)
        try:
            copy = self._snapshot.take(checkpoint)
            write.thread = threading.Thread(target=self._run, args=(write, copy), name="checkpoint", daemon=True)
            self._write = write
            write.stall = self._clock() - began
            write.thread.start()
        except (OSError, MemoryError, RuntimeError) as error:  # no memory for the snapshot, or no thread
            self._write = None
            self._outcomes.append(SaveFailed(checkpoint.step, error))

    def copied(self) -> None:
        """Return when the state of the last `begin` has been copied; to be called before the next optimiser step."""
        began = self._clock()
        self._snapshot.wait()
        if self._write is not None:
            self._write.stall += self._clock() - began

    def save(self, checkpoint: Checkpoint, seconds_left: float = math.inf) -> bool:
        """Write `checkpoint` before returning, if it fits into `seconds_left`; whether it is on disk.

        A write in flight is waited for, or given up if both would not fit, by `expected_seconds`. One of the same step
        is this checkpoint and only waited for. If not even this one alone would fit nothing is written, a write in
        flight goes on (`close` waits for it) and the last good checkpoint stands. As long as nothing has been
        measured the write in flight is waited for: it loses less than an attempt that ends with neither.

        False also if the write failed; `outcomes` says why.

        Raises:
            ValueError: the writer is closed.
        """
        self._check_open()
        began = self._clock()
        deadline = began + seconds_left
        write = self._write
        if write is not None and self.busy:
            same, alone = write.step == checkpoint.step, self.expected_seconds
            if not same and alone is not None:
                if alone > seconds_left:
                    return False
                both = max(alone - (began - write.began), 0.0) + alone
                # Giving up takes time too, as a write cannot be broken off while the disk is being waited for.
                if both > seconds_left > SLACK * alone:
                    write.superseded.set()
            self.wait(seconds_left)
            if self.busy:
                return False
            if same and write.saved:
                return True
        left = deadline - self._clock()
        if left <= 0 or (self.expected_seconds or 0.0) > left:
            return False
        self._write = write = _Write(checkpoint.step, began)
        try:
            self._store(write, checkpoint)
        except Exception as error:  # reported like those of the background; KeyboardInterrupt goes on
            self._outcomes.append(SaveFailed(checkpoint.step, error))
        return write.saved

    def outcomes(self) -> list[Saved | SaveFailed]:
        """How the writes ended that have ended since the last call, oldest first. A superseded one has no outcome."""
        ended = []
        while self._outcomes:
            ended.append(self._outcomes.popleft())
        return ended

    def wait(self, timeout: float = math.inf) -> None:
        """Wait for the write in flight, for `timeout` seconds at most; `busy` says whether it has ended."""
        if self._write is not None and self._write.thread is not None:
            self._write.thread.join(min(timeout, threading.TIMEOUT_MAX))

    def close(self) -> None:
        """Wait for the write in flight, and begin no other. Its outcome can still be asked for."""
        self._closed = True
        self.wait()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the checkpoint writer is closed")

    def _run(self, write: _Write, checkpoint: Checkpoint) -> None:
        try:
            self._snapshot.wait()
            self._store(write, checkpoint)
        except BaseException as error:  # of any class: nobody else sees what is raised in this thread
            self._outcomes.append(SaveFailed(write.step, error))

    def _store(self, write: _Write, checkpoint: Checkpoint) -> None:
        """Write, and report success; raises what `save_checkpoint` raises. A superseded write ends without a word."""
        began = self._clock()
        path = save_checkpoint(
            self.folder, checkpoint, self.retention, self._fence, write.superseded.is_set, self._discard
        )
        if path is None:
            return
        self._discard = frozenset()
        ended = self._clock()
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        self._seconds.append(ended - began)
        write.saved = True
        stall = write.stall if write.thread is not None else ended - write.began
        size = sum(entry["size"] for entry in manifest.values())
        self._outcomes.append(Saved(write.step, stall, ended - began, size, read_digests(path)))
