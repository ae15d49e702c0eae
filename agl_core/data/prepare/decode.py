"""One tile from its files to what the store keeps of it: the work of the decoding processes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from agl_core.data.catalog import TileRecord
from agl_core.data.prepare.sources import contents, look, size
from agl_core.data.store.codec import encode_tile
from agl_core.data.store.heights import with_heights
from agl_core.data.store.layout import StoreEntry
from agl_core.data.tiles import WrongUnitError, read_agl_counted, read_rgb, read_vflow
from agl_core.errors import UserError

_GDAL = {"GDAL_CACHEMAX": 64, "GDAL_NUM_THREADS": 1}
"""GDAL keeps decoded blocks, without a limit of its own up to 5 % of the machine's memory (MB), and takes all cores."""


@dataclass(frozen=True)
class EncodedTile:
    """A tile as the store keeps it, where it came from, and how many bytes were read for it."""

    entry: StoreEntry
    values: list[bytes]
    provenance: dict[str, Any]
    read: int


@dataclass(frozen=True)
class BadTile:
    """A tile that cannot be read; `why` is one sentence, `wrong_unit` whether its AGL is of the other unit."""

    id: str
    why: str
    read: int
    wrong_unit: bool = False


def encode(record: TileRecord, unit: str, codec: str) -> EncodedTile | BadTile:
    """Read the files of one tile, and filter and compress what they hold."""
    seen = look(record, unit)
    try:
        with rasterio.Env(**_GDAL):
            return _encode(record, unit, codec, seen)
    except UserError as error:
        return BadTile(record.id, str(error), size(seen), isinstance(error, WrongUnitError))


def _encode(record: TileRecord, unit: str, codec: str, seen: dict[str, Any]) -> EncodedTile:
    content = contents(record)  # before they are decoded: what changes meanwhile has another content the next time
    entry, rgb, agl_cm, counts = decode(record, unit)
    if look(record, unit) != seen:
        raise UserError(f"the files of tile {record.id} were changed while they were read: run prepare again")
    provenance = {"source": seen, "content": content, **counts}
    return EncodedTile(entry, encode_tile(codec, rgb, agl_cm), provenance, size(seen))


def decode(record: TileRecord, unit: str) -> tuple[StoreEntry, NDArray[np.uint8], NDArray[np.uint16], dict[str, int]]:
    """Read the files of one tile.

    Returns:
        What is known about it; RGB (H, W, 3) uint8; AGL (H, W) uint16 centimetres; how many heights are `unknown`, and
        how many were `clipped` since they were negative.

    Raises:
        UserError: when a file is missing, damaged or of another unit, or RGB and AGL differ in size.
    """
    assert record.agl is not None, f"tile {record.id} of the train split has no AGL"
    agl_cm, clipped = read_agl_counted(record.agl, unit)  # first: a wrong unit shows before a JPEG 2000 is decoded
    rgb = read_rgb(record.rgb)
    if agl_cm.shape != rgb.shape[:2]:
        raise UserError(
            f"tile {record.id}: AGL is {_size(agl_cm)} but RGB is {_size(rgb)} (in {record.agl}): "
            "replace one by the other's match"
        )
    pose = read_vflow(record.vflow, unit) if record.vflow is not None else None
    height, width = agl_cm.shape
    entry = StoreEntry(
        id=record.id,
        city=record.city,
        gsd=record.gsd,
        height=height,
        width=width,
        scale=pose.scale if pose else None,
        angle=pose.angle if pose else None,
        place=record.place,
    )
    entry = with_heights(entry, agl_cm)
    return entry, rgb, agl_cm, {"unknown": height * width - entry.known, "clipped": clipped}


def _size(image: NDArray[Any]) -> str:
    return f"{image.shape[0]} x {image.shape[1]}"
