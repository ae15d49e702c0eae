"""A quick look at one image's heights and pose: its panels, arrows, scale bars and numbers, as one RGB array.

Drawn with the pieces of `pictures.sheet`. Nothing is prettied up: colours are linear in metres, an arrow ends where the
surface at its start stands, unless the line below says how much longer all of them are drawn.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agl_core.geometry import Pose
from agl_core.opencv import cv2
from agl_core.reporting.pictures.arrows import Sizes, arrow_words, flow_arrows, with_arrows
from agl_core.reporting.pictures.sheet import GREY, INK, WHITE, Image, colours, hatching, put_text, spread_colours

UNKNOWN_CM = 65535
"""As `agl_core.data.tiles.UNKNOWN`, which lies above this layer."""

_REFERENCE_SIDE = 1024  # the panel's side for which letters and lines have the sizes below
_MOST_ENLARGED = 4
_NARROWEST = 240  # of a panel with its bars and words below
_BACKDROP = (255, 255, 255)


def look(
    rgb: NDArray[np.uint8] | None,
    agl_cm: NDArray[np.uint16],
    pose: Pose,
    gsd: float | None,
    title: str,
    width: int = 1024,
    spread_cm: NDArray[np.uint16] | None = None,
    *,
    zoom: float = 1.0,
) -> Image:
    """Draw an image beside its heights.

    Args:
        rgb: (H, W, 3) the image; None if it is not there: then the heights carry the arrows.
        agl_cm: (H, W) heights, centimetres, 65535 where unknown.
        pose, gsd: of the image itself, pixels per metre, radians, and metres per pixel (None: not known).
        title: what it is called.
        width: most pixels of a panel's longer side; images that are much smaller are enlarged, up to fourfold.
        spread_cm: (H, W) the uncertainty of the heights, centimetres, for a panel of its own.
        zoom: how many pixels of these arrays one of the image's is: 0.1 for those of a large scene made ten times
            smaller.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    by = _magnification(agl_cm.shape, width)
    metres = brought_to(by, agl_cm)
    sizes = Sizes(min(1.5, max(0.62, max(metres.shape) / _REFERENCE_SIDE)))
    per_metre = pose.scale * zoom * by
    arrows, longer = flow_arrows(metres, per_metre, pose.angle, sizes)
    bar = None if gsd is None else zoom * by / gsd
    said = arrow_words(arrows, longer)
    heights = _heights_panel(metres, sizes)
    panels = []
    if rgb is not None:
        picture = with_arrows(_picture(rgb, metres.shape), arrows, sizes)
        panels.append(_with_foot(picture, _ground_foot(picture.shape[1], bar, said, sizes)))
        panels.append(_with_foot(*heights))
    else:
        picture, foot = heights
        ground = _ground_foot(picture.shape[1], bar, said, sizes)
        panels.append(_with_foot(with_arrows(picture, arrows, sizes), np.concatenate([foot, ground])))
    if spread_cm is not None:
        panels.append(_with_foot(*_spread_panel(brought_to(by, spread_cm), sizes)))
    body = _side_by_side(panels, sizes)
    size = [round(length / zoom) for length in agl_cm.shape]
    head = _head(title, numbers(pose, gsd, size), body.shape[1], sizes)
    margin = sizes.px(28)
    return np.pad(np.concatenate([head, body]), ((margin, margin), (margin, margin), (0, 0)), constant_values=255)


def numbers(pose: Pose, gsd: float | None, size: Sequence[int]) -> str:
    """The line of numbers below the title."""
    parts = [f"{size[1]} x {size[0]} px", f"scale {pose.scale:.4g} px/m"]
    parts.append(f"angle {pose.angle:.4f} rad ({math.degrees(pose.angle):.1f} deg)")
    if gsd is None:
        parts.append("gsd not known")
    else:
        parts.append(f"gsd {gsd:.4g} m/px")
        # scale = cot(elevation) / gsd
        parts.append(f"seen from {math.degrees(math.atan2(1.0, pose.scale * gsd)):.1f} deg above the horizon")
    return "   ".join(parts)


def nice(value: float) -> float:
    """The smallest of 1, 2, 3, 4, 5, 6 and 8 times a power of ten that is not below `value`."""
    power: float = 10.0 ** math.floor(math.log10(value))
    return next((times * power for times in (1, 2, 3, 4, 5, 6, 8) if times * power >= value * (1 - 1e-9)), 10 * power)


def _magnification(shape: tuple[int, ...], width: int) -> float:
    by = width / max(shape)
    return min(float(int(by)), _MOST_ENLARGED) if by >= 1 else by


def _target(shape: tuple[int, ...], by: float) -> tuple[int, int]:
    return max(1, round(shape[1] * by)), max(1, round(shape[0] * by))


def brought_to(by: float, centimetres: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Metres of the panel's pixels: means over what is known, NaN where most is not."""
    known = (centimetres != UNKNOWN_CM).astype(np.float32)
    values = np.where(centimetres == UNKNOWN_CM, np.float32(0), centimetres / np.float32(100)).astype(np.float32)
    size, method = _target(centimetres.shape, by), cv2.INTER_AREA if by < 1 else cv2.INTER_NEAREST
    share = np.asarray(cv2.resize(known, size, interpolation=method), np.float32)
    total = np.asarray(cv2.resize(values, size, interpolation=method), np.float32)
    return np.where(share >= 0.5, total / np.maximum(share, np.float32(1e-3)), np.float32(np.nan))


def _picture(rgb: NDArray[np.uint8], shape: tuple[int, ...]) -> Image:
    method = cv2.INTER_AREA if max(rgb.shape) > max(shape) else cv2.INTER_CUBIC
    return np.array(cv2.resize(np.ascontiguousarray(rgb), (shape[1], shape[0]), interpolation=method), np.uint8)


def _upper_end(metres: NDArray[np.float32], least: float) -> tuple[float, float]:
    """Metres at the upper end of the colours, and the highest there are: a few pixels may be brighter than the end."""
    values = metres[~np.isnan(metres)]
    if not len(values):
        return least, 0.0
    highest = float(values.max())
    return nice(max(least, float(np.quantile(values, 0.9985)))), highest


def _heights_panel(metres: NDArray[np.float32], sizes: Sizes) -> tuple[Image, Image]:
    """The heights in colours, and the bar that explains them."""
    most, highest = _upper_end(metres, 5.0)
    words = f"height above ground, highest {highest:.1f} m" + _beyond(most, highest)
    return _coloured(metres, most, colours), _bar_foot(metres, most, words, colours, sizes)


def _spread_panel(metres: NDArray[np.float32], sizes: Sizes) -> tuple[Image, Image]:
    """The uncertainty, in other colours than the heights'."""
    most, highest = _upper_end(metres, 0.5)
    words = f"uncertainty (standard deviation), highest {highest:.1f} m" + _beyond(most, highest)
    return _coloured(metres, most, spread_colours), _bar_foot(metres, most, words, spread_colours, sizes)


def _coloured(metres: NDArray[np.float32], most: float, palette: Any) -> Image:
    unknown = np.isnan(metres)
    picture: Image = palette(np.where(unknown, 0, metres), most)
    picture[unknown] = hatching(*metres.shape)[unknown]
    return picture


def _blank(height: int, width: int) -> Image:
    return np.full((height, width, 3), _BACKDROP, np.uint8)


def _beyond(most: float, highest: float) -> str:
    return f", brightest from {most:g} m on" if highest > most else ""


def _bar_foot(metres: NDArray[np.float32], most: float, words: str, palette: Any, sizes: Sizes) -> Image:
    """A bar of the colours with ticks in metres, and what hatching means where there is any."""
    foot = _blank(sizes.px(88), _foot_width(metres.shape[1], sizes))
    left, top, tall = 0, sizes.px(14), sizes.px(22)
    unknown = bool(np.isnan(metres).any())
    box = sizes.px(44) if unknown else 0
    wide = max(8, foot.shape[1] - (box + sizes.px(180) if unknown else sizes.px(64)))
    foot[top : top + tall, left : left + wide] = palette(
        np.broadcast_to(np.linspace(0, most, wide), (tall, wide)), most
    )
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = left + round(share * (wide - 1))
        foot[top + tall : top + tall + sizes.px(5), max(0, x - sizes.px(1)) : x + 1] = INK
        text = f"{most * share:g}" + (" m" if share == 1 else "")
        wanted = x if share == 0 else x - _length(f"{most * share:g}", 0.6 * sizes.unit, sizes.thick) // 2
        put_text(foot, text, (wanted, top + tall + sizes.px(24)), 0.6 * sizes.unit, INK, sizes.thick)
    if unknown:
        start = left + wide + sizes.px(36)
        foot[top : top + tall, start : start + box] = hatching(tall, min(box, foot.shape[1] - start))
        put_text(
            foot, "unknown", (start + box + sizes.px(8), top + tall - sizes.px(5)), 0.6 * sizes.unit, INK, sizes.thick
        )
    put_text(foot, words, (0, top + tall + sizes.px(48)), 0.6 * sizes.unit, GREY, sizes.thick)
    return foot


def _ground_foot(width: int, per_metre: float | None, words: str, sizes: Sizes) -> Image:
    """A bar of a distance on the ground, and what the arrows mean."""
    width = _foot_width(width, sizes)
    foot = _blank(sizes.px(88), width)
    top, tall = sizes.px(14), sizes.px(10)
    if per_metre is None:
        put_text(foot, "no scale bar: gsd not known", (0, top + sizes.px(16)), 0.6 * sizes.unit, GREY, sizes.thick)
    else:
        metres = _round_distance(0.3 * width / per_metre)
        wide = max(2, round(metres * per_metre))
        foot[top : top + tall, :wide] = INK
        inside = max(1, sizes.px(2))
        # Two halves, one light, as on maps.
        foot[top + inside : top + tall - inside, wide // 2 : wide - inside] = WHITE
        text = f"{metres:g} m on the ground" if metres < 10000 else f"{metres / 1000:g} km on the ground"
        put_text(foot, text, (wide + sizes.px(12), top + tall + sizes.px(3)), 0.6 * sizes.unit, INK, sizes.thick)
    put_text(foot, words, (0, top + sizes.px(22 + 48)), 0.6 * sizes.unit, GREY, sizes.thick)
    return foot


def _round_distance(metres: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is not above `metres`."""
    power: float = 10.0 ** math.floor(math.log10(metres))
    return next(times * power for times in (5, 2, 1) if times * power <= metres * (1 + 1e-9))


def _length(text: str, size: float, thickness: int) -> int:
    return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, thickness)[0][0])


def _foot_width(width: int, sizes: Sizes) -> int:
    """Of what lies below a picture: as wide as that, unless it is too narrow for words."""
    return max(width, sizes.px(_NARROWEST))


def _with_foot(picture: Image, foot: Image) -> Image:
    height, width = picture.shape[:2]
    return np.concatenate([np.concatenate([picture, _blank(height, foot.shape[1] - width)], axis=1), foot])


def _head(title: str, about: str, width: int, sizes: Sizes) -> Image:
    head = _blank(sizes.px(84), width)
    put_text(head, title, (0, sizes.px(28)), 1.0 * sizes.unit, INK, sizes.thick)
    put_text(head, about, (0, sizes.px(62)), 0.6 * sizes.unit, GREY, sizes.thick)
    return head


def _side_by_side(panels: Sequence[Image], sizes: Sizes) -> Image:
    """Next to each other, or below each other if they are much wider than high."""
    height, width = panels[0].shape[:2]
    axis = 0 if width > 1.6 * height else 1
    gap = sizes.px(26)
    parts: list[Image] = []
    for panel in panels:
        missing = max(one.shape[0] for one in panels) - panel.shape[0] if axis == 1 else 0
        parts += [np.concatenate([panel, _blank(missing, panel.shape[1])])]
        parts += [_blank(parts[-1].shape[0], gap) if axis == 1 else _blank(gap, panel.shape[1])]
    return np.concatenate(parts[:-1], axis=axis)
