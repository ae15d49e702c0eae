"""The history of a run: `events.jsonl`, one JSON object a line, appended and never rewritten.

Every line has `time` (seconds since 1970), `kind` and `stage`; those of the trainer have `generation` too (which start
of the run). Kinds of the trainer:

| kind | further keys |
|---|---|
| start | step, steps, epochs, world_size, device, precision, optimizer, threads, parameters, tiles, skipped, |
| | launched, job (its id under a scheduler, else empty) |
| startup | step, seconds (by item of `agl_core.reporting.startup`), total; after the first step of each start |
| stage-in | step, outcome (copied, continued, found, in place), where, bytes, seconds, processes, reason |
| step | step, epoch, lr, loss, agl_loss, direction_loss, scale_loss, magnitude_loss (if it has a weight), |
| | crops_per_second, data_wait, seconds, waited |
| validation | step, epoch, score, cities, seconds; ema_score, ema_cities (those of the average of the weights) |
| checkpoint | step, stall (seconds that training waited), seconds (of the whole write), bytes, at |
| skip | step, losses (text: they are not finite) |
| rollback | step, to (the step whose state it went back to) |
| interruption | step, signal, saved (the step of the newest checkpoint), at, waited |
| refusal | step, text (what the user must mend), saved (the step of the newest checkpoint), at, waited |
| warning | step, text |
| finish | step, score |

`launched` is when the process was started (seconds since 1970), as far as it knows. `seconds` of a step event is the
time of the steps since the event before, of this start: computing, exchanging and waiting for data, but neither
validation nor saving; `waited` are the seconds of them in which data was waited for, and `data_wait` is their share (0
to 1). `at` is a time (seconds since 1970): of a checkpoint, when its state was that of the run, so that what was done
until then is kept; of an interruption or a refusal, when the last step was done.

What starts and ends jobs writes too (`jobs.history` keeps the same with more about it), with the name of the job as
`stage` and without `generation`:

| kind | further keys |
|---|---|
| submit | id; the job was handed to a scheduler |
| launch | id, restart (after requeues), attempt (within an allocation), host, step (to continue from), reached |
| leave | id, restart, attempt, step (the last that it has done), end, why, deed, text (see `jobs.history`) |
| cancel | ids: the jobs that the user cancelled; `stage` is empty |

`reached` is the last step that the starts before have done, whether it was kept or not; a start that was killed with
everything could not say so itself. So this file alone tells where the time of a run has gone: `agl_core.reporting.
goodput`. The file has several writers: each appends whole lines, and closes a line that another could not finish.

A run that is interrupted and goes back to a checkpoint appends the steps after it a second time; `read_events` gives
each step once, as the run that counted had it. What an earlier incarnation still writes after a later one has begun is
left out by its `generation`.
"""

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

SUBMIT, LAUNCH, LEAVE, CANCEL = "submit", "launch", "leave", "cancel"
JOB_KINDS = (SUBMIT, LAUNCH, LEAVE, CANCEL)
"""Kinds that are not the trainer's."""
MOST = 2**53
"""A number of steps and the like is below it; what is not was damaged."""


class Appender:
    """Appends lines to the file `path`, each in one piece, whoever else appends to it.

    A line that the disk refuses stays in memory and is tried again, in order, before the next one. The file is opened
    with the first line, so that a disk that refuses it is an error of `append` alone.
    """

    def __init__(self, path: Path) -> None:
        self._path = Path(path)
        self._file: BinaryIO | None = None
        self._pending: list[bytes] = []

    def append(self, line: str) -> None:
        """Append a line, which is given without its end; it is in the file when this returns.

        Raises:
            OSError: the disk refuses.
        """
        self._pending.append(line.encode() + b"\n")
        self._flush()

    def release(self) -> None:
        """Close the file until the next line."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                file.close()

    def close(self) -> None:
        """Close the file; what the disk has refused until now is tried once more, and lost if it is refused again."""
        with suppress(OSError):
            if self._pending:
                self._flush()
        self.release()

    def _flush(self) -> None:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab+", buffering=0)
        while self._pending:
            # A line that was cut off stays unreadable, but must not spoil the next one.
            line = (b"\n" if _torn(self._file) else b"") + self._pending[0]
            if self._file.write(line) != len(line):  # the disk is full; the next line begins with the same one
                raise OSError(f"{self._path} did not take a whole line")
            self._pending.pop(0)


def _torn(file: BinaryIO) -> bool:
    """Whether the last line of an open file has no end."""
    size = os.fstat(file.fileno()).st_size
    return size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"


class EventLog:
    """Appends events of one stage to the file `path`; a log with `path` None swallows them (other ranks)."""

    def __init__(self, path: Path | None, stage: str, generation: int = 0) -> None:
        """`generation`: number of this start of the run, which is part of every event."""
        self._file = None if path is None else Appender(path)
        self._stage, self._generation = stage, generation

    def write(self, kind: str, **values: Any) -> None:
        """Append one event; it is in the file when this returns.

        Raises:
            OSError: the disk refuses; the event is written with the next one.
        """
        if self._file is None:
            return
        event = {"time": round(time.time(), 3), "kind": kind, "stage": self._stage}
        event |= {"generation": self._generation, **values}
        self._file.append(json.dumps(event, allow_nan=False))

    def close(self) -> None:
        """Close the file; what the disk has refused until now is lost, which must not hide how the stage ended."""
        if self._file is not None:
            self._file.close()


class JobLog:
    """Appends the events of jobs to the file `path`; no job fails because of it.

    An event that the disk refuses stays in memory and is tried again with the next one.
    """

    def __init__(self, path: Path) -> None:
        self._file = Appender(path)

    def write(self, kind: str, stage: str, at: float, **values: Any) -> None:
        """Append one of `JOB_KINDS` about the job `stage`, of the time `at` (seconds since 1970)."""
        event = {"time": round(at, 3), "kind": kind, "stage": stage, **values}
        with suppress(OSError):
            self._file.append(json.dumps(event, allow_nan=False))
        # Opened for every event: other machines see at once what was written before a file was closed.
        self._file.release()


def read_all(path: Path) -> list[dict[str, Any]]:
    """Every event of a run in the order of the file, torn lines left out; none if there is no file.

    An event has a `time` that is a finite number, a `kind` and a `stage` that are texts, and if it has a `generation`
    or a `step`, they are whole numbers (a step may be None, as not known): a line that breaks this was damaged, and is
    left out like a torn one. Of what else it has nothing is promised.

    Raises OSError if the file cannot be read."""
    return list(each_event(path))


def each_event(path: Path) -> Iterator[dict[str, Any]]:
    """The events of `read_all` one by one: a long run has hundreds of thousands."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if (event := parse(line)) is not None:
                yield event


def parse(line: str) -> dict[str, Any] | None:
    """The event of a line as `read_all` promises it; None for what is torn, damaged or no event."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and _sound(event) else None


def _sound(event: dict[str, Any]) -> bool:
    """Whether what every reader relies on is of its kind."""
    step, begins = event.get("step"), event.get("kind") == "start"
    return (
        is_finite(event.get("time"))
        and isinstance(event.get("kind"), str)
        and isinstance(event.get("stage"), str)
        and _is_whole(event.get("generation", 0))
        and (_is_whole(step) or (step is None and not begins))
    )


def is_finite(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a number that is neither infinite nor beyond what a float can hold, and no truth value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < MOST


def read_events(path: Path) -> list[dict[str, Any]]:
    """All events of the trainer in order, without torn and damaged lines (see `read_all`), and without what a restart
    took back: after a `start` at step s, earlier events of that stage about later steps are dropped."""
    events: list[dict[str, Any]] = []
    newest = 0
    for event in each_event(path):
        if event["kind"] in JOB_KINDS:
            continue
        if event.get("generation", newest) < newest:  # of an earlier incarnation that has not noticed yet
            continue
        if event["kind"] == "start":
            newest = event.get("generation", newest)
            events = [
                old
                for old in events
                if old["kind"] == "start" or old["stage"] != event["stage"] or (old.get("step") or 0) <= event["step"]
            ]
        events.append(event)
    return events


def trained(path: Path) -> bool:
    """Whether a file of events tells of any training; one that cannot be read is taken to."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return not all(_of_a_job(line) for line in file)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _of_a_job(line: str) -> bool:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(event, dict) and event.get("kind") in JOB_KINDS


def seconds_spent(path: Path) -> dict[str, float]:
    """How long each stage of a run was at work: from its starts to the last sign of each, steps that a restart took
    back included."""
    spans: dict[tuple[str, int], tuple[float, float]] = {}
    number = 0
    for event in _of_trainer(path):
        number += event["kind"] == "start"
        stage, at = event["stage"], event["time"]
        first, last = spans.get((stage, number), (at, at))
        spans[stage, number] = (first, max(last, at))
    spent: dict[str, float] = {}
    for (stage, _), (first, last) in spans.items():
        spent[stage] = spent.get(stage, 0.0) + last - first
    return spent


def count_interruptions(path: Path) -> tuple[int, float]:
    """How often a run was interrupted so far, by anything, and in how many seconds of its life."""
    starts, seconds, began, last = 0, 0.0, 0.0, 0.0
    finished = 0
    for event in _of_trainer(path):
        if event["kind"] == "start":
            starts, seconds, began = starts + 1, seconds + last - began, event["time"]
        finished += event["kind"] == "finish"
        last = event["time"]
    return max(starts - finished, 0), seconds + last - began


def _of_trainer(path: Path) -> Iterator[dict[str, Any]]:
    return (event for event in each_event(path) if event["kind"] not in JOB_KINDS)
