"""The algebra of geocentric pose: what a height, a scale and an angle say, and how image operations change them.

Affine camera, image axes x right and y down. A surface of height `agl` seen at pixel `p` stands on the ground at
`p + agl * scale * (sin(angle), cos(angle))`: angle 0 points down the image and grows counter-clockwise as seen.

Everything is pure. What takes arrays takes numpy arrays, torch tensors and plain numbers alike and returns the same
kind. This module does not import torch: a process that has no tensors does not need it.
"""

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

TURN = 2 * math.pi

Array = TypeVar("Array", "NDArray[Any]", "torch.Tensor")
Values = TypeVar("Values", "NDArray[Any]", "torch.Tensor", float)


def _namespace(values: Any) -> Any:
    """numpy, or torch when `values` is a tensor (somebody has imported it then)."""
    return sys.modules["torch"] if type(values).__module__.partition(".")[0] == "torch" else np


def wrap_angle(angle: Values) -> Values:
    """The same angle in [0, 2*pi), radians."""
    space = _namespace(angle)
    wrapped = space.remainder(angle, TURN)
    # The remainder of a tiny negative angle rounds up to a whole turn, which is outside the half-open range.
    result: Values = wrapped * (wrapped < TURN)
    return result


def angle_difference(first: Values, second: Values) -> Values:
    """How far apart two angles are along the shorter way round, radians in [0, pi]."""
    space = _namespace(first - second)
    result: Values = math.pi - abs(space.remainder(first - second, TURN) - math.pi)
    return result


def direction(angle: Values) -> tuple[Values, Values]:
    """(dx, dy) = (sin(angle), cos(angle)): where the ground lies from a raised surface, in the image."""
    space = _namespace(angle)
    return space.sin(angle), space.cos(angle)


def angle_from_direction(dx: Values, dy: Values) -> Values:
    """The angle of a direction of any length, radians in [0, 2*pi); the inverse of `direction`."""
    angle: Values = _namespace(dx).arctan2(dx, dy)
    return wrap_angle(angle)


def scale_from_elevation(elevation: float, gsd: float) -> float:
    """Pixels of displacement per metre of height seen from `elevation` (radians above the horizon), gsd in m/px."""
    return 1.0 / (math.tan(elevation) * gsd)


@dataclass(frozen=True)
class Pose:
    """How an image leans: `scale` in pixels of displacement per metre of height, `angle` in radians.

    The angle is wrapped into [0, 2*pi).

    Raises:
        ValueError: when a number is not finite or the scale is negative.
    """

    scale: float
    angle: float

    def __post_init__(self) -> None:
        scale, angle = float(self.scale), float(self.angle)
        if not (math.isfinite(scale) and scale >= 0):
            raise ValueError(f"scale is {scale}, expected a finite number that is not negative")
        if not math.isfinite(angle):
            raise ValueError(f"angle is {angle}, expected a finite number")
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "angle", float(wrap_angle(angle)))


def flow(agl: Array, pose: Pose) -> Array:
    """From each pixel to where its surface stands on the ground.

    Args:
        agl: (...) heights above ground, metres; NaN where unknown.
        pose: the pose of the image.

    Returns:
        (..., 2) displacement in (x, y), pixels; NaN where the height is unknown.
    """
    dx, dy = direction(pose.angle)
    magnitude: Any = agl * pose.scale
    result: Array = _namespace(agl).stack((magnitude * float(dx), magnitude * float(dy)), -1)
    return result


# How an operation on the image changes its labels: each takes and returns (pose, gsd), gsd in metres per pixel.


def crop(pose: Pose, gsd: float) -> tuple[Pose, float]:
    """Labels of any part of the image cut out."""
    return pose, gsd


def flip_horizontal(pose: Pose, gsd: float) -> tuple[Pose, float]:
    """Labels after left and right are swapped."""
    return Pose(pose.scale, -pose.angle), gsd


def flip_vertical(pose: Pose, gsd: float) -> tuple[Pose, float]:
    """Labels after top and bottom are swapped."""
    return Pose(pose.scale, math.pi - pose.angle), gsd


def transpose(pose: Pose, gsd: float) -> tuple[Pose, float]:
    """Labels after x and y are swapped."""
    return Pose(pose.scale, math.pi / 2 - pose.angle), gsd


def rotate(pose: Pose, gsd: float, by: float) -> tuple[Pose, float]:
    """Labels after the image is turned `by` radians counter-clockwise as seen; uncovered corners are unknown."""
    return Pose(pose.scale, pose.angle + by), gsd


def rot90(pose: Pose, gsd: float, k: int = 1) -> tuple[Pose, float]:
    """Labels after `k` quarter turns counter-clockwise as seen (the direction of `numpy.rot90`)."""
    return rotate(pose, gsd, (k % 4) * math.pi / 2)


def zoom(pose: Pose, gsd: float, by: float) -> tuple[Pose, float]:
    """Labels after the image is magnified `by` > 0: a metre of height spans `by` times the pixels, AGL is the same."""
    return Pose(pose.scale * by, pose.angle), gsd / by


def stretch(pose: Pose, gsd: float, by: float) -> tuple[Pose, float]:
    """Labels after all heights are multiplied `by` > 0 (`AGL * by`, pixels moved by `stretch_flow`): unchanged."""
    if by <= 0:
        raise ValueError(f"heights are stretched by {by}, expected more than 0")
    return pose, gsd


def stretch_flow(agl: Array, pose: Pose, by: float) -> Array:
    """Where the pixels go when all heights are multiplied `by` and the ground stays where it is.

    Args:
        agl: (...) heights before the stretch, metres; NaN where unknown.
        pose: the pose of the image.
        by: factor of the heights.

    Returns:
        (..., 2) displacement in (x, y), pixels. Where several surfaces meet in one pixel, the tallest is seen.
    """
    result: Array = flow(agl, pose) * (1.0 - by)
    return result


@dataclass(frozen=True)
class Symmetry:
    """One of the eight exact operations on a pixel grid: swap x and y if `transposed`, then flip the axes named.

    Every chain of flips, transposes and quarter turns is one of these; `then` chains them.
    """

    transposed: bool = False
    flipped_horizontal: bool = False
    flipped_vertical: bool = False

    def then(self, other: "Symmetry") -> "Symmetry":
        """This operation followed by `other`, as one operation."""
        horizontal, vertical = self.flipped_horizontal, self.flipped_vertical
        if other.transposed:  # a flip of x followed by the swap is the swap followed by a flip of y
            horizontal, vertical = vertical, horizontal
        return Symmetry(
            self.transposed != other.transposed,
            horizontal != other.flipped_horizontal,
            vertical != other.flipped_vertical,
        )

    def inverse(self) -> "Symmetry":
        """The operation that undoes this one."""
        flips = Symmetry(False, self.flipped_horizontal, self.flipped_vertical)
        return flips.then(Symmetry(transposed=self.transposed))


IDENTITY = Symmetry()
FLIP_HORIZONTAL = Symmetry(flipped_horizontal=True)
FLIP_VERTICAL = Symmetry(flipped_vertical=True)
TRANSPOSE = Symmetry(transposed=True)
ROT90 = (  # by number of quarter turns counter-clockwise as seen
    IDENTITY,
    TRANSPOSE.then(FLIP_VERTICAL),
    FLIP_HORIZONTAL.then(FLIP_VERTICAL),
    TRANSPOSE.then(FLIP_HORIZONTAL),
)
D4 = (*ROT90, *(turn.then(FLIP_HORIZONTAL) for turn in ROT90))


def apply(image: Array, op: Symmetry, rows: int = 0) -> Array:
    """The image after `op`: a view of a numpy array, a new tensor where torch cannot make a view.

    Args:
        image: (H, W) or (H, W, C), any dtype; for (..., H, W) give `rows=-2`.
        op: the operation.
        rows: axis of the rows; the columns are the next one.

    Returns:
        The same pixels in the same layout; H and W are exchanged if `op` is transposed.
    """
    space = _namespace(image)
    columns = rows + 1
    result: Any = image.swapaxes(rows, columns) if op.transposed else image
    axes = tuple(axis for axis, flipped in ((columns, op.flipped_horizontal), (rows, op.flipped_vertical)) if flipped)
    flipped: Array = space.flip(result, axes) if axes else result
    return flipped


def apply_direction(dx: Values, dy: Values, op: Symmetry) -> tuple[Values, Values]:
    """A displacement or direction (dx, dy), numbers or arrays, after `op` on the image that it belongs to."""
    if op.transposed:
        dx, dy = dy, dx
    return -dx if op.flipped_horizontal else dx, -dy if op.flipped_vertical else dy


def apply_pose(pose: Pose, op: Symmetry) -> Pose:
    """The pose after `op` on the image; the gsd does not change."""
    gsd = 1.0
    if op.transposed:
        pose, gsd = transpose(pose, gsd)
    if op.flipped_horizontal:
        pose, gsd = flip_horizontal(pose, gsd)
    if op.flipped_vertical:
        pose, gsd = flip_vertical(pose, gsd)
    return pose
