"""What a user sees who interrupts a run and gives the same command again; the real command, on the CPU."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.snapshot import ROOT

SETTINGS = [
    "recipe=demo", "encoder=tu-resnet10t", "folds=4", "fold_by=city", "threads=1", "run=first", "cluster=debug",
    "stages.train.length=500 steps", "stages.train.crop=64", "stages.train.batch=2", "stages.train.micro_batch=2",
    "stages.train.validate_every=500 steps", "checkpoint.every=3 steps",
]  # fmt: skip


class Command:
    """launch.py, training a run in `folder` on the store `store`."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.folder = folder
        self.arguments = [*SETTINGS, f"store={store}", f"runs={folder}"]
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "launch.py"), *self.arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def wait_for_steps(self, count: int) -> None:
        """Until so many more steps are done than before."""
        chain = self.folder / "first" / "chain"
        before = self._steps(chain) if chain.exists() else 0
        end = time.monotonic() + 120
        while self._steps(chain) < before + count:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end
            time.sleep(0.01)

    def end(self) -> tuple[int, str]:
        """Exit code and what was said."""
        said = self.process.communicate(timeout=120)[1]
        return self.process.returncode, said

    @staticmethod
    def _steps(chain: Path) -> int:
        return sum(path.read_text().count('"samples"') for path in chain.glob("*.jsonl"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR2, 75)])
def test_a_warned_run_is_saved_and_the_command_that_continues_it_is_said(
    tiny_store: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    command = Command(tmp_path, tiny_store)
    command.wait_for_steps(5)
    command.process.send_signal(number)
    ended, said = command.end()
    assert ended == code
    assert ("Ctrl-C once more ends at once" in said) == (number == signal.SIGINT)
    found = re.search(
        rf"interrupted by {number.name[3:]}; step (\d+) is saved; to continue: python launch.py (.*)", said
    )
    assert found, said
    assert found[2].replace("'", "") == " ".join(command.arguments)
    again = Command(tmp_path, tiny_store)
    again.wait_for_steps(1)
    again.process.send_signal(signal.SIGINT)
    assert f"train: continuing from step {found[1]} of 500 steps; 2 crops" in again.end()[1]


def test_ctrl_c_twice_ends_at_once_and_a_killed_run_says_from_where_it_goes_on_and_what_it_skipped(
    tiny_store: Path, tmp_path: Path
) -> None:
    command = Command(tmp_path, tiny_store)
    command.wait_for_steps(8)
    command.process.send_signal(signal.SIGSTOP)  # so that both presses are there when it looks
    command.process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    command.process.send_signal(signal.SIGCONT)
    command.process.send_signal(signal.SIGINT)
    code, said = command.end()
    assert code == 130
    assert "Traceback" not in said
    killed = Command(tmp_path, tiny_store)
    killed.wait_for_steps(8)
    killed.process.send_signal(signal.SIGKILL)
    killed.end()
    older, newest = sorted((tmp_path / "first" / "checkpoints" / "train").glob("step_*"))[-2:]
    (newest / "model.safetensors").write_bytes(b"")
    again = Command(tmp_path, tiny_store)
    again.wait_for_steps(1)
    again.process.send_signal(signal.SIGINT)
    step = int(older.name.removeprefix("step_"))
    assert f"train: continuing from step {step} of 500 steps (skipped checkpoint {newest.name}: " in again.end()[1]
