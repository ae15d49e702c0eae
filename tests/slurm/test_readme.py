"""The README's way onto a cluster, as it is written, on a real Slurm; only the network and its training are small."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

from agl_core.files import read_json
from tests.slurm.minislurm import ROOT, MiniSlurm
from tests.slurm.tiny import CLUSTER, Workplace, write_yaml

SECTION = (ROOT / "README.md").read_text().split("## On a Slurm cluster")[1].split("\n## ")[0]
COMMANDS = re.findall(r"^python launch\.py (.*)$", SECTION, re.MULTILINE)
SMALL = {"efficientnet-b7": "tu-resnet10t"}


def words(line: str) -> list[str]:
    given = [SMALL.get(word, word) for word in shlex.split(line)]
    return [*given, "--recipe", "one.yaml", "--threads", "1"] if given[0].startswith("--") else given


def give(line: str, folder: Path, slurm: MiniSlurm) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), *words(line)], cwd=folder,
        env={**slurm.environment, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_five_lines_are_keys_of_a_cluster_configuration() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", SECTION, re.DOTALL)
    keys = [line.split(":")[0] for line in block.splitlines()]
    assert len(keys) == 5
    text = (ROOT / "cluster_configs" / "slurm.yaml").read_text()
    assert all(re.search(rf"^{key}:.*\(site\)", text, re.MULTILINE) for key in keys)


def test_a_newcomer_submits_looks_cancels_and_resumes(tmp_path: Path) -> None:
    verbs = [words(line)[0] for line in COMMANDS]
    assert verbs == ["--cluster", "--cluster", "status", "logs", "cancel", "resume", "logs"]
    workplace = Workplace(tmp_path)
    workplace.build()
    (tmp_path / "mydata").mkdir()
    for path in workplace.world.iterdir():
        if path != workplace.store:
            (tmp_path / "mydata" / path.name).symlink_to(path)
    write_yaml(tmp_path / "mysite.yaml", {**CLUSTER, "processes": 1, "sbatch": {}})
    with MiniSlurm(tmp_path / "slurm") as slurm:
        dry, submitted, status, _, cancelled, _, _ = (give(line, tmp_path, slurm) for line in COMMANDS)
        jobs = ["prepare", "train", "predict", "evaluate", "report"]
        for job in jobs:
            assert f"#SBATCH --job-name=first-{job}" in dry
            assert f"first/{job}: job" in submitted
        assert "first" in status
        assert "resume" in cancelled
        run = tmp_path / "runs" / "first"
        ids = read_json(run / "jobs" / "submitted.json")
        for job in ids.values():  # `logs --follow` ends with the work, a moment before Slurm knows of the last one
            slurm.wait(str(job), ["COMPLETED"])
        standing = json.loads(give("status first --json", tmp_path, slurm))
    assert standing
    assert (run / "report.html").read_text()
    assert set(read_json(run / "score.json")) >= {"score", "cities"}
    assert list((run / "predictions").glob("*_AGL.tif"))
