"""The parent of the ranks of a job on this machine: `python -m jobs.controller FOLDER`, started by the executor."""

import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from submitit.local.local import Controller

from agl_core.files import write_json

END_FILE = "end.json"
PARENT = "AGL_PARENT"
GRACE = "AGL_GRACE"
APART = "AGL_APART"


class RankController(Controller):
    """submitit's controller, for jobs of any length whose ranks live and die together.

    submitit's own gives up after a fixed time, waits for the others when one rank has died (they wait for it in a
    collective for ever), and leaves the ranks behind when it is killed.
    """

    def __init__(self, folder: Path, parent: int, grace: float, apart: bool = False) -> None:
        """`grace`: seconds that the ranks have to save and leave, from a warning or the death of one of them; `apart`:
        they do not notice that death by themselves, so that they are warned of it."""
        super().__init__(folder)
        self.parent, self.grace, self.apart = parent, grace, apart
        self.signals: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
            signal.signal(number, self._stop)

    def wait(self, freq: int = 50) -> Sequence[int | None]:
        """Wait until all ranks have ended, or it is time to end them; returns their exit codes.

        The first signal, or the death of the launcher, is passed on to the ranks; the second signal ends them.
        """
        deadline = again = math.inf
        warned = failed = False
        while True:
            codes = [task.poll() for task in self.tasks]
            now = time.monotonic()
            if all(code is not None for code in codes) or now > deadline or len(self.signals) > 1:
                return codes
            if any(codes) and not failed:
                failed = True
                deadline = min(deadline, now + self.grace)
                again = now if self.apart else again
            if not warned and self.signals == [signal.SIGINT]:  # a user waits; nobody else wants the machine
                warned = True
                self._tell(signal.SIGINT)
            elif not warned and (self.signals or os.getppid() != self.parent):
                warned = True
                deadline, again = min(deadline, now + self.grace), now
            if now >= again:  # again and again, since in its first second a rank may not hear it yet
                again = now + 1
                self._tell(signal.SIGTERM)
            time.sleep(1 / freq)

    def _tell(self, number: int) -> None:
        for task in self.tasks:
            if task.poll() is None:
                task.send_signal(number)

    def run(self, max_retry: int = 1) -> None:
        """Start the ranks, wait, write what ended them, and end those that still run."""
        try:
            self.start_tasks()
            write_json(self.folder / END_FILE, list(self.wait()))
        finally:
            for task in self.tasks:  # they have had their time, and take a TERM for a warning
                if task.poll() is None:
                    task.kill()
            self.kill_tasks()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.signals.append(number)


if __name__ == "__main__":
    parent, grace, apart = int(os.environ[PARENT]), float(os.environ[GRACE]), os.environ[APART] == "1"
    RankController(Path(sys.argv[1]), parent, grace, apart).run()
