"""One rank of a job: `python -m jobs.rank RUN_DIR JOB KIND FOLDER`, started by srun for the conductor of the job.

It writes how it ended to FOLDER/rank<k>.json; its exit codes are those of `agl_core.durable.exits`.
"""

import agl_core.reporting.startup  # isort: skip  # noqa: F401  # first: its stopwatch begins now

import os
import signal
import sys
from pathlib import Path

from agl_core.durable.exits import InterruptedRunError
from jobs.attempt import recorded

CONDUCTOR = "AGL_CONDUCTOR"  # process id of the conductor, which runs beside rank 0
PORT = "AGL_PORT"  # where rank 0 waits for the others; of this very attempt
ATTEMPT = "AGL_ATTEMPT"  # which attempt of this allocation it is, from 0
GPUS = "AGL_GPUS"  # GPUs that the job has on each node
WARNINGS = (signal.SIGTERM, signal.SIGUSR2)
MOST_ATTEMPTS = 1_000_000  # in one allocation


def meeting(environment: dict[str, str]) -> str:
    """Where the ranks meet: on this machine if it has all of them, else on the one from which srun started them, which
    is the first of the job, as rank 0's is."""
    host = "127.0.0.1"
    if int(environment.get("SLURM_NNODES", "1")) > 1:
        host = environment["SLURM_LAUNCH_NODE_IPADDR"].removeprefix("::ffff:")
    return f"tcp://[{host}]:{environment[PORT]}" if ":" in host else f"tcp://{host}:{environment[PORT]}"


def main(run_dir: Path, name: str, kind: str, folder: Path) -> None:
    """Do this rank's part of the job, and end the process."""
    environment = dict(os.environ)
    rank, ranks = int(environment["SLURM_PROCID"]), int(environment["SLURM_NTASKS"])
    with recorded(folder, rank):
        _hold_back_warnings()
        from jobs.stages import Place
        from jobs.work import carry_out

        restart, attempt = int(environment.get("SLURM_RESTART_COUNT", "0")), int(environment[ATTEMPT])
        place = Place(
            rank,
            ranks,
            int(environment.get("SLURM_LOCALID", "0")),
            meeting(environment) if ranks > 1 else None,
            needs_gpu=int(environment.get(GPUS, "0")) > 0,
            job=environment["SLURM_JOB_ID"],
            turn=restart * MOST_ATTEMPTS + attempt,
        )
        try:
            carry_out(run_dir, name, kind, place, watch=True)
        except InterruptedRunError:
            if rank == 0 and not _lives(int(environment[CONDUCTOR])):
                from jobs.conductor import stand_in

                stand_in(run_dir, name, kind, attempt)
            raise


def _hold_back_warnings() -> None:
    """Have warnings wait until there is a guard who knows what to do with them. When he has gone they do nothing: this
    process is about to end, and has still to say how."""
    for number in WARNINGS:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, WARNINGS)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]))
