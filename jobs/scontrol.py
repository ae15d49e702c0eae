"""Slurm's commands: what the queue and a job look like, and how a job is cancelled or handed back.

Each runs in a session of its own, so that a signal to this process's group does not hit it, and with a time-out: a
controller that is away must not take anybody with it.
"""

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.why import JobFacts

PATIENCE = 20.0
"""Seconds for a command to answer."""
UNKNOWN_JOB = "invalid job id"
COLUMNS = ("%i", "%T", "%r", "%L", "%S", "%N", "%j")  # the name comes last, since it may hold anything


@dataclass(frozen=True)
class QueuedJob:
    """A job that waits or runs. name: Slurm's job name; state: PENDING, RUNNING, COMPLETING, ...; reason: why it waits,
    empty if it does not; time_left: seconds of its time limit, None if it has none; nodes: where it runs; start: since
    when, or when Slurm expects it to (empty: unknown)."""

    id: str
    name: str
    state: str
    reason: str = ""
    time_left: float | None = None
    nodes: str = ""
    start: str = ""


def show_job(id: str) -> JobFacts | None:
    """What Slurm knows about a job; None if it does not answer or does not know the job."""
    done = call(["scontrol", "show", "job", "-o", id])
    try:
        return JobFacts.parse(done.stdout) if done is not None and done.returncode == 0 else None
    except ValueError:
        return None


def queue(ids: Sequence[str]) -> dict[str, QueuedJob] | None:
    """Those of the jobs `ids` that wait, run or are about to end, by id; None if Slurm does not answer."""
    if not ids:
        return {}
    done = call(["squeue", "--noheader", "--jobs", ",".join(ids), "--format", "|".join(COLUMNS)])
    if done is None:
        return None
    if done.returncode != 0:  # squeue has no other word for jobs that it has forgotten
        return {} if UNKNOWN_JOB in done.stderr.lower() else None
    return {job.id: job for job in parse_queue(done.stdout)}


def cancel(ids: Sequence[str]) -> str | None:
    """Cancel jobs, those that wait first, so that none of them starts meanwhile; None, or why that did not work.

    A job that has ended already is no reason."""
    if not ids:  # scancel would take the state alone for all of the user's jobs
        return None
    for only in (["--state=PENDING"], []):
        done = call(["scancel", *only, *ids])
        if done is None:
            return "scancel does not answer"
        lines = [line for line in done.stderr.splitlines() if not _ended(line)]
        if done.returncode != 0 and lines:
            return _sentence(" ".join(lines), "scancel")
    return None


def requeue(id: str) -> str | None:
    """Have Slurm take a running job back, to start again later; None, or why it refuses."""
    done = call(["scontrol", "requeue", id])
    if done is None:
        return "scontrol does not answer"
    return None if done.returncode == 0 else _sentence(done.stderr or done.stdout, "scontrol requeue")


def parse_queue(text: str) -> list[QueuedJob]:
    """The jobs in what squeue prints with `COLUMNS`; other lines, such as a cluster's name, are left out."""
    jobs = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|", len(COLUMNS) - 1)]
        if len(cells) == len(COLUMNS):
            id, state, reason, left, start, nodes, name = cells
            reason, start, nodes = (_known(cell) for cell in (reason, start, nodes))
            jobs.append(QueuedJob(id, name, state, reason, parse_duration(left), nodes, start))
    return jobs


def parse_duration(text: str) -> float | None:
    """Seconds of Slurm's [days-][hours:]minutes:seconds; None for what is no time (UNLIMITED, NOT_SET, INVALID)."""
    days, dash, clock = text.rpartition("-")
    try:
        parts = [int(part) for part in clock.split(":")]
        seconds = 0
        for part in parts:
            seconds = 60 * seconds + part
        if dash and len(parts) < 3:  # 2-12 is two days and twelve hours
            seconds *= 60 ** (3 - len(parts))
        return float(86400 * int(days or 0) + seconds)
    except ValueError:
        return None


def call(command: Sequence[str], patience: float = PATIENCE) -> "subprocess.CompletedProcess[str] | None":
    """Run one of Slurm's commands; None if there is no such command or it does not answer in time."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=patience, check=False,
            stdin=subprocess.DEVNULL, start_new_session=True, env=environment(dict(os.environ)),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None


def environment(outside: dict[str, str]) -> dict[str, str]:
    """The environment for Slurm's commands: without the user's own filters and formats, which would hide jobs."""
    inside = {name: value for name, value in outside.items() if not name.startswith(("SQUEUE_", "SCANCEL_"))}
    return {**inside, "SLURM_TIME_FORMAT": "standard", "LC_ALL": "C"}


def _known(cell: str) -> str:
    return "" if cell in ("N/A", "None", "(null)") else cell


def _ended(line: str) -> bool:
    return UNKNOWN_JOB in line.lower() or "already completing or completed" in line.lower()


def _sentence(text: str, command: str) -> str:
    return " ".join(text.split()) or f"{command} failed without a word"


def allow_requeue(id: str) -> bool:
    """Give one's own job the right to be requeued, which `--no-requeue` or a site's default has taken; whether it was
    given."""
    done = call(["scontrol", "update", f"JobId={id}", "Requeue=1"])
    return done is not None and done.returncode == 0


def grace_time(partition: str) -> float | None:
    """GraceTime of a partition, seconds; None if it is not known."""
    done = call(["scontrol", "show", "partition", "-o", partition])
    found = re.search(r"\bGraceTime=(\d+)", done.stdout) if done is not None and done.returncode == 0 else None
    return float(found[1]) if found else None
