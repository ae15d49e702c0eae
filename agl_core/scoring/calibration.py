"""What would correct a model's predictions, found on images whose truth is known, for use on others.

Two systematic errors of a city are found: heights that are too low or too high by a factor, and scales that are off
by a line. Scales are compared as scale * gsd, the cotangent of the elevation angle, which does not depend on how large
the pixels are.

A correction that few images ask for may be their chance. How much it would vary with other images is estimated by
leaving out one image after the other (the jackknife), and a correction is taken only as far as it exceeds that: of a
correction c with the variance V remains the share 1 - 2 V (n - 1) / ((n - 3) c^2), or nothing where that is negative:
the positive part of James and Stein's estimator, twice as careful, V being known only as well as n images tell it. A
factor takes at least 8 images, a line with its offset at least 16.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agl_core.errors import UserError
from agl_core.scoring.score import ImageResult

FORMAT = "geopose-calibration-1"
FACTORS = (0.1, 10.0)
"""Heights are multiplied with at least and at most this much."""
OFFSETS, SLOPES = (-10.0, 10.0), (0.0, 10.0)
"""Ends of the line a + b * (scale * gsd): a and b are at least and at most this much."""
IDENTITY = (0.0, 1.0)

_IMAGES_PER_NUMBER = 8
_SAME = 1e-12  # share of the squares that is nothing but rounding

Vector = NDArray[np.float64]


def calibrate(results: Sequence[ImageResult], gsds: Mapping[str, float]) -> dict[str, Any]:
    """The corrections of each city as they are written to a JSON file, whatever the order of the images.

    results: scored images; gsds: metres per pixel by image. For each of the `cities`: `height_factor`, what heights are
    to be multiplied with; `scale_line`, [a, b] of corrected scale * gsd = a + b * scale * gsd; and how many `images`,
    and `images_with_pose`, they were found from.

    Raises:
        UserError: no images, an image without gsd, or heights that would have to be multiplied with less than 0.1 or
            more than 10: then something else is wrong with them.
    """
    if not results:
        raise UserError("there is no image to find corrections from")
    ordered = sorted(results, key=lambda result: result.id)
    without = [result.id for result in ordered if result.truth is not None and result.id not in gsds]
    if without:
        more = f" and {len(without) - 5} more" if len(without) > 5 else ""
        raise UserError(
            f"the gsd of {', '.join(without[:5])}{more} is not known: give --metadata with id, city and gsd"
        )
    cities = {}
    for city in sorted({result.city for result in ordered}):
        images = [result for result in ordered if result.city == city]
        posed = [(result.prediction.scale, result.truth.scale, gsds[result.id]) for result in images if result.truth]
        cities[city] = {
            "height_factor": _height_factor(city, images),
            "scale_line": list(_scale_line(posed)),
            "images": len(images),
            "images_with_pose": len(posed),
        }
    return {"format": FORMAT, "cities": cities}


def _height_factor(city: str, images: Sequence[ImageResult]) -> float:
    """The factor f of the least squared error sum (f p - g)^2 = f^2 Spp - 2 f Spg + Sgg, which is Spg / Spp."""
    pp, pg = sum(image.sums.pp for image in images), sum(image.sums.pg for image in images)
    if not pp:
        return 1.0
    others = [
        (pg - image.sums.pg) / (pp - image.sums.pp) if pp > image.sums.pp else 1.0  # whole numbers: exact up to here
        for image in images
    ]
    factor = 1.0 + _share(pg / pp - 1.0, np.array(others), numbers=1) * (pg / pp - 1.0)
    lowest, highest = FACTORS
    if not lowest <= factor <= highest:
        raise UserError(
            f"heights of city {city} would have to be multiplied with {factor:.4g} to be right: check that predictions "
            "and truth are of the same images and in the same unit"
        )
    return factor


def _scale_line(posed: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """(a, b) of the line from (predicted scale, true scale, gsd) of images: the least squares' line as far as its
    offset is no chance, otherwise that through the origin as far as its slope is none."""
    table = np.array(posed, dtype=np.float64).reshape(-1, 3)
    x, y = table[:, 0] * table[:, 2], table[:, 1] * table[:, 2]
    terms = (np.ones(len(x)), x, y, x * x, x * y)
    sums = [math.fsum(each) for each in terms]
    of_others = [total - each for total, each in zip(sums, terms, strict=True)]
    slope = float(_slope(*sums[3:]))
    through_origin = (0.0, 1.0 + _share(slope - 1.0, _slope(*of_others[3:]), numbers=1) * (slope - 1.0))
    line = through_origin if _accepted(through_origin) else IDENTITY
    offset, slope = (float(number) for number in _line(*sums))
    share = _share(offset, _line(*of_others)[0], numbers=2)
    blended = (share * offset, share * slope + (1.0 - share) * line[1])
    return blended if share and _accepted(blended) else line


def _share(correction: float, of_others: Vector, numbers: int) -> float:
    """How much of a correction to take; of_others: (images,) it without each of them, a constant may be added."""
    count = len(of_others)
    if count < _IMAGES_PER_NUMBER * numbers or not correction:
        return 0.0
    middle = math.fsum(of_others) / count
    variance = (count - 1) / count * math.fsum((of_others - middle) ** 2)
    return max(0.0, 1.0 - 2.0 * variance * (count - 1) / (count - 3) / correction**2)


def _slope(xx: Vector | float, xy: Vector | float) -> Vector:
    """Slope of the least squares' line through the origin; 1 where nothing is known."""
    known = np.asarray(xx) > 0
    return np.where(known, np.asarray(xy) / np.where(known, xx, 1.0), 1.0)


def _line(
    count: Vector | float, x: Vector | float, y: Vector | float, xx: Vector | float, xy: Vector | float
) -> tuple[Vector, Vector]:
    """Offset and slope of the least squares' line from its sums; the mean of y where all x are the same."""
    middle_x, middle_y = np.asarray(x) / np.maximum(count, 1.0), np.asarray(y) / np.maximum(count, 1.0)
    varies = xx - x * middle_x
    known = np.asarray(varies) > _SAME * np.asarray(xx)
    slope = np.where(known, (xy - x * middle_y) / np.where(known, varies, 1.0), 0.0)
    return middle_y - slope * middle_x, slope


def _accepted(line: tuple[float, float]) -> bool:
    return OFFSETS[0] <= line[0] <= OFFSETS[1] and SLOPES[0] <= line[1] <= SLOPES[1]
