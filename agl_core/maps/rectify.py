"""The verb `rectify`: images and heights, moved to the ground that they stand on."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agl_core.config import RectifyConfig
from agl_core.data.georeference import Georeference
from agl_core.data.tiles import AGL_DTYPE, UNKNOWN, agl_size, open_agl
from agl_core.durable.guard import Guard
from agl_core.errors import UserError, valid_choice
from agl_core.files import writable_folder
from agl_core.geometry import Pose
from agl_core.inference.folder import PredictedImage, read_folder
from agl_core.inference.rasters import in_unit
from agl_core.inference.source import open_image
from agl_core.machine import cores
from agl_core.maps.ground import MASK_MEANS, Canvas, Highest, Rectified, fill_reach, full_canvas, reach, rectified
from agl_core.maps.rasters import BLOCK, RasterFile
from agl_core.maps.work import MapFolder, make_all, refuse, source, surveyed, without_rgb

FORMAT = "geopose-rectified-2"
RGB, AGL, MASK = "_RGB.tif", "_AGL.tif", "_MASK.tif"
_BAND = 2**24  # pixels that are moved at a time
_BYTES_PER_PIXEL = 40  # of a band, all that is held for it
_MEMORY = 4 * 2**30
_NODATA = {"cm": float(UNKNOWN), "m": float("nan")}

Read = Callable[[int, int], tuple[NDArray[np.uint8] | None, NDArray[np.uint16]]]
"""Image, if there is one, and heights from a row on, so many rows."""


def rectify(config: RectifyConfig, guard: Guard | None = None) -> int:
    """Write `<id>_RGB.tif`, `<id>_AGL.tif` and `<id>_MASK.tif` for every image of a folder; returns their number.

    What the folder holds already of the same files and settings is kept, so that an interrupted call is continued by
    giving it again. Every file appears whole or not at all, the mask last.

    Raises:
        UserError: with everything that is wrong in one message: no such folder, images that are not found, files that
            are damaged, of another unit or that do not fit each other, before anything is written; what shows only when
            pixels are read, when all other images are written.
        InterruptedRunError: `guard` asked to leave; every image is whole or not there.
    """
    valid_choice("canvas", config.canvas, ["input", "full"])
    valid_choice("holes", config.holes, ["mark", "fill"])
    valid_choice("format", config.format, ["tif", "cog"])
    folder, out = Path(config.predictions), Path(config.out)
    images = read_folder(folder, config.images, config.unit)
    if out.resolve() in {folder.resolve(), *(image.rgb.parent.resolve() for image in images if image.rgb)}:
        raise UserError(f"{out} holds what shall be rectified, which would be overwritten: choose another with --out")
    refuse("the images cannot be rectified", without_rgb(images, folder) + surveyed(images, _survey))
    maps = MapFolder(writable_folder(out, "--out"), FORMAT, (RGB, AGL, MASK))
    settings = {
        "unit": images[0].unit,
        "canvas": config.canvas,
        "holes": config.holes,
        "format": config.format,
    }
    full, fill = config.canvas == "full", config.holes == "fill"
    with maps.alone():
        kept = maps.keep(settings, {image.id: source(image) for image in images})
        make_all(
            "rectify",
            images,
            kept,
            lambda image: rectify_image(image, maps, full, fill, config.format),
            config.workers or max(1, min(cores(), _MEMORY // (_BAND * _BYTES_PER_PIXEL))),
            guard,
        )
    earlier = f", {len(kept)} of them before" if kept else ""
    print(f"{len(images)} images rectified{earlier} -> {out}")
    return len(images)


def rectify_image(image: PredictedImage, maps: MapFolder, full: bool, fill: bool, format: str) -> None:
    """Write the maps of one image; when this returns, they survive a power cut."""
    maps.clear(image.id)
    pose, place = image.read_pose(), image.georeference()
    with _opened(image) as (height, width, heights, read):
        highest = Highest(height, width)
        for top in range(0, height, _rows(width)):
            highest.add(heights(top, min(_rows(width), height - top)), top)
        canvas = full_canvas(highest, pose) if full else Canvas(0, 0, height, width)
        part = Part(height, width, pose, canvas, reach(highest.highest, pose), fill)
        with _Files(image, maps, canvas, place.moved(canvas.top, canvas.left), format) as files:
            for band in bands(part, read):
                files.write(band)
            files.finish()


@dataclass(frozen=True)
class Part:
    """What is moved: an image's size and pose, the canvas, how far anything leans over, and what holes become."""

    height: int
    width: int
    pose: Pose
    canvas: Canvas
    leaning: int
    fill: bool


def bands(part: Part, read: Read, rows: int | None = None) -> Iterator[Rectified]:
    """The canvas in bands of full width, from top to bottom, just as all of it at once would be.

    rows: of a band; by default as many as memory is meant for, a multiple of the blocks' of a file.
    """
    canvas = part.canvas
    rows = rows or _rows(canvas.width)
    # Where holes are filled from the ground beside them, this must be known above and below the band as well.
    beside = fill_reach(part.leaning) if part.fill else 0
    for first in range(0, canvas.height, rows):
        begin, end = max(0, first - beside), min(canvas.height, first + rows + beside)
        top = min(max(0, canvas.top + begin - part.leaning - 4), part.height)
        bottom = max(min(part.height, canvas.top + end + part.leaning + 4), top)
        rgb, agl = read(top, bottom - top)
        here = Canvas(canvas.top + begin - top, canvas.left, end - begin, canvas.width)
        found = rectified(rgb, agl, part.pose, here, part.fill, part.leaning)
        kept = slice(first - begin, min(first + rows, canvas.height) - begin)
        colours = None if found.rgb is None else found.rgb[kept]
        yield Rectified(colours, found.agl_cm[kept], found.mask[kept])


def _rows(width: int) -> int:
    return max(1, _BAND // (width * BLOCK)) * BLOCK


@contextmanager
def _opened(
    image: PredictedImage,
) -> Iterator[tuple[int, int, Callable[[int, int], NDArray[np.uint16]], Read]]:
    """Size, heights by rows, and image and heights by rows; what is not large is decoded once."""
    assert image.rgb is not None
    with open_agl(image.agl, image.unit) as agl, open_image(image.rgb) as rgb:
        height, width = agl.height, agl.width
        if height <= _rows(width):
            all_agl, all_rgb = agl.read(0, height), rgb.read(0, 0, height, width)
            yield (
                height,
                width,
                lambda top, rows: all_agl[top : top + rows],
                lambda top, rows: (all_rgb[top : top + rows], all_agl[top : top + rows]),
            )
        else:
            yield height, width, agl.read, lambda top, rows: (rgb.read(top, 0, rows, width), agl.read(top, rows))


class _Files:
    """The three files of an image, of which nothing appears before `finish`."""

    def __init__(
        self, image: PredictedImage, maps: MapFolder, canvas: Canvas, georeference: Georeference, format: str
    ) -> None:
        def path(kind: str) -> Path:
            return maps.path(image.id, kind)

        size, self._unit = (canvas.height, canvas.width), image.unit
        dtype, nodata = AGL_DTYPE[image.unit], _NODATA[image.unit]
        self._rgb = RasterFile(path(RGB), (3, *size), "uint8", georeference, format, photometric="rgb")
        self._agl = RasterFile(path(AGL), (1, *size), dtype, georeference, format, nodata=nodata)
        self._mask = RasterFile(path(MASK), (1, *size), "uint8", georeference, format, averaged=False)
        self._stack = ExitStack()

    def __enter__(self) -> "_Files":
        with ExitStack() as stack:
            for file in (self._rgb, self._agl, self._mask):
                stack.enter_context(file)
            self._stack = stack.pop_all()
        self._mask.describe("; ".join(f"{value} {meaning}" for value, meaning in MASK_MEANS.items()))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def write(self, band: Rectified) -> None:
        assert band.rgb is not None
        self._rgb.write(band.rgb.transpose(2, 0, 1))
        self._agl.write(in_unit(band.agl_cm, self._unit)[None])
        self._mask.write(band.mask[None])

    def finish(self) -> None:
        """The mask comes last: where it is, the others are complete."""
        for file in (self._rgb, self._agl, self._mask):
            file.finish()


def _survey(image: PredictedImage) -> Iterable[str]:
    """What is wrong with an image's files, as far as it shows without decoding them."""
    try:
        image.read_pose()
        image.georeference()
        size = agl_size(image.agl, image.unit)
        if image.rgb is not None:
            with open_image(image.rgb) as rgb:
                if (rgb.height, rgb.width) != size:
                    yield (
                        f"{image.rgb} is {rgb.height} x {rgb.width}, but {image.agl.name} is {size[0]} x {size[1]}: "
                        "give the images that belong to it with --images"
                    )
    except UserError as error:
        yield str(error)
