"""The verb `quicklook`: pictures of predictions for the eye."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agl_core.config import QuicklookConfig
from agl_core.data.tiles import open_agl
from agl_core.durable.guard import Guard
from agl_core.errors import UserError
from agl_core.files import whole_file, writable_folder
from agl_core.inference.folder import PredictedImage, read_folder
from agl_core.inference.source import open_image
from agl_core.machine import cores
from agl_core.maps.work import make_all, refuse, surveyed
from agl_core.opencv import cv2
from agl_core.reporting.pictures.look import look

LOOK, SPREAD = "_LOOK.png", "_SPREAD.tif"
_THREADS = 8


def quicklook(config: QuicklookConfig, guard: Guard | None = None) -> int:
    """Write `<id>_LOOK.png` for every image of a folder; returns their number. Pictures of before are drawn anew.

    An image whose RGB is not found is drawn without it; an uncertainty, `<id>_SPREAD.tif`, gets a panel of its own.

    Raises:
        UserError: with everything that is wrong in one message: no such folder or ids, files that are damaged, of
            another unit, or of another size than those they belong to.
        InterruptedRunError: `guard` asked to leave.
    """
    folder = Path(config.predictions)
    images = _chosen(read_folder(folder, config.images, config.unit), config.ids, folder)
    refuse("the images cannot be drawn", surveyed(images, _survey))
    out = writable_folder(Path(config.out) if config.out else folder, "--out")
    make_all(
        "quicklook",
        images,
        set(),
        lambda image: _draw(image, out / f"{image.id}{LOOK}", config.width),
        min(_THREADS, cores(), len(images)),
        guard,
    )
    print(f"{len(images)} images drawn -> {out}")
    return len(images)


def _chosen(images: list[PredictedImage], ids: str, folder: Path) -> list[PredictedImage]:
    wanted = [name.strip() for name in ids.split(",") if name.strip()]
    if ids and not wanted:
        raise UserError(f"ids is {ids!r}: give the ids of images, A,B,..., or leave --ids out for all")
    if unknown := [name for name in wanted if name not in {image.id for image in images}]:
        raise UserError(f"{folder} has no {', '.join(unknown)}: give ids of its images with --ids, as {images[0].id}")
    return [image for image in images if image.id in wanted] if wanted else images


def _survey(image: PredictedImage) -> Iterable[str]:
    """What is wrong with an image's files, as far as it shows without decoding them."""
    try:
        image.read_pose()
        with open_agl(image.agl, image.unit) as agl:
            size = agl.height, agl.width
        spread = _spread(image)
        if spread is not None:
            with open_agl(spread, image.unit) as file:
                if (file.height, file.width) != size:
                    yield f"{spread} is {file.height} x {file.width}, but its heights are {size[0]} x {size[1]}"
        if image.rgb is not None:
            with open_image(image.rgb) as source:
                if (source.height, source.width) != size:
                    yield (
                        f"{image.rgb} is {source.height} x {source.width}, but {image.agl.name} is "
                        f"{size[0]} x {size[1]}: give the images that belong to it with --images"
                    )
    except UserError as error:
        yield str(error)


def _spread(image: PredictedImage) -> Path | None:
    path = image.agl.with_name(f"{image.id}{SPREAD}")
    return path if path.is_file() else None


def _draw(image: PredictedImage, path: Path, width: int) -> None:
    agl, zoom = _small(image.agl, image.unit, width)
    spread_path = _spread(image)
    spread = _small(spread_path, image.unit, width)[0] if spread_path is not None else None
    rgb = None
    if image.rgb is not None:
        with open_image(image.rgb) as source:
            rgb = source.small(*agl.shape) if zoom < 1 else source.read(0, 0, source.height, source.width)
    picture = look(rgb, agl, image.read_pose(), image.gsd, image.id, width, spread, zoom=zoom)
    encoded, content = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))
    assert encoded, "a picture of 8-bit RGB can be encoded"
    with whole_file(path) as aside:
        aside.write_bytes(content.tobytes())


def _small(path: Path, unit: str, width: int) -> tuple[NDArray[np.uint16], float]:
    """Heights in centimetres, of images that are larger than twice the picture only every so many rows and columns,
    and how many of them there are per pixel of the image. Memory does not grow with the image."""
    with open_agl(path, unit) as file:
        every = max(1, max(file.height, file.width) // (2 * width))
        strip = file.block_rows * max(1, 2**24 // max(1, file.block_rows * file.width))
        parts = []
        for top in range(0, file.height, strip):
            rows = file.read(top, min(strip, file.height - top))
            parts.append(rows[-top % every :: every, ::every])
    return np.ascontiguousarray(np.concatenate(parts)), 1 / every
