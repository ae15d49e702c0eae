"""How a process says why it left."""

INTERRUPTED = 75
"""Exit code: it was asked to leave and has saved; the same command continues (EX_TEMPFAIL of sysexits.h)."""
PEER_LOST = 76
"""Exit code: another process of the run died; this one has saved what it held, if it could."""
HUNG = 77
"""Exit code: it made no progress any more and was ended by its watchdog."""
TAKEN_OVER = 78
"""Exit code: another incarnation of the run has taken over; this one has stopped without writing."""


class InterruptedRunError(Exception):
    """The run was asked to leave before its end.

    `signal` is the short name of the signal that asked ("TERM", "USR2", "INT"), `saved_step` the step from which
    the run continues, None if nothing has been saved yet; `kept` says in words what is, where there are no steps.
    """

    def __init__(self, signal: str, saved_step: int | None, kept: str = "") -> None:
        super().__init__(signal, saved_step, kept)  # what is needed to make it anew in another process
        self.signal = signal
        self.saved_step = saved_step
        self.kept = kept

    def __str__(self) -> str:
        steps = "nothing is saved yet" if self.saved_step is None else f"step {self.saved_step} is saved"
        return f"interrupted by {self.signal}; {self.kept or steps}"


class PeerLostError(RuntimeError):
    """Another process of the group has ended, or cannot be reached, while this one was exchanging with it."""
