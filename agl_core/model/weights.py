"""Weights files: safetensors with everything needed to build the network again."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from safetensors import safe_open
from torch import Tensor

from agl_core.config import ModelConfig
from agl_core.errors import UserError
from agl_core.files import whole_file
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
    """The `network` and `metadata` parts of a weights file, without reading the weights."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"weights {path} do not exist")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except Exception as error:  # safetensors raises its own SafetensorError, which is not public on every version
        raise UserError(f"weights {path} are not a readable safetensors file ({error})") from error
    if header.get("format") != FORMAT:
        raise UserError(f"{path} is a safetensors file, but not weights of this project (no format {FORMAT!r})")
    return json.loads(header["network"]), json.loads(header["metadata"])


def load_weights(path: Path) -> tuple[GeoposeNet, dict[str, Any]]:
    """Build the network described in the file, load its weights, and return it (in eval mode) with the metadata.

    Raises:
        UserError: the file is missing, damaged, or not of this project.
    """
    network, metadata = read_header(path)
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), network["model"]))
    assert isinstance(config, ModelConfig)
    with unfilled():
        model = GeoposeNet(network["encoder"], network["cities"], config)
    load_state(model, path)
    return model.eval(), metadata


def load_state(model: GeoposeNet, path: Path) -> None:
    """Copy the weights of `path` into `model`; they must be of the same architecture."""
    network, _ = read_header(path)
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
