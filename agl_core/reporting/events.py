"""The history of a run: `events.jsonl`, one JSON object a line, appended and never rewritten.

Every line has `time` (seconds since 1970), `kind`, `stage` and `generation` (which start of the run). Kinds of the
trainer:

| kind | further keys |
|---|---|
| start | step, steps, epochs, world_size, device, precision, optimizer, threads, parameters, tiles, skipped |
| startup | step, seconds (by item of `agl_core.reporting.startup`), total; after the first step of each start |
| stage-in | step, outcome (copied, continued, found, in place), where, bytes, seconds, processes, reason |
| step | step, epoch, lr, loss, agl_loss, direction_loss, scale_loss, magnitude_loss (if it has a weight), |
| | crops_per_second, data_wait |
| validation | step, epoch, score, cities, seconds; ema_score, ema_cities (those of the average of the weights) |
| checkpoint | step, stall (seconds that training waited), seconds (of the whole write), bytes |
| skip | step, losses (text: they are not finite) |
| rollback | step, to (the step whose state it went back to) |
| interruption | step, signal, saved (the step of the newest checkpoint) |
| refusal | step, text (what the user must mend), saved (the step of the newest checkpoint) |
| warning | step, text |
| finish | step, score |

`data_wait` is the share of the time of training, since the event before, that steps have waited for data (0 to 1).

A run that is interrupted and goes back to a checkpoint appends the steps after it a second time; `read_events` gives
each step once, as the run that counted had it. What an earlier incarnation still writes after a later one has begun is
left out by its `generation`.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO


class EventLog:
    """Appends events of one stage to the file `path`; a log with `path` None swallows them (other ranks).

    The file is opened with the first event, so that a disk that refuses it is an error of `write` alone.
    """

    def __init__(self, path: Path | None, stage: str, generation: int = 0) -> None:
        """`generation`: number of this start of the run, which is part of every event."""
        self._path, self._stage, self._generation = path, stage, generation
        self._file: TextIO | None = None

    def write(self, kind: str, **values: Any) -> None:
        """Append one event; it is in the file when this returns.

        Raises:
            OSError: the disk refuses; an event that an open file did not take is written with the next one.
        """
        if self._path is None:
            return
        if self._file is None:
            self._file = _open(self._path)
        event = {"time": round(time.time(), 3), "kind": kind, "stage": self._stage}
        event |= {"generation": self._generation, **values}
        self._file.write(json.dumps(event, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; what the disk has refused until now is lost, which must not hide how the stage ended."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()


def _open(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = _torn(path)
    file = path.open("a", encoding="utf-8")
    if torn:  # a line that was cut off stays unreadable, but must not spoil the next one
        file.write("\n")
    return file


def _torn(path: Path) -> bool:
    """Whether the last line of a file has no end."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def read_events(path: Path) -> list[dict[str, Any]]:
    """All events of a run in order, torn lines left out, and without what a restart took back: after a `start` at
    step s, earlier events of that stage about later steps are dropped."""
    events: list[dict[str, Any]] = []
    newest = 0
    for event in _lines(path):
        if event.get("generation", newest) < newest:  # of an earlier incarnation that has not noticed yet
            continue
        if event["kind"] == "start":
            newest = event.get("generation", newest)
            events = [
                old
                for old in events
                if old["kind"] == "start" or old["stage"] != event["stage"] or old.get("step", 0) <= event["step"]
            ]
        events.append(event)
    return events


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The events as they were written, without torn lines."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(event, dict):
                yield event


def seconds_spent(path: Path) -> dict[str, float]:
    """How long each stage of a run was at work: from its starts to the last sign of each, steps that a restart took
    back included."""
    spans: dict[tuple[str, int], tuple[float, float]] = {}
    number = 0
    for event in _lines(path):
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
    for event in _lines(path):
        if event["kind"] == "start":
            starts, seconds, began = starts + 1, seconds + last - began, event["time"]
        finished += event["kind"] == "finish"
        last = event["time"]
    return max(starts - finished, 0), seconds + last - began
