"""The verb `rectify`: files of ground, whole or not at all, and what is kept."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from agl_core.config import RectifyConfig
from agl_core.data.georeference import Georeference, read_georeference
from agl_core.data.tiles import UNKNOWN, read_agl, read_rgb, write_agl, write_rgb, write_vflow
from agl_core.durable.exits import InterruptedRunError
from agl_core.errors import UserError
from agl_core.geometry import Pose
from agl_core.inference.rasters import write_heights
from agl_core.maps import rectify as rectify_module
from agl_core.maps.ground import Highest, full_canvas, rectified
from agl_core.maps.rectify import rectify

PLACE = Georeference(CRS.from_epsg(32610), Affine(0.5, 0, 500000, 0, -0.5, 4870000))
POSE = Pose(1.3, 4.0)


def heights(seed: int = 0) -> np.ndarray:
    agl = np.zeros((60, 90), np.uint16)
    agl[2 + seed : 30, 5:40] = 900
    agl[50:, 70:] = UNKNOWN
    return agl


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Truth of two images beside their images: a_truth/ and a/."""
    for number in range(2):
        rgb = np.random.default_rng(number).integers(1, 256, (60, 90, 3), np.uint8)
        for name in ("a", "a_truth"):
            (tmp_path / name).mkdir(exist_ok=True)
        write_rgb(tmp_path / "a" / f"X_{number}_RGB.tif", rgb)
        write_heights(tmp_path / "a_truth" / f"X_{number}_AGL.tif", heights(number), "cm", PLACE)
        write_vflow(tmp_path / "a_truth" / f"X_{number}_VFLOW.json", POSE, "cm")
    return tmp_path


def config(folder: Path, **values: object) -> RectifyConfig:
    asked = RectifyConfig(predictions=str(folder / "a_truth"), out=str(folder / "out"), workers=2)
    return replace(asked, **values)  # type: ignore[arg-type]


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "out").iterdir()}


@pytest.mark.parametrize("canvas", ["input", "full"])
@pytest.mark.parametrize("holes", ["mark", "fill"])
@pytest.mark.parametrize("format", ["tif", "cog"])
def test_the_files_hold_what_stands_there_and_say_where_that_is(
    folder: Path, canvas: str, holes: str, format: str
) -> None:
    assert rectify(config(folder, canvas=canvas, holes=holes, format=format)) == 2
    assert len(list((folder / "out").iterdir())) == 2 * 3 + 1, "and nothing else is left"
    for number in range(2):
        rgb, agl = read_rgb(folder / "a" / f"X_{number}_RGB.tif"), heights(number)
        where = full_canvas(Highest(60, 90).add(agl), POSE) if canvas == "full" else None
        assert where is None or max(where.top, where.left) < 0, "or the origin would not move"
        found = rectified(rgb, agl, POSE, where, fill=holes == "fill")
        path = folder / "out" / f"X_{number}_AGL.tif"
        assert np.array_equal(read_agl(path, "cm"), found.agl_cm)
        assert np.array_equal(read_rgb(folder / "out" / f"X_{number}_RGB.tif"), found.rgb)
        with rasterio.open(folder / "out" / f"X_{number}_MASK.tif") as mask:
            assert np.array_equal(mask.read(1), found.mask)
            assert mask.descriptions[0].startswith("0 seen")
            assert "3 without height" in mask.descriptions[0]
        for kind in ("RGB", "AGL", "MASK"):
            place = read_georeference(folder / "out" / f"X_{number}_{kind}.tif")
            assert place.crs == PLACE.crs
            assert place.transform == (PLACE.moved(where.top, where.left) if where else PLACE).transform
            with rasterio.open(folder / "out" / f"X_{number}_{kind}.tif") as file:
                assert file.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") == ("COG" if format == "cog" else None)


def test_what_is_done_is_kept_until_its_files_or_the_settings_change(folder: Path, capsys) -> None:
    rectify(config(folder))
    before = stamps(folder)
    rectify(config(folder))
    assert stamps(folder) == before
    assert "2 of them before" in capsys.readouterr().out
    write_vflow(folder / "a_truth" / "X_1_VFLOW.json", Pose(0.4, 0.1), "cm")
    rectify(config(folder))
    after = stamps(folder)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"X_1_RGB.tif", "X_1_AGL.tif", "X_1_MASK.tif", "about.json"}
    rectify(config(folder, holes="fill"))
    again = stamps(folder)
    assert all(again[name] != after[name] for name in again)


def test_one_that_was_interrupted_is_continued(folder: Path) -> None:
    rectify(config(folder))
    before = stamps(folder)
    (folder / "out" / "X_0_MASK.tif").unlink()  # as it is while the others are being written
    torn = folder / "out" / ".X_0_AGL.0123abcd.part.tif"
    torn.write_bytes(b"torn")
    rectify(config(folder))
    after = stamps(folder)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {"X_0_RGB.tif", "X_0_AGL.tif", "X_0_MASK.tif"}


def test_a_failure_leaves_no_mask_beside_files_of_two_makings(folder: Path, monkeypatch) -> None:
    rectify(config(folder))

    class Full(rectify_module.RasterFile):
        def finish(self) -> None:
            if self.path.name == "X_0_AGL.tif":
                raise UserError("the disk is full")
            super().finish()

    monkeypatch.setattr(rectify_module, "RasterFile", Full)
    with pytest.raises(UserError, match="the disk is full"):
        rectify(config(folder, holes="fill"))
    names = {path.name for path in (folder / "out").iterdir()}
    assert "X_0_MASK.tif" not in names
    assert "X_1_MASK.tif" in names, "the other one is done"
    assert not [name for name in names if name.startswith(".")]


def test_a_guard_that_asks_to_leave_is_heard_before_the_next_image(folder: Path) -> None:
    class Guard:
        requested, signal = True, "SIGTERM"

    with pytest.raises(InterruptedRunError, match="0 of 2"):
        rectify(config(folder), Guard())  # type: ignore[arg-type]
    assert not list((folder / "out").glob("*_MASK.tif"))


def test_a_large_image_is_moved_in_bands_and_becomes_the_same(folder: Path, monkeypatch) -> None:
    big = np.tile(heights(), (20, 2))
    write_agl(folder / "a_truth" / "X_0_AGL.tif", big, "cm")
    write_rgb(folder / "a" / "X_0_RGB.tif", np.random.default_rng(3).integers(0, 256, (*big.shape, 3), np.uint8))
    rectify(config(folder, canvas="full", holes="fill"))
    whole = {path.name: path.read_bytes() for path in (folder / "out").glob("*.tif")}
    monkeypatch.setattr(rectify_module, "_BAND", 512 * 200)
    rectify(config(folder, canvas="full", holes="fill", out=str(folder / "banded")))
    for name, content in whole.items():
        with (
            rasterio.MemoryFile(content) as memory,
            memory.open() as one,
            rasterio.open(folder / "banded" / name) as two,
        ):
            assert np.array_equal(one.read(), two.read())
            assert one.profile == two.profile


def test_metres_stay_metres(folder: Path) -> None:
    for number in range(2):
        write_agl(folder / "a_truth" / f"X_{number}_AGL.tif", heights(number), "m")
        write_vflow(folder / "a_truth" / f"X_{number}_VFLOW.json", POSE, "m")
    rectify(config(folder))
    with rasterio.open(folder / "out" / "X_0_AGL.tif") as file:
        metres = file.read(1)
        assert file.dtypes[0] == "float32"
        assert np.isnan(file.nodata)
    expected = rectified(None, heights(), POSE).agl_cm
    np.testing.assert_array_equal(np.isnan(metres), expected == UNKNOWN)
    np.testing.assert_allclose(metres[~np.isnan(metres)], expected[expected != UNKNOWN] / 100, atol=1e-4)
    assert json.loads((folder / "out" / "about.json").read_text())["settings"]["unit"] == "m"


def test_everything_that_is_wrong_is_told_at_once_and_nothing_is_written(folder: Path) -> None:
    (folder / "a" / "X_0_RGB.tif").unlink()
    write_rgb(folder / "a" / "X_1_RGB.tif", np.zeros((60, 91, 3), np.uint8))
    shutil.copy(folder / "a_truth" / "X_1_AGL.tif", folder / "a_truth" / "X_2_AGL.tif")
    (folder / "a_truth" / "X_2_VFLOW.json").write_text("{}")
    write_rgb(folder / "a" / "X_2_RGB.tif", np.zeros((60, 90, 3), np.uint8))
    with pytest.raises(UserError) as refused:
        rectify(config(folder))
    told = str(refused.value)
    assert "3 problems" in told
    assert "images of X_0" in told
    assert "--images" in told
    assert "60 x 91" in told
    assert "no number 'scale'" in told
    assert not (folder / "out").exists()


def test_a_folder_that_would_be_overwritten_is_refused(folder: Path) -> None:
    for out in ("a", "a_truth"):
        with pytest.raises(UserError, match="would be overwritten"):
            rectify(config(folder, out=str(folder / out)))
    with pytest.raises(UserError, match="is not a folder"):
        rectify(config(folder, predictions=str(folder / "none")))
