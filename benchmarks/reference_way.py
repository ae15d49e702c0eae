"""The fourth place's own way from files to batches, re-implemented to be measured against: no slower, no faster.

What it does was read off its public code; the code here is our own. Deliberately kept:

- All images are decoded, in turn, into memory, before the first is written: RGB uint8 and AGL float32 metres with NaN.
- In LMDB each is one pickled array, read through the map without the copy that a plain `get` makes, with readahead.
- A sample unpickles both whole arrays, reads the VFLOW file, cuts a crop, computes the displacement `mag` of every
  pixel, augments, normalises to float32 with segmentation-models-pytorch's function, transposes to (3, H, W); torch's
  own collation makes the batch: image, city, gsd, direction, AGL, mag and scale.
- The geometric chain runs on a crop of 1024 with image, AGL and mag, of which 512 are cut afterwards. The height
  stretch was compiled there (Cython) and is here (numba): a splat on a grid of half the size, so that no pixel stays
  empty, magnified again, then median filters and `cv2.remap`. The rotation goes to the full bounding box, which is cut.
- One unknown height in the crop and heights are not stretched.

The wrong labels of this chain (see the README) cost no time and are not copied: scales are multiplied by the zoom.
"""

import json
import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np
import torch
from numba import njit
from numpy.random import RandomState
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from agl_core.data.catalog import TileRecord, read_catalog
from agl_core.data.tiles import UNKNOWN, read_agl, read_rgb
from agl_core.geometry import Pose
from benchmarks.tiles import Tile

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
MOST_STRETCH, HIGHEST = 2.0, 200.0


@dataclass(frozen=True)
class Chances:
    """How often each geometric operation is done; those of the recipe by default."""

    stretch: float = 0.5
    rot90: float = 0.5
    flip: float = 0.5
    rotate: float = 0.3
    zoom: float = 0.5


EVERYTHING = Chances(1.0, 1.0, 1.0, 1.0, 1.0)


def metres(agl_cm: NDArray[np.uint16]) -> Floats:
    """Heights as the reference holds them: (H, W) float32 metres, NaN where unknown."""
    heights: Floats = agl_cm.astype(np.float32)
    np.putmask(heights, agl_cm == UNKNOWN, np.nan)
    heights /= np.float32(100)
    return heights


def build(data: Path, out: Path) -> int:
    """Decode all training images, then write them; how many bytes of images were held at once."""
    records = read_catalog(data, "train")
    images: dict[str, NDArray[Any]] = {}
    for record in records:
        images |= _decoded(record)
    held = sum(image.nbytes for image in images.values())
    # A transaction holds what it writes in memory until it is committed: one per image, so that only the images count.
    with lmdb.open(str(out), map_size=2 * held + (1 << 24), sync=False) as environment:
        for name, image in images.items():
            with environment.begin(write=True) as transaction:
                transaction.put(name.encode(), pickle.dumps(image))
        environment.sync(True)
    return held


def _decoded(record: TileRecord) -> dict[str, NDArray[Any]]:
    assert record.agl is not None
    return {f"{record.id}_RGB": read_rgb(record.rgb), f"{record.id}_AGL": metres(read_agl(record.agl, "cm"))}


def write(out: Path, tiles: Sequence[Tile]) -> Path:
    """The LMDB of tiles that are in memory already, and their VFLOW files beside it."""
    size = sum(3 * tile.rgb.nbytes for tile in tiles)
    with lmdb.open(str(out), map_size=size + (1 << 24)) as environment:
        for tile in tiles:
            with environment.begin(write=True) as transaction:
                transaction.put(f"{tile.entry.id}_RGB".encode(), pickle.dumps(tile.rgb))
                transaction.put(f"{tile.entry.id}_AGL".encode(), pickle.dumps(metres(tile.agl)))
            pose = {"scale": (tile.entry.scale or 0.0) / 100, "angle": tile.entry.angle or 0.0}
            (out / f"{tile.entry.id}_VFLOW.json").write_text(json.dumps(pose))
    return out


def open_reading(path: Path) -> lmdb.Environment:
    """The LMDB as the reference opens it."""
    return lmdb.open(str(path), readonly=True, lock=False, readahead=True, meminit=False)


def read_whole(environment: lmdb.Environment, tile: str) -> tuple[Image, Floats]:
    """Unpickle a tile (from a file that this very process wrote: pickles of others may run code)."""
    with environment.begin(write=False, buffers=True) as transaction:
        values: list[Any] = [transaction.get(f"{tile}_{kind}".encode()) for kind in ("RGB", "AGL")]
        return pickle.loads(values[0]), pickle.loads(values[1])


def read_crop(environment: lmdb.Environment, tile: str, y: int, x: int, side: int) -> tuple[Image, Floats]:
    """A crop, contiguous."""
    rgb, agl = read_whole(environment, tile)
    cut = np.s_[y : y + side, x : x + side]
    return np.ascontiguousarray(rgb[cut]), np.ascontiguousarray(agl[cut])


def normalised(rgb: Image) -> Floats:
    """(H, W, 3) uint8 to float32, with segmentation-models-pytorch's arithmetic, which is in float64."""
    image: Floats = ((rgb / 255.0 - MEAN) / DEVIATION).astype(np.float32)
    return image


def normalised_float32(rgb: Image) -> Floats:
    """The same numbers, nearly, for half the cost: what the reference could have done."""
    image = rgb.astype(np.float32)
    image -= (255 * MEAN).astype(np.float32)
    image *= (1 / (255 * DEVIATION)).astype(np.float32)
    return image


class ReferenceDataset(Dataset[Any]):
    """Crops of all tiles in the LMDB at `path`, read and prepared in the worker; nothing is augmented."""

    def __init__(self, path: Path, tiles: Sequence[Tile], crop: int, careful: bool = False) -> None:
        """`careful`: normalise in float32."""
        self.path, self.crop = path, crop
        self.names = [tile.entry.id for tile in tiles]
        self.gsd = [tile.entry.gsd for tile in tiles]
        self.cities = sorted({tile.entry.city for tile in tiles})
        self.city = [tile.entry.city for tile in tiles]
        self.normalise = normalised_float32 if careful else normalised
        self._environment: lmdb.Environment | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> Any:
        if self._environment is None:  # in the worker: an environment does not survive a fork
            self._environment = open_reading(self.path)
        name, side = self.names[number], self.crop
        city = np.zeros((len(self.cities), 1, 1), np.float32)
        city[self.cities.index(self.city[number])] = 1
        gsd = np.full((1, 1, 1), self.gsd[number], np.float32)
        rgb, agl = read_whole(self._environment, name)
        y, x = (int(torch.randint(length - side + 1, ())) for length in agl.shape)
        rgb, agl = rgb[y : y + side, x : x + side], agl[y : y + side, x : x + side]
        pose = json.loads((self.path / f"{name}_VFLOW.json").read_text())
        scale = np.float32(100 * pose["scale"])
        mag = agl * scale
        xydir = np.array([math.sin(pose["angle"]), math.cos(pose["angle"])], np.float32)
        image = self.normalise(rgb).transpose(2, 0, 1)
        return (image, city, gsd), xydir, agl, mag, scale


def loader(dataset: ReferenceDataset, batch: int, batches: int, workers: int) -> Any:
    """`batches` batches of random tiles."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(len(dataset), (batch * batches,), generator=generator).tolist()
    return DataLoader(dataset, batch, sampler=numbers, num_workers=workers, generator=generator)


@dataclass
class Crop:
    """What the geometric chain works on: rgb (H, W, 3) uint8, agl metres, mag pixels of displacement, pose, gsd."""

    rgb: Image
    agl: Floats
    mag: Floats
    pose: Pose
    gsd: float


def cut(rgb: Image, agl: Floats, pose: Pose, gsd: float, side: int, random: RandomState) -> Crop:
    """A random crop of a tile."""
    height, width = agl.shape
    y, x = random.randint(height - side + 1), random.randint(width - side + 1)
    part = np.s_[y : y + side, x : x + side]
    return Crop(rgb[part], agl[part], agl[part] * np.float32(pose.scale), pose, gsd)


def geometric(crop: Crop, chances: Chances, random: RandomState, side: int) -> Crop:
    """The reference's geometric augmentation in its order, then a random crop of `side` pixels, contiguous."""
    unknown = bool(np.isnan(crop.mag).any() or np.isnan(crop.agl).any())
    if not unknown and random.uniform() < chances.stretch:
        highest = float(crop.agl.max())
        if highest > 0:
            crop = stretched(crop, random.uniform(1.0, max(1.0, min(MOST_STRETCH, HIGHEST / highest))))
    if random.uniform() < chances.rot90:
        crop = rotated(crop, float(random.choice([90, 180, 270])))
    if random.uniform() < chances.flip:
        crop = _each(crop, np.s_[:, ::-1], Pose(crop.pose.scale, -crop.pose.angle))
    if random.uniform() < chances.flip:
        crop = _each(crop, np.s_[::-1], Pose(crop.pose.scale, math.pi - crop.pose.angle))
    if random.uniform() < chances.rotate:
        crop = rotated(crop, float(random.randint(359)))
    if random.uniform() < chances.zoom:
        crop = zoomed(crop, random.uniform(0.7, 1.3))
    height, width = crop.agl.shape
    y, x = random.randint(height - side + 1), random.randint(width - side + 1)
    crop = _each(crop, np.s_[y : y + side, x : x + side], crop.pose)
    arrays: list[Any] = [np.ascontiguousarray(array) for array in (crop.rgb, crop.agl, crop.mag)]
    return Crop(arrays[0], arrays[1], arrays[2], crop.pose, crop.gsd)


def _each(crop: Crop, part: Any, pose: Pose) -> Crop:
    return Crop(crop.rgb[part], crop.agl[part], crop.mag[part], pose, crop.gsd)


def stretched(crop: Crop, factor: float) -> Crop:
    """All heights multiplied by `factor`, surfaces moved, holes filled from their neighbours."""
    mag: Any = cv2.medianBlur(np.ascontiguousarray(crop.mag), 5)
    move = mag * np.float32(1 - factor)
    x = np.floor(move * math.sin(crop.pose.angle) + 0.5).astype(np.int32)
    y = np.floor(move * math.cos(crop.pose.angle) + 0.5).astype(np.int32)
    height, width = mag.shape
    moved = np.zeros((height // 2, width // 2, 2), np.float32)
    _splat(x, y, mag, moved)
    flow: Any = cv2.medianBlur(cv2.resize(moved, (width, height)), 5)
    map_x = np.arange(width, dtype=np.float32) - flow[..., 0]
    map_y = np.arange(height, dtype=np.float32)[:, None] - flow[..., 1]
    warped: list[Any] = [
        cv2.remap(np.ascontiguousarray(array), map_x, map_y, cv2.INTER_LINEAR) for array in (crop.rgb, crop.agl, mag)
    ]
    rgb: Any = cv2.blur(warped[0], (3, 3))
    return Crop(rgb, warped[1] * np.float32(factor), warped[2] * np.float32(factor), crop.pose, crop.gsd)


@njit(cache=True)
def _splat(x: NDArray[np.int32], y: NDArray[np.int32], mag: Floats, moved: Floats) -> None:
    """Where pixels go, on a grid of half the size: of those that meet, the tallest is kept."""
    rows, columns = moved.shape[:2]
    tallest = np.zeros((rows, columns), np.float32)
    for i in range(mag.shape[0]):
        for j in range(mag.shape[1]):
            row, column = (i + y[i, j]) // 2, (j + x[i, j]) // 2
            if 0 <= row < rows and 0 <= column < columns and mag[i, j] >= tallest[row, column]:
                tallest[row, column] = mag[i, j]
                moved[row, column, 0] = x[i, j]
                moved[row, column, 1] = y[i, j]


def rotated(crop: Crop, degrees: float) -> Crop:
    """Turned counter-clockwise about the middle; uncovered corners are black and unknown."""
    height, width = crop.mag.shape
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    cosine, sine = abs(matrix[0, 0]), abs(matrix[0, 1])
    wide, high = int(height * sine + width * cosine), int(height * cosine + width * sine)
    matrix[0, 2] += int(wide / 2 - width / 2)
    matrix[1, 2] += int(high / 2 - height / 2)
    top, left = max(high - height, 0) // 2, max(wide - width, 0) // 2
    part = np.s_[top : top + height, left : left + width]
    turned: list[Any] = [
        cv2.warpAffine(np.ascontiguousarray(array), matrix, (wide, high), flags=flags, borderValue=outside)[part]
        for array, flags, outside in (
            (crop.rgb, cv2.INTER_LINEAR, 0),
            (crop.agl, cv2.INTER_NEAREST, math.nan),
            (crop.mag, cv2.INTER_NEAREST, math.nan),
        )
    ]
    pose = Pose(crop.pose.scale, crop.pose.angle + math.radians(degrees))
    return Crop(turned[0], turned[1], turned[2], pose, crop.gsd)


def zoomed(crop: Crop, factor: float) -> Crop:
    """Magnified about the middle to as many pixels as before; what is uncovered is black and unknown."""
    height, width = crop.mag.shape
    size = int(width * factor), int(height * factor)
    arrays: list[Any] = []
    for array, outside in ((crop.rgb, 0), (crop.agl, math.nan), (crop.mag, math.nan)):
        scaled: Any = cv2.resize(np.ascontiguousarray(array), size, interpolation=cv2.INTER_NEAREST)
        if factor >= 1:
            top, left = (size[1] - height) // 2, (size[0] - width) // 2
            arrays.append(scaled[top : top + height, left : left + width])
        else:
            top, left = (height - size[1]) // 2, (width - size[0]) // 2
            whole = np.full(array.shape, outside, array.dtype)
            whole[top : top + size[1], left : left + size[0]] = scaled
            arrays.append(whole)
    mag = arrays[2] * np.float32(factor)
    return Crop(arrays[0], arrays[1], mag, Pose(crop.pose.scale * factor, crop.pose.angle), crop.gsd / factor)
