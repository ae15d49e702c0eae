"""Which values make sense together, for users of the command line and of Python alike."""

import re
from copy import deepcopy
from dataclasses import fields

import pytest

from agl_core.config import EnsembleConfig, EvaluateConfig, PredictConfig, StageConfig, TrainConfig, WorldConfig
from agl_core.errors import UserError
from agl_core.validate import validate
from agl_core.validate.rules import RULES


def good() -> TrainConfig:
    return TrainConfig(stages={"a": StageConfig(), "b": StageConfig(start="a/best")})


def changed(**values: object) -> TrainConfig:
    """A good configuration with other values; `__` stands for a dot."""
    config = deepcopy(good())
    for key, value in values.items():
        *groups, last = key.split("__")
        node: object = config
        for group in groups:
            node = node[group] if isinstance(node, dict) else getattr(node, group)
        setattr(node, last, value)
    return config


ACCEPTED = [
    {},
    {"fold": -1},
    {"fold": 39},
    {"seed": 2**32 - 1},
    {"stages__a__crop": 32, "stages__a__micro_batch": 2},
    {"stages__a__crop": 64, "stages__a__micro_batch": 1},
    {"workers": 0},
    {"stages__a__crop": 32},
    {"stages__a__batch": 6, "stages__a__micro_batch": 3},
    {"stages__a__start": "other/weights.safetensors"},
    {"stages__b__start": "a/last"},
    {"stages__b__start": "encoder"},
    {"stages__a__augment__rot90": 1.0},
    {"stages__a__optimizer__clip": 0.0},
    {"stages__a__loss__agl": 0.0},
    {"stages__a__length": "1 step"},
    {"max_agl": {"default": 655.34}},
    {"model__decoder": "fpn"},
    {"model__decoder": "unetplusplus", "model__attention": "scse"},
    {"gradient_checkpointing": True, "encoder": "tu-resnet10t"},
    {"stages__a__ema": 0.999, "stages__b__start": "a/last-ema"},
    {"stages__b__start": "a/last", "stages__b__optimizer__resume": True},
    {"stages__a__schedule__name": "flat-cosine", "stages__a__schedule__warmup": 0.7},
    {
        "stages__a__loss__agl": 0.0,
        "stages__a__loss__scale": 0.0,
        "stages__a__loss__direction": 0.0,
        "stages__a__loss__magnitude": 1.0,
    },
]


@pytest.mark.parametrize("values", ACCEPTED, ids=str)
def test_values_that_make_sense_are_accepted(values: dict[str, object]) -> None:
    validate(changed(**values))


REFUSED = [
    ({"fold": 40}, "fold is 40"),
    ({"fold": -2}, "fold is -2"),
    ({"folds": 1}, "folds is 1"),
    ({"seed": -1}, "seed is -1: must be 0 to 4294967295"),
    ({"seed": 2**32}, "seed is 4294967296"),
    ({"stages__a__crop": 32, "stages__a__micro_batch": 1}, "batch norm needs more than one value per channel"),
    ({"workers": -1}, "workers is -1"),
    ({"threads": 0}, "threads is 0"),
    ({"log_every": 0}, "log_every is 0"),
    ({"fold_by": "street"}, "choose one of city, place"),
    ({"stages": {}}, "no stages"),
    ({"stages": {"a b": StageConfig()}}, "stage name 'a b'"),
    ({"max_agl": {"ARG": 100.0}}, "max_agl has no value for 'default'"),
    ({"max_agl": {"default": 0.0}}, "max_agl.default is 0"),
    ({"model__decoder_channels": [1, 2, 3]}, "five positive numbers"),
    ({"model__pose_dropout": 1.0}, "model.pose_dropout is 1.0"),
    ({"checkpoint__every": "often"}, "checkpoint.every is 'often'"),
    ({"checkpoint__interval": "soon"}, "checkpoint.interval is 'soon'"),
    ({"checkpoint__keep_every": "3"}, "checkpoint.keep_every is '3'"),
    ({"checkpoint__grace": 0.0}, "checkpoint.grace is 0"),
    ({"checkpoint__patience": -1.0}, "checkpoint.patience is -1"),
    ({"divergence__max_skips": 0}, "divergence.max_skips is 0"),
    ({"divergence__max_rollbacks": -1}, "divergence.max_rollbacks is -1"),
    ({"watchdog__minutes": -1.0}, "watchdog.minutes is -1"),
    ({"watchdog__factor": 0.5}, "watchdog.factor is 0.5"),
    ({"restart__crashes": 0}, "restart.crashes is 0: must be 1 or more"),
    ({"restart__inside": 0}, "restart.inside is 0: must be 1 or more"),
    ({"restart__fruitless": -1}, "restart.fruitless is -1: must be 1 or more"),
    ({"checkpoint__keep": 0}, "checkpoint.keep is 0"),
    ({"stages__a__crop": 100}, "stages.a.crop is 100: must be a positive multiple of 32"),
    ({"stages__a__crop": 0}, "stages.a.crop is 0"),
    ({"stages__a__batch": 32, "stages__a__micro_batch": 5}, "choose one of 1, 2, 4, 8, 16, 32"),
    ({"stages__a__micro_batch": 0}, "stages.a.micro_batch is 0"),
    ({"stages__a__length": "soon"}, "stages.a.length is 'soon'"),
    ({"stages__a__length": "0 steps"}, "stages.a.length is '0 steps'"),
    ({"stages__b__validate_every": "1 day"}, "stages.b.validate_every is '1 day'"),
    ({"stages__a__start": "b/best"}, "stages.a.start is 'b/best': choose one of encoder, or"),
    ({"stages__b__start": "a"}, "choose one of encoder, a/best, a/last, or"),
    ({"stages__a__augment__rot90": 1.5}, "stages.a.augment.rot90 is 1.5: must be between 0 and 1"),
    ({"stages__a__augment__transpose": -0.1}, "stages.a.augment.transpose"),
    ({"stages__a__loss__scale": -1.0}, "stages.a.loss.scale is -1.0"),
    (
        {"stages__a__loss__agl": 0.0, "stages__a__loss__scale": 0.0, "stages__a__loss__direction": 0.0},
        "nothing to learn",
    ),
    ({"stages__a__optimizer__lr": 0.0}, "stages.a.optimizer.lr is 0.0"),
    ({"stages__a__optimizer__lr": float("nan")}, "stages.a.optimizer.lr is nan: give a finite number"),
    ({"stages__a__optimizer__weight_decay": float("inf")}, "stages.a.optimizer.weight_decay is inf"),
    ({"stages__a__schedule__name": "linear"}, "unknown stages.a.schedule.name 'linear'"),
    ({"stages__a__schedule__warmup": 2.0}, "stages.a.schedule.warmup is 2.0"),
    ({"stages__a__schedule__half_period": 0}, "stages.a.schedule.half_period is 0"),
    ({"stages__a__schedule__floor": 0.1}, "must not be above stages.a.optimizer.lr"),
    (
        {"stages__a__schedule__name": "flat-cosine", "stages__a__schedule__warmup": 0.8},
        "warmup is 0.8 but schedule.flat",
    ),
    ({"stages__a__schedule__flat": 1.1}, "stages.a.schedule.flat is 1.1"),
    ({"stages__a__schedule__initial": -0.1}, "stages.a.schedule.initial is -0.1"),
    ({"stages__a__loss__agl_kind": "l1"}, "unknown stages.a.loss.agl_kind 'l1'"),
    ({"stages__a__loss__direction_kind": "l1"}, "unknown stages.a.loss.direction_kind 'l1'"),
    ({"stages__a__loss__huber_delta": 0.0}, "stages.a.loss.huber_delta is 0.0"),
    ({"stages__a__loss__magnitude": -1.0}, "stages.a.loss.magnitude is -1.0"),
    ({"stages__a__optimizer__name": "sgd"}, "unknown stages.a.optimizer.name 'sgd'"),
    ({"stages__a__ema": 1.0}, "stages.a.ema is 1.0: must be 0 or more and less than 1"),
    ({"stages__b__start": "a/last-ema"}, "choose one of encoder, a/best, a/last, or"),
    ({"stages__b__optimizer__resume": True}, "moments belong to the last weights of an earlier stage"),
    ({"stages__b__start": "a/best", "stages__b__optimizer__resume": True}, "give <earlier stage>/last"),
    ({"model__decoder": "linknet"}, "unknown model.decoder 'linknet'"),
    ({"model__decoder": "fpn", "model__decoder_channels": [64, 48, 16, 16, 8]}, "needs a multiple of 32"),
    ({"model__decoder": "fpn", "model__decoder_channels": [64, 32, 16, 16, 8]}, "at least 64"),
    ({"model__decoder": "manet", "model__attention": "scse"}, "which the decoder manet does not have"),
    ({"gradient_checkpointing": True}, "which encoder 'efficientnet-b7' does not have"),
    ({"tta": "d8"}, "unknown tta 'd8'"),
]


@pytest.mark.parametrize(("values", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_values_that_make_no_sense_are_refused_with_key_and_remedy(values: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as refusal:
        validate(changed(**values))
    assert words in str(refusal.value)


@pytest.mark.parametrize("config", RULES, ids=lambda config: config.__name__)
def test_every_rule_names_a_key_that_exists(config: type) -> None:
    for key in RULES[config]:
        node = config()
        for part in key.split("."):
            assert hasattr(node, part)
            node = getattr(node, part)


def test_other_verbs_are_checked_too() -> None:
    with pytest.raises(UserError, match="tiles is 0"):
        validate(WorldConfig(tiles=0))
    with pytest.raises(UserError, match="seed is 4294967296"):
        validate(WorldConfig(seed=2**32))
    with pytest.raises(UserError, match="window is 33"):
        validate(PredictConfig(window=33))
    with pytest.raises(UserError, match="overlap is 256 but window is 256"):
        validate(PredictConfig(data="d", window=256))
    validate(PredictConfig(data="d", window=288))


def test_the_split_of_a_data_set_does_not_go_with_single_images() -> None:
    with pytest.raises(UserError, match="split is 'train', but --images are of no data set: leave --split out"):
        validate(PredictConfig(images="i", split="train"))
    validate(PredictConfig(images="i"))
    validate(PredictConfig(data="d", split="train"))


def test_the_help_of_an_option_speaks_of_options_that_its_verb_has() -> None:
    for verb in (PredictConfig, EnsembleConfig, EvaluateConfig):
        names = {"--" + one.name.replace("_", "-") for one in fields(verb)}
        for one in fields(verb):
            told = set(re.findall(r"(?<!`evaluate )--[a-z][a-z-]*", one.metadata["help"]))
            assert told <= names, (verb, one.name)
