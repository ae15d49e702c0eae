"""Files of point clouds, written a part at a time: LAS and LAZ through laspy, and PLY."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

import laspy
import lazrs
import numpy as np
from laspy.vlrs.known import WktCoordinateSystemVlr
from numpy.typing import NDArray
from rasterio.crs import CRS

from agl_core.errors import UserError

SOFTWARE = "AGL point clouds"
_DATE = 90, bytes(4)  # of the day and year of its making in a LAS header: unknown, or equal clouds would differ
_NORMAL_STEP = 0.01


class CloudFile(Protocol):
    """A file that takes points until it is closed. It is not whole before that, nor after an error."""

    count: int
    """Points so far."""

    def write(self, xyz: NDArray[np.float64], rgb: NDArray[np.uint8]) -> None:
        """Append points: (N, 3) coordinates and colours."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LasFile:
    """A LAS 1.4 file of point format 7, compressed (LAZ) if the suffix is .laz; it holds its coordinate system as WKT.

    Coordinates are kept as whole numbers of steps from `origin`: z in centimetres, x and y in centimetres too (or
    hundredths of a foot), finer where pixels are small or coordinates are degrees.
    """

    def __init__(self, path: Path, crs: CRS | None, origin: tuple[float, float], pixel: float) -> None:
        """origin: a point (x, y) of the cloud; pixel: side of a pixel. Both are in the units of `crs`, or metres."""
        step = grid_step(pixel)
        header = laspy.LasHeader(point_format=7, version="1.4")
        header.scales = np.array([step, step, 0.01])
        # Whole hundreds of steps, so that the coordinates are round numbers in decimals.
        header.offsets = np.array([*(round(value / (100 * step)) * (100 * step) for value in origin), 0.0])
        header.generating_software, header.system_identifier = SOFTWARE, "one oblique image"
        if crs is not None:
            header.vlrs.append(WktCoordinateSystemVlr(crs.to_wkt(version="WKT1_GDAL")))
        header.global_encoding.wkt = True  # point formats from 6 on know nothing else
        self.count = 0
        self._header, self._path = header, path
        self._file: BinaryIO = path.open("w+b")
        self._writer = laspy.LasWriter(self._file, header, do_compress=path.suffix == ".laz", closefd=False)

    def write(self, xyz: NDArray[np.float64], rgb: NDArray[np.uint8]) -> None:
        """Append points: (N, 3) coordinates and colours."""
        if not len(xyz):
            return
        record = laspy.ScaleAwarePointRecord.zeros(len(xyz), header=self._header)
        steps = np.rint((xyz - self._header.offsets) / self._header.scales).astype(np.int32)
        for axis, name in enumerate(("X", "Y", "Z")):
            record[name] = steps[:, axis]
        for channel, name in enumerate(("red", "green", "blue")):
            record[name] = rgb[:, channel].astype(np.uint16) * 257  # 255 becomes 65535
        record["return_number"] = record["number_of_returns"] = np.ones(len(xyz), np.uint8)
        with self._told():
            self._writer.write_points(record)
        self.count += len(xyz)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with self._told():
                    self._writer.close()
                place, date = _DATE
                self._file.seek(place)
                self._file.write(date)
        finally:
            self._file.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """The compressor's own error says neither what it has written nor what to do."""
        try:
            yield
        except lazrs.LazrsError as error:
            raise UserError(
                f"{self._path} cannot be written ({error}): make sure that the disk has room, or choose another folder"
            ) from None


class PlyFile:
    """A binary PLY file, little endian: x, y, z as double, red, green, blue as uchar; a comment tells the coordinate
    system."""

    _VERTEX = np.dtype([("xyz", "<f8", 3), ("rgb", "u1", 3)])
    _LONGEST = 20  # digits of the number of points, for which room is kept

    def __init__(self, path: Path, crs: CRS | None) -> None:
        """crs: None where x and y are metres from the image's corner."""
        system = " ".join(crs.to_wkt(version="WKT1_GDAL").split()) if crs is not None else "metres from the corner"
        self._system = system
        self.count = 0
        self._file: BinaryIO = path.open("wb")
        self._file.write(self._header())

    def write(self, xyz: NDArray[np.float64], rgb: NDArray[np.uint8]) -> None:
        """Append points: (N, 3) coordinates and colours."""
        vertices = np.empty(len(xyz), self._VERTEX)
        vertices["xyz"], vertices["rgb"] = xyz, rgb
        self._file.write(vertices.data)
        self.count += len(xyz)

    def _header(self) -> bytes:
        """The header, of the same length whatever the number of points."""
        number = str(self.count)
        lines = [
            "ply",
            "format binary_little_endian 1.0",
            f"comment {SOFTWARE}{' ' * (self._LONGEST - len(number))}",
            f"comment x, y: {self._system}",
            "comment z: metres above ground",
            f"element vertex {number}",
            *(f"property double {name}" for name in "xyz"),
            *(f"property uchar {name}" for name in ("red", "green", "blue")),
            "end_header",
        ]
        return ("\n".join(lines) + "\n").encode("ascii", "replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._file.seek(0)
                self._file.write(self._header())
        finally:
            self._file.close()


def grid_step(pixel: float) -> float:
    """The power of ten in which coordinates are counted: at most a tenth of a pixel, and at most 0.01."""
    return min(_NORMAL_STEP, 10.0 ** math.floor(math.log10(pixel / 10)))
