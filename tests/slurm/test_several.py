"""Several runs in one command on a real Slurm: one store, a chain for each, their ensemble, and nothing twice."""

import os
import subprocess
import sys
import time
from pathlib import Path

from agl_core.files import read_json
from tests.slurm.minislurm import FINAL, ROOT, MiniSlurm
from tests.slurm.tiny import CLUSTER, Workplace, write_yaml

PATIENCE = 400.0  # seconds for all jobs to end
RUNS = ["x-tu-test_efficientnet-fold0", "x-tu-test_efficientnet-fold1"]
CHAIN = ["train", "predict", "evaluate", "report"]


def launch(folder: Path, slurm: MiniSlurm) -> "subprocess.CompletedProcess[str]":
    words = ["--cluster", "mysite.yaml", "--recipe", "one.yaml", "--data", "mydata", "--run", "x", "--fold", "0,1"]
    return subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), *words, "stages.train.length=8 steps"], cwd=folder,
        env={**slurm.environment, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def submitted(folder: Path) -> dict[str, str]:
    """The ids of all jobs by run and name."""
    return {
        f"{path.parent.parent.name}/{job}": str(id)
        for path in folder.glob("runs/*/jobs/submitted.json")
        for job, id in read_json(path).items()
    }


def test_several_runs_share_a_store_and_end_in_their_ensemble(tmp_path: Path) -> None:
    workplace = Workplace(tmp_path)
    workplace.build()
    (tmp_path / "mydata").mkdir()
    for path in workplace.world.iterdir():
        if path != workplace.store:
            os.symlink(path, tmp_path / "mydata" / path.name)
    write_yaml(tmp_path / "mysite.yaml", {**CLUSTER, "sbatch": {}})
    with MiniSlurm(tmp_path / "slurm") as slurm:
        done = launch(tmp_path, slurm)
        assert done.returncode == 0, done.stdout + done.stderr
        ids = submitted(tmp_path)
        expected = [f"{RUNS[0]}/prepare", *(f"{run}/{job}" for run in RUNS for job in CHAIN)]
        assert sorted(ids) == sorted([*expected, *(f"x-ensemble/{job}" for job in ("ensemble", *CHAIN[2:]))])
        again = launch(tmp_path, slurm)
        assert again.returncode == 2
        assert f"run {RUNS[0]} has jobs in the queue" in again.stderr
        assert ids[f"{RUNS[0]}/train"] in again.stderr
        assert submitted(tmp_path) == ids
        deadline = time.monotonic() + PATIENCE
        while any(slurm.job(id)["JobState"] not in FINAL for id in ids.values()) and time.monotonic() < deadline:
            time.sleep(0.5)
        facts = {key: slurm.job(id) for key, id in ids.items()}
        assert {key: job["JobState"] for key, job in facts.items()} == dict.fromkeys(ids, "COMPLETED")
        ends = {key: job["EndTime"] for key, job in facts.items()}
        for run in RUNS:
            assert facts[f"{run}/train"]["StartTime"] >= ends[f"{RUNS[0]}/prepare"]
            assert facts["x-ensemble/ensemble"]["StartTime"] >= ends[f"{run}/predict"]
        last = launch(tmp_path, slurm)
        assert last.returncode == 0, last.stderr
        assert last.stdout.count("nothing to do") == 3
        assert submitted(tmp_path) == ids
    assert "score" in read_json(tmp_path / "runs" / "x-ensemble" / "score.json")
    assert "<title>Ensemble x-ensemble</title>" in (tmp_path / "runs" / "x-ensemble" / "report.html").read_text()
