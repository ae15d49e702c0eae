"""The parent of the ranks of a job on this machine: `python -m jobs.controller FOLDER`, started by the executor."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from submitit.local.local import Controller

from agl_core.files import write_json

GRACE = 2.5  # seconds that the others have to end by themselves when a rank has failed: one of them may know why
END_FILE = "end.json"
PARENT = "AGL_PARENT"


class RankController(Controller):
    """submitit's controller, for jobs of any length whose ranks live and die together.

    submitit's own gives up after a fixed time, waits for the others when one rank has died (they wait for it in a
    collective for ever), and leaves the ranks behind when it is killed.
    """

    def __init__(self, folder: Path, parent: int) -> None:
        super().__init__(folder)
        self.parent = parent
        self.stopped = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._stop)

    def wait(self, freq: int = 50) -> Sequence[int | None]:
        """Wait until all ranks have ended, one has failed a while ago, or nobody wants them any more; returns their
        exit codes."""
        failed: float | None = None
        while True:
            codes = [task.poll() for task in self.tasks]
            if any(codes) and failed is None:
                failed = time.monotonic()
            if all(code is not None for code in codes) or (failed and time.monotonic() > failed + GRACE):
                return codes
            if self.stopped or os.getppid() != self.parent:
                return codes
            time.sleep(1 / freq)

    def run(self, max_retry: int = 1) -> None:
        """Start the ranks, wait, write what ended them, and end those that still run."""
        try:
            self.start_tasks()
            codes = self.wait()
            if not self.stopped:
                write_json(self.folder / END_FILE, list(codes))
        finally:
            self.kill_tasks()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True


if __name__ == "__main__":
    RankController(Path(sys.argv[1]), int(os.environ[PARENT])).run()
