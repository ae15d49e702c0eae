"""The start of one life of a run: all of its processes take it over together."""

import os
import re
import socket
from pathlib import Path
from typing import NamedTuple

from agl_core.durable.lease import Lease
from agl_core.training.parallel import Parallel


class JobStart(NamedTuple):
    """Of which job this is the how-manieth start, where a scheduler starts jobs again; see `LeaseRecord`."""

    job: str = ""
    turn: int = 0


def begin_incarnation(run_dir: Path, parallel: Parallel, start: JobStart = JobStart()) -> Lease:  # noqa: B008
    """Take the run over, whoever has held it; from here on an earlier incarnation cannot write any more.

    The first process takes the lease and tells the others. Nothing of the run may be read before: what an earlier
    incarnation was about to write is there now or will never be. start: see `Lease.take`.

    Raises:
        LeaseLostError: this is an earlier start of the job that has the run.
    """
    if parallel.first:
        run_dir.mkdir(parents=True, exist_ok=True)
        holder = f"pid {os.getpid()} on host {socket.gethostname()}"
        lease = Lease.take(run_dir, holder, above=_last_generation(run_dir), job=start.job, turn=start.turn)
        parallel.text_of_first(f"{lease.generation} {lease.token}")
        return lease
    generation, token = parallel.text_of_first("").split()
    return Lease.join(run_dir, int(generation), token)


def _last_generation(run_dir: Path) -> int:
    """The newest incarnation that has left a chain, should lease.json have been lost."""
    names = [re.search(r"\.(\d+)(?:-\d+)?\.jsonl$", path.name) for path in run_dir.glob("chain/*.jsonl")]
    return max((int(name[1]) for name in names if name), default=0)
