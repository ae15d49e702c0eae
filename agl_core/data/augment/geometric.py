"""Geometric augmentation: an image and its heights seen, held and printed differently, with the labels to match.

All operations of a sample are one resampling. In order: surfaces move as their heights are stretched and as the view
direction changes, then the image is flipped, turned and magnified about the middle of the crop.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agl_core.config import AugmentConfig
from agl_core.data.seeding import SampleStreams
from agl_core.data.tiles import HIGHEST_CM
from agl_core.geometry import IDENTITY, Pose, Symmetry, apply_direction, apply_pose, direction, rotate, zoom

REACH = 2.5
"""Pixels on the ground up to which neighbours are one surface. Level ground is 1 to 1.4; on a wall, which stands on
one line, less; a roof's far edge and the ground behind it are apart by what the roof hides."""

STEPPED = 1.5
"""Pixels of a wall's height in the image within which neighbours are one surface (diagonal ones are 1.4 apart)."""

MOST_STEP_CM = 300.0
"""Centimetres within which neighbours are one surface however steeply the image was taken."""


@dataclass(frozen=True)
class Geometry:
    """What is done to a sample, in this order.

    stretch: factor of all heights, 1 or more; scale_by, angle_by: the new view direction, factor of the scale and
    radians added to the angle; symmetry; turn: radians counter-clockwise as seen; zoom: magnification.
    """

    symmetry: Symmetry = IDENTITY
    turn: float = 0.0
    zoom: float = 1.0
    stretch: float = 1.0
    scale_by: float = 1.0
    angle_by: float = 0.0

    @property
    def exact(self) -> bool:
        """Whether pixels are only exchanged, and none is interpolated."""
        return self.turn == 0 and self.zoom == 1 and not self.moves

    @property
    def moves(self) -> bool:
        """Whether surfaces move by their heights."""
        return self.stretch != 1 or self.turns_view

    @property
    def turns_view(self) -> bool:
        """Whether the view direction is another, so that ground is uncovered that nobody has seen."""
        return self.scale_by != 1 or self.angle_by != 0

    def with_symmetry(self, symmetry: Symmetry) -> "Geometry":
        """The same with this symmetry, which comes before the turn."""
        return replace(self, symmetry=symmetry)

    def viewed(self, pose: Pose) -> Pose:
        """The pose after the change of the view direction alone."""
        return Pose(pose.scale * self.scale_by, pose.angle + self.angle_by) if self.turns_view else pose

    def labels(self, pose: Pose, gsd: float) -> tuple[Pose, float]:
        """Pose and gsd (metres per pixel) of the result."""
        pose = apply_pose(self.viewed(pose), self.symmetry)
        if self.turn:
            pose, gsd = rotate(pose, gsd, self.turn)
        return zoom(pose, gsd, self.zoom) if self.zoom != 1 else (pose, gsd)

    def motion(self, pose: Pose) -> tuple[float, float]:
        """(x, y) pixels that a surface moves per metre of its height, before the image is flipped, turned and zoomed.

        It stands on the same ground before and after: p + h * flow = p' + stretch * h * new flow.
        """
        after = self.viewed(pose)
        (x, y), (new_x, new_y) = direction(pose.angle), direction(after.angle)
        long, new_long = pose.scale, after.scale * self.stretch
        return float(long * x - new_long * new_x), float(long * y - new_long * new_y)

    def linear(self) -> NDArray[np.float64]:
        """(2, 2): what becomes of an offset (x, y) when the image is flipped, turned and zoomed."""
        columns = [apply_direction(x, y, self.symmetry) for x, y in ((1.0, 0.0), (0.0, 1.0))]
        cosine, sine = math.cos(self.turn), math.sin(self.turn)
        turned = np.array([[cosine, sine], [-sine, cosine]]) @ np.array(columns).T
        result: NDArray[np.float64] = self.zoom * turned
        return result

    def extent(self, size: int, pose: Pose | None, highest: float) -> tuple[float, float, float, float]:
        """What a crop of `size` pixels is made of, in the input, as seen from the crop's middle: least and largest x
        and y, in pixels; `highest`: metres."""
        half = 0.5 * size * (abs(math.cos(self.turn)) + abs(math.sin(self.turn))) / self.zoom
        x, y = self.motion(pose) if self.moves and pose is not None else (0.0, 0.0)
        highest = farthest(size, x, y, highest)
        x, y = -x * highest, -y * highest
        return min(0.0, x) - half, max(0.0, x) + half, min(0.0, y) - half, max(0.0, y) + half


def farthest(size: int, x: float, y: float, highest: float) -> float:
    """Metres up to which surfaces outside a crop of `size` pixels are looked for, if one moves (x, y) pixels per metre
    and the highest is `highest`. Those that move farther than the crop is wide are nearly always errors in the data, a
    single one of which would have all of the tile read for every crop."""
    return min(highest, size / max(math.hypot(x, y), 1e-9))


def draw_geometry(config: AugmentConfig, streams: SampleStreams, pose: Pose | None, highest: float) -> Geometry:
    """Draw all but the symmetry. `highest`: of the tile, metres. What moves surfaces needs to know the `pose`."""
    turn, magnified, stretch, scale_by, angle_by = 0.0, 1.0, 1.0, 1.0, 0.0
    if config.stretch > 0 and pose is not None:
        generator = streams("stretch")
        most = min(config.stretch_most, min(config.stretch_highest, HIGHEST_CM / 100) / max(highest, 1e-6))
        if generator.random() < config.stretch and most > 1:
            stretch = generator.uniform(1.0, most)
    if config.view > 0 and pose is not None:
        generator = streams("view")
        if generator.random() < config.view:
            widest = math.radians(config.view_degrees)
            angle_by = generator.uniform(-widest, widest)
            scale_by = generator.uniform(config.view_least, config.view_most)
    if config.rotate > 0:
        generator = streams("rotate")
        if generator.random() < config.rotate:
            widest = math.radians(config.rotate_degrees)
            turn = generator.uniform(-widest, widest)
    if config.zoom > 0:
        generator = streams("zoom")
        if generator.random() < config.zoom:
            magnified = generator.uniform(config.zoom_least, config.zoom_most)
    return Geometry(turn=turn, zoom=magnified, stretch=stretch, scale_by=scale_by, angle_by=angle_by)


def transform(
    rgb: NDArray[np.uint8],
    agl: NDArray[np.uint16],
    pose: Pose | None,
    geometry: Geometry,
    size: int,
    centre: tuple[float, float],
) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """A crop of the image after `geometry`, resampled once.

    Args:
        rgb: (H, W, 3) uint8, contiguous.
        agl: (H, W) uint16 centimetres, 65535 where unknown.
        pose: of the image; None if it is not known, and then no surface may move.
        geometry: what is done.
        size: side of the crop, pixels.
        centre: (x, y) in the image, pixels, that becomes the middle of the crop.

    Returns:
        rgb (size, size, 3) uint8 and agl (size, size) uint16 centimetres. What lies outside the image, and what nobody
        has seen from the old view direction, is unknown.

    Raises:
        ValueError: when surfaces shall move and there is no pose.
    """
    from agl_core.data.augment import splat
    from agl_core.opencv import cv2

    if geometry.moves and pose is None:
        raise ValueError("surfaces cannot be moved without a pose")
    matrix = _to_input(geometry, size, centre)
    heights = np.empty((size, size), np.uint16)
    if not geometry.moves or pose is None:
        sampled = np.empty((size, size), np.float32)
        splat.sample_heights(agl, matrix, np.zeros(size), _step(pose), sampled)
        splat.to_centimetres(sampled, 1.0, False, heights)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        colours: Any = cv2.warpAffine(rgb, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_CONSTANT)
        return colours, heights
    map_x, map_y = np.empty((size, size), np.float32), np.empty((size, size), np.float32)
    _move(agl, pose, geometry, matrix, heights, map_x, map_y)
    colours = cv2.remap(rgb, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return colours, heights


def _to_input(geometry: Geometry, size: int, centre: tuple[float, float]) -> NDArray[np.float64]:
    """(2, 3): from pixels (x, y, 1) of the crop to the input."""
    inverse = np.linalg.inv(geometry.linear())
    middle = 0.5 * (size - 1)
    return np.column_stack([inverse, np.array(centre) - inverse @ np.array([middle, middle])])


def _step(pose: Pose | None) -> float:
    """Centimetres by which neighbours on one surface may differ."""
    wall = 100 * STEPPED / pose.scale if pose is not None and pose.scale > 0 else math.inf
    return min(wall, MOST_STEP_CM)


def _move(
    agl: NDArray[np.uint16],
    pose: Pose,
    geometry: Geometry,
    matrix: NDArray[np.float64],
    result: NDArray[np.uint16],
    map_x: NDArray[np.float32],
    map_y: NDArray[np.float32],
) -> None:
    """Heights after the move, and where the colours lie; everything is done in the pixels of the result."""
    from agl_core.data.augment import splat

    size = len(result)
    linear = geometry.linear()
    highest = max(int((agl + np.uint16(1)).max()) - 1, 0)  # UNKNOWN + 1 is 0
    highest_sought = 100 * farthest(size, *geometry.motion(pose), highest / 100)
    move_x, move_y = linear @ np.array(geometry.motion(pose)) / 100  # pixels per centimetre
    ground_x, ground_y = linear @ np.array(direction(pose.angle)) * pose.scale / 100
    transposed = abs(move_x) > abs(move_y)  # the lines are walked along the rows
    if transposed:
        move_x, move_y, ground_x, ground_y = move_y, move_x, ground_y, ground_x
    slope = move_x / move_y if move_y else 0.0
    above, below = _margin(move_y * highest_sought)
    before, after = _margin(move_x * highest_sought)
    rows = np.arange(-above, size + below)
    bend = np.floor(slope * rows + 0.5).astype(np.int64)
    heights = np.empty((len(rows), before + size + after), np.float32)
    grid = matrix[:, [1, 0, 2]] if transposed else matrix.copy()
    grid[:, 2] -= grid[:, 0] * before + grid[:, 1] * above
    splat.sample_heights(agl, grid, slope * rows - bend, _step(pose), heights)
    seen = np.empty((size, size), np.float32)
    splat.move_surfaces(heights, bend, -above, -before, move_y, ground_y, ground_x, slope, REACH, seen)
    shift = np.empty((size, size), np.float32)
    splat.fill_holes(seen, bend[above : above + size], move_y, geometry.turns_view, shift)
    splat.colour_map(shift, slope, transposed, matrix, map_x, map_y)
    splat.to_centimetres(seen, geometry.stretch, transposed, result)


def _margin(move: float) -> tuple[int, int]:
    """Pixels to look at before and after the crop, if the tallest surface moves by `move`."""
    return math.ceil(max(move, 0.0)) + 2, math.ceil(max(-move, 0.0)) + 2
