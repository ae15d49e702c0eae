"""Tiles to measure with: those of the built-in world, rendered once and kept in the folder for temporary files.

Compression depends on content. These are views of procedural cities with the blur and the noise of a sensor (standard
deviation 1 to 3 grey levels), and heights that are exact: flat ground is 0, roofs are planes. Measured heights are
rougher, which `rough` imitates.
"""

import csv
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agl_core.config import WorldConfig
from agl_core.data.catalog import read_catalog
from agl_core.data.store import StoreEntry
from agl_core.data.store.heights import with_heights
from agl_core.data.tiles import HIGHEST_CM, UNKNOWN, read_agl, read_rgb, read_vflow, write_rgb
from agl_core.world.dataset import render_world

CITIES = 3
CONTENT = "tiles of the built-in world, one of each of its three kinds of city, with sensor blur and noise"


class Tile(NamedTuple):
    """A tile in memory: RGB (H, W, 3) uint8, AGL (H, W) uint16 centimetres, 65535 unknown."""

    entry: StoreEntry
    rgb: NDArray[np.uint8]
    agl: NDArray[np.uint16]


def rendered(size: int, suffix: str = "tif") -> Path:
    """A data set of `CITIES` training tiles of `size` x `size` pixels; made only if it is not there yet.

    `suffix` is the format of the images, "tif" or "j2k"; their pixels are the same.
    """
    folder = Path(tempfile.gettempdir()) / f"agl-benchmark-world-{size}-{suffix}"
    if not folder.is_dir():
        aside = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
        try:
            if suffix == "tif":
                # The fewest tiles of which each city has one to train with.
                render_world(WorldConfig(str(aside / "world"), 2 * CITIES, size, cities=CITIES, views=1))
            else:
                _convert(rendered(size), suffix, aside / "world")
            (aside / "world").rename(folder)
        except OSError:
            if not folder.is_dir():  # another process may have been faster
                raise
        finally:
            shutil.rmtree(aside)
    return folder


def _convert(data: Path, suffix: str, out: Path) -> None:
    """The training part of the data set `data`, of GeoTIFFs, with images in another format."""
    shutil.copytree(data, out, ignore=shutil.ignore_patterns("*_RGB.tif", "test*"))
    for path in (data / "train").glob("*_RGB.tif"):
        write_rgb(out / "train" / f"{path.stem}.{suffix}", read_rgb(path))
    table = out / "geopose_train.csv"
    table.write_text(table.read_text().replace("_RGB.tif", f"_RGB.{suffix}"))


def read_tiles(data: Path, most: int | None = None) -> list[Tile]:
    """The training tiles of the data set `data` (heights in centimetres), at most `most` of them."""
    tiles = []
    for record in read_catalog(data, "train")[:most]:
        assert record.agl is not None
        rgb, agl = read_rgb(record.rgb), read_agl(record.agl, "cm")
        pose = read_vflow(record.vflow, "cm") if record.vflow is not None else None
        height, width = agl.shape
        entry: dict[str, Any] = {"id": record.id, "city": record.city, "gsd": record.gsd}
        where: dict[str, Any] = {
            "scale": pose.scale if pose else None,
            "angle": pose.angle if pose else None,
            "place": record.place,
        }
        tiles.append(Tile(with_heights(StoreEntry(**entry, height=height, width=width, **where), agl), rgb, agl))
    return tiles


def rough(tile: Tile, deviation: float = 5.0) -> Tile:
    """The tile with heights as a laser measures them: noise with this standard deviation, centimetres."""
    noise = np.random.default_rng(0).normal(0, deviation, tile.agl.shape)
    noisy = np.clip(np.rint(tile.agl + noise), 0, HIGHEST_CM).astype(np.uint16)
    return tile._replace(agl=np.where(tile.agl == UNKNOWN, tile.agl, noisy))


def copies(tiles: list[Tile], count: int) -> list[Tile]:
    """`count` tiles with names of their own, and the contents of `tiles` in turn."""
    return [
        tile._replace(entry=StoreEntry(**{**vars(tile.entry), "id": f"{tile.entry.id}_{number:05d}"}))
        for number, tile in ((number, tiles[number % len(tiles)]) for number in range(count))
    ]


def linked(data: Path, count: int, out: Path) -> Path:
    """A data set of `count` training tiles below `out`: the files of `data`, in turn, under other names."""
    (out / "train").mkdir(parents=True)
    with (data / "geopose_train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (data / "metadata.csv").open(newline="") as file:
        metadata = {row["id"]: row for row in csv.DictReader(file)}
    names, about = [], []
    for number in range(count):
        row = rows[number % len(rows)]
        tile = f"{row['id']}_{number:05d}"
        names.append({"id": tile, **{kind: f"{number:05d}_{row[kind]}" for kind in ("agl", "json", "rgb")}})
        about.append({**metadata[row["id"]], "id": tile})
        for kind in ("agl", "json", "rgb"):
            os.link(data / "train" / row[kind], out / "train" / names[-1][kind])
    for name, table in (("geopose_train.csv", names), ("metadata.csv", about)):
        with (out / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, table[0].keys())
            writer.writeheader()
            writer.writerows(table)
    return out
