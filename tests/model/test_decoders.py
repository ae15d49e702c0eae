"""Every decoder with every head: shapes, gradients, determinism, conditions, files."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from agl_core.config import ModelConfig
from agl_core.errors import UserError
from agl_core.model.decoders import NAMES, SCSEModule, build_decoder
from agl_core.model.weights import load_weights, read_header, save_weights
from tests.model.networks import (
    ARCHITECTURES,
    BATCH,
    HEADS,
    SMALL,
    frozen,
    small,
    some_loss,
    without_finite_gradient,
)

every_decoder = pytest.mark.parametrize(("decoder", "attention"), ARCHITECTURES)
every_head = pytest.mark.parametrize("heads", HEADS, ids="-".join)


@every_head
@every_decoder
def test_a_network_trains_and_comes_back_from_its_file(
    tmp_path: Path, decoder: str, attention: str, heads: tuple[str, str]
) -> None:
    model, path = small(decoder, attention, heads), tmp_path / "best.safetensors"
    first = model(*BATCH)
    assert first.agl.shape == (2, 64, 96)
    assert first.pose.shape == (2, 3)
    save_weights(path, model, {})
    written = read_header(path)[0]["model"]
    assert [written[key] for key in ("decoder", "attention", "agl_head", "scale_head")] == [decoder, attention, *heads]
    before = torch.get_rng_state()
    loaded, _ = load_weights(path)
    assert torch.equal(torch.get_rng_state(), before)  # nothing was drawn for what the file has
    assert loaded.config == model.config
    assert frozen(loaded).keys() == frozen(model).keys()
    for other in (model, loaded):
        output = other(*BATCH)
        assert torch.equal(output.agl, first.agl)
        assert torch.equal(output.pose, first.pose)
    some_loss(loaded.train()(*BATCH)).backward()
    assert without_finite_gradient(loaded) == []
    assert all(gradient is None for gradient in frozen(loaded).values())
    # The only ones without any use: the attention over a skip that the last block does not have.
    last = {"unet": {"decoder.blocks.4.attention1"}, "unetplusplus": {"decoder.blocks.x_0_4.attention1"}}
    expected = last[decoder] if attention == "scse" else set()
    assert {name.split(".attention.")[0] for name in frozen(loaded)} == expected


@every_decoder
def test_images_of_any_size_are_answered(decoder: str, attention: str) -> None:
    model = small(decoder, attention)
    for height, width in ((32, 32), (96, 32), (160, 224)):
        image = torch.zeros(1, 3, height, width, dtype=torch.uint8)
        output = model(image, torch.tensor([0]), torch.tensor([0.5]))
        assert output.agl.shape == (1, height, width)
        assert output.agl.isfinite().all()


@every_decoder
def test_city_and_gsd_reach_the_heights_through_every_decoder(decoder: str, attention: str) -> None:
    model = small(decoder, attention)
    image, city, gsd = BATCH
    here = model(image, city, gsd).agl
    assert not torch.equal(here, model(image, city.flip(0), gsd).agl)
    assert not torch.equal(here, model(image, city, gsd * 2).agl)


@every_decoder
def test_the_image_is_seen_where_it_is(decoder: str, attention: str) -> None:
    """What changes in a corner of the image changes the heights there the most, in all four corners."""
    model = small(decoder, attention)
    plain = torch.full((1, 3, 256, 256), 128, dtype=torch.uint8)
    city, gsd = torch.tensor([0]), torch.tensor([0.5])
    flat = model(plain, city, gsd).agl
    for y in (0, 1):
        for x in (0, 1):
            image = plain.clone()
            image[..., y * 192 : y * 192 + 64, x * 192 : x * 192 + 64] = 255
            moved = (model(image, city, gsd).agl - flat).abs()[0].detach()
            quarters = moved.reshape(2, 128, 2, 128).mean(dim=(1, 3))
            assert int(quarters.argmax()) == 2 * y + x


def test_the_heights_of_fpn_are_enlarged_about_the_middle_of_their_pixels() -> None:
    """A plane at a quarter of the resolution is the same plane at full resolution, but for two pixels at the edges."""
    model = small("fpn")
    quarter = torch.arange(16.0)[None, None, :].expand(1, 8, 16) * 4 + 1.5  # the middle of four pixels
    whole = model._enlarged(quarter)
    assert whole.shape == (1, 32, 64)
    torch.testing.assert_close(whole[0, :, 2:-2], torch.arange(2.0, 62.0).expand(32, 60))


def test_encoders_without_a_level_at_half_resolution_go_with_every_decoder() -> None:
    for decoder, attention in ARCHITECTURES:
        model = small(decoder, attention, encoder="tu-convnext_atto").train()
        output = model(*BATCH)
        assert output.agl.shape == (2, 64, 96)
        some_loss(output).backward()
        assert without_finite_gradient(model) == [], decoder


@pytest.mark.parametrize("decoder", ["unet", "unetplusplus"])
def test_attention_of_narrow_blocks_looks_at_the_image(decoder: str) -> None:
    """The library's squeeze divides the channels by 16 and leaves none of fewer."""
    squeezes = [layer for layer in small(decoder, "scse").modules() if isinstance(layer, SCSEModule)]
    assert min(layer.cSE[1].in_channels for layer in squeezes) == 8
    assert all(layer.cSE[1].out_channels == max(1, layer.cSE[1].in_channels // 16) for layer in squeezes)


@pytest.mark.parametrize(("decoder", "wider"), [("unet", 4), ("unetplusplus", 4), ("manet", 4), ("fpn", 1)])
def test_widths_are_those_of_the_configuration(decoder: str, wider: int) -> None:
    widths = [32, 96, 32, 16, 16]
    widths[wider] = 64
    built = build_decoder([3, 8, 8, 16, 16, 21], ModelConfig(decoder=decoder, decoder_channels=widths))
    assert built.channels == 64
    features = [torch.zeros(1, c, 64 >> k, 64 >> k) for k, c in enumerate([3, 8, 8, 16, 16, 21])]
    assert built.module.eval()(features).shape == (1, 64, 64 // built.stride, 64 // built.stride)


def test_what_a_decoder_cannot_have_is_refused_in_one_sentence() -> None:
    channels = [3, 8, 8, 16, 16, 21]

    def build(**values: Any) -> None:
        build_decoder(channels, replace(SMALL, **values))

    with pytest.raises(UserError, match=r"model\.decoder_channels is \[64, 80, 8, 8, 8\]: fpn .* multiple of 32, at"):
        build(decoder="fpn", decoder_channels=[64, 80, 8, 8, 8])
    with pytest.raises(UserError, match="at least 64"):
        build(decoder="fpn", decoder_channels=[64, 32, 8, 8, 8])
    for decoder in ("fpn", "manet"):
        with pytest.raises(UserError, match=rf"model\.attention is scse, which the decoder {decoder} does not have"):
            build(decoder=decoder, attention="scse")
    with pytest.raises(UserError, match=r"unknown model\.decoder 'segformer': choose one of unet, "):
        build(decoder="segformer")


def test_the_names_of_decoders_are_those_of_the_configuration() -> None:
    choices = {field.name: field.metadata["choices"] for field in cast(Any, ModelConfig).__dataclass_fields__.values()}
    assert choices["decoder"] == NAMES
    assert {name for name, _ in ARCHITECTURES} == set(NAMES)
