"""Ways to lay tiles out on disk: how each is written, and how one crop is read from it in this process."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from agl_core.data.store import Store, StoreEntry, StoreWriter
from agl_core.data.store.codec import CODECS, encode_tile
from agl_core.data.store.offsets import NAME as OFFSETS
from benchmarks import reference_way
from benchmarks.tiles import Tile

Crop = tuple[NDArray[Any], NDArray[Any]]
Reader = Callable[[int, int, int], Crop]
"""(y, x, side) to RGB (side, side, 3) uint8 and AGL (side, side)."""

REFERENCE = "reference"
SUBTILE = 256


def write_store(folder: Path, tiles: Sequence[Tile], codec: str, offsets: bool = True) -> Path:
    """A sealed store of `tiles`, with or without the offsets of its values."""
    encoded: dict[int, list[bytes]] = {}  # tiles may share their pixels: `copies`
    with StoreWriter(folder, codec) as writer:
        for tile in tiles:
            if id(tile.rgb) not in encoded:
                encoded[id(tile.rgb)] = encode_tile(codec, tile.rgb, tile.agl)
            writer.write_encoded(tile.entry, encoded[id(tile.rgb)])
        writer.seal()
    if not offsets:
        (folder / OFFSETS).unlink()
    return folder


def write_index(folder: Path, tiles: int) -> Path:
    """A sealed store of `tiles` tiles of 2048 x 2048 as far as its index goes: its values are empty shells."""
    shells = [bytes(16)] * (2048 // SUBTILE) ** 2
    with StoreWriter(folder, "zstd") as writer:
        for number in range(tiles):
            heights = 87.5, 4_100_000, 2_400_000_000, 3_500_000_000_000
            where = f"place-{number % 60}"
            entry = StoreEntry(f"JAX_{number:06d}", "JAX", 0.35, 2048, 2048, 0.8, 1.2, where, *heights)
            writer.write_encoded(entry, shells, {"number": number})
        writer.seal()
    return folder


@contextmanager
def store_reader(folder: Path, tile: Tile, codec: str, offsets: bool) -> Iterator[Reader]:
    """This project's store with one tile in it."""
    with closing(Store(write_store(folder, [tile], codec, offsets))) as store:
        yield lambda y, x, side: store.read_crop(0, y, x, side, side)


@contextmanager
def pickle_reader(folder: Path, tile: Tile) -> Iterator[Reader]:
    """The reference's LMDB; heights are float32 metres."""
    with reference_way.open_reading(reference_way.write(folder, [tile])) as environment:
        yield lambda y, x, side: reference_way.read_crop(environment, tile.entry.id, y, x, side)


@contextmanager
def geotiff_reader(folder: Path, tile: Tile) -> Iterator[Reader]:
    """A tiled GeoTIFF of the RGB and one of the AGL in centimetres, opened for each crop: a data set has thousands."""
    folder.mkdir()
    layout = {"tiled": True, "blockxsize": SUBTILE, "blockysize": SUBTILE}
    packing = {"compress": "zstd", "zstd_level": 1, "predictor": 2, "interleave": "pixel"}
    with warnings.catch_warnings(), rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        for name, bands in (("rgb", tile.rgb.transpose(2, 0, 1)), ("agl", tile.agl[None])):
            count, height, width = bands.shape
            shape = {"count": count, "height": height, "width": width, "dtype": bands.dtype.name}
            with rasterio.open(folder / f"{name}.tif", "w", driver="GTiff", **shape, **layout, **packing) as raster:
                raster.write(bands)

        def read(y: int, x: int, side: int) -> Crop:
            window = Window(x, y, side, side)
            with rasterio.open(folder / "rgb.tif") as raster:
                bands = raster.read(window=window)
            with rasterio.open(folder / "agl.tif") as raster:
                heights = raster.read(1, window=window)
            return np.ascontiguousarray(bands.transpose(1, 2, 0)), heights

        yield read


@contextmanager
def readers(folder: Path, tile: Tile) -> Iterator[dict[str, Reader]]:
    """All layouts of one tile below `folder`, by name; the reference's comes first."""
    with ExitStack() as opened:
        layouts = {REFERENCE: opened.enter_context(pickle_reader(folder / "pickle", tile))}
        for codec in CODECS:
            for name, offsets in ((codec, True), (f"{codec} without offsets", False)):
                reader = store_reader(folder / name.replace(" ", "-"), tile, codec, offsets)
                layouts[name] = opened.enter_context(reader)
        layouts["GeoTIFF window"] = opened.enter_context(geotiff_reader(folder / "geotiff", tile))
        yield layouts
