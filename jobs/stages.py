"""A stage in this process: its place among the others, and how its ends are told."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from agl_core.durable.exits import INTERRUPTED, PEER_LOST, TAKEN_OVER, InterruptedRunError, PeerLostError
from agl_core.durable.guard import Guard
from agl_core.durable.lease import LeaseLostError
from agl_core.errors import UserError
from agl_core.reporting.startup import importing, read_ahead
from jobs.runs import Run

RENDEZVOUS = "AGL_RENDEZVOUS"  # where the processes of a job on one machine meet; fresh for every job
FIRST_PORT, PORTS = 20000, 10000  # below the ports that Linux gives to outgoing connections


@dataclass(frozen=True)
class Place:
    """Which process of a job this is, and where its processes meet."""

    rank: int
    world_size: int
    local_rank: int
    init_method: str | None
    needs_gpu: bool = False
    """Whether the job has asked for GPUs, so that it must not make do without."""
    job: str = ""
    """The job that Slurm starts again and again; empty on this machine."""
    turn: int = 0
    """Which start of it this is; later ones have higher numbers."""


@dataclass(frozen=True)
class StageJob:
    """Train one stage of the run in `run_dir`, as one of the processes of a job on this machine."""

    run_dir: Path
    stage: str

    def __call__(self) -> None:
        """Run the stage to its end; leaves with code 2 and one sentence where the user can mend what is wrong."""
        with quiet_ends():
            train_here(self.run_dir, self.stage, find_place(), watch=True, keyboard=True)


def train_here(run_dir: Path, stage: str, place: Place, watch: bool = False, keyboard: bool = False) -> bool:
    """Train a stage in this process; returns whether a signal came too late to interrupt it. `watch` ends the process
    if it hangs; `keyboard`: Ctrl-C asks it to save and leave.

    Raises what `agl_core.training.trainer.train_stage` raises.
    """
    config = Run(run_dir).config()
    # Before the imports, which take seconds: a warning must not end this process in its own way.
    with Guard(config.checkpoint.grace, config.checkpoint.usr1, keyboard) as guard:
        if place.local_rank == 0:
            read_ahead(Run(run_dir).checkpoints(stage))
        with importing():
            from agl_core.training.incarnation import JobStart
            from agl_core.training.parallel import Parallel
            from agl_core.training.trainer import train_stage

        with Parallel(place.rank, place.world_size, place.local_rank, place.init_method, place.needs_gpu) as parallel:
            start = JobStart(place.job, place.turn)
            train_stage(config, stage, run_dir, parallel, guard=guard, watch=watch, job_start=start)
        return guard.requested


def find_place() -> Place:
    """This process's place among those of a job on this machine, from what submitit says in the environment."""
    from submitit import JobEnvironment

    job = JobEnvironment()
    if job.num_tasks == 1:
        return Place(0, 1, 0, None)
    return Place(job.global_rank, job.num_tasks, job.local_rank, os.environ[RENDEZVOUS])


def first_port(name: str) -> tuple[int, int, int]:
    """Where to look for a port: the lowest, how many there are, and how far from the lowest to begin for `name`."""
    return FIRST_PORT, PORTS, crc32(name.encode()) % PORTS


@contextmanager
def quiet_ends() -> Iterator[None]:
    """Turn what is no defect of this project into an exit code: submitit would print a traceback."""
    try:
        yield
    except UserError as error:
        _say(f"error: {error}")
        raise SystemExit(2) from None
    except InterruptedRunError as error:
        _say(str(error))
        raise SystemExit(INTERRUPTED) from None
    except LeaseLostError as error:
        _say(f"error: {error}")
        raise SystemExit(TAKEN_OVER) from None
    except PeerLostError as error:
        _say(f"error: {error}")
        raise SystemExit(PEER_LOST) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _say(text: str) -> None:
    """For the log; where the disk under it is full, the exit code must do."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)
