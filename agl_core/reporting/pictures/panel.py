"""One picture of a tile: image, true heights, predicted heights and error side by side.

Heights are drawn in cividis, errors from blue (too low) over white to orange (too high): a colour-blind person can
tell them apart, and so does a printer without colours tell the heights. Colours are linear in metres. Arrows lead from
the tops of what is high to where it stands: white by the true pose and heights, orange by the predicted ones.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agl_core.geometry import angle_difference, direction
from agl_core.opencv import cv2
from agl_core.reporting.pictures.arrows import Arrow, Sizes, flow_arrows
from agl_core.reporting.pictures.look import UNKNOWN_CM, brought_to, nice
from agl_core.reporting.pictures.sheet import GREY, INK, WHITE, Image, hatching, put_text
from agl_core.reporting.pictures.tile import Tile

PREDICTED = (255, 150, 30)
"""The colour of the predicted arrows."""

ERROR_STOPS = (
    (8, 64, 129), (67, 147, 195), (178, 213, 232), (255, 255, 255), (253, 209, 150), (239, 138, 40), (150, 70, 0)
)  # fmt: skip
"""Colours of the errors, from the most that is too low to the most that is too high, at equal distances."""

_LEAST_CM = 500  # a scale that shows less than this would show the noise of flat ground
_BELOW = 0.9985  # share of the pixels that lie below the end of the colours
_REFERENCE = 640  # side of a picture at which letters have the sizes below
_LETTERS = 0.5
_WIDE, _NARROW = 6.0, 2.5  # of true and of predicted arrows


def highest(tiles: Sequence[Tile]) -> int:
    """Centimetres at the upper end of colours that suit all of `tiles`: a round height that hardly a pixel exceeds."""
    ends: list[float] = [_LEAST_CM]
    for tile in tiles:
        for heights in (tile.truth_cm, tile.predicted_cm):
            known = heights[heights != UNKNOWN_CM]
            if len(known):
                ends.append(float(np.quantile(known, _BELOW)))
    return round(100 * nice(max(ends) / 100))


def widest_error(highest_cm: int) -> float:
    """Metres at both ends of the errors' colours that go with the heights' `highest_cm`."""
    return nice(highest_cm / 100 / 5)


def height_colours(metres: NDArray[Any], most: float) -> Image:
    """(H, W, 3): dark blue for 0, yellow for `most` metres and above (cividis)."""
    levels = np.rint(np.clip(metres / most, 0, 1) * 255).astype(np.uint8)
    mapped = cv2.applyColorMap(levels, cv2.COLORMAP_CIVIDIS)
    return np.ascontiguousarray(np.asarray(mapped, np.uint8)[..., ::-1])


def error_colours(metres: NDArray[Any], most: float) -> Image:
    """(H, W, 3): blue for -`most` metres and below, white for 0, orange for `most` and above."""
    stops = np.array(ERROR_STOPS, np.float64)
    places = np.clip(metres / most, -1, 1)
    at = np.linspace(-1, 1, len(stops))
    mixed = np.stack([np.interp(places, at, stops[:, channel]) for channel in range(3)], axis=-1)
    return np.rint(mixed).astype(np.uint8)


def panel(tile: Tile, width: int, highest_cm: int | None = None, words: bool = True) -> Image:
    """Draw a tile.

    Args:
        tile: with or without its image.
        width: of the whole panel, pixels.
        highest_cm: centimetres at the upper end of the heights' colours; default: what suits this tile alone.
        words: also draw title, numbers and the bars that explain the colours.

    Returns:
        (h, w, 3) uint8 RGB, w at most `width`.
    """
    end = highest_cm or highest([tile])
    most, error = end / 100, widest_error(end)
    columns = 3 if tile.rgb is None else 4
    gap = max(2, round(width / 160))
    by = max(1.0, (width - (columns - 1) * gap) // columns) / tile.truth_cm.shape[1]
    truth, predicted = brought_to(by, tile.truth_cm), brought_to(by, tile.predicted_cm)
    unit = min(1.2, max(0.6, truth.shape[1] / _REFERENCE))
    sizes = Sizes(1.6 * unit)  # arrows that are long enough for two to be told apart
    arrows, longer = _arrows(tile, truth, predicted, by, sizes)
    pictures = [
        _heights(truth, most),
        _heights(predicted, most),
        _unknown_hatched(error_colours(np.nan_to_num(predicted - truth), error), predicted - truth),
    ]
    if tile.rgb is not None:
        pictures.insert(0, _drawn(_picture(tile.rgb, truth.shape), arrows, unit))
    else:
        pictures[0] = _drawn(pictures[0], arrows, unit)
    if words:
        unknown = bool(np.isnan(truth).any())
        feet = [
            _bar("true height", 0.0, most, height_colours, truth.shape[1], unit, unknown),
            _bar("predicted height", 0.0, most, height_colours, truth.shape[1], unit),
            _bar("predicted - true height", -error, error, error_colours, truth.shape[1], unit),
        ]
        if tile.rgb is not None:
            feet.insert(0, _arrow_key(arrows, longer, truth.shape[1], unit))
        pictures = [np.concatenate(pair) for pair in zip(pictures, feet, strict=True)]
    row = _joined(pictures, gap)
    return np.concatenate([_head(tile, row.shape[1], unit), row]) if words else row


def _picture(rgb: NDArray[np.uint8], shape: tuple[int, ...]) -> Image:
    method = cv2.INTER_AREA if rgb.shape[0] > shape[0] else cv2.INTER_CUBIC
    return np.array(cv2.resize(np.ascontiguousarray(rgb), (shape[1], shape[0]), interpolation=method), np.uint8)


def _heights(metres: NDArray[np.float32], most: float) -> Image:
    return _unknown_hatched(height_colours(np.nan_to_num(metres), most), metres)


def _unknown_hatched(picture: Image, metres: NDArray[np.float32]) -> Image:
    unknown = np.isnan(metres)
    picture[unknown] = hatching(*metres.shape)[unknown]
    return picture


def _arrows(
    tile: Tile, truth: NDArray[np.float32], predicted: NDArray[np.float32], by: float, sizes: Sizes
) -> tuple[list[tuple[Arrow | None, Arrow]], int]:
    """Pairs of true and predicted arrow from the same surfaces, and how many times as long as they are; the surfaces
    are the highest of the truth, or of the prediction where nobody knows the true pose or nothing leans."""
    per_metre = tile.prediction.scale * tile.zoom * by
    if tile.truth is not None:
        found, longer = flow_arrows(truth, tile.truth.scale * tile.zoom * by, tile.truth.angle, sizes)
        if found:
            dx, dy = (float(part) for part in direction(tile.prediction.angle))
            pairs: list[tuple[Arrow | None, Arrow]] = []
            for arrow in found:
                height = predicted[int(arrow.y), int(arrow.x)]
                length = per_metre * longer * (0.0 if math.isnan(height) else float(height))
                pairs.append((arrow, Arrow(arrow.x, arrow.y, dx * length, dy * length)))
            return pairs, longer
    found, longer = flow_arrows(predicted, per_metre, tile.prediction.angle, sizes)
    return [(None, arrow) for arrow in found], longer


def _drawn(picture: Image, pairs: Sequence[tuple[Arrow | None, Arrow]], unit: float) -> Image:
    """True arrows below, wider, so that both are seen where they are the same."""
    wide, narrow = _px(_WIDE, unit), _px(_NARROW, unit)
    true = [arrow for arrow, _ in pairs if arrow is not None]
    predicted = [arrow for _, arrow in pairs]
    for arrows, colour, thickness in (
        (true, INK, wide + 2), (true, WHITE, wide), (predicted, INK, narrow + 2), (predicted, PREDICTED, narrow)
    ):  # fmt: skip
        for arrow in arrows:
            _draw(picture, arrow, colour, thickness, unit)
    return picture


def _draw(picture: Image, arrow: Arrow, colour: tuple[int, int, int], thickness: int, unit: float) -> None:
    shift = 4

    def place(x: float, y: float) -> tuple[int, int]:
        return round(x * 2**shift), round(y * 2**shift)

    start = place(arrow.x, arrow.y)
    length = math.hypot(arrow.dx, arrow.dy)
    if length >= 1:
        end = place(arrow.x + arrow.dx, arrow.y + arrow.dy)
        tip = min(0.45, _px(13, unit) / length)
        cv2.arrowedLine(picture, start, end, colour, thickness, cv2.LINE_AA, shift, tip)
    cv2.circle(picture, start, (thickness + _px(2, unit)) << (shift - 1), colour, cv2.FILLED, cv2.LINE_AA, shift)


def _blank(height: int, width: int) -> Image:
    return np.full((height, width, 3), 255, np.uint8)


def _px(pixels: float, unit: float) -> int:
    return max(1, round(pixels * unit))


def _bar(name: str, low: float, high: float, palette: Any, width: int, unit: float, unknown: bool = False) -> Image:
    """What a picture shows, and a bar of its colours with metres."""
    foot = _blank(_px(74, unit), width)
    top, tall = _px(34, unit), _px(14, unit)
    put_text(foot, name, (0, _px(24, unit)), _LETTERS * unit * 1.1, INK)
    box = _px(96, unit) if unknown else 0
    wide = max(8, width - box - (_px(12, unit) if unknown else 0))
    values = np.broadcast_to(np.linspace(low, high, wide), (tall, wide))
    foot[top : top + tall, :wide] = palette(values, max(abs(low), abs(high)))
    baseline = top + tall + _px(18, unit)
    for share in (0.0, 0.5, 1.0):
        number = low + share * (high - low)
        text = (f"{number:+g}" if low < 0 and number else f"{number:g}") + (" m" if share == 1 else "")
        length = _length(text, unit)
        put_text(foot, text, (round(share * (wide - length)), baseline), _LETTERS * unit, GREY)
    if unknown:
        left = width - box
        foot[top : top + tall, left:] = hatching(tall, box)
        put_text(foot, "unknown", (left, baseline), _LETTERS * unit, GREY)
    return foot


def _length(text: str, unit: float) -> int:
    return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, _LETTERS * unit, 1)[0][0])


def _arrow_key(pairs: Sequence[tuple[Arrow | None, Arrow]], longer: int, width: int, unit: float) -> Image:
    """What the arrows mean."""
    foot = _blank(_px(74, unit), width)
    line = _px(24, unit)
    put_text(foot, "image", (0, line), _LETTERS * unit * 1.1, INK)
    if not pairs:
        put_text(foot, "no arrows: all stands where it is seen", (0, _px(48, unit)), _LETTERS * unit, GREY)
        return foot
    left, middle = 0, _px(43, unit)
    both = any(arrow is not None for arrow, _ in pairs)
    keys = [("true flow", WHITE, _WIDE)] * both + [("predicted flow", PREDICTED, _NARROW)]
    for text, colour, thickness in keys:
        thick, end = _px(thickness, unit), left + _px(34, unit)
        for shade, more in ((INK, 2), (colour, 0)):
            cv2.line(foot, (left + 4, middle), (end, middle), shade, thick + more, cv2.LINE_AA)
        left = end + _px(10, unit)
        put_text(foot, text, (left, middle + _px(5, unit)), _LETTERS * unit, GREY)
        left += _length(text, unit) + _px(18, unit)
    told = "from a top to where it stands" + ("" if longer == 1 else f", {longer} x as long")
    put_text(foot, told, (0, _px(66, unit)), _LETTERS * unit, GREY)
    return foot


def _head(tile: Tile, width: int, unit: float) -> Image:
    """The tile's name, and its poses in numbers."""
    head = _blank(_px(36, unit), width)
    size = _LETTERS * unit * 1.3
    name = f"{tile.id}   ({tile.city})"
    put_text(head, name, (0, _px(22, unit)), size, INK)
    left = int(cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, size, 1)[0][0]) + _px(30, unit)
    put_text(head, pose_words(tile), (min(left, width // 2), _px(22, unit)), _LETTERS * unit, GREY)
    return head


def pose_words(tile: Tile) -> str:
    """Scale and angle, true and predicted, in one line."""
    scale, angle = tile.prediction.scale, math.degrees(tile.prediction.angle)
    if tile.truth is None:
        return f"predicted scale {scale:.3f} px/m, angle {angle:.1f} deg; no true ones"
    off = math.degrees(angle_difference(tile.prediction.angle, tile.truth.angle))
    return (
        f"scale {tile.truth.scale:.3f} true, {scale:.3f} predicted px/m;   "
        f"angle {math.degrees(tile.truth.angle):.1f} true, {angle:.1f} predicted deg, {off:.1f} apart"
    )


def _joined(pictures: Sequence[Image], gap: int) -> Image:
    parts: list[Image] = []
    for picture in pictures:
        parts += [picture, _blank(picture.shape[0], gap)]
    return np.concatenate(parts[:-1], axis=1)
