"""A prediction on disk is complete, or has no VFLOW file."""

import numpy as np
import pytest

from agl_core.data.tiles import read_agl, read_vflow
from agl_core.geometry import Pose
from agl_core.inference import writer as writer_module
from agl_core.inference.predictor import Prediction
from agl_core.inference.writer import PredictionWriter

PREDICTION = Prediction(np.arange(12, dtype=np.uint16).reshape(3, 4) * 100, Pose(1.25, 3.0))


@pytest.mark.parametrize("unit", ["cm", "m"])
def test_what_is_written_is_read_back_in_the_same_unit(tmp_path, unit):
    PredictionWriter(tmp_path, unit).write("A_1", PREDICTION)
    np.testing.assert_array_equal(read_agl(tmp_path / "A_1_AGL.tif", unit), PREDICTION.agl_cm)
    pose = read_vflow(tmp_path / "A_1_VFLOW.json", unit)
    assert (pose.scale, pose.angle) == (pytest.approx(1.25), pytest.approx(3.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["A_1_AGL.tif", "A_1_VFLOW.json"]


@pytest.mark.parametrize("failing", ["write_agl", "write_vflow"])
def test_a_failed_write_leaves_no_vflow_of_an_earlier_prediction(tmp_path, monkeypatch, failing):
    writer = PredictionWriter(tmp_path, "cm")
    writer.write("A_1", PREDICTION)

    def disk_full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(writer_module, failing, disk_full)
    with pytest.raises(OSError, match="disk full"):
        writer.write("A_1", PREDICTION)
    assert not (tmp_path / "A_1_VFLOW.json").exists()


def test_clearing_touches_only_the_predictions_named(tmp_path):
    writer = PredictionWriter(tmp_path, "cm")
    for image in ("A_1", "A_2"):
        writer.write(image, PREDICTION)
    writer.clear(["A_1", "A_3"])
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["A_2_VFLOW.json"]
