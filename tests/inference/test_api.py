"""The Python API: a run's folder in, arrays out, the same numbers as those of the verb `predict`."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import agl_core.inference
from agl_core.config import ModelConfig, PredictConfig
from agl_core.data.tiles import read_agl, read_vflow, write_rgb
from agl_core.errors import UserError
from agl_core.inference import load_model
from agl_core.inference.predict import predict
from agl_core.model.network import GeoposeNet
from agl_core.model.weights import save_weights

ROOT = Path(__file__).parents[2]
RGB = np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(np.uint8)
SQUARE = RGB[:64, :64]
SMALL = ModelConfig(decoder_channels=[16, 16, 8, 8, 8])


def write_weights(path, seed, cities=("ARG", "DUL", "JAX"), **config):
    torch.manual_seed(seed)
    model = GeoposeNet("tu-resnet10t", list(cities), SMALL)
    with torch.no_grad():  # heights of some metres
        for parameter in model.agl_head.parameters():
            parameter *= 30
            parameter += 30 * (parameter.ndim == 1)
    save_weights(path, model, {"config": {"max_agl": {"default": 200.0}, **config}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """runs/first and runs/second with weights, runs/both, their ensemble, and an image of a data set."""
    folder = tmp_path_factory.mktemp("api")
    for seed, name in enumerate(("first", "second")):
        run = folder / "runs" / name
        (run / "weights" / "finetune").mkdir(parents=True)
        (run / "config.yaml").write_text("stages:\n  finetune: {crop: 64}\n")
        write_weights(run / "weights" / "finetune" / "best.safetensors", seed)
    (folder / "runs" / "both").mkdir()
    (folder / "runs" / "both" / "ensemble.yaml").write_text("runs: [first, second]\n")
    (folder / "data" / "world" / "test").mkdir(parents=True)
    write_rgb(folder / "data" / "world" / "test" / "ARG_0_RGB.tif", RGB)
    (folder / "data" / "world" / "geopose_test.csv").write_text("id,rgb\nARG_0,ARG_0_RGB.tif\n")
    (folder / "data" / "world" / "metadata.csv").write_text("id,city,gsd\nARG_0,ARG,0.5\n")
    return folder


def test_a_run_predicts_in_memory_what_the_verb_writes(folder, tmp_path):
    predict(PredictConfig(run="first", runs=str(folder / "runs"), data=str(folder / "data/world"), out=str(tmp_path)))
    prediction = load_model(folder / "runs" / "first").predict(RGB, gsd=0.5, city="ARG")
    np.testing.assert_array_equal(prediction.agl_cm, read_agl(tmp_path / "ARG_0_AGL.tif", "cm"))
    assert prediction.agl.dtype == np.float32
    np.testing.assert_allclose(prediction.agl, prediction.agl_cm / 100, rtol=1e-6)
    written = read_vflow(tmp_path / "ARG_0_VFLOW.json", "cm")
    assert prediction.pose.scale == pytest.approx(written.scale, rel=1e-9)
    assert prediction.pose.angle == pytest.approx(written.angle, rel=1e-9)
    assert prediction.spread_cm is None


def test_runs_ensembles_and_files_predict_together(folder):
    file = folder / "runs" / "second" / "weights" / "finetune" / "best.safetensors"
    pairs = [
        load_model([folder / "runs" / "first", file], uncertainty=True),
        load_model(str(folder / "runs" / "both"), uncertainty=True),
        load_model([str(file), folder / "runs" / "first"], member_weights=(2, 2), uncertainty=True),
    ]
    answers = [model.predict(RGB, 0.5, "JAX") for model in pairs]
    for other in answers[1:]:
        np.testing.assert_array_equal(other.agl_cm, answers[0].agl_cm)
        np.testing.assert_array_equal(other.spread_cm, answers[0].spread_cm)
        assert other.pose == answers[0].pose
    alone = [load_model(source).predict(RGB, 0.5, "JAX") for source in (folder / "runs" / "first", file)]
    above = np.all([one.agl > 0 for one in alone], axis=0)  # below, heights are clipped after they are joined
    assert above.mean() > 0.9
    mean = np.mean([one.agl for one in alone], axis=0)
    np.testing.assert_allclose(answers[0].agl[above], mean[above], atol=0.011)
    assert answers[0].spread_cm.any()


def test_keywords_are_those_of_the_verb(folder):
    plain = load_model(folder / "runs" / "first")
    turned = load_model(folder / "runs" / "first", "finetune/best", tta="d4", precision="float32", device="cpu")
    factor = load_model(folder / "runs" / "first", height_factor={"ARG": 0.5}, max_agl={"default": 2.0})
    heights = plain.predict(RGB, 0.5, "ARG").agl
    assert not np.array_equal(turned.predict(RGB, 0.5, "ARG").agl, heights)
    np.testing.assert_allclose(factor.predict(RGB, 0.5, "ARG").agl, np.clip(heights * 0.5, 0, 2), atol=0.011)
    mirrored, straight = (turned.predict(np.ascontiguousarray(rgb), 0.5, "ARG") for rgb in (SQUARE[::-1], SQUARE))
    np.testing.assert_allclose(mirrored.agl[::-1], straight.agl, atol=0.011)


def test_members_of_different_test_time_augmentation_each_have_their_own(tmp_path):
    for name, tta in (("flips", "flips"), ("plain", "none")):
        write_weights(tmp_path / f"{name}.safetensors", 0, tta=tta)
    model = load_model([tmp_path / "flips.safetensors", tmp_path / "plain.safetensors"])
    assert [len(network.views) for network in model.predictor.networks] == [4, 1]


def test_the_only_city_need_not_be_told(tmp_path):
    write_weights(tmp_path / "one.safetensors", 0, cities=["ARG"])
    model = load_model(tmp_path / "one.safetensors")
    assert model.cities == ("ARG",)
    assert model.predict(RGB, 0.5).pose == model.predict(RGB, 0.5, "ARG").pose


def test_what_cannot_predict_is_refused_in_one_sentence(folder, tmp_path):
    model = load_model(folder / "runs" / "first")
    write_weights(tmp_path / "other.safetensors", 0, cities=["ATL", "OMA"])
    write_weights(tmp_path / "overlapping.safetensors", 0, cities=["JAX", "OMA"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn.safetensors").write_bytes(b"nothing")
    both = load_model([folder / "runs" / "first", tmp_path / "overlapping.safetensors"])
    assert both.cities == ("JAX",)
    for call, words in (
        (lambda: model.predict(RGB, 0.5), "wants to know the city: give one of ARG, DUL, JAX"),
        (lambda: model.predict(RGB, 0.5, "OMA"), "does not know city 'OMA'"),
        (lambda: both.predict(RGB, 0.5, "ARG"), r"overlapping.safetensors: the model does not know city 'ARG'"),
        (lambda: model.predict(RGB, 0.0, "ARG"), "gsd is 0"),
        (lambda: model.predict(RGB, float("nan"), "ARG"), "gsd is nan"),
        (lambda: load_model([]), "nothing to load"),
        (lambda: load_model(tmp_path / "empty"), "empty is no run"),
        (lambda: load_model(tmp_path / "gone.safetensors"), "gone.safetensors do not exist"),
        (lambda: load_model(tmp_path / "torn.safetensors"), "not a readable safetensors file"),
        (lambda: load_model(folder / "runs" / "first", "last"), "has no weights 'last' yet"),
        (lambda: load_model(folder / "runs" / "first", tta="d5"), "tta"),
        (lambda: load_model(folder / "runs" / "first", max_agl={"ARGG": 1}), "max_agl.ARGG is given, but neither"),
        (lambda: load_model(folder / "runs" / "first", height_factor={"XYZ": 9}), "height_factor.XYZ is given"),
        (lambda: load_model(folder / "runs" / "first", member_weights=(1, 2)), "2 but there is 1 member"),
        (
            lambda: load_model([folder / "runs" / "first", tmp_path / "other.safetensors"]),
            r"no city in common, ARG, DUL, JAX \(first, finetune/best\); ATL, OMA \(.*other.safetensors\)",
        ),
    ):
        with pytest.raises(UserError, match=words) as refusal:
            call()
        assert "\n" not in str(refusal.value)


def examples():
    """The lines of Python that are shown to users."""
    yield "docstring", re.sub(r"(?m)^    ", "", agl_core.inference.__doc__.partition(":\n")[2])
    blocks = re.findall(r"(?s)```python\n(.*?)```", (ROOT / "README.md").read_text())
    yield "README", "".join(block for block in blocks if "load_model" in block)


@pytest.mark.parametrize(("where", "lines"), list(examples()), ids=lambda value: value if len(value) < 10 else "")
def test_what_users_are_shown_runs(folder, monkeypatch, where, lines):
    assert "load_model(" in lines, where
    monkeypatch.chdir(folder)
    for path in re.findall(r'read_rgb\("(.+?)"\)', lines):
        write_rgb(folder / path, RGB)
    names = {"rgb": RGB}
    exec(lines, names)
    assert names["prediction"].agl.shape == RGB.shape[:2]


def test_the_package_does_not_wait_for_torch():
    heavy = "torch", "numpy", "rasterio"
    code = f"import sys, agl_core.inference; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="load_modle"):
        agl_core.inference.load_modle  # noqa: B018
