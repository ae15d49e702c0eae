"""Values that make sense together in the verbs that make maps."""

from collections.abc import Mapping

from agl_core.config import EnsembleConfig, PredictConfig
from agl_core.errors import UserError
from agl_core.validate.rules import STRIDE
from agl_core.validate.train import HIGHEST_AGL

HEIGHT_FACTORS = 0.1, 10.0  # beyond these, heights are not in metres


def check_maps(config: PredictConfig | EnsembleConfig) -> None:
    """Raise a `UserError` for the first value that cannot be used together with the others."""
    _check_table("max_agl", config.max_agl, 0.0, HIGHEST_AGL)
    _check_table("height_factor", config.height_factor, *HEIGHT_FACTORS)
    _check_member_weights(config.member_weights)
    if config.archive and not config.archive.endswith((".tar.gz", ".tgz", ".tar")):
        raise UserError(f"archive is {config.archive!r}: give the name of a .tar.gz or .tar file")
    if isinstance(config, PredictConfig):
        _check_predict(config)


def _check_predict(config: PredictConfig) -> None:
    if config.window and config.overlap > config.window - STRIDE:
        raise UserError(
            f"overlap is {config.overlap} but window is {config.window}: windows begin {STRIDE} pixels apart at least, "
            f"so that it must be at most {config.window - STRIDE}"
        )
    if config.data and config.images:
        raise UserError("both data and images are given: give --data for a data set or --images for single images")
    if not (config.data or config.images):
        raise UserError("nothing to predict: give the folder of a data set with --data, or images with --images")
    if config.images and config.split != PredictConfig().split:
        raise UserError(
            f"split is {config.split!r}, but --images are of no data set: leave --split out, or give --data"
        )
    if config.data and (config.city or config.gsd is not None):
        key = "city" if config.city else "gsd"
        raise UserError(f"{key} is given, but the data set tells its own in metadata.csv: leave --{key} out")


def _check_table(key: str, table: Mapping[str, float], least: float, highest: float) -> None:
    for city, value in table.items():
        if not (least <= value <= highest and value > 0):
            limit = f"at least {least:g}" if least else "greater than 0"
            raise UserError(f"{key}.{city} is {value:g}: must be {limit} and at most {highest:g}")


def _check_member_weights(text: str) -> None:
    for part in text.split(",") if text else []:
        try:
            holds = 0 < float(part) < float("inf")
        except ValueError:
            holds = False
        if not holds:
            raise UserError(f"member_weights is {text!r}: give a number greater than 0 for each member, such as 2,1,1")
