"""The history of a run: `events.jsonl`, one JSON object a line, appended and never rewritten.

Every line has `time` (seconds since 1970), `kind` and `stage`. Kinds of the trainer:

| kind | further keys |
|---|---|
| start | step, steps, epochs, world_size, device, precision, threads, parameters, tiles, skipped checkpoints |
| step | step, epoch, lr, loss, agl_loss, direction_loss, scale_loss, crops_per_second |
| validation | step, epoch, score, cities, seconds |
| checkpoint | step, seconds |
| finish | step, score |

A run that is interrupted and goes back to a checkpoint appends the steps after it a second time; `read_events` gives
each step once, as the run that counted had it.
"""

import json
import time
from pathlib import Path
from typing import Any


class EventLog:
    """Appends events of one stage to the file `path`; a log with `path` None swallows them (other ranks)."""

    def __init__(self, path: Path | None, stage: str) -> None:
        self._stage = stage
        self._file = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            torn = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
            self._file = path.open("a", encoding="utf-8")
            if torn:  # a line that was cut off stays unreadable, but must not spoil the next one
                self._file.write("\n")

    def write(self, kind: str, **values: Any) -> None:
        """Append one event; it is in the file when this returns."""
        if self._file is not None:
            event = {"time": round(time.time(), 3), "kind": kind, "stage": self._stage, **values}
            self._file.write(json.dumps(event, allow_nan=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def read_events(path: Path) -> list[dict[str, Any]]:
    """All events of a run in order, torn lines left out, and without what a restart took back: after a `start` at
    step s, earlier events of that stage about later steps are dropped."""
    events: list[dict[str, Any]] = []
    if not path.exists():
        return events
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if event["kind"] == "start":
            events = [
                old
                for old in events
                if old["kind"] == "start" or old["stage"] != event["stage"] or old.get("step", 0) <= event["step"]
            ]
        events.append(event)
    return events
