"""Where the score is lost: what it would be if part of the prediction were right, from the sums and poses alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from agl_core.geometry import Pose
from agl_core.scoring.score import ImageResult, Score, score

AS_PREDICTED = "as predicted"


def _true_angle(result: ImageResult) -> ImageResult:
    return result if result.truth is None else _posed(result, result.prediction.scale, result.truth.angle)


def _true_scale(result: ImageResult) -> ImageResult:
    return result if result.truth is None else _posed(result, result.truth.scale, result.prediction.angle)


def _true_pose(result: ImageResult) -> ImageResult:
    return result if result.truth is None else replace(result, prediction=result.truth)


def _true_heights(result: ImageResult) -> ImageResult:
    return replace(result, sums=replace(result.sums, pp=result.sums.gg, pg=result.sums.gg))


def _posed(result: ImageResult, scale: float, angle: float) -> ImageResult:
    return replace(result, prediction=Pose(scale, angle))


CHANGES: dict[str, Callable[[ImageResult], ImageResult]] = {
    "true angle": _true_angle,
    "true scale": _true_scale,
    "true pose": _true_pose,
    "true heights": _true_heights,
}
"""What is made right, each by itself; an image without a true pose keeps its own."""


def what_if(results: Sequence[ImageResult]) -> dict[str, Score]:
    """The score `AS_PREDICTED` and after each of `CHANGES`, by name, in this order; raises as `score`."""
    changed = {name: score([change(result) for result in results]) for name, change in CHANGES.items()}
    return {AS_PREDICTED: score(results), **changed}
