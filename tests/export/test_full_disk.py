"""What cannot be written is told in one sentence that names it, and nothing half-written stays."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from agl_core.data.tiles import write_agl, write_rgb, write_vflow
from agl_core.geometry import Pose

ROOT = Path(__file__).parents[2]
LEAST = 30_000  # bytes that no file may exceed; those that are written would


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    folder, rng = tmp_path / "truth", np.random.default_rng(0)
    folder.mkdir()
    write_agl(folder / "x_AGL.tif", rng.integers(0, 3000, (300, 300)).astype(np.uint16), "cm")
    write_rgb(folder / "x_RGB.tif", rng.integers(0, 255, (300, 300, 3)).astype(np.uint8))
    write_vflow(folder / "x_VFLOW.json", Pose(0.5, 1.0), "cm")
    (folder / "metadata.csv").write_text("id,city,gsd\nx,A,0.5\n")
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ["rectify"],
        ["rectify", "--format", "cog"],
        ["quicklook"],
        ["export", "points"],
        ["export", "points", "--format", "las"],
        ["export", "points", "--format", "ply"],
    ],
    ids=" ".join,
)
def test_a_disk_that_takes_no_more_is_named_and_nothing_half_written_stays(
    truth: Path, tmp_path: Path, words: list[str]
) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), *words, "--predictions", str(truth), "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LEAST, LEAST)),
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "cannot be read" not in done.stderr  # the input is not to blame
    assert str(out) in done.stderr
    assert any(remedy in done.stderr for remedy in ("choose another folder", "choose a folder", "has room"))
    assert [path.name for path in out.iterdir() if path.name != "about.json"] == []
