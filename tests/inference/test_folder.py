"""A folder of predictions, or of truth, tells of each image all that is known."""

import json

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from agl_core.data.georeference import Georeference
from agl_core.data.tiles import write_agl, write_rgb, write_vflow
from agl_core.errors import UserError
from agl_core.geometry import Pose
from agl_core.inference.folder import FORMAT, read_folder
from agl_core.inference.rasters import write_heights

AGL_CM = np.array([[0, 150], [65535, 4000]], np.uint16)
RGB = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)


def write(folder, image="A_1", unit="cm"):
    folder.mkdir(parents=True, exist_ok=True)
    write_agl(folder / f"{image}_AGL.tif", AGL_CM, unit)
    write_vflow(folder / f"{image}_VFLOW.json", Pose(0.5, 2.0), unit)


def write_about(folder, images, unit="m"):
    about = {"format": FORMAT, "by": "x", "settings": {"unit": unit}, "images": images}
    (folder / "about.json").write_text(json.dumps(about))


@pytest.mark.parametrize("unit", ["cm", "m"])
def test_the_unit_is_that_of_the_files(tmp_path, unit):
    write(tmp_path, "B_2", unit), write(tmp_path, "A_1", unit)
    first, second = read_folder(tmp_path)
    assert (first.id, second.id) == ("A_1", "B_2")
    assert first.unit == unit
    np.testing.assert_array_equal(first.read_agl(), AGL_CM)
    assert first.read_pose().scale == pytest.approx(0.5)
    assert (first.rgb, first.city, first.gsd) == (None, None, None)
    with pytest.raises(UserError, match=r"image A_1 of .* is not found"):
        first.read_rgb()


def test_what_predict_has_recorded_counts(tmp_path):
    out, images = tmp_path / "out", tmp_path / "images"
    write(out, unit="m")
    images.mkdir()
    write_rgb(images / "A_1_RGB.tif", RGB)
    write_about(out, {"A_1": {"rgb": str(images / "A_1_RGB.tif"), "city": "A", "gsd": 0.4, "size": 1, "mtime_ns": 1}})
    (tmp_path / "metadata.csv").write_text("id,city,gsd\nA_1,B,0.9\n")
    (image,) = read_folder(out)
    assert (image.rgb, image.city, image.gsd, image.unit) == (images / "A_1_RGB.tif", "A", 0.4, "m")
    np.testing.assert_array_equal(image.read_rgb(), RGB)


@pytest.mark.parametrize("recorded", [{}, {"A_1": ["of an ensemble", 5]}, {"A_1": {"rgb": "gone.tif"}}])
def test_truth_is_completed_from_its_data_set(tmp_path, recorded):
    truth = tmp_path / "test_truth"
    write(truth)
    (tmp_path / "test").mkdir()
    write_rgb(tmp_path / "test" / "A_1_RGB.j2k", RGB)
    (tmp_path / "metadata.csv").write_text("id,city,gsd\nA_1,B,0.9\n")
    if recorded:
        write_about(truth, recorded, "cm")
    (image,) = read_folder(truth)
    assert (image.rgb, image.city, image.gsd) == (tmp_path / "test" / "A_1_RGB.j2k", "B", 0.9)


def test_a_folder_of_images_that_is_given_counts_alone(tmp_path):
    write(tmp_path / "out"), write(tmp_path / "out", "A_2")
    write_rgb(tmp_path / "out" / "A_1_RGB.tif", RGB)
    (tmp_path / "images").mkdir()
    write_rgb(tmp_path / "images" / "A_2.tif", RGB)
    assert [image.rgb and image.rgb.name for image in read_folder(tmp_path / "out")] == ["A_1_RGB.tif", None]
    given = read_folder(tmp_path / "out", str(tmp_path / "images"))
    assert [image.rgb and image.rgb.name for image in given] == [None, "A_2.tif"]


def test_the_georeference_is_that_of_the_heights_or_of_the_image(tmp_path):
    place = Georeference(CRS.from_epsg(32617), Affine(0.3, 0, 4e5, 0, -0.3, 3e6))
    write(tmp_path), write(tmp_path, "A_2")
    write_heights(tmp_path / "A_1_AGL.tif", AGL_CM, "cm", place)
    with rasterio.open(
        tmp_path / "A_2.tif", "w", driver="GTiff", height=2, width=2, count=3, dtype="uint8", **place.profile()
    ) as file:
        file.write(RGB.transpose(2, 0, 1))
    for image in read_folder(tmp_path):
        assert image.georeference() == place
        assert image.gsd == pytest.approx(0.3, rel=1e-3)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "A_1_AGL.tif").unlink(), r"has no \*_AGL.tif files: .*--truth"),
        (lambda folder: (folder / "A_1_VFLOW.json").unlink(), "lacks A_1_VFLOW.json"),
        (lambda folder: write(folder, "A_2", "m"), r"has heights in cm \(A_1_AGL.tif\) and m \(A_2_AGL.tif\)"),
        (lambda folder: write_rgb_heights(folder), "holds uint8"),
        (lambda folder: (folder / "A_1_AGL.tif").write_bytes(b"broken"), "cannot be read as an image"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, spoil, words):
    write(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=words) as refused:
        read_folder(tmp_path, option="--truth")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("recorded", [{"rgb": 300 * "a"}, {"gsd": "big"}, {"gsd": True}, {"gsd": -1}, {"city": 3}])
def test_what_cannot_be_of_an_about_json_tells_nothing(tmp_path, recorded):
    write(tmp_path)
    write_about(tmp_path, {"A_1": recorded}, "cm")
    (image,) = read_folder(tmp_path)
    assert (image.rgb, image.city, image.gsd) == (None, None, None)


def write_rgb_heights(folder):
    write_rgb(folder / "A_1_AGL.tif", RGB)


def test_all_poses_that_are_missing_are_named(tmp_path):
    for image in ("a", "b", "c"):
        write(tmp_path, image)
        (tmp_path / f"{image}_VFLOW.json").unlink()
    with pytest.raises(UserError, match=r"lacks a_VFLOW.json, b_VFLOW.json, c_VFLOW.json"):
        read_folder(tmp_path)
    with pytest.raises(UserError, match="is not a folder: give an existing one with --predictions"):
        read_folder(tmp_path / "none")
    write_vflow(tmp_path / "a_VFLOW.json", Pose(1, 1), "cm")
    for image in ("b", "c"):
        (tmp_path / f"{image}_AGL.tif").unlink()
    with pytest.raises(UserError, match="is not a folder: give that of the RGB images"):
        read_folder(tmp_path, images=str(tmp_path / "none"))


def test_predictions_that_about_json_does_not_list_are_named(tmp_path):
    write(tmp_path), write(tmp_path, "A_2"), write(tmp_path, "A_3")
    write_about(tmp_path, {"A_2": {}}, "cm")
    with pytest.raises(UserError, match=r"has A_1_AGL.tif, A_3_AGL.tif, which its about.json does not list") as refused:
        read_folder(tmp_path)
    assert "\n" not in str(refused.value)
