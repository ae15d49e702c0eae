"""The verb `ensemble`: folders of predictions of the same images become one folder of their averages."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agl_core.config import EnsembleConfig
from agl_core.data.tiles import UNITS
from agl_core.durable.exits import InterruptedRunError
from agl_core.durable.guard import Guard
from agl_core.errors import UserError, valid_choice
from agl_core.files import writable_folder
from agl_core.inference.archive import check_name, pack
from agl_core.inference.calibration import Corrections, corrections
from agl_core.inference.combine import COMBINE, combine_heights, combine_poses, scaled_weights
from agl_core.inference.folder import AGL
from agl_core.inference.memberfolders import (
    Place,
    common_georeference,
    common_holes,
    images_of,
    listed,
    member_folders,
    places_of,
    read_prediction,
    sources_of,
    survey,
)
from agl_core.inference.members import parse_weights
from agl_core.inference.predictor import Prediction
from agl_core.inference.sharing import joined
from agl_core.inference.writer import PredictionWriter
from agl_core.machine import cores
from agl_core.reporting.progress import Progress

_MEMORY = 4 * 2**30  # bytes of heights that are averaged at the same time, one image aside
_STRIP = 2**22  # pixels of heights in float64 at a time


@dataclass(frozen=True)
class Joining:
    """How predictions are joined: the members' weights (none: all alike), `mean` or `median` of the heights, whether
    their standard deviation is wanted, and what is corrected afterwards."""

    weights: tuple[float, ...] = ()
    how: str = "mean"
    spread: bool = False
    correct: Corrections = Corrections()


def ensemble(config: EnsembleConfig, guard: Guard | None = None) -> int:
    """Write the average of the members' predictions of every image to `config.out`; returns the number of images.

    The members must have predicted the same images. Averages that the folder holds already and whose predictions,
    weights and corrections have not changed since are kept, so that an interrupted call is continued by giving it
    again; the result does not depend on the order of the members. `guard` is asked before every image whether to leave.

    Raises:
        UserError: with everything that is wrong in one message: files that are missing, damaged or of another unit,
            sizes that differ, cities that corrections need and nobody tells, a folder that others are writing to or
            that holds what is no prediction, before anything is written; holes that not all members have, when all
            other images are written.
        InterruptedRunError: `guard` asked to leave; every image is whole or not there.
    """
    valid_choice("unit", config.unit, list(UNITS))
    members, out = member_folders(config.members), Path(config.out)
    joining = Joining(
        tuple(scaled_weights(parse_weights(config.member_weights, len(members)), len(members))),
        valid_choice("combine", config.combine, list(COMBINE)),
        config.uncertainty,
        corrections(config),
    )
    if out.resolve() in [member.resolve() for member in members]:
        raise UserError(f"{out} is a member itself: choose another folder with --out")
    if config.archive:
        check_name(Path(config.archive))
    ids = sorted({image for member in members for image in images_of(member)})
    if not ids:
        raise UserError(f"there are no predictions (*{AGL}) in {', '.join(map(str, members))}: give their folders")
    with ThreadPoolExecutor(min(8, cores())) as pool:
        surveys = list(pool.map(lambda image: survey(image, members, config.unit), ids))
    if problems := [line for found, _ in surveys for line in found]:
        raise UserError(listed(problems))
    places = places_of(ids, members, config.unit, joining.correct)
    writer = PredictionWriter(writable_folder(out, "--out"), config.unit, spread=config.uncertainty)
    sources = sources_of(ids, members, joining.weights, places)

    def begin(alone: bool) -> set[str]:
        if not alone:
            raise UserError(
                f"{out} is being written to by another call: wait for its end, or choose another folder with --out"
            )
        return writer.keep(f"{len(members)} members", _settings(config, joining), sources)

    def average_one(image: str) -> str | None:
        """What is wrong with the image; None if it is written, or if nothing more shall be."""
        if guard is not None and guard.requested:
            return None
        try:
            predictions = [read_prediction(image, member, config.unit) for member in members]
            unknown = common_holes(image, members, predictions)
            place = places.get(image, Place())
            averaged = average(predictions, joining, place.city, place.gsd)
            writer.write(image, averaged, common_georeference(image, members), unknown)
        except UserError as error:
            return str(error)
        done.append(image)
        return None

    done: list[str] = []
    with joined(out, begin) as (_, kept):
        todo = [image for image in ids if image not in kept]
        with (
            ThreadPoolExecutor(_threads(max(pixels for _, pixels in surveys), len(members))) as pool,
            Progress("ensemble", total=len(ids), unit="images", start=len(kept)) as progress,
        ):
            for problem in pool.map(average_one, todo):
                problems += [problem] if problem is not None else []
                progress.advance()
        told = f"{len(kept) + len(done)} of {len(ids)} images are averaged"
        if len(done) + len(problems) < len(todo):
            _leave(guard, told)
        if problems:
            raise UserError(listed(problems))
        if config.archive:
            pack(out, ids, Path(config.archive), lambda: _leave(guard, told))
    earlier = f", {len(kept)} of them before" if kept else ""
    print(f"{len(ids)} images averaged over {len(members)} members{earlier} -> {config.out}")
    return len(ids)


def average(
    predictions: Sequence[Prediction], joining: Joining | None = None, city: str | None = None, gsd: float | None = None
) -> Prediction:
    """The joined heights, rounded to centimetres, and the joined pose (see `agl_core.inference.combine`), corrected.

    Without weights and corrections the mean is exact to the last bit before it is rounded: sums of centimetres are
    whole numbers, which float64 holds exactly. What it does not depend on is the order of the predictions.
    """
    joining = joining or Joining()
    correct = joining.correct
    shape = predictions[0].agl_cm.shape
    agl_cm = np.empty(shape, np.uint16)
    spread_cm = np.empty(shape, np.uint16) if joining.spread else None
    step = max(1, _STRIP // shape[1])
    for top in range(0, shape[0], step):
        rows = slice(top, top + step)
        strips = [prediction.agl_cm[rows] for prediction in predictions]
        heights, spread = combine_heights(strips, joining.weights, joining.how, joining.spread)
        if correct != Corrections():
            heights = correct.heights(heights / 100, city) * 100
        agl_cm[rows] = np.rint(heights)
        if spread_cm is not None and spread is not None:
            spread_cm[rows] = np.rint(correct.spread(spread / 100, city) * 100)
    pose = combine_poses([prediction.pose for prediction in predictions], joining.weights)
    return Prediction(agl_cm, correct.pose(pose, city, gsd), spread_cm)


def _settings(config: EnsembleConfig, joining: Joining) -> dict[str, Any]:
    """On what all averages depend."""
    corrected = joining.correct.as_settings()
    return {
        "members": len(joining.weights),
        "unit": config.unit,
        "combine": joining.how,
        **({"corrections": corrected} if corrected else {}),
    }


def _threads(pixels: int, members: int) -> int:
    """How many images are averaged at a time: centimetres of all members, and of the result with its spread."""
    return max(1, min(8, cores(), _MEMORY // (pixels * 2 * (members + 2) + 1)))


def _leave(guard: Guard | None, told: str) -> None:
    """End if `guard` asks for it."""
    if guard is not None and guard.requested:
        raise InterruptedRunError(guard.signal or "a signal", None, told)
