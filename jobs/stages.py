"""The callables that are submitted: importable by name, with nothing in them but where the run is."""

import os
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

from agl_core.config import PrepareConfig
from agl_core.durable.exits import INTERRUPTED, PEER_LOST, TAKEN_OVER, InterruptedRunError, PeerLostError
from agl_core.durable.guard import Guard
from agl_core.durable.lease import LeaseLostError
from agl_core.errors import UserError
from jobs.runs import Run

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

RENDEZVOUS = "AGL_RENDEZVOUS"  # where the processes of a job on one machine meet; fresh for every job
FIRST_PORT, PORTS = 20000, 10000  # below the ports that Linux gives to outgoing connections


@dataclass(frozen=True)
class Place:
    """Which process of a job this is, and where its processes meet."""

    rank: int
    world_size: int
    local_rank: int
    init_method: str | None


class Resubmitted(ABC):
    """A job that Slurm takes back at its time limit or for a more important one, and starts again later.

    submitit requeues nothing that has no `checkpoint`.
    """

    @abstractmethod
    def __call__(self) -> None:
        """Do the job, or what is left of it."""

    def checkpoint(self) -> "DelayedSubmission":
        """What to start again: the same, since everything worth keeping is on the disk already."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True)
class StageJob(Resubmitted):
    """Train one stage of the run in `run_dir`, as one of the processes of a submitit job."""

    run_dir: Path
    stage: str

    def __call__(self) -> None:
        """Run the stage to its end; leaves with code 2 and one sentence where the user can mend what is wrong."""
        with quiet_ends():
            try:
                train_here(self.run_dir, self.stage, find_place(), watch=True, keyboard=True)
            except InterruptedRunError as error:
                if error.signal == "USR2" and "SLURM_JOB_ID" in os.environ:
                    # The time limit is near. submitit's handler is in its place again, and hands the job back.
                    _say(str(error))
                    os.kill(os.getpid(), signal.SIGUSR2)
                raise


@dataclass(frozen=True)
class PrepareJob(Resubmitted):
    """Build the store of the run in `run_dir` from its data set."""

    run_dir: Path
    workers: int

    def __call__(self) -> None:
        """Build the store; what a killed job has built is kept by the next one."""
        from agl_core.data.ingest import prepare

        with quiet_ends():
            config = Run(self.run_dir).config()
            prepare(PrepareConfig(data=config.data, store=config.store, unit=config.unit, workers=self.workers))


def train_here(run_dir: Path, stage: str, place: Place, watch: bool = False, keyboard: bool = False) -> bool:
    """Train a stage in this process; returns whether a signal came too late to interrupt it. `watch` ends the process
    if it hangs; `keyboard`: Ctrl-C asks it to save and leave.

    Raises what `agl_core.training.trainer.train_stage` raises.
    """
    config = Run(run_dir).config()
    # Before the imports, which take seconds: a warning must not end this process in its own way.
    with Guard(config.checkpoint.grace, config.checkpoint.usr1, keyboard) as guard:
        from agl_core.training.parallel import Parallel
        from agl_core.training.trainer import train_stage

        with Parallel(place.rank, place.world_size, place.local_rank, place.init_method) as parallel:
            train_stage(config, stage, run_dir, parallel, guard=guard, watch=watch)
        return guard.requested


def find_place() -> Place:
    """This process's place, from what submitit and the cluster say in the environment."""
    from submitit import JobEnvironment

    job = JobEnvironment()
    if job.num_tasks == 1:
        return Place(0, 1, 0, None)
    meeting = os.environ.get(RENDEZVOUS) or tcp_meeting(
        job.hostnames[0],
        job.job_id,
        os.environ.get("SLURM_RESTART_COUNT", "0"),
        os.environ.get("SLURM_STEP_ID", "0"),
    )
    return Place(job.global_rank, job.num_tasks, job.local_rank, meeting)


def tcp_meeting(host: str, job_id: str, restart: str, step: str) -> str:
    """Where the processes of a job on several machines meet: the first host, at a port of this very incarnation.

    After a requeue the job keeps its id while processes of its earlier incarnation may still hold their port; so the
    port also depends on the restart and the step.
    """
    return f"tcp://{host}:{FIRST_PORT + crc32(f'{job_id}.{restart}.{step}'.encode()) % PORTS}"


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
