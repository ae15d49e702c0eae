"""The pixels of an image file, whole or in parts."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.windows import Window

from agl_core.data.georeference import Georeference, georeference_of, opened
from agl_core.errors import UserError


class RasterSource:
    """An open 8-bit RGB image, of which any part can be read; several threads may read it, one at a time.

    A fourth band that the file declares as alpha is no colour but says, as a nodata value or a mask does, where the
    image shows nothing.
    """

    def __init__(self, path: Path, raster: Any) -> None:
        _check(path, raster)
        self.path, self.height, self.width = path, int(raster.height), int(raster.width)
        self.georeference: Georeference = georeference_of(raster)
        self.masked = any(MaskFlags.all_valid not in flags for flags in raster.mask_flag_enums[:3])
        self._raster, self._lock = raster, threading.Lock()

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        """(height, width, 3) uint8 of the part whose first pixel is (top, left), contiguous."""
        with self._lock:
            bands = self._raster.read((1, 2, 3), window=Window(left, top, width, height))
        return np.ascontiguousarray(bands.transpose(1, 2, 0))

    def unknown(self, top: int, left: int, height: int, width: int) -> NDArray[np.bool_] | None:
        """(height, width) bool, where the image shows nothing; None if it shows something everywhere."""
        if not self.masked:
            return None
        with self._lock:
            mask = self._raster.dataset_mask(window=Window(left, top, width, height))
        result: NDArray[np.bool_] = mask == 0
        return result

    def small(self, height: int, width: int) -> NDArray[np.uint8]:
        """(height, width, 3) uint8: the whole image made as small as that, in bounded memory."""
        with self._lock:
            bands = self._raster.read((1, 2, 3), out_shape=(3, height, width), resampling=Resampling.average)
        return np.ascontiguousarray(bands.transpose(1, 2, 0))


@contextmanager
def open_image(path: Path) -> Iterator[RasterSource]:
    """Open an 8-bit RGB image; `UserError` if it is missing, damaged (also where parts are read) or something else."""
    with opened(path) as raster:
        yield RasterSource(Path(path), raster)


def read_image(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 of a whole image, without its fourth band if that is alpha; `UserError` as `open_image`."""
    with open_image(path) as source:
        return source.read(0, 0, source.height, source.width)


def _check(path: Path, raster: Any) -> None:
    if raster.count not in (3, 4) or set(raster.dtypes) != {"uint8"}:
        raise UserError(
            f"{path} has {raster.count} band(s) of {raster.dtypes[0]}, expected 3 of uint8: convert it to 8-bit RGB"
        )
    if raster.count == 4 and raster.colorinterp[3] != ColorInterp.alpha:
        raise UserError(
            f"{path} has a fourth band that is not declared as its mask (alpha): keep the three of red, green and blue"
        )
