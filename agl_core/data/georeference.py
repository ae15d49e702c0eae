"""Where on Earth the pixels of an image lie: its coordinate system and transform, RPCs or ground control points."""

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import attr
import numpy as np
import rasterio
from affine import Affine
from numpy.typing import ArrayLike, NDArray
from rasterio._err import CPLE_BaseError  # what GDAL says where rasterio does not translate it: no RasterioError
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError, TransformWarning
from rasterio.rpc import RPC
from rasterio.transform import RPCTransformer, from_gcps
from rasterio.warp import transform as reprojected

from agl_core.errors import UserError
from agl_core.files import is_file

_WGS84 = CRS.from_epsg(4326)
_STEP = 32.0  # pixels over which RPCs are differentiated
_SIZES = 1e-3, 1e3  # metres that a pixel may have: what is beyond comes of a georeference that is wrong

# Unlike tiles, single images may have their georeference in files beside them (.tfw, .RPB, .aux.xml): look for these
# by name, without listing the folder. What GDAL has to say about a damaged file is in the exception.
_GDAL = {"GDAL_DISABLE_READDIR_ON_OPEN": "TRUE", "CPL_LOG": os.devnull}


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a raster for reading, together with the files beside it; a missing or damaged one is a `UserError`.

    What fails inside the block, reading pixels, is told in the same way.
    """
    path = Path(path)
    if not is_file(path):
        raise UserError(f"{path} does not exist")
    # Not `warnings.catch_warnings`: images are read in several threads, and it is not safe there.
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    try:
        with rasterio.Env(**_GDAL), rasterio.open(path) as raster:
            yield raster
    except RasterioError as error:
        detail = str(error.__cause__ or error).removeprefix(f"{path}: ").replace("\n", " ")
        raise UserError(f"{path} cannot be read as an image ({detail}); replace the file") from None


@dataclass(frozen=True, eq=False)
class Georeference:
    """What an image's file says of where its pixels lie.

    crs: of the transform, or of the control points where there is no transform. transform: from (column, row) to
    (x, y), where (0, 0) is the outer corner of the first pixel. rpcs: the camera as rational polynomials. gcps: ground
    control points. shape: (rows, columns) of the image where known; the gsd is that of its middle. Two are
    equal that place pixels equally, whatever their shapes and whatever the control points are called.
    """

    crs: CRS | None = None
    transform: Affine | None = None
    rpcs: RPC | None = None
    gcps: tuple[Any, ...] | None = None
    shape: tuple[int, int] = (0, 0)

    def __eq__(self, other: object) -> bool:
        """Control points are compared here, as rasterio's are equal only to themselves."""
        if not isinstance(other, Georeference):
            return NotImplemented
        return (*self._hashed, self.rpcs) == (*other._hashed, other.rpcs)

    def __hash__(self) -> int:
        """RPCs have none, and count nothing here."""
        return hash(self._hashed)

    @property
    def _hashed(self) -> tuple[Any, ...]:
        points = self.gcps
        places = None if points is None else tuple((one.row, one.col, one.x, one.y, one.z) for one in points)
        return self.crs, self.transform, places

    @property
    def known(self) -> bool:
        """Whether every pixel has coordinates in a known system."""
        return self.crs is not None and self.transform is not None

    def gsd(self) -> float | None:
        """Metres per pixel, the geometric mean of both axes, or None where nothing tells it or it cannot be true.

        They are measured on the ground, at the middle of the image: coordinates of a map are stretched, those of the
        web's (EPSG:3857) by a half at a latitude of 48 degrees. Control points are replaced by the affine map that
        fits them best; RPCs are followed to the ground at their own mean height.
        """
        if self.known:
            assert self.transform is not None
            return _gsd(self.transform, self.crs, (self.shape[1] / 2, self.shape[0] / 2))
        if self.gcps is not None and len(self.gcps) >= 3:
            columns, rows = ([getattr(point, name) for point in self.gcps] for name in ("col", "row"))
            middle = sum(columns) / len(columns), sum(rows) / len(rows)
            fitted = from_gcps(list(self.gcps))
            return _gsd(fitted, self.crs, middle) if fitted is not None else None
        return _rpc_gsd(self.rpcs) if self.rpcs is not None else None

    def world(self, columns: ArrayLike, rows: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(x, y) in the coordinate system of the centres of pixels; columns and rows may be fractions.

        Raises `UserError` for an image without a transform.
        """
        if self.transform is None:
            raise UserError("the image does not say where it lies: give one with a georeference (CRS and transform)")
        a, b, c, d, e, f = self.transform[:6]
        x, y = np.asarray(columns, np.float64) + 0.5, np.asarray(rows, np.float64) + 0.5
        return a * x + b * y + c, d * x + e * y + f

    def profile(self) -> dict[str, Any]:
        """The keywords with which `rasterio.open(path, "w", ...)` writes this georeference."""
        keywords: dict[str, Any] = {"crs": self.crs, "transform": self.transform, "rpcs": self.rpcs}
        if self.transform is None and self.gcps is not None:  # a GeoTIFF has the one or the other
            keywords["gcps"] = list(self.gcps)
        return {name: value for name, value in keywords.items() if value is not None}

    def moved(self, rows: float, columns: float) -> "Georeference":
        """That of a canvas whose first pixel is pixel (rows, columns) of this image, which may lie outside of it."""
        moved = self
        if self.transform is not None:
            a, b, c, d, e, f = self.transform[:6]
            corner = a * columns + b * rows + c, d * columns + e * rows + f
            moved = replace(moved, transform=Affine(a, b, corner[0], d, e, corner[1]))
        if self.rpcs is not None:
            offsets = {"line_off": self.rpcs.line_off - rows, "samp_off": self.rpcs.samp_off - columns}
            moved = replace(moved, rpcs=attr.evolve(self.rpcs, **offsets))
        if self.gcps is not None:
            moved = replace(moved, gcps=tuple(_moved_point(point, rows, columns) for point in self.gcps))
        return moved


def read_georeference(path: Path) -> Georeference:
    """The georeference of an image, from its file and the files beside it; all None if there is none.

    Raises `UserError` for a file that is missing or damaged.
    """
    with opened(path) as raster:
        return georeference_of(raster)


def georeference_of(raster: Any) -> Georeference:
    """The georeference of an open rasterio dataset."""
    # What has no transform is shown with that of the pixel grid.
    transform = raster.transform if raster.transform != Affine.identity() else None
    points, points_crs = raster.gcps
    return Georeference(
        crs=raster.crs or (points_crs if points else None),
        transform=transform,
        rpcs=raster.rpcs,
        gcps=tuple(points) if points and transform is None else None,
        shape=(raster.height, raster.width),
    )


def _gsd(transform: Affine, crs: CRS | None, middle: tuple[float, float]) -> float | None:
    """Metres per pixel of an affine map, at a (column, row)."""
    if crs is None:
        return None
    a, b, c, d, e, f = transform[:6]
    column, row = middle
    corners = [(column, row), (column + 1, row), (column, row + 1)]
    xs, ys = [a * x + b * y + c for x, y in corners], [d * x + e * y + f for x, y in corners]
    try:
        with rasterio.Env(CPL_LOG=os.devnull):
            longitudes, latitudes = reprojected(crs, _WGS84, xs, ys)
    except (CPLE_BaseError, RasterioError):  # an engineering system, from which there is no way to latitudes
        return None
    return _measured(longitudes, latitudes, 1.0)


def _rpc_gsd(rpcs: RPC) -> float | None:
    """Metres per pixel at the middle of the RPCs' validity, on the ground at their height offset."""
    line, sample, height = rpcs.line_off, rpcs.samp_off, rpcs.height_off
    rows, columns = [line, line, line + _STEP], [sample, sample + _STEP, sample]
    warnings.simplefilter("ignore", TransformWarning)
    try:
        with rasterio.Env(CPL_LOG=os.devnull), RPCTransformer(rpcs) as transformer:
            longitudes, latitudes = transformer.xy(rows, columns, zs=[height] * 3)
    except (CPLE_BaseError, RasterioError):  # polynomials that do not lead to the ground
        return None
    return _measured(longitudes, latitudes, _STEP)


def _measured(longitudes: Sequence[float], latitudes: Sequence[float], step: float) -> float | None:
    """Metres per pixel from the degrees of a pixel, of that `step` pixels to its right, and of that as far below."""
    degrees = [(float(longitude), float(latitude)) for longitude, latitude in zip(longitudes, latitudes, strict=True)]
    # No number is less than or equal to NaN.
    if not all(abs(longitude) <= 540 and abs(latitude) <= 90 for longitude, latitude in degrees):
        return None
    first, *others = (_on_ellipsoid(*one) for one in degrees)
    gsd = math.sqrt(math.prod(math.dist(first, other) for other in others)) / step
    return gsd if _SIZES[0] <= gsd <= _SIZES[1] else None


def _on_ellipsoid(longitude: float, latitude: float) -> tuple[float, float, float]:
    """Metres from the Earth's centre of a point on the ellipsoid of WGS 84; neither poles nor the date line matter.

    The radius of curvature in the prime vertical is N = a / sqrt(1 - e^2 sin^2(latitude)).
    """
    a, flattening = 6378137.0, 1 / 298.257223563
    squared = flattening * (2 - flattening)
    along, phi = math.radians(longitude), math.radians(latitude)
    normal = a / math.sqrt(1 - squared * math.sin(phi) ** 2)
    aside = normal * math.cos(phi)
    return aside * math.cos(along), aside * math.sin(along), normal * (1 - squared) * math.sin(phi)


def _moved_point(point: Any, rows: float, columns: float) -> Any:
    return type(point)(point.row - rows, point.col - columns, point.x, point.y, point.z, point.id, point.info)
