"""Heights of footprints: for each polygon on the ground, what stands on it.

Heights are taken after every pixel has moved to where its surface stands, so that a building's roof lies in its
footprint and not beside it. The values of a polygon are those of the ground pixels whose centres it contains; one that
is too small to contain any has those that it touches. Where several images show a polygon, the one that sees the
largest share of it is used, and of equals the first by id: the views of a place differ in what they hide and in the
error of their pose, and what is seen worse is not mixed in.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.features import rasterize

from agl_core.config import ExportConfig
from agl_core.data.georeference import Georeference
from agl_core.data.tiles import HIGHEST_CM, UNKNOWN, agl_size, open_agl
from agl_core.errors import UserError
from agl_core.export.lists import told
from agl_core.export.polygons import Polygons, finite, placed, read_polygons, write_geojson
from agl_core.files import writable_folder
from agl_core.inference.folder import PredictedImage, read_folder
from agl_core.maps.ground import Canvas, Highest, full_canvas, reach
from agl_core.maps.rectify import Part, bands
from agl_core.maps.work import refuse, surveyed
from agl_core.reporting.progress import Progress

PREFIX = "agl_"
"""Of the properties that a footprint gets."""

_ROWS = 512  # of heights that are read at a time


@dataclass(frozen=True)
class Footprint:
    """Heights on one polygon, metres above ground; those of a polygon outside all images, or unseen, are None.

    pixels: of the ground, from which the heights are; seen: their share of the polygon; image: in which.
    """

    image: str | None = None
    pixels: int | None = None
    seen: float | None = None
    mean: float | None = None
    median: float | None = None
    p90: float | None = None
    max: float | None = None


def export_footprints(config: ExportConfig) -> Path:
    """Write the polygons of `config.polygons`, with all their properties and the heights on them, to
    `<out>/<name>_AGL.geojson`; returns the file, which appears whole or not at all.

    Raises:
        UserError: no polygons or predictions, or images without a georeference (all are named).
    """
    polygons = read_polygons(config.polygons)
    images = read_folder(Path(config.predictions), config.images, config.unit)
    refuse("the polygons cannot be measured", surveyed(images, _survey))
    places = {image.id: image.georeference() for image in images}
    if lost := [image for image, place in places.items() if not place.known]:
        raise UserError(
            f"{told(lost)} in {config.predictions} do not say where they lie: footprints need images with a coordinate "
            "system and a transform, predicted or given with --images"
        )
    folder = writable_folder(Path(config.out), "--out")
    file = Path(config.polygons.partition("|")[0])
    footprints = measure(polygons, images, places)
    path = folder / f"{file.stem}_AGL.geojson"
    write_geojson(
        path, polygons, [{f"{PREFIX}{key}": value for key, value in asdict(one).items()} for one in footprints]
    )
    print(f"{_summary(polygons, footprints)} from {len(images)} images -> {path}, longitude and latitude of WGS 84")
    return path


def measure(polygons: Polygons, images: Sequence[PredictedImage], places: dict[str, Georeference]) -> list[Footprint]:
    """The heights on each polygon; places: by the ids of the images, each with a coordinate system and a transform."""
    best = [Footprint()] * len(polygons.ids)
    shapes: dict[CRS, NDArray[np.object_]] = {}
    with Progress("export", total=len(images), unit="images") as progress:
        for image in images:
            place = places[image.id]
            assert place.crs is not None
            if place.crs not in shapes:
                shapes[place.crs] = placed(_surfaces(polygons), polygons.crs, place.crs)
            for number, footprint in _of_image(image, place, shapes[place.crs]):
                if best[number].seen is None or (footprint.seen or 0) > (best[number].seen or 0):
                    best[number] = footprint
            progress.advance()
    return best


def _of_image(
    image: PredictedImage, place: Georeference, shapes: NDArray[np.object_]
) -> Iterator[tuple[int, Footprint]]:
    """The heights on all polygons that lie in an image, if only in part, or of which it shows something."""
    height, width = agl_size(image.agl, image.unit)
    pose = image.read_pose()
    in_pixels = shapely.transform(shapes, lambda points: _applied(~_transform(place), points))
    bounds = shapely.bounds(in_pixels)
    farthest = pose.scale * HIGHEST_CM / 100
    if not _near(bounds, -farthest, -farthest, width + farthest, height + farthest).any():
        return
    highest = Highest(height, width)
    with open_agl(image.agl, image.unit) as agl:
        for top in range(0, height, _ROWS):
            highest.add(agl.read(top, min(_ROWS, height - top)), top)
    full = full_canvas(highest, pose)
    near = _near(bounds, full.left, full.top, full.left + full.width, full.top + full.height)
    if not near.any():
        return
    canvas = _around(bounds[near], full)
    ground = _ground(image, Part(height, width, pose, canvas, reach(highest.highest, pose), fill=False))
    within = _near(bounds, 0, 0, width, height)
    for number in np.nonzero(near)[0].tolist():
        found = footprint(image.id, in_pixels[number], ground, canvas)
        if found.pixels or within[number]:
            yield number, found


def _ground(image: PredictedImage, part: Part) -> NDArray[np.uint16]:
    """(h, w) uint16 centimetres of what stands on the canvas, 65535 where nobody has seen it."""
    ground: NDArray[np.uint16] = np.empty((part.canvas.height, part.canvas.width), np.uint16)
    top = 0
    with open_agl(image.agl, image.unit) as agl:
        for band in bands(part, lambda first, rows: (None, agl.read(first, rows))):
            ground[top : top + len(band.agl_cm)] = band.agl_cm
            top += len(band.agl_cm)
    return ground


def _near(bounds: NDArray[np.float64], left: float, top: float, right: float, bottom: float) -> NDArray[np.bool_]:
    """(N,) which of (N, 4) bounds reach into a rectangle. Nothing has bounds of NaN, which
    do not."""
    first_x, first_y, last_x, last_y = bounds.T
    inside = (first_x < right) & (last_x > left) & (first_y < bottom) & (last_y > top)
    result: NDArray[np.bool_] = inside & np.isfinite(bounds).all(axis=1)
    return result


def _around(bounds: NDArray[np.float64], most: Canvas) -> Canvas:
    """The part of a canvas in which there are shapes of these (N, 4) bounds."""
    left, top = np.floor(bounds[:, :2].min(axis=0)).astype(int).tolist()
    right, bottom = np.ceil(bounds[:, 2:].max(axis=0)).astype(int).tolist()
    left, top = max(left, most.left), max(top, most.top)
    right, bottom = min(right + 1, most.left + most.width), min(bottom + 1, most.top + most.height)
    return Canvas(top, left, bottom - top, right - left)


def footprint(image: str, shape: shapely.Geometry, ground: NDArray[np.uint16], canvas: Canvas) -> Footprint:
    """The heights on a polygon whose coordinates are (column, row) of the corners of the image's pixels.

    ground: (h, w) uint16 centimetres of what stands on the canvas, 65535 where nobody knows.
    """
    shape = shapely.transform(shape, lambda points: points - (canvas.left, canvas.top))
    left, top, right, bottom = (math.floor(value) for value in shape.bounds)
    rows = slice(max(top, 0), min(bottom + 1, canvas.height))
    columns = slice(max(left, 0), min(right + 1, canvas.width))
    inside = _burnt(shape, rows, columns, touched=False)
    total = float(np.count_nonzero(inside)) + _area_outside(shape, canvas)
    if not total:
        inside = _burnt(shape, rows, columns, touched=True)
        total = float(np.count_nonzero(inside))
    values = ground[rows, columns][inside]
    values = values[values != UNKNOWN]
    if not len(values):
        return Footprint(image, 0, 0.0)
    mean, median, p90, highest = values.mean(), np.median(values), np.percentile(values, 90), values.max()
    return Footprint(
        image,
        len(values),
        round(min(len(values) / total, 1.0), 4),
        *(round(float(value) / 100, 3) for value in (mean, median, p90, highest)),
    )


def _burnt(shape: shapely.Geometry, rows: slice, columns: slice, touched: bool) -> NDArray[np.bool_]:
    """Which pixels of a part of the canvas have their centres in the polygon, or at least touch it."""
    size = rows.stop - rows.start, columns.stop - columns.start
    corner = Affine.translation(columns.start, rows.start)
    burnt = rasterize([(shape, 1)], size, transform=corner, all_touched=touched, dtype=np.uint8)
    result: NDArray[np.bool_] = burnt.astype(bool)
    return result


def _area_outside(shape: shapely.Geometry, canvas: Canvas) -> float:
    """How many pixels of the polygon are not on the canvas."""
    left, top, right, bottom = shape.bounds
    if left >= 0 and top >= 0 and right <= canvas.width and bottom <= canvas.height:
        return 0.0
    return float(shapely.difference(shape, shapely.box(0, 0, canvas.width, canvas.height)).area)


def _surfaces(polygons: Polygons) -> NDArray[np.object_]:
    """(N,) valid polygons, None for features that are none or nowhere; where the outline of one crosses itself, it is
    taken apart."""
    surfaces = np.full(len(polygons.ids), None, object)
    for number in np.nonzero(polygons.areas & finite(polygons.geometries))[0].tolist():
        shape = polygons.geometries[number]
        if not shape.is_valid:
            parts = shapely.get_parts(shapely.make_valid(shape))
            parts = shapely.get_parts(parts)  # of the polygons in a collection
            shape = shapely.multipolygons(parts[shapely.get_type_id(parts) == 3])
        surfaces[number] = shape
    return surfaces


def _survey(image: PredictedImage) -> Iterator[str]:
    """What keeps an image from being measured."""
    try:
        image.read_pose()
        agl_size(image.agl, image.unit)
        image.georeference()
    except UserError as error:
        yield str(error)


def _transform(place: Georeference) -> Affine:
    assert place.transform is not None
    return place.transform


def _applied(transform: Affine, points: NDArray[np.float64]) -> NDArray[np.float64]:
    a, b, c, d, e, f = transform[:6]
    x, y = points.T
    return np.column_stack((a * x + b * y + c, d * x + e * y + f))


def _summary(polygons: Polygons, footprints: Sequence[Footprint]) -> str:
    """How many polygons have heights, and what became of the others."""
    count = int(polygons.areas.sum())
    seen = sum(bool(one.pixels) for one in footprints)
    hidden = sum(one.pixels == 0 for one in footprints)
    others = {
        "hidden or of unknown height": hidden,
        "outside all images": count - seen - hidden,
        "further features without a polygon": len(footprints) - count,
    }
    rest = ", ".join(f"{number} {what}" for what, number in others.items() if number)
    return f"heights of {seen} of {count} polygons{f' ({rest})' if rest else ''}"
