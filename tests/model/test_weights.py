"""What a weights file says of its network: files from before a key existed, and those of another network."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agl_core.config import ModelConfig
from agl_core.errors import UserError
from agl_core.model.network import GeoposeNet
from agl_core.model.tensors import save_tensors
from agl_core.model.weights import FORMAT, load_state, load_weights, read_header, save_weights
from tests.model.networks import BATCH, CITIES, SMALL, small

FIRST_KEYS = ("decoder_channels", "use_city", "use_gsd", "pose_dropout")
"""Of the first version of the format."""


def write(path: Path, model: GeoposeNet, config: dict[str, Any]) -> None:
    """A weights file with the header of any version."""
    network = {"encoder": model.encoder_name, "cities": list(model.cities), "model": config}
    save_tensors(
        path, model.state_dict(), {"format": FORMAT, "network": json.dumps(network), "metadata": json.dumps({})}
    )


WHOLE = json.dumps({"encoder": "tu-lcnet_035", "cities": ["A"], "model": {}})


@pytest.mark.parametrize(
    ("network", "metadata"),
    [
        ("{}", "{}"),
        ("[]", "{}"),
        (WHOLE[:-5], "{}"),
        (json.dumps({"encoder": 3, "cities": ["A"], "model": {}}), "{}"),
        (json.dumps({"encoder": "tu-lcnet_035", "cities": [1], "model": {}}), "{}"),
        (json.dumps({"encoder": "tu-lcnet_035", "cities": ["A"], "model": 5}), "{}"),
        (WHOLE, '{"config": '),
        (WHOLE, "[]"),
        (WHOLE, '{"config": 5}'),
        (WHOLE, '{"config": {"max_agl": 5}}'),
        (WHOLE, '{"config": {"max_agl": {"default": "200"}}}'),
        (None, "{}"),
        (WHOLE, None),
    ],
)
def test_a_damaged_header_is_told_in_one_sentence(tmp_path: Path, network: str | None, metadata: str | None) -> None:
    parts = {"format": FORMAT, "network": network, "metadata": metadata}
    header = {name: text for name, text in parts.items() if text is not None}
    save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(1)}, header)
    for read in (read_header, load_weights):
        with pytest.raises(
            UserError, match=r"^weights .*a\.safetensors have a damaged header: take another copy[^\n]*$"
        ):
            read(tmp_path / "a.safetensors")


def build(**values: Any) -> GeoposeNet:
    return GeoposeNet("tu-lcnet_035", CITIES, replace(SMALL, **values))


def test_files_from_before_there_was_a_choice_of_decoders_and_heads_load(tmp_path: Path) -> None:
    model = small()
    write(tmp_path / "old.safetensors", model, {key: asdict(model.config)[key] for key in FIRST_KEYS})
    loaded, _ = load_weights(tmp_path / "old.safetensors")
    assert loaded.config == model.config
    assert torch.equal(loaded(*BATCH).agl, model(*BATCH).agl)
    other = build()
    load_state(other, tmp_path / "old.safetensors")
    assert torch.equal(other.eval()(*BATCH).pose, model(*BATCH).pose)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"decoder": "fpn"}, "model.decoder is fpn there and unet here"),
        ({"attention": "scse"}, "model.attention is scse there and none here"),
        ({"agl_head": "gsd"}, "model.agl_head is gsd there and linear here"),
        ({"scale_head": "prior"}, "model.scale_head is prior there and direct here"),
        ({"use_city": False}, "model.use_city is False there and True here"),
        ({"decoder_channels": [16, 64, 8, 8, 4]}, "is [16, 64, 8, 8, 4] there and [16, 64, 8, 8, 8] here"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_file_of_another_network_is_refused_with_what_differs(
    tmp_path: Path, values: dict[str, Any], told: str
) -> None:
    save_weights(tmp_path / "other.safetensors", build(**values), {})
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError) as refused:
        load_state(model, tmp_path / "other.safetensors")
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    assert str(refused.value).count(" there and ") == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_networks_with_the_same_shapes_that_mean_something_else_are_told_apart(tmp_path: Path) -> None:
    """One city and no gsd, or the gsd and no city: one more channel either way."""
    other = GeoposeNet("tu-lcnet_035", ["AAA"], replace(SMALL, use_gsd=False))
    save_weights(tmp_path / "city.safetensors", other, {})
    model = GeoposeNet("tu-lcnet_035", ["AAA"], replace(SMALL, use_city=False))
    with pytest.raises(UserError, match=r"model\.use_city is True there and False here, model\.use_gsd is False"):
        load_state(model, tmp_path / "city.safetensors")


def test_what_the_weights_do_not_depend_on_may_differ(tmp_path: Path) -> None:
    save_weights(tmp_path / "unet.safetensors", build(), {})
    load_state(build(pose_dropout=0.25), tmp_path / "unet.safetensors")
    save_weights(tmp_path / "fpn.safetensors", build(decoder="fpn"), {})
    load_state(build(decoder="fpn", decoder_channels=[16, 64, 1, 2, 3]), tmp_path / "fpn.safetensors")


def test_a_prior_without_cities_goes_from_one_set_of_cities_to_another(tmp_path: Path) -> None:
    config = replace(SMALL, use_city=False, scale_head="prior")
    save_weights(tmp_path / "prior.safetensors", GeoposeNet("tu-lcnet_035", ["A", "B", "C"], config), {})
    load_state(GeoposeNet("tu-lcnet_035", ["D"], config), tmp_path / "prior.safetensors")


@pytest.mark.parametrize("later", [{"decoder_channels": "many"}, {"no_such_key": 1}], ids=["value", "key"])
def test_a_file_of_a_later_version_is_refused(tmp_path: Path, later: dict[str, Any]) -> None:
    write(tmp_path / "later.safetensors", small(), {**asdict(ModelConfig()), **later})
    path, told = tmp_path / "later.safetensors", r"a network that this version does not know .*: use the version that"
    with pytest.raises(UserError, match=told):
        load_weights(path)
    with pytest.raises(UserError, match=told):
        load_state(small(), path)
