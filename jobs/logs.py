"""`python launch.py logs`: what the jobs of a run have printed, in the order in which they ran; it never writes."""

import time
from collections.abc import Callable
from pathlib import Path

from agl_core.config import LogsConfig
from agl_core.errors import UserError
from jobs import survey
from jobs.history import read_history
from jobs.logfiles import LogPart, Reader, find_parts, ranks
from jobs.runs import Run
from jobs.standing import ACTIVE
from jobs.status import command, standings

POLL = 0.5  # seconds between two looks at the files
ASK = 15.0  # seconds between two questions whether the jobs go on: Slurm is asked too
TERMINAL = "(its output went to the terminal that it was started from)"
NONE = "(this rank has left no log: the jobs/{id}_0_log.err of the run tells more)"


def logs(config: LogsConfig) -> None:
    """Print what a rank of a run has printed, incarnation by incarnation; with `follow` until the jobs have ended.

    Raises:
        UserError: there is no such run, stage or rank.
    """
    run = survey.find_run(config.runs, config.run)
    known = survey.read(run).jobs
    if config.stage and config.stage not in known:
        raise UserError(f"run {run.name} has no stage or job {config.stage!r}: choose one of {', '.join(known)}")
    there = ranks(run, config.stage)
    if there and config.rank not in there and not config.follow:
        raise UserError(f"rank {config.rank} of run {run.name} has printed nothing: there {_spoken(there)}")
    joined = Joined(run, config.rank, config.stage)
    joined.show()
    if config.follow:
        follow(joined, lambda: active(run, config.stage))
    joined.show(rest=True)
    if not joined.shown:
        print(f"nothing was printed yet: {command('status', config.run, config.runs)} tells where the run stands")


def active(run: Run, stage: str) -> bool:
    """Whether the run, or one job of it, may still print something."""
    (standing,) = standings([run], time.time())
    return any(job.state in ACTIVE for job in standing.jobs if stage in ("", job.job))


def follow(
    joined: "Joined",
    goes_on: Callable[[], bool],
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Show what is printed until the jobs have ended; KeyboardInterrupt passes through."""
    asked = clock()
    going = goes_on()
    while going:
        sleep(POLL)
        joined.show()
        if clock() - asked >= ASK:
            asked, going = clock(), goes_on()
    joined.show()  # what came between the last look and the end


class Joined:
    """The logs of all incarnations, as far as they were not shown yet."""

    def __init__(self, run: Run, rank: int, stage: str = "", say: Callable[[str], None] | None = None) -> None:
        self.run, self.rank, self.stage = run, rank, stage
        self.shown: list[tuple[object, ...]] = []
        self._say = say or (lambda line: print(line, flush=True))
        self._readers: dict[Path, Reader] = {}
        self._last: tuple[object, ...] = ()

    def show(self, rest: bool = False) -> None:
        """Print what is new, with a header wherever another incarnation speaks. `rest`: unfinished lines too."""
        for part in find_parts(self.run, read_history(self.run.history), self.rank, self.stage):
            if not part.files and not rest and not (part.known and part.known.end):
                continue  # its files may be about to come
            lines = [line for path in part.files for line in self._reader(path).lines(rest)]
            if part.key not in self.shown or (lines and part.key != self._last):
                self._say(part.header())
                self._last = part.key
            if part.key not in self.shown:
                self.shown.append(part.key)
                if not part.files:
                    self._say(NONE.format(id=part.id) if part.id.isdecimal() else TERMINAL)
            for line in lines:
                self._say(line)

    def _reader(self, path: Path) -> Reader:
        return self._readers.setdefault(path, Reader(path))


def _spoken(numbers: list[int]) -> str:
    return f"are ranks {numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"is rank {numbers[0]} only"


__all__ = ["Joined", "LogPart", "active", "follow", "logs"]
