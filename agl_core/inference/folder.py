"""A folder of predictions, or of truth, as other verbs read it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agl_core.data.catalog import TileMetadata, read_metadata
from agl_core.data.georeference import Georeference, opened, read_georeference
from agl_core.data.tiles import AGL_DTYPE, RGB_SUFFIXES, UNITS, read_agl, read_vflow
from agl_core.errors import UserError, valid_choice
from agl_core.files import is_file, read_json
from agl_core.geometry import Pose
from agl_core.inference.source import read_image

ABOUT = "about.json"
FORMAT = "geopose-predictions-2"
EARLIER = "geopose-predictions-1"
AGL, VFLOW = "_AGL.tif", "_VFLOW.json"
_MOST_LISTED = 20


@dataclass(frozen=True)
class PredictedImage:
    """One image of which there are heights and a pose, predicted or true.

    rgb: the image itself, None if nobody knows where it is. city, gsd: None where nothing tells them. unit: of the
    files, "cm" or "m".
    """

    id: str
    agl: Path
    vflow: Path
    rgb: Path | None
    city: str | None
    gsd: float | None
    unit: str

    def read_agl(self) -> NDArray[np.uint16]:
        """(H, W) uint16 centimetres, 65535 unknown; raises `UserError` as `tiles.read_agl`."""
        return read_agl(self.agl, self.unit)

    def read_pose(self) -> Pose:
        """Scale in pixels per metre, and angle; raises `UserError` as `tiles.read_vflow`."""
        return read_vflow(self.vflow, self.unit)

    def read_rgb(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8; raises `UserError` if there is none, or it is no 8-bit RGB."""
        if self.rgb is None:
            raise UserError(f"the image {self.id} of {self.agl} is not found: give the folder of the images")
        return read_image(self.rgb)

    def georeference(self) -> Georeference:
        """That of the heights, or where they have none, of the image."""
        own = read_georeference(self.agl)
        nothing = own.transform is None and own.rpcs is None and own.gcps is None
        return read_georeference(self.rgb) if nothing and self.rgb is not None else own


def read_folder(
    folder: Path, images: str = "", unit: str = "auto", option: str = "--predictions"
) -> list[PredictedImage]:
    """The images in a folder of `<id>_AGL.tif` and `<id>_VFLOW.json`, sorted by id.

    images: folder of the RGB images, `<id>_RGB.*` or `<id>.*`; by default they are looked for where they were when they
    were predicted, beside the heights, and for a data set's `<split>_truth/` in its `<split>/`. unit: `cm`, `m`, or
    `auto`: what the folder's about.json says, or else what its files are. option: names the folder in errors.

    Raises:
        UserError: no such folder or no heights in it, heights of both units, VFLOW files that are missing (all are
            named), or images that about.json, which lists others, does not know: nothing tells what made them.
    """
    folder = Path(folder)
    valid_choice("unit", unit, ["auto", *UNITS])
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give an existing one with {option}")
    ids = sorted(path.name.removesuffix(AGL) for path in folder.glob(f"[!.]*{AGL}"))
    if not ids:
        raise UserError(f"{folder} has no *{AGL} files: give a folder of heights with {option}")
    without = [f"{image}{VFLOW}" for image in ids if not (folder / f"{image}{VFLOW}").is_file()]
    if without:
        raise UserError(f"{folder} lacks {_listed(without)}: complete it, or remove their heights")
    about = read_about(folder)
    if about.get("images") and (unknown := [f"{image}{AGL}" for image in ids if image not in about["images"]]):
        raise UserError(
            f"{folder} has {_listed(unknown)}, which its {ABOUT} does not list among its predictions: move them to a "
            "folder of their own"
        )
    unit = unit if unit != "auto" else _unit(folder, ids, about, option)
    found = _Pictures(folder, images)
    metadata = _metadata(folder)
    return [_image(folder, image, unit, about.get("images", {}).get(image), metadata, found) for image in ids]


def read_about(folder: Path) -> dict[str, Any]:
    """What a folder's about.json says its predictions are made of; {} if there is none, or not of this format."""
    try:
        about = read_json(Path(folder) / ABOUT)
    except UserError:  # none, or one that is damaged: nothing is known of what is there
        return {}
    whole = (
        isinstance(about, dict)
        and about.get("format") == FORMAT
        and isinstance(about.get("settings"), dict)
        and isinstance(about.get("images"), dict)
    )
    return about if whole else {}


def recorded_images(folder: Path) -> set[str] | None:
    """The ids of the images that a folder's about.json, of this format or an earlier one, says are predicted there;
    None where it is damaged. A folder without one, or with that of something else, has no predictions: the set is
    empty."""
    path = Path(folder) / ABOUT
    if not path.exists():
        return set()
    try:
        about = read_json(path)
    except UserError:
        return None
    if not isinstance(about, dict) or about.get("format") not in (FORMAT, EARLIER):
        return set()
    images = about.get("images")
    return set(images) if isinstance(images, dict) else None


def _image(
    folder: Path,
    image: str,
    unit: str,
    recorded: Any,
    metadata: Mapping[str, TileMetadata],
    found: "_Pictures",
) -> PredictedImage:
    source = recorded if isinstance(recorded, dict) else {}
    listed = metadata.get(image)
    agl = folder / f"{image}{AGL}"
    rgb = found.of(image, source.get("rgb"))
    # about.json may have been edited: what is of another kind than it should be tells nothing.
    city = source.get("city") if isinstance(source.get("city"), str) else None
    city = city or (listed.city if listed else None)
    gsd = _metres(source.get("gsd")) or (listed.gsd if listed else None)
    predicted = PredictedImage(image, agl, folder / f"{image}{VFLOW}", rgb, city, gsd, unit)
    if gsd is not None:
        return predicted
    return PredictedImage(image, agl, predicted.vflow, rgb, city, predicted.georeference().gsd(), unit)


def _metres(recorded: Any) -> float | None:
    """A number above 0, or None for anything else."""
    if isinstance(recorded, bool) or not isinstance(recorded, int | float):
        return None
    return float(recorded) if 0 < recorded < math.inf else None


def _unit(folder: Path, ids: Sequence[str], about: Mapping[str, Any], option: str) -> str:
    recorded = about.get("settings", {}).get("unit")
    if recorded in UNITS:
        return str(recorded)
    first: dict[str, Path] = {}  # of each unit
    for image in ids:
        path = folder / f"{image}{AGL}"
        with opened(path) as raster:
            dtype = raster.dtypes[0]
        unit = next((unit for unit, of_unit in AGL_DTYPE.items() if of_unit == dtype), None)
        if unit is None:
            raise UserError(f"{path} holds {dtype}: give heights of uint16 centimetres or float32 metres with {option}")
        first.setdefault(unit, path)
    if len(first) > 1:
        told = " and ".join(f"{unit} ({path.name})" for unit, path in sorted(first.items()))
        raise UserError(f"{folder} has heights in {told}: give a folder of one unit with {option}")
    return next(iter(first))


def _metadata(folder: Path) -> dict[str, TileMetadata]:
    """The metadata.csv in the folder or the one above it."""
    paths = (folder / "metadata.csv", folder.absolute().parent / "metadata.csv")
    path = next((path for path in paths if path.is_file()), None)
    return read_metadata(path) if path is not None else {}


class _Pictures:
    """Where the RGB images are; every folder is listed once."""

    def __init__(self, folder: Path, images: str) -> None:
        if images and not Path(images).is_dir():
            raise UserError(f"{images} is not a folder: give that of the RGB images with --images")
        self._given = _named([Path(images)]) if images else None
        own = folder.absolute()
        of_split = [own.with_name(own.name.removesuffix("_truth"))] if own.name.endswith("_truth") else []
        self._near = {} if images else _named([own, *of_split])

    def of(self, image: str, recorded: Any) -> Path | None:
        """The picture of an image; `recorded`: where it was when it was predicted."""
        if self._given is not None:
            return self._given.get(f"{image}_RGB") or self._given.get(image)
        if isinstance(recorded, str) and is_file(recorded):
            return Path(recorded)
        return self._near.get(f"{image}_RGB") or self._near.get(image)


def _named(folders: Iterable[Path]) -> dict[str, Path]:
    """The images of folders by their names without suffix; what is in an earlier folder wins."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if path.suffix.lower() in (*RGB_SUFFIXES, ".png", ".jpg", ".jpeg") and not path.name.startswith("."):
                found.setdefault(path.stem, path)
    return found


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + more
