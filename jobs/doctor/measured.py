"""The times that a run has measured, from its events."""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from agl_core.reporting.events import read_events

NEWEST = 20  # of the events of a kind that count
MOST = 1e18  # beyond it a number is none of ours; neither is what is not finite


@dataclass(frozen=True)
class Measured:
    """What a run has measured; None where it has not. step: seconds for an optimiser step; save: seconds for the whole
    write of a checkpoint, the longest of the newest; startup: seconds from the start of a job to its first step; bytes:
    of a checkpoint."""

    run: str = ""
    step: float | None = None
    save: float | None = None
    startup: float | None = None
    bytes: int | None = None

    @property
    def leaving(self) -> float | None:
        """Seconds from a warning to the end of the last save: the step that is being done, then the write."""
        return None if self.save is None else (self.step or 0.0) + self.save


def measured_by(runs: Path, name: str = "", first: Iterable[str] = ()) -> Measured:
    """The times of the run `name`; without one, of the first of the runs `first` that has any, or else of the newest
    below `runs`; nothing known where there is none. Other programs may have written those files: one that holds
    something else is passed over."""
    folders = [runs / name] if name else [*(runs / each for each in first), *_newest_first(runs)]
    for folder in folders:
        with suppress(OSError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            found = measure(folder.name, read_events(folder / "events.jsonl"))
            if found.save is not None or found.step is not None:
                return found
    return Measured(name)


def measure(run: str, events: Iterable[Mapping[str, Any]]) -> Measured:
    """What these events tell. A step's time is the median of the newest pairs of `step` events of a start."""
    steps: list[float] = []
    last: Mapping[str, Any] | None = None
    saves: list[Mapping[str, Any]] = []
    startups: list[float] = []
    for event in events:
        kind = event.get("kind")
        if kind == "step":
            if last is not None and (taken := _between(last, event)) is not None:
                steps.append(taken)
            last = event
        elif kind in ("start", "validation", "rollback"):  # its time is not that of steps
            last = None
        elif kind == "checkpoint":
            saves.append(event)
        elif kind == "startup":
            startups += _numbers([event.get("total")])
    seconds = _numbers([event.get("seconds") for event in saves[-NEWEST:]])
    sizes = _numbers([event.get("bytes") for event in saves[-NEWEST:]])
    return Measured(
        run,
        median(steps[-NEWEST:]) if steps else None,
        max(seconds, default=None),
        median(startups[-NEWEST:]) if startups else None,
        int(sizes[-1]) if sizes else None,
    )


def _between(first: Mapping[str, Any], second: Mapping[str, Any]) -> float | None:
    numbers = _numbers([first.get("time"), second.get("time"), first.get("step"), second.get("step")])
    if len(numbers) < 4 or first.get("stage") != second.get("stage") or numbers[3] <= numbers[2]:
        return None
    return max(0.0, numbers[1] - numbers[0]) / (numbers[3] - numbers[2])


def _numbers(values: Iterable[Any]) -> list[float]:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return [float(value) for value in numbers if abs(value) < MOST]


def _newest_first(runs: Path) -> list[Path]:
    found = []
    with suppress(OSError), os.scandir(runs) as entries:
        for entry in entries:
            with suppress(OSError):
                found.append((os.stat(os.path.join(entry.path, "events.jsonl")).st_mtime, entry.path))
    return [Path(path) for _, path in sorted(found, reverse=True)]
