"""Curves with no more points than can be seen."""

import math
from collections.abc import Sequence

Point = tuple[float, float]


def thinned(points: Sequence[Point], low: float, high: float, columns: int) -> list[Point]:
    """Of each of `columns` equal parts of [low, high]: the first, the lowest, the highest and the last point, in their
    order; what is drawn covers the same pixels as all of them. Points that are not finite are left out, as is a point
    that is the same as the one before it."""
    kept: list[Point] = []
    part: list[Point] = []
    current: int | None = None
    by = columns / (high - low) if high > low else 0.0
    for point in points:
        if not (math.isfinite(point[0]) and math.isfinite(point[1])):
            continue
        column = int((point[0] - low) * by)
        if column != current:
            kept += _outline(part)
            part, current = [], column
        part.append(point)
    return kept + _outline(part)


def band(points: Sequence[Point], low: float, high: float, columns: int) -> list[tuple[float, float, float, float]]:
    """Of each of `columns` equal parts of [low, high] in which there are points: where they are, in the mean, and their
    lowest, mean and highest value."""
    parts: dict[int, list[Point]] = {}
    by = columns / (high - low) if high > low else 0.0
    for point in points:
        if math.isfinite(point[0]) and math.isfinite(point[1]):
            parts.setdefault(int((point[0] - low) * by), []).append(point)
    return [
        (
            math.fsum(x for x, _ in part) / len(part),
            min(y for _, y in part),
            math.fsum(y for _, y in part) / len(part),
            max(y for _, y in part),
        )
        for _, part in sorted(parts.items())
    ]


def _outline(part: Sequence[Point]) -> list[Point]:
    if len(part) <= 4:
        return list(part)
    places = {0, len(part) - 1}
    places.add(min(range(len(part)), key=lambda n: part[n][1]))
    places.add(max(range(len(part)), key=lambda n: part[n][1]))
    return [part[n] for n in sorted(places)]
