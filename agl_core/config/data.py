"""Configuration of the verbs that make and show data."""

from dataclasses import dataclass

from agl_core.config.option import CODECS, option


@dataclass
class WorldConfig:
    """`python launch.py world`: render the built-in data set."""

    out: str = option("", "folder to write the data set to", required=True)
    tiles: int = option(64, "number of tiles, train and test together")
    size: int = option(256, "side of a tile, pixels")
    seed: int = option(0, "seed of the world: another seed is another world of the same kind")
    cities: int = option(3, "number of cities, each of its own style and gsd")
    views: int = option(3, "views (tiles) per place")
    test_share: float = option(0.2, "share of the places held out for testing")
    format: str = option("tif", "format of the RGB images", choices=("tif", "j2k"))
    unit: str = option("cm", "cm: AGL in uint16 centimetres; m: float32 metres", choices=("cm", "m"))
    workers: int | None = option(None, "rendering processes; default: one per core")


@dataclass
class PrepareConfig:
    """`python launch.py prepare`: build the LMDB store from a data set's files."""

    data: str = option("", "folder of the data set (geopose_train.csv, metadata.csv, train/)", required=True)
    store: str = option("", "folder to write the store to; default: <data>/store")
    unit: str = option("cm", "unit of the data set's AGL and VFLOW files", choices=("cm", "m"))
    codec: str = option(
        "auto",
        "how tiles are kept, without loss: zstd, compressed to about half; raw, twice as fast to read where memory "
        "holds it all; auto: that of the store, zstd for a new one",
        choices=CODECS,
    )
    bad_tiles: str = option(
        "list",
        "list: go on, with a line for each bad tile, and fail in the end; stop: end at the first",
        choices=("list", "stop"),
    )
    check: bool = option(
        False, "verify a store that is there, value by value and against the data set's files, and change nothing"
    )
    redo: str = option("", "ids of tiles to make again, whatever the store has of them: A,B,...")
    workers: int | None = option(None, "decoding processes; default: one per core")


@dataclass
class AugmentSheetConfig:
    """`python launch.py augment`: draw a tile under each augmentation, to see whether its labels still fit."""

    data: str = option("", "folder of the data set (geopose_train.csv, metadata.csv, train/)", required=True)
    out: str = option("", "PNG file to write", required=True)
    unit: str = option("cm", "unit of the data set's AGL and VFLOW files", choices=("cm", "m"))
    tile: str = option("", "id of the tile; default: the tallest of a few")
    crop: int = option(256, "side of the square crop, pixels")
    seed: int = option(0, "seed of what is drawn at random: the crop, and how far each operation goes")
