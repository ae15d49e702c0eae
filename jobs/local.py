"""Several processes on this machine, through submitit's local executor."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from types import FrameType
from typing import Any, TextIO, cast

from submitit.local.local import LocalExecutor, LocalJob

from agl_core.durable.exits import HUNG, PEER_LOST, TAKEN_OVER
from agl_core.errors import UserError
from agl_core.files import read_json
from agl_core.reporting.startup import LAUNCHED
from jobs.cluster import ClusterConfig
from jobs.controller import APART, END_FILE, GRACE, PARENT
from jobs.failure import INTERRUPTIONS, MISTAKE, JobError, JobInterruptedError
from jobs.snapshot import ROOT
from jobs.stages import RENDEZVOUS

FOR_EVER = 10 * 365 * 24 * 60  # minutes; submitit takes a signal that comes late in a job's time for a time-out
SHOWN_LINES = 20
SUBMITIT_LINE = re.compile(r"^submitit INFO ")
INTERRUPTED_LINE = "interrupted by "  # of a rank; the launcher repeats it with the command that continues


class RankExecutor(LocalExecutor):
    """submitit's local executor with a controller that fits training, and with the environment given to it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        super().__init__(folder)
        self._environment = environment

    def _submit_command(self, command: str) -> "LocalJob[Any]":
        processes = self.parameters["tasks_per_node"]
        environment = {
            **self._environment,
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_NTASKS": str(processes),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": "0",
            "SUBMITIT_LOCAL_TIMEOUT_S": str(60 * FOR_EVER),
            "SUBMITIT_LOCAL_WITH_SHELL": "",
            "SUBMITIT_STDERR_TO_STDOUT": "",
            PARENT: str(os.getpid()),
        }
        # In a session of its own, so that Ctrl-C reaches the launcher only, which then ends the ranks in order.
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.controller", str(self.folder)], env=environment, start_new_session=True
        )
        return LocalJob(folder=self.folder, job_id=str(process.pid), process=process, tasks=list(range(processes)))


def run_ranks(
    call: Callable[[], None], folder: Path, cluster: ClusterConfig, grace: float = 30.0, apart: bool = False
) -> bool:
    """Run `call` in `cluster.processes` processes; logs and submitit's files go to the new `folder`.

    When one fails, the others have `grace` seconds to notice and leave; with `apart`, where none waits for another,
    they are asked to. What rank 0 prints is shown here as it comes. The first signal that asks this process to end is
    passed on to the ranks, which have `grace` seconds to save and leave, or as long as they need after Ctrl-C; the
    second ends them. Returns when all ranks have succeeded, whether a signal came too late to interrupt them.

    Raises:
        UserError: a rank found something that the user can mend.
        JobInterruptedError: the ranks were asked to leave, by this process or directly.
        JobError: a rank failed; the others were ended.
    """
    folder.mkdir(parents=True)
    # Not on the disk of the run: torch ends a process for a rendezvous that it cannot write to.
    meeting = Path(tempfile.mkdtemp(prefix="rendezvous-"))
    rendezvous = meeting / "rendezvous"
    outside = {**os.environ, GRACE: str(grace), APART: str(int(apart))}
    executor = RankExecutor(folder, environment(cluster, outside, f"file://{rendezvous}"))
    executor.update_parameters(tasks_per_node=cluster.processes, timeout_min=FOR_EVER)
    with PassedOn() as signals:
        job = cast("LocalJob[None]", executor.submit(call))
        process = job._process
        assert process is not None
        logs = [
            FollowedLog(Path(job.task(0).paths.stdout), sys.stdout),
            FollowedLog(Path(job.task(0).paths.stderr), sys.stderr),
        ]
        try:
            while process.poll() is None:
                signals.pass_on(process)
                for log in logs:
                    log.show()
                time.sleep(0.05)
        finally:
            for log in logs:
                log.show()
            shutil.rmtree(meeting, ignore_errors=True)
    _judge(job, folder, cluster.processes, signals, apart)
    return bool(signals.received)


class PassedOn:
    """While it is entered, signals that ask this process to end are collected, and passed on when there is time."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._passed = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "PassedOn":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def pass_on(self, process: "subprocess.Popen[bytes]") -> None:
        """Send `process` an INT for every Ctrl-C and a TERM for every other signal that came; more than two say nothing
        new."""
        while self._passed < min(len(self.received), 2):
            number = self.received[self._passed]
            process.send_signal(number if number == signal.SIGINT else signal.SIGTERM)
            self._passed += 1

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)


def environment(cluster: ClusterConfig, outside: dict[str, str], meeting: str) -> dict[str, str]:
    """The environment of the ranks, from the one outside.

    submitit would hide every GPU unless told their number; here all that are visible outside stay visible, or the
    first `gpus_per_node` of them.
    """
    inside = {**outside, **cluster.environment, RENDEZVOUS: meeting, LAUNCHED: repr(time.time())}
    inside["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [inside.get("PYTHONPATH")])])
    visible = visible_gpus(cluster, outside)
    if visible is not None:
        inside["CUDA_VISIBLE_DEVICES"] = visible
    # gloo looks its own address up by the host's name, which on laptops often leads nowhere.
    if Path("/sys/class/net/lo").exists():
        inside.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return inside


def visible_gpus(cluster: ClusterConfig, outside: dict[str, str]) -> str | None:
    """CUDA_VISIBLE_DEVICES for the job; None leaves it as it is."""
    if cluster.gpus_per_node is None:
        return None
    devices = outside.get("CUDA_VISIBLE_DEVICES", ",".join(str(n) for n in range(cluster.gpus_per_node))).split(",")
    return ",".join(devices[: cluster.gpus_per_node])


def check_gpus(cluster: ClusterConfig, outside: dict[str, str]) -> None:
    """Raise a `UserError` if there are GPUs, but fewer than processes: no two of them can share one."""
    gpus = count_gpus(cluster, outside)
    if 0 < gpus < cluster.processes:
        raise UserError(
            f"this machine has {gpus} GPU{'s' * (gpus > 1)} for {cluster.processes} processes: set "
            f"cluster.processes={gpus}, or cluster.gpus_per_node=0 for the CPU"
        )


def count_gpus(cluster: ClusterConfig, outside: dict[str, str]) -> int:
    """How many GPUs the ranks will see; 0 where NVIDIA's driver shows none."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    installed = sum(line.startswith("GPU ") for line in listed.splitlines())
    visible = visible_gpus(cluster, outside)
    visible = outside.get("CUDA_VISIBLE_DEVICES") if visible is None else visible
    if visible is None:
        return installed
    # CUDA takes the devices before the first name that is none.
    named = takewhile(lambda name: name.strip() not in ("", "-1", "NoDevFiles"), visible.split(","))
    return min(installed, len(list(named)))


def fresh_folder(parent: Path, name: str) -> Path:
    """`<parent>/<name>.<k>` with the first k from 1 that nothing uses; it is not created."""
    number = 1
    while (parent / f"{name}.{number}").exists():
        number += 1
    return parent / f"{name}.{number}"


class FollowedLog:
    """A growing log file, copied line by line to a stream; submitit's own remarks are left out."""

    def __init__(self, path: Path, stream: TextIO) -> None:
        self.path, self._stream, self._position = path, stream, 0

    def show(self) -> None:
        """Copy the lines that were completed since the last call."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._position)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._position += len(whole)
        for line in whole.decode("utf-8", "replace").splitlines():
            if not SUBMITIT_LINE.match(line) and not line.startswith(INTERRUPTED_LINE):
                print(line, file=self._stream, flush=True)


def last_lines(path: Path) -> list[str]:
    """The end of a log without submitit's own remarks."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", errors="replace") as file:
        lines = (line.rstrip("\n") for line in file)
        return list(deque((line for line in lines if not line.startswith("submitit ")), SHOWN_LINES))


def _judge(job: "LocalJob[None]", folder: Path, processes: int, signals: PassedOn, apart: bool) -> None:
    end_file = folder / END_FILE
    if not end_file.exists():
        raise JobError(f"the ranks were ended from outside; their logs are in {folder}")
    codes: list[int | None] = read_json(end_file)
    if all(code == 0 for code in codes):
        return
    # Those without a code were ended by the controller.
    failed: list[tuple[int, int | None]] = [(rank, code) for rank, code in enumerate(codes) if code]
    failed = failed or [(codes.index(None), None)]
    # A user's mistake is the cause, then a rank that was killed; what the others say are consequences.
    rank, code = min(failed, key=lambda entry: (_consequence(entry[1]), entry[0]))
    lines = last_lines(Path(job.task(rank).paths.stderr))
    if code == MISTAKE and lines and lines[-1].startswith("error: "):
        said = lines[-1] in last_lines(Path(job.task(0).paths.stderr))  # and shown
        raise UserError("" if said else lines[-1].removeprefix("error: "))
    # Where the others were asked to leave because of this one, their leaving says nothing.
    if signals.received or any(each in INTERRUPTIONS for _, each in ([(rank, code)] if apart else failed)):
        told = [line for line in last_lines(Path(job.task(0).paths.stderr)) if line.startswith(INTERRUPTED_LINE)]
        raise JobInterruptedError(told[-1] if told else "interrupted", by_keyboard=signal.SIGINT in signals.received)
    if code is not None and code < 0:
        what = f"was killed by {signal.Signals(-code).name}"
    else:
        what = {
            None: "was ended",
            HUNG: "made no progress and was ended",
            TAKEN_OVER: "stopped since another process continues the run",
        }.get(code, f"ended with exit code {code}")
    ended = "" if processes == 1 else "; the other ranks were ended"
    tail = "" if rank == 0 or not lines else "\n".join(["; its last lines:", *(f"  {line}" for line in lines)])
    raise JobError(f"rank {rank} {what}{ended}; the same command continues; the logs are in {folder}{tail}")


def _consequence(code: int | None) -> int:
    """How far a rank's end is from the cause, by its exit code."""
    if code == MISTAKE:
        return 0
    if code is None:
        return 4
    if code == PEER_LOST or code in INTERRUPTIONS:
        return 3
    return 1 if code < 0 else 2
