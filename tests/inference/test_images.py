"""What to predict: splits of data sets, single images, folders, patterns and lists; what is wrong is one sentence."""

import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from agl_core.config import PredictConfig, TrainConfig
from agl_core.data.catalog import read_catalog
from agl_core.data.split import Split
from agl_core.data.tiles import write_agl, write_rgb
from agl_core.errors import UserError
from agl_core.inference.images import Job, data_set_jobs, list_images, single_jobs
from agl_core.inference.source import open_image, read_image


def write_image(path, bands=3, dtype="uint8", gsd=None, size=(6, 8), **options):
    """A GeoTIFF of random pixels; with a gsd it is georeferenced."""
    if gsd is not None:
        options |= {"crs": CRS.from_epsg(32617), "transform": Affine(gsd, 0, 4e5, 0, -gsd, 3e6)}
    pixels = np.random.default_rng(bands).integers(0, 250, (bands, *size)).astype(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", height=size[0], width=size[1], count=bands, dtype=dtype, **options
    ) as file:
        file.write(pixels)
    return path


def jobs(images, cities=("A", "B"), **options):
    return single_jobs(PredictConfig(images=str(images), **options), cities)[0]


@pytest.fixture
def data(tmp_path):
    """A data set of 12 train and 2 test images."""
    rows, metadata = [], []
    for number in range(14):
        split = "train" if number < 12 else "test"
        image = f"{'AB'[number % 2]}_{number:02}"
        write_image(tmp_path / split / f"{image}_RGB.tif")
        metadata.append(f"{image},{image[0]},0.5,{image[0]}{number // 4}")
        if split == "train":
            write_agl(tmp_path / "train" / f"{image}_AGL.tif", np.zeros((6, 8), np.uint16), "cm")
            rows.append(f"{image},{image}_AGL.tif,,{image}_RGB.tif")
    (tmp_path / "geopose_train.csv").write_text("id,agl,json,rgb\n" + "\n".join(rows) + "\n")
    (tmp_path / "geopose_test.csv").write_text("id,rgb\nA_12,A_12_RGB.tif\nB_13,B_13_RGB.tif\n")
    (tmp_path / "metadata.csv").write_text("id,city,gsd,place\n" + "\n".join(metadata) + "\n")
    return tmp_path


def test_the_images_of_a_split_are_those_of_its_table(data):
    assert data_set_jobs(PredictConfig(data=str(data)), {}) == [
        Job("A_12", data / "test" / "A_12_RGB.tif", "A", 0.5),
        Job("B_13", data / "test" / "B_13_RGB.tif", "B", 0.5),
    ]
    assert len(data_set_jobs(PredictConfig(data=str(data), split="train"), {})) == 12


@pytest.mark.parametrize(("by", "folds", "seed"), [("city", 3, 5), ("place", 3, 0), ("city", 4, 314159)])
def test_the_images_held_out_are_those_that_training_validates_on(data, by, folds, seed):
    class FakeStore:
        entries = read_catalog(data, "train")
        cities = ("A", "B")

    for fold in range(folds):
        trained = TrainConfig(fold=fold, folds=folds, fold_by=by, seed=seed)
        asked = PredictConfig(data=str(data), split="held-out")
        held_out = Split.of(FakeStore(), trained).validation
        found = data_set_jobs(asked, asdict(trained))
        assert [job.id for job in found] == [FakeStore.entries[number].id for number in held_out]


@pytest.mark.parametrize(
    ("trained", "words"),
    [
        ({"fold": -1, "folds": 4, "fold_by": "city", "seed": 0}, "held nothing out"),
        ({}, "do not say what was held out"),
        ({"fold": 9, "folds": 4, "fold_by": "city", "seed": 0}, "is it the run's data set"),
    ],
)
def test_a_run_that_has_held_nothing_out_has_no_such_images(data, trained, words):
    with pytest.raises(UserError, match=words):
        data_set_jobs(PredictConfig(data=str(data), split="held-out"), trained)


def test_an_image_a_folder_and_a_pattern_are_lists_of_images(tmp_path):
    for name in ("b_RGB.tif", "a.tif", "c.png", "sub/d.tif", "a_AGL.tif", "a_SPREAD.tif", "a_LOOK.png", ".hidden.tif"):
        write_image(tmp_path / name) if name.endswith("tif") else (tmp_path / name).write_bytes(b"")
    (tmp_path / "notes.txt").write_text("")
    assert [(image.id, image.path) for image in list_images(str(tmp_path / "b_RGB.tif"))] == [
        ("b", tmp_path / "b_RGB.tif")
    ]
    assert sorted(image.id for image in list_images(str(tmp_path))) == ["a", "b", "c"]
    assert sorted(image.id for image in list_images(str(tmp_path / "**" / "*.tif"))) == [
        "a", "a_AGL", "a_SPREAD", "b", "d",
    ]  # fmt: skip
    assert [image.id for image in list_images(str(tmp_path / "[b]_RGB.tif"))] == ["b"]


def test_lists_name_images_beside_them_or_from_where_the_command_is_given(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    write_image(here / "a.tif"), write_image(there / "b.tif")
    (there / "list.txt").write_text("\n# tiles\nb.tif\n  a.tif \n")
    monkeypatch.chdir(here)
    assert [image.path for image in list_images(str(there / "list.txt"))] == [there / "b.tif", Path("a.tif")]
    (there / "list.csv").write_text("id, path, city,gsd,note\nX,b.tif,A,0.3,\n\n,a.tif,,,y\n")
    first, second = list_images(str(there / "list.csv"))
    assert (first.id, first.path, first.city, first.gsd) == ("X", there / "b.tif", "A", 0.3)
    assert (second.id, second.path, second.city, second.gsd) == ("a", Path("a.tif"), "", None)


def test_the_gsd_is_that_of_the_list_then_of_the_georeference_then_of_the_option(tmp_path):
    write_image(tmp_path / "a.tif", gsd=0.25), write_image(tmp_path / "b.tif"), write_image(tmp_path / "c.tif", gsd=0.2)
    (tmp_path / "list.csv").write_text("path,gsd\na.tif,\nb.tif,\nc.tif,0.75\n")
    config = PredictConfig(images=str(tmp_path / "list.csv"), gsd=0.5, city="A")
    found, notes = single_jobs(config, ["A", "B"])
    assert {job.id: job.gsd for job in found} == {"a": pytest.approx(0.25, rel=1e-3), "b": 0.5, "c": 0.75}
    assert len(notes) == 1
    assert "a and 1 more images: gsd is 0.25 m by its georeference" in notes[0]


def test_the_city_is_that_of_the_list_or_of_the_option_or_the_only_one(tmp_path):
    write_image(tmp_path / "a.tif"), write_image(tmp_path / "b.tif")
    (tmp_path / "list.csv").write_text("path,city\na.tif,B\nb.tif,\n")
    found = jobs(tmp_path / "list.csv", city="A", gsd=0.5)
    assert [(job.id, job.city) for job in found] == [("a", "B"), ("b", "A")]
    assert [job.city for job in jobs(tmp_path / "a.tif", cities=["C"], gsd=0.5)] == ["C"]
    assert [job.city for job in jobs(tmp_path / "a.tif", cities=None, gsd=0.5)] == [""]


def a_list(name, text):
    return lambda folder: (folder / name).write_text(text) and folder / name


BAD = {
    "no gsd": (lambda folder: write_image(folder / "x.tif"), {"city": "A"}, "does not say how large its pixels are"),
    "no city": (lambda folder: write_image(folder / "x.tif"), {"gsd": 1.0}, "--city.*the model knows A, B"),
    "16 bits": (
        lambda folder: write_image(folder / "x.tif", dtype="uint16"), {}, r"3 band\(s\) of uint16.*convert it to 8-bit",
    ),
    "one band": (lambda folder: write_image(folder / "x.tif", bands=1), {}, r"1 band\(s\) of uint8"),
    "infrared": (
        lambda folder: write_image(folder / "x.tif", bands=4, photometric="minisblack"), {},
        r"fourth band that is not declared as its mask \(alpha\)",
    ),
    "broken": (
        lambda folder: (folder / "x.tif").write_bytes(b"broken") and folder / "x.tif", {}, "cannot be read as an image",
    ),
    "nothing there": (lambda folder: folder / "x.tif", {}, r"x\.tif does not exist"),
    "a name that is too long": (lambda folder: folder / (300 * "x"), {}, "does not exist: give an image, a folder"),
    "a long name in a list": (a_list("l.txt", 5000 * "a"), {}, "a{99} does not exist"),
    "nobody's home": (lambda folder: "~nobody9/x.tif", {}, "~nobody9/x.tif does not exist"),
    "nobody's home in a list": (a_list("l.txt", "~nobody9/x.tif"), {}, "~nobody9/x.tif does not exist"),
    "no such folder": (lambda folder: folder / "x", {}, "does not exist: give an image, a folder"),
    "empty folder": (lambda folder: folder, {}, "has no images"),
    "empty pattern": (lambda folder: folder / "*.tif", {}, "no file is called"),
    "empty list": (a_list("l.txt", "# nothing\n"), {}, "names no images"),
    "empty table": (a_list("l.csv", "path,id\n"), {}, "names no images"),
    "no column": (a_list("l.csv", "image\na.tif\n"), {}, "has no column path"),
    "no path": (a_list("l.csv", "path,id\n,a\n"), {}, "line 2: path is empty"),
    "too many fields": (a_list("l.csv", "path\na.tif,b\n"), {}, "line 2: more fields"),
    "gsd of the list": (a_list("l.csv", "path,gsd\na.tif,-1\n"), {}, "line 2: gsd is '-1'"),
    "missing images": (a_list("l.txt", "a.tif\nb.tif\n"), {}, r"a\.tif, .*b\.tif do not exist"),
    "two of one name": (
        lambda folder: write_image(folder / "s/x_RGB.tif") and write_image(folder / "t/x.tif") and folder / "*/x*",
        {}, "both have the id 'x'",
    ),
    "id": (a_list("l.csv", "path,id\nl.csv,a/b\n"), {}, "the id 'a/b' of .* cannot be part of a file name"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_predicted_is_answered_with_one_sentence(tmp_path, what):
    make, options, words = BAD[what]
    with pytest.raises(UserError, match=words) as refused:
        jobs(make(tmp_path), **options)
    assert "\n" not in str(refused.value)


def test_alpha_nodata_and_masks_say_where_an_image_shows_nothing(tmp_path):
    pixels = np.full((4, 5, 6), 200, np.uint8)
    pixels[3, 1, 2] = 0
    with rasterio.open(
        tmp_path / "alpha.tif", "w", driver="GTiff", height=5, width=6, count=4, dtype="uint8", alpha="yes"
    ) as file:
        file.write(pixels)
    pixels[:3, 4, 4] = 0
    with rasterio.open(
        tmp_path / "nodata.tif", "w", driver="GTiff", height=5, width=6, count=3, dtype="uint8", nodata=0
    ) as file:
        file.write(pixels[:3])
    for name, where in (("alpha.tif", [[1, 2]]), ("nodata.tif", [[4, 4]])):
        with open_image(tmp_path / name) as source:
            assert np.argwhere(source.unknown(0, 0, 5, 6)).tolist() == where
            assert source.unknown(4, 4, 1, 1).shape == (1, 1)
            assert source.read(1, 2, 3, 4).shape == (3, 4, 3)
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.tif"), np.full((5, 6, 3), 200))
    write_rgb(tmp_path / "plain.tif", read_image(tmp_path / "alpha.tif"))
    with open_image(tmp_path / "plain.tif") as source:
        assert source.unknown(0, 0, 5, 6) is None


def test_a_scene_made_small_is_its_average(tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :30] = 100
    write_rgb(tmp_path / "a.tif", pixels)
    with open_image(tmp_path / "a.tif") as source:
        np.testing.assert_array_equal(source.small(2, 2)[..., 0], [[100, 0], [0, 0]])
    assert os.listdir(tmp_path) == ["a.tif"]
