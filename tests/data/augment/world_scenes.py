"""Scenes and cameras for the proof of the geometric augmentation."""

import copy
import functools
import math

import numpy as np
from numpy.typing import NDArray

from agl_core.data.augment.geometric import Geometry
from agl_core.geometry import Pose, scale_from_elevation
from agl_core.world.city import build_place
from agl_core.world.render import Camera
from agl_core.world.scene import CONE, FLAT, GABLE, LAWN, PART, PATCH, PLAZA, WALLED, WATER, Scene
from agl_core.world.style import style_of

SIDE = 320
"""Pixels of the picture that is augmented; its margin holds what a crop of `SIZE` pixels needs."""
SIZE = 128


def box(x: float, y: float, a: float, b: float, eave: float, turn: float = 0.0, roof: int = FLAT, pitch: float = 0.0,
        round_: bool = False) -> NDArray[np.void]:  # fmt: skip
    """A building: its middle, half axes and height of walls in metres, turned by `turn` radians."""
    part = np.zeros(1, PART)
    part["x"], part["y"], part["a"], part["b"], part["eave"] = x, y, a, b, eave
    part["cos"], part["sin"], part["roof"], part["pitch"] = math.cos(turn), math.sin(turn), roof, pitch
    part["kind"], part["round"], part["floor"], part["bay"], part["seed"] = WALLED, round_, 3.0, 3.5, int(x * y)
    for channel, wall, top in zip("rgb", (0.35, 0.3, 0.2), (0.3, 0.5, 0.6), strict=True):
        part[f"wall_{channel}"], part[f"roof_{channel}"] = wall, top
    return part


def patch(x: float, y: float, a: float, b: float, material: int) -> NDArray[np.void]:
    """A piece of ground of one material: its middle and half axes in metres."""
    piece = np.zeros(1, PATCH)
    piece["x"], piece["y"], piece["a"], piece["b"], piece["cos"], piece["material"] = x, y, a, b, 1.0, material
    return piece


@functools.cache
def blocks() -> Scene:
    """Buildings of every kind of roof, of 4 to 30 m, one before the other, a lake and lawns: 300 m."""
    scene = Scene(300.0, 0.2)
    scene.paint(patch(190, 150, 60, 60, LAWN))
    scene.paint(patch(128, 158, 9, 14, WATER))
    scene.paint(patch(150, 128, 10, 6, PLAZA))
    for part in (
        box(150, 150, 8, 6, 12.0),
        box(152, 168, 12, 5, 5.0, 0.4, GABLE, 0.5),
        box(172, 146, 6, 6, 22.0, 0.7),
        box(170, 132, 5, 4, 8.0, 0.2),
        box(130, 132, 7, 7, 6.0, 0.0, CONE, 6.0, round_=True),
        box(113, 158, 4, 12, 9.0, 0.1),
        box(146, 188, 9, 5, 30.0, 1.1),
        box(185, 172, 10, 6, 4.0, 0.3),
        box(150, 108, 14, 4, 15.0, 2.9),
    ):
        scene.build(part)
    return scene


@functools.cache
def place(city: int, seed: int) -> Scene:
    """A place of a procedural city (0 a suburb, 1 a quarter, 2 downtown): 300 m."""
    return build_place(style_of(city), 300.0, np.random.default_rng(seed))


def looking(scene: Scene, elevation: float, angle: float, gsd: float = 0.5) -> Camera:
    """A camera at `elevation` degrees over the scene's middle, a little off the borders of its cells."""
    pose = Pose(scale_from_elevation(math.radians(elevation), gsd), angle)
    return Camera(pose, gsd, SIDE, SIDE, 0.5 * scene.side + 0.0137, 0.5 * scene.side - 0.0071)


def stretched(scene: Scene, by: float) -> Scene:
    """The scene with all heights multiplied, its facades and roofs with their windows and slopes too."""
    result = copy.copy(scene)
    result.height, result.parts = scene.height * by, scene.parts.copy()
    result.slope_x, result.slope_y = scene.slope_x * np.float32(by), scene.slope_y * np.float32(by)
    for name in ("eave", "pitch", "floor"):
        result.parts[name] *= by
    result._refresh()
    return result


def transformed_camera(camera: Camera, geometry: Geometry, size: int) -> Camera:
    """The camera whose picture, after the symmetry, is the augmented one: its middle shows the same ground."""
    symmetry = geometry.symmetry
    mirrored = symmetry.transposed ^ symmetry.flipped_horizontal ^ symmetry.flipped_vertical
    # To flip and then to turn is to turn the other way round and then to flip.
    roll = -geometry.turn if mirrored else geometry.turn
    scale = camera.pose.scale * geometry.scale_by * geometry.zoom
    pose = Pose(scale, camera.pose.angle + geometry.angle_by + roll)
    return Camera(pose, camera.gsd / geometry.zoom, size, size, camera.x, camera.y, roll)
