"""Weights files: safetensors with everything needed to build the network again."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import safe_open
from torch import Tensor

from agl_core.config import ModelConfig
from agl_core.errors import UserError
from agl_core.files import is_file, whole_file
from agl_core.model.network import GeoposeNet
from agl_core.model.tensors import save_tensors
from agl_core.model.unfilled import unfilled

FORMAT = "geopose-weights-1"


def save_weights(
    path: Path, model: GeoposeNet, metadata: dict[str, Any], state: dict[str, Tensor] | None = None
) -> None:
    """Write the state of `model`, its architecture and `metadata` (JSON values) to `path`, whole or not at all.

    `state` stands for the state of `model` where that has moved on.

    The file is plain safetensors; its header holds `format`, `network` (encoder, cities, model) and `metadata`.
    """
    network = {"encoder": model.encoder_name, "cities": list(model.cities), "model": asdict(model.config)}
    header = {"format": FORMAT, "network": json.dumps(network), "metadata": json.dumps(metadata)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as aside:
        save_tensors(aside, model.state_dict() if state is None else state, header)


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `network` and `metadata` parts of a weights file, without reading the weights.

    Raises:
        UserError: the file is missing, damaged or not of this project.
    """
    path = Path(path)
    if not is_file(path):
        raise UserError(f"weights {path} do not exist")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except Exception as error:  # safetensors raises its own SafetensorError, which is not public on every version
        raise UserError(f"weights {path} are not a readable safetensors file ({error})") from error
    if header.get("format") != FORMAT:
        raise UserError(f"{path} is a safetensors file, but not weights of this project (no format {FORMAT!r})")
    try:
        network, metadata = json.loads(header["network"]), json.loads(header["metadata"])
    except (KeyError, ValueError):
        network, metadata = None, None
    if not (_whole_network(network) and _whole_metadata(metadata)):
        raise UserError(f"weights {path} have a damaged header: take another copy of the file")
    return network, metadata


def _whole_network(network: Any) -> bool:
    """Whether this part of a header says what network it is of."""
    if not isinstance(network, dict):
        return False
    cities = network.get("cities")
    return (
        isinstance(network.get("encoder"), str)
        and isinstance(cities, list)
        and all(isinstance(city, str) for city in cities)
        and isinstance(network.get("model"), dict)
    )


def _whole_metadata(metadata: Any) -> bool:
    """Whether this part of a header is a table whose configuration, if there is one, and highest heights are tables
    of what they should be."""
    config = metadata.get("config", {}) if isinstance(metadata, dict) else None
    highest = config.get("max_agl") or {} if isinstance(config, dict) else None
    return isinstance(highest, dict) and all(type(metres) in (int, float) for metres in highest.values())


def load_weights(path: Path) -> tuple[GeoposeNet, dict[str, Any]]:
    """Build the network described in the file, load its weights, and return it (in eval mode) with the metadata.

    Raises:
        UserError: the file is missing, damaged, not of this project, or of a network that it does not know.
    """
    network, metadata = read_header(path)
    with unfilled():
        model = GeoposeNet(network["encoder"], network["cities"], model_config(network, path))
    load_state(model, path)
    return model.eval(), metadata


def load_state(model: GeoposeNet, path: Path) -> None:
    """Copy the weights of `path` into `model`; they must be of the same architecture.

    Raises:
        UserError: the file is missing, damaged, or of another network, and in what it differs.
    """
    network, _ = read_header(path)
    if differences := _differences(network, model, path):
        raise UserError(
            f"weights {path} do not fit the network that is to take them: {', '.join(differences)}; give it what they "
            "have, or start from other weights"
        )
    if model.config.use_city and network["cities"] != list(model.cities):
        raise UserError(
            f"weights {path} are for the cities {', '.join(network['cities'])} and cannot be used for "
            f"{', '.join(model.cities)}: start from other weights, or train with model.use_city=false"
        )
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"weights {path} are of {network['encoder']!r} for cities {', '.join(network['cities'])} and do not fit "
            f"{model.encoder_name!r} for {', '.join(model.cities)} ({str(error).splitlines()[-1].strip()})"
        ) from error


def model_config(network: dict[str, Any], path: Path) -> ModelConfig:
    """The configuration in a header; keys that are younger than the file have their defaults.

    Raises:
        UserError: it has keys or values that this version does not know.
    """
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), network["model"]))
    except OmegaConfBaseException as error:
        raise UserError(
            f"weights {path} are of a network that this version does not know ({str(error).splitlines()[0]}): use the "
            "version that wrote them"
        ) from error
    assert isinstance(config, ModelConfig)
    return config


def _differences(network: dict[str, Any], model: GeoposeNet, path: Path) -> list[str]:
    """In what the network of a header differs from `model`, as far as weights depend on it; the cities aside."""
    config = model_config(network, path)
    theirs = {"encoder": network["encoder"], **{f"model.{key}": value for key, value in asdict(config).items()}}
    ours = {"encoder": model.encoder_name, **{f"model.{key}": value for key, value in asdict(model.config).items()}}
    different = [key for key in ours if theirs[key] != ours[key] and key != "model.pose_dropout"]
    if config.decoder == model.config.decoder == "fpn":
        key, used = "model.decoder_channels", slice(2)
        different = [other for other in different if other != key or theirs[key][used] != ours[key][used]]
    return [f"{key} is {theirs[key]} there and {ours[key]} here" for key in different]
