"""Runs and jobs as tables for a terminal. What is shown is never taken for markup."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.history import DONE
from jobs.standing import ACTIVE, ENDING, NOT_STARTED, RUNNING, JobStanding, RunStanding

WIDTH = 180  # columns where the output is no terminal
COLOURS = {DONE: "green", RUNNING: "bold green", ENDING: "green", NOT_STARTED: "dim"}
Column = tuple[str, Callable[[JobStanding], str]]
DATA: Column = ("data", lambda job: "" if job.data_wait is None else f"{job.data_wait:.0%}")
"""How much of the time goes by in waiting for data."""


def console() -> Console:
    """Standard output, which a pipe may search line by line."""
    width = None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "0") or 0) or WIDTH
    return Console(file=sys.stdout, width=width, markup=False, highlight=False, emoji=False)


def overview(runs: Sequence[RunStanding], now: float) -> Table:
    """One row for each run: where the job stands that says most about it, with the newest score of the run."""
    jobs = [replace(run.current or JobStanding("", run.state), score=run.score) for run in runs]
    return _table(["run", "stage"], [[run.run, job.job] for run, job in zip(runs, jobs, strict=True)], jobs, now)


def details(run: RunStanding, now: float) -> Table:
    """One row for each job of a run."""
    return _table(["job"], [[job.job] for job in run.jobs], run.jobs, now, [DATA])


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


def span(seconds: float) -> str:
    """A stretch of time in its largest sensible unit."""
    seconds = max(seconds, 0.0)
    for unit, name, digits in ((86400, "d", 1), (3600, "h", 1), (60, "min", 0)):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.{digits}f} {name}"
    return f"{seconds:.0f} s"


def moment(start: str) -> str:
    """A time of Slurm's without its seconds; one that it wrote otherwise stays as it is."""
    try:
        return f"{datetime.fromisoformat(start):%Y-%m-%d %H:%M}"
    except ValueError:
        return start


def _table(
    first: Sequence[str],
    names: Sequence[Sequence[str]],
    jobs: Sequence[JobStanding],
    now: float,
    further: Sequence[Column] = (),
) -> Table:
    table, columns = Table(box=SIMPLE_HEAD, pad_edge=False), table_columns(jobs, now, further)
    for name in first:
        table.add_column(name, no_wrap=True)
    table.add_column("state")
    for name, _ in columns:
        table.add_column(
            name, no_wrap=name != "restarts", justify="right" if name in ("score", "left", "data") else "left"
        )
    for row, job in zip(names, jobs, strict=True):
        table.add_row(*map(Text, row), _state(job), *(Text(column(job)) for _, column in columns))
    return table


def _state(job: JobStanding) -> Text:
    told = [job.detail, f"expected to start {moment(job.start)}" if job.start else ""]
    told = [part for part in told if part]
    colour = COLOURS.get(job.state, "yellow" if job.state in ACTIVE else "red")
    return Text.assemble((job.state, colour), ": " * bool(told), "; ".join(told))
