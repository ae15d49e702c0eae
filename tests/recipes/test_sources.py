"""Every value of a recipe says where it comes from."""

import re
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from agl_core.config import TrainConfig
from agl_core.validate import validate
from jobs.recipes import comments, recipes, resolved
from jobs.settings import train_config

SOURCES = r"reference solution|challenge|(first|second|seventh|other) places?|ours|screening|as [a-z]+"


def leaves(content: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if isinstance(content, dict) and content:
        return [leaf for key, value in content.items() for leaf in leaves(value, (*path, str(key)))]
    return [path]


@pytest.mark.parametrize("path", recipes(), ids=lambda path: path.stem)
def test_every_value_has_its_source_on_its_line(path: Path) -> None:
    said = comments(path)
    for leaf in leaves(yaml.safe_load(path.read_text())):
        assert re.match(rf"({SOURCES})\b", said.get(leaf, "")), f"{path.name}: {'.'.join(leaf)}: {said.get(leaf)}"


def test_there_are_the_four_recipes_and_all_of_them_are_valid() -> None:
    assert [path.stem for path in recipes()] == ["best", "demo", "kbrodt", "small"]
    for path in recipes():
        validate(resolved(path.stem))
        assert path.read_text().startswith("# ")  # what `recipe` lists


def test_the_recipe_of_the_reference_is_as_the_reference_was() -> None:
    config = resolved("kbrodt")
    assert (config.encoder, config.folds, config.fold_by, config.seed) == ("efficientnet-b7", 40, "city", 314159)
    model = config.model
    assert (model.decoder, model.attention, model.agl_head, model.scale_head) == ("unet", "none", "linear", "direct")
    assert (model.decoder_channels, model.pose_dropout) == ([256, 128, 64, 32, 16], 0.5)
    pretrain, finetune = config.stages["pretrain"], config.stages["finetune"]
    assert (pretrain.length, finetune.length, finetune.start) == ("525 epochs", "1025 epochs", "pretrain/best")
    for stage in (pretrain, finetune):
        loss, optimizer, schedule = stage.loss, stage.optimizer, stage.schedule
        assert (stage.crop, stage.batch, stage.micro_batch, stage.ema) == (512, 32, 8, 0.0)
        assert (loss.agl_kind, loss.direction_kind) == ("mse", "mse")
        assert (loss.agl, loss.direction, loss.scale, loss.magnitude) == (2.0, 50.0, 50.0, 0.0)
        assert (optimizer.lr, optimizer.weight_decay, optimizer.clip, optimizer.resume) == (1e-4, 5e-4, 2.0, False)
        assert (schedule.name, schedule.half_period, schedule.floor) == ("cosine-epochs", 25, 1e-6)
    given = {
        "stretch": 0.5, "rot90": 0.5, "flip_horizontal": 0.5, "flip_vertical": 0.5, "rotate": 0.3, "zoom": 0.5,
        "dropout": 0.5, "blur": 0.5, "brightness": 0.5, "tone": 0.5, "noise": 0.5, "fancy_pca": 0.2, "fog": 0.2,
        "shadow": 0.2, "sun_flare": 0.2, "view": 0.0, "transpose": 0.0,
    }  # fmt: skip
    assert {key: getattr(pretrain.augment, key) for key in given} == given
    assert {getattr(finetune.augment, key) for key in given} == {0.0}


def test_the_best_recipe_has_what_the_field_gained_by() -> None:
    best, small = resolved("best"), resolved("small")
    assert best.encoder == "tu-tf_efficientnetv2_l"
    assert best.gradient_checkpointing
    for config in (best, small):
        (stage,) = config.stages.values()
        assert (config.fold_by, config.folds, config.tta) == ("place", 10, "d4")
        assert (config.model.agl_head, config.model.scale_head) == ("gsd", "prior")
        assert (stage.loss.agl_kind, stage.crop) == ("r2", 512)
        assert stage.ema > 0


def test_what_is_not_in_a_recipe_is_the_default() -> None:
    default = TrainConfig()
    for path in recipes():
        assert train_config({"recipe": path.stem}).log_every == default.log_every
