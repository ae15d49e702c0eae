"""The files of a tile: what is written is read back, and what is wrong is said in one sentence."""

import json
import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from agl_core.data.tiles import (
    RGB_SUFFIXES,
    UNITS,
    UNKNOWN,
    agl_size,
    read_agl,
    read_agl_counted,
    read_rgb,
    read_vflow,
    write_agl,
    write_rgb,
    write_vflow,
)
from agl_core.errors import UserError
from agl_core.geometry import Pose


@pytest.fixture
def rgb() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (33, 50, 3), dtype=np.uint8)


@pytest.fixture
def agl_cm() -> NDArray[np.uint16]:
    """Every height that there is, in rows of 256; the last is unknown."""
    return np.arange(65536, dtype=np.uint16).reshape(256, 256)


def write_raw(path: Path, bands: NDArray[Any], **options: Any) -> None:
    """A GeoTIFF as another program would write it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        count, height, width = bands.shape
        shape = {"count": count, "height": height, "width": width, "dtype": bands.dtype.name}
        with rasterio.open(path, "w", driver="GTiff", **shape, **options) as raster:
            raster.write(bands)


@pytest.mark.parametrize("suffix", RGB_SUFFIXES)
def test_rgb_is_read_back_exactly(tmp_path: Path, rgb: NDArray[np.uint8], suffix: str) -> None:
    path = tmp_path / f"JAX_abc_RGB{suffix}"
    write_rgb(path, rgb)
    found = read_rgb(path)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert np.array_equal(found, rgb)
    assert [file.name for file in tmp_path.iterdir()] == [path.name], "no side files"


@pytest.mark.parametrize("unit", UNITS)
def test_every_height_is_read_back_exactly_in_both_units(tmp_path: Path, agl_cm: NDArray[np.uint16], unit: str) -> None:
    path = tmp_path / "JAX_abc_AGL.tif"
    write_agl(path, agl_cm, unit)
    found = read_agl(path, unit)
    assert found.dtype == np.uint16
    assert np.array_equal(found, agl_cm)
    assert [file.name for file in tmp_path.iterdir()] == [path.name], "no side files"


def test_metres_are_float32_with_nan_where_unknown(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_agl(path, np.array([[0, 150, UNKNOWN]], np.uint16), "m")
    with rasterio.open(path) as raster:
        np.testing.assert_array_equal(raster.read(1), np.array([[0, 1.5, np.nan]], np.float32))


def test_centimetres_are_the_challenge_s_own_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_agl(path, np.array([[0, 150, UNKNOWN]], np.uint16), "cm")
    with rasterio.open(path) as raster:
        assert raster.dtypes == ("uint16",)
        assert raster.read(1).tolist() == [[0, 150, 65535]]
        assert raster.tags(ns="IMAGE_STRUCTURE") | {"COMPRESSION": "DEFLATE", "PREDICTOR": "2"} == raster.tags(
            ns="IMAGE_STRUCTURE"
        )


def test_metres_without_data_are_unknown_and_small_negative_heights_are_ground(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    heights = [[np.nan, -9999, -np.inf, -0.3, -0.001, 0.004, 0.006, 655.34]]
    write_raw(path, np.array([heights], np.float32))
    found, clipped = read_agl_counted(path, "m")
    assert found.tolist() == [[UNKNOWN, UNKNOWN, UNKNOWN, 0, 0, 0, 1, 65534]]
    assert clipped == 1, "-0.001 m rounds to 0, which is no loss"


@pytest.mark.parametrize(("unit", "dtype"), [("cm", np.uint16), ("m", np.float32)])
def test_the_nodata_value_that_a_file_declares_is_unknown(tmp_path: Path, unit: str, dtype: type) -> None:
    path = tmp_path / "a.tif"
    write_raw(path, np.array([[[7, 8]]], dtype), nodata=7)
    assert read_agl(path, unit).tolist() == [[UNKNOWN, 8 if unit == "cm" else 800]]


@pytest.mark.parametrize("height", [655.35, 1e6, np.inf])
def test_a_height_that_cannot_be_kept_is_refused_by_name(tmp_path: Path, height: float) -> None:
    path = tmp_path / "JAX_abc_AGL.tif"
    write_raw(path, np.array([[[1, height]]], np.float32))
    with pytest.raises(UserError, match=r"JAX_abc_AGL\.tif has a height of .* m, the highest .* is 655.34 m"):
        read_agl(path, "m")


@pytest.mark.parametrize(("written", "asked"), [("cm", "m"), ("m", "cm")])
def test_the_unit_is_never_guessed(tmp_path: Path, written: str, asked: str) -> None:
    path = tmp_path / "JAX_abc_AGL.tif"
    write_agl(path, np.zeros((2, 2), np.uint16), written)
    with pytest.raises(UserError, match=rf"JAX_abc_AGL\.tif holds .*--unit {written}$"):
        read_agl(path, asked)


def test_an_unknown_unit_is_answered_with_the_valid_ones(tmp_path: Path) -> None:
    for action in (
        lambda: read_agl(tmp_path / "a.tif", "feet"),
        lambda: read_vflow(tmp_path / "a.json", "feet"),
        lambda: write_agl(tmp_path / "a.tif", np.zeros((2, 2), np.uint16), "feet"),
        lambda: write_vflow(tmp_path / "a.json", Pose(1, 1), "feet"),
    ):
        with pytest.raises(UserError, match="'feet': choose one of cm, m"):
            action()
    assert list(tmp_path.iterdir()) == []


def test_other_rasters_are_no_tiles(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for bands in (np.zeros((4, 2, 2), np.uint8), np.zeros((1, 2, 2), np.uint8), np.zeros((3, 2, 2), np.uint16)):
        write_raw(path, bands)
        with pytest.raises(UserError, match=r"a\.tif has . band\(s\) of uint.*, expected 3 of uint8"):
            read_rgb(path)
    write_raw(path, np.zeros((2, 2, 2), np.uint16))
    with pytest.raises(UserError, match=r"a\.tif has 2 bands"):
        read_agl(path, "cm")
    write_raw(path, np.zeros((1, 2, 2), np.int32))
    with pytest.raises(UserError, match=r"a\.tif holds int32, .*convert"):
        read_agl(path, "cm")


@pytest.mark.parametrize("suffix", RGB_SUFFIXES)
def test_missing_empty_foreign_and_cut_images_are_named(
    tmp_path: Path, rgb: NDArray[np.uint8], suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"JAX_abc_RGB{suffix}"
    with pytest.raises(UserError, match=r"JAX_abc_RGB.* does not exist"):
        read_rgb(path)
    write_rgb(path, rgb)
    whole = path.read_bytes()
    for content in (b"", b"this is not an image", whole[: len(whole) // 2], whole[:40]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"JAX_abc_RGB.* cannot be read as an image") as caught:
            read_rgb(path)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", ""), "the sentence is all that is said"


def test_what_gdal_says_on_its_own_does_not_reach_the_terminal(
    tmp_path: Path, rgb: NDArray[np.uint8], capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "JAX_abc_RGB.j2k"
    write_rgb(path, rgb)
    content = bytearray(path.read_bytes())
    content[10] ^= 0xFF  # a byte of the width: the decoder's own threads complain
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as an image"):
        read_rgb(path)
    assert capfd.readouterr() == ("", "")


def test_a_failed_write_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a_AGL.tif"
    write_agl(path, np.full((2, 2), 7, np.uint16), "cm")

    def full(self: Path, data: object) -> int:
        with self.open("wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_agl(path, np.full((2, 2), 8, np.uint16), "cm")
    assert read_agl(path, "cm").tolist() == [[7, 7], [7, 7]]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_only_known_formats_and_shapes_are_written(tmp_path: Path, rgb: NDArray[np.uint8]) -> None:
    with pytest.raises(UserError, match=r"'\.png': choose one of \.tif"):
        write_rgb(tmp_path / "a.png", rgb)
    with pytest.raises(ValueError, match=r"expected \(H, W, 3\) uint8"):
        write_rgb(tmp_path / "a.tif", rgb[..., :2])
    with pytest.raises(ValueError, match=r"expected \(H, W\) uint16"):
        write_agl(tmp_path / "a.tif", rgb, "cm")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_reading_and_writing_in_threads_is_silent(tmp_path: Path, rgb: NDArray[np.uint8]) -> None:
    def there_and_back(number: int) -> bool:
        write_rgb(tmp_path / f"{number}.tif", rgb)
        return np.array_equal(read_rgb(tmp_path / f"{number}.tif"), rgb)

    with warnings.catch_warnings(record=True) as said, ThreadPoolExecutor(4) as pool:
        warnings.simplefilter("always")
        assert all(pool.map(there_and_back, range(20)))
    assert said == []


def test_scale_is_per_centimetre_or_per_metre_on_disk_and_per_metre_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "JAX_abc_VFLOW.json"
    write_vflow(path, Pose(1.25, 2.5), "cm")
    assert json.loads(path.read_text()) == {"scale": 0.0125, "angle": 2.5}
    write_vflow(path, Pose(1.25, 2.5), "m")
    assert json.loads(path.read_text()) == {"scale": 1.25, "angle": 2.5}
    for unit in UNITS:
        write_vflow(path, Pose(1.25, 2.5), unit)
        assert read_vflow(path, unit) == Pose(1.25, 2.5)


def test_an_angle_of_another_turn_is_wrapped(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"scale": 0, "angle": -1.5707963267948966}')
    assert read_vflow(path, "cm") == Pose(0, 1.5 * math.pi)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"angle": 1}', "has no number 'scale'"),
        ('{"scale": 1}', "has no number 'angle'"),
        ('{"scale": "1", "angle": 1}', "has no number 'scale'"),
        ('{"scale": true, "angle": 1}', "has no number 'scale'"),
        ("[1, 2]", "has no number 'scale'"),
        ('{"scale": -0.01, "angle": 1}', "has scale -0.01: give a finite number >= 0"),
        ('{"scale": NaN, "angle": 1}', "has scale nan"),
        ('{"scale": 1e999, "angle": 1}', "has scale inf"),
        ('{"scale": 1, "angle": Infinity}', "has angle inf"),
        ('{"scale": 1, "angle": NaN}', "has angle nan: give a finite number$"),
        ('{"scale": 1' + 400 * "0" + ', "angle": 1}', "has scale 1000"),
        ('{"scale": 1, "angle": ', "cannot be read as JSON"),
    ],
)
def test_impossible_vflow_files_are_named(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "JAX_abc_VFLOW.json"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"JAX_abc_VFLOW\.json {sentence}"):
        read_vflow(path, "cm")


def test_a_missing_vflow_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"JAX_abc_VFLOW\.json does not exist"):
        read_vflow(tmp_path / "JAX_abc_VFLOW.json", "cm")


@pytest.mark.parametrize("unit", ["cm", "m"])
def test_the_size_of_an_agl_is_known_without_reading_it(tmp_path, unit):
    write_agl(tmp_path / "a.tif", np.zeros((5, 7), np.uint16), unit)
    assert agl_size(tmp_path / "a.tif", unit) == (5, 7)
    other = {"cm": "m", "m": "cm"}[unit]
    with pytest.raises(UserError, match=f"give --unit {unit}"):
        agl_size(tmp_path / "a.tif", other)
    with pytest.raises(UserError, match="does not exist"):
        agl_size(tmp_path / "b.tif", unit)
