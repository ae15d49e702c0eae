"""A prediction on disk is complete, or has no VFLOW file."""

import json
import os

import numpy as np
import pytest
import rasterio

from agl_core.data.tiles import read_agl, read_vflow, write_agl, write_rgb
from agl_core.errors import UserError
from agl_core.geometry import Pose
from agl_core.inference import writer as writer_module
from agl_core.inference.predictor import Prediction
from agl_core.inference.source import open_image
from agl_core.inference.writer import ABOUT, PredictionWriter

PREDICTION = Prediction(np.arange(12, dtype=np.uint16).reshape(3, 4) * 100, Pose(1.25, 3.0))
SPREAD = Prediction(PREDICTION.agl_cm, PREDICTION.pose, PREDICTION.agl_cm // 10)
RGB = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)


@pytest.mark.parametrize("unit", ["cm", "m"])
def test_what_is_written_is_read_back_in_the_same_unit(tmp_path, unit):
    PredictionWriter(tmp_path, unit).write("A_1", PREDICTION)
    np.testing.assert_array_equal(read_agl(tmp_path / "A_1_AGL.tif", unit), PREDICTION.agl_cm)
    pose = read_vflow(tmp_path / "A_1_VFLOW.json", unit)
    assert (pose.scale, pose.angle) == (pytest.approx(1.25), pytest.approx(3.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["A_1_AGL.tif", "A_1_VFLOW.json"]


def test_the_challenge_has_its_files_as_ever(tmp_path):
    PredictionWriter(tmp_path, "cm").write("A_1", PREDICTION)
    write_agl(tmp_path / "plain.tif", PREDICTION.agl_cm, "cm")
    assert (tmp_path / "A_1_AGL.tif").read_bytes() == (tmp_path / "plain.tif").read_bytes()


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


@pytest.mark.parametrize("format", ["tif", "cog"])
def test_spread_and_quick_look_are_written_if_wanted_and_before_the_vflow(tmp_path, monkeypatch, format):
    writer = PredictionWriter(tmp_path, "m", format, spread=True, quicklook=True)
    seen = []
    monkeypatch.setattr(writer_module, "write_vflow", lambda *_: seen.extend(sorted(os.listdir(tmp_path))))
    writer.write("A_1", SPREAD, rgb=RGB, gsd=0.5)
    assert seen == ["A_1_AGL.tif", "A_1_LOOK.png", "A_1_SPREAD.tif"]
    np.testing.assert_array_equal(read_agl(tmp_path / "A_1_SPREAD.tif", "m"), SPREAD.spread_cm)
    with rasterio.open(tmp_path / "A_1_LOOK.png") as picture:
        assert picture.count == 3


def test_what_is_not_wanted_now_does_not_stay_from_before(tmp_path):
    PredictionWriter(tmp_path, "cm", spread=True, quicklook=True).write("A_1", SPREAD, rgb=RGB)
    PredictionWriter(tmp_path, "cm").write("A_1", PREDICTION)
    assert sorted(os.listdir(tmp_path)) == ["A_1_AGL.tif", "A_1_VFLOW.json"]


def test_where_an_image_shows_nothing_nothing_is_known(tmp_path):
    unknown = np.zeros((3, 4), bool)
    unknown[1, 2] = True
    writer = PredictionWriter(tmp_path, "m", spread=True)
    writer.write("A_1", SPREAD, unknown=unknown)
    for kind, values in (("AGL", SPREAD.agl_cm), ("SPREAD", SPREAD.spread_cm)):
        np.testing.assert_array_equal(
            read_agl(tmp_path / f"A_1_{kind}.tif", "m"), np.where(unknown, np.uint16(65535), values)
        )
    with rasterio.open(tmp_path / "A_1_AGL.tif") as file:
        assert np.isnan(file.read(1)[1, 2])


def test_a_scene_in_strips_is_the_same_as_one_at_once(tmp_path):
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 255, (90, 70, 3), dtype=np.uint8)
    rgb[3:20, 5:9] = 7
    with rasterio.open(
        tmp_path / "x.tif", "w", driver="GTiff", height=90, width=70, count=3, dtype="uint8", nodata=7
    ) as file:
        file.write(rgb.transpose(2, 0, 1))
    agl_cm = rng.integers(0, 9000, (90, 70)).astype(np.uint16)
    pose = Pose(0.5, 1.0)
    for name in ("whole", "strips"):
        (tmp_path / name).mkdir()
    with open_image(tmp_path / "x.tif") as source:
        whole = PredictionWriter(tmp_path / "whole", "m", spread=True, quicklook=True)
        unknown = source.unknown(0, 0, 90, 70)
        whole.write("x", Prediction(agl_cm, pose, agl_cm // 2), source.georeference, unknown, rgb, 0.5)
        writer = PredictionWriter(tmp_path / "strips", "m", spread=True, quicklook=True)
        with writer.scene("x", source, 0.5, masked=True) as files:
            for top in range(0, 90, 32):
                files.strip(top, agl_cm[top : top + 32], agl_cm[top : top + 32] // 2)
            assert not writer.finished("x")
            files.finish(pose)
    assert writer.finished("x")
    for kind in ("AGL", "SPREAD"):
        np.testing.assert_array_equal(
            *(read_agl(tmp_path / name / f"x_{kind}.tif", "m") for name in ("whole", "strips"))
        )
    for kind in ("LOOK.png", "VFLOW.json"):
        assert (tmp_path / "whole" / f"x_{kind}").read_bytes() == (tmp_path / "strips" / f"x_{kind}").read_bytes()


def keep(folder, settings=1, alone=True, **sources):
    return PredictionWriter(folder, "cm").keep("me", {"of": settings}, sources, alone)


def test_only_what_is_made_of_the_same_is_kept(tmp_path):
    assert keep(tmp_path, a=1, b=1) == set()
    for image in ("a", "b"):
        PredictionWriter(tmp_path, "cm").write(image, PREDICTION)
    assert keep(tmp_path, a=1, b=2, c=1) == {"a"}
    assert not (tmp_path / "b_VFLOW.json").exists()
    assert keep(tmp_path, settings=2, a=1) == set()
    assert json.loads((tmp_path / ABOUT).read_text())["images"] == {"a": 1}


@pytest.mark.parametrize("kind", ["AGL.tif", "VFLOW.json", "SPREAD.tif", "LOOK.png"])
@pytest.mark.parametrize("about", [None, {}, {"format": "geopose-rectified-1", "images": {"a": 1}}, {"images": ["a"]}])
def test_what_is_no_prediction_of_this_folder_is_not_replaced(tmp_path, kind, about):
    (tmp_path / f"a_{kind}").write_text("truth")
    if about is not None:
        (tmp_path / ABOUT).write_text(json.dumps(about))
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(UserError, match=rf"a_{kind} is there already, .*--out"):
        keep(tmp_path, b=1, a=1)
    assert sorted(os.listdir(tmp_path)) == before
    assert (tmp_path / f"a_{kind}").read_text() == "truth"


def test_truth_beside_predictions_of_other_images_is_not_replaced(tmp_path):
    write_agl(tmp_path / "a_AGL.tif", PREDICTION.agl_cm, "cm")
    keep(tmp_path, b=1)
    with pytest.raises(UserError, match=r"a_AGL.tif is there already"):
        keep(tmp_path, settings=2, a=1)


def test_no_prediction_of_other_settings_stays(tmp_path):
    keep(tmp_path, a=1, b=1)
    for image in ("a", "b"):
        PredictionWriter(tmp_path, "cm", spread=True).write(image, SPREAD)
    write_agl(tmp_path / "c_AGL.tif", PREDICTION.agl_cm, "cm")
    keep(tmp_path, settings=2, b=1)
    assert sorted(os.listdir(tmp_path)) == ["about.json", "b_AGL.tif", "b_SPREAD.tif", "c_AGL.tif"]
    keep(tmp_path, settings=1, a=1)
    assert sorted(os.listdir(tmp_path)) == ["about.json", "c_AGL.tif"]


def test_images_that_were_moved_are_the_same_and_others_are_not(tmp_path):
    here, there, other = ({"rgb": rgb, "size": 5} for rgb in ("/x/a.tif", "/y/a.tif", "/x/b.tif"))
    keep(tmp_path, a=here)
    PredictionWriter(tmp_path, "cm").write("a", PREDICTION)
    assert keep(tmp_path, a=there) == {"a"}
    assert json.loads((tmp_path / ABOUT).read_text())["images"] == {"a": there}
    assert keep(tmp_path, a=other) == set()


def test_predictions_of_an_earlier_format_are_made_again(tmp_path):
    PredictionWriter(tmp_path, "cm").write("a", PREDICTION)
    about = {"format": "geopose-predictions-1", "by": "me", "settings": {"of": 1}, "images": {"a": 1}}
    (tmp_path / ABOUT).write_text(json.dumps(about))
    assert keep(tmp_path, a=1) == set()
    assert not (tmp_path / "a_VFLOW.json").exists()


def test_who_is_not_alone_may_not_change_what_others_make(tmp_path):
    keep(tmp_path, a=1)
    before = (tmp_path / ABOUT).read_bytes()
    with pytest.raises(UserError, match=r"in use by a prediction with other settings: .*--out"):
        keep(tmp_path, settings=2, alone=False, a=1)
    with pytest.raises(UserError, match="in use by a prediction with another image a"):
        keep(tmp_path, alone=False, a=2, b=1)
    assert (tmp_path / ABOUT).read_bytes() == before
    keep(tmp_path, alone=False, a=1, b=1)
    assert sorted(json.loads((tmp_path / ABOUT).read_text())["images"]) == ["a", "b"]


def test_what_another_has_just_finished_is_not_cleared(tmp_path):
    keep(tmp_path, a=1)
    PredictionWriter(tmp_path, "cm").write("a", PREDICTION)
    (tmp_path / "a_AGL.tif").unlink()  # not finished: but that is for who claims it to see
    assert keep(tmp_path, alone=False, a=1) == set()
    assert (tmp_path / "a_VFLOW.json").exists()


def test_a_picture_is_written_as_it_is(tmp_path):
    write_rgb(tmp_path / "a.tif", RGB)
    writer_module.write_png(tmp_path / "a.png", RGB)
    with rasterio.open(tmp_path / "a.png") as picture:
        np.testing.assert_array_equal(picture.read().transpose(1, 2, 0), RGB)
    assert sorted(os.listdir(tmp_path)) == ["a.png", "a.tif"]
