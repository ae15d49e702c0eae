"""Worker processes that outlive a warning but not their parent."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


@contextmanager
def worker_fork() -> Iterator[None]:
    """Fork workers within this: a warning that reaches one before it has called `shield_worker` waits until then.

    A worker of torch's DataLoader, which forks them in `iter(loader)`, would otherwise die of a TERM in its first
    milliseconds. What reaches this process meanwhile is delivered at the end of the block.
    """
    if (opencv := sys.modules.get("cv2")) is not None:
        opencv.setNumThreads(1)  # other code may have had it start threads, for which a fork would wait for ever
    before = signal.pthread_sigmask(signal.SIG_BLOCK, WARNINGS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def shield_worker(parent: int | None = None) -> None:
    """Make this forked worker deaf to USR1, USR2, TERM and INT, and end it together with its parent.

    A cluster may send its warnings to all processes of a job. The workers must go on, since the parent needs its data
    to finish the step; the parent ends them (`end_workers`). If the parent is killed, nothing is left to end them, so
    on Linux the kernel is asked to (PR_SET_PDEATHSIG, prctl(2)); that takes the death of the *thread* that forked for
    the parent's, so workers must be forked by a thread that lives as long as they should. Elsewhere a worker ends
    when it next asks its parent for work.

    parent: process id of who forked it; by default what multiprocessing knows. A worker whose parent died before the
    kernel could be asked ends here.
    """
    for number in WARNINGS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WARNINGS)
    if parent is None:
        process = multiprocessing.parent_process()
        parent = os.getppid() if process is None or process.pid is None else process.pid
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os._exit(1)


def end_workers(workers: Iterable[BaseProcess]) -> None:
    """Kill the worker processes and wait for them.

    Shielded workers ignore the TERM by which multiprocessing would end them when the interpreter leaves, and a hung
    one would be waited for, for ever. They only read, so nothing is torn.
    """
    workers = list(workers)
    for process in workers:
        process.kill()
    for process in workers:
        process.join()
