"""One try in a process of its own: on a CPU the most memory that a process ever had is all that can be known of it.

Such a process cannot take more than it is given, so that a try that does not fit ends instead of driving the machine
into its swap. It ends with its parent, however that ends.
"""

import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from agl_core.errors import UserError
from agl_core.inference.memory import SIGNS
from agl_core.training.fit_bench import Bench, Job, Outcome, out_of_memory
from agl_core.training.fit_search import TooFewCropsError

SLACK = 256 * 2**20  # bytes beyond the limit within which the most that was resident decides
BAD_ALLOC = "bad_alloc"  # what C++ says when it ends a process for want of memory
NO_MEMORY, TOO_FEW, REFUSED = "no memory", "too few crops", "refused"


class Request(NamedTuple):
    """What a process is to try; limit: bytes."""

    job: Job
    micro_batch: int
    steps: int
    warm_up: int
    limit: int


class CpuTries:
    """Tries on the CPU, each in a fresh process that may take `limit` bytes."""

    def __init__(self, job: Job, limit: int) -> None:
        self._job, self._limit = job, limit

    def __call__(self, micro_batch: int, steps: int = 0, warm_up: int = 1) -> Outcome | None:
        """What `micro_batch` crops take, None if they do not fit.

        Raises:
            TooFewCropsError, UserError: see `Bench`.
            RuntimeError: the process failed for another reason.
        """
        answer = _ask(Request(self._job, micro_batch, steps, warm_up, self._limit))
        if answer.get("failed") == TOO_FEW:
            raise TooFewCropsError
        if answer.get("failed") == REFUSED:
            raise UserError(answer["reason"])
        if "failed" in answer:
            return None
        return Outcome(**answer)

    def close(self) -> None:
        """Nothing of a try is left when it has ended."""


def _ask(request: Request) -> dict[str, Any]:
    """Do `request` in a new process; what it answers."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryFile() as said:
        # A session of its own: Ctrl-C is for this process, which then ends the other one.
        process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(BrokenPipeError):
                process.stdin.write(pickle.dumps(request))
                process.stdin.flush()  # and left open: its end tells the process that this one is gone
            answer = process.stdout.read()
            process.wait()
        finally:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with suppress(BrokenPipeError):
                        stream.close()
        if answer:
            found: dict[str, Any] = json.loads(answer)
            return found
        said.seek(0)
        text = said.read().decode(errors="replace")
    # Killed by the kernel, or ended in the midst of C++.
    if process.returncode == -9 or any(sign in text for sign in (*SIGNS, BAD_ALLOC)):
        return {"failed": NO_MEMORY}
    raise RuntimeError(f"a try ended with exit code {process.returncode}: {text[-2000:]}")


def attempt(request: Request) -> dict[str, Any]:
    """What is answered: the fields of an `Outcome`, or why there is none."""
    try:
        torch.set_num_threads(request.job.threads)
        _restrict(request.limit, request.job.threads)
        compute, commit = Bench(request.job, torch.device("cpu")).run(
            request.micro_batch, request.steps, request.warm_up
        )
    except TooFewCropsError:
        return {"failed": TOO_FEW}
    except Exception as error:
        if out_of_memory(error):
            return {"failed": NO_MEMORY}
        if isinstance(error, UserError):
            return {"failed": REFUSED, "reason": str(error)}
        raise
    return Outcome(most_resident(), 0, compute, commit)._asdict()


def most_resident() -> int:
    """Bytes of memory that this process had at most.

    Linux's own peak is that of this program alone; what `getrusage` says would begin with that of the parent.
    """
    with suppress(OSError):
        return _status("VmHWM")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _restrict(limit: int, threads: int) -> None:
    """Let this process allocate no more than about `limit` bytes. What it has allocated and never touched, and the
    stacks of threads, come on top."""
    with suppress(OSError, ImportError, ValueError):  # no such limit here: the line through the tries must do
        import resource

        untouched = max(_status("VmData") - _status("RssAnon"), 0)
        most = limit + untouched + threads * 2**23 + SLACK
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"there is no {name} in /proc/self/status")


def _end_with_parent(line: BinaryIO) -> None:
    line.read()
    os._exit(1)


def main() -> None:
    """Answer the request on standard input, on standard output; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request: Request = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, args=(sys.stdin.buffer,), daemon=True).start()
    answers.write(json.dumps(attempt(request)))
    answers.close()
    sys.stderr.flush()
    os._exit(0)  # without waiting for the thread that listens to the parent


if __name__ == "__main__":
    main()
