"""Bad input, end to end: one sentence that says what, where and what to do, exit code 2, and nothing half-written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from agl_core.data.tiles import write_agl, write_rgb, write_vflow
from agl_core.geometry import Pose
from agl_core.reporting.events import read_all
from jobs.runs import Run
from launch import main

SETTINGS = {
    "recipe": "demo",
    "encoder": "tu-resnet10t",
    "data": "data",
    "fold_by": "city",
    "folds": "2",
    "threads": "1",
    "stages.train.length": "1 step",
    "stages.train.crop": "64",
    "stages.train.batch": "2",
    "stages.train.micro_batch": "2",
}


def train(**changes: str) -> list[str]:
    """The command line of a tiny training run, with changes; `__` stands for a dot."""
    settings = {**SETTINGS, **{key.replace("__", "."): value for key, value in changes.items()}}
    return [f"{key}={value}" for key, value in settings.items()]


def write_tile(folder: Path, tile: str, split: str) -> None:
    generator = np.random.default_rng(len(tile))
    truth = folder / ("train" if split == "train" else "test_truth")
    for path in (truth, folder / split):
        path.mkdir(parents=True, exist_ok=True)
    write_rgb(folder / split / f"{tile}_RGB.tif", generator.integers(0, 255, (96, 96, 3)).astype(np.uint8))
    write_agl(truth / f"{tile}_AGL.tif", generator.integers(0, 2000, (96, 96)).astype(np.uint16), "cm")
    write_vflow(truth / f"{tile}_VFLOW.json", Pose(0.8, 1.0), "cm")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small data set `data`, prepared, and predictions `predicted` that are the truth."""
    root = tmp_path_factory.mktemp("good")
    train, test = [f"{city}_{n}" for city in ("AAA", "BBB") for n in range(3)], ["AAA_t", "BBB_t"]
    for tile in train:
        write_tile(root / "data", tile, "train")
    for tile in test:
        write_tile(root / "data", tile, "test")
    tables = {
        "geopose_train.csv": ["id,agl,json,rgb", *(f"{t},{t}_AGL.tif,{t}_VFLOW.json,{t}_RGB.tif" for t in train)],
        "geopose_test.csv": ["id,rgb", *(f"{t},{t}_RGB.tif" for t in test)],
        "metadata.csv": ["id,city,gsd", *(f"{t},{t[:3]},0.5" for t in train + test)],
    }
    for name, lines in tables.items():
        (root / "data" / name).write_text("\n".join(lines) + "\n")
    assert main(["prepare", "--data", str(root / "data"), "--workers", "1"]) == 0
    shutil.copytree(root / "data" / "test_truth", root / "predicted")
    return root


@pytest.fixture
def here(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the good folder, as the working directory."""
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refused(argv: list[str], capfd: pytest.CaptureFixture[str], folder: Path) -> str:
    """Run a command that must be refused; returns what it says."""
    before = listing(folder)
    capfd.readouterr()
    assert main(argv) == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") or said.lstrip().startswith("- "), said
    left = {name for name in listing(folder) - before if "__pycache__" not in name}
    assert not left, left
    return said


EVALUATE = ["evaluate", "--predictions", "predicted", "--truth", "data/test_truth", "--json", "new/score.json"]
COMMANDS = {
    "unknown encoder": (train(encoder="resnet19"), ["resnet19", "resnet18"]),
    "unknown cluster": (train(cluster="slurrm"), ["slurrm", "slurm", "debug"]),
    "unknown recipe": (["--recipe", "kbrod", "--data", "data"], ["kbrod", "kbrodt", "demo"]),
    "unknown key": (train(stages__train__optimizer__lrr="1"), ["lrr", "lr"]),
    "unknown option": ([*train(), "--enkoder", "resnet18"], ["enkoder", "encoder"]),
    "unknown stage": (train(stages__fine__length="1 step"), ["fine", "train"]),
    "wrong type": (train(fold="first"), ["fold", "first"]),
    "wrong length": (train(stages__train__length="long"), ["long", "N epochs"]),
    "neither store nor data": (train(store="absent", data="nowhere"), ["absent", "prepare", "nowhere"]),
    "two encoders, one of them unknown": (train(encoder="resnet18,resnet19"), ["resnet19", "resnet18"]),
    "a value twice": (train(fold="0,1,0"), ["fold", "0 twice"]),
    "one encoder's weights for two": (
        train(encoder="resnet18,resnet34", encoder_weights="w.safetensors"),
        ["w.safetensors", "one encoder"],
    ),
    "one prediction is no ensemble": (["ensemble", "--members", "predicted", "--out", "out"], ["two or more"]),
    "no run to report on": (["report", "--run", "nobody"], ["nobody", "none"]),
    "no such fold": (train(fold="7"), ["fold is 7", "0 to 1"]),
    "folds by place without places": (train(fold_by="place"), ["place", "metadata.csv"]),
    "half precision on a CPU": (train(precision="float16"), ["float16", "GPU"]),
    "no run to predict with": (["predict", "--run", "nobody", "--data", "data", "--out", "out"], ["nobody"]),
    "no data": (["prepare", "--data", "nowhere"], ["nowhere"]),
    "output is a file": (["world", "--out", "data/metadata.csv/world"], ["data/metadata.csv", "--out"]),
    "no truth": (["evaluate", "--predictions", "predicted", "--truth", "data/test"], ["data/test"]),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_a_wrong_command_is_answered_with_what_would_be_right(
    case: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv, expected = COMMANDS[case]
    said = refused(argv, capfd, here)
    assert all(word in said for word in expected), said


def overwrite(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)


SOURCES = {
    "missing image": (lambda: Path("data/train/AAA_0_RGB.tif").unlink(), ["AAA_0_RGB.tif"]),
    "corrupt image": (lambda: overwrite("data/train/AAA_0_RGB.tif", b"II*\0"), ["AAA_0_RGB.tif"]),
    "AGL of another size": (
        lambda: write_agl(Path("data/train/AAA_0_AGL.tif"), np.zeros((64, 96), np.uint16), "cm"),
        ["AAA_0", "64 x 96", "96 x 96"],
    ),
    "NaN scale": (
        lambda: overwrite("data/train/BBB_1_VFLOW.json", b'{"scale": NaN, "angle": 1.0}'),
        ["BBB_1_VFLOW.json", "scale"],
    ),
    "negative scale": (
        lambda: overwrite("data/train/BBB_1_VFLOW.json", b'{"scale": -0.1, "angle": 1.0}'),
        ["BBB_1_VFLOW.json", "scale"],
    ),
}


@pytest.mark.parametrize("case", SOURCES)
def test_a_bad_source_file_is_named_and_leaves_no_store_to_train_from(
    case: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    damage, expected = SOURCES[case]
    damage()
    assert main(["prepare", "--data", "data", "--store", "fresh", "--workers", "1"]) == 2
    said = capfd.readouterr().err
    assert all(word in said for word in expected), said
    assert "Traceback" not in said
    assert main(train(store="fresh", run="first")) == 2  # which would prepare it first
    said = capfd.readouterr().err
    assert all(word in said for word in expected), said
    assert not Run(Path("runs/first")).begun()
    assert {event["kind"] for event in read_all(Path("runs/first/events.jsonl"))} <= {"launch", "leave"}


def test_a_store_of_another_version_is_refused(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from agl_core.data.store import layout

    monkeypatch.setattr(layout, "VERSION", layout.VERSION + 1)
    said = refused(train(), capfd, here)
    assert f"version {layout.VERSION - 1}" in said
    assert "prepare" in said


def test_a_name_in_use_with_another_configuration_is_refused_and_a_refused_start_does_not_take_it(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    refused(train(run="first", fold_by="place"), capfd, here)
    assert main(train(run="first")) == 0
    said = refused(train(run="first", fold="1"), capfd, here)
    assert "first" in said
    assert "fold" in said
    assert main(train(run="first")) == 0


def test_a_city_that_the_model_does_not_know_is_refused(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(train(run="first")) == 0
    metadata = Path("data/metadata.csv")
    metadata.write_text(metadata.read_text().replace("BBB_t,BBB", "BBB_t,ZZZ"))
    said = refused(["predict", "--run", "first", "--data", "data", "--out", "out"], capfd, here)
    assert "ZZZ" in said
    assert "AAA, BBB" in said


PREDICTIONS = {
    "missing": lambda: Path("predicted/AAA_t_AGL.tif").unlink(),
    "no pose": lambda: Path("predicted/AAA_t_VFLOW.json").unlink(),
    "unreadable": lambda: overwrite("predicted/AAA_t_AGL.tif", b"II*\0"),
    "hole": lambda: write_agl(Path("predicted/AAA_t_AGL.tif"), np.full((96, 96), 65535, np.uint16), "cm"),
    "wrong size": lambda: write_agl(Path("predicted/AAA_t_AGL.tif"), np.zeros((96, 64), np.uint16), "cm"),
    "wrong pose": lambda: overwrite("predicted/AAA_t_VFLOW.json", b'{"scale": 1}'),
}


@pytest.mark.parametrize("case", PREDICTIONS)
def test_a_bad_prediction_is_not_scored(case: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    PREDICTIONS[case]()
    assert "AAA_t" in refused(EVALUATE, capfd, here)


def test_the_good_folder_is_good(here: Path) -> None:
    assert main(EVALUATE) == 0
    score = json.loads(Path("new/score.json").read_text())
    assert score["score"] > 0.9999
