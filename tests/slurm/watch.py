"""What a run is doing, as far as its directory and the list of processes show it."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from agl_core.durable.chain import StepEntry, chain_files, read_chain
from jobs.history import BEGIN, Entry, read_history
from jobs.rehearsal import Tail
from jobs.runs import Run
from tests.slurm.minislurm import MiniSlurm
from tests.slurm.tiny import VALIDATE

WAKES = 10.0  # seconds within which a signal of Slurm must have come to a process that stands still


@dataclass(frozen=True)
class Watch:
    """The job `job` of a run, with Slurm's `id`."""

    slurm: MiniSlurm
    run: Run
    job: str
    id: str

    @property
    def step(self) -> int:
        """The last step that the newest incarnation of the stage has done; 0 before."""
        files = chain_files(self.run.path, self.job)
        steps = [entry.step for entry in read_chain(files[-1]) if isinstance(entry, StepEntry)] if files else []
        return steps[-1] if steps else 0

    @cached_property
    def store(self) -> Path:
        """The store that the run reads."""
        return Path(self.run.config().store)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind, those that a restart took back included."""
        found = Tail(self.run.events, begin=True).read()
        return [event for event in found if event["kind"] == kind and event["stage"] == self.job]

    def begins(self) -> list[Entry]:
        """The beginnings of the job's incarnations."""
        entries = read_history(self.run.history)
        return [entry for entry in entries if entry["kind"] == BEGIN and entry["job"] == self.job]

    def facts(self) -> dict[str, str]:
        """What scontrol says about the job."""
        return self.slurm.job(self.id)

    def ranks(self, restart: int | None = None) -> list[int]:
        """The ranks that live, in their order, without processes that they have started themselves."""
        steps = {
            pid: found
            for pid, found in self.slurm.processes(self.id).items()
            if found.get("SLURM_STEP_ID", "").isdigit()
            and restart in (None, int(found.get("SLURM_RESTART_COUNT", "0")))
            and _command(pid)[:1] != ["srun"]
        }
        leaders = [pid for pid in steps if _parent(pid) not in steps]
        return sorted(leaders, key=lambda pid: int(steps[pid]["SLURM_PROCID"]))

    def family(self, restart: int | None = None) -> list[int]:
        """The ranks that live, and all that they have started."""
        return [
            pid
            for pid, found in self.slurm.processes(self.id).items()
            if found.get("SLURM_STEP_ID", "").isdigit()
            and restart in (None, int(found.get("SLURM_RESTART_COUNT", "0")))
        ]

    def conductor(self) -> int | None:
        """The process that the batch script has become; None if it is not there."""
        for pid, found in self.slurm.processes(self.id).items():
            if not found.get("SLURM_STEP_ID", "").isdigit() and "submitit.core._submit" in _command(pid):
                return pid
        return None


def _at_step(watch: Watch, step: int) -> bool:
    return watch.step >= step


def _in_validation(watch: Watch, step: int) -> bool:
    now = watch.step
    return now >= step and now % VALIDATE == 0 and all(event["step"] != now for event in watch.events("validation"))


def _in_checkpoint(watch: Watch, step: int) -> bool:
    return watch.step >= step and any(watch.run.checkpoints(watch.job).glob(".step_*.part"))


def _ranks_start(watch: Watch, step: int) -> bool:
    """The newest incarnation has been begun, its ranks are there, and none has trained yet."""
    begins, starts = watch.begins(), watch.events("start")
    return bool(begins) and (not starts or starts[-1]["time"] < begins[-1]["time"]) and bool(watch.ranks())


def _conductor_starts(watch: Watch, step: int) -> bool:
    return not watch.begins() and watch.conductor() is not None


def _script_runs(watch: Watch, step: int) -> bool:
    return not watch.begins() and bool(watch.slurm.processes(watch.id))


def _store_is_built(watch: Watch, step: int) -> bool:
    return (watch.store / "data.mdb").exists() and all(
        entry["kind"] == BEGIN for entry in read_history(watch.run.history)
    )


PHASES: dict[str, Callable[[Watch, int], bool]] = {
    "submitted": lambda watch, step: True,
    "script runs": _script_runs,
    "conductor starts": _conductor_starts,
    "start-up": _ranks_start,
    "step": _at_step,
    "validation": _in_validation,
    "checkpoint": _in_checkpoint,
    "store": _store_is_built,
    "queue": lambda watch, step: watch.facts()["JobState"] == "PENDING" and watch.facts()["Restarts"] != "0",
}
"""When something may happen: a condition on the job and the step of the strike."""


def send(pids: list[int], number: int) -> None:
    """Send a signal to processes; one that has ended meanwhile needs none."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def freeze(pids: list[int]) -> None:
    """Have processes stand still."""
    send(pids, signal.SIGSTOP)


def thaw(pids: list[int], wait: bool = False) -> None:
    """Have processes go on. wait: give Slurm, which wakes those that it signals, the time to do it."""
    deadline = time.monotonic() + (WAKES if wait else 0.0)
    while any(_state(pid) == "T" for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    send(pids, signal.SIGCONT)


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["X", "0"]


def _state(pid: int) -> str:
    return _stat(pid)[0]


def _parent(pid: int) -> int:
    return int(_stat(pid)[1])
