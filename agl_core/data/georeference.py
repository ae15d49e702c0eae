"""Where on Earth the pixels of an image lie: its coordinate system and transform, RPCs or ground control points."""

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import attr
import numpy as np
import rasterio
from affine import Affine
from numpy.typing import ArrayLike, NDArray
from rasterio.crs import CRS
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.rpc import RPC
from rasterio.transform import RPCTransformer, from_gcps
from rasterio.warp import transform as reprojected

from agl_core.errors import UserError

_WGS84 = CRS.from_epsg(4326)
_STEP = 32.0  # pixels over which RPCs are differentiated

# Unlike tiles, single images may have their georeference in files beside them (.tfw, .RPB, .aux.xml): look for these
# by name, without listing the folder. What GDAL has to say about a damaged file is in the exception.
_GDAL = {"GDAL_DISABLE_READDIR_ON_OPEN": "TRUE", "CPL_LOG": os.devnull}


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a raster for reading, together with the files beside it; a missing or damaged one is a `UserError`.

    What fails inside the block, reading pixels, is told in the same way.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    # Not `warnings.catch_warnings`: images are read in several threads, and it is not safe there.
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    try:
        with rasterio.Env(**_GDAL), rasterio.open(path) as raster:
            yield raster
    except RasterioError as error:
        detail = str(error.__cause__ or error).removeprefix(f"{path}: ").replace("\n", " ")
        raise UserError(f"{path} cannot be read as an image ({detail}); replace the file") from None


@dataclass(frozen=True)
class Georeference:
    """What an image's file says of where its pixels lie.

    crs: of the transform, or of the control points where there is no transform. transform: from (column, row) to
    (x, y), where (0, 0) is the outer corner of the first pixel. rpcs: the camera as rational polynomials. gcps: ground
    control points. shape: (rows, columns) of the image where known; the gsd is that of its middle.
    """

    crs: CRS | None = None
    transform: Affine | None = None
    rpcs: RPC | None = None
    gcps: tuple[Any, ...] | None = None
    shape: tuple[int, int] = field(default=(0, 0), compare=False)

    @property
    def known(self) -> bool:
        """Whether every pixel has coordinates in a known system."""
        return self.crs is not None and self.transform is not None

    def gsd(self) -> float | None:
        """Metres per pixel, the geometric mean of both axes, or None where nothing tells it.

        Of projected coordinates their unit counts (feet too), of geographic ones the length of a degree at the middle
        of the image. Control points are replaced by the affine map that fits them best; RPCs are followed to the
        ground at their own mean height.
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
    try:
        if crs.is_geographic:
            a, b, c, d, e, f = transform[:6]
            longitude, latitude = a * middle[0] + b * middle[1] + c, d * middle[0] + e * middle[1] + f
            # The unit of a geographic system may be another than degrees; the way to WGS 84 takes care of it.
            (_,), (degrees,) = reprojected(crs, _WGS84, [longitude], [latitude])
            unit = float(crs.units_factor[1]) * 180 / math.pi
            along_x, along_y = (unit * metres for metres in _degree(degrees))
        else:
            along_x = along_y = float(crs.linear_units_factor[1])
    except (CRSError, RasterioError):  # an engineering system without units, or no way to latitudes
        return None
    return _mean_length((transform.a * along_x, transform.d * along_y), (transform.b * along_x, transform.e * along_y))


def _rpc_gsd(rpcs: RPC) -> float | None:
    """Metres per pixel at the middle of the RPCs' validity, on the ground at their height offset."""
    line, sample, height = rpcs.line_off, rpcs.samp_off, rpcs.height_off
    rows, columns = [line, line, line + _STEP], [sample, sample + _STEP, sample]
    try:
        with rasterio.Env(CPL_LOG=os.devnull), RPCTransformer(rpcs) as transformer:
            longitudes, latitudes = transformer.xy(rows, columns, zs=[height] * 3)
    except RasterioError:  # polynomials that do not lead to the ground
        return None
    along_x, along_y = _degree(float(latitudes[0]))
    axes = [
        (
            float(longitudes[i] - longitudes[0]) * along_x / _STEP,
            float(latitudes[i] - latitudes[0]) * along_y / _STEP,
        )
        for i in (1, 2)
    ]
    return _mean_length(*axes)


def _mean_length(first: tuple[float, float], second: tuple[float, float]) -> float | None:
    gsd = math.sqrt(math.hypot(*first) * math.hypot(*second))
    return gsd if math.isfinite(gsd) and gsd > 0 else None


def _degree(latitude: float) -> tuple[float, float]:
    """Metres of a degree of longitude and of latitude on the ellipsoid of WGS 84.

    The radii of curvature in the prime vertical, N, and in the meridian, M, are a / w and a (1 - e^2) / w^3 with
    w = sqrt(1 - e^2 sin^2(latitude)).
    """
    a, flattening = 6378137.0, 1 / 298.257223563
    squared = flattening * (2 - flattening)
    phi = math.radians(latitude)
    w = math.sqrt(1 - squared * math.sin(phi) ** 2)
    return math.radians(a / w * math.cos(phi)), math.radians(a * (1 - squared) / w**3)


def _moved_point(point: Any, rows: float, columns: float) -> Any:
    return type(point)(point.row - rows, point.col - columns, point.x, point.y, point.z, point.id, point.info)
