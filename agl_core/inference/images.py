"""Which images are to be predicted: those of a data set's split, a single one, a folder, a pattern or a list."""

import csv
import glob
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from agl_core.config import PredictConfig
from agl_core.data.catalog import LONGEST_ID, TileRecord, read_catalog
from agl_core.data.folds import assign_folds
from agl_core.data.tiles import RGB_SUFFIXES
from agl_core.errors import UserError
from agl_core.files import is_file
from agl_core.inference.source import open_image
from agl_core.machine import cores

SUFFIXES = (*RGB_SUFFIXES, ".png", ".jpg", ".jpeg")
"""Of the files that are taken for images in a folder."""

_NO_IMAGES = ("_AGL", "_SPREAD", "_LOOK", "_MASK")  # what this project writes beside images, or instead of them
_COLUMNS = ("path", "id", "city", "gsd")
_NEARLY = 0.01  # by how much a gsd may differ from that of the georeference without a remark
_MOST_LISTED = 10


@dataclass(frozen=True)
class Job:
    """One image to predict. city: as the model knows it, "" for one that does not look at it; gsd: metres per pixel."""

    id: str
    path: Path
    city: str
    gsd: float


@dataclass(frozen=True)
class Listed:
    """An image as a list names it; what the list does not tell is "" or None."""

    path: Path
    id: str
    city: str = ""
    gsd: float | None = None


def data_set_jobs(config: PredictConfig, trained: Mapping[str, Any]) -> list[Job]:
    """The images of a split of a data set, sorted by id.

    trained: the configuration of the training run, which says what its fold has held out.

    Raises:
        UserError: there is no such data set or split, or the run has held nothing out.
    """
    if config.split != "held-out":
        return [_job(record) for record in read_catalog(Path(config.data), config.split)]
    missing = [key for key in ("fold", "folds", "fold_by", "seed") if key not in trained]
    if missing:
        raise UserError(f"the weights do not say what was held out (no {missing[0]}): choose --split test or train")
    fold = int(trained["fold"])
    if fold < 0:
        raise UserError(f"the run has held nothing out (fold {fold}): choose --split test or train")
    # The same records in the same order as those of the store, hence the same folds as in training.
    records = read_catalog(Path(config.data), "train")
    folds = assign_folds(records, int(trained["folds"]), str(trained["fold_by"]), int(trained["seed"]))
    held_out = [_job(record) for record, of in zip(records, folds, strict=True) if of == fold]
    if not held_out:
        raise UserError(f"fold {fold} of {trained['folds']} of {config.data} has no images: is it the run's data set?")
    return held_out


def single_jobs(config: PredictConfig, cities: Sequence[str] | None) -> tuple[list[Job], list[str]]:
    """The images that `--images` names, sorted by id, and remarks on them for people.

    cities: those that the model knows, None if it looks at none. The gsd of an image is that of the list, of its
    georeference, or `--gsd`; its city that of the list, `--city`, or the only one that the model knows.

    Raises:
        UserError: nothing is found, files are missing or no 8-bit RGB, two images have the same id, or one has no gsd
            or no city.
    """
    listed = sorted(list_images(config.images), key=lambda image: image.id)
    for image, following in pairwise(listed):
        if image.id == following.id:
            raise UserError(
                f"{image.path} and {following.path} both have the id {image.id!r}: give them different ones in the "
                "column id of a .csv list"
            )
    missing = [str(image.path) for image in listed if not is_file(image.path)]
    if missing:
        more = f" and {len(missing) - _MOST_LISTED} more" if len(missing) > _MOST_LISTED else ""
        verb = "does" if len(missing) == 1 else "do"
        raise UserError(f"{', '.join(missing[:_MOST_LISTED])}{more} {verb} not exist: check what --images names")
    for image in listed:
        _check_id(image)
    with ThreadPoolExecutor(min(8, cores())) as pool:
        known = list(pool.map(_known_gsd, listed))
    jobs, other = [], []
    for image, own in zip(listed, known, strict=True):
        gsd = own if own is not None else config.gsd
        if gsd is None:
            raise UserError(
                f"{image.path} does not say how large its pixels are: give --gsd, metres per pixel, or a column gsd in "
                "a .csv list"
            )
        if config.gsd is not None and abs(gsd - config.gsd) > _NEARLY * config.gsd:
            other.append((image, gsd))
        jobs.append(Job(image.id, image.path, _city(image, config.city, cities), gsd))
    notes = []
    if other:
        image, gsd = other[0]
        source = "the list" if image.gsd is not None else "its georeference"
        more = f" and {len(other) - 1} more images" if len(other) > 1 else ""
        notes.append(f"{image.id}{more}: gsd is {gsd:.3g} m by {source}, which counts before --gsd {config.gsd:g}")
    return jobs, notes


def list_images(images: str) -> list[Listed]:
    """What `--images` means, without looking into the images: they may not exist.

    Raises:
        UserError: an empty folder, list or pattern, or a list that cannot be read.
    """
    path = _expanded(images)
    if os.path.isdir(path):
        found = [
            file
            for file in path.iterdir()
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and not file.stem.endswith(_NO_IMAGES)
        ]
        if not found:
            raise UserError(f"{images} has no images (*{', *'.join(SUFFIXES)}): give another folder with --images")
        return [Listed(file, image_id(file)) for file in found]
    if not os.path.exists(path) and any(character in images for character in "*?["):
        found = [Path(name) for name in glob.glob(str(path), recursive=True) if is_file(name)]
        if not found:
            raise UserError(f"no file is called {images!r}: give another pattern, in quotes, with --images")
        return [Listed(file, image_id(file)) for file in found]
    if not is_file(path):
        raise UserError(f"{images} does not exist: give an image, a folder, a pattern or a list with --images")
    if path.suffix.lower() == ".csv":
        return _read_csv(path)
    if path.suffix.lower() == ".txt":
        return _read_txt(path)
    return [Listed(path, image_id(path))]


def image_id(path: Path) -> str:
    """What an image is called: its file's name without suffix, and without the _RGB of the challenge's names."""
    return path.stem.removesuffix("_RGB") or path.stem


def _job(record: TileRecord) -> Job:
    return Job(record.id, record.rgb, record.city, record.gsd)


def _known_gsd(image: Listed) -> float | None:
    """Metres per pixel, of the list or of the georeference; the image is looked at in any case."""
    with open_image(image.path) as source:
        return image.gsd if image.gsd is not None else source.georeference.gsd()


def _city(image: Listed, given: str, cities: Sequence[str] | None) -> str:
    if image.city or given or cities is None:
        return image.city or given
    if len(cities) == 1:
        return cities[0]
    raise UserError(
        f"the city of {image.path} is not known: give --city, or a column city in a .csv list; the model knows "
        f"{', '.join(cities)}"
    )


def _check_id(image: Listed) -> None:
    """An id becomes part of file names."""
    if len(image.id.encode()) > LONGEST_ID or image.id.startswith(".") or "/" in image.id or not image.id.isprintable():
        raise UserError(
            f"the id {image.id[:50]!r} of {image.path} cannot be part of a file name: give it another, of at most "
            f"{LONGEST_ID} letters, digits, '_' or '-', in the column id of a .csv list"
        )


def _read_txt(path: Path) -> list[Listed]:
    lines = [line.strip() for line in _text(path).splitlines()]
    paths = [_placed(path, line) for line in lines if line and not line.startswith("#")]
    if not paths:
        raise UserError(f"{path} names no images: write the path of one into each line")
    return [Listed(file, image_id(file)) for file in paths]


def _read_csv(path: Path) -> list[Listed]:
    try:
        rows = list(csv.reader(_text(path).splitlines(), strict=True))
    except csv.Error as error:
        raise UserError(f"{path} cannot be read as CSV ({error}); replace the file") from None
    header = [name.strip() for name in rows[0]] if rows else []
    if "path" not in header:
        raise UserError(f"{path} has no column path: its first line must name path and, where needed, id, city and gsd")
    images = []
    for number, cells in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) > len(header):
            raise UserError(f"{path}, line {number}: more fields than the {len(header)} columns; mend the line")
        row = {name: cell.strip() for name, cell in zip(header, cells, strict=False) if name in _COLUMNS}
        if not row.get("path"):
            raise UserError(f"{path}, line {number}: path is empty; fill it in or remove the line")
        file = _placed(path, row["path"])
        images.append(Listed(file, row.get("id") or image_id(file), row.get("city", ""), _gsd(path, number, row)))
    if not images:
        raise UserError(f"{path} names no images: add rows of {', '.join(header)}")
    return images


def _gsd(path: Path, number: int, row: Mapping[str, str]) -> float | None:
    text = row.get("gsd", "")
    if not text:
        return None
    try:
        gsd = float(text)
    except ValueError:
        gsd = math.nan
    if not (math.isfinite(gsd) and gsd > 0):
        raise UserError(f"{path}, line {number}: gsd is {text!r}: give metres per pixel, a number above 0")
    return gsd


def _placed(path: Path, name: str) -> Path:
    """A path in a list counts from the list's folder, or else from where the command is given."""
    named = _expanded(name)
    beside = path.parent / named
    return beside if os.path.exists(beside) else named


def _expanded(name: str) -> Path:
    """A path with `~` filled in; that of a user whom nobody knows stays as it is."""
    return Path(os.path.expanduser(name))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a list ({error}); replace the file") from None
