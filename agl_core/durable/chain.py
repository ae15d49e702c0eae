"""The digest chain: what a run did at every step, so that two runs can be compared bit for bit.

    chain/<stage>.<generation>.jsonl      one file per incarnation of a run, one JSON object a line

| entry | keys |
|---|---|
| step | step; samples: 64-bit digest of the global batch's sample ids, hex; losses: float.hex() each; link |
| state | step; state: {model: hex, optimizer: hex}, and average where there is one: digests of a checkpoint |
| rollback | rollback: step after which the run took back its weights after step `to`; to; link |

`link` is the xxh3-128 of the link before it and of the entry's other values: equal links prove equal histories. It goes
into each checkpoint, and the incarnation that continues from there goes on with it. State entries are not part of it,
since an interrupted run saves at other steps.

Each entry is one write, handed to the operating system: it survives SIGKILL. Nothing is fsynced, which would cost more
than a step: after a power cut the last entries may be missing, while the link of the checkpoint still stands for them.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agl_core.durable.entries import (
    START,
    Entry,
    RollbackEntry,
    StateEntry,
    StepEntry,
    chain_files,
    read_chain,
    read_chains,
)

__all__ = [
    "START",
    "ChainLog",
    "Difference",
    "Entry",
    "RollbackEntry",
    "StateEntry",
    "StepEntry",
    "chain_files",
    "first_difference",
    "read_chain",
    "read_chains",
]


class ChainLog:
    """Appends the entries of one incarnation; training never fails because of it.

    An append that the disk refuses stays in memory and is tried again, in order, with the next one; `failure` says why
    the last one was refused, or is None. With `path` None nothing is written and only the link is kept, which is the
    same in all processes of a run.
    """

    def __init__(self, path: Path | None, link: str = START) -> None:
        """`path`: a file of this incarnation alone; if it exists, `<stage>.<generation>-2.jsonl` is taken, and so on.
        `link`: where the history stood in the checkpoint that the run continues from."""
        self.link = link
        self.failure: OSError | None = None
        self._path = path
        self._handle: int | None = None
        self._pending = b""

    def step(self, step: int, samples: int, losses: Sequence[float]) -> None:
        """Append what step number `step` (from 1) did. samples: 64-bit digest of the sample ids of the global batch;
        losses: of the whole global batch, not finite ones included."""
        entry = StepEntry(step, f"{samples:016x}", tuple(float(loss).hex() for loss in losses), "")
        self.link = entry.after(self.link)
        self._append(StepEntry(entry.step, entry.samples, entry.losses, self.link))

    def state(self, step: int, digests: Mapping[str, str]) -> None:
        """Append the digests of the checkpoint of step `step`, saved just now, a few steps ago, or continued from."""
        self._append(StateEntry(step, tuple(sorted(digests.items()))))

    def rollback(self, step: int, to: int) -> None:
        """Append that after step `step`, the last one appended, the run took back its weights after step `to`. It goes
        on with step `step` + 1."""
        self.link = RollbackEntry(step, to, "").after(self.link)
        self._append(RollbackEntry(step, to, self.link))

    def close(self) -> None:
        """Try once more to write what was refused, and close the file."""
        self._write()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _append(self, entry: Entry) -> None:
        if self._path is not None:
            self._pending += entry.line().encode()
            self._write()

    def _write(self) -> None:
        if self._path is None or not self._pending:
            return
        try:
            if self._handle is None:
                self._handle = _create(self._path)
            while self._pending:  # a full disk may take the first half of a line
                self._pending = self._pending[os.write(self._handle, self._pending) :]
            self.failure = None
        except OSError as error:
            self.failure = error


@dataclass(frozen=True)
class Difference:
    """Where two histories part. what: samples, losses, link, state, order or missing."""

    step: int
    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        """The difference as a sentence."""
        return f"step {self.step}, {self.what}: expected {self.expected}, found {self.found}"


def first_difference(
    interrupted: Sequence[Sequence[Entry]], whole: Sequence[Entry], losses: bool = True
) -> Difference | None:
    """Where the chains of an interrupted run first differ from the chain `whole` of an undisturbed one, or None.

    None says: every step of `whole` is in the interrupted chains at least once; each of them is an unbroken piece of
    `whole`, so that steps done twice were the same both times; samples, losses and links are equal at every
    step; the state digests are equal wherever both runs saved, the last step of `whole` among them. The link of a chain
    that begins anew in the middle (a checkpoint without a link) is compared with its own entries only.

    With `losses` False (runs on different numbers of processes, whose last bits differ) samples, order and roll-backs
    alone are compared. "First" is the earliest place in the history of `whole`.
    """
    history = [entry for entry in whole if not isinstance(entry, StateEntry)]
    places = {entry.step: place for place, entry in enumerate(history)}  # a roll-back's, where there is one
    problems = [(-1, _whole_problem(history))]
    covered = [False] * len(history)
    states = {entry.step: entry for entry in _states(whole)} if losses else {}
    seen: set[int] = set()
    for chain in interrupted:
        moves = [entry for entry in chain if not isinstance(entry, StateEntry)]
        begin = _place(moves[0], history) if moves else len(history)
        problems.append(_compare(moves, history, begin, covered, losses))
        for entry in _states(chain):
            if entry.step in states:
                seen.add(entry.step)
                problems.append((places.get(entry.step, -1), _state_difference(entry, states[entry.step])))
    for place, move in enumerate(history):
        if not covered[place]:
            problems.append((place, Difference(move.step, "missing", _named(move), "in none of the chains")))
            break
    if losses and history and history[-1].step not in seen:
        digests = "the digests of the last state"
        problems.append((len(history), Difference(history[-1].step, "missing", digests, "in only one run or none")))
    found = [(place, difference) for place, difference in problems if difference is not None]
    return min(found, key=lambda problem: problem[0])[1] if found else None


def _whole_problem(history: Sequence[StepEntry | RollbackEntry]) -> Difference | None:
    """What keeps `history` from being that of an undisturbed run: it must lead from step 1 on without a gap."""
    if not history:
        return Difference(1, "missing", "the undisturbed run", "without any step")
    step = 0
    for entry in history:
        due = step if isinstance(entry, RollbackEntry) else step + 1
        if entry.step != due:
            return Difference(due, "order", f"step {due} in the undisturbed run", _named(entry))
        step = entry.step
    return None


def _place(first: StepEntry | RollbackEntry, history: Sequence[StepEntry | RollbackEntry]) -> int:
    """Where in `history` a chain begins that begins with `first`; its length if nowhere."""
    kind = type(first)
    places = (place for place, entry in enumerate(history) if isinstance(entry, kind) and entry.step == first.step)
    return next(places, len(history))


def _compare(
    moves: Sequence[StepEntry | RollbackEntry],
    history: Sequence[StepEntry | RollbackEntry],
    begin: int,
    covered: list[bool],
    losses: bool,
) -> tuple[int, Difference | None]:
    """The place of the first of `moves` that is not as `history` has it from `begin` on, with the difference.

    Marks in `covered` what was compared.
    """
    # A chain that starts from START in the middle of the history knows nothing of what was before it.
    anew = bool(moves) and 0 < begin < len(history) and moves[0].link != history[begin].link
    anew = anew and moves[0].link == moves[0].after(START)
    link = START
    for place, found in enumerate(moves, begin):
        if place >= len(history):
            end = f"the end, step {history[-1].step}" if history else "nothing"
            return place, Difference(found.step, "order", end, _named(found))
        expected = history[place]
        covered[place] = True
        link = found.after(link) if anew else expected.link
        if _named(found) != _named(expected):
            return place, Difference(expected.step, "order", _named(expected), _named(found))
        if _samples(found) != _samples(expected):
            return place, Difference(expected.step, "samples", _samples(expected), _samples(found))
        if losses and _losses(found) != _losses(expected):
            return place, Difference(expected.step, "losses", _losses(expected), _losses(found))
        if losses and found.link != link:
            return place, Difference(expected.step, "link", link, found.link)
    return begin, None


def _states(chain: Sequence[Entry]) -> list[StateEntry]:
    """The state entries of a chain. A checkpoint in the background is reported some steps after its own."""
    return [entry for entry in chain if isinstance(entry, StateEntry)]


def _state_difference(found: StateEntry, expected: StateEntry) -> Difference | None:
    if found == expected:
        return None
    return Difference(expected.step, "state", _digests(expected), _digests(found))


def _digests(entry: StateEntry) -> str:
    return ", ".join(f"{part} {digest}" for part, digest in entry.state)


def _named(entry: StepEntry | RollbackEntry) -> str:
    if isinstance(entry, RollbackEntry):
        return f"the roll-back from step {entry.step} to {entry.to}"
    return f"step {entry.step}"


def _samples(entry: StepEntry | RollbackEntry) -> str:
    return entry.samples if isinstance(entry, StepEntry) else ""


def _losses(entry: StepEntry | RollbackEntry) -> str:
    return " ".join(entry.losses) if isinstance(entry, StepEntry) else ""


def _create(path: Path) -> int:
    """Open a file that is new, so that no incarnation appends to another's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    free, number = path, 1
    while True:
        try:
            return os.open(free, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        except FileExistsError:
            number += 1
            free = path.with_name(f"{path.stem}-{number}{path.suffix}")
