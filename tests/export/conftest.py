"""A small network in a run's folder."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from agl_core.config import ExportConfig, ModelConfig, TrainConfig
from agl_core.model.network import GeoposeNet
from agl_core.model.weights import save_weights

ENCODER = "tu-tf_mobilenetv3_small_minimal_100"  # with the padding of TensorFlow, which depends on the image's size
CITY_SCORE = {"agl_r2": 0.75, "vflow_r2": 0.5, "score": 0.625, "images": 3}
VALIDATION = {"score": 0.625, "cities": {"ARG": CITY_SCORE, "JAX": CITY_SCORE}}


@pytest.fixture(scope="session")
def network():
    """A network for two cities whose answers depend on both."""
    torch.manual_seed(0)
    model = GeoposeNet(ENCODER, ["ARG", "JAX"], ModelConfig(decoder_channels=[16, 16, 8, 8, 8]))
    return model.eval()


@pytest.fixture
def run(tmp_path, network, tiny_store):
    """The folder of a run with best weights, as training leaves it."""
    folder = tmp_path / "runs" / "first"
    config = asdict(TrainConfig(encoder=ENCODER, data=str(tmp_path / "secret" / "autumn"), fold=2, folds=5))
    config["max_agl"] = {"ARG": 100.0, "default": 200.0}
    about = {"stage": "train", "step": 700, "ema": False, "score": VALIDATION, "config": config}
    save_weights(folder / "weights" / "train" / "best.safetensors", network, about)
    last = {**about, "score": None, "step": 900}
    save_weights(folder / "weights" / "train" / "last.safetensors", network, last)
    (folder / "config.yaml").write_text("stages:\n  train: {crop: 64}\n")
    start = {"time": 0, "kind": "start", "stage": "train", "step": 0, "tiles": 41, "validation_tiles": 9}
    (folder / "events.jsonl").write_text(json.dumps(start) + "\n")
    return folder


@pytest.fixture
def asked(run):
    """What asks for an export of the run's weights, as `what`."""

    def configured(what, **changes):
        given = {"run": "first", "runs": str(run.parent), "out": str(Path(run).parent.parent / "out"), **changes}
        return ExportConfig(what=what, **given)

    return configured
