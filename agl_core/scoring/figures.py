"""Errors in metres and pixels, of one image, of a city, or of all images together."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from operator import add
from typing import Any

from agl_core.scoring.errors import ErrorSums, ImageErrors, height_edges
from agl_core.scoring.score import ImageResult

Values = dict[str, Any]


@dataclass(frozen=True)
class Figures:
    """Errors of some images, exact but for the last rounding. above: the height, metres, of `above_ground`."""

    above: float
    heights: ErrorSums
    above_ground: ErrorSums
    by_height: dict[tuple[float, float | None], ErrorSums]
    """From and to which true height, metres; the last has no end."""
    end_point_error: float | None
    """Mean length of the difference of true and predicted flow, pixels; None without a true pose, as what follows."""
    end_point_rms: float | None
    """Root of its mean square, pixels."""
    angle_error: float | None
    """Median over the images, degrees."""
    scale_error: float | None
    """Median absolute error over the images, pixels per metre."""

    def as_json(self) -> Values:
        """Plain dicts and numbers; a figure of no pixels is None."""
        bins = [{"from": low, "to": high, **_values(sums)} for (low, high), sums in self.by_height.items()]
        return {
            "bias": self.heights.bias,
            "mae": self.heights.mae,
            "rmse": self.heights.rmse,
            "angle_error": self.angle_error,
            "scale_error": self.scale_error,
            "end_point_error": self.end_point_error,
            "end_point_rms": self.end_point_rms,
            "above": {"from": self.above, **_values(self.above_ground)},
            "by_height": bins,
        }


def figures(results: Sequence[ImageResult], above: float) -> Figures:
    """The errors of all `results` together; those must have been measured with the edges of `height_edges(above)`."""
    pooled = reduce(add, (_errors(result) for result in results))
    edges = height_edges(0)
    ends = [*edges[1:], None]
    by_height = {
        (low / 100, None if high is None else high / 100): pooled.within(low, high)
        for low, high in zip(edges, ends, strict=True)
    }
    squares = [square for result in results if (square := result.flow_squared_error) is not None]
    rms = math.sqrt(sum(squares, Fraction(0)) / pooled.flow_pixels) if pooled.flow_pixels else None
    angles = [result.angle_error for result in results if result.angle_error is not None]
    scales = [result.scale_error for result in results if result.scale_error is not None]
    return Figures(
        above=above,
        heights=pooled.within(0),
        above_ground=pooled.within(round(100 * above)),
        by_height=by_height,
        end_point_error=pooled.end_point_error,
        end_point_rms=rms,
        angle_error=math.degrees(statistics.median(angles)) if angles else None,
        scale_error=statistics.median(scales) if scales else None,
    )


def _errors(result: ImageResult) -> ImageErrors:
    assert result.errors is not None, f"the errors of {result.id} have not been measured"
    return result.errors


def _values(sums: ErrorSums) -> Values:
    return {"pixels": sums.pixels, "bias": sums.bias, "mae": sums.mae, "rmse": sums.rmse}
