"""The network for other programs answers as the original, or is not written."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from agl_core.config import ModelConfig
from agl_core.errors import UserError
from agl_core.export import portable
from agl_core.export.portable import CHECKED, TOLERANCE, Portable, difference, export_model, load, traced
from agl_core.model.network import GeoposeNet
from agl_core.model.weights import save_weights

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime", "onnxscript")),
    reason="ONNX is not installed",
)


def question(height, width, city=1, gsd=0.4, seed=5):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8, generator=generator)
    return image, torch.tensor([city]), torch.tensor([gsd])


def original(network, image, city, gsd):
    with torch.no_grad():
        output = network(image.permute(0, 3, 1, 2), city, gsd)
    return output.agl.numpy(), output.pose.numpy()


def assert_same(run, network, *asked):
    for found, expected in zip(run(*asked), original(network, *asked), strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-4)


@needs_onnx
def test_an_onnx_file_answers_as_the_network_for_images_of_any_size(network, asked, capsys):
    import onnx

    config = asked("model")
    path, about = export_model(config)
    assert [one.name for one in (path, about)] == ["first.onnx", "first.json"]
    assert sorted(one.name for one in Path(config.out).iterdir()) == ["first.json", "first.onnx"]
    run = load(path)
    for height, width in ((64, 64), (96, 128), (320, 64), (64, 352)):
        assert_same(run, network, *question(height, width))
    # City and gsd are really inputs.
    first, other = run(*question(64, 96, city=0))[0], run(*question(64, 96, city=1))[0]
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(run(*question(64, 96, gsd=0.9))[0] - other).max() > 1e-4
    model = onnx.load(path)
    onnx.checker.check_model(model)
    sides = {
        value.name: [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert sides == {
        "image": [1, "height", "width", 3], "city": [1], "gsd": [1], "agl": [1, "height", "width"], "pose": [1, 3]
    }  # fmt: skip
    facts = json.loads(about.read_text())
    assert {entry.key: json.loads(entry.value) for entry in model.metadata_props} == facts
    assert facts["cities"] == ["ARG", "JAX"]
    assert facts["max_agl_m"] == {"ARG": 100.0, "default": 200.0}
    assert facts["outputs"]["agl"]["unit"] == "metres above ground"
    assert "inside" in facts["normalisation"]["where"]
    assert len(facts["normalisation"]["mean"]) == 3
    assert "the same as the original to" in capsys.readouterr().out


def test_a_torch_export_answers_as_the_network_for_images_of_any_size(run, asked):
    torch.manual_seed(1)
    config = ModelConfig("fpn", [16, 64, 8, 8, 8], agl_head="gsd", scale_head="prior")
    network = GeoposeNet("tu-resnet10t", ["ARG", "JAX"], config).eval()
    save_weights(run / "weights" / "train" / "best.safetensors", network, {})
    path, about = export_model(asked("model", format="pt2"))
    assert path.name == "first.pt2"
    exported = load(path)
    for height, width in ((64, 64), (320, 64), (64, 352)):
        assert_same(exported, network, *question(height, width))
    extra = {"about.json": ""}
    torch.export.load(path, extra_files=extra)
    assert json.loads(extra["about.json"]) == json.loads(about.read_text())


@pytest.fixture
def exported(monkeypatch):
    """Leaves out the tracing, and has what is read again answer as the function that is given to it."""

    def use(answer):
        monkeypatch.setattr(portable, "traced", lambda model, encoder: model)
        monkeypatch.setattr(portable, "_save_pt2", lambda path, program, facts: path.write_text("network"))

        def read(path):
            assert path.read_text() == "network"
            return answer

        monkeypatch.setattr(portable, "load", read)

    return use


@pytest.mark.parametrize("wrong", ["heights", "one pixel", "pose", "nan", "size"])
def test_one_that_answers_differently_is_not_written(network, asked, exported, wrong):
    def answer(image, city, gsd):
        agl, pose = (value.copy() for value in original(network, image, city, gsd))
        if image.shape[1] == CHECKED[-1][0]:  # only at one of the sizes
            if wrong == "heights":
                agl += 0.01
            elif wrong == "one pixel":
                agl[0, 3, 7] += 0.01
            elif wrong == "pose":
                pose[0, 2] += 0.001
            elif wrong == "nan":
                agl[0, 0, 0] = np.nan
            else:
                agl = agl[:, :-1]
        return agl, pose

    exported(answer)
    config = asked("model", format="pt2")
    with pytest.raises(UserError, match="differs from the original by"):
        export_model(config)
    assert list(Path(config.out).iterdir()) == []


def test_rounding_is_borne(network, asked, exported):
    exported(lambda *asked: tuple(value * np.float32(1 + 1e-6) for value in original(network, *asked)))
    path, about = export_model(asked("model", format="pt2"))
    assert path.is_file()
    assert about.is_file()


def test_the_difference_is_a_share_of_the_largest_values(network):
    model = Portable(network)

    def answer(image, city, gsd):
        agl, pose = original(network, image, city, gsd)
        return agl + np.float32(0.5 * TOLERANCE * 10), pose

    assert difference(model, answer, 2) == pytest.approx(0.5 * TOLERANCE, rel=0.02)


def test_networks_that_do_not_look_at_city_and_gsd_can_be_traced_too():
    torch.manual_seed(1)
    config = ModelConfig(use_city=False, use_gsd=False, decoder_channels=[8] * 5)
    network = GeoposeNet("tu-resnet10t", ["ARG", "JAX"], config).eval()
    program = traced(Portable(network).eval(), "tu-resnet10t")

    def run(*asked):
        with torch.no_grad():
            return tuple(value.numpy() for value in program.module()(*asked))

    assert_same(run, network, *question(160, 64))


def test_padding_that_depends_on_the_size_is_put_back_after_tracing():
    from timm.layers import padding

    before = padding.get_same_padding
    with portable._padding_of_whole_strides():
        for stride in (1, 2):
            for kernel in (1, 2, 3, 5):
                for dilation in (1, 2):
                    for size in (32, 64, 96):
                        static = padding.get_same_padding(size, kernel, stride, dilation)
                        assert static == before(size, kernel, stride, dilation)
    assert padding.get_same_padding is before


def test_packages_that_are_missing_are_named_with_the_command_that_brings_them(asked, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name.startswith("onnx") else find(name, *rest)
    )
    config = asked("model")
    with pytest.raises(UserError, match="pip install onnx onnxruntime onnxscript") as refused:
        export_model(config)
    assert "\n" not in str(refused.value)
    assert not Path(config.out).exists()


def test_a_network_that_cannot_be_traced_is_named(network):
    class Counting(torch.nn.Module):
        def forward(self, image, city, gsd):
            return (image[:, : int(image.sum())], gsd)

    with pytest.raises(UserError, match="the encoder 'strange' cannot be exported"):
        traced(Counting(), "strange")
