"""A small run for the tests of what training shows: `python -m tests.training.on_terminal STORE RUN_DIR STEPS`."""

import sys
from pathlib import Path

from agl_core.durable.exits import InterruptedRunError
from agl_core.durable.guard import Guard
from agl_core.training.parallel import Parallel
from agl_core.training.trainer import train_stage
from tests.training.faults import small


def main(store: str, run_dir: str, steps: str) -> None:
    """Train, and leave when asked to."""
    settings = small(Path(store), steps=int(steps), validate=True, run="first")
    with Guard(keyboard=True) as guard, Parallel() as parallel:
        try:
            train_stage(settings, "first", Path(run_dir), parallel, guard=guard)
        except InterruptedRunError as error:
            print(error, file=sys.stderr)
            sys.exit(75)


if __name__ == "__main__":
    main(*sys.argv[1:])
