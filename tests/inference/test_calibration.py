"""Corrections come from the weights, a file and keys; every number is checked before it is used."""

import json
import math

import numpy as np
import pytest

from agl_core.config import EnsembleConfig, PredictConfig
from agl_core.errors import UserError
from agl_core.geometry import Pose
from agl_core.inference.calibration import Corrections, corrections, read_calibration
from agl_core.scoring.calibration import calibrate
from agl_core.scoring.score import ImageResult
from agl_core.scoring.sums import image_sums


@pytest.fixture
def write(tmp_path):
    """Writes a calibration with these cities; returns its path."""

    def write(cities, format="geopose-calibration-1"):
        path = tmp_path / "calibration.json"
        path.write_text(json.dumps({"format": format, "cities": cities}))
        return path

    return write


def trained(**highest):
    return {"config": {"max_agl": highest}}


def test_nothing_is_corrected_unless_it_is_asked_for():
    assert corrections(EnsembleConfig()) == Corrections()
    assert corrections(PredictConfig(), [trained(default=200.0, A=100.0)]) == Corrections(
        {"default": 200.0, "A": 100.0}
    )
    nothing = Corrections()
    metres = np.array([[-1.0, 0.25], [100.0, 655.34]])
    np.testing.assert_array_equal(nothing.heights(metres, "A"), [[0.0, 0.25], [100.0, 655.34]])
    assert nothing.pose(Pose(0.3, 1.0), None, None) == Pose(0.3, 1.0)
    assert not any((nothing.by_city, nothing.by_gsd, nothing.as_settings()))


def test_of_several_members_the_highest_counts_city_by_city():
    members = [trained(default=150.0, A=100.0), trained(default=120.0, B=180.0), trained(default=90.0)]
    assert corrections(PredictConfig(), members).max_agl == {"default": 150.0, "A": 120.0, "B": 180.0}
    assert corrections(PredictConfig(), [trained(A=50.0), trained(B=60.0)]).max_agl == {"A": 50.0, "B": 60.0}


def test_keys_win_over_the_file_and_over_the_weights(write):
    path = write({"A": {"height_factor": 0.9, "scale_line": [0.1, 1.2]}, "B": {"height_factor": 1.1}})
    config = PredictConfig(calibration=str(path), height_factor={"B": 2.0, "default": 3.0}, max_agl={"A": 40.0})
    found = corrections(config, [trained(default=200.0, A=100.0)])
    assert found.max_agl == {"default": 200.0, "A": 40.0}
    assert found.height_factor == {"A": 0.9, "B": 2.0, "default": 3.0}
    assert found.scale_lines == {"A": (0.1, 1.2), "B": (0.0, 1.0)}
    assert found.by_city
    assert found.by_gsd
    assert json.loads(json.dumps(found.as_settings())) == found.as_settings()


def test_heights_are_multiplied_and_then_clipped_and_scales_follow_their_line():
    found = Corrections({"A": 30.0}, {"A": 2.0, "default": 0.5}, {"A": (0.1, 0.5), "B": (0.0, 2.0), "C": (-1.0, 1.0)})
    metres = np.array([-3.0, 10.0, 20.0])
    np.testing.assert_array_equal(found.heights(metres, "A"), [0.0, 20.0, 30.0])
    np.testing.assert_array_equal(found.heights(metres, "B"), [0.0, 5.0, 10.0])
    np.testing.assert_array_equal(found.spread(np.array([1.0, 40.0]), "A"), [2.0, 80.0])
    np.testing.assert_array_equal(metres, [-3.0, 10.0, 20.0])
    assert found.pose(Pose(0.8, 1.0), "A", 0.5) == Pose((0.1 + 0.5 * 0.4) / 0.5, 1.0)
    assert found.pose(Pose(0.8, 1.0), "B", None) == Pose(1.6, 1.0)  # a factor does not need the gsd
    assert found.pose(Pose(0.8, 1.0), "C", 0.5) == Pose(0.0, 1.0)  # never below zero
    assert found.heights(np.array([1e6]), None) == [655.34]


def test_what_evaluate_writes_can_be_read_and_makes_such_images_right(tmp_path):
    rng = np.random.default_rng(0)
    results, gsds, pairs = [], {}, []
    for number in range(40):
        truth = rng.gamma(1.5, 4.0, (16, 16))
        predicted, pose = np.maximum(truth / 1.25 + rng.normal(0, 0.2, truth.shape), 0), Pose(rng.uniform(1, 2), 1.0)
        true = Pose(0.1 + 1.1 * pose.scale, 1.0)  # gsd is 0.5
        image = f"A_{number}"
        sums = image_sums(*(np.rint(heights * 100).astype(np.uint16) for heights in (truth, predicted)))
        results.append(ImageResult(image, "A", sums, true, pose))
        pairs.append((truth, predicted, true, pose))
        gsds[image] = 0.5
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(calibrate(results, gsds)))
    found = read_calibration(path)
    assert found.height_factor["A"] == pytest.approx(1.25, abs=0.01)
    for truth, predicted, true, pose in pairs:
        assert found.pose(pose, "A", 0.5).scale == pytest.approx(true.scale, rel=1e-6)
        corrected = found.heights(predicted, "A")
        assert np.square(corrected - truth).mean() < np.square(predicted - truth).mean()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"height_factor": 0.09}, r"height_factor.A is 0.09: give a number from 0.1 to 10"),
        ({"height_factor": 11}, "height_factor.A is 11"),
        ({"height_factor": math.nan}, "height_factor.A is nan"),
        ({"height_factor": "2"}, "height_factor of A must be a number"),
        ({"height_factor": True}, "height_factor of A must be a number"),
        ({"scale_line": [0.0, -1.0]}, r"scale_line of A is \[0, -1\]"),
        ({"scale_line": [11.0, 1.0]}, r"scale_line of A is \[11, 1\]"),
        ({"scale_line": [0.0, math.inf]}, r"scale_line of A is \[0, inf\]"),
        ({"scale_line": [1.0]}, "scale_line two numbers"),
        ({"scale_line": 1.0}, "scale_line two numbers"),
        (3, "is no calibration"),
    ],
)
def test_a_file_with_a_number_that_cannot_be_right_is_refused_in_one_sentence(write, entry, words):
    path = write({"B": {}, "A": entry})
    with pytest.raises(UserError, match=words) as refusal:
        read_calibration(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_files_of_another_kind_and_keys_out_of_range_are_refused(write, tmp_path):
    with pytest.raises(UserError, match="is no calibration: give what evaluate has written"):
        read_calibration(write({}, format="geopose-predictions-2"))
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(UserError, match="is no calibration"):
        corrections(EnsembleConfig(calibration=str(tmp_path / "list.json")))
    with pytest.raises(UserError, match="does not exist"):
        corrections(EnsembleConfig(calibration=str(tmp_path / "gone.json")))
    with pytest.raises(UserError, match=r"height_factor.A is 0.01"):
        corrections(EnsembleConfig(height_factor={"A": 0.01}))
    with pytest.raises(UserError, match=r"max_agl.A is 0"):
        corrections(EnsembleConfig(max_agl={"A": 0.0}))
