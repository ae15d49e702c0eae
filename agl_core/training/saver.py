"""When a stage saves, what it does when the disk refuses, and how it leaves a state behind in the end."""

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from agl_core.config import CheckpointConfig
from agl_core.data.order import Order
from agl_core.durable.chain import ChainLog
from agl_core.durable.interval import Interval
from agl_core.durable.lease import Lease
from agl_core.durable.retention import Retention
from agl_core.durable.writer import CheckpointWriter, Saved, SaveFailed
from agl_core.errors import UserError
from agl_core.reporting.words import span
from agl_core.training.journal import Journal
from agl_core.training.schedule import Span
from agl_core.training.state import TrainingState

RETRY = 60.0  # seconds from a save that failed to the next attempt
SLOW = 60.0  # seconds that training waits for a checkpoint that is still being written when the next one is due


class Saver:
    """The checkpoints of one stage. Every process has one; only the first saves, the others if they survive it."""

    def __init__(
        self,
        config: CheckpointConfig,
        folder: Path,
        lease: Lease,
        order: Order,
        about: dict[str, Any],
        bad: Collection[str],
        history: tuple[int, float],
    ) -> None:
        """about: JSON values kept in every checkpoint; bad: names of checkpoints that could not be read; history:
        how many interruptions the run has seen, and in how many seconds of training."""
        self._order, self._about, self._history = order, about, history
        self._every = Span.parse(config.every, "checkpoint.every")
        self._milestone = Span.parse(config.keep_every, "checkpoint.keep_every") if config.keep_every else None
        self._interval = Interval.parse(config.interval, "checkpoint.interval")
        self._patience = 60 * config.patience
        self._folder = folder
        self.writer = CheckpointWriter(folder, Retention(config.keep, config.keep_best), lease.writing, bad)
        self._ended: list[Saved | SaveFailed] = []
        self._taken: dict[int, tuple[float, float]] = {}
        """By step: when its state was taken, seconds since 1970, and how long an earlier write was waited for then."""
        self._begun, self._cost = time.monotonic(), 0.0
        self._failing_since: float | None = None
        self._retry = False
        self.last_step: int | None = None
        """The newest step of which a checkpoint is on the disk or being written."""
        self.last_good: int | None = None
        """The newest step of which a checkpoint is on the disk."""

    def continues_from(self, step: int) -> None:
        """The run has been loaded from the checkpoint of `step`, which need not be saved again."""
        self.last_step = self.last_good = step

    def scheduled(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` steps whatever the clock says."""
        return self._every.due(step, self._order)

    def wanted(self) -> bool:
        """Whether the clock asks for a checkpoint; the first process asks this and tells the others."""
        if self.writer.busy:
            return False
        waited = time.monotonic() - self._begun
        if self._retry:
            return waited >= RETRY
        return waited >= self._interval.seconds(self._cost, *self._history)

    def begin(self, state: TrainingState, journal: Journal) -> None:
        """Copy the state and write it in the background, after what is still being written. If that takes very long,
        training goes on without this checkpoint."""
        at, began = time.time(), time.monotonic()
        self.writer.wait(SLOW)
        if self.writer.busy:
            journal.warn(
                state.step,
                f"{self._folder}: the checkpoint of step {self.last_step} is still being written; that of step "
                f"{state.step} is left out",
            )
            return
        self._taken[state.step] = (at, time.monotonic() - began)
        self.writer.begin(state.checkpoint(self._flags(state)))
        self._begun, self._retry, self.last_step = time.monotonic(), False, state.step

    def save(self, state: TrainingState, seconds_left: float) -> bool:
        """Save at once and wait for it, if it can be done in time; whether the state is on the disk now.

        Raises:
            OSError: the disk refuses.
            LeaseLostError: another incarnation of the run has taken over.
        """
        self._collect()
        if self.last_good == state.step:
            return True
        self._taken.setdefault(state.step, (time.time(), 0.0))
        done = self.writer.save(state.checkpoint(self._flags(state)), seconds_left)
        self._collect()
        if done:
            self.last_step = self.last_good = state.step
        elif self._ended and isinstance(end := self._ended[-1], SaveFailed) and end.step == state.step:
            self._ended.pop()
            raise end.error
        return done

    def look(self, journal: Journal, chain: ChainLog, step: int) -> None:
        """Take notice of the saves that have ended; a disk that refuses is borne for a while, with a warning each time.

        Raises:
            UserError: no checkpoint could be written for too long.
            Exception: whatever else has gone wrong in the background.
        """
        self._collect()
        ended, self._ended = self._ended, []
        for end in ended:
            if isinstance(end, Saved):
                at, waited = self._taken.pop(end.step, (time.time() - end.seconds, 0.0))
                self._taken = {step: taken for step, taken in self._taken.items() if step > end.step}
                times = {"stall": round(end.stall + waited, 4), "seconds": round(end.seconds, 3), "bytes": end.bytes}
                journal.event("checkpoint", end.step, **times, at=round(at, 3))
                chain.state(end.step, end.digests)
            else:
                self._refused(end.error, journal, step)

    def insist(self, write: Callable[[], None], journal: Journal, step: int, give_up: Callable[[], bool]) -> bool:
        """Do `write`, again and again while the disk refuses; False if `give_up` says so meanwhile."""
        while not give_up():
            try:
                write()
                self._failing_since = None
                return True
            except OSError as error:
                self._count_failure()
                self._refused(error, journal, step)
            until = time.monotonic() + RETRY
            while time.monotonic() < until and not give_up():
                time.sleep(0.2)
        return False

    def _collect(self) -> None:
        for end in self.writer.outcomes():
            self._ended.append(end)
            if isinstance(end, Saved):
                # The first stall includes getting the memory, and that of a last save is the whole write.
                self._failing_since, self._cost = None, min(self._cost or end.stall, end.stall)
                self.last_good = max(end.step, self.last_good or 0)
            else:
                self._count_failure()

    def _count_failure(self) -> None:
        self._failing_since = time.monotonic() if self._failing_since is None else self._failing_since

    def _refused(self, error: BaseException, journal: Journal, step: int) -> None:
        if not isinstance(error, OSError):
            raise error
        safe = f"the last good checkpoint is that of step {self.last_good}" if self.last_good else "there is none yet"
        if self._failing_since is None:  # a later save has succeeded meanwhile
            journal.warn(step, f"{self._folder} could not be written to ({error}); {safe}")
            return
        now = time.monotonic()
        self._retry, self._begun = True, now
        self.last_step = self.last_good
        if now - self._failing_since >= self._patience:
            raise UserError(
                f"{self._folder} could not be written to for {span(now - self._failing_since)} ({error}), "
                f"and {safe}: free some space there and give the same command again"
            ) from error
        journal.warn(step, f"{self._folder} cannot be written to ({error}); {safe}; trying again in {RETRY:.0f} s")

    def _flags(self, state: TrainingState) -> dict[str, Any]:
        return {
            **self._about,
            "scheduled": state.anchor == state.step,
            "best": state.best_step == state.step,
            "milestone": self._milestone is not None and self._milestone.due(state.step, self._order),
        }
