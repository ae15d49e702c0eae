"""The official score of the Overhead Geopose Challenge, from five sums and two poses per image.

Per city, all images pooled, heights in metres, flow in pixels, pixels without true height left out:

    R2 = 1 - SSE / (SST + 1e-4), where SST is about the mean = sum / (N + 1e-4)

for the heights, and for the two components of the flow taken together: 2N numbers with one mean. The city's score is
the average of the two, the score is the average over the cities, and nothing is clipped at zero.

The sums are integers and the poses become exact fractions, so that only the last division rounds: no cancellation
under tall offsets, and the same result in whatever order the images come.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from agl_core.errors import UserError
from agl_core.geometry import Pose
from agl_core.scoring.errors import ImageErrors
from agl_core.scoring.sums import NO_PIXELS, ImageSums

EPSILON = Fraction(1, 10_000)
"""The official script adds it to the number of pixels and to the variance."""

_M = Fraction(1, 100)  # metres per centimetre


@dataclass(frozen=True)
class ImageResult:
    """One predicted image: its sums, and its poses in px/m and radians (`truth` is None where there is no VFLOW).

    errors: what the score does without, where somebody has asked for it.
    """

    id: str
    city: str
    sums: ImageSums
    truth: Pose | None
    prediction: Pose
    errors: ImageErrors | None = None

    @property
    def angle_error(self) -> float | None:
        """Radians, in [0, pi]; None where no angle is known or, under a scale of 0, there is none."""
        if self.truth is None or not self.truth.scale:
            return None
        return abs(math.remainder(self.prediction.angle - self.truth.angle, math.tau))

    @property
    def scale_error(self) -> float | None:
        """Absolute, pixels per metre; None where no scale is known."""
        return None if self.truth is None else abs(self.prediction.scale - self.truth.scale)

    @property
    def flow_squared_error(self) -> Fraction | None:
        """Sum of the squared end-point errors, pixels^2; None without a true pose."""
        return None if self.truth is None else _flow_squared_error(self.sums, self.truth, self.prediction)


@dataclass(frozen=True)
class CityScore:
    """Score of one city; what concerns the flow is None where no image of the city has a true pose."""

    agl_r2: float
    vflow_r2: float | None
    score: float
    """Average of the two R2, or that of the heights alone where there is no flow."""
    images: int
    known_pixels: int
    angle_error: float | None = None
    """Median over the images, degrees; images whose true scale is 0 have no angle and are left out."""
    scale_error: float | None = None
    """Median absolute error over the images, pixels per metre."""
    agl_rmse: float | None = None
    """Root of the mean squared error of the heights, metres; None of the best constant, as what follows."""
    magnitude_r2: float | None = None
    """R2 of the flow's length, height * scale."""
    magnitude_rmse: float | None = None
    """Root of its mean squared error, pixels."""
    vflow_rmse: float | None = None
    """Root of the mean squared end-point error of the flow, pixels."""

    def as_json(self) -> dict[str, Any]:
        """The fields, by name."""
        return dict(vars(self))


@dataclass(frozen=True)
class Score:
    """The score and its cities, in alphabetical order."""

    score: float
    cities: dict[str, CityScore]

    def as_json(self) -> dict[str, Any]:
        """Plain dicts and numbers: `score`, and `cities` with the fields of `CityScore`."""
        return {"score": self.score, "cities": {city: value.as_json() for city, value in self.cities.items()}}


def score(results: Sequence[ImageResult]) -> Score:
    """The official score of `results`, whatever their order.

    Raises `UserError` when there is nothing to score: no image, or a city without any known pixel.
    """
    return _average({city: _city_score(images) for city, images in by_city(results).items()})


def best_constant(results: Sequence[ImageResult]) -> Score:
    """The score of the best constant prediction per city, chosen with the truth in hand; raises as `score`.

    It predicts the city's mean height everywhere, and the scale and angle by which that height moves by the city's
    mean flow. A model is worth something where it is above this.
    """
    return _average({city: _constant_score(images) for city, images in by_city(results).items()})


def lost(results: Sequence[ImageResult]) -> dict[str, float]:
    """What each image takes away from a perfect score, by id: they add up to 1 - `score`; raises as `score`."""
    cities = by_city(results)
    shares: dict[str, float] = {}
    for images in cities.values():
        pooled = sum((image.sums for image in images), NO_PIXELS)
        agl, flow = _agl_variation(pooled) + EPSILON, _TrueFlow(images)
        flow_variation = flow.variation + EPSILON
        for image in images:
            share = image.sums.squared_error * _M**2 / agl
            if flow.known:
                share = (share + (image.flow_squared_error or 0) / flow_variation) / 2
            shares[image.id] = float(share / len(cities))
    return shares


def by_city(results: Sequence[ImageResult]) -> dict[str, list[ImageResult]]:
    """The images of each city, in alphabetical order of the cities; raises as `score`."""
    if not results:
        raise UserError("there is no image to score")
    cities: dict[str, list[ImageResult]] = {city: [] for city in sorted({result.city for result in results})}
    for result in results:
        cities[result.city].append(result)
    for city, images in cities.items():
        if not any(image.sums.known for image in images):
            raise UserError(f"city {city} cannot be scored: no pixel of its {len(images)} images has a known height")
    return cities


def _average(cities: dict[str, CityScore]) -> Score:
    return Score(math.fsum(city.score for city in cities.values()) / len(cities), cities)


def _city_score(images: list[ImageResult]) -> CityScore:
    pooled = sum((image.sums for image in images), NO_PIXELS)
    agl_r2 = _r2(pooled.squared_error * _M**2, _agl_variation(pooled))
    agl_rmse = _rms(pooled.squared_error * _M**2, pooled.known)
    flow = _TrueFlow(images)
    if not flow.known:
        return CityScore(agl_r2, None, agl_r2, len(images), pooled.known, agl_rmse=agl_rmse)
    flow_error = sum((_flow_squared_error(*item) for item in flow.images), Fraction(0))
    magnitude_error = sum((_magnitude_squared_error(*item) for item in flow.images), Fraction(0))
    vflow_r2 = _r2(flow_error, flow.variation)
    angles = [image.angle_error for image in images if image.angle_error is not None]
    scales = [image.scale_error for image in images if image.scale_error is not None]
    return CityScore(
        agl_r2,
        vflow_r2,
        (agl_r2 + vflow_r2) / 2,
        len(images),
        pooled.known,
        angle_error=math.degrees(statistics.median(angles)) if angles else None,
        scale_error=statistics.median(scales),
        agl_rmse=agl_rmse,
        magnitude_r2=_r2(magnitude_error, flow.magnitude_variation),
        magnitude_rmse=_rms(magnitude_error, flow.known),
        vflow_rmse=_rms(flow_error, flow.known),
    )


def _constant_score(images: list[ImageResult]) -> CityScore:
    pooled = sum((image.sums for image in images), NO_PIXELS)
    # About its own mean a set of numbers has the sum of squares  sum x^2 - (sum x)^2 / N.
    agl_r2 = _r2((pooled.gg - Fraction(pooled.g**2, pooled.known)) * _M**2, _agl_variation(pooled))
    flow = _TrueFlow(images)
    if not flow.known:
        return CityScore(agl_r2, None, agl_r2, len(images), pooled.known)
    vflow_r2 = _r2(flow.squares - (flow.x**2 + flow.y**2) / flow.known, flow.variation)
    return CityScore(agl_r2, vflow_r2, (agl_r2 + vflow_r2) / 2, len(images), pooled.known)


def _r2(squared_error: Fraction, variation: Fraction) -> float:
    return float(1 - squared_error / (variation + EPSILON))


def _rms(squared_error: Fraction, count: int) -> float:
    return math.sqrt(squared_error / count)


def _variation(count: int, total: Fraction, squares: Fraction) -> Fraction:
    """Sum of (x - mean)^2 about the official mean, which is not quite the mean."""
    mean = total / (count + EPSILON)
    return squares - 2 * mean * total + count * mean**2


def _agl_variation(sums: ImageSums) -> Fraction:
    return _variation(sums.known, sums.g * _M, sums.gg * _M**2)


def _flow_per_metre(pose: Pose) -> tuple[Fraction, Fraction]:
    """Displacement (x, y) of one metre of height, pixels: scale * (sin, cos)."""
    return Fraction(pose.scale * math.sin(pose.angle)), Fraction(pose.scale * math.cos(pose.angle))


def _flow_squared_error(sums: ImageSums, true: Pose, predicted: Pose) -> Fraction:
    """Sum of |p * t - g * s|^2, pixels^2, with the flows per metre s (true) and t (predicted)."""
    (sx, sy), (tx, ty) = _flow_per_metre(true), _flow_per_metre(predicted)
    squares = (tx**2 + ty**2) * sums.pp + (sx**2 + sy**2) * sums.gg - 2 * (sx * tx + sy * ty) * sums.pg
    return squares * _M**2


def _magnitude_squared_error(sums: ImageSums, true: Pose, predicted: Pose) -> Fraction:
    """Sum of (p * t - g * s)^2, pixels^2, with the true scale s and the predicted one t."""
    s, t = Fraction(true.scale), Fraction(predicted.scale)
    return (t**2 * sums.pp + s**2 * sums.gg - 2 * s * t * sums.pg) * _M**2


class _TrueFlow:
    """The true flow of a city, pooled over the images that have a true pose."""

    def __init__(self, images: list[ImageResult]) -> None:
        self.images = [(image.sums, image.truth, image.prediction) for image in images if image.truth is not None]
        self.known = 0
        self.x, self.y, self.squares = Fraction(0), Fraction(0), Fraction(0)
        for sums, true, _ in self.images:
            sx, sy = _flow_per_metre(true)
            self.known += sums.known
            self.x += sx * sums.g * _M
            self.y += sy * sums.g * _M
            self.squares += (sx**2 + sy**2) * sums.gg * _M**2

    @property
    def variation(self) -> Fraction:
        """SST of the official script: both components as 2N numbers with one mean."""
        return _variation(2 * self.known, self.x + self.y, self.squares)

    @property
    def magnitude_variation(self) -> Fraction:
        """The same of its length, about a mean of its own."""
        total, squares = Fraction(0), Fraction(0)
        for sums, true, _ in self.images:
            scale = Fraction(true.scale)
            total += scale * sums.g * _M
            squares += scale**2 * sums.gg * _M**2
        return _variation(self.known, total, squares)
