"""The rows of the decision table: what happens to a sleeping job, and what it must be told when it asks why."""

import os
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agl_core.files import read_json
from jobs.why import (
    CANCELLED,
    CONDUCTOR_DIED,
    PREEMPTED,
    PREEMPTED_AWAY,
    REQUEUED,
    TIME_LIMIT,
    WARNED,
)
from tests.slurm.minislurm import ROOT, MiniSlurm
from tests.slurm.tiny import folder_name

LIMIT = 150.0  # seconds for the longest row, a time limit of a minute

# The shell stays while its child lives, whatever comes: as the conductor does.
SCRIPT = """\
#!/bin/sh
trap : TERM USR2 CONT INT HUP
cd {root}
echo $$ > {folder}/shell
srun --kill-on-bad-exit=1 {python} -m tests.slurm.asker {folder} {signals} {count} &
while kill -0 $! 2>/dev/null; do wait $!; done
exit 75
"""


@dataclass(frozen=True)
class Row:
    """One row. happens: what is done to the job `id`, whose files are in a folder; told: what it must hear.

    signals, count: it asks after so many of these signals. options: further ones of sbatch.
    """

    name: str
    told: str
    happens: Callable[[MiniSlurm, str, Path], None]
    partition: str = "preemptible"
    options: tuple[str, ...] = ()
    signals: str = "TERM,USR2"
    count: int = 1
    user_signal: bool = False


def _preempt(slurm: MiniSlurm, id: str, folder: Path) -> None:
    slurm.preempt(slurm.nodes_of(id)[0])


def _preempt_and_cancel(slurm: MiniSlurm, id: str, folder: Path) -> None:
    _preempt(slurm, id, folder)
    slurm.until(lambda: slurm.job(id).get("PreemptTime", "None") != "None", lambda: f"job {id} was not preempted")
    slurm.run("scancel", id)


def _no_requeue_and_preempt(slurm: MiniSlurm, id: str, folder: Path) -> None:
    slurm.run("scontrol", "update", f"JobId={id}", "Requeue=0")
    _preempt(slurm, id, folder)


def _cancel(slurm: MiniSlurm, id: str, folder: Path) -> None:
    slurm.run("scancel", id)


def _warn(slurm: MiniSlurm, id: str, folder: Path) -> None:
    slurm.run("scancel", "--signal=USR2", id)


def _requeue(slurm: MiniSlurm, id: str, folder: Path) -> None:
    slurm.run("scontrol", "requeue", id)


def _node_down(slurm: MiniSlurm, id: str, folder: Path) -> None:
    node = slurm.nodes_of(id)[0]
    slurm.set_down(node)
    slurm.until(lambda: (folder / "answer.json").exists(), lambda: "nobody has asked")
    slurm.resume(node)


def _kill_shell(slurm: MiniSlurm, id: str, folder: Path) -> None:
    os.kill(int((folder / "shell").read_text()), signal.SIGKILL)


def _nothing(slurm: MiniSlurm, id: str, folder: Path) -> None:
    """Time does it."""


LIMITED = ("--time=1", "--signal=USR2@5")

ROWS = {
    f"why: {row.name}": row
    for row in (
        Row("time limit passed", TIME_LIMIT, _nothing, options=LIMITED, signals="TERM"),
        Row("time limit announced", WARNED, _nothing, options=LIMITED, signals="USR2"),
        Row("preempted in its grace", PREEMPTED, _preempt),
        Row("preempted with the user's signal", PREEMPTED, _preempt, options=LIMITED[1:], user_signal=True),
        Row("preempted without grace", REQUEUED, _preempt, "grace0"),
        Row("cancelled by preemption, in its grace", PREEMPTED, _preempt, "cancelling_grace"),
        Row("cancelled by preemption without grace", PREEMPTED_AWAY, _preempt, "cancelling"),
        Row("submitted with --no-requeue and preempted", PREEMPTED, _preempt, options=("--no-requeue",)),
        Row("requeue forbidden later and preempted", PREEMPTED, _no_requeue_and_preempt),
        Row("submitted with --no-requeue, no grace", PREEMPTED_AWAY, _preempt, "grace0", options=("--no-requeue",)),
        Row("cancelled by the user", CANCELLED, _cancel),
        Row("cancelled by the user in the grace of a preemption", CANCELLED, _preempt_and_cancel, count=2),
        Row("warned by hand", WARNED, _warn),
        Row("requeued by hand", REQUEUED, _requeue),
        Row("node declared down", REQUEUED, _node_down),
        Row("batch process killed", CONDUCTOR_DIED, _kill_shell),
    )
}
"""By name. A Slurm that does not answer needs no job; see test_why."""


def ask(row: Row, slurm: MiniSlurm, folder: Path) -> tuple[list[str], list[str]]:
    """Have the row happen to a job; what was wrong with the answer, and the answer."""
    own = folder / "why" / folder_name(row.name)
    own.mkdir(parents=True)
    script = SCRIPT.format(
        root=shlex.quote(str(ROOT)), folder=own, python=sys.executable, signals=row.signals, count=row.count
    )
    options = ("--exclusive", f"--partition={row.partition}", "--time=10", *row.options)
    id = slurm.submit(script, "--requeue", *options, log=own / "log")
    try:
        slurm.until((own / "ready").exists, lambda: f"job {id} does not start: {slurm.job(id)}")
        row.happens(slurm, id, own)
        slurm.until((own / "answer.json").exists, lambda: f"job {id} has not asked: {slurm.job(id)}", LIMIT)
    finally:
        slurm.run("scancel", "--full", "--signal=KILL", id, check=False)
        slurm.run("scancel", id, check=False)
    answer = read_json(own / "answer.json")
    told = [f"{answer['why']} after {', '.join(answer['received'])}: {answer['facts']}"]
    return ([] if answer["why"] == row.told else [f"it was told {told[0]}, not {row.told}"]), told
