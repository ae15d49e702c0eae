"""What lies between the ground and the camera, and the light: fog, shadows, the sun's glare.

Their sizes are shares of the image's shorter side, those that albumentations' defaults have in a crop of 512. Unlike
there they may lie anywhere: an image from above has no sky in its upper half.
"""

import numpy as np
from numpy.typing import NDArray

from agl_core.opencv import cv2

FOG = (0.3, 1.0)
"""Least and largest density of fog."""

FOG_OPACITY = 0.5
"""Share of a pixel's light that the thickest fog of density 1 replaces by white: thicker fog hides even buildings."""

FOG_GRID = 4
"""Points in x and in y at which the thickness of the fog is drawn; between them it changes smoothly."""

SHADOWS = (1, 2)
"""Fewest and most shadows."""

SHADOW_CORNERS = 5
"""Corners of a shadow."""

SHADOW_REACH = (0.15, 0.6)
"""Least and largest distance of a shadow's corners from its middle, in sides of the image."""

SHADOW_LIGHT = 0.5
"""Share of the light that is left in a shadow: the sky's."""

FLARE_RADIUS = 400 / 512
"""Radius of the glare, in sides of the image (src_radius 400 pixels)."""

FLARE_STRENGTH = 10.0
"""Optical depth of the glare at its middle; it falls with the fourth power of the distance from the rim, which is what
40 discs of rising opacity, drawn over each other, add up to."""

FLARE_GRID = 64
"""Points in x and in y at which the glare is computed; between them it is interpolated."""

FLARE_CIRCLES = (6, 10)
"""Fewest and most reflections in the lens."""

FLARE_CIRCLE_RADII = (1 / 512, 8 / 512, 27 / 512)
"""Radii of reflections, in sides of the image (cubes of 1, 2 and 3 pixels)."""

FLARE_CIRCLE_OPACITY = (0.05, 0.2)
"""Least and largest opacity of a reflection."""

FLARE_CIRCLE_TINT = 50
"""Levels by which a reflection's colour may differ from white, in each band."""

Image = NDArray[np.uint8]


def _whiten(rgb: Image, opacity: NDArray[np.float32]) -> Image:
    """The image behind white of `opacity` (h, w), 0 ... 1, at points evenly spread over it, in steps of 1/255."""
    height, width = rgb.shape[:2]
    clear = 255 - cv2.resize(255 * opacity, (width, height), interpolation=cv2.INTER_LINEAR)
    left = np.rint(clear).astype(np.uint8)
    dark = cv2.multiply(cv2.bitwise_not(rgb), cv2.merge([left, left, left]), scale=1 / 255)
    return np.asarray(cv2.bitwise_not(dark), np.uint8)


def fog(rgb: Image, generator: np.random.Generator) -> Image:
    """Fog of uneven thickness: what is seen, mixed with white."""
    density = generator.uniform(*FOG) * FOG_OPACITY
    grid = generator.uniform(0.0, 1.0, (FOG_GRID, FOG_GRID)).astype(np.float32)
    # Cubic in a first, coarse step: linear interpolation alone would show the cells of the grid.
    smooth = cv2.resize(grid, (8 * FOG_GRID, 8 * FOG_GRID), interpolation=cv2.INTER_CUBIC)
    return _whiten(rgb, np.clip(smooth, 0, 1) * np.float32(density))


def shadow(rgb: Image, generator: np.random.Generator) -> Image:
    """One or two shadows with straight edges; where they overlap it is not darker, for there is one sun."""
    height, width = rgb.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    for _ in range(int(generator.integers(SHADOWS[0], SHADOWS[1], endpoint=True))):
        middle = generator.uniform(0.0, 1.0, 2) * (width, height)
        angles = np.sort(generator.uniform(0.0, 2 * np.pi, SHADOW_CORNERS))  # in turn: the edges do not cross
        reach = generator.uniform(*SHADOW_REACH, SHADOW_CORNERS) * min(height, width)
        corners = middle + np.column_stack([reach * np.cos(angles), reach * np.sin(angles)])
        cv2.fillPoly(mask, [np.rint(corners).astype(np.int32)], 255)
    dark = cv2.LUT(rgb, np.rint(np.arange(256) * SHADOW_LIGHT).astype(np.uint8))
    result = rgb.copy()
    cv2.copyTo(dark, mask, result)
    return result


def sun_flare(rgb: Image, generator: np.random.Generator) -> Image:
    """The sun's glare: white at a drawn place, fainter outwards, and reflections in the lens on the line from there
    through the middle of the image."""
    height, width = rgb.shape[:2]
    side = min(height, width)
    sun = generator.uniform(0.0, 1.0, 2) * (width, height)
    x = (np.arange(FLARE_GRID) + 0.5) / FLARE_GRID * width - sun[0]
    y = (np.arange(FLARE_GRID) + 0.5) / FLARE_GRID * height - sun[1]
    rim = np.clip(1 - np.hypot(x, y[:, None]) / (FLARE_RADIUS * side), 0, 1)
    result = _whiten(rgb, (1 - np.exp(-FLARE_STRENGTH * rim**4)).astype(np.float32))
    along = np.array([width, height]) - 2 * sun  # from the sun through the middle to as far beyond
    for _ in range(int(generator.integers(FLARE_CIRCLES[0], FLARE_CIRCLES[1], endpoint=True))):
        place = sun + generator.uniform(0.0, 1.0) * along
        radius = FLARE_CIRCLE_RADII[int(generator.integers(len(FLARE_CIRCLE_RADII)))] * side
        opacity = generator.uniform(*FLARE_CIRCLE_OPACITY)
        colour = 255 - generator.integers(0, FLARE_CIRCLE_TINT, 3, endpoint=True)
        _disc(result, place, max(1, round(radius)), opacity, colour)
    return result


def _disc(rgb: Image, place: NDArray[np.float64], radius: int, opacity: float, colour: NDArray[np.int64]) -> None:
    """Mix a disc of `colour` into the image, which is changed."""
    height, width = rgb.shape[:2]
    x, y = int(place[0]), int(place[1])
    left, top = max(0, x - radius), max(0, y - radius)
    part = rgb[top : min(height, y + radius + 1), left : min(width, x + radius + 1)]
    if part.size == 0:
        return
    painted = part.copy()
    cv2.circle(painted, (x - left, y - top), radius, [int(band) for band in colour], cv2.FILLED)
    part[:] = cv2.addWeighted(painted, opacity, part, 1 - opacity, 0)
