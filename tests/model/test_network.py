from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from agl_core.config import ModelConfig
from agl_core.errors import UserError
from agl_core.model.encoders import build_encoder
from agl_core.model.network import GeoposeNet
from agl_core.model.weights import load_state, load_weights, read_header, save_weights

SMALL = ModelConfig(decoder_channels=[16, 16, 8, 8, 8], pose_dropout=0.0)
IMAGE = torch.randint(0, 255, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
CITY, GSD = torch.tensor([0, 1]), torch.tensor([0.3, 0.5])


def network(encoder: str = "tu-resnet10t", config: ModelConfig = SMALL) -> GeoposeNet:
    torch.manual_seed(0)
    return GeoposeNet(encoder, ["AAA", "BBB"], config).eval()


@pytest.mark.parametrize("encoder", ["tu-resnet10t", "efficientnet-b0", "resnet18"])
def test_any_encoder_gives_a_height_per_pixel_and_a_pose_per_image(encoder: str) -> None:
    output = network(encoder)(IMAGE, CITY, GSD)
    assert output.agl.shape == (2, 64, 96)
    assert output.pose.shape == (2, 3)


@pytest.mark.parametrize("encoder", ["efficientnet-b0", "resnet18"])
def test_every_trainable_parameter_receives_a_gradient(encoder: str) -> None:
    model = network(encoder).train()
    output = model(IMAGE, CITY, GSD)
    (output.agl.sum() + output.pose.sum()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert encoder != "efficientnet-b0" or not all(p.requires_grad for p in model.parameters())


def test_city_and_gsd_reach_both_heads() -> None:
    model = network()
    here = model(IMAGE, CITY, GSD)
    for there in (model(IMAGE, CITY.flip(0), GSD), model(IMAGE, CITY, GSD * 2)):
        assert not torch.equal(here.agl, there.agl)
        assert not torch.equal(here.pose, there.pose)


def test_a_network_without_conditions_ignores_them() -> None:
    model = network(config=ModelConfig(decoder_channels=[16, 16, 8, 8, 8], use_city=False, use_gsd=False))
    here, there = model(IMAGE, CITY, GSD), model(IMAGE, CITY.flip(0), GSD * 2)
    assert torch.equal(here.agl, there.agl)
    assert torch.equal(here.pose, there.pose)


def test_heads_answer_in_float32_under_autocast() -> None:
    model = network()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(IMAGE, CITY, GSD)
    assert output.agl.dtype == output.pose.dtype == torch.float32
    torch.testing.assert_close(output.agl, model(IMAGE, CITY, GSD).agl, atol=0.2, rtol=0.1)


def test_channels_last_changes_the_layout_and_not_the_answer() -> None:
    model = network()
    plain = model(IMAGE, CITY, GSD)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.testing.assert_close(model(IMAGE, CITY, GSD).agl, plain.agl, atol=1e-4, rtol=1e-4)


def test_weights_come_back_whole(tmp_path: Path) -> None:
    model = network()
    save_weights(tmp_path / "new" / "best.safetensors", model, {"stage": "train", "score": 0.5})
    loaded, metadata = load_weights(tmp_path / "new" / "best.safetensors")
    assert metadata == {"stage": "train", "score": 0.5}
    assert loaded.cities == ("AAA", "BBB")
    assert torch.equal(loaded(IMAGE, CITY, GSD).agl, model(IMAGE, CITY, GSD).agl)
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "best.safetensors"]


def test_wrong_weights_are_refused_in_one_sentence(tmp_path: Path) -> None:
    best = tmp_path / "best.safetensors"
    with pytest.raises(UserError, match=r"weights .*best\.safetensors do not exist"):
        load_weights(best)
    best.write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        read_header(best)
    save_file({"a": torch.zeros(1)}, best)
    with pytest.raises(UserError, match="not weights of this project"):
        load_weights(best)
    save_weights(best, network("resnet18"), {})
    with pytest.raises(UserError, match=r"do not fit .*: encoder is resnet18 there and tu-resnet10t here; give"):
        load_state(network(), best)


def test_weights_for_other_cities_are_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "best.safetensors", network(), {})
    other = GeoposeNet("tu-resnet10t", ["CCC", "DDD"], SMALL)
    with pytest.raises(UserError, match="for the cities AAA, BBB and cannot be used for CCC, DDD"):
        load_state(other, tmp_path / "best.safetensors")


def test_an_encoder_of_fixed_size_is_refused() -> None:
    with pytest.raises(UserError, match=r"tu-\w+' (cannot take images of any size|has no 5 levels)"):
        network("tu-swin_tiny_patch4_window7_224")


def test_an_unknown_encoder_is_answered_with_the_nearest_names() -> None:
    with pytest.raises(UserError, match=r"unknown encoder 'efficientnet_b7': .*efficientnet-b7"):
        network("efficientnet_b7")
    with pytest.raises(UserError, match=r"tu-resnet18"):
        network("tu-resnet1888")


def test_encoder_weights_are_taken_from_a_file(tmp_path: Path) -> None:
    source = build_encoder("resnet18", "none")
    save_file(source.state_dict(), tmp_path / "resnet18.safetensors")
    built = build_encoder("resnet18", str(tmp_path / "resnet18.safetensors"))
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), built.state_dict().values(), strict=True)
    )
    with pytest.raises(UserError, match="do not fit 'resnet34'"):
        build_encoder("resnet34", str(tmp_path / "resnet18.safetensors"))
    with pytest.raises(UserError, match="do not exist"):
        build_encoder("resnet34", str(tmp_path / "absent.safetensors"))
