"""Other light, another sensor, another development: changes of colour that treat all pixels alike.

Each is one lookup table or one 3 x 4 matrix over the image. Strengths are the defaults of albumentations.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from agl_core.opencv import cv2

BRIGHTNESS = 0.2
"""Largest change of brightness either way, as a share of white."""

CONTRAST = 0.2
"""Largest change of contrast either way, as a share of the values."""

GAMMA = (0.8, 1.2)
"""Least and largest exponent of the gamma curve."""

JITTER = 0.2
"""Largest change of brightness, contrast and saturation in colour jitter, either way, as a share."""

JITTER_HUE = 0.2
"""Largest change of hue in colour jitter, either way, as a share of a whole turn: 72 degrees."""

CURVE_SPREAD = 0.1
"""Standard deviation of the two control points of the tone curve about 1/4 and 3/4."""

PCA_SPREAD = 0.1
"""Standard deviation of the shift along each main axis of the colours, as a share of the spread along that axis.

AlexNet's 0.1 is multiplied with eigenvalues; those in general use (0.2175, ... for values of 0 to 1) are about the
standard deviations of natural images along their axes, hence this image's own: variances are no length in colours.
"""

PCA_STRIDE = 4
"""Every 4th pixel of every 4th row gives the axes as well as all of them do."""

GREY = np.array([0.299, 0.587, 0.114])
"""Weights of R, G and B in the brightness that people see (ITU-R BT.601)."""

Image = NDArray[np.uint8]
Operation = Callable[[Image, np.random.Generator], Image]
_VALUES = np.arange(256) / 255


def look_up(rgb: Image, curve: NDArray[np.float64]) -> Image:
    """The image with value v replaced by 255 * curve[v], rounded and clipped, in all bands."""
    table = np.clip(np.rint(curve * 255), 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(rgb, table), np.uint8)


def brightness(rgb: Image, generator: np.random.Generator) -> Image:
    """Brightness and contrast: values times 1 +- 0.2, plus up to +- 0.2 of white."""
    contrast, lift = generator.uniform(-CONTRAST, CONTRAST), generator.uniform(-BRIGHTNESS, BRIGHTNESS)
    return look_up(rgb, _VALUES * (1 + contrast) + lift)


def gamma(rgb: Image, generator: np.random.Generator) -> Image:
    """A gamma curve: black and white stay, what lies between gets darker or lighter."""
    return look_up(rgb, _VALUES ** generator.uniform(*GAMMA))


def jitter(rgb: Image, generator: np.random.Generator) -> Image:
    """Brightness, contrast, saturation and hue.

    All four are linear and keep what the others change (grey its place, chroma its size), so that their order is of no
    consequence and one matrix holds them: contrast about the image's mean grey, saturation about each pixel's own grey,
    hue as a rotation of the chroma (I, Q) at constant brightness.
    """
    light, contrast, saturation = 1 + generator.uniform(-JITTER, JITTER, 3)
    turn = 2 * np.pi * generator.uniform(-JITTER_HUE, JITTER_HUE)
    to_yiq = np.array([GREY, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])  # NTSC
    cosine, sine = saturation * np.cos(turn), saturation * np.sin(turn)
    turned = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    matrix = light * contrast * (np.linalg.inv(to_yiq) @ turned @ to_yiq)
    mean = light * float(GREY @ np.array(cv2.mean(rgb)[:3]))
    offset = np.full(3, (1 - contrast) * mean)
    return np.asarray(cv2.transform(rgb, np.column_stack([matrix, offset])), np.uint8)


def tone_curve(rgb: Image, generator: np.random.Generator) -> Image:
    """An S-shaped curve: a cubic Bezier curve with drawn heights of its two inner control points, never falling."""
    low, high = np.clip(generator.normal((0.25, 0.75), CURVE_SPREAD), 0, 1)  # within 0 ... 1 it cannot fall anywhere
    t = _VALUES
    return look_up(rgb, 3 * (1 - t) ** 2 * t * low + 3 * (1 - t) * t**2 * high + t**3)


TONES: dict[str, Operation] = {"gamma": gamma, "jitter": jitter, "tone curve": tone_curve}


def tone(rgb: Image, generator: np.random.Generator) -> Image:
    """One of the three, drawn evenly."""
    return list(TONES.values())[int(generator.integers(len(TONES)))](rgb, generator)


def colour_axes(rgb: Image) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(3,) spread of the colours along their main axes, in levels, and (3, 3) the axes as columns, smallest first.

    An axis points to where the sum of R, G and B grows: the sign of an eigenvector is the library's whim.
    """
    pixels = rgb[::PCA_STRIDE, ::PCA_STRIDE].reshape(-1, 3).astype(np.float64)
    mean = pixels.mean(axis=0)
    covariance = pixels.T @ pixels / len(pixels) - np.outer(mean, mean)
    variances, axes = np.linalg.eigh(covariance)
    signs = np.where(axes.sum(axis=0) < 0, -1.0, 1.0)
    return np.sqrt(np.maximum(variances, 0)), axes * signs


def fancy_pca(rgb: Image, generator: np.random.Generator) -> Image:
    """One shift of all colours along their main axes, each by 0.1 of the spread along it (Krizhevsky 2012)."""
    spread, axes = colour_axes(rgb)
    shift = axes @ (spread * generator.normal(0.0, PCA_SPREAD, 3))
    return np.asarray(cv2.transform(rgb, np.column_stack([np.eye(3), shift])), np.uint8)
