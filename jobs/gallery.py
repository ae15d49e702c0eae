"""The tiles that a report shows: those that cost the score most and least, from predictions and their truth."""

import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agl_core.config import EvaluateConfig
from agl_core.errors import UserError
from agl_core.files import read_json
from agl_core.reporting.report import Gallery
from jobs.many import read_ensemble
from jobs.pipeline import TRUTH
from jobs.runs import Run

if TYPE_CHECKING:
    from agl_core.inference.folder import PredictedImage
    from agl_core.reporting.pictures.tiles import Tile

LARGEST = 4096
"""Side, pixels, of the largest image that is shown: a scene would have to be read whole."""


def gallery(run: Run, count: int, predictions: str = "", truth: str = "") -> Gallery:
    """`count` of the best and of the worst tiles of a run's predictions; of a run that has none, those that training
    shows. predictions, truth: folders that the user names instead of the run's own.

    Raises:
        UserError: folders that the user has named cannot be compared.
    """
    if count == 0:
        return Gallery()
    given = bool(predictions or truth)
    folder = Path(predictions) if predictions else run.predictions
    true = Path(truth) if truth else _truth(run)
    if not given and (true is None or not true.is_dir() or not folder.is_dir()):
        return _fixed(run, count)
    try:
        if true is None:
            raise UserError(f"nothing tells where the truth of {folder} is: give its folder with --truth")
        shares = (None if given else _shares(run)) or _judged(folder, true, _unit(run))
        return _chosen(folder, true, _unit(run), shares, count)
    except (UserError, OSError) as error:
        if given and isinstance(error, UserError):
            raise
        fixed = _fixed(run, count)
        return Gallery(fixed=fixed.fixed, note=f"No tiles of the test images: {error}.")


def _truth(run: Run) -> Path | None:
    """Where the truth of a run's test images is, if its data set has one."""
    try:
        data = read_ensemble(run).data if run.is_ensemble() else run.config().data if run.exists() else ""
    except UserError:
        return None
    return Path(data) / TRUTH if data else None


def _unit(run: Run) -> str:
    try:
        return read_ensemble(run).unit if run.is_ensemble() else run.config().unit if run.exists() else "auto"
    except UserError:
        return "auto"


def _shares(run: Run) -> dict[str, float] | None:
    """What each image takes from the score, by id, from the run's score.json; None where that does not say."""
    try:
        images: dict[str, Any] = read_json(run.score_file)["images"]
        return {str(name): float(values["lost"]) for name, values in images.items()} or None
    except (UserError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _judged(predictions: Path, truth: Path, unit: str) -> dict[str, float]:
    """The same, by scoring every image."""
    from agl_core.scoring.evaluate import judge_all
    from agl_core.scoring.folders import find_pairs
    from agl_core.scoring.score import lost

    asked = EvaluateConfig(predictions=str(predictions), truth=str(truth), unit=unit, subset=True)
    return lost(judge_all(find_pairs(asked)))


def _chosen(predictions: Path, truth: Path, unit: str, shares: dict[str, float], count: int) -> Gallery:
    from agl_core.inference.folder import read_folder

    there = {image.id: image for image in read_folder(predictions, unit=unit)}
    true = {image.id: image for image in read_folder(truth, unit=unit, option="--truth")}
    order = sorted((image for image in shares if image in there and image in true), key=lambda id: (-shares[id], id))
    worst = order[:count]
    best = [image for image in reversed(order) if image not in worst][:count]
    notes: list[str] = []

    def tiles(ids: Sequence[str]) -> "list[Tile]":
        found = []
        for image in ids:
            try:
                found.append(_tile(there[image], true[image]))
            except (UserError, OSError, MemoryError) as error:
                notes.append(f"{image} cannot be shown: {error}.")
        return found

    return Gallery(tiles(best), tiles(worst), lost=shares, note=" ".join(notes))


def _tile(predicted: "PredictedImage", true: "PredictedImage") -> "Tile":
    from agl_core.reporting.pictures.tiles import Tile

    if max(_size(predicted.agl)) > LARGEST:
        raise UserError(f"{predicted.agl} is larger than {LARGEST} pixels")
    source = predicted if predicted.rgb is not None else true
    try:
        rgb = source.read_rgb()
    except UserError:  # it is gone, or somewhere else by now
        rgb = None
    truth, heights = true.read_agl(), predicted.read_agl()
    if truth.shape != heights.shape or (rgb is not None and rgb.shape[:2] != truth.shape):
        raise UserError(f"{predicted.agl} and {true.agl} are not of the same size")
    return Tile(
        predicted.id, true.city or predicted.city or "", rgb, truth, heights, true.read_pose(), predicted.read_pose()
    )


def _size(path: Path) -> tuple[int, int]:
    """Rows and columns of a raster."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    warnings.simplefilter("ignore", NotGeoreferencedWarning)  # tiles need no georeference
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", CPL_LOG=os.devnull), rasterio.open(path) as raster:
        rows, columns = raster.shape
    return rows, columns


def _fixed(run: Run, count: int) -> Gallery:
    """The held-out tiles that the last stage with any has left."""
    from agl_core.reporting.pictures.tiles import read_tiles

    folders = [path for path in sorted((run.path / "tiles").glob("*")) if path.is_dir()]
    if run.exists():
        with suppress(UserError):
            folders = [run.path / "tiles" / stage for stage in run.config().stages]
    for folder in reversed(folders):
        try:
            tiles = list(read_tiles(folder))[: 2 * count] if folder.is_dir() else []
        except (UserError, OSError, ValueError):
            continue
        if tiles:
            note = f"Held-out tiles after the newest best validation of {folder.name}; nothing else is predicted yet."
            return Gallery(fixed=tiles, note=note)
    return Gallery()
