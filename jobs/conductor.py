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
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from agl_core.config import TrainConfig
from agl_core.durable.exits import INTERRUPTED, TAKEN_OVER
from agl_core.reporting.startup import LAUNCHED
from jobs import scontrol
from jobs.attempt import CRASHED, ENDED_WELL, OVERTAKEN, REFUSED, AttemptEnd, judge, read_ends
from jobs.cluster import ClusterConfig, load_cluster
from jobs.failure import JobError
from jobs.history import History, incarnations
from jobs.ledger import crashes_in_a_row, give_up
from jobs.pipeline import STAGE
from jobs.progress import kept, reached
from jobs.rank import CONDUCTOR, PORT
from jobs.runs import Run
from jobs.sbatch import srun_command, tasks
from jobs.stages import first_port
from jobs.why import AGAIN, DONE, GIVE_UP, LEAVE, REQUEUE, UNKNOWN, WAIT, deed, why

LOOK = 0.1  # seconds between two looks at the run directory
ASK_AGAIN = 2.0  # seconds between two questions to a Slurm that does not answer
PATIENCE = 120.0  # seconds after which a job that Slurm neither explains nor ends goes on
SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGCONT)


@dataclass(frozen=True)
class Allocation:
    """What Slurm has given: the job's id, and how often it has been taken back and given anew."""

    job_id: str
    restart: int

    @classmethod
    def here(cls) -> "Allocation":
        """That of this process."""
        return cls(os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", "0")))

    def why(self) -> str:
        """What has happened to the job, as far as Slurm says."""
        facts = scontrol.show_job(self.job_id)
        grace = None
        if facts is not None and facts.preempt_time is not None:
            grace = scontrol.grace_time(facts.partition)
        return why(facts, self.restart, grace)

    def hand_back(self) -> str | None:
        """Have Slurm start the job again later; None, or why it refuses."""
        refusal = scontrol.requeue(self.job_id)
        if refusal is not None and "disabled" in refusal and scontrol.allow_requeue(self.job_id):
            # It came to the queue without the right to come back; its owner may give it that right.
            refusal = scontrol.requeue(self.job_id)
        return None if refusal is None or "pending" in refusal.lower() else refusal


class Conductor:
    """Does one job of a run to its end, or as far as this allocation lets it."""

    def __init__(self, run: Run, name: str, kind: str, allocation: Allocation, cluster: ClusterConfig) -> None:
        self.run, self.name, self.kind = run, name, kind
        self.allocation, self.cluster = allocation, cluster
        config = run.config() if run.exists() else TrainConfig()
        self.limits, self.grace = config.restart, config.checkpoint.grace
        self.history = History(run.history)
        self.told = False  # whether Slurm has begun to end this process too

    def conduct(self) -> None:
        """Start the ranks until the job is done; every other end raises.

        Raises:
            JobError: the user must do something; Slurm is told that the job has failed.
            SystemExit: the job comes back, was cancelled or is done by another; never with code 0.
        """
        before = {number: signal.signal(number, self._told) for number in SIGNALS}
        try:
            for attempt in range(sys.maxsize):
                end = self._attempt(attempt)
                if end.kind == ENDED_WELL:
                    self._note(attempt, end, "", DONE)
                    return
                self._answer(attempt, end)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _attempt(self, attempt: int) -> AttemptEnd:
        """Start all ranks, and wait until they have ended."""
        folder = attempt_folder(self.run, self.name, self.allocation, attempt)
        folder.mkdir(parents=True, exist_ok=True)
        ranks = tasks(self.cluster, self.kind)
        for path in folder.glob("rank*.json"):  # of a conductor with the same numbers that nobody remembers
            path.unlink()
        self.history.begin(
            self.name, self.allocation.job_id, self.allocation.restart, attempt, kept(self.run, self.name, self.kind)
        )
        command = srun_command(self.cluster, self.run, self.name, self.kind, folder)
        environment = {
            **os.environ,
            CONDUCTOR: str(os.getpid()),
            PORT: str(free_port(f"{self.allocation.job_id}.{self.allocation.restart}.{attempt}")),
            LAUNCHED: repr(time.time()),
        }
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
        code = process.wait()
        self._await_ends(folder, ranks, code)
        return judge(read_ends(folder, ranks), code)

    def _await_ends(self, folder: Path, ranks: int, code: int) -> None:
        """Let the ranks come to their ends where srun has left before them, as it does when a node is declared down."""
        until = time.monotonic() + self.grace
        while (code == 0 or self.told) and None in read_ends(folder, ranks) and time.monotonic() < until:
            time.sleep(LOOK)

    def _answer(self, attempt: int, end: AttemptEnd) -> None:
        """What is done about an attempt that did not finish the job; returns if there is to be another one here."""
        if end.kind == REFUSED:
            self._note(attempt, end, "", GIVE_UP)
            raise JobError(end.text)
        if end.kind == OVERTAKEN:
            self._note(attempt, end, "", LEAVE)
            self._leave(end.text, TAKEN_OVER)
        crashed = end.kind == CRASHED
        reason = self._ask()
        chosen = deed(reason, crashed and not end.by_warning)
        if chosen == WAIT:  # nobody answers and nobody ends this job: going on does no harm
            chosen = LEAVE if self.told else AGAIN
        if chosen in (AGAIN, REQUEUE):
            step = reached(self.run, self.name, self.kind)
            entries = self._entries()
            times = crashes_in_a_row(entries, self.name, self.allocation.job_id, step)
            if chosen == AGAIN and (attempt + 1 >= self.limits.inside or times + 1 == self.limits.crashes):
                chosen = REQUEUE  # perhaps it is the node, or something that passes
            refusal = give_up(entries, self.name, self.allocation.job_id, crashed, step,
                              kept(self.run, self.name, self.kind), self.limits)  # fmt: skip
            if refusal is not None:
                self._note(attempt, end, reason, GIVE_UP, f"{end.text}; {refusal}")
                raise JobError(f"{end.text}; {refusal}\n{end.traceback}".rstrip())
        self._note(attempt, end, reason, chosen)
        if chosen == REQUEUE:
            self._requeue(end, reason)
        if chosen == LEAVE:
            self._leave(f"{end.text} ({reason})", INTERRUPTED)
        say(f"{end.text}: starting the ranks again")

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

    def _requeue(self, end: AttemptEnd, reason: str) -> NoReturn:
        until = time.monotonic() + PATIENCE
        while (refusal := self.allocation.hand_back()) is not None and time.monotonic() < until:
            time.sleep(ASK_AGAIN)
        if refusal is not None:
            raise JobError(
                f"{end.text} ({reason}), and Slurm does not take the job back ({refusal}); continue it with: "
                f"python launch.py resume {self.run.name}"
            )
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
    Conductor(run, name, kind, Allocation.here(), load_cluster(str(run.cluster_file))).conduct()


def stand_in(run_dir: Path, name: str, kind: str) -> None:
    """Hand the job back in the place of a conductor that was killed: called by rank 0, which has been warned of the
    end of the allocation and has saved."""
    run, allocation = Run(run_dir), Allocation.here()
    reason = allocation.why()
    chosen = deed(reason, crashed=False)
    refusal = allocation.hand_back() if chosen == REQUEUE else None
    history = History(run.history)
    open_ones = [each for each in incarnations(history.entries(), name) if each.end is None]
    if not open_ones or open_ones[-1].begin["id"] != allocation.job_id:
        return  # it has left in order, before this rank
    history.end(
        name, allocation.job_id, allocation.restart, int(os.environ.get("SLURM_STEP_ID", "0")),
        reached(run, name, kind), end="interrupted", why=reason, deed=LEAVE if refusal or chosen == WAIT else chosen,
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


__all__ = ["STAGE", "Allocation", "Conductor", "attempt_folder", "conduct", "free_port", "stand_in"]
