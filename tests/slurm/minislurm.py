"""A real Slurm on this machine for tests: one slurmctld and some slurmd nodes, without munge, root, cgroups or /etc.

    with MiniSlurm(folder, MiniSettings(nodes=4)) as slurm:      # about a second; needs Debian's `slurm-wlm`
        job = slurm.submit("#!/bin/sh\nexec sleep 60\n", "--partition", "preemptible", "--exclusive")
        slurm.wait(job, ["RUNNING"])
        slurm.preempt(slurm.job(job)["NodeList"])

Everything that runs on the cluster, jobs included, ends with this process, even if that is killed (see `keeper`).
Several clusters run side by side. All methods may be called by several threads.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.slurm.keeper import members
from tests.slurm.miniconf import MiniSettings, conf_text, gres_text

ROOT = Path(__file__).parent.parent.parent
ADMIN = "/usr/sbin"  # where Debian has the daemons, and the PATH of many users has not
PATIENCE = 60.0  # seconds for a command, or for the daemons to come up
POLL = 0.05
FINAL = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "PREEMPTED",
    "NODE_FAIL",
    "BOOT_FAIL",
    "DEADLINE",
    "OUT_OF_MEMORY",
)
"""The states that a job does not leave, unless it is requeued."""


def missing() -> list[str]:
    """The programs of Slurm that a cluster needs and this machine does not have."""
    path = os.environ.get("PATH", "") + os.pathsep + ADMIN
    return [name for name in ("slurmctld", "slurmd", "sbatch", "srun", "scontrol") if not shutil.which(name, path=path)]


class MiniSlurm:
    """One cluster with nodes n0, n1, ...; `environment` is what its commands, and those that submit to it, need."""

    def __init__(self, folder: Path, settings: MiniSettings | None = None) -> None:
        self.folder = folder.absolute()
        self.settings = settings or MiniSettings()
        self.nodes = [f"n{number}" for number in range(self.settings.nodes)]
        self.conf = self.folder / "slurm.conf"
        self.environment = _environment(self.conf)
        self._slurmds: dict[str, subprocess.Popen[bytes]] = {}
        self._keeper: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "MiniSlurm":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the daemons; returns when all nodes are idle.

        Raises:
            RuntimeError: they did not come up; the message holds the ends of their logs.
        """
        (self.folder / "state").mkdir(parents=True, exist_ok=True)
        self.conf.write_text(conf_text(self.folder, self.nodes, self.settings))
        if self.settings.gpus:
            (self.folder / "gres.conf").write_text(gres_text(self.folder, self.settings))
            for number in range(self.settings.gpus):
                (self.folder / f"gpu{number}").symlink_to(os.devnull)
        # Without SLURM_CONF, so that it does not count as a member. It holds on to nothing but its end of the pipe.
        self._keeper = subprocess.Popen(
            [sys.executable, "-m", "tests.slurm.keeper", str(self.conf)],
            cwd=ROOT, env=_without_slurm(), stdin=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        controller = self._spawn("slurmctld", "-D", "-c")
        for node in self.nodes:
            self.start_slurmd(node)
        deadline = time.monotonic() + PATIENCE
        while len(self.idle()) < len(self.nodes):
            ended = any(daemon.poll() is not None for daemon in (controller, *self._slurmds.values()))
            if ended or time.monotonic() > deadline:
                logs = self.logs()
                self.stop()
                raise RuntimeError(f"Slurm did not start\n{logs}")
            time.sleep(POLL)

    def stop(self) -> None:
        """End the daemons and all jobs, and wait until nothing of them is left."""
        if self._keeper is not None:
            assert self._keeper.stdin is not None
            self._keeper.stdin.close()
            self._keeper.wait(PATIENCE)
            self._keeper = None

    def start_slurmd(self, node: str) -> None:
        """Start a node's daemon, for the first time or after `kill_slurmd`."""
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        self._slurmds[node] = self._spawn("slurmd", "-D", "-N", node)

    def kill_slurmd(self, node: str) -> None:
        """Kill a node's daemon; the processes of its jobs stay alive."""
        self._slurmds[node].kill()
        self._slurmds[node].wait()

    def hang_slurmd(self, node: str) -> None:
        """Stop a node's daemon: nothing reaches the node's processes any more, and nothing comes from there."""
        self._slurmds[node].send_signal(signal.SIGSTOP)

    def wake_slurmd(self, node: str) -> None:
        """Have a daemon that was stopped go on."""
        self._slurmds[node].send_signal(signal.SIGCONT)

    def set_down(self, node: str) -> None:
        """Declare a node down: its job is requeued at once, while the processes are only then told to leave."""
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
        # Or a daemon that still has something to say would bring it back into service at once.
        self.run("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")

    def resume(self, node: str) -> None:
        """Take a node that was down back into service, if it has not come back by itself as one that registers does."""
        self.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)

    def idle(self) -> list[str]:
        """The nodes that are up and have nothing to do; empty while slurmctld does not answer."""
        listing = self.run("sinfo", "-h", "-N", "-p", "urgent", "-t", "idle", "-o", "%N", check=False)
        return [name for name in listing.split() if name in self.nodes]

    def run(self, *command: str, check: bool = True, stdin: str = "") -> str:
        """Run a command of Slurm; what it printed.

        Raises:
            RuntimeError: it failed, and `check` says that it must not.
        """
        done = subprocess.run(
            command, env=self.environment, input=stdin, capture_output=True, text=True, timeout=PATIENCE
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}".strip())
        return done.stdout.strip()

    def submit(self, script: str, *options: str, log: Path = Path(os.devnull)) -> str:
        """Submit a script, whose output goes to `log`; the job's id."""
        return self.run("sbatch", "--parsable", f"--output={log}", *options, stdin=script)

    def preempt(self, node: str, seconds: float = 1) -> str:
        """Submit a more important job that takes all of `node` for so long; its id."""
        script = f"#!/bin/sh\nexec sleep {seconds}\n"
        return self.submit(script, "--partition=urgent", f"--nodelist={node}", "--exclusive", "--job-name=urgent")

    def job(self, job: str) -> dict[str, str]:
        """What scontrol says about a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", "-o", job)))

    def wait(
        self, job: str, states: Collection[str], restarts: int | None = None, timeout: float = PATIENCE
    ) -> dict[str, str]:
        """Wait until a job is in one of `states`, in its `restarts`-th incarnation (from 0); what scontrol says then.

        Raises:
            TimeoutError: it did not come to that.
        """
        facts: dict[str, str] = {}

        def there() -> bool:
            facts.update(self.job(job))
            return facts["JobState"] in states and restarts in (None, int(facts["Restarts"]))

        self.until(there, lambda: f"job {job} is {facts['JobState']} ({facts['Reason']}), not {states}", timeout)
        return facts

    def until(self, there: Callable[[], Any], what: Callable[[], str], timeout: float = PATIENCE) -> None:
        """Wait until `there` says so.

        Raises:
            TimeoutError: it never did; the message is `what`.
        """
        deadline = time.monotonic() + timeout
        while not there():
            if time.monotonic() > deadline:
                raise TimeoutError(what())
            time.sleep(POLL)

    def nodes_of(self, job: str) -> list[str]:
        """The nodes that a running job has, by name."""
        return self.run("scontrol", "show", "hostnames", self.job(job)["NodeList"]).split()

    def processes(self, job: str) -> dict[int, dict[str, str]]:
        """The living processes of a job of this cluster, and the environment of each."""
        return {pid: found for pid, found in members(str(self.conf)).items() if found.get("SLURM_JOB_ID") == job}

    def logs(self, lines: int = 15) -> str:
        """The ends of the daemons' logs."""
        found = sorted(self.folder.glob("*.log"))
        ends = ["\n".join(path.read_text(errors="replace").splitlines()[-lines:]) for path in found]
        return "\n".join(f"--- {path.name}\n{end}" for path, end in zip(found, ends, strict=True))

    def _spawn(self, *command: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            command, env=self.environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip


def _environment(conf: Path) -> dict[str, str]:
    """This process's environment, pointed at the cluster."""
    without = _without_slurm()
    return {**without, "SLURM_CONF": str(conf), "PATH": without.get("PATH", "") + os.pathsep + ADMIN}


def _without_slurm() -> dict[str, str]:
    """This process's environment without what another Slurm, in a job of which the tests may run, has put there."""
    return {name: value for name, value in os.environ.items() if not re.match(r"SLURM|SBATCH_|SRUN_", name)}
