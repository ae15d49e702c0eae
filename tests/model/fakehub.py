"""A Hugging Face cache on disk with weights in it, as after an earlier download: what tests have of the hub."""

from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor

from agl_core.model import hub
from agl_core.model.encodercache import source_of
from agl_core.model.encoders import library_encoder, timm

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fake_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have the hub's client look into the empty `folder`, without a network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub._no_answer.cache_clear()
    return folder


def published(name: str) -> dict[str, Tensor]:
    """Weights as the hub would have them for the encoder `name`: all numbers at random, a classifier with timm's."""
    model = timm.create_model(name[3:]) if name.startswith("tu-") else library_encoder(name)
    generator = torch.Generator().manual_seed(5)
    return {
        key: torch.rand(value.shape, generator=generator) if value.is_floating_point() else value + 7
        for key, value in model.state_dict().items()
    }


def snapshot(folder: Path, name: str) -> Path:
    """The folder of the encoder's repository in the cache, as the client lays it out."""
    source = source_of(name)
    repository = folder / f"models--{source.repo.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(COMMIT)
    path = repository / "snapshots" / (source.revision or COMMIT)
    path.mkdir(parents=True, exist_ok=True)
    return path


def publish(folder: Path, name: str) -> None:
    """Put weights of the encoder `name` into the cache."""
    path = snapshot(folder, name)
    (path / "config.json").write_text("{}")
    save_file(published(name), path / "model.safetensors")
