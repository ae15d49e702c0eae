"""Encoders are built as their libraries build them, and their ImageNet weights are those of the cache, bit for bit."""

import socket
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from agl_core.errors import UserError
from agl_core.model.encodercache import cache_file
from agl_core.model.encoders import build_encoder, check_encoder, smp_encoders
from agl_core.model.imagenet import obtain
from tests.model.fakehub import fake_cache, publish

IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two encoders have the same layers, numbers and features, bit for bit."""
    with torch.no_grad():
        features = zip(one.eval()(IMAGE), other.eval()(IMAGE), strict=True)
    states = one.state_dict(), other.state_dict()
    return (
        repr(one) == repr(other)
        and list(states[0]) == list(states[1])
        and all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        and all(torch.equal(left, right) for left, right in features)
    )


@pytest.mark.parametrize(
    "name", ["resnet18", "timm-efficientnet-b0", "tu-resnet10t", "tu-fbnetc_100", "tu-regnetx_002"]
)
def test_imagenet_weights_make_the_encoder_that_the_library_itself_would_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    publish(fake_cache(tmp_path / "hub", monkeypatch), name)
    obtain(name, str(tmp_path))
    monkeypatch.setattr(socket, "socket", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = smp_encoders.get_encoder(name, depth=5, weights="imagenet")
    built = build_encoder(name, "imagenet", str(tmp_path))
    assert same(built, expected)
    assert not same(built, build_encoder(name, "none"))


def test_a_network_is_the_same_wherever_its_weights_come_from() -> None:
    epsilons = {layer.eps for layer in build_encoder("tu-fbnetc_100", "none").modules() if hasattr(layer, "eps")}
    assert epsilons == {1e-3}  # timm builds another network unless it fetches the weights


def test_imagenet_weights_that_the_cache_does_not_have_are_refused_with_the_command_that_fetches_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(fake_cache(tmp_path / "hub", monkeypatch), "resnet18")
    monkeypatch.setattr(socket, "socket", None)
    message = (
        rf"are not in {tmp_path}: give `python launch.py weights --encoder resnet18 --weights-cache {tmp_path}` on"
    )
    with pytest.raises(UserError, match=message):
        build_encoder("resnet18", "imagenet", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=rf"are not in {tmp_path}/.cache/agl/encoders: give `.* resnet18` on a machine"):
        build_encoder("resnet18", "imagenet")


def test_encoders_without_imagenet_weights_are_refused() -> None:
    with pytest.raises(UserError, match="timm has no ImageNet weights for 'tu-cspresnet50d': use --encoder-weights"):
        build_encoder("tu-cspresnet50d", "imagenet")
    with pytest.raises(UserError, match="'dpn92' has no ImageNet weights: use --encoder-weights none or"):
        build_encoder("dpn92", "imagenet")


def test_a_tag_that_timm_does_not_know_is_an_unknown_encoder() -> None:
    check_encoder("tu-resnet18.a1_in1k")
    for name in ("tu-resnet18.a1_in2k", "tu-resnet18./../../x"):
        with pytest.raises(UserError, match=r"unknown encoder .*tu-resnet18\."):
            check_encoder(name)


def test_the_cache_is_found_by_variables_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", str(tmp_path))
    assert cache_file("resnet18", "$PLACE/w") == tmp_path / "w" / "resnet18.imagenet.safetensors"
    monkeypatch.delenv("PLACE")
    with pytest.raises(UserError, match=r"\$PLACE, which is not set here.*--weights-cache"):
        cache_file("resnet18", "$PLACE/w")
