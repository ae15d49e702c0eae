"""The official score as one writes it down in numpy, to be measured against: two passes, float32, one thread.

A first pass over a city's truth finds the two means, a second over truth and predictions the errors. No city of the
challenge fits into memory, so each pass asks for the heights anew.

- `straightforward`: heights as the reference holds them, float32 metres with NaN where nothing is known, flows as
  (H, W, 2), and numpy's functions that pass over NaN.
- `careful`: the same numbers from the known pixels alone, picked out once, x and y of the flow one after the other.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agl_core.data.tiles import UNKNOWN
from agl_core.geometry import Pose
from agl_core.scoring.errors import HEIGHT_EDGES
from benchmarks.reference_way import metres

Floats = NDArray[np.float32]
EPSILON = 1e-4


class Pair(NamedTuple):
    """An image: its city, what gives true and predicted heights (H, W) uint16, and its poses, true and predicted."""

    city: str
    truth: Callable[[], NDArray[np.uint16]]
    predicted: Callable[[], NDArray[np.uint16]]
    true: Pose
    pose: Pose


CityScore = Callable[[Sequence[Pair], bool], float]


def official_score(city_score: CityScore, pairs: Sequence[Pair], errors: bool = False) -> float:
    """The mean over the cities; `errors`: find the other figures too, which nobody looks at."""
    cities = sorted({pair.city for pair in pairs})
    return sum(city_score([pair for pair in pairs if pair.city == city], errors) for city in cities) / len(cities)


def flow(heights: Floats, pose: Pose) -> Floats:
    """(H, W, 2) displacement in (x, y), pixels."""
    x, y = np.float32(pose.scale * np.sin(pose.angle)), np.float32(pose.scale * np.cos(pose.angle))
    return np.stack((heights * x, heights * y), -1)


def straightforward(pairs: Sequence[Pair], errors: bool) -> float:
    """The score of one city."""
    count, total, flow_total = 0, 0.0, 0.0
    for pair in pairs:
        truth = metres(pair.truth())
        count += int(np.isfinite(truth).sum())
        total += float(np.nansum(truth))
        flow_total += float(np.nansum(flow(truth, pair.true)))
    mean, flow_mean = np.float32(total / (count + EPSILON)), np.float32(flow_total / (2 * count + EPSILON))
    sse, sst, flow_sse, flow_sst = 0.0, 0.0, 0.0, 0.0
    for pair in pairs:
        truth, predicted = metres(pair.truth()), metres(pair.predicted())
        true_flow, predicted_flow = flow(truth, pair.true), flow(predicted, pair.pose)
        sse += float(np.nansum((predicted - truth) ** 2))
        sst += float(np.nansum((truth - mean) ** 2))
        flow_sse += float(np.nansum((predicted_flow - true_flow) ** 2))
        flow_sst += float(np.nansum((true_flow - flow_mean) ** 2))
        if errors:
            other_errors(truth, predicted - truth, np.linalg.norm(predicted_flow - true_flow, axis=-1))
    return ((1 - sse / (sst + EPSILON)) + (1 - flow_sse / (flow_sst + EPSILON))) / 2


def careful(pairs: Sequence[Pair], errors: bool) -> float:
    """The same, as far as float32 goes."""
    count, total, flow_total = 0, 0.0, 0.0
    for pair in pairs:
        heights = pair.truth()
        g = _known(heights, heights != UNKNOWN)
        count, total = count + g.size, total + float(g.sum())
        flow_total += sum(float((g * part).sum()) for part in _per_metre(pair.true))
    mean, flow_mean = np.float32(total / (count + EPSILON)), np.float32(flow_total / (2 * count + EPSILON))
    sse, sst, flow_sse, flow_sst = 0.0, 0.0, 0.0, 0.0
    for pair in pairs:
        heights = pair.truth()
        known = heights != UNKNOWN
        g, p = _known(heights, known), _known(pair.predicted(), known)
        sse += float(((p - g) ** 2).sum())
        sst += float(((g - mean) ** 2).sum())
        flow_errors = []
        for s, t in zip(_per_metre(pair.true), _per_metre(pair.pose), strict=True):
            true = g * s
            flow_errors.append(p * t - true)
            flow_sse += float((flow_errors[-1] ** 2).sum())
            flow_sst += float(((true - flow_mean) ** 2).sum())
        if errors:
            other_errors(g, p - g, np.hypot(*flow_errors))
    return ((1 - sse / (sst + EPSILON)) + (1 - flow_sse / (flow_sst + EPSILON))) / 2


def _known(heights: NDArray[np.uint16], known: NDArray[np.bool_]) -> Floats:
    return heights[known].astype(np.float32) / np.float32(100)


def _per_metre(pose: Pose) -> tuple[Any, Any]:
    return np.float32(pose.scale * np.sin(pose.angle)), np.float32(pose.scale * np.cos(pose.angle))


def other_errors(truth: Floats, error: Floats, end_point: Floats) -> tuple[float, list[tuple[float, ...]]]:
    """Sum of the end-point errors; and for each bin of true height count, sum of error, of |error| and of error^2."""
    bins: list[tuple[float, ...]] = []
    for low, high in zip(HEIGHT_EDGES, (*HEIGHT_EDGES[1:], np.inf), strict=True):
        part = error[(truth >= low) & (truth < high)]
        bins.append((part.size, float(part.sum()), float(np.abs(part).sum()), float((part**2).sum())))
    return float(np.nansum(end_point)), bins
