"""Values that make sense together: what a configuration must fulfil before anything is done with it."""

import math
import re
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from agl_core.config import (
    AugmentConfig,
    AugmentSheetConfig,
    DrillConfig,
    EnsembleConfig,
    EvaluateConfig,
    PredictConfig,
    PrepareConfig,
    ReportConfig,
    StageConfig,
    TrainConfig,
    WorldConfig,
    options,
)
from agl_core.errors import UserError, valid_choice

STRIDE = 32  # of the network: the side of a crop or of a window is a multiple of it
RESERVED = ("prepare", "predict", "evaluate", "report", "ensemble")  # the jobs of a run that are no stages
HIGHEST_AGL = 655.34  # metres: 65534 cm, the largest height a uint16 file can hold beside 65535 for unknown

Rule = tuple[Callable[[Any], bool], str]
PROBABILITY: Rule = (lambda value: 0 <= value <= 1, "between 0 and 1")
POSITIVE: Rule = (lambda value: value > 0, "greater than 0")
NOT_NEGATIVE: Rule = (lambda value: value >= 0, "0 or more")


def at_least(least: int) -> Rule:
    """The rule that a number is `least` or more."""
    return (lambda value: value >= least), f"{least} or more"


SEED: Rule = (lambda value: 0 <= value < 2**32, f"0 to {2**32 - 1}")
CROP: Rule = (lambda value: value > 0 and value % STRIDE == 0, f"a positive multiple of {STRIDE}")

HALF_TURN: Rule = (lambda value: 0 <= value <= 180, "between 0 and 180")
CHANCES = tuple(field.name for field in options(AugmentConfig) if field.metadata["help"].startswith("chance"))

RULES: dict[type[Any], dict[str, Rule]] = {
    TrainConfig: {
        "seed": SEED,
        "folds": at_least(2),
        "fold": at_least(-1),
        "workers": NOT_NEGATIVE,
        "threads": at_least(1),
        "log_every": at_least(1),
        "model.pose_dropout": ((lambda value: 0 <= value < 1), "0 or more and less than 1"),
        "checkpoint.keep": at_least(1),
        "checkpoint.grace": POSITIVE,
        "checkpoint.patience": NOT_NEGATIVE,
        "divergence.max_skips": at_least(1),
        "divergence.max_rollbacks": NOT_NEGATIVE,
        "restart.crashes": at_least(1),
        "restart.inside": at_least(1),
        "restart.fruitless": at_least(1),
        "watchdog.minutes": NOT_NEGATIVE,
        "watchdog.factor": at_least(1),
    },
    StageConfig: {
        "crop": CROP,
        "batch": at_least(1),
        "micro_batch": at_least(1),
        **{f"augment.{name}": PROBABILITY for name in CHANCES},
        "augment.stretch_most": at_least(1),
        "augment.stretch_highest": POSITIVE,
        "augment.view_degrees": HALF_TURN,
        "augment.view_least": POSITIVE,
        "augment.view_most": POSITIVE,
        "augment.rotate_degrees": HALF_TURN,
        "augment.zoom_least": POSITIVE,
        "augment.zoom_most": POSITIVE,
        "loss.agl": NOT_NEGATIVE,
        "loss.direction": NOT_NEGATIVE,
        "loss.scale": NOT_NEGATIVE,
        "optimizer.lr": POSITIVE,
        "optimizer.weight_decay": NOT_NEGATIVE,
        "optimizer.clip": NOT_NEGATIVE,
        "schedule.warmup": PROBABILITY,
        "schedule.half_period": at_least(1),
        "schedule.floor": NOT_NEGATIVE,
    },
    WorldConfig: {
        "tiles": at_least(1),
        "size": at_least(1),
        "seed": SEED,
        "cities": at_least(1),
        "views": at_least(1),
        "test_share": PROBABILITY,
        "workers": at_least(1),
    },
    PrepareConfig: {"workers": at_least(1)},
    PredictConfig: {
        "window": ((lambda value: value >= 0 and value % STRIDE == 0), f"0 or a multiple of {STRIDE}"),
        "overlap": NOT_NEGATIVE,
        "threads": at_least(1),
    },
    AugmentSheetConfig: {"crop": at_least(32), "seed": SEED},
    EnsembleConfig: {},
    EvaluateConfig: {},
    ReportConfig: {},
    DrillConfig: {
        "interruptions": at_least(1),
        "processes": at_least(1),
        "workers": NOT_NEGATIVE,
        "steps": at_least(1),
        "seed": SEED,
        "crop": CROP,
        "batch": at_least(1),
        "micro_batch": at_least(1),
    },
}


def validate(config: Any) -> None:
    """Check every value of the configuration of any verb; nothing is read, written or imported for it.

    Raises:
        UserError: one sentence with the key, its value and the valid values.
    """
    _check_choices(config, "")
    _check_finite(config, "")
    _check_rules(config, "")
    if isinstance(config, TrainConfig):
        _check_train(config)
    elif isinstance(config, PredictConfig) and 0 < config.window <= config.overlap:
        raise UserError(f"overlap is {config.overlap} but window is {config.window}: it must be less than the window")


def _check_train(config: TrainConfig) -> None:
    from agl_core.durable.interval import Interval
    from agl_core.training.schedule import Span

    if config.fold >= config.folds:
        raise UserError(
            f"fold is {config.fold}, but there are {config.folds} folds: "
            f"choose 0 to {config.folds - 1}, or -1 to train on everything"
        )
    for city, highest in config.max_agl.items():
        if not 0 < highest <= HIGHEST_AGL:
            raise UserError(f"max_agl.{city} is {highest:g}: must be greater than 0 and at most {HIGHEST_AGL} metres")
    if "default" not in config.max_agl:
        raise UserError("max_agl has no value for 'default' (all cities that it does not name): add max_agl.default")
    channels = config.model.decoder_channels
    if len(channels) != 5 or min(channels) < 1:
        raise UserError(f"model.decoder_channels is {channels}: give five positive numbers, coarsest first")
    Span.parse(config.checkpoint.every, "checkpoint.every")
    Interval.parse(config.checkpoint.interval, "checkpoint.interval")
    if config.checkpoint.keep_every:
        Span.parse(config.checkpoint.keep_every, "checkpoint.keep_every")
    if not config.stages:
        raise UserError(f"recipe {config.recipe!r} has no stages: there is nothing to train")
    for number, (name, stage) in enumerate(config.stages.items()):
        key = f"stages.{name}"
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise UserError(f"stage name {name!r}: use letters, digits, - and _ only")
        if name in RESERVED:
            raise UserError(
                f"stage name {name!r} in recipe {config.recipe!r}: {', '.join(RESERVED)} are jobs of every run, "
                "so call the stage something else"
            )
        _check_rules(stage, f"{key}.")
        for group in ("view", "zoom"):
            least, most = getattr(stage.augment, f"{group}_least"), getattr(stage.augment, f"{group}_most")
            if least > most:
                raise UserError(
                    f"{key}.augment.{group}_least is {least:g} but {group}_most is {most:g}: it must not be greater"
                )
        Span.parse(stage.length, f"{key}.length")
        Span.parse(stage.validate_every, f"{key}.validate_every")
        if stage.batch % stage.micro_batch:
            raise UserError(
                f"{key}.micro_batch is {stage.micro_batch} but must divide {key}.batch, which is {stage.batch}: "
                f"choose one of {', '.join(str(n) for n in range(1, stage.batch + 1) if stage.batch % n == 0)}"
            )
        if stage.micro_batch * (stage.crop // STRIDE) ** 2 < 2:
            raise UserError(
                f"{key}.crop is {stage.crop} and {key}.micro_batch {stage.micro_batch}: batch norm needs more than one "
                f"value per channel at stride {STRIDE}, so take crops of {2 * STRIDE} or two of them"
            )
        if stage.schedule.floor > stage.optimizer.lr:
            raise UserError(
                f"{key}.schedule.floor is {stage.schedule.floor:g} but must not be above "
                f"{key}.optimizer.lr, which is {stage.optimizer.lr:g}"
            )
        if stage.loss.agl == stage.loss.direction == stage.loss.scale == 0:
            raise UserError(f"{key}.loss has weight 0 for every part: there is nothing to learn")
        _check_start(key, stage.start, list(config.stages)[:number])


def _check_start(key: str, start: str, earlier: list[str]) -> None:
    handed_over = [f"{stage}/{which}" for stage in earlier for which in ("best", "last")]
    if start in ("encoder", *handed_over) or Path(start).suffix == ".safetensors":
        return
    raise UserError(
        f"{key}.start is {start!r}: choose one of {', '.join(['encoder', *handed_over])}, "
        "or the path of a weights file (.safetensors)"
    )


def _check_choices(config: Any, prefix: str) -> None:
    for entry in options(config):
        value = getattr(config, entry.name)
        if entry.metadata.get("choices"):
            valid_choice(f"{prefix}{entry.name}", value, list(entry.metadata["choices"]))
        for name, group in _groups(entry.name, value):
            _check_choices(group, f"{prefix}{name}.")


def _check_finite(config: Any, prefix: str) -> None:
    for entry in options(config):
        value = getattr(config, entry.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{prefix}{entry.name} is {value}: give a finite number")
        for name, group in _groups(entry.name, value):
            _check_finite(group, f"{prefix}{name}.")


def _groups(name: str, value: Any) -> list[tuple[str, Any]]:
    if is_dataclass(value):
        return [(name, value)]
    if isinstance(value, dict):
        return [(f"{name}.{key}", group) for key, group in value.items() if is_dataclass(group)]
    return []


def _check_rules(config: Any, prefix: str) -> None:
    for key, (holds, meaning) in RULES.get(type(config), {}).items():
        value = config
        for part in key.split("."):
            value = getattr(value, part)
        if value is not None and not holds(value):
            raise UserError(f"{prefix}{key} is {value}: must be {meaning}")
