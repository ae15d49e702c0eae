"""The commands of the README run as they are written; only the length of training is cut short."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
# What it says of a cluster is tried on one, in tests/slurm/test_readme.py.
TEXT = re.sub(r"## On a Slurm cluster\n.*?\n## ", "## ", README, flags=re.DOTALL)
MAPS = (ROOT / "docs" / "maps.md").read_text()
WATCHING = (ROOT / "docs" / "watching.md").read_text()
SHORT = ["stages.train.length=2 steps", "stages.train.validate_every=2 steps", "threads=1"]


def commands(text: str = TEXT) -> list[list[str]]:
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("python launch.py")]


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    trains = words[2].startswith("--") and "--dry-run" not in words
    arguments = [*words[2:], *(SHORT if trains else [])]
    return subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.mark.timeout(900)
def test_the_commands_of_the_readme_and_of_its_pages_do_the_whole_job(tmp_path: Path) -> None:
    written = [words for words in commands() if words[2] != "drill"]
    assert [words[2] for words in written[:2]] == ["world", "prepare"]
    assert len(written) == 15
    maps = commands(MAPS)
    assert len(maps) == 7
    watching = commands(WATCHING)
    assert [words[2] for words in watching] == ["watch", "status", "report", "report", "doctor", "plan", "plan"]
    for words in [*written, *maps, *watching]:
        done = run(words, tmp_path)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
        if "--dry-run" in words:
            assert "#SBATCH --requeue" in done.stdout
    score = json.loads((tmp_path / "score.json").read_text())
    assert set(score) >= {"score", "cities", "best_constant", "what_if"}
    assert set(next(iter(score["cities"].values()))) >= {"agl_r2", "vflow_r2", "score"}
    assert (tmp_path / "runs" / "first" / "weights" / "train" / "best.safetensors").exists()
    (image, *_) = sorted((tmp_path / "data" / "world" / "test").glob("*_RGB.tif"))
    name = image.name.removesuffix("_RGB.tif")
    for path in (
        f"predictions/first/{name}_AGL.tif",
        f"maps/first/{name}_LOOK.png",
        f"rectified/first/{name}_MASK.tif",
        f"looks/{name}_LOOK.png",
        f"clouds/first/{name}.laz",
        f"clouds/{name}.ply",
        "first-weights/model.safetensors",
        "first-model/first.onnx",
        "first.json",
        "first.html",
        "runs/first/report.html",
    ):
        assert (tmp_path / path).is_file(), path


def test_the_drill_of_the_readme_finds_the_same_bits(tmp_path: Path) -> None:
    (words,) = [words for words in commands() if words[2] == "drill"]
    done = run([*words, "--steps", "30"], tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    result = json.loads((tmp_path / "drill.json").read_text())
    assert result["identical"] is True
    assert result["interruptions"] == 3
    assert result["announced_steps_lost"] == 0
    assert "bit-identical" in done.stdout


@pytest.mark.parametrize(
    "folder", re.findall(r"`(cluster_configs/\S+\.yaml|agl_core/|jobs/|benchmarks/|\.ci/run)`", TEXT)
)
def test_what_the_readme_names_is_there(folder: str) -> None:
    assert (ROOT / folder).exists()


@pytest.mark.parametrize("target", re.findall(r"`?make (\w+)", TEXT))
def test_the_makefile_has_the_targets_of_the_readme(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
