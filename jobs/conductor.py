"""The process of a submitted job that stays while its ranks come and go.

It runs on the first node of the allocation, starts the ranks with srun, and answers every way in which they can end:
again in the same allocation when they crashed, back to the queue when Slurm wants the machine, an end when the user
does or when nothing helps. What it decides and why goes to the run's history.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from agl_core.config import TrainConfig
from agl_core.durable.exits import INTERRUPTED, TAKEN_OVER
from agl_core.durable.lease import read_lease
from agl_core.errors import UserError
from agl_core.reporting.startup import LAUNCHED
from jobs.allocation import ASK_AGAIN, PATIENCE, Allocation, hand_back
from jobs.attempt import CRASHED, ENDED_WELL, LEFT, OVERTAKEN, REFUSED, AttemptEnd, judge, read_ends
from jobs.cluster import ClusterConfig, load_cluster
from jobs.failure import JobError
from jobs.history import History, incarnations
from jobs.ledger import crashes_in_a_row, give_up
from jobs.notify import following
from jobs.pipeline import STAGE
from jobs.progress import kept, reached
from jobs.rank import ATTEMPT, CONDUCTOR, GPUS, MOST_ATTEMPTS, PORT
from jobs.runs import Run
from jobs.sbatch import gpus_per_node, srun_command, tasks
from jobs.stages import first_port
from jobs.why import AGAIN, CANCELLED, DONE, ENDED_BY_SLURM, GIVE_UP, LEAVE, REQUEUE, UNKNOWN, WAIT, deed

LOOK = 0.1  # seconds between two looks at the run directory
STAND_IN = 20.0  # seconds that a rank has for it, of those between a warning and the kill
SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGCONT)


class Conductor:
    """Does one job of a run to its end, or as far as this allocation lets it."""

    def __init__(self, run: Run, name: str, kind: str, allocation: Allocation, cluster: ClusterConfig) -> None:
        self.run, self.name, self.kind = run, name, kind
        self.allocation, self.cluster = allocation, cluster
        config = run.config() if run.exists() else TrainConfig()
        self.limits, self.grace = config.restart, config.checkpoint.grace
        self.history = History(run.history, run.events)
        self.told = False  # whether Slurm has begun to end this process too

    def conduct(self) -> None:
        """Start the ranks until the job is done; every other end raises.

        Raises:
            JobError: the user must do something; Slurm is told that the job has failed.
            SystemExit: the job comes back, was cancelled or is done by another; never with code 0.
        """
        before = {number: signal.signal(number, self._told) for number in SIGNALS}
        try:
            with following(self.run, self.name, self.kind):
                self._attempt_all()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _attempt_all(self) -> None:
        for attempt in range(MOST_ATTEMPTS):
            end = self._attempt_patiently(attempt)
            if end.kind == ENDED_WELL:
                self._note(attempt, end, "", DONE)
                return
            self._answer(attempt, end)

    def _attempt_patiently(self, attempt: int) -> AttemptEnd:
        """An attempt; where this process itself is refused something, by a full disk or a machine without room for
        another process, it is tried again for a while."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return self._attempt(attempt)
            except OSError as error:
                if self.told or time.monotonic() > until:
                    return AttemptEnd(CRASHED, f"the ranks could not be started ({error})")
                say(f"the ranks cannot be started yet ({error})")
                time.sleep(ASK_AGAIN)

    def _attempt(self, attempt: int) -> AttemptEnd:
        """Start all ranks, and wait until they have ended."""
        folder = attempt_folder(self.run, self.name, self.allocation, attempt)
        folder.mkdir(parents=True, exist_ok=True)
        ranks = tasks(self.cluster, self.kind)
        for path in folder.glob("rank*.json"):  # of a conductor with the same numbers that nobody remembers
            path.unlink()
        command = srun_command(self.cluster, self.run, self.name, self.kind, folder)
        environment = {
            **os.environ,
            CONDUCTOR: str(os.getpid()),
            PORT: str(free_port(f"{self.allocation.job_id}.{self.allocation.restart}.{attempt}")),
            ATTEMPT: str(attempt),
            GPUS: str(gpus_per_node(self.cluster, self.kind)),
            LAUNCHED: repr(time.time()),
        }
        before = kept(self.run, self.name, self.kind), reached(self.run, self.name, self.kind)
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
        # From here on the ranks run, and nothing may leave them alone: who comes back without having waited for them
        # starts others beside them.
        try:
            self.history.begin(self.name, self.allocation.job_id, self.allocation.restart, attempt, *before)
        except Exception as error:
            say(f"the start of the ranks cannot be written down ({error})")
        code = process.wait()
        self._await_ends(folder, ranks, code)
        return judge(read_ends(folder, ranks), code)

    def _await_ends(self, folder: Path, ranks: int, code: int) -> None:
        """Let the ranks come to their ends where srun has left before them, as it does when a node is declared down."""
        until = time.monotonic() + self.grace
        while code == 0 and None in read_ends(folder, ranks) and time.monotonic() < until:
            time.sleep(LOOK)

    def _answer(self, attempt: int, end: AttemptEnd) -> None:
        """What is done about an attempt that did not finish the job; returns if there is to be another one here."""
        end = self._seen_again(end)
        if end.kind == REFUSED:
            self._note(attempt, end, "", GIVE_UP)
            raise JobError(end.text)
        if end.kind == OVERTAKEN:
            self._note(attempt, end, "", LEAVE)
            self._leave(end.text, TAKEN_OVER)
        crashed = end.kind == CRASHED
        # Everything slow comes before the question: the answer is old as soon as it is there.
        refusal, last = self._limits_reached(end, crashed)
        reason = self._ask()
        if end.at_birth and reason in ENDED_BY_SLURM:
            # A process that has only begun to start dies of the warning that it is to listen to: nothing has crashed.
            end, crashed = replace(end, kind=LEFT), False
            refusal, last = self._limits_reached(end, crashed)
        chosen = deed(reason, crashed and not end.by_warning)
        if chosen == WAIT:  # nobody answers and nobody ends this job: going on does no harm
            chosen = LEAVE if self.told else AGAIN
        if chosen == AGAIN and (end.elsewhere or last or attempt + 1 >= self.limits.inside):
            chosen = REQUEUE  # perhaps it is the node, or something that passes
        if chosen in (AGAIN, REQUEUE) and refusal is not None:
            self._note(attempt, end, reason, GIVE_UP, f"{end.text}; {refusal}")
            raise JobError(f"{end.text}; {refusal}\n{end.traceback}".rstrip())
        if chosen == REQUEUE:
            self._requeue(attempt, end, reason)
        self._note(attempt, end, reason, chosen)
        if chosen == LEAVE:
            self._leave(f"{end.text} ({reason})", INTERRUPTED)
        say(f"{end.text}: starting the ranks again")

    def _seen_again(self, end: AttemptEnd) -> AttemptEnd:
        """An end in the light of what was before: what could be done once, and is refused now, is no mistake of the
        user but a file system that is away or a machine that is not as it should be; and a lease that nobody has was
        not taken over but lost."""
        if end.kind == REFUSED and self.kind == STAGE and (kept(self.run, self.name, self.kind) or 0) > 0:
            return replace(end, kind=CRASHED, elsewhere=True)
        if end.kind == OVERTAKEN and read_lease(self.run.path) is None:
            return replace(end, kind=CRASHED)
        return end

    def _limits_reached(self, end: AttemptEnd, crashed: bool) -> tuple[str | None, bool]:
        """Why the job should not be started again, or None; and whether one more crash like this will be too many."""
        job, step = self.allocation.job_id, reached(self.run, self.name, self.kind)
        entries = self._entries()
        refusal = give_up(
            entries, self.name, job, crashed, step, kept(self.run, self.name, self.kind), self.limits
        )  # fmt: skip
        times = crashes_in_a_row(entries, self.name, job, step) if crashed else 0
        return refusal, times + 1 == self.limits.crashes

    def _entries(self) -> list[dict[str, Any]]:
        with suppress(OSError):  # without a memory the job goes on
            return self.history.entries()
        return []

    def _ask(self) -> str:
        """Why the ranks were ended; a controller that is silent is asked again for a while."""
        until = time.monotonic() + PATIENCE
        while (reason := self.allocation.why()) == UNKNOWN and time.monotonic() < until:
            time.sleep(ASK_AGAIN)
        return reason

    def _requeue(self, attempt: int, end: AttemptEnd, reason: str) -> NoReturn:
        refusal = hand_back(self.allocation, PATIENCE)
        if refusal == "":
            self._note(attempt, end, CANCELLED, LEAVE)
            self._leave(f"{end.text} ({CANCELLED})", INTERRUPTED)
        if refusal is not None:
            text = (
                f"{end.text} ({reason}), and Slurm does not take the job back ({refusal}); continue it with: "
                f"python launch.py resume {self.run.name}"
            )
            self._note(attempt, end, reason, GIVE_UP, text)
            raise JobError(text)
        self._note(attempt, end, reason, REQUEUE)
        self._leave(f"{end.text} ({reason}): back to the queue", INTERRUPTED)

    def _note(self, attempt: int, end: AttemptEnd, reason: str, chosen: str, text: str = "") -> None:
        self.history.end(
            self.name, self.allocation.job_id, self.allocation.restart, attempt,
            reached(self.run, self.name, self.kind), end=end.kind, why=reason, deed=chosen, text=text or end.text,
            traceback=end.traceback,
        )  # fmt: skip

    def _leave(self, text: str, code: int) -> NoReturn:
        say(text)
        raise SystemExit(code)

    def _told(self, number: int, frame: FrameType | None) -> None:
        # The ranks are told too, and know better what to do; when they have ended, Slurm is asked why.
        self.told = self.told or number == signal.SIGTERM


def conduct(run_dir: Path, name: str, kind: str) -> None:
    """Do the job `name` of the run in `run_dir` with the ranks of this allocation; see `Conductor.conduct`."""
    run = Run(run_dir)
    until = time.monotonic() + PATIENCE
    while True:
        try:
            conductor = Conductor(run, name, kind, Allocation.here(), load_cluster(str(run.cluster_file), None, False))
            break
        except (OSError, UserError) as error:  # the file system of the runs may be mounted late
            if time.monotonic() > until:
                raise
            say(f"the run cannot be read yet ({error})")
            time.sleep(ASK_AGAIN)
    conductor.conduct()


def stand_in(run_dir: Path, name: str, kind: str, attempt: int) -> None:
    """Hand the job back in the place of a conductor that was killed: called by rank 0, which has been warned of the
    end of the allocation and has saved."""
    run, allocation = Run(run_dir), Allocation.here()
    history = History(run.history, run.events)
    open_ones = [each for each in incarnations(history.entries(), name) if each.end is None]
    if not open_ones or open_ones[-1].begin["id"] != allocation.job_id:
        return  # it has left in order, before this rank
    until = time.monotonic() + STAND_IN
    while (reason := allocation.why()) == UNKNOWN and time.monotonic() < until:
        time.sleep(ASK_AGAIN)
    chosen = deed(reason, crashed=False)
    refusal = hand_back(allocation, STAND_IN) if chosen == REQUEUE else None
    history.end(
        name, allocation.job_id, allocation.restart, attempt, reached(run, name, kind),
        end="interrupted", why=reason, deed=REQUEUE if chosen == REQUEUE and refusal is None else LEAVE,
        text=refusal or "the process that started the ranks was killed",
    )  # fmt: skip


def attempt_folder(run: Run, name: str, allocation: Allocation, attempt: int) -> Path:
    """Where the ranks of an attempt leave their logs and ends."""
    return run.jobs / f"{name}.{allocation.job_id}" / f"{allocation.restart}.{attempt}"


def free_port(name: str) -> int:
    """A port on which nobody listens here, another one for every `name` as far as there are enough.

    An earlier incarnation may still live and hold its port; what still tries to reach that one must not reach this.
    """
    first, count, start = first_port(name)
    for offset in range(count):
        port = first + (start + offset) % count
        with suppress(OSError), socket.create_server(("", port)):
            return port
    raise JobError(f"no free port between {first} and {first + count}")


def say(text: str) -> None:
    """A line in the job's log."""
    print(text, file=sys.stderr, flush=True)
