"""What Slurm's accounts say of the user's jobs: how often they were interrupted, and how long they waited."""

import csv
import getpass
from collections.abc import Collection
from datetime import datetime

from agl_core.durable.interval import DAY
from agl_core.errors import UserError
from jobs.planning.site import Observed
from jobs.planning.strikes import KINDS, NODE, PREEMPT
from jobs.scontrol import call

COLUMNS = ("State", "Eligible", "Start", "End", "ElapsedRaw", "Partition")
SINCE = "now-30days"
PATIENCE = 60.0
INTERRUPTED = {"PREEMPTED": PREEMPT, "REQUEUED": PREEMPT, "NODE_FAIL": NODE, "BOOT_FAIL": NODE}
"""States of a record that something else than the job or its owner has ended."""


def ask(partitions: Collection[str] = ()) -> Observed:
    """The user's jobs of the last 30 days, of some partitions or of all.

    Raises:
        UserError: there are no accounts, or no jobs in them.
    """
    where = ["--partition", ",".join(partitions)] if partitions else []
    done = call(
        [
            *("sacct", "-X", "-P", "-D", "--noheader", "--starttime", SINCE, "--user", getpass.getuser()),
            *("--format", ",".join(COLUMNS), *where),
        ],
        PATIENCE,
    )
    if done is None or done.returncode != 0:
        said = _last(done.stderr) if done is not None else "there is no sacct here, or it does not answer"
        raise UserError(
            f"--interruptions sacct: no accounts of jobs can be read here ({said}): give --interruptions runs, or "
            "--preemptions-per-day and --queue-minutes"
        )
    found = parse(
        done.stdout, "sacct, your jobs of the last 30 days" + (f" in {', '.join(partitions)}" if where else "")
    )
    if not found.days and not found.waits:
        raise UserError(
            f"--interruptions sacct: there is none of {found.source} that has run: give --interruptions runs, or "
            "--preemptions-per-day and --queue-minutes"
        )
    return found


def parse(text: str, source: str = "sacct") -> Observed:
    """What sacct prints with `COLUMNS`; lines that are none are left out. A job that was requeued has a record for each
    time that it ran."""
    days, counts, waits = 0.0, dict.fromkeys(KINDS, 0), []
    for row in csv.reader(text.splitlines(), delimiter="|", quoting=csv.QUOTE_NONE):
        if len(row) != len(COLUMNS):
            continue
        state, eligible, start, _, elapsed, _ = row
        begun = _moment(start)
        if begun is None or not elapsed.isdecimal():
            continue  # it has not run
        days += int(elapsed) / DAY
        if (since := _moment(eligible)) is not None:
            waits.append(max(begun - since, 0.0))
        if (kind := INTERRUPTED.get(state.split(" ")[0])) is not None:
            counts[kind] += 1
    return Observed(days, counts, tuple(sorted(waits)), source, held=False)


def _last(text: str) -> str:
    """The last line that a command of Slurm's has said, without who says it."""
    lines = [line for line in text.splitlines() if line.strip()] or ["it says nothing"]
    return "".join(letter for letter in lines[-1].rpartition(": ")[2] if letter.isprintable()).strip()


def _moment(text: str) -> float | None:
    """Unix time of a time of Slurm's, which is the local clock's; None for Unknown and None."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
