"""Coloured point clouds: every pixel of known height, at the place on the ground over which it is."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from agl_core.config import ExportConfig
from agl_core.data.georeference import Georeference
from agl_core.data.tiles import UNKNOWN
from agl_core.errors import UserError
from agl_core.export.cloudfiles import CloudFile, LasFile, PlyFile
from agl_core.export.lists import told
from agl_core.export.strips import Strip, check_sizes, strips
from agl_core.files import whole_file, writable_folder
from agl_core.geometry import Pose, direction
from agl_core.inference.folder import PredictedImage, read_folder
from agl_core.maps.work import refuse, surveyed, without_rgb
from agl_core.reporting.progress import Progress


@dataclass(frozen=True)
class Points:
    """Points of a cloud.

    xyz: (N, 3) float64: x and y in the units of the cloud's coordinate system, z metres above ground. rgb: (N, 3)
    uint8.
    """

    xyz: NDArray[np.float64]
    rgb: NDArray[np.uint8]


def export_points(config: ExportConfig) -> list[Path]:
    """Write `<id>.laz` (or .las, .ply) for every image of `config.predictions`; returns the files.

    x and y are in the coordinate system of the image where it has one, otherwise metres from its upper left corner
    with y upwards; z is metres above ground in both. Each file appears whole or not at all.

    Raises:
        UserError: no predictions; images without colours, of another size than their heights, or without anything that
            tells how large a pixel is (all are named); `every` below 1.
    """
    if config.every < 1:
        raise UserError(f"every is {config.every}: give 1 for all pixels, 2 for every second one in both directions")
    images = read_folder(Path(config.predictions), config.images, config.unit)
    problems = without_rgb(images, Path(config.predictions)) + surveyed(images, _survey)
    refuse("there can be no point clouds", problems)
    places = {image.id: place for image in images if (place := place_of(image)) is not None}
    if lost := [image.id for image in images if image.id not in places]:
        raise UserError(
            f"{told(lost)} in {config.predictions} have neither a georeference nor a gsd: put a metadata.csv (id, "
            "city, gsd) beside them"
        )
    suffix = "laz" if config.format == "auto" else config.format
    folder = writable_folder(Path(config.out), "--out")
    written, count = [], 0
    with Progress("export", total=len(images), unit="images") as progress:
        for image in images:
            path = folder / f"{image.id}.{suffix}"
            count += write_cloud(path, image, places[image.id], config.every)
            written.append(path)
            progress.advance()
    units = f"{_units(list(places.values()))}; z: metres above ground"
    print(f"{count} points of {len(images)} images -> {config.out}; {units}")
    return written


def write_cloud(path: Path, image: PredictedImage, place: Georeference, every: int = 1) -> int:
    """Write the point cloud of an image, in the format of the suffix of `path`, whole or not at all.

    place: where its pixels lie, with a transform. Returns the number of points.

    Raises:
        UserError: a file is damaged.
    """
    pose = image.read_pose()
    with whole_file(path) as aside, _cloud_file(aside, place) as cloud:
        for strip in strips(image):
            points = points_of(strip, pose, place, every)
            cloud.write(points.xyz, points.rgb)
    return cloud.count


def points_of(strip: Strip, pose: Pose, place: Georeference, every: int = 1) -> Points:
    """The points of a strip: those of every `every`-th row and column of the image whose height is known."""
    first = -strip.top % every
    agl_cm, rgb = strip.agl_cm[first::every, ::every], strip.rgb[first::every, ::every]
    rows, columns = np.nonzero(agl_cm != UNKNOWN)
    heights = agl_cm[rows, columns] / 100.0
    dx, dy = direction(pose.angle)
    x, y = place.world(
        columns * every + heights * (pose.scale * dx), strip.top + first + rows * every + heights * (pose.scale * dy)
    )
    return Points(np.stack((x, y, heights), axis=1), rgb[rows, columns])


def place_of(image: PredictedImage) -> Georeference | None:
    """Where the pixels of an image lie: as its file says, or in metres from its upper left corner with y upwards, or
    None if nobody knows how large they are."""
    known = image.georeference()
    if known.known:
        return known
    if image.gsd is None:
        return None
    return Georeference(transform=Affine(image.gsd, 0, 0, 0, -image.gsd, 0))


def _survey(image: PredictedImage) -> Iterator[str]:
    """What is wrong with the files of an image."""
    try:
        image.read_pose()
        if image.rgb is not None:
            check_sizes(image)
        place_of(image)
    except UserError as error:
        yield str(error)


def _cloud_file(path: Path, place: Georeference) -> CloudFile:
    assert place.transform is not None
    if path.suffix == ".ply":
        return PlyFile(path, place.crs)
    pixel = math.sqrt(abs(place.transform.determinant))
    x, y = place.world(0, 0)
    return LasFile(path, place.crs, (float(x), float(y)), pixel)


def _units(places: Sequence[Georeference]) -> str:
    """What x and y are."""
    return ", ".join(sorted({_unit(place.crs) for place in places}))


def _unit(crs: CRS | None) -> str:
    if crs is None:
        return "x, y: metres from the upper left corner, y upwards"
    unit = "degrees" if crs.is_geographic else str(crs.linear_units)
    return f"x, y: {unit} of {crs.to_string() if crs.to_epsg() else 'the image'}"
