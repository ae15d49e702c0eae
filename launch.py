#!/usr/bin/env python
"""The one command: without a verb it trains; `python launch.py --help` explains everything."""

import errno
import os
import shlex
import sys
from importlib import import_module
from pathlib import Path

from agl_core.durable.exits import INTERRUPTED
from agl_core.errors import UserError
from jobs.cli import Request, parse
from jobs.deeds import CLUSTER_KEYS, DOES
from jobs.failure import JobError, JobInterruptedError

# What the operating system refuses for reasons that a user can mend.
MENDABLE = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EFBIG: "choose a folder whose files may be larger, or raise the limit (ulimit -f)",
    errno.EDQUOT: "free some of your quota or choose another folder",
    errno.EROFS: "choose a folder that can be written to",
    errno.EACCES: "choose a folder that you may use",
}


def carry_out(request: Request) -> None:
    """Do what was asked for."""
    if request.help is not None:
        print(request.help)
    elif request.verb:
        module, _, function = DOES[request.verb].rpartition(".")
        further = [request.cluster_keys] if request.verb in CLUSTER_KEYS else []
        getattr(import_module(module), function)(request.config, *further)
    else:
        from jobs.train import train

        train(request.config, request.cluster)


def main(argv: list[str]) -> int:
    """Run the command line `argv`; returns the exit code: 0 done, 1 a rank failed, 2 a mistake of the user, 75 asked to
    leave and saved, 130 Ctrl-C.

    What is raised otherwise is a defect of this project and ends in its traceback, with exit code 1.
    """
    # OpenMP threads that spin while they wait make training five times slower as soon as somebody else uses a core;
    # waiting a little less stubbornly costs 3 % on a machine of one's own. Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        carry_out(parse(argv))
        sys.stdout.flush()
    except UserError as error:
        if str(error):  # a rank has said it already
            print(f"error: {error}", file=sys.stderr)
        return 2
    except JobInterruptedError as error:
        print(f"{error}; to continue: python launch.py {shlex.join(argv)}", file=sys.stderr)
        return 130 if error.by_keyboard else INTERRUPTED
    except JobError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `launch.py --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        where = f"{Path(str(error.filename))}: " if error.filename else ""
        print(f"error: {where}{error.strerror}; {MENDABLE[error.errno]}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
