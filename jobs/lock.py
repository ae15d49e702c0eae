"""One launch at a time: who trains a run, here or in the queue of Slurm."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from agl_core.errors import UserError
from agl_core.files import read_json, writable_folder, write_json
from agl_core.reporting.events import SUBMIT, JobLog
from jobs.runs import Run
from jobs.scontrol import queue


@contextmanager
def hold(run: Run, submits: bool = False) -> Iterator[None]:
    """Be the only process that trains the run or submits jobs for it; a folder of which no run became is removed.
    submits: whether jobs are to be submitted, for which Slurm must say that there are none yet.

    The lock ends with the process, however it ends.

    Raises:
        UserError: another process holds the run, jobs of it are in the queue, or its folder cannot be written to.
    """
    writable_folder(run.path.parent, "--runs")
    writable_folder(run.path, "--runs")
    with run.lock.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = run.lock.read_text(encoding="utf-8").strip() or "which is just starting"
            doing = "predicted" if run.is_prediction() else "trained"
            raise UserError(
                f"run {run.name} is being {doing} by another process ({who}): wait until it ends, or choose another "
                "--run"
            ) from None
        except OSError:
            pass  # some network file systems have no locks: training must be possible there too
        try:
            check_queue(run, submits)
            file.truncate(0)
            file.write(f"pid {os.getpid()} on host {socket.gethostname()}\n")
            file.flush()
            yield
        finally:
            if not (run.exists() or run.is_ensemble() or run.is_prediction()):
                run.lock.unlink(missing_ok=True)
                with suppress(OSError):
                    run.path.rmdir()


def remember(run: Run, submitted: dict[str, str]) -> None:
    """Keep the ids of the jobs that were submitted for the run, by name; of each its submission is an event."""
    before = _submitted_before(run)
    write_json(run.submitted, submitted)
    log, now = JobLog(run.events), time.time()
    for name, id in submitted.items():
        if before.get(name) != id:
            log.write(SUBMIT, name, now, id=id)


def _submitted_before(run: Run) -> dict[str, str]:
    """What the file says that is about to be replaced."""
    try:
        content = read_json(run.submitted)
    except UserError:
        return {}
    return content if isinstance(content, dict) else {}


def check_queue(run: Run, submits: bool = False) -> None:
    """Raise a `UserError` if jobs of the run wait or run under Slurm. Where Slurm does not answer, nothing is known:
    that is refused if jobs are to be submitted, which would be a second time."""
    if not run.submitted.exists():
        return
    active = queue([str(number) for number in read_json(run.submitted).values()])
    if active is None and submits:
        raise UserError(
            f"Slurm does not answer (squeue), so that jobs of run {run.name} may be active already: try again in a "
            "while"
        )
    if active:
        raise UserError(
            f"run {run.name} has jobs in the queue ({', '.join(active)}): wait until they end, or cancel them with "
            f"python launch.py cancel {run.name}"
        )
