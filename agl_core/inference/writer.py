"""Predictions on disk: the challenge's files, and what is wanted beside them."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agl_core.data.georeference import Georeference
from agl_core.data.tiles import UNKNOWN, write_agl, write_vflow
from agl_core.errors import UserError
from agl_core.files import write_json
from agl_core.geometry import Pose
from agl_core.inference.folder import ABOUT, AGL, FORMAT, VFLOW, read_about, recorded_images
from agl_core.inference.predictor import Prediction
from agl_core.inference.rasters import StripFile, read_small, write_heights, write_png
from agl_core.inference.source import RasterSource
from agl_core.reporting.pictures.look import look

SPREAD, LOOK = "_SPREAD.tif", "_LOOK.png"
_ALL = (VFLOW, AGL, SPREAD, LOOK)  # in the order in which they are removed
_LOOK_SIDE = 1024  # most pixels of a quick look's panel

__all__ = ["ABOUT", "AGL", "FORMAT", "LOOK", "SPREAD", "VFLOW", "PredictionWriter", "SceneFiles"]


class PredictionWriter:
    """Writes `<id>_AGL.tif` and `<id>_VFLOW.json` into a folder, and `<id>_SPREAD.tif` and `<id>_LOOK.png` if wanted.

    Each file appears whole or not at all, and the VFLOW file last: where it exists, all files are complete and of the
    same prediction. `about.json` says what all were made of, so that one who was interrupted can go on.
    """

    def __init__(
        self, folder: Path, unit: str, format: str = "tif", spread: bool = False, quicklook: bool = False
    ) -> None:
        """unit: "cm" or "m"; format: "tif" or "cog"; spread, quicklook: whether to write these files too."""
        self.folder, self.unit, self.format = Path(folder), unit, format
        self.spread, self.quicklook = spread, quicklook
        self.memory: int | None = None
        further = [kind for kind, wanted in ((SPREAD, spread), (LOOK, quicklook)) if wanted]
        self._kinds = [AGL, *further, VFLOW]

    def clear(self, ids: Iterable[str]) -> None:
        """Declare the predictions of `ids` unfinished, so that none of an earlier run can pass for one of this."""
        for image in ids:
            self.path(image, VFLOW).unlink(missing_ok=True)

    def keep(
        self,
        by: str,
        settings: Mapping[str, Any],
        sources: Mapping[str, Any],
        alone: bool = True,
        memory: int | None = None,
    ) -> set[str]:
        """The ids of `sources` whose predictions in the folder are just what would be written; those of the others are
        cleared, and about.json says from now on that they are made of these.

        by: what predicts, for people; settings: JSON values on which all predictions depend; sources: by id, those on
        which this one depends; of a "rgb" in them only the name counts, not the folder. A folder with an about.json of
        other settings keeps nothing, of no image. alone: whether no other process predicts into the folder; if one
        does, what it makes must be what this one would. memory: bytes that windows are chosen for, where they are
        chosen; what began the folder counts, and `self.memory` has that afterwards.

        Raises:
            UserError: it is not, and another process would have to stop first; or there are files in the way that are
                not of predictions that about.json knows: they may be the truth.
        """
        recorded = recorded_images(self.folder)
        self._refuse_strangers(sources, recorded)
        wanted = json.loads(json.dumps({"settings": settings, "images": sources}))
        before = read_about(self.folder)
        agreed = before.get("settings") == wanted["settings"]
        known = before["images"] if agreed else {}
        others = [
            image
            for image, source in wanted["images"].items()
            if image in known and _compared(known[image]) != _compared(source)
        ]
        if not alone and ((before and not agreed) or others):
            reason = f"another image {others[0]}" if others else "other settings"
            raise UserError(
                f"{self.folder} is in use by a prediction with {reason}: wait for its end, or choose another folder "
                "with --out"
            )
        same = {image for image in wanted["images"] if image in known} - set(others)
        if not agreed:
            self._remove((recorded or set()).difference(wanted["images"]))
        # What is the same but not finished may just be in the making, by another process: that one takes care of it.
        self.clear(image for image in wanted["images"] if image not in same)
        images = {**known, **wanted["images"]}
        self.memory = before.get("memory", memory) if agreed else memory
        about = {"format": FORMAT, "by": by, "settings": wanted["settings"], "images": images}
        if self.memory is not None:
            about["memory"] = self.memory
        if about != before:
            write_json(self.folder / ABOUT, about)
        return {image for image in same if self.finished(image)}

    def _refuse_strangers(self, ids: Iterable[str], recorded: set[str] | None) -> None:
        """Raise UserError if a file of an image that is not `recorded` would be replaced; None: nobody knows which."""
        if recorded is None:
            return
        files = (self.path(image, kind) for image in ids if image not in recorded for kind in _ALL)
        if path := next((path for path in files if os.path.lexists(path)), None):
            raise UserError(
                f"{path} is there already, and no {ABOUT} beside it lists it as a prediction: choose another folder "
                "with --out, so that it is not lost"
            )

    def _remove(self, ids: Iterable[str]) -> None:
        """Remove what was made with other settings, and would pass for a prediction of these."""
        for image in ids:
            for kind in _ALL if Path(image).name == image else ():
                self.path(image, kind).unlink(missing_ok=True)

    def finished(self, image: str) -> bool:
        """Whether all files of an image are there."""
        return all(self.path(image, kind).is_file() for kind in self._kinds)

    def write(
        self,
        image: str,
        prediction: Prediction,
        georeference: Georeference | None = None,
        unknown: NDArray[np.bool_] | None = None,
        rgb: NDArray[np.uint8] | None = None,
        gsd: float | None = None,
    ) -> None:
        """Write one prediction; when this returns, it survives a power cut.

        georeference: of the image, for the heights; None writes them as the challenge has them. unknown: (H, W), where
        the image shows nothing: there nothing is known of the heights. rgb, gsd: of the image, for the quick look.
        """
        self._begin(image)
        agl_cm, spread_cm = prediction.agl_cm, getattr(prediction, "spread_cm", None)
        if unknown is not None:
            agl_cm = np.where(unknown, np.uint16(UNKNOWN), agl_cm)
            spread_cm = np.where(unknown, np.uint16(UNKNOWN), spread_cm) if spread_cm is not None else None
        place = georeference or Georeference()
        if georeference is None and self.format == "tif":
            write_agl(self.path(image, AGL), agl_cm, self.unit)
        else:
            write_heights(self.path(image, AGL), agl_cm, self.unit, place, self.format)
        if self.spread:
            assert spread_cm is not None, "the predictor gives no spread"
            write_heights(self.path(image, SPREAD), spread_cm, self.unit, place, self.format)
        if self.quicklook:
            picture = look(rgb, agl_cm, prediction.pose, gsd, image, _LOOK_SIDE, spread_cm if self.spread else None)
            write_png(self.path(image, LOOK), picture)
        write_vflow(self.path(image, VFLOW), prediction.pose, self.unit)

    @contextmanager
    def scene(self, image: str, source: RasterSource, gsd: float, masked: bool) -> Iterator["SceneFiles"]:
        """The files of an image that is too large for the memory; nothing appears before `SceneFiles.finish`.

        masked: whether heights are unknown where the image shows nothing.
        """
        self._begin(image)
        with ExitStack() as stack:
            kinds = [AGL, *([SPREAD] if self.spread else [])]
            strips = [
                stack.enter_context(
                    StripFile(
                        self.path(image, kind),
                        source.height,
                        source.width,
                        self.unit,
                        source.georeference,
                        self.format,
                    )
                )
                for kind in kinds
            ]
            yield SceneFiles(self, image, source, gsd, masked, strips)

    def path(self, image: str, kind: str) -> Path:
        """Of a file of an image: kind AGL, SPREAD, LOOK or VFLOW."""
        return self.folder / f"{image}{kind}"

    def _begin(self, image: str) -> None:
        """An image is made anew: none of its files may be taken for finished, and none may stay that is not."""
        self.clear([image])
        for kind in (SPREAD, LOOK):
            self.path(image, kind).unlink(missing_ok=True)


class SceneFiles:
    """Takes the strips of a scene's prediction, from top to bottom, and at last its pose."""

    def __init__(
        self,
        writer: PredictionWriter,
        image: str,
        source: RasterSource,
        gsd: float,
        masked: bool,
        strips: list[StripFile],
    ) -> None:
        self._writer, self._image, self._source, self._gsd = writer, image, source, gsd
        self._masked, self._strips = masked, strips

    def strip(self, top: int, agl_cm: NDArray[np.uint16], spread_cm: NDArray[np.uint16] | None = None) -> None:
        """The (n, W) rows from `top` on: they follow those of the call before, or begin anew at row 0."""
        rows, width = agl_cm.shape
        unknown = self._source.unknown(top, 0, rows, width) if self._masked else None
        for file, values in zip(self._strips, (agl_cm, spread_cm), strict=False):
            assert values is not None, "the predictor gives no spread"
            file.write(top, np.where(unknown, np.uint16(UNKNOWN), values) if unknown is not None else values)

    def finish(self, pose: Pose) -> None:
        """Write all files, VFLOW last; when this returns, they survive a power cut."""
        for file in self._strips:
            file.finish()
        if self._writer.quicklook:
            self._draw(pose)
        write_vflow(self._writer.path(self._image, VFLOW), pose, self._writer.unit)

    def _draw(self, pose: Pose) -> None:
        height, width = self._source.height, self._source.width
        zoom = min(1.0, _LOOK_SIDE / max(height, width))
        shape = max(1, round(height * zoom)), max(1, round(width * zoom))
        small = [read_small(file.path, self._writer.unit, *shape) for file in self._strips]
        rgb = self._source.small(*shape)
        spread = small[1] if len(small) > 1 else None
        picture = look(rgb, small[0], pose, self._gsd, self._image, _LOOK_SIDE, spread, zoom=zoom)
        write_png(self._writer.path(self._image, LOOK), picture)


def _compared(source: Any) -> Any:
    """What counts of an image's source: a data set that was moved is the same."""
    if isinstance(source, dict) and isinstance(source.get("rgb"), str):
        return {**source, "rgb": Path(source["rgb"]).name}
    return source
