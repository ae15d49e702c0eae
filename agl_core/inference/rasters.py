"""Heights as GeoTIFF: at once or in strips, with their place on Earth, cloud-optimised where wanted."""

import os
import secrets
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # what GDAL says where rasterio does not translate it: no RasterioError
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile
from rasterio.windows import Window

from agl_core.data.georeference import Georeference
from agl_core.data.tiles import AGL_DTYPE, UNKNOWN
from agl_core.errors import UserError
from agl_core.files import whole_file

FORMATS = ("tif", "cog")
BLOCK = 512  # side of the blocks of what is written in strips, pixels
_NODATA = {"cm": float(UNKNOWN), "m": float("nan")}
_PREDICTOR = {"cm": 2, "m": 3}
_COG = {
    "driver": "COG",
    "COMPRESS": "DEFLATE",
    "LEVEL": "6",
    "PREDICTOR": "YES",
    "BLOCKSIZE": str(BLOCK),
    "OVERVIEW_RESAMPLING": "AVERAGE",
    "BIGTIFF": "IF_SAFER",
}
# Blocks stay compressed in the auxiliary file: a scene of 20000 x 20000 would have 1.6 GB.
_AUXILIARY = {"driver": "GTiff", "compress": "zstd", "zstd_level": 1, "bigtiff": "if_safer"}
_TILED = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK}


@contextmanager
def _rasterio() -> Iterator[None]:
    # Not `warnings.catch_warnings`: files are written in several threads, and it is not safe there.
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", CPL_LOG=os.devnull):
        yield


@contextmanager
def written(path: Path) -> Iterator[None]:
    """GDAL for writing; what it fails at is told as a `UserError` that names `path`, which is being written.

    Otherwise the image that is read at the same time would be blamed for it.
    """
    try:
        with _rasterio():
            yield
    except (CPLE_BaseError, RasterioError) as error:
        detail = str(error.__cause__ or error).replace("\n", " ")
        raise UserError(
            f"{path} cannot be written ({detail}): make sure that the disk has room, or choose another folder"
        ) from None


def in_unit(agl_cm: NDArray[np.uint16], unit: str) -> NDArray[Any]:
    """uint16 centimetres as the files of `unit` have them: the same, or float32 metres, NaN where unknown."""
    if unit == "cm":
        return agl_cm
    return np.where(agl_cm == UNKNOWN, np.float32(np.nan), (agl_cm / 100.0).astype(np.float32))


def write_heights(
    path: Path, agl_cm: NDArray[np.uint16], unit: str, georeference: Georeference, format: str = "tif"
) -> None:
    """Write (H, W) uint16 centimetres (65535 unknown) in `unit`, whole or not at all; unknown is the file's nodata.

    format: "tif", or "cog" for a cloud-optimised GeoTIFF, whose overviews are averages of what is known.
    """
    height, width = agl_cm.shape
    with _rasterio(), MemoryFile(ext=".tif") as memory:
        with memory.open(driver="GTiff", **_shape(height, width, unit), **_options(unit, format, georeference)) as file:
            file.write(in_unit(agl_cm, unit), 1)
        if format == "tif":
            _store(path, memory)
            return
        with MemoryFile(ext=".tif") as optimised:
            rasterio.shutil.copy(memory.name, optimised.name, **_COG)
            _store(path, optimised)


class StripFile:
    """Heights that come in strips of full width, from top to bottom, and end in one file.

    They are collected in an auxiliary file, which `finish` copies block by block: so the bytes of the result depend on
    the heights alone, not on how high the strips were. Memory does not grow with the image. Use it in a `with` block,
    at whose end the auxiliary file is gone.
    """

    def __init__(
        self, path: Path, height: int, width: int, unit: str, georeference: Georeference, format: str = "tif"
    ) -> None:
        self.path, self.height, self.width, self.unit, self.format = Path(path), height, width, unit, format
        self._georeference = georeference
        # Named as what `whole_file` makes, so that it is known for torn if this process is killed.
        self._auxiliary = self.path.with_name(f".{self.path.stem}.{secrets.token_hex(4)}.part.tif")
        self._rows, self._sum = 0, 0

    def __enter__(self) -> "StripFile":
        shape = _shape(self.height, self.width, self.unit)
        options = {**self._georeference.profile(), **_AUXILIARY, **_TILED, "predictor": _PREDICTOR[self.unit]}
        with written(self.path):
            self._file = rasterio.open(self._auxiliary, "w", **shape, **options)
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(CPLE_BaseError, RasterioError), _rasterio():  # what is not finished need not be whole
            self._file.close()
        self._auxiliary.unlink(missing_ok=True)

    def write(self, top: int, agl_cm: NDArray[np.uint16]) -> None:
        """(n, W) rows from `top` on, uint16 centimetres: those after the rows before, or all anew from row 0.

        Raises `UserError` if they cannot be written.
        """
        if top == 0:
            self._rows, self._sum = 0, 0
        assert top == self._rows, f"row {top} after {self._rows}"
        values = np.ascontiguousarray(in_unit(agl_cm, self.unit))
        with written(self.path):
            self._file.write(values, 1, window=Window(0, top, self.width, len(values)))
        self._rows += len(values)
        self._sum = zlib.crc32(values.data, self._sum)

    def finish(self) -> None:
        """Write the file, whole or not at all; when this returns, what it holds has been read back and is right.

        Raises `UserError` if they cannot be written or that is not so: GDAL does not always say when a disk is full.
        """
        assert self._rows == self.height, f"{self._rows} of {self.height} rows"
        with written(self.path), whole_file(self.path) as aside:
            self._file.close()
            if self.format == "cog":
                rasterio.shutil.copy(self._auxiliary, aside, **_COG)
            else:
                options = {**_TILED, "compress": "deflate", "zlevel": 1, "predictor": _PREDICTOR[self.unit]}
                rasterio.shutil.copy(self._auxiliary, aside, driver="GTiff", bigtiff="if_safer", **options)
            if self._sum_of(aside) != self._sum:
                raise UserError(
                    f"{self.path} is not as it was written: make sure that the disk has room, or choose another folder"
                )

    def _sum_of(self, path: Path) -> int:
        summed = 0
        with rasterio.open(path) as file:
            for top in range(0, self.height, BLOCK):
                rows = min(BLOCK, self.height - top)
                values = file.read(1, window=Window(0, top, self.width, rows))
                summed = zlib.crc32(np.ascontiguousarray(values).data, summed)
        return summed


def read_small(path: Path, unit: str, height: int, width: int) -> NDArray[np.uint16]:
    """(height, width) uint16 centimetres: heights made as small as that, of every so many pixels one."""
    with _rasterio(), rasterio.open(path) as file:
        values = file.read(1, out_shape=(height, width))
    if unit == "cm":
        return np.asarray(values, np.uint16)
    return np.where(np.isnan(values), UNKNOWN, np.rint(np.nan_to_num(values) * 100)).astype(np.uint16)


def write_png(path: Path, rgb: NDArray[np.uint8]) -> None:
    """Write an (H, W, 3) uint8 picture, whole or not at all."""
    height, width, _ = rgb.shape
    with _rasterio(), MemoryFile(ext=".png") as memory:
        with memory.open(driver="PNG", height=height, width=width, count=3, dtype="uint8") as file:
            file.write(rgb.transpose(2, 0, 1))
        _store(path, memory)


def _shape(height: int, width: int, unit: str) -> dict[str, Any]:
    return {"height": height, "width": width, "count": 1, "dtype": AGL_DTYPE[unit], "nodata": _NODATA[unit]}


def _options(unit: str, format: str, georeference: Georeference) -> dict[str, Any]:
    """Of a file that is written at once; one that is to be copied need not be compressed."""
    packed = {"compress": "deflate", "zlevel": 1, "predictor": _PREDICTOR[unit]} if format == "tif" else {}
    return {**georeference.profile(), **packed, "bigtiff": "if_safer"}


def _store(path: Path, memory: MemoryFile) -> None:
    # Written by Python: GDAL only logs a disk that is full when it closes a file, Python raises.
    with whole_file(Path(path)) as aside:
        aside.write_bytes(memory.getbuffer())
