"""The cluster of the tests is one, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.slurm.keeper import members
from tests.slurm.miniconf import MiniSettings
from tests.slurm.minislurm import ROOT, MiniSlurm

SLEEPER = "#!/bin/sh\nexec srun sleep 600\n"

HOLDER = """
import sys, time
from pathlib import Path
from tests.slurm.miniconf import MiniSettings
from tests.slurm.minislurm import MiniSlurm
with MiniSlurm(Path(sys.argv[1]), MiniSettings(nodes=1)) as slurm:
    job = slurm.submit("#!/bin/sh\\nexec srun sleep 600\\n")
    slurm.until(lambda: len(slurm.processes(job)) > 2, lambda: "it does not start")
    print("there", flush=True)
    time.sleep(600)
"""


def test_a_job_is_preempted_and_comes_back(tmp_path: Path) -> None:
    with MiniSlurm(tmp_path / "slurm", MiniSettings(nodes=2, grace=2, kill_wait=2)) as slurm:
        job = slurm.submit("#!/bin/sh\ntrap 'scontrol requeue $SLURM_JOB_ID; exit 1' TERM\nsleep 600 & wait\n", "-wn1")
        slurm.wait(job, ["RUNNING"], restarts=0)
        assert slurm.nodes_of(job) == ["n1"]
        slurm.until(lambda: slurm.processes(job), lambda: "nothing of the job is there")
        slurm.preempt("n1")
        slurm.wait(job, ["RUNNING"], restarts=1)
        conf = str(slurm.conf)
        assert members(conf)
    assert members(conf) == {}


def test_everything_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    folder = tmp_path / "slurm"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"there\n"
    assert len(members(str(folder / "slurm.conf"))) > 4
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    while members(str(folder / "slurm.conf")):  # the time limit of the test is that of the wait
        time.sleep(0.05)
