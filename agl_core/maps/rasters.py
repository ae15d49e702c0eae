"""Bands of any kind as GeoTIFF, written from top to bottom."""

import os
import secrets
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.windows import Window

from agl_core.data.georeference import Georeference
from agl_core.errors import UserError
from agl_core.files import whole_file
from agl_core.inference.rasters import written

BLOCK = 512
"""Side of the blocks of a file, pixels: strips whose heights are multiples of it are written once."""

_AUXILIARY = {"compress": "zstd", "zstd_level": 1}
_FINAL = {"compress": "deflate", "zlevel": 1}


class RasterFile:
    """A GeoTIFF that is written strip by strip, from the top, and appears whole or not at all when `finish` is called.

    Use it in a `with` block, at whose end nothing else of it is left. Memory does not grow with the image.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        dtype: str,
        georeference: Georeference,
        format: str = "tif",
        averaged: bool = True,
        **options: Any,
    ) -> None:
        """shape: (bands, height, width); format: "tif", or "cog" with overviews, `averaged` or of every so many pixels
        one; options: further ones for rasterio (nodata, photometric)."""
        self.path, self.shape, self.dtype, self.format = Path(path), shape, dtype, format
        self._georeference, self._averaged, self._options = georeference, averaged, options
        # Named as what `whole_file` makes, so that it is known for torn if this process is killed.
        self._auxiliary = self.path.with_name(f".{self.path.stem}.{secrets.token_hex(4)}.part.tif")
        self._rows, self._sum = 0, 0

    def __enter__(self) -> "RasterFile":
        count, height, width = self.shape
        tiled = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK} if width > BLOCK else {}
        packed: Mapping[str, Any] = _AUXILIARY if self.format == "cog" else _FINAL
        with written(self.path):
            self._file = rasterio.open(
                self._auxiliary, "w", driver="GTiff", count=count, height=height, width=width, dtype=self.dtype,
                interleave="pixel", bigtiff="if_safer", predictor=3 if self.dtype == "float32" else 2,
                **tiled, **packed, **self._georeference.profile(), **self._options,
            )  # fmt: skip
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(CPLE_BaseError, RasterioError):  # what is not finished need not be whole
            self._file.close()
        self._auxiliary.unlink(missing_ok=True)

    def describe(self, description: str) -> None:
        """Have the file say what the values of its first band mean."""
        self._file.set_band_description(1, description)

    def write(self, values: NDArray[Any]) -> None:
        """The next rows, (bands, n, width)."""
        rows = values.shape[1]
        with written(self.path):
            self._file.write(values, window=Window(0, self._rows, self.shape[2], rows))
        self._rows += rows
        self._sum = _sum(values, self._sum)

    def finish(self) -> None:
        """Write the file; when this returns, what it holds has been read back, is right, and survives a power cut.

        Raises `UserError` if that is not so: GDAL does not always say when a disk is full.
        """
        assert self._rows == self.shape[1], f"{self._rows} of {self.shape[1]} rows"
        with written(self.path), whole_file(self.path) as aside:
            self._file.close()
            if self.format == "cog":
                self._optimise(aside)
            else:
                os.replace(self._auxiliary, aside)
            if self._sum_of(aside) != self._sum:
                raise UserError(f"{self.path} is not as it was written: make sure that the disk has room for it")

    def _optimise(self, aside: Path) -> None:
        resampling = "AVERAGE" if self._averaged else "NEAREST"
        rasterio.shutil.copy(
            self._auxiliary, aside, driver="COG", COMPRESS="DEFLATE", LEVEL="6", PREDICTOR="YES", BLOCKSIZE=str(BLOCK),
            OVERVIEW_RESAMPLING=resampling, BIGTIFF="IF_SAFER",
        )  # fmt: skip

    def _sum_of(self, path: Path) -> int:
        summed, (_, height, width) = 0, self.shape
        with rasterio.open(path) as file:
            for top in range(0, height, BLOCK):
                window = Window(0, top, width, min(BLOCK, height - top))
                summed = _sum(file.read(window=window), summed)
        return summed


def _sum(values: NDArray[Any], before: int) -> int:
    """A checksum of rows that does not depend on how many come at a time."""
    return zlib.crc32(np.ascontiguousarray(values.transpose(1, 0, 2)).data, before)
