"""Images of a scene: an oblique camera, a sun, and the exact height above ground of what every pixel shows.

The camera is the affine one of `agl_core.geometry`: a surface of height h seen at pixel p stands on the ground at
p + h * scale * (sin angle, cos angle). So the view ray of p comes down over the ground from that side, and p shows the
first surface it meets. Heights and visibility are those of the pixel's centre; colours are averaged over the pixel.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agl_core.data.tiles import HIGHEST_CM, UNKNOWN
from agl_core.geometry import Pose, direction
from agl_core.world.compiled import compiled
from agl_core.world.scene import LAWN, MEADOW, TREE, WATER, Scene
from agl_core.world.surface import ground_colour, roof_colour, wall_colour
from agl_core.world.walk import OUTSIDE, ROOF, WALL, walk

SKYLIGHT = 0.4
"""Light of the whole sky as a share of that of the sun in the zenith."""


@dataclass(frozen=True)
class Camera:
    """Where the image looks and how: the ground point x, y (metres in the scene) lies in the image's middle.

    `roll` turns the picture counter-clockwise as seen (radians) about its middle. `pose` is that of the picture as it
    comes out: what `Pose(scale, angle)` shows without a roll, `Pose(scale, angle + roll)` shows turned by `roll`.
    """

    pose: Pose
    gsd: float
    height: int
    width: int
    x: float
    y: float
    roll: float = 0.0


@dataclass(frozen=True)
class Light:
    """Sun and air. `azimuth` points to the sun as the `Pose.angle` of a camera without roll, radians, like `elevation`.

    `warmth` shifts the sunlight from blue (-1) to red (1), `season` the plants from green (0) to brown (1),
    `haze` is the share of light that comes from the air itself.
    """

    azimuth: float
    elevation: float
    warmth: float = 0.0
    season: float = 0.0
    haze: float = 0.0


@dataclass(frozen=True)
class Sensor:
    """What the instrument adds: blur and noise (standard deviations in pixels and in grey levels), and its exposure."""

    blur: float = 0.0
    noise: float = 0.0
    exposure: float = 1.0
    seed: int = 0


def render(
    scene: Scene, camera: Camera, light: Light, sensor: Sensor | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Take a picture of `scene`.

    Returns:
        rgb: (H, W, 3) uint8;  agl: (H, W) uint16 centimetres, UNKNOWN over water and where the ray enters from
        outside the scene (such pixels are black).
    """
    # The camera's rays go through the centres and through the corners of the pixels: a colour is half the centre's
    # and half that of the four corners, which costs two rays a pixel and smooths edges as well as four would.
    height, width = camera.height, camera.width
    centres, metres = _traced(scene, camera, light, height, width)
    corners, _ = _traced(scene, camera, light, height + 1, width + 1)
    around = corners[:-1, :-1] + corners[:-1, 1:] + corners[1:, :-1] + corners[1:, 1:]
    radiance = 0.5 * centres + 0.125 * around
    radiance[np.isposinf(metres)] = 0.0
    agl = np.where(np.isfinite(metres), np.clip(np.rint(metres * 100), 0, HIGHEST_CM), UNKNOWN).astype(np.uint16)
    return _developed(radiance, light, sensor or Sensor()), agl


def _traced(
    scene: Scene, camera: Camera, light: Light, rows: int, columns: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Follow rows x columns rays, one per pixel, around the camera's middle.

    Returns:
        radiance: (rows, columns, 3);  metres: (rows, columns) height of what is seen, NaN over water, infinite where
        the ray enters from outside the scene.
    """
    radiance = np.zeros((rows, columns, 3))
    metres = np.zeros((rows, columns))
    dx, dy = direction(camera.pose.angle - camera.roll)
    # In metres of the scene one column to the right is (step, skew), and one row down (-skew, step).
    step, skew = math.cos(camera.roll) * camera.gsd, math.sin(camera.roll) * camera.gsd
    half_column, half_row = 0.5 * (columns - 1), 0.5 * (rows - 1)
    sun_x, sun_y = direction(light.azimuth)
    # Exposed so that sunlit level ground keeps its reflectance.
    flat, rise = math.cos(light.elevation), math.sin(light.elevation)
    gain = 1.0 / (SKYLIGHT + rise)
    warm = 0.06 * light.warmth
    _trace(
        scene.ground,
        scene.height,
        scene.slope_x,
        scene.slope_y,
        scene.owner,
        scene.peaks,
        scene.parts,
        scene.cell,
        scene.top,
        camera.x - half_column * step + half_row * skew,
        camera.y - half_row * step - half_column * skew,
        step,
        skew,
        camera.pose.scale * camera.gsd,
        float(dx),
        float(dy),
        np.array([sun_x, sun_y, flat, rise]),
        gain * np.array([1.0 + warm, 1.0, 1.0 - warm]),
        SKYLIGHT * gain * np.array([0.9, 1.0, 1.14]),
        np.array([1.0 + 0.55 * light.season, 1.0 - 0.02 * light.season, 1.0 - 0.1 * light.season]),
        radiance,
        metres,
    )
    return radiance, metres


def _developed(radiance: NDArray[np.float64], light: Light, sensor: Sensor) -> NDArray[np.uint8]:
    image: NDArray[np.float32] = radiance.astype(np.float32) * np.float32(sensor.exposure)
    if light.haze > 0:
        image = image * np.float32(1 - light.haze) + np.float32(light.haze) * np.array([0.4, 0.46, 0.54], np.float32)
    if sensor.blur > 0:
        image = _blurred(_blurred(image, sensor.blur, 0), sensor.blur, 1)
    grey: NDArray[np.float32] = np.float32(255) * np.clip(image, 0, None) ** np.float32(1 / 2.2)
    if sensor.noise > 0:
        generator = np.random.Generator(np.random.Philox(sensor.seed))
        grey += np.float32(sensor.noise) * generator.standard_normal(grey.shape, dtype=np.float32)
    seen: NDArray[np.uint8] = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return seen


def _blurred(image: NDArray[np.float32], deviation: float, axis: int) -> NDArray[np.float32]:
    """Blur an (H, W, 3) image along one axis with a Gaussian of this standard deviation in pixels."""
    reach = math.ceil(3 * deviation)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    margin = [(reach, reach) if along == axis else (0, 0) for along in range(3)]
    padded = np.pad(image, margin, mode="edge")
    blurred: NDArray[np.float32] = np.zeros_like(image)
    for shift, weight in enumerate(weights):
        window = [
            slice(shift, shift + length) if along == axis else slice(None) for along, length in enumerate(image.shape)
        ]
        blurred += weight * padded[tuple(window)]
    return blurred


@compiled
def _trace(
    ground: NDArray[np.uint8],
    height: NDArray[np.float64],
    slope_x: NDArray[np.float32],
    slope_y: NDArray[np.float32],
    owner: NDArray[np.int32],
    peaks: NDArray[np.float32],
    parts: NDArray[np.void],
    cell: float,
    top: float,
    left: float,
    upper: float,
    step: float,
    skew: float,
    lean: float,
    dx: float,
    dy: float,
    sun: NDArray[np.float64],
    sunlight: NDArray[np.float64],
    skylight: NDArray[np.float64],
    plants: NDArray[np.float64],
    radiance: NDArray[np.float64],
    metres: NDArray[np.float64],
) -> None:
    rows, columns = metres.shape
    start = top + 0.01
    reach = start * lean / cell
    far = max(reach, 1e-9)
    for i in range(rows):
        for j in range(columns):
            # The ray's foot, in cells; it comes from `reach` cells away, above everything.
            x, y = (left + j * step - i * skew) / cell, (upper + i * step + j * skew) / cell
            met, way, row, column = walk(
                height, slope_x, slope_y, peaks, cell, top,
                x + reach * dx, y + reach * dy, start, -dx, -dy, -start / far,
            )  # fmt: skip
            if met == OUTSIDE:
                metres[i, j] = np.inf
                continue
            z = start * (1.0 - way / far)
            x += (reach - way) * dx
            y += (reach - way) * dy
            metres[i, j] = z
            part = owner[row, column]
            nx, ny, nz, lift = 0.0, 0.0, 1.0, 0.03
            if part < 0:
                material = ground[row, column]
                if material == WATER:
                    metres[i, j] = np.nan
                r, g, b = ground_colour(material, x * cell, y * cell)
                plant = material in (LAWN, MEADOW)
            else:
                p = parts[part]
                plant = p.kind == TREE
                u = (x * cell - p.x) * p.cos + (y * cell - p.y) * p.sin
                v = (y * cell - p.y) * p.cos - (x * cell - p.x) * p.sin
                if met == WALL:
                    # The wall is the footprint's nearest edge, not the side of the cell.
                    if p.round:
                        length = max(np.sqrt((u / p.a) ** 2 + (v / p.b) ** 2), 1e-9)
                        nu, nv = u / p.a / length, v / p.b / length
                        along, side = np.arctan2(nv, nu) * p.a, 0
                    elif p.a - abs(u) < p.b - abs(v):
                        nu, nv, along, side = np.sign(u), 0.0, v, 1 if u > 0 else 2
                    else:
                        nu, nv, along, side = 0.0, np.sign(v), u, 3 if v > 0 else 4
                    nx, ny, nz = nu * p.cos - nv * p.sin, nu * p.sin + nv * p.cos, 0.0
                    r, g, b = wall_colour(p, along, z, side)
                    # The sun ray starts in front of the wall, clear of the corners of its cells.
                    x, y = x + 1.5 * nx, y + 1.5 * ny
                else:
                    sx, sy = slope_x[row, column], slope_y[row, column]
                    nz = 1.0 / np.sqrt(1.0 + sx * sx + sy * sy)
                    nx, ny = -sx * nz, -sy * nz
                    r, g, b = roof_colour(p, u, v, x * cell, y * cell)
            if plant:
                r, g, b, lift = r * plants[0], g * plants[1], b * plants[2], 0.3
            facing = max((nx * sun[0] + ny * sun[1]) * sun[2] + nz * sun[3], 0.0)
            if facing > 0.0:
                met, way, row, column = walk(
                    height, slope_x, slope_y, peaks, cell, top,
                    x, y, z + lift, sun[0], sun[1], cell * sun[3] / max(sun[2], 1e-6),
                )  # fmt: skip
                if met in (ROOF, WALL):
                    facing = 0.0
            # A wall sees half the sky and the sunlit ground, and less of the sky near the ground.
            open_sky = 0.5 + 0.5 * nz
            if nz == 0.0:
                open_sky *= 1.5 + 0.3 * min(1.0, z / 12.0)
            radiance[i, j, 0] = r * (skylight[0] * open_sky + sunlight[0] * facing)
            radiance[i, j, 1] = g * (skylight[1] * open_sky + sunlight[1] * facing)
            radiance[i, j, 2] = b * (skylight[2] * open_sky + sunlight[2] * facing)
