"""Predictions that are killed, shared, interrupted: the files are those of one that was left alone."""

import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from agl_core.config import PredictConfig
from agl_core.data.tiles import read_agl, write_rgb
from agl_core.durable.exits import InterruptedRunError
from agl_core.durable.guard import Guard
from agl_core.errors import UserError
from agl_core.geometry import Pose
from agl_core.inference import pipeline
from agl_core.inference import predict as predict_module
from agl_core.inference.archive import pack
from agl_core.inference.predict import predict
from agl_core.inference.predictor import Prediction
from agl_core.inference.sharing import CLAIMS, Claims, joined
from agl_core.inference.writer import PredictionWriter
from tests.inference.fakes import SurroundingsNet

KILLS = 20
IMAGES = 10
# Reported by Python itself before it does them, in any thread: what a kill can come between.
STEPS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "fcntl.flock")


class SeveralSizes:
    """Small images, large ones and scenes, though none has many pixels."""

    def __enter__(self):
        self.before = pipeline.LARGE, pipeline.SCENE
        pipeline.LARGE, pipeline.SCENE = 50 * 50, 90 * 90

    def __exit__(self, *error):
        pipeline.LARGE, pipeline.SCENE = self.before


@pytest.fixture(scope="module")
def server():
    """Starts processes that need not import everything: the fork of one that has."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["agl_core.reporting.pictures.look", "tests.inference.test_durability"])
    return context


@pytest.fixture
def config(tmp_path):
    """Images of three kinds, some of them georeferenced or with holes, for all files that can be written."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(IMAGES):
        side = {2: 60, 5: 100, 8: 110}.get(number, 30)
        write_rgb(folder / f"{number:02}.tif", rng.integers(0, 250, (side, side + 7, 3)).astype(np.uint8))
    weights = tmp_path / "w.safetensors"
    weights.write_text("")
    return PredictConfig(
        weights=str(weights), images=str(folder), gsd=0.5, city="A", out=str(tmp_path / "out"), tta="d4",
        uncertainty=True, quicklook=True, format="cog", window=64, overlap=32, threads=1,
    )  # fmt: skip


def load_members(members):
    return [SurroundingsNet() for _ in members], [{"config": {"max_agl": {"default": 200.0}}} for _ in members]


@pytest.fixture(autouse=True)
def _small_network(monkeypatch):
    monkeypatch.setattr(predict_module, "load_members", load_members)


def in_child(config, strike=None, barrier=None, log=None):
    """Predict as a process of its own. strike: ends by KILL before it takes that many steps in its out folder. barrier:
    waited for before the first image. log: file that gets the name of every image that this process begins."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    predict_module.load_members = load_members
    torch.set_num_threads(1)
    if strike is not None:
        _strike_at(strike, config.out)
    begin = PredictionWriter._begin

    def begin_logged(self, image):
        if log is not None:
            if not Path(log).exists() and barrier is not None:
                barrier.wait(60)
            with open(log, "a") as file:
                file.write(f"{image}\n")
        begin(self, image)

    PredictionWriter._begin = begin_logged
    with SeveralSizes():
        predict(config)


def _strike_at(strike, out):
    left = strike
    lock = threading.Lock()

    def count(event, arguments):
        nonlocal left
        if event not in STEPS or (event != "fcntl.flock" and not str(arguments[0]).startswith(out)):
            return
        with lock:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.name != CLAIMS}


def left_alone(config):
    whole = replace(config, out=f"{config.out}-alone")
    with SeveralSizes():
        predict(whole)
    return content(whole.out)


def test_a_prediction_killed_many_times_ends_with_the_same_bytes(config, server):
    draw = random.Random(2)
    killed = 0
    for _ in range(KILLS):
        child = server.Process(target=in_child, args=(config, draw.randint(1, 70)))
        child.start()
        child.join()
        killed += child.exitcode == -signal.SIGKILL
    half = os.listdir(config.out)
    with SeveralSizes():
        predict(config)
    assert CLAIMS not in os.listdir(config.out)
    assert content(config.out) == left_alone(config)
    assert killed == KILLS
    assert 3 < sum(name.endswith("_VFLOW.json") for name in half) < IMAGES  # it came on all the same
    assert any(name.endswith(".part.tif") for name in half)
    assert CLAIMS in half


def test_two_processes_share_the_images_and_do_none_twice(config, server, tmp_path):
    barrier, logs = server.Barrier(2), [tmp_path / "one.log", tmp_path / "two.log"]
    children = [server.Process(target=in_child, args=(config, None, barrier, log)) for log in logs]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    begun = [log.read_text().split() for log in logs]
    assert all(begun)
    assert sorted(begun[0] + begun[1]) == [f"{number:02}" for number in range(IMAGES)]
    assert content(config.out) == left_alone(config)


def test_what_another_finishes_just_before_it_is_claimed_is_not_done_again(config, monkeypatch):
    take, begun = Claims.take, []
    other = PredictionWriter(Path(config.out), "m", "cog", spread=True, quicklook=True)
    prediction = Prediction(np.zeros((4, 4), np.uint16), Pose(1.0, 1.0), np.zeros((4, 4), np.uint16))

    def take_late(self, name):
        if name == "03" and not other.finished(name):
            other.write(name, prediction)
        begun.append(name)
        return take(self, name)

    monkeypatch.setattr(Claims, "take", take_late)
    with SeveralSizes():
        assert predict(config) == IMAGES
    assert "03" in begun
    assert read_agl(Path(config.out) / "03_AGL.tif", "m").shape == (4, 4)


def test_what_a_killed_process_was_at_is_done_by_the_one_that_waits(config, server, tmp_path):
    never, log = server.Barrier(2), tmp_path / "log"
    child = server.Process(target=in_child, args=(config, None, never, log))
    child.start()
    ends = []

    def wait_and_end():
        # All is done but what the other process has claimed: the one that it is at and those which it reads ahead.
        while len(list(Path(config.out).glob("*_VFLOW.json"))) < IMAGES - 4:
            time.sleep(0.01)
        ends.append(child.is_alive())
        child.kill()

    while not Path(config.out, CLAIMS, "00.lock").exists():
        time.sleep(0.01)
    ending = threading.Thread(target=wait_and_end)
    ending.start()
    with SeveralSizes():
        assert predict(config) == IMAGES
    ending.join()
    child.join()
    assert ends == [True]
    assert content(config.out) == left_alone(config)


def test_other_settings_are_refused_while_a_folder_is_in_use(config):
    with SeveralSizes():
        predict(config)
        before = content(config.out)
        with joined(Path(config.out), bool):
            with pytest.raises(UserError, match="is in use by a prediction with other settings"):
                predict(replace(config, unit="cm"))
            assert predict(config) == IMAGES
    assert content(config.out) == before


class WarningGuard(Guard):
    """Asks to leave at the n-th look."""

    def __init__(self, looks):
        super().__init__()
        self.looks = looks

    @property
    def requested(self):
        self.looks -= 1
        return self.looks < 0

    @property
    def signal(self):
        return "TERM"


def test_a_warning_is_heard_between_the_windows_of_a_scene(config):
    config = replace(config, images=str(Path(config.images) / "08.tif"))
    with SeveralSizes():
        with pytest.raises(InterruptedRunError, match="interrupted by TERM; 0 of 1 images are predicted"):
            predict(config, WarningGuard(8))
        assert sorted(content(config.out)) == ["about.json"]
        assert predict(config, WarningGuard(1000)) == 1
    assert content(config.out) == left_alone(config)


def test_the_archive_comes_last_and_only_of_everything(config, tmp_path):
    config = replace(config, archive=str(tmp_path / "s.tar.gz"), unit="cm", format="tif")
    with SeveralSizes():
        with pytest.raises(InterruptedRunError):
            predict(config, WarningGuard(20))
        assert not (tmp_path / "s.tar.gz").exists()
        predict(config)
    pack(Path(config.out), [f"{number:02}" for number in range(IMAGES)], tmp_path / "again.tar.gz")
    assert (tmp_path / "s.tar.gz").read_bytes() == (tmp_path / "again.tar.gz").read_bytes()


def test_only_the_first_of_several_reports(config, capsys):
    for rank, lines in ((1, 0), (0, 1)):
        predict(config, rank=rank, ranks=2)
        assert len(capsys.readouterr().out.splitlines()) == lines
