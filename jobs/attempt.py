"""One attempt at a job inside its allocation: what its ranks left behind, and what that says about its end."""

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from agl_core.durable.exits import (
    HUNG,
    INTERRUPTED,
    PEER_LOST,
    TAKEN_OVER,
    InterruptedRunError,
    PeerLostError,
)
from agl_core.durable.lease import LeaseLostError
from agl_core.errors import UserError
from agl_core.files import read_json, write_json
from jobs.failure import MISTAKE

MOST_TRACEBACK = 4000  # characters of it that are kept: its end says most

ENDED_WELL, LEFT, CRASHED, REFUSED, OVERTAKEN = "done", "interrupted", "crashed", "refused", "taken over"


@dataclass(frozen=True)
class RankEnd:
    """How a rank ended. code: its exit code; text: why, in a sentence; signal: the one that asked it to leave ("TERM");
    traceback: of a defect."""

    code: int
    text: str = ""
    signal: str = ""
    traceback: str = ""


@dataclass(frozen=True)
class AttemptEnd:
    """How an attempt ended: `kind` is done, interrupted, crashed, refused (the user can mend it) or taken over;
    `by_warning` is true where the signal came from Slurm for sure, and not from a peer's death; `at_birth` where all
    ranks died of TERM before they could listen to it; `elsewhere` where another machine may do better."""

    kind: str
    text: str
    traceback: str = ""
    by_warning: bool = False
    at_birth: bool = False
    elsewhere: bool = False


def end_of(error: BaseException) -> RankEnd:
    """The end of a rank that left with `error`."""
    if isinstance(error, UserError):
        return RankEnd(MISTAKE, str(error))
    if isinstance(error, InterruptedRunError):
        return RankEnd(INTERRUPTED, str(error), signal=error.signal)
    if isinstance(error, LeaseLostError):
        return RankEnd(TAKEN_OVER, str(error))
    if isinstance(error, PeerLostError):
        return RankEnd(PEER_LOST, str(error))
    if isinstance(error, KeyboardInterrupt):
        return RankEnd(130, "interrupted by the keyboard")
    lines = traceback.format_exception(error)
    return RankEnd(1, _one_line(error), traceback="".join(lines)[-MOST_TRACEBACK:])


def _one_line(error: BaseException) -> str:
    return " ".join("".join(traceback.format_exception_only(error)).split())[:500]


def end_file(folder: Path, rank: int) -> Path:
    """Where a rank writes how it ended."""
    return folder / f"rank{rank}.json"


@contextmanager
def recorded(folder: Path, rank: int, leave: Callable[[int], object] = os._exit) -> Iterator[None]:
    """Write down how the work inside ends, and end the process with the exit code for it.

    At once, without the interpreter's own tidying up: it takes time that a warned process may not have, and a library
    that fails in it would turn a good end into a bad one.
    """
    end = RankEnd(0)
    try:
        yield
    except BaseException as error:
        end = end_of(error)
        with suppress(OSError):  # the log's disk is full
            print(end.traceback or f"{'error: ' if end.code != INTERRUPTED else ''}{end.text}", flush=True)
    with suppress(OSError):  # the run's is: this rank will count as killed
        write_json(end_file(folder, rank), asdict(end))
    leave(end.code)


def read_ends(folder: Path, ranks: int) -> list[RankEnd | None]:
    """How each rank ended; None for one that was killed before it could say so."""
    found: list[RankEnd | None] = []
    for rank in range(ranks):
        try:
            found.append(RankEnd(**read_json(end_file(folder, rank))))
        except (UserError, TypeError):
            found.append(None)
    return found


def judge(ends: list[RankEnd | None], code: int) -> AttemptEnd:
    """What the ends of all ranks say together. code: exit code of srun, the largest of its tasks'."""
    known = {rank: end for rank, end in enumerate(ends) if end is not None}
    by_code = {end.code: end for _, end in sorted(known.items(), reverse=True)}  # the first rank's, where several have
    if len(known) == len(ends) and set(by_code) == {0}:
        return AttemptEnd(ENDED_WELL, "")
    if MISTAKE in by_code:
        return AttemptEnd(REFUSED, by_code[MISTAKE].text)
    if TAKEN_OVER in by_code:
        return AttemptEnd(OVERTAKEN, by_code[TAKEN_OVER].text)
    # USR2 comes from Slurm or a person, and TERM also from srun, which ends the peers of a rank that died.
    warned = any(end.signal not in ("", "TERM") for end in known.values())
    crashed = [(rank, end) for rank, end in known.items() if end.code not in (0, INTERRUPTED, PEER_LOST)]
    if crashed:
        rank, end = crashed[0]
        return AttemptEnd(CRASHED, f"rank {rank} failed: {end.text}", end.traceback, warned)
    if INTERRUPTED in by_code and len(known) == len(ends) and PEER_LOST not in by_code:
        return AttemptEnd(LEFT, by_code[INTERRUPTED].text, by_warning=warned)
    at_birth = not known and code == 128 + signal.SIGTERM
    return AttemptEnd(CRASHED, _killed(ends, code), by_warning=warned, at_birth=at_birth)


def _killed(ends: list[RankEnd | None], code: int) -> str:
    killed = [rank for rank, end in enumerate(ends) if end is None]
    if not killed:
        return "the ranks lost each other"
    if code == HUNG:
        return f"rank {killed[0]} made no progress and was ended (see stacks/)"
    who = "all ranks were" if len(killed) == len(ends) else f"rank {', '.join(map(str, killed))} was"
    how = f" by signal {code - 128}" if 128 < code < 160 else f" (srun's exit code {code})"
    return f"{who} killed{how}"
