"""What augmenting a rendered tile must equal: a picture of the same scene by the transformed camera.

`Proof` renders both and compares them; it knows of the augmentation only what its caller hands in. The truth of a
symmetry is the exact flip of the rendered picture, of a rotation the rolled camera, of a zoom the nearer camera, of a
new view the camera at another place in the sky, and of a stretch the scene with its heights multiplied.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agl_core.data.augment.geometric import Geometry
from agl_core.data.tiles import UNKNOWN
from agl_core.geometry import Pose, angle_from_direction, apply, apply_direction, direction, flow
from agl_core.world.render import Camera, Light, render
from agl_core.world.scene import Scene
from tests.data.augment.world_scenes import SIZE, stretched, transformed_camera

Picture = tuple[NDArray[np.uint8], NDArray[np.uint16]]
Transform = Callable[[NDArray[np.uint8], NDArray[np.uint16], Pose | None, Geometry, int, tuple[float, float]], Picture]
Labels = Callable[[Geometry, Pose, float], tuple[Pose, float]]
Mask = NDArray[np.bool_]
Metres = NDArray[np.float64]


def points_seen(camera: Camera, metres: Metres) -> tuple[Metres, Metres]:
    """Where in the scene (x, y in metres) the surface stands that each pixel shows at these heights."""
    down, right = np.indices(metres.shape) - 0.5 * (np.array(metres.shape) - 1)[:, None, None]
    along, aside = math.cos(camera.roll) * camera.gsd, math.sin(camera.roll) * camera.gsd
    dx, dy = direction(camera.pose.angle - camera.roll)
    lean = metres * camera.pose.scale * camera.gsd
    return camera.x + right * along - down * aside + lean * dx, camera.y + right * aside + down * along + lean * dy


def projected(camera: Camera, x: Metres, y: Metres, metres: Metres) -> tuple[Metres, Metres]:
    """(column, row) of these points in the picture of a camera without roll."""
    dx, dy = direction(camera.pose.angle)
    displaced = metres * camera.pose.scale
    return (
        (x - camera.x) / camera.gsd + 0.5 * (camera.width - 1) - displaced * dx,
        (y - camera.y) / camera.gsd + 0.5 * (camera.height - 1) - displaced * dy,
    )


def neighbours(values: NDArray[Any], reach: int = 1) -> NDArray[Any]:
    """(H, W, (2 * reach + 1)^2) values of each pixel and those around it, the border repeated."""
    width = 2 * reach + 1
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, reach, mode="edge"), (width, width))
    return windows.reshape(*values.shape, width * width)


def metres_of(agl: NDArray[np.uint16]) -> Metres:
    """Heights in metres, NaN where unknown."""
    return np.where(agl == UNKNOWN, np.nan, agl / 100)


def share(of: Any, among: Any) -> float:
    """The share of True in `of` where `among` holds; 1 if it holds nowhere."""
    return float(of[among].mean()) if among.any() else 1.0


@dataclass
class Truth:
    """What the transformed camera sees, and what of it the picture that was augmented had seen.

    rgb, metres: the picture, NaN where unknown;  pose, gsd: its labels;  seen, hidden: what was clearly in view of
    the first picture and what was clearly behind something higher;  blank: what it saw without a height;  beyond: what
    lies beyond its border;  outside: beyond it, and the ground in the same place too;  level: no edge and no slope
    nearby, in either picture.
    """

    rgb: NDArray[np.uint8]
    metres: Metres
    pose: Pose
    gsd: float
    seen: Mask
    hidden: Mask
    blank: Mask
    beyond: Mask
    outside: Mask
    level: Mask


@dataclass
class First:
    """The picture before the augmentation: its camera and its heights, (H, W) metres."""

    camera: Camera
    metres: Metres

    def around(self, x: Metres, y: Metres, metres: Metres) -> tuple[Metres, Mask]:
        """The heights (..., 9) of the pixels in which points should be seen, and whether the picture goes so far."""
        column, row = projected(self.camera, x, y, metres)
        rows, columns = self.metres.shape
        inside = (row > -0.5) & (row < rows - 0.5) & (column > -0.5) & (column < columns - 0.5)
        nearest = np.rint(row).astype(int).clip(0, rows - 1), np.rint(column).astype(int).clip(0, columns - 1)
        return neighbours(self.metres)[nearest], inside

    def beyond(self, x: Metres, y: Metres, metres: Metres) -> Mask:
        """Whether points lie outside the picture by a pixel or more."""
        column, row = projected(self.camera, x, y, metres)
        rows, columns = self.metres.shape
        result: Mask = (row < -1.5) | (row > rows + 0.5) | (column < -1.5) | (column > columns + 0.5)
        return result

    def showed(self, after: Camera, metres: Metres, stretch: float) -> Mask:
        """Whether the heights (NaN for none) in a picture of `after` are those of surfaces that this one showed."""
        known = np.nan_to_num(metres)
        around, inside = self.around(*points_seen(after, known), known / stretch)
        # A roof that ends half a pixel late is still that roof, and so is a wall.
        with np.errstate(invalid="ignore"):
            same = np.abs(around - metres[..., None] / stretch) < 0.3 + 1.5 / self.camera.pose.scale
        return inside & same.any(axis=-1)


def truth_of(scene: Scene, light: Light, first: First, geometry: Geometry, size: int) -> Truth:
    """Render the truth of an augmentation of the `first` picture."""
    after = transformed_camera(first.camera, geometry, size)
    rgb, agl = render(stretched(scene, geometry.stretch), after, light)
    metres = metres_of(agl)
    # Over water the ray ends at height 0: what is seen of it lies on the ground.
    seen_at = points_seen(after, np.nan_to_num(metres))
    before = np.nan_to_num(metres) / geometry.stretch
    around, inside = first.around(*seen_at, before)
    known = np.isfinite(around).all(axis=-1) & inside & np.isfinite(metres)
    step = 1 / first.camera.pose.scale  # what a wall rises from one pixel to the next
    excess = around - before[..., None]
    with np.errstate(invalid="ignore"):
        own = np.abs(excess[..., 4]) <= 0.3 + 0.75 * step
        seen = known & own & (excess.max(axis=-1) <= 0.3 + 1.5 * step)
        hidden = known & (excess.min(axis=-1) >= 0.5 + 1.5 * step)
        level = known & (np.ptp(around, axis=-1) < 0.02) & (np.ptp(neighbours(metres), axis=-1) < 0.02)
    blank = np.isnan(around).all(axis=-1) & inside
    ground = np.zeros_like(metres)
    beyond = first.beyond(*seen_at, before)
    outside = beyond & first.beyond(*points_seen(after, ground), ground)
    dx, dy = apply_direction(*direction(after.pose.angle), geometry.symmetry)
    pose = Pose(after.pose.scale, angle_from_direction(dx, dy))
    masks = (apply(mask, geometry.symmetry) for mask in (seen, hidden, blank, beyond, outside, level))
    return Truth(apply(rgb, geometry.symmetry), apply(metres, geometry.symmetry), pose, after.gsd, *masks)


@dataclass
class Proof:
    """One augmentation of one rendered tile, compared with the truth.

    `without` marks pixels whose heights are taken away before. After `failures`, `figures` holds what was measured.
    """

    scene: Scene
    camera: Camera
    geometry: Geometry
    transform: Transform
    labels: Labels = Geometry.labels
    without: Callable[[Picture], Mask] | None = None
    figures: dict[str, float] = field(default_factory=dict)

    def failures(self) -> list[str]:
        """Every way in which the augmented tile is not what the transformed camera sees, in words."""
        # Shadows move when heights are stretched: then the sun is in the zenith.
        light = Light(1.0, 0.9) if self.geometry.stretch == 1 else Light(0.0, 0.5 * math.pi)
        rgb, agl = render(self.scene, self.camera, light)
        if self.without is not None:
            agl = np.where(self.without((rgb, agl)), np.uint16(UNKNOWN), agl)
        middle = 0.5 * (self.camera.width - 1), 0.5 * (self.camera.height - 1)
        labels = self.labels(self.geometry, self.camera.pose, self.camera.gsd)
        image, heights = self.transform(rgb, agl, self.camera.pose, self.geometry, SIZE, middle)
        first, metres = First(self.camera, metres_of(agl)), metres_of(heights)
        truth = truth_of(self.scene, light, first, self.geometry, SIZE)
        symmetry, after = self.geometry.symmetry, transformed_camera(self.camera, self.geometry, SIZE)
        showed = first.showed(after, apply(metres, symmetry.inverse()), self.geometry.stretch)
        self.figures = measured(truth, image, metres, *labels, apply(showed, symmetry))
        broken = [(name, "least", limit) for name, limit in AT_LEAST.items() if self.figures[name] < limit]
        broken += [(name, "most", limit) for name, limit in AT_MOST.items() if self.figures[name] > limit]
        return [f"{name}: {self.figures[name]:.5g}, expected at {how} {limit}" for name, how, limit in broken]


def measured(
    truth: Truth, image: NDArray[np.uint8], metres: Metres, pose: Pose, gsd: float, showed: Mask
) -> dict[str, float]:
    """Compare an augmented picture with the truth.

    `showed`: whether the picture before had shown that surface. Where a roof of unknown height, or one from beyond the
    border, should come to lie over ground that was in view, the ground stays in view, with its height.
    """
    known = np.isfinite(metres)
    unmoved = neighbours(truth.blank | truth.beyond).any(axis=-1)
    both = known & np.isfinite(truth.metres) & ~unmoved
    error = np.abs(metres - truth.metres)
    around = neighbours(np.nan_to_num(truth.metres))
    with np.errstate(invalid="ignore"):
        # What the truth shows within one pixel: half a pixel of resampling is no error of a label.
        near = (metres >= around.min(axis=-1) - 0.05) & (metres <= around.max(axis=-1) + 0.05)
        far_off = np.abs(flow(metres, pose) - flow(truth.metres, truth.pose)).max(axis=-1)
        flows = (far_off < 0.5) | (near & (far_off < 0.5 + np.ptp(around, axis=-1) * truth.pose.scale))
        # Half a pixel of a wall is no error either, but between a roof and the ground there is nothing.
        beside = np.abs(neighbours(truth.metres) - metres[..., None]) < 0.3 + 0.75 / truth.pose.scale
        # Where an edge of what is seen lies half a pixel too far, it covers what is hidden.
        edge = (error > 0.5) & (beside & ~neighbours(truth.hidden)).any(axis=-1)
        raised = metres > 3
    level: Mask = np.asarray(truth.level & truth.seen & known)
    colours: Metres = np.abs(image.astype(float) - truth.rgb).mean(axis=-1)
    black: Mask = image.max(axis=-1) == 0
    inner = np.pad(np.ones(np.array(metres.shape) - 2, bool), 1)  # whose neighbours are known
    return {
        "scale": abs(pose.scale / truth.pose.scale - 1),
        "angle": abs(math.remainder(pose.angle - truth.pose.angle, 2 * math.pi)),
        "gsd": abs(gsd / truth.gsd - 1),
        "median error of the heights (m)": float(np.median(error[both])) if both.any() else math.inf,
        "heights within a pixel": share(near, both),
        "heights of something": share(beside.any(axis=-1), both),
        "heights that were in view": share(showed, known),
        "heights within half a metre": share(error < 0.5, both),
        "heights where it is level": share(error <= 0.021, level),
        "flow to the same ground": share(flows, both),
        "seen and known": share(known, truth.seen & ~unmoved),
        "seen with its height": share(near, truth.seen & known),
        "hidden and unknown": share(~known | edge, truth.hidden & inner),
        "without height and unknown": share(~known | showed, truth.blank),
        "outside, unknown and black": share((~known & black) | showed, truth.outside),
        "offset (pixels)": offset(image, truth.rgb, np.asarray(neighbours(level).all(axis=-1))),
        "colours of the ground": mean(colours, level & ~raised),
        "colours of roofs": mean(colours, level & raised),
        "colours of walls": mean(colours, truth.seen & known & raised & ~level),
        "pixels judged": float((truth.seen | truth.hidden | truth.blank | truth.outside).mean()),
        "pixels hidden": float(truth.hidden.mean()),
        "pixels outside": float(truth.outside.mean()),
        "pixels without height": float(truth.blank.mean()),
        "pixels level": float(level.mean()),
    }


def offset(first: NDArray[np.uint8], second: NDArray[np.uint8], where: Mask) -> float:
    """By how many pixels one picture must be shifted to fit the other best, along the axis along which it is more.

    The squared difference of colours, at a shift of a pixel to either side and at none, lies on a parabola.
    """
    inner = np.s_[1:-1, 1:-1]
    result = 0.0
    for axis in (0, 1):
        back, here, ahead = (
            float(((np.roll(first, by, axis)[inner].astype(float) - second[inner])[where[inner]] ** 2).sum())
            for by in (-1, 0, 1)
        )
        result = max(result, abs(0.5 * (back - ahead) / (back - 2 * here + ahead)))
    return result


def mean(values: Metres, where: Mask) -> float:
    """Mean of the values; 0 if there are none."""
    return float(values[where].mean()) if where.any() else 0.0


AT_MOST = {
    "scale": 1e-12,
    "angle": 1e-12,
    "gsd": 1e-12,
    "median error of the heights (m)": 0.011,
    "offset (pixels)": 0.25,
    "colours of the ground": 4.0,
    "colours of roofs": 7.0,
    "colours of walls": 18.0,
}
AT_LEAST = {
    "heights within a pixel": 0.99,
    "heights of something": 0.985,
    "heights that were in view": 0.99,
    "heights within half a metre": 0.85,
    "heights where it is level": 0.995,
    "flow to the same ground": 0.99,
    "seen and known": 0.985,
    "seen with its height": 0.99,
    "hidden and unknown": 0.98,
    "without height and unknown": 0.98,
    "outside, unknown and black": 0.998,
    "pixels judged": 0.7,
}
