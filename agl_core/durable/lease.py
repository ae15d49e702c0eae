"""Who may write to a run directory."""

import errno
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from agl_core.durable.lock import PATIENCE, LockTakenError, file_lock
from agl_core.errors import UserError
from agl_core.files import write_json

LEASE = "lease.json"
LOCK = "lease.lock"


class LeaseLostError(RuntimeError):
    """Another incarnation has taken the run over: this one must not write any more, and should leave."""


@dataclass(frozen=True)
class LeaseRecord:
    """What lease.json says. Times are unix seconds, for the reader's eyes: nothing is decided by them."""

    generation: int
    """1 for the first incarnation of the run, one more for each that took over."""
    token: str
    """Drawn by the incarnation; with the generation it says whose the lease is."""
    holder: str
    """Who that is, in words."""
    host: str
    pid: int
    step: int
    """Last step reported."""
    taken: float
    renewed: float
    released: float | None
    """When the holder was done with the run; None while it is running, and after it was killed."""
    job: str = ""
    """The job that the holder is a start of, where a scheduler starts it again and again; empty if none does."""
    turn: int = 0
    """Which start of that job it is: a later one has a higher number."""


def read_lease(run_dir: Path) -> LeaseRecord | None:
    """The lease of the run, None if there is none or it is damaged. Raises OSError if it cannot be read."""
    try:
        text = (Path(run_dir) / LEASE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        return None
    return _parse(text)


def _parse(text: str) -> LeaseRecord | None:
    try:
        values = json.loads(text)
        needed = [field.name for field in fields(LeaseRecord) if field.default is MISSING]
        record = LeaseRecord(**{name: values[name] for name in needed}, **_later_fields(values))
    except (ValueError, KeyError, TypeError):
        return None
    whole = isinstance(record.generation, int) and isinstance(record.token, str)
    return record if whole and record.generation > 0 else None


def _later_fields(values: Any) -> dict[str, Any]:
    """Those that the first versions did not have."""
    return {name: values[name] for name, kind in (("job", str), ("turn", int)) if isinstance(values.get(name), kind)}


class Lease:
    """The right of one incarnation of a run, all of its processes, to write to the run directory.

    It is had by having taken it last: `take` writes the next generation to lease.json, and `writing` lets only those
    in whose generation stands there. Both hold the same lock, so that a write and a take-over exclude each other: when
    `take` has returned, no older incarnation writes any more, however long it was stopped or cut off. No clock decides.

    A lease that is missing or damaged is nobody's; who believed to hold it has lost it.
    """

    def __init__(self, run_dir: Path, record: LeaseRecord, previous: LeaseRecord | None, period: float) -> None:
        self.previous = previous
        self._folder = Path(run_dir)
        self._record = record
        self._period = period
        self._renewed = time.monotonic()
        self._mutex = threading.RLock()
        self._depth = 0

    @classmethod
    def take(
        cls, run_dir: Path, holder: str, above: int = 0, period: float = 30.0, job: str = "", turn: int = 0
    ) -> "Lease":
        """Take the run over, whoever holds it, and return the lease; `previous` is what it replaces, if readable.

        job, turn: see `LeaseRecord`. A start of a job that comes to life only after a later one has begun, on a machine
        that the scheduler had lost sight of, does not get the lease from that one: LeaseLostError.

        The generation is one more than the one on disk and than `above`, the highest seen elsewhere, which keeps
        generations growing when lease.json was lost. After this returns it survives a power cut. A directory that
        cannot be written, or whose lock another process will not let go, is a `UserError`.
        """
        run_dir = Path(run_dir)
        try:
            with file_lock(run_dir / LOCK):
                previous = read_lease(run_dir)
                if previous is not None and job and previous.job == job and previous.turn > turn:
                    raise LeaseLostError(
                        f"{run_dir}: a later start of the same job, {_who(previous)}, has the run; this one stops "
                        "without writing"
                    )
                now = time.time()
                record = LeaseRecord(
                    generation=max(previous.generation if previous else 0, above) + 1,
                    token=secrets.token_hex(8),
                    holder=holder,
                    host=socket.gethostname(),
                    pid=os.getpid(),
                    step=previous.step if previous else 0,
                    taken=now,
                    renewed=now,
                    released=None,
                    job=job,
                    turn=turn,
                )
                write_json(run_dir / LEASE, asdict(record))
        except LockTakenError:
            raise UserError(
                f"{run_dir / LOCK}: another process ({_who(read_lease(run_dir))}) has held this lock for "
                f"{PATIENCE:.0f} s; end that process, then start again"
            ) from None
        except OSError as error:
            raise UserError(
                f"{run_dir}: the run cannot be taken over ({error.strerror}); make the folder writable, or make room "
                "on its disk, and start again"
            ) from None
        return cls(run_dir, record, previous, period)

    @classmethod
    def join(cls, run_dir: Path, generation: int, token: str, period: float = 30.0) -> "Lease":
        """The lease that another process of the same incarnation has taken; touches no file."""
        now = time.time()
        record = LeaseRecord(generation, token, "", socket.gethostname(), os.getpid(), 0, now, now, None)
        return cls(run_dir, record, None, period)

    @property
    def generation(self) -> int:
        """Number of the incarnation: 1, 2, ..."""
        return self._record.generation

    @property
    def token(self) -> str:
        """What the other processes of the incarnation need to join."""
        return self._record.token

    @contextmanager
    def writing(self, patience: float = PATIENCE) -> Iterator[None]:
        """Within this nobody else writes to the run or takes it over; keep it short.

        Raises LeaseLostError if the run was taken over, and then never writes. Raises OSError where the disk does
        (FileNotFoundError if the run directory is gone, LockTakenError if another process of this run writes for more
        than `patience` seconds): that says nothing about the lease, and may be tried again. May be nested.
        """
        if not self._mutex.acquire(timeout=patience):
            raise LockTakenError(errno.ETIMEDOUT, "another thread is writing", str(self._folder / LOCK))
        try:
            if self._depth:
                yield
                return
            with file_lock(self._folder / LOCK, patience):
                self._check()
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
        finally:
            self._mutex.release()

    def _check(self) -> LeaseRecord:
        """What is on disk, if it is ours. The caller holds the lock."""
        found = read_lease(self._folder)
        if found is None:
            # Raises if the whole directory is gone: the disk may be away and come back.
            os.stat(self._folder)
            raise LeaseLostError(
                f"{self._folder / LEASE} is missing or damaged, so that this process (generation {self.generation}) "
                "cannot know that the run is still its own; it stops without writing"
            )
        if (found.generation, found.token) != (self.generation, self.token):
            raise LeaseLostError(
                f"{self._folder}: {_who(found)} has taken this run over (generation {found.generation}, this process "
                f"has {self.generation}); it stops without writing"
            )
        return found

    def renew(self, step: int) -> None:
        """Report progress; to be called after every step. Looks at the disk at most every `period` seconds.

        Raises LeaseLostError if the run was taken over. Raises OSError if the disk does; the run may go on, and the
        next attempt is made a period later. Does not wait: not for another process or thread that is writing, whose
        lock lets this be done at a later step, and not for the disk, since a renewal that a power cut undoes is
        missed by nobody.
        """
        if time.monotonic() - self._renewed < self._period:
            return
        try:
            with self.writing(patience=0.0):
                self._renewed = time.monotonic()
                self._rewrite(step=step, renewed=time.time())
        except LockTakenError:
            return
        except OSError:
            self._renewed = time.monotonic()
            raise

    def release(self, step: int | None = None) -> None:
        """Say that this incarnation is done with the run. Raises OSError; if the lease is lost there is nothing to do.

        For the reader of lease.json only: the next incarnation takes over the same way from one that was killed.
        """
        now = time.time()
        try:
            with self.writing():
                self._rewrite(step=step, renewed=now, released=now)
        except LeaseLostError:
            return

    def _rewrite(self, step: int | None, renewed: float, released: float | None = None) -> None:
        found = self._check()
        record = replace(found, step=found.step if step is None else step, renewed=renewed, released=released)
        path = self._folder / LEASE
        aside = path.with_name(f".{LEASE}.{secrets.token_hex(4)}.part")
        try:
            aside.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


def _who(record: LeaseRecord | None) -> str:
    return "unknown" if record is None else f"{record.holder or 'pid'} (process {record.pid} on {record.host})"
