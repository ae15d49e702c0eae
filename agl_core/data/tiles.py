"""The files of one tile: RGB, AGL and VFLOW, in the units of the challenge (cm) or of the original US3D release (m).

In memory a height is always uint16 centimetres with `UNKNOWN` where nothing is known, and a scale is always pixels
per metre. What is written appears whole or not at all.
"""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile
from rasterio.windows import Window

from agl_core.errors import UserError, valid_choice
from agl_core.files import read_json, whole_file, write_json
from agl_core.geometry import Pose

UNKNOWN = 65535
"""The centimetres that mean: nobody knows the height here."""

HIGHEST_CM = UNKNOWN - 1
"""The highest height that uint16 centimetres hold, 655.34 m."""

LOWEST_M = -1000.0
"""Metres below which a number is a file's way to say "no data" (-9999, -32768, ...), not a height."""

UNITS = ("cm", "m")
UNITS_PER_METRE = {"cm": 100, "m": 1}
AGL_DTYPE = {"cm": "uint16", "m": "float32"}

RGB_SUFFIXES = (".tif", ".tiff", ".j2k", ".jp2")

# Georeferencing plays no part here: do not list a folder of thousands of images in search of side files. What GDAL has
# to say about a damaged file is in the exception; its own threads would print it to the terminal as well.
_GDAL = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "CPL_LOG": os.devnull}
_RGB_OPTIONS: dict[str, dict[str, Any]] = {
    ".tif": {"driver": "GTiff", "compress": "deflate", "zlevel": 1, "predictor": 2, "photometric": "rgb"},
    ".j2k": {"driver": "JP2OpenJPEG", "CODEC": "J2K", "QUALITY": "100", "REVERSIBLE": "YES"},
    ".jp2": {"driver": "JP2OpenJPEG", "CODEC": "JP2", "QUALITY": "100", "REVERSIBLE": "YES"},
}


class WrongUnitError(UserError):
    """A file is as files of another unit are."""


@contextmanager
def _rasterio() -> Iterator[None]:
    """GDAL without a search for side files and without remarks on missing georeferencing."""
    # Not `warnings.catch_warnings`: tiles are read and written in several threads, and it is not safe there.
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    with rasterio.Env(**_GDAL):
        yield


@contextmanager
def _readable(path: Path) -> Iterator[Any]:
    """Open a raster for reading; a missing or damaged file is a `UserError` that names it."""
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    try:
        with _rasterio(), rasterio.open(path) as raster:
            yield raster
    except RasterioError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: RasterioError) -> UserError:
    detail = str(error.__cause__ or error).removeprefix(f"{path}: ").replace("\n", " ")
    return UserError(f"{path} cannot be read as an image ({detail}); replace the file")


def _write_raster(path: Path, bands: NDArray[Any], **options: Any) -> None:
    """Write (C, H, W) bands whole or not at all."""
    count, height, width = bands.shape
    shape = {"count": count, "height": height, "width": width, "dtype": bands.dtype.name}
    # Encoded in memory: GDAL only logs a disk that is full when it closes a file, Python raises.
    with _rasterio(), MemoryFile(ext=path.suffix) as memory:
        with memory.open(**shape, **options) as raster:
            raster.write(bands)
        with whole_file(path) as aside:
            aside.write_bytes(memory.getbuffer())


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Read an RGB image, GeoTIFF or JPEG 2000.

    Returns:
        (H, W, 3) uint8, contiguous.

    Raises:
        UserError: when the file is missing, damaged, or not of three uint8 bands.
    """
    path = Path(path)
    with _readable(path) as raster:
        if raster.count != 3 or set(raster.dtypes) != {"uint8"}:
            raise UserError(
                f"{path} has {raster.count} band(s) of {raster.dtypes[0]}, expected 3 of uint8: convert it to 8-bit RGB"
            )
        return np.ascontiguousarray(raster.read().transpose(1, 2, 0))


def write_rgb(path: Path, rgb: NDArray[np.uint8]) -> None:
    """Write an (H, W, 3) uint8 image without loss, in the format that the suffix names (.tif, .tiff, .j2k or .jp2)."""
    path = Path(path)
    suffix = valid_choice("suffix of an RGB image", path.suffix.lower(), list(RGB_SUFFIXES))
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"RGB is {rgb.shape} {rgb.dtype}, expected (H, W, 3) uint8")
    _write_raster(path, rgb.transpose(2, 0, 1), **_RGB_OPTIONS[".tif" if suffix == ".tiff" else suffix])


def read_agl(path: Path, unit: str) -> NDArray[np.uint16]:
    """Read heights above ground, whatever the unit of the file, as centimetres.

    In files of unit "cm" (uint16) 65535 is unknown. In files of unit "m" (float32) NaN, the file's own nodata value
    and everything below -1000 m is unknown; other negative heights, the noise of flat ground, become 0.

    Returns:
        (H, W) uint16, centimetres, `UNKNOWN` where unknown, contiguous.

    Raises:
        UserError: when the file is missing, damaged, not of one band, of another unit, or higher than 655.34 m.
    """
    return read_agl_counted(path, unit)[0]


def read_agl_counted(path: Path, unit: str) -> tuple[NDArray[np.uint16], int]:
    """As `read_agl`, and how many negative heights became 0."""
    path = Path(path)
    valid_choice("unit", unit, list(UNITS))
    with _readable(path) as raster:
        _check_agl(path, raster, unit)
        heights, nodata = raster.read(1), raster.nodata
    return _as_centimetres(path, heights, nodata, unit)


def _as_centimetres(
    path: Path, heights: NDArray[Any], nodata: float | None, unit: str
) -> tuple[NDArray[np.uint16], int]:
    if unit == "cm":
        if nodata is not None and nodata != UNKNOWN:
            heights[heights == nodata] = UNKNOWN
        return heights, 0
    return _centimetres(path, heights, nodata)


class OpenAgl:
    """An AGL file that is read in strips of full width, whatever the unit of the file, as centimetres."""

    def __init__(self, path: Path, raster: Any, unit: str) -> None:
        """`raster` is the open file; see `open_agl`."""
        self.path, self.height, self.width = path, int(raster.height), int(raster.width)
        self.block_rows = int(raster.block_shapes[0][0])
        """Rows that the file holds together: strips of multiples of it are read once."""
        self._raster, self._unit = raster, unit

    def read(self, top: int, rows: int) -> NDArray[np.uint16]:
        """(rows, W) uint16 centimetres, `UNKNOWN` where unknown, from the row `top` on; raises as `read_agl`."""
        try:
            heights = self._raster.read(1, window=Window(0, top, self.width, rows))
        except RasterioError as error:  # here: of two open files, an error outside would be taken for the other's
            raise _unreadable(self.path, error) from None
        return _as_centimetres(self.path, heights, self._raster.nodata, self._unit)[0]


@contextmanager
def open_agl(path: Path, unit: str) -> Iterator[OpenAgl]:
    """Open an AGL to be read strip by strip; raises what `read_agl` does, as far as a file's header shows it."""
    path = Path(path)
    valid_choice("unit", unit, list(UNITS))
    with _readable(path) as raster:
        _check_agl(path, raster, unit)
        yield OpenAgl(path, raster, unit)


def agl_size(path: Path, unit: str) -> tuple[int, int]:
    """(H, W) of heights, without reading them; raises what `read_agl` does, as far as a file's header shows it."""
    path = Path(path)
    valid_choice("unit", unit, list(UNITS))
    with _readable(path) as raster:
        _check_agl(path, raster, unit)
        return raster.height, raster.width


def _check_agl(path: Path, raster: Any, unit: str) -> None:
    if raster.count != 1:
        raise UserError(f"{path} has {raster.count} bands, expected the one of an AGL")
    if raster.dtypes[0] != AGL_DTYPE[unit]:
        fitting = [name for name, dtype in AGL_DTYPE.items() if dtype == raster.dtypes[0]]
        remedy = f"give --unit {fitting[0]}" if fitting else "convert it, and give --unit cm or --unit m"
        kind = WrongUnitError if fitting else UserError
        raise kind(f"{path} holds {raster.dtypes[0]}, but with unit {unit!r} an AGL is {AGL_DTYPE[unit]}: {remedy}")


def _centimetres(path: Path, metres: NDArray[np.float32], nodata: float | None) -> tuple[NDArray[np.uint16], int]:
    unknown = ~(metres > LOWEST_M)
    if nodata is not None:
        unknown |= metres == np.float32(nodata)
    rounded = np.rint(np.where(unknown, np.float32(0), metres) * np.float32(100))
    highest = float(rounded.max(initial=0))
    if highest > HIGHEST_CM:
        raise UserError(
            f"{path} has a height of {highest / 100:.5g} m, the highest that can be kept is {HIGHEST_CM / 100} m: "
            "mark the pixel as unknown (NaN), or check that the file is in metres above ground"
        )
    centimetres = np.clip(rounded, 0, None).astype(np.uint16)
    centimetres[unknown] = UNKNOWN
    return centimetres, int(np.count_nonzero(rounded < 0))


def write_agl(path: Path, agl_cm: NDArray[np.uint16], unit: str) -> None:
    """Write (H, W) uint16 centimetres (`UNKNOWN` where unknown) as a GeoTIFF in `unit`, whole or not at all.

    "cm" writes the same numbers; "m" writes float32 metres, NaN where unknown.
    """
    valid_choice("unit", unit, list(UNITS))
    if agl_cm.ndim != 2 or agl_cm.dtype != np.uint16:
        raise ValueError(f"AGL is {agl_cm.shape} {agl_cm.dtype}, expected (H, W) uint16")
    heights: NDArray[Any] = agl_cm
    if unit == "m":
        heights = np.where(agl_cm == UNKNOWN, np.float32(np.nan), (agl_cm / 100.0).astype(np.float32))
    predictor = {"cm": 2, "m": 3}[unit]
    _write_raster(Path(path), heights[None], driver="GTiff", compress="deflate", zlevel=1, predictor=predictor)


def read_vflow(path: Path, unit: str) -> Pose:
    """Read a VFLOW file: `{"scale": pixels per unit of height, "angle": radians}`.

    Raises:
        UserError: when the file is missing or damaged, a key is missing, or a number is not finite or negative.
    """
    path = Path(path)
    valid_choice("unit", unit, list(UNITS))
    content = read_json(path)
    numbers = {}
    for key in ("scale", "angle"):
        value = content.get(key) if isinstance(content, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f'{path} has no number {key!r}: a VFLOW file is {{"scale": 0.01, "angle": 1.5}}')
        if not abs(value) <= sys.float_info.max or (key == "scale" and value < 0):
            raise UserError(f"{path} has {key} {value}: give a finite number{' >= 0' if key == 'scale' else ''}")
        numbers[key] = float(value)
    return Pose(numbers["scale"] * UNITS_PER_METRE[unit], numbers["angle"])


def write_vflow(path: Path, pose: Pose, unit: str) -> None:
    """Write a VFLOW file in pixels per `unit`, whole or not at all; what is read back differs by rounding only."""
    valid_choice("unit", unit, list(UNITS))
    write_json(Path(path), {"scale": pose.scale / UNITS_PER_METRE[unit], "angle": pose.angle})
