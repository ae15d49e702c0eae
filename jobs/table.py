"""Runs and jobs as tables for a terminal. What is shown is never taken for markup."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agl_core.reporting import words
from agl_core.reporting.live.snapshot import Snapshot
from agl_core.reporting.words import clean, span
from jobs.history import DONE
from jobs.pipeline import EVALUATE
from jobs.standing import ACTIVE, ENDING, NOT_STARTED, RUNNING, JobStanding, RunStanding

WIDTH = 180  # columns where the output is no terminal
COLOURS = {DONE: "green", RUNNING: "bold green", ENDING: "green", NOT_STARTED: "dim"}
STATE, REASONS = 24, 14  # columns that a state, and the reasons of restarts, get at least
NUMBERS = ("score", "left", "data", "goodput")
DISPENSABLE = ("time limit", "epoch", "restarts", "id", "left", "sign of life", "step", "goodput")
"""What is left out of a table where there is no room, the least important first."""
MEASURE = Console(width=10_000)
Column = tuple[str, Callable[[JobStanding], str]]
DATA: Column = ("data", lambda job: "" if job.data_wait is None else f"{job.data_wait:.0%}")
"""How much of the time goes by in waiting for data."""


def console() -> Console:
    """Standard output, which a pipe may search line by line."""
    width = None if sys.stdout.isatty() else width_of_output()
    return Console(file=sys.stdout, width=width, markup=False, highlight=False, emoji=False)


def width_of_output() -> int:
    """Columns of what is no terminal."""
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdecimal() and int(columns) else WIDTH


def overview(runs: Sequence[RunStanding], now: float, width: int = WIDTH) -> Table:
    """One row for each run: where the job stands that says most about it, with the newest score of the run, its goodput
    and its end. Columns that find no room in `width` are left out, the least important first."""
    jobs = [_finished(run, now) or replace(run.current or JobStanding("", run.state), score=run.score) for run in runs]
    names = [[clean(run.run), clean(job.job)] for run, job in zip(runs, jobs, strict=True)]
    snapshots = {id(job): run.snapshot for run, job in zip(runs, jobs, strict=True)}
    further: list[Column] = [
        ("goodput", lambda job: _goodput(snapshots[id(job)])),
        ("ends about", lambda job: _end(snapshots[id(job)], now)),
    ]
    return _table(["run", "stage"], names, jobs, now, further, width)


def _finished(run: RunStanding, now: float) -> JobStanding | None:
    """Of a run all of which is done: its last job, with the score of the predictions if there is one, what the restarts
    of all jobs were, and when it ended; None if something is left."""
    if not run.jobs or any(job.state != DONE for job in run.jobs):
        return None
    reasons = sum((Counter(job.reasons) for job in run.jobs), Counter[str]())
    ended = run.snapshot.ended if run.snapshot is not None else None
    official = next((job.score for job in run.jobs if job.job == EVALUATE and job.score is not None), None)
    at = ended if ended is not None else run.last_sign
    return replace(
        run.jobs[-1],
        score=run.score if official is None else official,
        restarts=sum(job.restarts for job in run.jobs),
        reasons=dict(reasons.most_common()),
        detail="" if at is None else f"ended {words.moment(at, now)}",
    )


def details(run: RunStanding, now: float, width: int = WIDTH) -> Table:
    """One row for each job of a run."""
    return _table(["job"], [[clean(job.job)] for job in run.jobs], run.jobs, now, [DATA], width)


def _goodput(snapshot: Snapshot | None) -> str:
    return f"{snapshot.goodput:.0%}" if snapshot is not None and snapshot.goodput else ""


def _end(snapshot: Snapshot | None, now: float) -> str:
    if snapshot is None:
        return ""
    if snapshot.ends_at is None and snapshot.to_end is not None:
        return f"{span(snapshot.to_end)} after it starts"
    return words.moment(snapshot.ends_at, now) if snapshot.ends_at is not None else ""


def table_columns(jobs: Sequence[JobStanding], now: float, further: Sequence[Column] = ()) -> list[Column]:
    """The columns after the state that have something to say about any of the jobs; `further` ones come last."""
    columns: list[Column] = [
        ("id", lambda job: job.id),
        ("step", lambda job: of(job.step, job.steps)),
        ("epoch", lambda job: of(job.epoch, job.epochs)),
        ("score", lambda job: "" if job.score is None else f"{job.score:.4f}"),
        ("restarts", lambda job: restarts(job)),
        ("sign of life", lambda job: "" if job.last_sign is None else f"{span(now - job.last_sign)} ago"),
        ("left", lambda job: "" if job.seconds_left is None else span(job.seconds_left)),
        ("time limit", lambda job: "" if job.limit_left is None else f"in {span(job.limit_left)}"),
    ]
    return [(name, column) for name, column in [*columns, *further] if any(map(column, jobs))]


def of(part: int | None, total: int | None) -> str:
    """`part/total`, as far as they are known."""
    if part is None and total is None:
        return ""
    return f"{'?' if part is None else part}" + ("" if total is None else f"/{total}")


def restarts(job: JobStanding) -> str:
    """How often a job was started again, and why."""
    if not job.restarts:
        return ""
    reasons = ", ".join(f"{number} {reason}" for reason, number in job.reasons.items())
    return f"{job.restarts}" + (f" ({reasons})" if reasons else "")


def moment(start: str) -> str:
    """A time of Slurm's without its seconds, with its zone, which is that of this machine: its commands tell local
    time; one that it wrote otherwise stays as it is."""
    try:
        then = datetime.fromisoformat(start)
        return f"{then:%Y-%m-%d %H:%M} {words.zone(then.timestamp())}"
    except (ValueError, OverflowError, OSError):  # a time, or a year that no clock knows
        return start


def slurm_time(start: str) -> float | None:
    """The unix time of a time of Slurm's; None for none, or one that no clock knows."""
    try:
        return datetime.fromisoformat(start).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _table(
    first: Sequence[str],
    names: Sequence[Sequence[str]],
    jobs: Sequence[JobStanding],
    now: float,
    further: Sequence[Column],
    width: int,
) -> Table:
    """A table that finds room in `width` columns if states are broken into lines."""
    columns = table_columns(jobs, now, further)
    table = _filled(first, names, jobs, columns, width)
    for name in DISPENSABLE:
        if MEASURE.measure(table).minimum <= width:
            break
        columns = [column for column in columns if column[0] != name]
        table = _filled(first, names, jobs, columns, width)
    return table


def _filled(
    first: Sequence[str],
    names: Sequence[Sequence[str]],
    jobs: Sequence[JobStanding],
    columns: Sequence[Column],
    width: int,
) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(first):
        table.add_column(name, no_wrap=True, min_width=_widest(name, [row[place] for row in names]))
    table.add_column("state", min_width=min(STATE, width // 4))
    for name, column in columns:
        broken = name == "restarts"
        least = REASONS if broken else _widest(name, map(column, jobs))
        justify: Literal["left", "right"] = "right" if name in NUMBERS else "left"
        table.add_column(name, no_wrap=not broken, min_width=least, justify=justify)
    for row, job in zip(names, jobs, strict=True):
        table.add_row(*map(Text, row), _state(job), *(Text(clean(column(job))) for _, column in columns))
    return table


def _widest(name: str, texts: Iterable[str]) -> int:
    return max(map(cell_len, [name, *texts]))


def _state(job: JobStanding) -> Text:
    told = [clean(job.detail), f"expected to start {moment(clean(job.start))}" if job.start else ""]
    told = [part for part in told if part]
    colour = COLOURS.get(job.state, "yellow" if job.state in ACTIVE else "red")
    return Text.assemble((job.state, colour), ": " * bool(told), "; ".join(told))
