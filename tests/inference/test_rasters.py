"""Heights as files: where they lie, what is unknown, and how they were cut into strips."""

import os
import resource
from contextlib import contextmanager

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS

from agl_core.data.georeference import Georeference, read_georeference
from agl_core.data.tiles import read_agl
from agl_core.errors import UserError
from agl_core.inference import rasters
from agl_core.inference.rasters import StripFile, read_small, write_heights
from agl_core.inference.source import open_image
from tests.data.test_georeference import points, rpcs

UTM = CRS.from_epsg(32617)
PLACES = {
    "nowhere": Georeference(),
    "map": Georeference(UTM, Affine(0.5, 0, 4e5, 0, -0.5, 3e6)),
    "camera": Georeference(rpcs=rpcs()),
    "points": Georeference(UTM, gcps=points()),
}


def heights(height=700, width=1100):
    ys, xs = np.mgrid[:height, :width]
    agl_cm = (1000 + 10 * ys + xs).astype(np.uint16)
    agl_cm[5:9, 7] = 65535
    return agl_cm


def write_strips(path, agl_cm, unit, place, format, rows):
    with StripFile(path, *agl_cm.shape, unit, place, format) as file:
        for top in range(0, len(agl_cm), rows):
            file.write(top, agl_cm[top : top + rows])
        file.finish()


@pytest.mark.parametrize("whole", [True, False], ids=["at once", "strips"])
@pytest.mark.parametrize("format", ["tif", "cog"])
@pytest.mark.parametrize("unit", ["cm", "m"])
def test_what_is_written_is_read_back(tmp_path, unit, format, whole):
    agl_cm, path = heights(), tmp_path / "a_AGL.tif"
    if whole:
        write_heights(path, agl_cm, unit, PLACES["map"], format)
    else:
        write_strips(path, agl_cm, unit, PLACES["map"], format, 96)
    np.testing.assert_array_equal(read_agl(path, unit), agl_cm)
    with rasterio.open(path) as file:
        assert file.dtypes == ({"cm": "uint16", "m": "float32"}[unit],)
        assert np.isnan(file.nodata) if unit == "m" else file.nodata == 65535
        assert (file.crs, file.transform) == (UTM, PLACES["map"].transform)
        if format == "cog":
            assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            assert file.overviews(1)
    assert os.listdir(tmp_path) == ["a_AGL.tif"]


@pytest.mark.parametrize("format", ["tif", "cog"])
@pytest.mark.parametrize("where", PLACES)
def test_heights_lie_where_their_image_does(tmp_path, where, format):
    place, agl_cm = PLACES[where], heights(40, 60)
    write_heights(tmp_path / "a.tif", agl_cm, "cm", place, format)
    write_strips(tmp_path / "b.tif", agl_cm, "cm", place, format, 16)
    for name in ("a.tif", "b.tif"):
        read = read_georeference(tmp_path / name)
        assert (read.crs, read.transform) == (place.crs, place.transform)
        assert (read.rpcs is None) == (place.rpcs is None)
        if place.rpcs is not None:
            assert read.rpcs.lat_off == pytest.approx(place.rpcs.lat_off, rel=1e-12)
            assert read.rpcs.samp_num_coeff == place.rpcs.samp_num_coeff
        if place.gcps is not None:
            assert [(p.row, p.col, p.x, p.y) for p in read.gcps] == [(p.row, p.col, p.x, p.y) for p in place.gcps]


def test_overviews_are_averages_of_what_is_known(tmp_path):
    agl_cm = np.full((1024, 1024), 65535, np.uint16)
    agl_cm[::2, ::2], agl_cm[1::2, 1::2] = 100, 300
    write_heights(tmp_path / "a.tif", agl_cm, "cm", Georeference(), "cog")
    with rasterio.open(tmp_path / "a.tif", OVERVIEW_LEVEL=0) as file:
        assert np.unique(file.read(1)).tolist() == [200]


@pytest.mark.parametrize("format", ["tif", "cog"])
def test_how_high_the_strips_were_does_not_show(tmp_path, format):
    agl_cm = heights()
    for rows in (1100, 512, 77):
        write_strips(tmp_path / f"{rows}.tif", agl_cm, "m", PLACES["map"], format, rows)
    first, *others = ((tmp_path / f"{rows}.tif").read_bytes() for rows in (1100, 512, 77))
    assert others == [first, first]


def test_strips_may_begin_anew(tmp_path):
    agl_cm = heights(100, 50)
    with StripFile(tmp_path / "a.tif", 100, 50, "cm", Georeference()) as file:
        file.write(0, agl_cm[:60] + 1)
        file.write(0, agl_cm[:30])
        file.write(30, agl_cm[30:])
        file.finish()
    np.testing.assert_array_equal(read_agl(tmp_path / "a.tif", "cm"), agl_cm)


def test_strips_that_are_not_finished_leave_nothing(tmp_path):
    with StripFile(tmp_path / "a.tif", 100, 50, "cm", Georeference()) as file:
        file.write(0, heights(60, 50))
        with pytest.raises(AssertionError, match="60 of 100 rows"):
            file.finish()
    assert os.listdir(tmp_path) == []


def test_a_file_that_is_not_what_was_written_is_refused(tmp_path):
    agl_cm = heights(100, 50)
    with StripFile(tmp_path / "a.tif", 100, 50, "cm", Georeference()) as file:
        file.write(0, agl_cm)
        file._file.write(np.zeros((1, 1), np.uint16), 1, window=rasterio.windows.Window(3, 3, 1, 1))
        with pytest.raises(UserError, match=r"a\.tif is not as it was written: .*room"):
            file.finish()
    assert os.listdir(tmp_path) == []


@contextmanager
def room_for(count):
    """No file of this process may have more bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def an_image(folder):
    with rasterio.open(folder / "big.tif", "w", driver="GTiff", height=8, width=8, count=3, dtype="uint8") as file:
        file.write(np.zeros((3, 8, 8), np.uint8))
    return folder / "big.tif"


def write_while_reading(folder, agl_cm, format):
    """As scenes are written: the image that they are predicted from is open."""
    with rasterio.open(folder / "big.tif", "w", driver="GTiff", height=8, width=8, count=3, dtype="uint8") as file:
        file.write(np.zeros((3, 8, 8), np.uint8))
    (folder / "out").mkdir()
    with open_image(folder / "big.tif"):
        write_strips(folder / "out" / "a.tif", agl_cm, "cm", PLACES["map"], format, 512)


ROOM = r"out/a\.tif .*make sure that the disk has room, or choose another folder"


@pytest.mark.parametrize("format", ["tif", "cog"])
@pytest.mark.parametrize("room", [1, 100_000, 400_000, 1_500_000])
def test_a_full_disk_is_not_the_fault_of_the_image_that_is_read(tmp_path, monkeypatch, format, room):
    noise = np.random.default_rng(0).integers(0, 65535, (1024, 1024)).astype(np.uint16)
    written = write_strips

    def limited(*arguments):
        with room_for(room):
            written(*arguments)

    monkeypatch.setitem(globals(), "write_strips", limited)
    with pytest.raises(UserError, match=ROOM):
        write_while_reading(tmp_path, noise, format)
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize(
    "error", [rasterio.errors.RasterioIOError("Write failed."), CPLE_BaseError(1, 1, "Write failed.")], ids=type
)
@pytest.mark.parametrize("where", ["write", "copy"])
def test_whatever_gdal_says_when_it_cannot_write_the_file_is_named(tmp_path, monkeypatch, where, error):
    def refuse(*_, **__):
        raise error

    if where == "copy":
        monkeypatch.setattr(rasterio.shutil, "copy", refuse)
    else:
        monkeypatch.setattr(rasters, "Window", refuse)
    with pytest.raises(UserError, match=ROOM) as refusal:
        write_while_reading(tmp_path, heights(100, 50), "tif")
    assert "Write failed." in str(refusal.value)
    assert os.listdir(tmp_path / "out") == []


def test_a_small_copy_keeps_what_is_unknown(tmp_path):
    agl_cm = np.full((64, 64), 65535, np.uint16)
    agl_cm[:32] = 1234
    for unit in ("cm", "m"):
        write_heights(tmp_path / "a.tif", agl_cm, unit, Georeference())
        np.testing.assert_array_equal(read_small(tmp_path / "a.tif", unit, 2, 2), [[1234] * 2, [65535] * 2])
