"""The Python API: networks of runs and weights files, and arrays in, arrays out."""

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from agl_core.config import PredictConfig
from agl_core.errors import UserError
from agl_core.inference.calibration import check_tables, corrections
from agl_core.inference.combine import scaled_weights
from agl_core.inference.members import (
    Member,
    check_cities,
    common_cities,
    find_members,
    load_members,
    trained_precision,
    trained_tta,
)
from agl_core.inference.predictor import Prediction, Predictor
from agl_core.model.network import GeoposeNet

Source = str | PathLike[str]


class Model:
    """One or several networks that predict together.

    members: their weights, in the order in which `member_weights` counts them; models: their networks; cities: those
    that all of them know, none if they do not look at the city; predictor: what predicts. Not for several threads at
    the same time.
    """

    def __init__(self, members: Sequence[Member], models: Sequence[GeoposeNet], predictor: Predictor) -> None:
        self.members, self.models, self.predictor = tuple(members), tuple(models), predictor
        cities = common_cities(models)
        self.cities = tuple(cities or ())
        if cities == []:
            told = "; ".join(
                f"{', '.join(model.cities)} ({member.name})" for member, model in zip(members, models, strict=True)
            )
            raise UserError(f"the members know no city in common, {told}: leave some of them out")

    def predict(self, rgb: NDArray[np.uint8], gsd: float, city: str = "") -> Prediction:
        """Heights and pose of one image of any size.

        rgb: (H, W, 3) uint8; gsd: metres per pixel; city: one of `cities`, can be left out where there is only one or
        where the model does not look at it.

        Returns:
            `agl`: (H, W) float32 heights above ground, metres, NaN where unknown, rounded to centimetres; `pose`:
            `scale` in pixels per metre, `angle` in radians; `spread_cm`: the standard deviation if it was asked for.

        Raises:
            UserError: a city that the model does not know or that it has to be told, a gsd that is no length, or a
                network that answers with NaN.
        """
        if not 0 < gsd < math.inf:
            raise UserError(f"gsd is {gsd}: give metres per pixel, a number above 0")
        if not city and len(self.cities) > 1:
            raise UserError(f"the model wants to know the city: give one of {', '.join(self.cities)}")
        city = city or (self.cities[0] if self.cities else "")
        check_cities(self.members, self.models, [city])
        return self.predictor.predict(rgb, city, gsd)


def load_model(
    runs: Source | Sequence[Source],
    weights: str = "best",
    *,
    member_weights: Sequence[float] = (),
    combine: str = "mean",
    members_at_once: str = "auto",
    tta: str = "auto",
    window: int | None = None,
    overlap: int = 256,
    precision: str = "auto",
    device: torch.device | str | None = None,
    max_agl: Mapping[str, float] | None = None,
    height_factor: Mapping[str, float] | None = None,
    calibration: Source = "",
    uncertainty: bool = False,
) -> Model:
    """Load what predicts as the verb `predict` does; all keywords mean what its options mean.

    runs: the folder of a run or of an ensemble of runs, a weights file, or a list of such, which predict together;
    weights: which weights of the runs, `best`, `last`, `last-ema`, `<stage>/best`, ..., or several of these, A,B,...;
    device: the GPU if there is one, otherwise the CPU.

    Raises:
        UserError: no such folder or file, a run without such weights, weights of something else, or a value that
            cannot be used.
    """
    sources = [runs] if isinstance(runs, str | PathLike) else list(runs)
    members = [member for source in sources for member in _members(Path(source), weights)]
    if not members:
        raise UserError("there is nothing to load: give the folder of a run, or a weights file")
    scaled_weights(member_weights, len(members))
    device = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    models, metadata = load_members(members)
    asked = PredictConfig(
        max_agl=dict(max_agl or {}), height_factor=dict(height_factor or {}), calibration=str(calibration)
    )
    if common_cities(models) is not None:  # otherwise an image may be of any city
        check_tables(asked, {city for model in models for city in model.cities})
    correct = corrections(asked, metadata)
    predictor = Predictor(
        models,
        correct.max_agl,
        window,
        overlap,
        [precision if precision != "auto" else trained_precision(one, device) for one in metadata],
        device,
        [tta if tta != "auto" else trained_tta(one) for one in metadata],
        member_weights=tuple(member_weights),
        combine=combine,
        at_once=members_at_once,
        height_factor=correct.height_factor,
        scale_lines=correct.scale_lines,
        spread=uncertainty,
    )
    return Model(members, models, predictor)


def _members(path: Path, weights: str) -> list[Member]:
    path = path if path.name else path.absolute()
    if path.suffix == ".safetensors":
        return find_members(path.parent, "", str(path))
    if not any((path / name).is_file() for name in ("config.yaml", "ensemble.yaml")):
        raise UserError(f"{path} is no run (it has no config.yaml): give the folder of a run, or a .safetensors file")
    return find_members(path.parent, path.name, weights)
