"""Files of polygons: GeoJSON, GeoPackage, Shapefile and what else GDAL reads; written as GeoJSON."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.warp import transform as reprojected

from agl_core.errors import UserError
from agl_core.files import whole_file

LAYER = "|layername="
"""After the name of a file: which of its layers, as QGIS writes it."""

WGS84 = CRS.from_epsg(4326)
_SAME = CRS.from_epsg(4979), CRS.from_string("OGC:CRS84")  # with heights, and as GeoJSON calls it
_AREAS = [3, 6]  # shapely's types of Polygon and MultiPolygon
_DIGITS = 9  # of degrees: a tenth of a millimetre
_NO_PLACE = RasterioError, CPLE_BaseError  # some of GDAL's errors come as they are


Move = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Takes (N, 2 or 3) coordinates to others."""


@dataclass(frozen=True)
class Polygons:
    """The features of a file, in its order.

    geometries: (N,) shapely geometries, None where a feature has none; not all need be polygons. properties: of each,
    JSON values. ids: those of the features.
    """

    geometries: NDArray[np.object_]
    properties: list[dict[str, Any]]
    ids: list[int]
    crs: CRS

    @property
    def areas(self) -> NDArray[np.bool_]:
        """(N,) which of them are polygons, or several in one, and not empty."""
        areas = np.isin(shapely.get_type_id(self.geometries), _AREAS)
        return np.asarray(areas & ~shapely.is_empty(self.geometries))


def read_polygons(name: str, option: str = "--polygons") -> Polygons:
    """Read a file of polygons; of one with several layers, that which `|layername=` after its name says.

    Raises:
        UserError: it is missing or damaged, has no polygons, several layers of them, or no coordinate system.
    """
    file, _, layer = name.partition(LAYER)
    path = Path(file)
    if not file:
        raise UserError(f"there are no polygons: give a file of polygons with {option}")
    if not path.exists():
        raise UserError(f"{file} does not exist: give a file of polygons with {option}")
    try:
        layer = layer or _only_layer(path)
        meta, ids, geometries, columns = pyogrio.raw.read(path, layer=layer, return_fids=True, datetime_as_string=True)
        shapes = shapely.from_wkb(geometries)
    except DataLayerError:
        have = ", ".join(str(one) for one in pyogrio.list_layers(path)[:, 0])
        raise UserError(f"{path} has no layer {layer!r}: it has {have}") from None
    except (DataSourceError, shapely.errors.ShapelyError, UnicodeDecodeError) as error:
        detail = str(error).splitlines()[0].split(";")[0].rstrip(".")
        raise UserError(f"{path} cannot be read as polygons ({detail}): give another file with {option}") from None
    polygons = Polygons(
        np.asarray(shapes, object), _properties(meta, columns, len(ids)), ids.tolist(), _crs(path, meta)
    )
    if not polygons.areas.any():
        raise UserError(f"{path} has no polygons among its {len(ids)} features: give a file of polygons with {option}")
    return polygons


def reproject(geometries: NDArray[np.object_], source: CRS, target: CRS) -> NDArray[np.object_]:
    """The geometries in another coordinate system, heights of their points unchanged; coordinates that the other system
    does not have become infinite, and so do all of a geometry of which it refuses some."""
    if source == target:
        return geometries

    def move(points: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = reprojected(source, target, points[:, 0], points[:, 1])[:2]
        return np.column_stack((x, y, points[:, 2:]))

    moved = np.array(geometries, object)
    for has_z in (False, True):
        chosen = shapely.has_z(geometries) == has_z
        if chosen.any():
            moved[chosen] = _moved(geometries[chosen], move, has_z)
    return moved


def placed(geometries: NDArray[np.object_], source: CRS, target: CRS) -> NDArray[np.object_]:
    """The geometries in another coordinate system; None is what is not wholly in a place there."""
    shapes = reproject(geometries, source, target)
    return np.array([shape if there else None for shape, there in zip(shapes, finite(shapes), strict=True)], object)


def _moved(shapes: NDArray[np.object_], move: Move, has_z: bool) -> NDArray[np.object_]:
    """The shapes moved; those that cannot be are found by halving, since one of them stops all that go with it."""
    try:
        return np.asarray(shapely.transform(shapes, move, include_z=has_z), object)
    except _NO_PLACE:
        if len(shapes) == 1:
            nowhere = shapely.transform(shapes, lambda points: np.full_like(points, math.inf), include_z=has_z)
            return np.asarray(nowhere, object)
    half = len(shapes) // 2
    return np.concatenate((_moved(shapes[:half], move, has_z), _moved(shapes[half:], move, has_z)))


def finite(geometries: NDArray[np.object_]) -> NDArray[np.bool_]:
    """(N,) of which geometries both coordinates of all points are numbers; those without points are among them."""
    points, owners = shapely.get_coordinates(geometries, return_index=True)
    result = np.ones(len(geometries), bool)
    result[owners[~np.isfinite(points).all(axis=1)]] = False
    return result


def write_geojson(path: Path, polygons: Polygons, further: Sequence[dict[str, Any]]) -> None:
    """Write a GeoJSON file as RFC 7946 wants it, whole or not at all: longitude and latitude of WGS 84, outer rings
    counter-clockwise. A geometry that has no place there is null.

    further: properties of each feature that are added to, or take the place of, its own.
    """
    shapes = placed(polygons.geometries, polygons.crs, WGS84)
    if polygons.crs != WGS84:
        shapes = np.array([_rounded(shape) for shape in shapes], object)
    shapes = shapely.orient_polygons(shapes, exterior_cw=False)
    with whole_file(path) as aside, aside.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for number, (shape, own, added) in enumerate(zip(shapes, polygons.properties, further, strict=True)):
            properties = json.dumps({**own, **added}, allow_nan=False, ensure_ascii=False)
            geometry = shapely.to_geojson(shape) if shape is not None else "null"
            start = ",\n" if number else "\n"
            head = f'{{"type": "Feature", "id": {polygons.ids[number]}'
            file.write(f'{start}{head}, "properties": {properties}, "geometry": {geometry}}}')
        file.write("\n]}\n")


def _rounded(shape: shapely.Geometry | None) -> shapely.Geometry | None:
    if shape is None:
        return None
    rounded: shapely.Geometry = shapely.transform(
        shape, lambda points: np.round(points, _DIGITS), include_z=shape.has_z
    )
    return rounded


def _only_layer(path: Path) -> str:
    """The layer of a file that may have polygons; the first one if none says so."""
    layers = [(str(name), str(kind)) for name, kind in pyogrio.list_layers(path) if kind is not None]
    names = [name for name, kind in layers if "Polygon" in kind or "Surface" in kind or kind in ("Unknown", "Geometry")]
    if len(names) > 1:
        raise UserError(f"{path} has {len(names)} layers with polygons: write which one, {path}{LAYER}{names[0]}")
    if not layers:
        raise UserError(f"{path} has no shapes: give a file of polygons with --polygons")
    return (names or [layers[0][0]])[0]


def _crs(path: Path, meta: dict[str, Any]) -> CRS:
    try:
        if meta["crs"]:
            crs = CRS.from_user_input(meta["crs"])
            return WGS84 if crs in _SAME else crs
    except CRSError:
        pass
    raise UserError(
        f"{path} does not say in which coordinate system it is: give it with its .prj file, or as GeoPackage or GeoJSON"
    )


def _properties(meta: dict[str, Any], columns: Sequence[NDArray[Any]], count: int) -> list[dict[str, Any]]:
    kinds = zip(meta["fields"], meta["ogr_types"], meta["ogr_subtypes"], columns, strict=True)
    by_name = {
        str(name): [_value(value, kind, subkind) for value in column.tolist()] for name, kind, subkind, column in kinds
    }
    return [{name: values[number] for name, values in by_name.items()} for number in range(count)]


def _value(value: Any, kind: str, subkind: str) -> Any:
    """A property as JSON has it. Columns of whole numbers and truth values come as floats where some are missing."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if subkind == "OFSTBoolean":
        return bool(value)
    if subkind == "OFSTJSON":
        try:
            return _json(value)
        except ValueError:
            return value
    if kind in ("OFTInteger", "OFTInteger64"):
        return int(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, np.ndarray | list | tuple):
        return [_value(one, "", "") for one in (value.tolist() if isinstance(value, np.ndarray) else value)]
    return value


def _json(text: str) -> Any:
    """The value of a JSON text, in which what is no number, or larger than one can be, is None."""

    def number(digits: str) -> float | None:
        value = float(digits)
        return value if math.isfinite(value) else None

    return json.loads(text, parse_constant=lambda _: None, parse_float=number)
