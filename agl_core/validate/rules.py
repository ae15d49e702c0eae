"""Within which limits each number of a configuration must lie."""

from collections.abc import Callable
from typing import Any

from agl_core.config import (
    AugmentConfig,
    AugmentSheetConfig,
    DoctorConfig,
    DrillConfig,
    EnsembleConfig,
    EvaluateConfig,
    ExportConfig,
    FitConfig,
    PlanConfig,
    PredictConfig,
    PrepareConfig,
    QuicklookConfig,
    RectifyConfig,
    ReportConfig,
    StageConfig,
    TrainConfig,
    WatchConfig,
    WorldConfig,
    options,
)
from agl_core.errors import UserError

STRIDE = 32  # of the network: the side of a crop or of a window is a multiple of it

Rule = tuple[Callable[[Any], bool], str]
PROBABILITY: Rule = (lambda value: 0 <= value <= 1, "between 0 and 1")
POSITIVE: Rule = (lambda value: value > 0, "greater than 0")
SHARE: Rule = (lambda value: 0 <= value < 1, "0 or more and less than 1")
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
        "model.pose_dropout": SHARE,
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
        "tensorboard_tiles": NOT_NEGATIVE,
        "notify.stall_minutes": POSITIVE,
        "notify.timeout": POSITIVE,
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
        "loss.magnitude": NOT_NEGATIVE,
        "loss.huber_delta": POSITIVE,
        "optimizer.lr": POSITIVE,
        "optimizer.weight_decay": NOT_NEGATIVE,
        "optimizer.clip": NOT_NEGATIVE,
        "schedule.warmup": PROBABILITY,
        "schedule.half_period": at_least(1),
        "schedule.flat": PROBABILITY,
        "schedule.initial": PROBABILITY,
        "schedule.floor": NOT_NEGATIVE,
        "ema": SHARE,
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
        "processes": at_least(1),
        "gsd": POSITIVE,
    },
    AugmentSheetConfig: {"crop": at_least(32), "seed": SEED},
    FitConfig: {
        "crop": CROP,
        "memory": POSITIVE,
        "most": at_least(1),
        "steps": at_least(1),
        "tiles": at_least(1),
        "threads": at_least(1),
    },
    EnsembleConfig: {},
    EvaluateConfig: {"above": NOT_NEGATIVE},
    RectifyConfig: {"workers": at_least(1)},
    QuicklookConfig: {"width": at_least(64)},
    ExportConfig: {"every": at_least(1)},
    ReportConfig: {"tiles": NOT_NEGATIVE},
    WatchConfig: {"every": POSITIVE},
    DoctorConfig: {"probe_minutes": POSITIVE},
    PlanConfig: {
        "tiles": NOT_NEGATIVE,
        "preemptions_per_day": NOT_NEGATIVE,
        "crashes_per_day": NOT_NEGATIVE,
        "queue_minutes": NOT_NEGATIVE,
        "step_seconds": POSITIVE,
        "save_seconds": NOT_NEGATIVE,
        "startup_seconds": NOT_NEGATIVE,
        "validation_seconds": NOT_NEGATIVE,
        "draws": at_least(10),
        "seed": SEED,
    },
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


def check_rules(config: Any, prefix: str) -> None:
    """Raise a `UserError` for the first number of `config` that is out of its limits; `prefix` comes before its key."""
    for key, (holds, meaning) in RULES.get(type(config), {}).items():
        value = config
        for part in key.split("."):
            value = getattr(value, part)
        if value is not None and not holds(value):
            raise UserError(f"{prefix}{key} is {value}: must be {meaning}")
