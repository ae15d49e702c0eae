"""Predictions and truth on disk: which images there are, where they lie, and what one pass over each pair finds."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from agl_core.config import EvaluateConfig
from agl_core.data.catalog import read_metadata
from agl_core.data.tiles import UNITS, OpenAgl, agl_size, open_agl, read_vflow
from agl_core.errors import UserError
from agl_core.files import read_json
from agl_core.geometry import Pose
from agl_core.scoring.errors import Measured, height_edges, measure, nothing_measured
from agl_core.scoring.score import ImageResult
from agl_core.scoring.sums import told_holes, told_sizes

AGL, VFLOW = "_AGL.tif", "_VFLOW.json"
_ABOUT, _ABOUT_FORMAT = "about.json", "geopose-predictions-2"  # what `agl_core.inference` leaves beside predictions
_HIGHEST_SCALE = 1e6  # px/m; a view one degree above the horizon at one centimetre per pixel has 6e3
_STRIP = 2**22  # pixels read at a time, a tile of 2048 x 2048: what a thread holds does not depend on the image's size

Found = TypeVar("Found")


@dataclass(frozen=True)
class Pairs:
    """Two folders to be compared, and the units of their files.

    ids: the images to score, sorted; gsds: metres per pixel by id, empty where no metadata.csv tells; note: what must
    be known of the images and their cities.
    """

    predictions: Path
    truth: Path
    unit: str
    true_unit: str
    above: float
    ids: list[str]
    cities: Callable[[str], str | None]
    gsds: dict[str, float]
    note: str

    def judge(self, image: str) -> ImageResult | list[str]:
        """The result of one image, or everything that is wrong with it. Memory: a few strips, whatever its size."""
        if not self.predicted(image):
            return [f"{image} is not predicted: {self.predictions} has neither its AGL nor its VFLOW"]
        problems: list[str] = []

        def read(function: Callable[[Path, str], Found], path: Path) -> Found | None:
            try:
                return function(path, self.true_unit if path.parent == self.truth else self.unit)
            except UserError as error:
                problems.append(str(error))
                return None

        true_path, path = self.truth / f"{image}{AGL}", self.predictions / f"{image}{AGL}"
        pose = read(_read_pose, self.predictions / f"{image}{VFLOW}")
        true_pose_path = self.truth / f"{image}{VFLOW}"
        true_pose = read(_read_pose, true_pose_path) if true_pose_path.exists() else None
        measured = None
        with ExitStack() as stack:
            true_agl = read(lambda name, unit: stack.enter_context(open_agl(name, unit)), true_path)
            agl = read(lambda name, unit: stack.enter_context(open_agl(name, unit)), path)
            if true_agl is not None and agl is not None:
                measured = self._measure(true_agl, agl, true_pose, pose or Pose(0, 0), problems)
        city = self.cities(image)
        if city is None:
            problems.append(f"{image} has no city in the metadata")
        if city is None or measured is None or pose is None or problems:
            return problems
        return ImageResult(image, city, measured.sums, true_pose, pose, measured.errors)

    def predicted(self, image: str) -> bool:
        """Whether there is a prediction, finished or not."""
        return any((self.predictions / f"{image}{suffix}").exists() for suffix in (AGL, VFLOW))

    def _measure(
        self, true_agl: OpenAgl, agl: OpenAgl, truth: Pose | None, prediction: Pose, problems: list[str]
    ) -> Measured | None:
        sizes = (true_agl.height, true_agl.width), (agl.height, agl.width)
        if sizes[0] != sizes[1]:
            problems.append(f"{agl.path}: {told_sizes(*sizes)}")
            return None
        edges = height_edges(self.above)
        found, damaged = nothing_measured(edges), False
        blocks = max(true_agl.block_rows, agl.block_rows)
        rows = max(_STRIP // true_agl.width // blocks, 1) * blocks
        for top in range(0, true_agl.height, rows):
            # Both are read, even if one is damaged: the other's damage is to be listed as well.
            true_strip, strip = (_strip(file, top, rows, problems) for file in (true_agl, agl))
            if true_strip is None or strip is None:
                damaged = True
                break
            found += measure(true_strip, strip, edges, truth, prediction)
        if found.holes:
            problems.append(f"{agl.path}: {told_holes(found.holes)}")
        return None if damaged else found


def _strip(file: OpenAgl, top: int, rows: int, problems: list[str]) -> NDArray[np.uint16] | None:
    try:
        return file.read(top, min(rows, file.height - top))
    except UserError as error:
        problems.append(str(error))
        return None


def _read_pose(path: Path, unit: str) -> Pose:
    pose = read_vflow(path, unit)
    if pose.scale > _HIGHEST_SCALE:
        raise UserError(f"{path} has a scale of {pose.scale:g} pixels per metre, which no view has")
    return pose


def find_pairs(config: EvaluateConfig) -> Pairs:
    """The images that `config` asks for; nothing of them is read.

    Raises:
        UserError: a folder is missing, there is no truth, or, with `subset`, no prediction of an image that has one;
            metadata cannot be read; or the predictions' about.json does not know some of them, which may be of other
            weights.
    """
    predictions, truth = _folder(config.predictions, "--predictions"), _folder(config.truth, "--truth")
    ids = sorted(_ids(truth, AGL))
    if not ids:
        raise UserError(f"{truth} has no *{AGL} files: give the folder of the truth with --truth")
    # A prediction of which one file is missing is one all the same, and not finished.
    there = _ids(predictions, AGL) | _ids(predictions, VFLOW)
    _check_listed(predictions, there.intersection(ids))
    cities, gsds, note = _cities(config.metadata, truth)
    if config.subset:
        known, ids = len(ids), [image for image in ids if image in there]
        if not ids:
            raise UserError(f"{predictions} predicts none of the {known} images of {truth}: check --predictions")
        note = "; ".join(part for part in (f"{len(ids)} of the {known} images that have a truth", note) if part)
    unit, true_unit = (_unit(folder, sorted(there.intersection(ids)), config.unit) for folder in (predictions, truth))
    return Pairs(predictions, truth, unit, true_unit, config.above, ids, cities, gsds, note)


def _unit(folder: Path, ids: list[str], asked: str) -> str:
    """The unit that was asked for; with "auto", that of the folder's first heights that can be read."""
    if asked != "auto":
        return asked
    for image in ids:
        for unit in UNITS:
            with suppress(UserError):
                agl_size(folder / f"{image}{AGL}", unit)
                return unit
    return UNITS[0]


def _check_listed(predictions: Path, ids: set[str]) -> None:
    """Raise UserError if about.json lists predictions, but not all of `ids`."""
    try:
        about = read_json(predictions / _ABOUT)
    except UserError:  # none, or a damaged one: nothing is known
        return
    images = about.get("images") if isinstance(about, dict) and about.get("format") == _ABOUT_FORMAT else None
    if images and (unlisted := sorted(ids.difference(images))):
        more = f" and {len(unlisted) - 5} more" if len(unlisted) > 5 else ""
        raise UserError(
            f"{predictions} has predictions of {', '.join(unlisted[:5])}{more}, which its {_ABOUT} does not list: they "
            "are of something else; predict them too, into an empty folder"
        )


def _folder(path: str, option: str) -> Path:
    if not path or not Path(path).is_dir():
        raise UserError(f"{path or '(nothing)'} is not a folder: give an existing one with {option}")
    return Path(path)


def _ids(folder: Path, suffix: str) -> set[str]:
    return {path.name.removesuffix(suffix) for path in folder.glob(f"[!.]*{suffix}")}


def _cities(metadata: str, truth: Path) -> tuple[Callable[[str], str | None], dict[str, float], str]:
    """A function from image id to city (None: not listed), the gsds, and a remark on where the cities come from."""
    path = Path(metadata) if metadata else _found([truth / "metadata.csv", truth.absolute().parent / "metadata.csv"])
    if path is None:
        note = "no metadata.csv found: cities are the beginnings of the ids, up to the first '_'"
        return (lambda image: image.partition("_")[0]), {}, note
    rows = read_metadata(path)
    cities = {image: about.city for image, about in rows.items()}
    return cities.get, {image: about.gsd for image, about in rows.items()}, ""


def _found(paths: Iterable[Path]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)
