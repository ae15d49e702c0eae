"""One sample: where the crop is taken, what is read for it, and what is done to it."""

import numpy as np
from numpy.typing import NDArray

from agl_core.config import StageConfig
from agl_core.data.augment.geometric import Geometry, draw_geometry, transform
from agl_core.data.augment.symmetry import draw_symmetry
from agl_core.data.seeding import OPERATIONS, SampleStreams
from agl_core.data.store import Store, StoreEntry
from agl_core.data.store.codec import Crop, Part, decode_into, encode_tile
from agl_core.data.tiles import UNKNOWN
from agl_core.geometry import Pose, apply

GEOMETRIC = ("stretch", "view", "rotate", "zoom")
"""Those of the operations with streams of their own that change more than colours."""

BORDER = 6
"""Pixels around what a resampled crop is made of, for interpolation and for what holes are filled with."""


def make_sample(
    store: Store,
    number: int,
    config: StageConfig,
    streams: SampleStreams,
    place: np.random.Generator,
    image: NDArray[np.uint8],
    agl: NDArray[np.uint16],
) -> tuple[Pose | None, float]:
    """Draw, read and augment a crop of tile `number`.

    Args:
        store: where the tile is.
        number: its position in `store.entries`.
        config: crop size and augmentation.
        streams: of the augmentations of this sample.
        place: the stream from which the crop's place and its symmetry are drawn.
        image: (3, S, S) uint8, filled.
        agl: (S, S) uint16, filled: centimetres, 65535 where unknown or outside the tile.

    Returns:
        Pose of the crop, None if the tile has none, and its gsd in metres per pixel.
    """
    entry = store.entries[number]
    pose = entry_pose(entry)
    geometry = draw_geometry(config.augment, streams, pose, entry.highest)
    if geometry.exact:
        geometry = _exact_crop(store, number, config, place, image, agl)
    else:
        geometry = _resampled_crop(store, number, config, geometry, pose, place, image, agl)
    _recolour(config, streams, image)
    if pose is None:
        return None, entry.gsd / geometry.zoom
    return geometry.labels(pose, entry.gsd)


def _exact_crop(
    store: Store,
    number: int,
    config: StageConfig,
    place: np.random.Generator,
    image: NDArray[np.uint8],
    agl: NDArray[np.uint16],
) -> Geometry:
    """A crop whose pixels are those of the tile; tiles smaller than it are padded at the right and bottom."""
    entry, size = store.entries[number], config.crop
    height, width = min(size, entry.height), min(size, entry.width)
    top = int(place.integers(entry.height - height + 1))
    left = int(place.integers(entry.width - width + 1))
    symmetry = draw_symmetry(config.augment, place)
    if (height, width) != (size, size):
        image[:], agl[:] = 0, UNKNOWN
    store.read_into(number, top, left, image[:, :height, :width], agl[:height, :width])
    if symmetry != Geometry().symmetry:
        image[:] = apply(image.copy(), symmetry, rows=1)
        agl[:] = apply(agl.copy(), symmetry)
    return Geometry(symmetry)


def _resampled_crop(
    store: Store,
    number: int,
    config: StageConfig,
    geometry: Geometry,
    pose: Pose | None,
    place: np.random.Generator,
    image: NDArray[np.uint8],
    agl: NDArray[np.uint16],
) -> Geometry:
    """A crop made of what it needs of the tile and no more."""
    entry, size = store.entries[number], config.crop
    least_x, most_x, least_y, most_y = geometry.extent(size, pose, entry.highest)
    top, bottom, y = _draw_span(place, least_y, most_y, entry.height)
    left, right, x = _draw_span(place, least_x, most_x, entry.width)
    geometry = geometry.with_symmetry(draw_symmetry(config.augment, place))
    rgb, heights = store.read_crop(number, top, left, bottom - top, right - left)
    rgb, heights = transform(rgb, heights, pose, geometry, size, (x - left, y - top))
    _to_planes(rgb, image)
    agl[:] = heights
    return geometry


def _draw_span(place: np.random.Generator, least: float, most: float, length: int) -> tuple[int, int, float]:
    """Draw where on an axis of `length` pixels a crop lies that reaches from `least` to `most` around its middle.

    Returns first and last + 1 pixel to read, and the crop's middle. It lies inside the tile, if there is room for
    all it is made of; otherwise that covers the tile.
    """
    before, after = int(np.ceil(-least)) + BORDER, int(np.ceil(most)) + BORDER
    room = length - (before + after)
    start = int(place.integers(min(room, 0), max(room, 0) + 1))
    return max(start, 0), min(start + before + after, length), start + before - 0.5


def _recolour(config: StageConfig, streams: SampleStreams, image: NDArray[np.uint8]) -> None:
    """Augment the colours of `image`, (3, S, S) uint8, in place."""
    if not any(getattr(config.augment, name) > 0 for name in OPERATIONS if name not in GEOMETRIC):
        return
    from agl_core.data.augment.photometric import photometric
    from agl_core.opencv import cv2

    _to_planes(photometric(cv2.merge(list(image)), config.augment, streams), image)


def _to_planes(rgb: NDArray[np.uint8], image: NDArray[np.uint8]) -> None:
    """(S, S, 3) into (3, S, S), several times as fast as numpy does it."""
    from agl_core.opencv import cv2

    cv2.split(rgb, list(image))


def entry_pose(entry: StoreEntry) -> Pose | None:
    """The pose of a tile, None if it has none."""
    return Pose(entry.scale, entry.angle) if entry.scale is not None and entry.angle is not None else None


def load_code(codec: str, config: StageConfig) -> None:
    """Load, and compile where that is not done, all that `make_sample` needs for these settings: it is made use of."""
    rgb, agl = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint16)
    planes = np.zeros((3, 4, 4), np.uint8)
    (value,) = encode_tile(codec, rgb, agl)
    decode_into(codec, value, Part(0, 0, 4, 4, 0, 0, 4, 4, 0, 0), Crop(planes, agl))
    augment = config.augment
    if any(getattr(augment, name) > 0 for name in GEOMETRIC):
        transform(rgb, agl, None, Geometry(turn=1.0), 2, (1.5, 1.5))
    if augment.stretch > 0 or augment.view > 0:
        transform(rgb, agl, Pose(1.0, 1.0), Geometry(stretch=1.5), 2, (1.5, 1.5))
    _recolour(config, SampleStreams(0, 0, 0, 0), planes)
    _to_planes(rgb, planes)
