"""Reading one random crop (RGB and AGL) of a tile, from warm memory: the store against two other layouts.

- store: `Store.read_crop`; the baseline
- pickled tile: the reference solution's way: the whole tile (uint8 RGB, float32 AGL) is unpickled from LMDB, then cut
- GeoTIFF window: tiled GeoTIFFs (256 x 256, zstd, predictor) through rasterio, opened for each crop, since a data set
  has thousands of them

All give contiguous arrays of the same crops.
"""

import pickle
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

if not __package__:  # run as a file: Python then looks for modules in this folder, not in the one above
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agl_core.data.store import Store, StoreEntry, StoreWriter
from agl_core.data.tiles import UNKNOWN
from benchmarks.harness import Contender, arguments, compare, report

Crop = tuple[NDArray[Any], NDArray[Any]]
Reader = Callable[[int, int, int], Crop]
"""(y, x, side) to RGB (side, side, 3) uint8 and AGL (side, side)."""

SUBTILE = 256


def synthetic_tile(size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """RGB (size, size, 3) uint8 and AGL (size, size) uint16 centimetres that compress about as real tiles do:
    flat-roofed blocks on sloping ground, sensor noise, a band where nothing is known."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    blocks = generator.integers(0, 3000, (size // 32 + 1, size // 32 + 1))
    heights = blocks[y // 32, x // 32] * (blocks[y // 32, x // 32] > 1500)
    agl = (heights + generator.integers(0, 20, (size, size))).astype(np.uint16)
    agl[: size // 16] = UNKNOWN
    light = 60 + heights // 25 + 30 * x // size
    rgb = light[..., None] + generator.normal(0, 4, (size, size, 3))
    return np.clip(rgb, 0, 255).astype(np.uint8), agl


@contextmanager
def store_reader(folder: Path, rgb: NDArray[np.uint8], agl: NDArray[np.uint16]) -> Iterator[Reader]:
    """This project's store with one tile in it."""
    with StoreWriter(folder) as writer:
        writer.write(StoreEntry("tile", "city", 0.5, *agl.shape), rgb, agl)
        writer.seal()
    with closing(Store(folder)) as store:
        yield lambda y, x, side: store.read_crop(0, y, x, side, side)


@contextmanager
def pickle_reader(folder: Path, rgb: NDArray[np.uint8], agl: NDArray[np.uint16]) -> Iterator[Reader]:
    """A pickled tile in LMDB; read through the map, without the copy that a plain `get` would make."""
    metres = np.where(agl == UNKNOWN, np.float32(np.nan), agl / np.float32(100)).astype(np.float32)
    value = pickle.dumps((rgb, metres), protocol=pickle.HIGHEST_PROTOCOL)
    with lmdb.open(str(folder), map_size=2 * len(value) + (1 << 20)) as environment:
        with environment.begin(write=True) as transaction:
            transaction.put(b"tile", value)

        def read(y: int, x: int, side: int) -> Crop:
            with environment.begin(buffers=True) as transaction:
                raw: Any = transaction.get(b"tile")
                tile = pickle.loads(raw)  # written above, by this process
            cut = np.s_[y : y + side, x : x + side]
            return np.ascontiguousarray(tile[0][cut]), np.ascontiguousarray(tile[1][cut])

        yield read


@contextmanager
def geotiff_reader(folder: Path, rgb: NDArray[np.uint8], agl: NDArray[np.uint16]) -> Iterator[Reader]:
    """A tiled GeoTIFF of the RGB and one of the AGL in centimetres."""
    folder.mkdir()
    layout = {"tiled": True, "blockxsize": SUBTILE, "blockysize": SUBTILE}
    packing = {"compress": "zstd", "zstd_level": 1, "predictor": 2, "interleave": "pixel"}
    with warnings.catch_warnings(), rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        for name, bands in (("rgb", rgb.transpose(2, 0, 1)), ("agl", agl[None])):
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
def readers(folder: Path, size: int) -> Iterator[dict[str, Reader]]:
    """All layouts of one tile of `size` x `size` pixels below `folder`, by name."""
    rgb, agl = synthetic_tile(size)
    with (
        store_reader(folder / "store", rgb, agl) as store,
        pickle_reader(folder / "pickle", rgb, agl) as pickled,
        geotiff_reader(folder / "geotiff", rgb, agl) as geotiff,
    ):
        yield {"store": store, "pickled tile": pickled, "GeoTIFF window": geotiff}


def in_turn(reader: Reader, corners: Sequence[tuple[int, int]], side: int) -> Contender:
    """Each call reads the crop at the next of `corners`, so that a round is the same crop for all."""
    waiting = iter(corners)

    def read_next() -> None:
        reader(*next(waiting), side)

    return read_next


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments("Reading one random crop: the store, a pickled tile, a GeoTIFF window.", argv)
    size, side, rounds = (512, 128, 6) if options.quick else (2048, 512, 120)
    generator = np.random.default_rng(1)
    corners = [(int(y), int(x)) for y, x in generator.integers(0, size - side + 1, (rounds + 1, 2))]
    with tempfile.TemporaryDirectory(prefix="agl-reading-") as folder, readers(Path(folder), size) as layouts:
        contenders = {name: in_turn(reader, corners, side) for name, reader in layouts.items()}
        comparison = compare(contenders, rounds, baseline="store")
    title = f"reading a crop of {side} x {side} from a tile of {size} x {size}, {rounds} rounds"
    report(comparison, title, {"tile": size, "crop": side, "rounds": rounds}, options)


if __name__ == "__main__":
    main()
