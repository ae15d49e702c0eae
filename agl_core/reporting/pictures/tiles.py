"""Tiles with their truth and their prediction, as files: those that a stage shows, as its best weights predict them.

What a tile is says `agl_core.reporting.pictures.tile`, how it is drawn `agl_core.reporting.pictures.panel`.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agl_core.errors import UserError
from agl_core.files import read_json, whole_file, write_json
from agl_core.geometry import Pose
from agl_core.opencv import cv2
from agl_core.reporting.pictures.panel import highest, panel
from agl_core.reporting.pictures.tile import Tile

__all__ = ["Tile", "highest", "panel", "read_about", "read_tiles", "write_tiles"]

FORMAT = "geopose-tiles-1"
INDEX = "tiles.json"

_PICTURE = re.compile(r"[0-9a-f]{16}\.png")
_LEFT = re.compile(r"\.([0-9a-f]{16}|tiles)\.[0-9a-f]{8}\.part\.(png|json)")  # by a kill
_ATTEMPTS = 5  # to read files that are being replaced


def write_tiles(folder: Path, tiles: Sequence[Tile], **about: Any) -> None:
    """Replace the tiles in `folder` by `tiles`; `about` is kept beside them (`read_about`).

    A reader sees the old ones or the new ones, and so does who comes after a kill. Pictures are named by their content:
    what has not changed, as images and truth, is not written again.

    Raises:
        OSError: the disk refuses; the old tiles are still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries, needed = [], {INDEX}
    for tile in tiles:
        files = {
            name: _write_picture(folder, pixels)
            for name, pixels in (("rgb", tile.rgb), ("truth_cm", tile.truth_cm), ("predicted_cm", tile.predicted_cm))
            if pixels is not None
        }
        needed.update(files.values())
        poses = {"truth": _pose_json(tile.truth), "prediction": _pose_json(tile.prediction)}
        entries.append({"id": tile.id, "city": tile.city, "zoom": tile.zoom, **poses, **files})
    write_json(folder / INDEX, {"format": FORMAT, "about": about, "tiles": entries})
    for path in folder.iterdir():
        if path.name not in needed and (_PICTURE.fullmatch(path.name) or _LEFT.fullmatch(path.name)):
            with suppress(OSError):
                path.unlink()


def read_tiles(folder: Path) -> list[Tile]:
    """What `write_tiles` has written last; nothing if it never has.

    Raises:
        UserError: a file is damaged or missing.
    """
    for attempt in range(_ATTEMPTS):
        if not (folder / INDEX).is_file():
            return []
        known = read_json(folder / INDEX)
        try:
            return [_read_tile(folder, entry) for entry in known["tiles"]]
        except FileNotFoundError as error:  # replaced meanwhile
            if attempt == _ATTEMPTS - 1 or read_json(folder / INDEX) == known:
                raise UserError(f"{error.filename}, of {folder / INDEX}, does not exist: remove {folder}") from None
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise UserError(f"{folder / INDEX} and its pictures cannot be read ({error}): remove {folder}") from None
    return []


def read_about(folder: Path) -> dict[str, Any]:
    """What `write_tiles` was told beside the tiles; empty if there are none."""
    if not (folder / INDEX).is_file():
        return {}
    known = read_json(folder / INDEX)
    about = known.get("about") if isinstance(known, dict) else None
    return about if isinstance(about, dict) else {}


def _pose_json(pose: Pose | None) -> dict[str, float] | None:
    return None if pose is None else {"scale": pose.scale, "angle": pose.angle}


def _write_picture(folder: Path, pixels: NDArray[Any]) -> str:
    """The name of a PNG of (H, W, 3) uint8 or (H, W) uint16 pixels."""
    name = hashlib.sha256(f"{pixels.shape} {pixels.dtype} ".encode() + pixels.tobytes()).hexdigest()[:16] + ".png"
    if not (folder / name).is_file():
        done, encoded = cv2.imencode(".png", np.ascontiguousarray(pixels[..., ::-1]) if pixels.ndim == 3 else pixels)
        assert done
        with whole_file(folder / name) as aside:
            aside.write_bytes(encoded.tobytes())
    return name


def _read_picture(path: Path) -> NDArray[Any]:
    pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError(f"{path.name} is no picture")
    return np.ascontiguousarray(pixels[..., ::-1]) if pixels.ndim == 3 else np.asarray(pixels)


def _read_tile(folder: Path, entry: dict[str, Any]) -> Tile:
    pictures: dict[str, NDArray[Any] | None] = {}
    for name in ("rgb", "truth_cm", "predicted_cm"):
        file = entry.get(name)
        if file is not None and not _PICTURE.fullmatch(file):
            raise ValueError(f"{file!r} is not the name of a picture")
        pictures[name] = None if file is None else _read_picture(folder / file)
    rgb, truth, predicted = pictures.values()
    if truth is None or predicted is None or {truth.dtype, predicted.dtype} != {np.dtype(np.uint16)}:
        raise ValueError(f"{entry['id']!r} has no heights")
    if truth.shape != predicted.shape or truth.ndim != 2 or not math.isfinite(entry["zoom"]) or entry["zoom"] <= 0:
        raise ValueError(f"the heights of {entry['id']!r} are not of one size")
    if rgb is not None and (rgb.dtype != np.uint8 or rgb.shape != (*truth.shape, 3)):
        raise ValueError(f"the image of {entry['id']!r} is not of the size of its heights")
    pose = None if entry["truth"] is None else Pose(entry["truth"]["scale"], entry["truth"]["angle"])
    prediction = Pose(entry["prediction"]["scale"], entry["prediction"]["angle"])
    return Tile(str(entry["id"]), str(entry["city"]), rgb, truth, predicted, pose, prediction, float(entry["zoom"]))
