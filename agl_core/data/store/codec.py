"""How a tile becomes the values of the store, one per sub-tile, and how a part of a sub-tile is read back; lossless.

A value is a checksum, eight bytes, xxh3 of the rest, and then the sub-tile of h x w pixels, planar, by codec:

    raw   AGL (h, w) little-endian uint16 centimetres, then R, G, B (3, h, w) uint8
    zstd  for each block of 128 x 128 pixels, row by row, two Zstandard frames: the filtered AGL, low bytes and high
          bytes (2, b, b), and the filtered R, G, B (3, b, b); before them the lengths of all, uint32

The filter makes numbers small where neighbours are alike. RGB: green is subtracted from red and blue, then each pixel
is replaced by its difference to the one above, modulo 256. AGL: difference to the pixel above modulo 65536, zigzag
(0, -1, 1, -2, ... become 0, 1, 2, 3, ...). In the first row of a block it is the difference to the pixel at the left,
so that each block can be read without the others: of nine sub-tiles that a crop of 512 touches it needs two thirds.
"""

import struct
import threading
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, cast

import numpy as np
import xxhash
import zstandard
from numpy.typing import NDArray

CODECS = ("zstd", "raw")
SUBTILE = 256
BLOCK = 128
LEVEL = 1
"""Higher levels of Zstandard are slower and, on what the filter leaves, not smaller."""
CHECKSUM = struct.Struct("<Q")

Value = bytes | bytearray | memoryview


class Part(NamedTuple):
    """What a crop needs of one sub-tile: all in pixels."""

    row: int
    column: int
    """Which sub-tile."""
    height: int
    width: int
    """Its whole size."""
    top: int
    left: int
    """First row and column needed, in the sub-tile."""
    rows: int
    columns: int
    """How many are needed."""
    to_row: int
    to_column: int
    """Where they go, in the crop."""


def subtiles(height: int, width: int) -> Iterator[tuple[int, int, slice, slice]]:
    """The sub-tiles of a tile in their order: row and column number, rows and columns of the tile."""
    for row, top in enumerate(range(0, height, SUBTILE)):
        for column, left in enumerate(range(0, width, SUBTILE)):
            yield row, column, slice(top, min(top + SUBTILE, height)), slice(left, min(left + SUBTILE, width))


def encode_tile(codec: str, rgb: NDArray[np.uint8], agl_cm: NDArray[np.uint16]) -> list[bytes]:
    """The values of all sub-tiles of a tile, row by row, each with its checksum.

    Args:
        codec: one of `CODECS`.
        rgb: (H, W, 3) uint8.
        agl_cm: (H, W) uint16 centimetres.

    Raises:
        ValueError: when the arrays are not of these shapes and dtypes.
    """
    height, width = agl_cm.shape
    if rgb.shape != (height, width, 3) or rgb.dtype != np.uint8 or agl_cm.dtype != np.uint16:
        raise ValueError(f"RGB {rgb.shape} {rgb.dtype} and AGL {agl_cm.shape} {agl_cm.dtype} are not one tile")
    encode = {"raw": _encode_raw, "zstd": _encode_zstd}[codec]
    values = []
    for _, _, rows, columns in subtiles(height, width):
        payload = encode(np.ascontiguousarray(rgb[rows, columns].transpose(2, 0, 1)), agl_cm[rows, columns])
        values.append(CHECKSUM.pack(xxhash.xxh3_64_intdigest(payload)) + payload)
    return values


def _encode_raw(planes: NDArray[np.uint8], agl: NDArray[np.uint16]) -> bytes:
    return agl.astype("<u2", copy=False).tobytes() + planes.tobytes()


def _encode_zstd(planes: NDArray[np.uint8], agl: NDArray[np.uint16]) -> bytes:
    compress = _compressor().compress
    heights, colours = filtered_agl(agl), filtered_rgb(planes)
    frames = []
    for rows, columns in _blocks(*agl.shape):
        frames += [compress(part[:, rows, columns].tobytes()) for part in (heights, colours)]
    return struct.pack(f"<{len(frames)}I", *(len(frame) for frame in frames)) + b"".join(frames)


def _blocks(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """The blocks of a sub-tile in their order: rows and columns."""
    for top in range(0, height, BLOCK):
        for left in range(0, width, BLOCK):
            yield slice(top, min(top + BLOCK, height)), slice(left, min(left + BLOCK, width))


def filtered_rgb(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The filter of the module's head on (3, h, w) uint8; the result has the same shape."""
    lean = planes.copy()
    lean[0] -= planes[1]
    lean[2] -= planes[1]
    return _differences(lean)


def filtered_agl(agl: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """The filter of the module's head on (h, w) uint16; the result is (2, h, w) uint8, low and high bytes."""
    signed = _differences(agl).view(np.int16)
    zigzag = ((signed << 1) ^ (signed >> 15)).view(np.uint16)
    return np.stack([zigzag & 0xFF, zigzag >> 8]).astype(np.uint8)


def _differences(values: NDArray[Any]) -> NDArray[Any]:
    steps = values.copy()
    steps[..., 1:, :] -= values[..., :-1, :]
    first = values[..., ::BLOCK, :]
    along = first.copy()
    along[..., 1:] -= first[..., :-1]
    along[..., ::BLOCK] = first[..., ::BLOCK]
    steps[..., ::BLOCK, :] = along
    return steps


def sound(value: Value) -> bool:
    """Whether the checksum of a value is right."""
    if len(value) <= CHECKSUM.size:
        return False
    whole = memoryview(value)
    return bool(CHECKSUM.unpack_from(whole)[0] == xxhash.xxh3_64_intdigest(whole[CHECKSUM.size :]))


class Crop:
    """Arrays that parts of sub-tiles are copied into: `planes` (3, H, W) uint8 and `agl` (H, W) uint16."""

    def __init__(self, planes: NDArray[np.uint8], agl: NDArray[np.uint16]) -> None:
        """Of any strides that are not negative, with the pixels of a row side by side.

        Raises:
            ValueError: when the strides are others.
        """
        for array in (planes, agl):
            if array.strides[-1] != array.itemsize or min(array.strides) < 0 or array.strides[-2] % array.itemsize:
                raise ValueError(f"strides {array.strides}: the pixels of a row do not lie side by side")
        self.planes, self.agl = planes, agl

    @cached_property
    def memory(self) -> tuple[NDArray[np.uint8], int, int, NDArray[np.uint16], int]:
        """Of the planes: their memory, and how far planes and rows are apart in it; of the AGL memory and rows.

        Compiled code that knows at compilation time that its arrays are without gaps is ten times faster.
        """
        plane, row, _ = self.planes.strides
        return _memory(self.planes), plane, row, _memory(self.agl), self.agl.strides[0] // 2


def _memory(array: NDArray[Any]) -> NDArray[Any]:
    """All between the first and the last element, (N,); writing to it writes to `array`."""
    if array.flags.c_contiguous:
        return array.reshape(-1)
    last = sum((size - 1) * stride for size, stride in zip(array.shape, array.strides, strict=True))
    return np.lib.stride_tricks.as_strided(array, (last // array.itemsize + 1,), (array.itemsize,))


def decode_into(codec: str, value: Value, part: Part, crop: Crop) -> None:
    """Copy a part of a sub-tile into a crop.

    Args:
        codec: one of `CODECS`.
        value: what `encode_tile` made of the sub-tile.
        part: what to copy, and where to.
        crop: where to.

    Raises:
        ValueError: when the value is not that of a sub-tile of this size, or damaged; the crop is then half written.
    """
    if not sound(value):
        raise ValueError("its checksum is wrong")
    decode = {"raw": _decode_raw, "zstd": _decode_zstd}[codec]
    decode(memoryview(value)[CHECKSUM.size :], part, crop)


def _decode_raw(payload: memoryview, part: Part, crop: Crop) -> None:
    pixels = part.height * part.width
    if len(payload) != 5 * pixels:
        raise ValueError("it is of another size")
    whole = part.height, part.width
    rows, columns = slice(part.top, part.top + part.rows), slice(part.left, part.left + part.columns)
    to_rows = slice(part.to_row, part.to_row + part.rows)
    to_columns = slice(part.to_column, part.to_column + part.columns)
    crop.agl[to_rows, to_columns] = np.frombuffer(payload, "<u2", pixels).reshape(whole)[rows, columns]
    colours = np.frombuffer(payload, np.uint8, 3 * pixels, 2 * pixels).reshape(3, *whole)
    crop.planes[:, to_rows, to_columns] = colours[:, rows, columns]


def _decode_zstd(payload: memoryview, part: Part, crop: Crop) -> None:
    decompress, unfilter = _decompressor().decompress, _unfilter()
    try:
        frames = _frames(payload, part)
        for (rows, columns), (heights, colours) in zip(_blocks(part.height, part.width), frames, strict=True):
            top, bottom = max(part.top, rows.start), min(part.top + part.rows, rows.stop)
            left, right = max(part.left, columns.start), min(part.left + part.columns, columns.stop)
            if top >= bottom or left >= right:
                continue
            high, wide = rows.stop - rows.start, columns.stop - columns.start
            agl, rgb = decompress(heights), decompress(colours)
            if len(agl) != 2 * high * wide or len(rgb) != 3 * high * wide:
                raise ValueError("it is of another size")
            unfilter(
                np.frombuffer(agl, np.uint8),
                np.frombuffer(rgb, np.uint8),
                wide,
                (top - rows.start, left - columns.start, bottom - top, right - left),
                (part.to_row + top - part.top, part.to_column + left - part.left),
                *crop.memory,
            )
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None


def _frames(payload: memoryview, part: Part) -> list[tuple[memoryview, memoryview]]:
    """The frames of AGL and RGB of each block."""
    count = 2 * -(-part.height // BLOCK) * -(-part.width // BLOCK)
    if len(payload) < 4 * count:
        raise ValueError("it is of another size")
    ends = list(accumulate(struct.unpack_from(f"<{count}I", payload), initial=4 * count))
    if ends[-1] != len(payload):
        raise ValueError("it is of another size")
    frames = [payload[begin:end] for begin, end in pairwise(ends)]
    return list(zip(frames[::2], frames[1::2], strict=True))


_local = threading.local()  # a context of Zstandard is of one thread


def _compressor() -> zstandard.ZstdCompressor:
    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True)
    return cast(zstandard.ZstdCompressor, _local.compressor)


def _decompressor() -> zstandard.ZstdDecompressor:
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    return cast(zstandard.ZstdDecompressor, _local.decompressor)


@cache
def _unfilter() -> Callable[..., None]:
    # Here, since a store in codec raw is read without numba, which takes a tenth of a second to import.
    from agl_core.data.store.unfilter import unfilter

    return unfilter
