"""How a job ends that does not end well; it has already told its story in its log."""

import signal

from agl_core.durable.exits import INTERRUPTED

MISTAKE = 2
"""Exit code: something that the user gave is wrong."""
INTERRUPTIONS = (INTERRUPTED, 128 + signal.SIGINT, -signal.SIGTERM, -signal.SIGUSR2)
"""Exit codes of ranks that were asked to leave: after saving, or before there was anything to save."""


class JobError(Exception):
    """A rank ended with a defect or was killed; the message says which, and where its log is."""


class JobInterruptedError(Exception):
    """The job was asked to leave and has saved what it could. `by_keyboard`: the user pressed Ctrl-C."""

    def __init__(self, message: str, by_keyboard: bool = False) -> None:
        super().__init__(message)
        self.by_keyboard = by_keyboard
