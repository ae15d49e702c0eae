"""Ends everything that belongs to a small Slurm cluster when the process that started it has ended, however it ended.

    python -m tests.slurm.keeper SLURM_CONF < PIPE

Nothing ever comes through the pipe; it closes with its last writer. Daemons, steps and jobs are known by the path of
their slurm.conf in their environment, which none of them loses: processes of a job go on without their daemons.
"""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path


def environment(pid: int) -> dict[str, str]:
    """The environment that a process was started with; empty if it has ended or belongs to somebody else."""
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition("=") for entry in content.decode(errors="replace").split("\0"))
    return {name: value for name, _, value in pairs}


def members(conf: str) -> dict[int, dict[str, str]]:
    """The living processes of the cluster with this slurm.conf, and the environment of each."""
    numbers = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    found = {pid: environment(pid) for pid in sorted(numbers) if pid != os.getpid()}
    return {pid: variables for pid, variables in found.items() if variables.get("SLURM_CONF") == conf}


def end(conf: str) -> None:
    """Kill all members: they are stopped first, so that none starts another meanwhile."""
    stopped: set[int] = set()
    while new := members(conf).keys() - stopped:
        _send(new, signal.SIGSTOP)
        stopped |= new
    _send(stopped, signal.SIGKILL)


def _send(pids: set[int], number: int) -> None:
    for pid in sorted(pids):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they mean those that this process outlives
    sys.stdin.read()
    end(sys.argv[1])
