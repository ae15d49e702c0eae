"""Predictions on disk, in the challenge's files."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from agl_core.data.tiles import write_agl, write_vflow
from agl_core.errors import UserError
from agl_core.files import read_json, write_json
from agl_core.inference.predictor import Prediction

ABOUT = "about.json"
FORMAT = "geopose-predictions-1"


class PredictionWriter:
    """Writes `<id>_AGL.tif` and `<id>_VFLOW.json` into a folder.

    Each file appears whole or not at all, and the VFLOW file last: where it exists, both files are complete and of
    the same prediction. `about.json` says what all were made of, so that one who was interrupted can go on.
    """

    def __init__(self, folder: Path, unit: str) -> None:
        self.folder, self.unit = Path(folder), unit

    def clear(self, ids: Iterable[str]) -> None:
        """Declare the predictions of `ids` unfinished, so that none of an earlier run can pass for one of this."""
        for image in ids:
            self._vflow(image).unlink(missing_ok=True)

    def keep(self, by: str, settings: Mapping[str, Any], sources: Mapping[str, Any]) -> set[str]:
        """The ids of `sources` whose predictions in the folder are just what would be written; those of the others are
        cleared, and about.json says from now on that they are made of these.

        by: what predicts, for people; settings: JSON values on which all predictions depend; sources: by id, those on
        which this one depends. A folder without about.json, or with one of other settings, keeps nothing.
        """
        wanted = json.loads(json.dumps({"settings": settings, "images": sources}))
        before = self._about()
        known = before["images"] if before.get("settings") == wanted["settings"] else {}
        kept = {
            image
            for image, source in wanted["images"].items()
            if known.get(image) == source and self._vflow(image).is_file() and self._agl(image).is_file()
        }
        self.clear(image for image in sources if image not in kept)
        images = {**known, **wanted["images"]}
        about = {"format": FORMAT, "by": by, "settings": wanted["settings"], "images": images}
        if about != before:
            write_json(self.folder / ABOUT, about)
        return kept

    def write(self, image: str, prediction: Prediction) -> None:
        """Write one prediction; when this returns, it survives a power cut."""
        self.clear([image])
        write_agl(self._agl(image), prediction.agl_cm, self.unit)
        write_vflow(self._vflow(image), prediction.pose, self.unit)

    def _about(self) -> dict[str, Any]:
        try:
            about = read_json(self.folder / ABOUT)
        except UserError:  # none, or one that is damaged: nothing is known of what is there
            return {}
        whole = isinstance(about, dict) and about.get("format") == FORMAT and isinstance(about.get("images"), dict)
        return about if whole else {}

    def _agl(self, image: str) -> Path:
        return self.folder / f"{image}_AGL.tif"

    def _vflow(self, image: str) -> Path:
        return self.folder / f"{image}_VFLOW.json"
