"""A scene whose truth is known: a block on flat ground, seen obliquely, in the files of predictions."""

import json
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS

from agl_core.geometry import Pose, direction

UTM = CRS.from_epsg(32633)
PLACE = Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)
POSE = Pose(1.5, 2.0)  # to the right and up: what stands there is seen further left and down
HEIGHT, WIDTH = 120, 160
BLOCK = (40, 60, 70, 100)  # top, left, bottom, right of its footprint, pixels
TALL = 12.0


def block_scene(block=BLOCK, tall=TALL, pose=POSE, shape=(HEIGHT, WIDTH)):
    """(H, W) uint16 centimetres: the roof is seen where it is not, beside it is flat ground."""
    agl = np.zeros(shape, np.uint16)
    top, left, bottom, right = block
    dx, dy = direction(pose.angle)
    x, y = round(-tall * pose.scale * dx), round(-tall * pose.scale * dy)
    # The walls lie between the footprint and the roof; what they hide and show is left unknown.
    for part in np.linspace(0, 1, 40):
        move_x, move_y = round(x * part), round(y * part)
        agl[top + move_y : bottom + move_y, left + move_x : right + move_x] = 65535
    agl[top + y : bottom + y, left + x : right + x] = round(tall * 100)
    return agl


def exact_pose(pose=POSE, tall=TALL):
    """The pose nearest to `pose` by which the roof moves by whole pixels."""
    dx, dy = direction(pose.angle)
    x, y = round(tall * pose.scale * dx), round(tall * pose.scale * dy)
    return Pose(float(np.hypot(x, y)) / tall, float(np.arctan2(x, y)))


def colours(shape=(HEIGHT, WIDTH), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)


def write_raster(path, bands, **keywords):
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = bands.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=bands.dtype, **keywords
    ) as raster:
        raster.write(bands)


def write_image(folder, image, agl=None, pose=None, rgb=None, unit="cm", gsd=None, **keywords):
    """AGL, VFLOW and RGB of an image; `keywords` (crs, transform, nodata) are those of the heights' file."""
    folder = Path(folder)
    agl = block_scene() if agl is None else agl
    pose = exact_pose() if pose is None else pose
    if unit == "m":
        agl = np.where(agl == 65535, np.float32(np.nan), agl.astype(np.float32) / 100)
    write_raster(folder / f"{image}_AGL.tif", agl[None], **keywords)
    scale = pose.scale / 100 if unit == "cm" else pose.scale
    (folder / f"{image}_VFLOW.json").write_text(json.dumps({"scale": scale, "angle": pose.angle}))
    if rgb is not False:
        rgb = colours(agl.shape) if rgb is None else rgb
        write_raster(folder / f"{image}_RGB.tif", rgb.transpose(2, 0, 1), photometric="rgb")
    if gsd is not None:
        table = folder / "metadata.csv"
        if not table.exists():
            table.write_text("id,city,gsd\n")
        with table.open("a") as file:
            file.write(f"{image},A,{gsd}\n")


def ground_box(block=BLOCK, place=PLACE):
    """The corners of a footprint in the coordinates of the scene: a ring, closed."""
    top, left, bottom, right = block
    return [
        list(place * corner) for corner in ((left, top), (left, bottom), (right, bottom), (right, top), (left, top))
    ]
