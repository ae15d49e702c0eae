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


def meeting(environment: dict[str, str]) -> str:
    """Where the ranks meet: on this machine if it has all of them, else on the one from which srun started them, which
    is the first of the job, as rank 0's is."""
    host = "127.0.0.1"
    if int(environment.get("SLURM_NNODES", "1")) > 1:
        host = environment["SLURM_LAUNCH_NODE_IPADDR"].removeprefix("::ffff:")
    return f"tcp://[{host}]:{environment[PORT]}" if ":" in host else f"tcp://{host}:{environment[PORT]}"


def main(run_dir: Path, name: str, kind: str, folder: Path) -> None:
    """Do this rank's part of the job, and end the process."""
    # They wait until there is a guard who knows what to do with them.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR2))
    environment = dict(os.environ)
    rank, ranks = int(environment["SLURM_PROCID"]), int(environment["SLURM_NTASKS"])
    with recorded(folder, rank):
        from jobs.stages import Place
        from jobs.work import carry_out

        place = Place(
            rank, ranks, int(environment.get("SLURM_LOCALID", "0")), meeting(environment) if ranks > 1 else None
        )
        try:
            carry_out(run_dir, name, kind, place, watch=True)
        except InterruptedRunError:
            if rank == 0 and not _lives(int(environment[CONDUCTOR])):
                from jobs.conductor import stand_in

                stand_in(run_dir, name, kind)
            raise


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
