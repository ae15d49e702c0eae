"""Predictions on disk, in the challenge's files."""

from collections.abc import Iterable
from pathlib import Path

from agl_core.data.tiles import write_agl, write_vflow
from agl_core.inference.predictor import Prediction


class PredictionWriter:
    """Writes `<id>_AGL.tif` and `<id>_VFLOW.json` into a folder.

    Each file appears whole or not at all, and the VFLOW file last: where it exists, both files are complete and of
    the same prediction.
    """

    def __init__(self, folder: Path, unit: str) -> None:
        self.folder, self.unit = Path(folder), unit

    def clear(self, ids: Iterable[str]) -> None:
        """Declare the predictions of `ids` unfinished, so that none of an earlier run can pass for one of this."""
        for image in ids:
            self._vflow(image).unlink(missing_ok=True)

    def write(self, image: str, prediction: Prediction) -> None:
        """Write one prediction; when this returns, it survives a power cut."""
        self.clear([image])
        write_agl(self.folder / f"{image}_AGL.tif", prediction.agl_cm, self.unit)
        write_vflow(self._vflow(image), prediction.pose, self.unit)

    def _vflow(self, image: str) -> Path:
        return self.folder / f"{image}_VFLOW.json"
