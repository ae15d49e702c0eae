"""Every stage of every recipe trains, is interrupted in its middle and resumed to the same bits, and predicts."""

import os
import signal
from pathlib import Path

import pytest

from agl_core.config import RECIPES, TrainConfig
from agl_core.data.catalog import read_catalog
from agl_core.durable.chain import first_difference, read_chains
from agl_core.durable.exits import InterruptedRunError
from agl_core.files import read_json
from agl_core.inference.writer import ABOUT
from agl_core.model.network import GeoposeNet
from agl_core.model.unfilled import unfilled
from agl_core.validate import validate
from jobs.recipes import resolved
from jobs.runs import create, run_of
from jobs.settings import train_config
from jobs.stages import Place
from jobs.work import carry_out
from tests.training.faults import train
from tests.training.runs import same_bits, weights

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
STEPS, MIDDLE = 4, 2

SMALLER = {"kbrodt": "efficientnet-b0", "best": "tu-tf_efficientnetv2_b0", "small": "tu-tf_efficientnetv2_b0"}
"""Encoders of the same families: a single checkpoint of the recipes' own ones has up to two gigabytes."""

SHORT = {"crop": "64", "batch": "4", "micro_batch": "2", "length": f"{STEPS} steps", "validate_every": "2 steps"}


def shortened(name: str, world: Path, runs: Path) -> TrainConfig:
    """The recipe as it is, but for crops of 64, a few steps a stage, and an encoder that a test can afford."""
    stages = train_config({"recipe": name}).stages
    own = {
        "run": "short",
        "runs": str(runs),
        "data": str(world),
        "store": str(world / "store"),
        "encoder_weights": "none",
        "threads": "1",
        "workers": "0",
        **({"encoder": SMALLER[name]} if name in SMALLER else {}),
        **{f"stages.{stage}.{key}": value for stage in stages for key, value in SHORT.items()},
    }
    config = train_config({"recipe": name, **own})
    validate(config)
    return config


def interrupted(config: TrainConfig, run_dir: Path, stage: str) -> list[int]:
    """Warn the stage in its middle, which makes it save and leave, and train it to its end; the steps of the rest."""

    def warn(step: int) -> None:
        if step == MIDDLE:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(InterruptedRunError):
        train(config, run_dir, warn, stage)
    return train(config, run_dir, stage=stage)


@pytest.mark.parametrize("name", NAMES)
def test_each_stage_of_a_recipe_ends_with_the_same_bits_though_interrupted_and_its_weights_predict(
    name: str, world: Path, tmp_path: Path
) -> None:
    config = shortened(name, world, tmp_path / "runs")
    whole, run = tmp_path / "whole", run_of(config)
    create(run, config)
    for stage, settings in config.stages.items():
        assert train(config, whole, stage=stage) == list(range(1, STEPS + 1))
        rest = interrupted(config, run.path, stage)
        assert rest == list(range(rest[0], STEPS + 1))
        assert 1 < rest[0] <= STEPS
        for which in ["best", "last", *(["last-ema"] if settings.ema else [])]:
            assert same_bits(weights(run.path, stage, which), weights(whole, stage, which)), (stage, which)
        assert first_difference(read_chains(run.path, stage), read_chains(whole, stage)[0]) is None
    carry_out(run.path, "predict", "predict", Place(0, 1, 0, None))
    images = [record.id for record in read_catalog(world, "test")]
    assert len(images) == 9
    for image in images:
        assert (run.predictions / f"{image}_AGL.tif").is_file()
        assert (run.predictions / f"{image}_VFLOW.json").is_file()
    assert read_json(run.predictions / ABOUT)["settings"]["tta"] == [config.tta]


@pytest.mark.parametrize("name", NAMES)
def test_the_own_network_of_a_recipe_can_be_built_and_saves_memory_where_it_is_asked_to(name: str) -> None:
    config = resolved(name)
    with unfilled():
        model = GeoposeNet(config.encoder, ["ARG", "ATL", "JAX", "OMA"], config.model)
    if config.gradient_checkpointing:
        model.set_gradient_checkpointing(True)
    assert model.encoder_name == config.encoder
