"""Typed configuration: every key of every verb, with its default and one sentence of documentation.

A key has one name everywhere: `--some-key VALUE` and `some_key=VALUE` on the command line, `some_key: VALUE` in a
recipe, `config.some_key` in Python. Groups are reached with dots: `stages.pretrain.optimizer.lr=3e-4`.
"""

from pathlib import Path

from agl_core.config.data import AugmentSheetConfig, PrepareConfig, WorldConfig
from agl_core.config.maps import (
    EnsembleConfig,
    EvaluateConfig,
    ExportConfig,
    PredictConfig,
    QuicklookConfig,
    RectifyConfig,
)
from agl_core.config.model import FitConfig, RecipeConfig, WeightsConfig
from agl_core.config.option import CODECS, option, options
from agl_core.config.runs import (
    CancelConfig,
    DoctorConfig,
    DrillConfig,
    LogsConfig,
    PlanConfig,
    ReportConfig,
    ResumeConfig,
    StatusConfig,
    WatchConfig,
)
from agl_core.config.stage import AugmentConfig, LossConfig, ModelConfig, OptimizerConfig, ScheduleConfig, StageConfig
from agl_core.config.train import (
    CheckpointConfig,
    DivergenceConfig,
    NotifyConfig,
    RestartConfig,
    TrainConfig,
    WatchdogConfig,
)

RECIPES = Path(__file__).parent.parent / "recipes"

__all__ = [
    "CODECS",
    "RECIPES",
    "AugmentConfig",
    "AugmentSheetConfig",
    "CancelConfig",
    "CheckpointConfig",
    "DivergenceConfig",
    "DoctorConfig",
    "DrillConfig",
    "EnsembleConfig",
    "EvaluateConfig",
    "ExportConfig",
    "FitConfig",
    "LogsConfig",
    "LossConfig",
    "ModelConfig",
    "NotifyConfig",
    "OptimizerConfig",
    "PlanConfig",
    "PredictConfig",
    "PrepareConfig",
    "QuicklookConfig",
    "RecipeConfig",
    "RectifyConfig",
    "ReportConfig",
    "RestartConfig",
    "ResumeConfig",
    "ScheduleConfig",
    "StageConfig",
    "StatusConfig",
    "TrainConfig",
    "WatchConfig",
    "WatchdogConfig",
    "WeightsConfig",
    "WorldConfig",
    "option",
    "options",
]
