"""A stage begins with the ImageNet weights of the cache, and with the same random layers wherever they come from."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agl_core.errors import UserError
from agl_core.model.encodercache import save
from agl_core.model.encoders import library_encoder
from agl_core.model.precision import Precision
from agl_core.training.build import Origin
from agl_core.training.parallel import Parallel
from tests.training.runs import config


def test_a_stage_begins_with_the_encoder_of_the_cache_and_its_own_random_layers(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    state = library_encoder("resnet18").state_dict()
    save("resnet18", state, "", str(tmp_path / "cache"))
    settings = config(tmp_path, encoder="resnet18", encoder_weights="imagenet", weights_cache=str(tmp_path / "cache"))
    precision = Precision.choose("float32", torch.device("cpu"))
    with Parallel() as parallel:
        origin = Origin(settings, "first", tmp_path, ["AAA"], "", precision, parallel)
        pretrained = origin.build()[0].model
        random = replace(origin, config=replace(settings, encoder_weights="none")).build()[0].model
        with pytest.raises(UserError, match=r"weights of 'resnet18' are not in .*other: give `python"):
            replace(origin, config=replace(settings, weights_cache=str(tmp_path / "other"))).build()
    other = random.state_dict()
    for name, value in pretrained.state_dict().items():
        expected = state[name.removeprefix("encoder.")] if name.startswith("encoder.") else other[name]
        assert torch.equal(value, expected), name
    assert not torch.equal(pretrained.state_dict()["encoder.conv1.weight"], other["encoder.conv1.weight"])
