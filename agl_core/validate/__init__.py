"""Values that make sense together: what a configuration must fulfil before anything is done with it."""

import math
from dataclasses import is_dataclass
from typing import Any

from agl_core.config import EnsembleConfig, PredictConfig, TrainConfig, options
from agl_core.errors import UserError, valid_choice
from agl_core.validate.maps import check_maps
from agl_core.validate.rules import check_rules
from agl_core.validate.train import check_train


def validate(config: Any) -> None:
    """Check every value of the configuration of any verb; nothing is read, written or imported for it.

    Raises:
        UserError: one sentence with the key, its value and the valid values.
    """
    _check_choices(config, "")
    _check_finite(config, "")
    check_rules(config, "")
    if isinstance(config, TrainConfig):
        check_train(config)
    elif isinstance(config, PredictConfig | EnsembleConfig):
        check_maps(config)


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
