"""What may happen to a job: each deed a function, known by its name in scenarios."""

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from agl_core.files import read_json
from jobs.runs import Run
from tests.slurm.minislurm import FINAL, MiniSlurm
from tests.slurm.watch import Watch, freeze, send, thaw

BETWEEN = 1.0  # seconds within which Slurm has sent both of its signals
SOON, LATE = 30.0, 150.0  # seconds within which Slurm reacts to a command, and to a time limit or a silent node


@dataclass
class Blow:
    """A job that is about to be struck. frozen: its processes that stand still; restart: its incarnation; checkout:
    what it was launched from; after: what puts the cluster in order at the end of the scenario."""

    watch: Watch
    checkout: Path
    after: ExitStack
    frozen: list[int] = field(default_factory=list)
    restart: int = 0

    @property
    def slurm(self) -> MiniSlurm:
        """The cluster."""
        return self.watch.slurm

    def until_felt(self) -> None:
        """Wait until Slurm has chosen the job for a preemption, taken it back or begun to end it."""
        self.slurm.until(self._felt, lambda: f"job {self.watch.id} feels nothing: {self.watch.facts()}", SOON)

    def _felt(self) -> bool:
        facts = self.watch.facts()
        preempted = facts.get("PreemptTime", "None") not in ("None", "")
        return preempted or int(facts["Restarts"]) > self.restart or facts["JobState"] != "RUNNING"


def preempt(blow: Blow) -> None:
    """A more important job takes the first of its nodes."""
    blow.slurm.preempt(blow.slurm.nodes_of(blow.watch.id)[0])
    blow.until_felt()
    thaw(blow.frozen, wait=True)


def preempt_and_cancel(blow: Blow) -> None:
    """The user cancels it in the grace of a preemption, before it could leave."""
    blow.slurm.preempt(blow.slurm.nodes_of(blow.watch.id)[0])

    def felt() -> bool:
        freeze(blow.frozen)  # Slurm has woken them, or will
        return blow.watch.facts().get("PreemptTime", "None") not in ("None", "")

    blow.slurm.until(felt, lambda: "the job was not preempted", SOON)
    freeze(blow.frozen)
    cancel(blow)


def cancel(blow: Blow) -> None:
    """The user cancels it."""
    blow.slurm.run("scancel", blow.watch.id)
    thaw(blow.frozen, wait=True)


def requeue(blow: Blow) -> None:
    """Somebody gives `scontrol requeue`."""
    blow.slurm.run("scontrol", "requeue", blow.watch.id)
    thaw(blow.frozen, wait=True)


def requeue_at_once(blow: Blow) -> None:
    """The same, and the ranks do nothing between the signal that wakes them and the one that warns them."""
    blow.slurm.run("scontrol", "requeue", blow.watch.id)
    deadline = time.monotonic() + BETWEEN
    while time.monotonic() < deadline:
        freeze(blow.frozen)
        time.sleep(0.001)
    thaw(blow.frozen)


def release(blow: Blow) -> None:
    """All jobs of the run were held, and are not any more."""
    release_all(blow.watch.run, blow.slurm)


def release_all(run: Run, slurm: MiniSlurm) -> None:
    """Let the jobs of a run's last submission begin."""
    for id in read_json(run.submitted).values():
        slurm.run("scontrol", "release", str(id))


def forbid_requeue(blow: Blow) -> None:
    """Slurm may not requeue it any more, as if it had been submitted with --no-requeue."""
    blow.slurm.run("scontrol", "update", f"JobId={blow.watch.id}", "Requeue=0")
    thaw(blow.frozen)


def warn(blow: Blow) -> None:
    """The signal that announces the time limit, by hand."""
    blow.slurm.run("scancel", "--signal=USR2", blow.watch.id)
    thaw(blow.frozen)


def time_limit(blow: Blow) -> None:
    """Nothing but time: the ranks stand still until Slurm's warning, or the end, wakes them."""
    blow.slurm.until(
        lambda: blow.restart < int(blow.watch.facts()["Restarts"]) or blow.watch.facts()["JobState"] in FINAL,
        lambda: f"the time limit of job {blow.watch.id} passes without any effect: {blow.watch.facts()}",
        LATE,
    )
    thaw(blow.frozen)


def kill_one(blow: Blow) -> None:
    """The last rank is killed."""
    send(blow.watch.ranks()[-1:], signal.SIGKILL)
    thaw(blow.frozen)


def kill_all(blow: Blow) -> None:
    """All ranks are killed at once, with what they have started."""
    family = blow.watch.family()
    freeze(family)
    send(family, signal.SIGKILL)


def kill_conductor(blow: Blow) -> None:
    """The process that the batch script has become is killed."""
    conductor = blow.watch.conductor()
    assert conductor is not None
    send([conductor], signal.SIGKILL)
    thaw(blow.frozen, wait=True)


def node_down(blow: Blow) -> None:
    """The administrator declares its node down."""
    node = blow.slurm.nodes_of(blow.watch.id)[0]
    blow.after.callback(blow.slurm.resume, node)
    blow.slurm.set_down(node)
    thaw(blow.frozen, wait=True)


def node_lost(blow: Blow) -> None:
    """Its node is declared down and cannot be reached: the processes live on beside their next incarnation."""
    node = blow.slurm.nodes_of(blow.watch.id)[0]
    blow.slurm.hang_slurmd(node)
    blow.after.callback(blow.slurm.resume, node)
    blow.after.callback(blow.slurm.wake_slurmd, node)
    blow.slurm.set_down(node)
    _outlive(blow)


def slurmd_killed(blow: Blow) -> None:
    """Its node's daemon dies for good, which Slurm notices after a while; the processes live on."""
    node = blow.slurm.nodes_of(blow.watch.id)[0]
    blow.slurm.kill_slurmd(node)
    blow.after.callback(blow.slurm.start_slurmd, node)
    _outlive(blow)


def spoil_checkout(blow: Blow) -> None:
    """Somebody edits the checkout: nothing in it can be imported any more."""
    for path in blow.checkout.rglob("*.py"):
        path.write_text('raise RuntimeError("this is not the code that was submitted")\n')
    thaw(blow.frozen)


def _outlive(blow: Blow) -> None:
    """The processes stand still until the next incarnation trains; then they go on."""
    before = len(blow.watch.events("start"))
    blow.slurm.until(
        lambda: len(blow.watch.events("start")) > before,
        lambda: f"job {blow.watch.id} does not train again: {blow.watch.facts()}",
        LATE,
    )
    thaw(blow.frozen)


DEEDS: dict[str, Callable[[Blow], None]] = {
    "preempt": preempt,
    "preempt and cancel": preempt_and_cancel,
    "cancel": cancel,
    "requeue": requeue,
    "requeue at once": requeue_at_once,
    "release": release,
    "forbid requeue": forbid_requeue,
    "warn": warn,
    "time limit": time_limit,
    "kill one": kill_one,
    "kill all": kill_all,
    "kill conductor": kill_conductor,
    "node down": node_down,
    "node lost": node_lost,
    "slurmd killed": slurmd_killed,
    "spoil checkout": spoil_checkout,
}
