"""A prediction that two ranks share, on a real Slurm: interrupted and with a rank killed, it ends with the files of an
undisturbed one."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from agl_core.config import ModelConfig, PredictConfig, WorldConfig
from agl_core.data.catalog import cities, read_catalog
from agl_core.files import read_json
from agl_core.model.network import GeoposeNet
from agl_core.model.weights import save_weights
from agl_core.world.dataset import render_world
from jobs.history import incarnations, read_history
from jobs.predictions import predict
from jobs.runs import Run
from tests.slurm.judge import spoken
from tests.slurm.minislurm import ROOT, MiniSlurm
from tests.slurm.strikes import Blow, preempt
from tests.slurm.tiny import CLUSTER, write_yaml
from tests.slurm.watch import Watch, freeze, send, thaw

PATIENCE = 120.0
WORDS = ["predict", "--weights", "w.safetensors", "--data", "world", "--split", "train", "--tta", "all"]


def launch(folder: Path, slurm: MiniSlurm, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), *words], cwd=folder,
        env={**slurm.environment, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def stand_still(watch: Watch, out: Path, count: int) -> list[int]:
    """The ranks, as soon as so many images are predicted: they stand still from then on."""
    deadline = time.monotonic() + PATIENCE
    while len(list(out.glob("*_VFLOW.json"))) < count:
        assert time.monotonic() < deadline, watch.facts()
        time.sleep(0.002)
    freeze(family := watch.family())
    assert len(watch.ranks()) == 2
    return family


def test_a_prediction_that_is_interrupted_ends_with_the_files_of_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    render_world(WorldConfig(out=str(tmp_path / "world"), tiles=24, size=96, seed=0))
    torch.manual_seed(0)
    images = read_catalog(tmp_path / "world", "train")
    model = GeoposeNet("tu-resnet10t", cities(images), ModelConfig(decoder_channels=[16, 16, 8, 8, 8]), "none")
    save_weights(tmp_path / "w.safetensors", model, {})
    write_yaml(tmp_path / "site.yaml", {**CLUSTER, "processes": 2})
    run, out = Run(tmp_path / "runs" / "predict-out"), tmp_path / "out"
    with MiniSlurm(tmp_path / "slurm") as slurm, ExitStack() as after:
        done = launch(tmp_path, slurm, *WORDS, "--out", "out", "--cluster", "site.yaml")
        assert done.returncode == 0, done.stderr
        id = str(read_json(run.submitted)["predict"])
        watch = Watch(slurm, run, "predict", id)
        preempt(Blow(watch, ROOT, after, stand_still(watch, out, 2)))
        there = len(files(out)) // 2
        again = launch(tmp_path, slurm, *WORDS, "--out", "out", "--cluster", "site.yaml")
        assert again.returncode == 2
        assert f"has jobs in the queue ({id})" in again.stderr
        slurm.until(lambda: watch.facts()["Restarts"] == "1", lambda: f"it does not come back: {watch.facts()}")
        slurm.wait(id, ["RUNNING"], 1, PATIENCE)
        frozen = stand_still(watch, out, there + 3)
        send(watch.ranks()[:1], signal.SIGKILL)
        thaw(frozen)
        slurm.wait(id, ["COMPLETED"], 1, PATIENCE)
        standing = json.loads(launch(tmp_path, slurm, "status", "predict-out", "--json").stdout)
        logs = launch(tmp_path, slurm, "logs", "predict-out").stdout
    assert [spoken(each) for each in incarnations(read_history(run.history), "predict")] == [
        "interrupted, preempted, requeue", "crashed, warned, again", "done, done",
    ]  # fmt: skip
    assert standing[0]["state"] == "done"
    assert f"{len(images)} images of {tmp_path}/world (train) predicted" in logs.splitlines()[-1]
    assert read_json(run.stage_record("predict"))["images"] == len(images)
    monkeypatch.chdir(tmp_path)
    weights = str(tmp_path / "w.safetensors")  # about.json says of which
    predict(PredictConfig(weights=weights, data="world", split="train", tta="all", out="whole", threads=1))
    whole = files(tmp_path / "whole")
    assert len(whole) == 2 * len(images) + 1
    assert {name: whole[name] == content for name, content in files(out).items()} == dict.fromkeys(whole, True)
    assert not [name for name in os.listdir(out) if name.startswith(".")]
