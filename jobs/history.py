"""What happened to the jobs of a run: `jobs/history.jsonl`, one JSON object a line, appended and never rewritten.

| kind | further keys |
|---|---|
| begin | job; id (Slurm's, or "pid N"); restart (after requeues), attempt (within an allocation); step; host; pid |
| end | job, id, restart, attempt, step; end, why, deed (see below); text; traceback |
| cancel | id: the jobs that the user cancelled, with commas |

`step` is the newest step that the job is known to have reached, None where it has none. `end` is done, interrupted,
crashed, refused or taken over; `why` preempted, warned, requeued, time limit, cancelled, cancelled by preemption,
conductor died, unknown or empty; `deed` done, requeue, leave, again or give up. A begin without its end was killed
together with whatever writes here, or still runs.
"""

import json
import os
import socket
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agl_core.reporting.events import LAUNCH, LEAVE, Appender, JobLog

Entry = dict[str, Any]

DONE, INTERRUPTED, CRASHED, REFUSED, TAKEN_OVER = "done", "interrupted", "crashed", "refused", "taken over"
BEGIN, END, CANCEL = "begin", "end", "cancel"

MOST_TEXT = 500
"""Characters of a text that are kept as an event."""


class History:
    """Appends to the history at `path`, and what it says of time to the events of the run too; no job fails because of
    it.

    An entry that the disk refuses stays in memory and is tried again, in order, with the next one.
    """

    def __init__(self, path: Path, events: Path | None = None) -> None:
        """events: the run's file of events (see `agl_core.reporting.events`); None: it is not told."""
        self._path = Path(path)
        self._lines = Appender(self._path)
        self._events = None if events is None else JobLog(events)

    def begin(
        self,
        job: str,
        id: str,
        restart: int = 0,
        attempt: int = 0,
        step: int | None = None,
        reached: int | None = None,
    ) -> None:
        """The job `job` starts in this process or below it, with the job id `id`. reached: the last step that the
        starts before it have done, which is for the events alone."""
        who = {"host": socket.gethostname(), "pid": os.getpid()}
        at = self._append(BEGIN, job=job, id=id, restart=restart, attempt=attempt, step=step, **who)
        if self._events is not None:
            told = {"restart": restart, "attempt": attempt, "host": who["host"], "step": step, "reached": reached}
            self._events.write(LAUNCH, job, at, id=id, **told)

    def end(
        self,
        job: str,
        id: str,
        restart: int = 0,
        attempt: int = 0,
        step: int | None = None,
        *,
        end: str,
        why: str = "",
        deed: str = "",
        text: str = "",
        traceback: str = "",
    ) -> None:
        """What was begun with the same job, id, restart and attempt has ended: how, why, and what is done about it.

        text: one sentence; traceback: the last lines of the rank at fault."""
        told = {"end": end, "why": why, "deed": deed, "text": text}
        at = self._append(END, job=job, id=id, restart=restart, attempt=attempt, step=step, **told, traceback=traceback)
        if self._events is not None:
            told["text"] = text.partition("\n")[0][:MOST_TEXT]
            self._events.write(LEAVE, job, at, id=id, restart=restart, attempt=attempt, step=step, **told)

    def cancel(self, ids: Iterable[str]) -> None:
        """The user has cancelled these jobs."""
        joined = ",".join(ids)
        at = self._append(CANCEL, job="", id=joined)
        if self._events is not None:
            self._events.write(CANCEL, "", at, ids=joined)

    def entries(self) -> list[Entry]:
        """All entries in their order; see `read_history`."""
        return read_history(self._path)

    def _append(self, kind: str, **values: Any) -> float:
        """Append an entry; returns its time."""
        at = round(time.time(), 3)
        with suppress(OSError):
            self._lines.append(json.dumps({"time": at, "kind": kind, **values}))
        # Opened for every entry: other machines see at once what was written before a file was closed.
        self._lines.release()
        return at


def read_history(path: Path) -> list[Entry]:
    """The entries of a history in their order, without lines that are torn or no entries; none if there is no file.

    Raises OSError if it cannot be read."""
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [entry for line in lines if (entry := _entry(line)) is not None]


def _entry(line: bytes) -> Entry | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    kinds = {"time": int | float, "kind": str, "id": str, "job": str}
    whole = isinstance(entry, dict) and all(isinstance(entry.get(name), kind) for name, kind in kinds.items())
    return entry if whole else None


@dataclass(frozen=True)
class Incarnation:
    """One start of a job, with its end if there is one."""

    begin: Entry
    end: Entry | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What its begin and its end have in common."""
        return _key(self.begin)


def incarnations(entries: Sequence[Entry], job: str | None = None) -> list[Incarnation]:
    """Every start of `job`, or of all jobs, in their order. An end goes to the latest open begin with the same job, id,
    restart and attempt (process ids come again); an end whose begin was lost stands alone, as its own begin."""
    found: list[Incarnation] = []
    for entry in entries:
        if entry["kind"] == BEGIN:
            found.append(Incarnation(entry))
        elif entry["kind"] == END:
            number = next((n for n in reversed(range(len(found))) if found[n].key == _key(entry)), None)
            if number is None or found[number].end is not None:
                found.append(Incarnation(entry, entry))
            else:
                found[number] = Incarnation(found[number].begin, entry)
    return [incarnation for incarnation in found if job is None or incarnation.begin["job"] == job]


def _key(entry: Entry) -> tuple[Any, ...]:
    return entry["job"], entry["id"], entry.get("restart", 0), entry.get("attempt", 0)


def restarts(entries: Sequence[Entry], job: str) -> int:
    """How many times a job was started again before it was done, whatever had ended it."""
    earlier = incarnations(entries, job)[:-1]
    return sum(incarnation.end is None or incarnation.end.get("end") != DONE for incarnation in earlier)


def last_end(entries: Sequence[Entry], job: str) -> Entry | None:
    """The newest end of a job that was written down, even if it was started again since; None if there is none."""
    ends = [entry for entry in entries if entry["kind"] == END and entry["job"] == job]
    return ends[-1] if ends else None
