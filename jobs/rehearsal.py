"""One command that trains a run, given again and again while it is interrupted."""

import json
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agl_core.durable.chain import chain_files
from agl_core.errors import UserError
from jobs.failure import JobError
from jobs.interruption import ALL, EVERYTHING, LAUNCHER, ONE, Interruption, Moment, Pace, aim
from jobs.local import last_lines
from jobs.processes import Family, Process, send

PATIENCE = 90.0
"""Seconds within which everything must have ended after an interruption: the grace, and the time to notice."""

STUCK = 600.0
"""Seconds without a sign of life after which a run that nobody has interrupted counts as hung."""

EVENTS = "events.jsonl"

POLL, LOOK = 0.01, 1.0
"""Seconds between two looks at the run's files, and at the list of processes (which costs 20 ms)."""


@dataclass
class Incarnation:
    """One time that the command was given.

    interruption: what was to interrupt it; hit and when: who was, and what the run was doing, "" if it was not.
    launched, ended: seconds since 1970. start: the step that it continued from; reached: the last step that it did;
    resumed: seconds from the launch to the end of its first step; each None if it did not come so far.
    code: its exit code. left_behind: processes that had to be killed.
    """

    interruption: Interruption | None
    launched: float
    ended: float = 0.0
    start: int | None = None
    reached: int | None = None
    resumed: float | None = None
    hit: str = ""
    when: str = ""
    code: int | None = None
    left_behind: list[str] = field(default_factory=list)


class Tail:
    """The whole lines that are appended to a file of JSON lines, from now on or from its beginning."""

    def __init__(self, path: Path, begin: bool = False) -> None:
        self.path = path
        self._position = path.stat().st_size if path.exists() and not begin else 0

    def read(self) -> list[dict[str, Any]]:
        """The objects of the lines that were completed since the last call; torn lines are left out."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._position)
                content = file.read()
        except FileNotFoundError:
            return []
        content = content[: content.rfind(b"\n") + 1]
        self._position += len(content)
        found = []
        for line in content.splitlines():
            with suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return found


class Signs:
    """What an incarnation lets see of itself in the run directory: the step it starts from, and each step it does."""

    def __init__(self, run_dir: Path, stage: str) -> None:
        self.start: int | None = None
        self.last = time.monotonic()  # when anything new was seen
        self._run_dir, self._stage = run_dir, stage
        self._events = Tail(run_dir / EVENTS)
        self._before = set(chain_files(run_dir, stage))
        self._chains: dict[Path, Tail] = {}
        self._reached: dict[Path, int] = {}  # survivors of a killed rank append to files of their own

    @property
    def step(self) -> int | None:
        """The last step that it has done."""
        return max(self._reached.values(), default=None)

    def look(self) -> None:
        """Read what is new."""
        for path in chain_files(self._run_dir, self._stage):
            if path in self._before:
                continue
            tail = self._chains.setdefault(path, Tail(path, begin=True))
            if steps := [int(entry["step"]) for entry in tail.read() if "samples" in entry]:
                self._reached[path], self.last = steps[-1], time.monotonic()
                self.start = steps[0] - 1 if self.start is None else self.start
        for event in self._events.read():
            self.last = time.monotonic()
            if event.get("kind") == "start" and event.get("stage") == self._stage:
                self.start = int(event["step"])


class Rehearsal:
    """Gives `command`, which trains the only stage `stage` of the run in `run_dir`; what it prints goes to `log`."""

    def __init__(self, command: Sequence[str], run_dir: Path, stage: str, processes: int, log: Path) -> None:
        self.command, self.run_dir, self.stage = list(command), run_dir, stage
        self.processes, self.log = processes, log

    def run(self) -> Incarnation:
        """Give the command once and leave it alone.

        Raises:
            UserError, JobError: it failed; the message holds its last lines.
        """
        return self._give(None, 0, None)

    def run_interrupted(
        self, interruptions: Sequence[Interruption], pace: Pace, tell: Callable[[Incarnation], None]
    ) -> list[Incarnation]:
        """Give the command until the run is finished, and interrupt it so often before; `tell` hears of each end.

        A run that finishes before all interruptions have happened leaves the others out.

        Raises:
            UserError, JobError: it failed without being interrupted, or made no progress.
        """
        given = []
        for number, interruption in enumerate(interruptions, 1):
            given.append(self._give(interruption, len(interruptions) - number, pace))
            tell(given[-1])
            if given[-1].code == 0:
                return given
        given.append(self._give(None, 0, None))
        tell(given[-1])
        return given

    def _give(self, interruption: Interruption | None, left: int, pace: Pace | None) -> Incarnation:
        signs = Signs(self.run_dir, self.stage)
        found = Incarnation(interruption, time.time())
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        family = Family(process.pid)
        try:
            self._accompany(process, family, signs, found, left, pace)
            self._await_end(process, family, found)
        except BaseException:
            family.kill()
            process.wait()
            raise
        signs.look()
        found.start, found.reached, found.ended = signs.start, signs.step, time.time()
        if not found.hit and found.code != 0:
            self._fail(found.code)
        return found

    def _accompany(
        self,
        process: "subprocess.Popen[bytes]",
        family: Family,
        signs: Signs,
        found: Incarnation,
        left: int,
        pace: Pace | None,
    ) -> None:
        """Watch the run until it ends or has been interrupted."""
        began, looked = time.monotonic(), 0.0
        moment: Moment | None = None
        strike_at = float("inf")
        interruption = found.interruption
        if interruption is not None and pace is not None and interruption.phase == "start-up":
            moment, strike_at = Moment("start-up", 0, 0.0), began + interruption.fraction * pace.startup
        while process.poll() is None:
            signs.look()
            now = time.monotonic()
            if found.resumed is None and signs.step is not None:
                found.resumed = now - began
            if interruption is not None and pace is not None:
                if moment is None and signs.start is not None:
                    moment = aim(interruption, signs.start, left, pace)
                at = signs.start if signs.step is None else signs.step
                if moment is not None and moment.phase != "start-up" and at is not None and at >= moment.step:
                    strike_at = min(strike_at, now + moment.delay)
                if moment is not None and now >= strike_at:
                    found.when = _when(moment, at)
                    found.hit = strike(interruption, family, self.processes)
                    return
            if now - looked > LOOK:
                family.look()
                looked = now
            if now - max(signs.last, began) > STUCK:
                raise JobError(f"the run in {self.run_dir} makes no progress; its log is {self.log}")
            time.sleep(POLL)

    def _await_end(self, process: "subprocess.Popen[bytes]", family: Family, found: Incarnation) -> None:
        """Wait until nothing of the family is left, for a bounded time."""
        until = time.monotonic() + PATIENCE
        while True:
            code = process.poll()
            members = family.look()
            if code is not None and not members:
                break
            if time.monotonic() > until:
                found.left_behind = [member.command for member in members]
                family.kill()
                process.wait()
                break
            time.sleep(10 * POLL)
        found.code = process.returncode

    def _fail(self, code: int | None) -> None:
        lines = last_lines(self.log)
        if code == 2 and lines and lines[-1].startswith("error: "):
            raise UserError(lines[-1].removeprefix("error: "))
        tail = "\n".join(["its last lines:", *(f"  {line}" for line in lines)])
        raise JobError(f"the run ended with exit code {code} though nothing had interrupted it; log {self.log}, {tail}")


def strike(interruption: Interruption, family: Family, processes: int) -> str:
    """Send the signal to those whom it is meant for; returns who they were."""
    if interruption.target == EVERYTHING:
        family.kill()
        return EVERYTHING
    number = signal.Signals[f"SIG{interruption.signal}"]
    members = family.look()
    chosen, who = choose(interruption, family, members, processes)
    send([process.pid for process in chosen], number)
    return who


def choose(
    interruption: Interruption, family: Family, members: list[Process], processes: int
) -> tuple[list[Process], str]:
    """Which of the living `members` are hit, and their name. Before all ranks are there, it is the launcher."""
    ranks = family.ranks(members)
    if interruption.target == LAUNCHER or len(ranks) < processes:
        return [process for process in members if process.pid == family.root], LAUNCHER
    if interruption.target == ONE:
        number = int(interruption.rank * len(ranks))
        return [ranks[number]], f"rank {number}"
    if interruption.target == ALL:
        return ranks, ALL
    pids = {rank.pid for rank in ranks}
    while more := {process.pid for process in members if process.parent in pids} - pids:
        pids |= more
    return [process for process in members if process.pid in pids], interruption.target


def _when(moment: Moment, at: int | None) -> str:
    """What the run was doing, as far as can be seen from outside."""
    if at is None:
        return "start-up"
    due = moment.phase in ("validation", "save") and at == moment.step
    return f"{moment.phase}, step {at}" if due else f"after step {at}"
