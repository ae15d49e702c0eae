"""The figure of a study: learning curves, and the scores on unseen places, as an SVG that needs no library."""

import math
import statistics
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.study import Study

COLOURS = ("#000000", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9")
"""Of Okabe and Ito, which people who see colours differently can tell apart."""

WIDTH, HEIGHT = 920, 440
TOP, BOTTOM = 70, 390
CURVES = (60, 590)
SCORES = (660, 900)


class Axis:
    """Values from `low` to `high` between two places in the figure, pixels."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def score_axis(values: Sequence[float], step: float) -> Axis:
    """An axis over the values that are no less than 0, in whole steps."""
    shown = [max(value, 0.0) for value in values]
    low, high = math.floor(min(shown) / step) * step, math.ceil(max(shown) / step) * step
    return Axis(low, max(high, low + step), BOTTOM, TOP)


def figure(study: Study, results: Sequence[dict[str, Any]]) -> str:
    """The figure as the text of an SVG.

    Left: the score of the held-out places by step, thin lines for seeds, a thick one for their mean. Right: the score
    on unseen places after each stage, a dot for each seed, a bar for their mean.
    """
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<clipPath id="inside"><rect x="{CURVES[0]}" y="{TOP}" width="{CURVES[1] - CURVES[0]}" '
        f'height="{BOTTOM - TOP}"/></clipPath>',
        *_legend(study),
        *_curves(study, results),
        *_scores(study, results),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, more: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {more}/>'


def _legend(study: Study) -> list[str]:
    parts, x = [], float(CURVES[0])
    for arm, colour in zip(study.arms, COLOURS, strict=False):
        parts += [_line(x, 18, x + 24, 18, f'stroke="{colour}" stroke-width="3"'), _text(x + 30, 22, arm.title)]
        x += 60 + 7.2 * len(arm.title)
    return parts


def _grid(axis: Axis, span: tuple[float, float], step: float) -> list[str]:
    parts = []
    for number in range(round((axis.high - axis.low) / step) + 1):
        value = axis.low + number * step
        parts.append(_line(span[0], axis(value), span[1], axis(value), 'stroke="#dddddd"'))
        parts.append(_text(span[0] - 6, axis(value) + 4, f"{value:.2f}", 'text-anchor="end"'))
    return parts


def points(result: dict[str, Any]) -> list[tuple[int, float]]:
    """(step, score) of all validations of a run, steps counted over its stages."""
    found, before = [], 0
    for stage, length in result["stages"].items():
        found += [(before + int(step), float(score)) for step, score in result["curve"][stage]]
        before += length
    return found


def _curves(study: Study, results: Sequence[dict[str, Any]]) -> list[str]:
    stages = results[0]["stages"]
    y = score_axis([score for result in results for _, score in points(result)], 0.1)
    x = Axis(0, sum(stages.values()), *CURVES)
    parts = [_text(CURVES[0], 50, "score on held-out places, while training", 'font-weight="bold"')]
    parts += _grid(y, CURVES, 0.1)
    before = 0
    for name, length in stages.items():
        middle = (x(before) + x(before + length)) / 2
        parts.append(_text(middle, BOTTOM + 36, f"{name}, {length} steps", 'text-anchor="middle"'))
        parts.append(_text(x(before), BOTTOM + 18, str(before), 'text-anchor="middle"'))
        if before:
            parts.append(_line(x(before), TOP, x(before), BOTTOM, 'stroke="#888888" stroke-dasharray="5 4"'))
        before += length
    parts.append(_text(x(before), BOTTOM + 18, str(before), 'text-anchor="middle"'))
    for arm, colour in zip(study.arms, COLOURS, strict=False):
        runs = [points(result) for result in results if result["arm"] == arm.name]
        mean = [(together[0][0], statistics.fmean(score for _, score in together)) for together in zip(*runs)]  # noqa: B905
        for run, width, opacity in [*((run, 1, 0.45) for run in runs), (mean, 3, 1.0)]:
            places = " ".join(f"{x(step):.1f},{y(score):.1f}" for step, score in run)
            parts.append(
                f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="{width}" '
                f'stroke-opacity="{opacity}" stroke-linejoin="round" clip-path="url(#inside)"/>'
            )
    return parts


def _scores(study: Study, results: Sequence[dict[str, Any]]) -> list[str]:
    groups = [(stage, weights) for stage in results[0]["stages"] for weights in study.weights]
    values = [result["figures"][stage][weights]["score"] for result in results for stage, weights in groups]
    step = 0.05 if max(values) - max(min(values), 0.0) > 0.1 else 0.02
    y = score_axis(values, step)
    parts = [_text(SCORES[0], 50, "score on unseen places", 'font-weight="bold"'), *_grid(y, SCORES, step)]
    width = (SCORES[1] - SCORES[0]) / len(groups)
    for place, (stage, weights) in enumerate(groups):
        left = SCORES[0] + place * width
        label = f"after {stage}" if len(study.weights) == 1 else weights
        parts.append(_text(left + width / 2, BOTTOM + 18, label, 'text-anchor="middle"'))
        for number, (arm, colour) in enumerate(zip(study.arms, COLOURS, strict=False)):
            middle = left + width * (number + 1) / (len(study.arms) + 1)
            found = [r["figures"][stage][weights]["score"] for r in results if r["arm"] == arm.name]
            if not found:
                continue
            at = y(max(statistics.fmean(found), y.low))
            parts.append(_line(middle - 10, at, middle + 10, at, f'stroke="{colour}" stroke-width="3"'))
            for score in found:
                dot = f'<circle cx="{middle:.1f}" cy="{y(max(score, y.low)):.1f}" r="4"'
                parts.append(f'{dot} fill="{colour}" fill-opacity="0.45"/>')
    return parts
