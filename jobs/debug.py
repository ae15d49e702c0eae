"""The debugger at the place of a crash."""

import pdb
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from agl_core.durable.exits import InterruptedRunError, PeerLostError
from agl_core.durable.lease import LeaseLostError
from agl_core.errors import UserError
from jobs.failure import JobError, JobInterruptedError

NO_DEFECT = (UserError, InterruptedRunError, LeaseLostError, PeerLostError, JobError, JobInterruptedError)


@contextmanager
def post_mortem(on: bool) -> Iterator[None]:
    """With `on`, a defect of the program that ends this block is shown, and the debugger opens in the frame where it
    was raised; what it held is still there. When the debugger is left, the exception goes on.

    Without a terminal to read from and to write to nothing happens, and neither for what is no defect, nor for Ctrl-C.
    """
    try:
        yield
    except NO_DEFECT:
        raise
    except Exception as error:
        if on and sys.stdin.isatty() and sys.stderr.isatty():
            _open_debugger(error)
        raise


def _open_debugger(error: Exception) -> None:
    traceback.print_exception(error)
    print("the debugger is open where it crashed: w shows where, u and d go up and down, q ends", file=sys.stderr)
    # Given a stream the debugger reads without line editing; so it gets one only where output goes to a file.
    debugger = pdb.Pdb(stdout=None if sys.stdout.isatty() else sys.stderr)
    debugger.reset()
    debugger.interaction(None, error.__traceback__)
