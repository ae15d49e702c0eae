"""What is on the disk about runs, read without changing anything: the material that `jobs.standing` judges."""

import difflib
import fcntl
import os
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agl_core.config import TrainConfig
from agl_core.durable.lease import LeaseRecord, read_lease
from agl_core.errors import UserError
from agl_core.files import read_json
from agl_core.reporting.events import CANCEL, JOB_KINDS, LAUNCH, LEAVE, read_all, read_events
from jobs.history import BEGIN, END, Entry, read_history
from jobs.history import CANCEL as CANCEL_ENTRY
from jobs.pipeline import ENSEMBLE, EVALUATE, PREDICT, PREPARE, REPORT, STAGE, follow_ups
from jobs.progress import predicted
from jobs.runs import Run
from jobs.settings import read_mapping

ORDER = (PREPARE, STAGE, PREDICT, ENSEMBLE, EVALUATE, REPORT)
MOST_NAMES = 8  # of runs that a refusal lists


@dataclass(frozen=True)
class Holder:
    """The process on some machine that trains a run or submits its jobs, as long as it lives."""

    pid: int
    host: str


@dataclass(frozen=True)
class Findings:
    """All that a run's folder says. Dictionaries are by the name of the job.

    stages: those of its recipe, in order; planned: the jobs that come after them; records: what jobs left when they
    were finished; submitted, submitted_at: the Slurm ids of the last submission, and when it was; lease: the last sign
    of life of the processes that train; holder: the process that holds the run's lock now; official: the score of the
    predictions; predicted: how many images are predicted; damage: what could not be read, in one sentence; host: this
    machine.
    """

    run: Run
    stages: tuple[str, ...] = ()
    planned: tuple[str, ...] = ()
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    entries: Sequence[Entry] = ()
    events: Sequence[dict[str, Any]] = ()
    submitted: dict[str, str] = field(default_factory=dict)
    submitted_at: float = 0.0
    lease: LeaseRecord | None = None
    holder: Holder | None = None
    official: float | None = None
    predicted: int = 0
    damage: str = ""
    host: str = ""

    @property
    def jobs(self) -> list[str]:
        """Every job that the run has or is known to have had, in the order of the pipeline."""
        known = {*self.stages, *self.planned, *self.records, *self.submitted, *(e["job"] for e in self.entries)} - {""}
        return sorted(known, key=lambda name: (self._place(name), name))

    def _place(self, name: str) -> tuple[int, int]:
        if name in ORDER:
            return ORDER.index(name), 0
        return ORDER.index(STAGE), self.stages.index(name) if name in self.stages else len(self.stages)


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run, of an ensemble or of a prediction."""
    run = Run(path)
    return run.exists() or run.is_ensemble() or run.is_prediction()


def find_runs(folder: Path) -> list[Run]:
    """All runs below a folder, ensembles and predictions included, by name; none if there is no such folder."""
    try:
        return [Run(path.absolute()) for path in sorted(Path(folder).iterdir()) if is_run(path)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def find_run(folder: str, name: str) -> Run:
    """The run with this name, or at this path (the shell completes `runs/first`).

    Raises:
        UserError: there is none; the sentence lists those that there are: alike ones first, the others by name.
    """
    path = Path(name) if "/" in name.rstrip("/") else Path(folder) / name.rstrip("/")
    if name not in (".", "..", "/") and is_run(path):
        return Run(path.absolute())
    names = [run.name for run in find_runs(path.parent)]
    if not names:
        raise UserError(
            f"there is no run {path.name!r}, and none at all in {path.parent}: give the folder of all runs with --runs"
        )
    close = difflib.get_close_matches(path.name, names, MOST_NAMES)
    alike = [*close, *sorted(set(names) - set(close))]
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    raise UserError(f"no run {path.name!r} in {path.parent}: there are {', '.join(alike[:MOST_NAMES])}{more}")


def submitted(run: Run) -> dict[str, str]:
    """The Slurm ids of the run's last submission by job; none if there was none or its file cannot be read."""
    try:
        content = read_json(run.submitted)
    except UserError:
        return {}
    return {str(job): str(id) for job, id in content.items()} if isinstance(content, dict) else {}


def read(run: Run, ids: dict[str, str] | None = None) -> Findings:
    """Everything about a run. `ids`: what `submitted` gave before Slurm was asked, so that both tell of the same jobs.

    Ask Slurm first: what ends between the two has left its end in the folder by then.
    """
    stages, planned, damage = plan(run)
    submitted_at = 0.0
    with suppress(OSError):
        submitted_at = run.submitted.stat().st_mtime
    return Findings(
        run=run,
        stages=stages,
        planned=planned,
        records=records(run),
        entries=_or_none(lambda: read_history(run.history), []),
        events=_or_none(lambda: read_events(run.events), []),
        submitted=submitted(run) if ids is None else ids,
        submitted_at=submitted_at,
        lease=_or_none(lambda: read_lease(run.path), None),
        holder=holder(run),
        official=official(run),
        predicted=predicted(run),
        damage=damage,
        host=socket.gethostname(),
    )


def unmirrored(run: Run) -> list[dict[str, Any]]:
    """The history of a run's jobs as events, where its events were written before they told of jobs; else nothing."""
    entries = _or_none(lambda: read_history(run.history), [])
    if not entries or any(event["kind"] in JOB_KINDS for event in _or_none(lambda: read_all(run.events), [])):
        return []
    return [event for entry in entries if (event := _as_event(entry)) is not None]


def _as_event(entry: Entry) -> dict[str, Any] | None:
    kinds = {BEGIN: LAUNCH, END: LEAVE}
    if entry["kind"] == CANCEL_ENTRY:
        return {"time": entry["time"], "kind": CANCEL, "stage": "", "ids": entry["id"]}
    if entry["kind"] not in kinds:
        return None
    return {**entry, "kind": kinds[entry["kind"]], "stage": entry["job"]}


def everything(run: Run) -> list[dict[str, Any]]:
    """All events of a run, those of its jobs included, in the order of the file; none if it cannot be read."""
    events = _or_none(lambda: read_all(run.events), [])
    missing = unmirrored(run)
    return sorted([*events, *missing], key=lambda event: event["time"]) if missing else events


def holder(run: Run) -> Holder | None:
    """Who holds the lock of the run; None if nobody does, or the file system cannot tell."""
    try:
        with run.lock.open(encoding="utf-8") as file:
            match = re.fullmatch(r"pid (\d+) on host (\S+)", file.read().strip())
            if match is None:
                return None
            found = Holder(int(match[1]), match[2])
            if found.host == socket.gethostname() and not lives(found.pid):
                return None  # without touching the lock, which a launch that begins just now could need
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return found
    except (OSError, UnicodeDecodeError):
        return None
    return None


def lives(pid: int) -> bool:
    """Whether this machine has such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def plan(run: Run) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """The stages of a run, the jobs after them, and what is wrong with the file that says so."""
    if not run.exists():
        return (), (ENSEMBLE,) if run.is_ensemble() else (PREDICT,) if run.is_prediction() else (), ""
    try:
        values = read_mapping(run.config_file, resolve=False)
    except UserError as error:
        return (), (), str(error)
    if not isinstance(values.get("stages"), dict):
        return (), (), f"{run.config_file} has no stages"
    after = follow_ups(TrainConfig(data=str(values.get("data", "")), until=str(values.get("until", "train"))))
    return tuple(map(str, values["stages"])), tuple(after), ""


def records(run: Run) -> dict[str, dict[str, Any]]:
    """What jobs that are finished have left, by their name."""
    found = {}
    for path in sorted((run.path / "stages").glob("*.json")):
        with suppress(UserError):
            record = read_json(path)
            if isinstance(record, dict) and record.get("finished"):
                found[path.stem] = record
    return found


def official(run: Run) -> float | None:
    """The score of the predictions, where the run has got so far."""
    try:
        return float(read_json(run.score_file)["score"])
    except (UserError, KeyError, TypeError, ValueError):
        return None


def _or_none(reader: Any, otherwise: Any) -> Any:
    """What `reader` returns; a folder that cannot be read says nothing about the rest of the run."""
    try:
        return reader()
    except (OSError, KeyError, TypeError, AttributeError):
        return otherwise
