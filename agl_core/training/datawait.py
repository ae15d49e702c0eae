"""How much of the time of training goes by in waiting for data, and what to do when that is much."""

MUCH = 0.2
"""The share from which on it is worth telling the user."""
SETTLED = 100
"""Steps after which data loading goes at its own pace: what was read ahead at the start is used up, and the files of
a store that was never read are in memory, or are not going to be."""


class DataWait:
    """Adds up what the steps between two lines of the log have waited for; no clock is read here."""

    def __init__(self) -> None:
        self._waited = self._seconds = 0.0
        self._steps = 0  # of this start of the run, before the current stretch
        self._stretch = 0
        self._warned = False

    def step(self, waited: float, seconds: float) -> None:
        """Count a step that took `seconds`, of which data was waited for during `waited`."""
        self._waited += waited
        self._seconds += seconds
        self._stretch += 1

    @property
    def seconds(self) -> float:
        """What the steps since the last call of `share` have taken."""
        return self._seconds

    @property
    def waited(self) -> float:
        """For how much of `seconds` data was waited for."""
        return min(self._waited, self._seconds)

    def share(self) -> tuple[float, str]:
        """The share of the time since the last call, 0 to 1, and a warning, if it is time for one: it comes once.

        What a worker reads of the store for the first time, and what was in memory before, are no reason for one: only
        stretches count that begin `SETTLED` steps after the start.
        """
        share = min(self._waited / self._seconds, 1.0) if self._seconds > 0 else 0.0
        warning = ""
        if share > MUCH and self._steps >= SETTLED and not self._warned:
            self._warned = True
            warning = (
                f"{share:.0%} of the time goes by in waiting for data: give more data loading processes (--workers), "
                "copy the store to the node's own disk or memory (--stage-in), or prepare a store that is quicker to "
                "read (prepare --codec raw)"
            )
        self._steps += self._stretch
        self._waited, self._seconds, self._stretch = 0.0, 0.0, 0
        return share, warning
