"""A contact sheet: pictures in rows with captions, sections and a legend, as one RGB array.

Drawn with OpenCV, as the few lines and letters that it takes need no plotting library. All pictures are brought to one
size; arrows are given in pixels of the picture before that.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agl_core.opencv import cv2

Image = NDArray[np.uint8]
Point = tuple[float, float]

WHITE, INK, GREY = (255, 255, 255), (25, 25, 25), (105, 105, 105)
RING, RING_RADIUS = (255, 90, 40), 7
HATCH_LIGHT, HATCH_DARK = (235, 235, 235), (150, 150, 150)
SIDE = 384
GAP, WIDE_GAP, MARGIN = 6, 22, 28
LINE, TITLE_LINE = 18, 34
LEGEND_WIDTH, LEGEND_HEIGHT = 300, 16
_FONT, _SHIFT = cv2.FONT_HERSHEY_SIMPLEX, 4


@dataclass(frozen=True)
class Arrow:
    """start to end: where a surface stands by its labels; mark: where its foot really is. (x, y) in pixels."""

    start: Point
    end: Point
    mark: Point


@dataclass(frozen=True)
class Panel:
    """Pictures side by side, and the lines of text below; the first line is the title."""

    pictures: Sequence[Image]
    lines: Sequence[str]


@dataclass(frozen=True)
class Section:
    """A heading and panels, so many in a row."""

    title: str
    panels: Sequence[Panel] = field(default_factory=list)
    columns: int = 3


def _magnification(picture: NDArray[Any]) -> float:
    return SIDE / float(max(picture.shape[:2]))


def _resized(picture: Image, smooth: bool) -> Image:
    """The longer side becomes `SIDE` pixels."""
    by = _magnification(picture)
    height, width = (max(1, round(length * by)) for length in picture.shape[:2])
    smoothly = cv2.INTER_LINEAR if by >= 1 else cv2.INTER_AREA
    method = smoothly if smooth else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(picture, (width, height), interpolation=method), np.uint8)


def image_picture(rgb: Image, arrows: Sequence[Arrow] = ()) -> Image:
    """An image, (H, W, 3) uint8, with arrows."""
    return _with_arrows(_resized(rgb, smooth=True), arrows, _magnification(rgb))


def heights_picture(metres: NDArray[Any], most: float, arrows: Sequence[Arrow] = ()) -> Image:
    """Heights (H, W), NaN where unknown, in colours from 0 to `most` metres with arrows; unknown pixels are hatched."""
    unknown = np.isnan(metres)
    picture = _resized(colours(np.where(unknown, 0, metres), most), smooth=False)
    holes = _resized(unknown.astype(np.uint8), smooth=False).astype(bool)
    picture[holes] = hatching(*holes.shape)[holes]
    return _with_arrows(picture, arrows, _magnification(metres))


def colours(metres: NDArray[Any], most: float) -> Image:
    """(H, W, 3): dark blue for 0, yellow for `most` and above (viridis: its brightness rises, for the colour-blind)."""
    levels = np.rint(np.clip(metres / most, 0, 1) * 255).astype(np.uint8)
    mapped = cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)
    return np.ascontiguousarray(np.asarray(mapped, np.uint8)[..., ::-1])


def spread_colours(metres: NDArray[Any], most: float) -> Image:
    """(H, W, 3): black for 0, pale yellow for `most` and above (inferno: its brightness rises too)."""
    levels = np.rint(np.clip(metres / most, 0, 1) * 255).astype(np.uint8)
    mapped = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)
    return np.ascontiguousarray(np.asarray(mapped, np.uint8)[..., ::-1])


def hatching(height: int, width: int) -> Image:
    """(H, W, 3) diagonal lines, which no colour of a height looks like."""
    lines = (np.arange(height)[:, None] + np.arange(width)) % 8 < 2
    return np.where(lines[..., None], np.array(HATCH_DARK, np.uint8), np.array(HATCH_LIGHT, np.uint8))


def _with_arrows(picture: Image, arrows: Sequence[Arrow], by: float) -> Image:
    def place(point: Point) -> tuple[int, int]:  # the middle of a pixel, in 1/16 of a pixel of the sheet
        x, y = (round(((value + 0.5) * by - 0.5) * 2**_SHIFT) for value in point)
        return x, y

    for arrow in arrows:
        for colour, thickness in ((INK, 4), (RING, 2)):
            cv2.circle(picture, place(arrow.mark), RING_RADIUS << _SHIFT, colour, thickness, cv2.LINE_AA, _SHIFT)
    for colour, thickness in ((INK, 3), (WHITE, 1)):
        for arrow in arrows:
            start, end = place(arrow.start), place(arrow.end)
            tip = min(0.4, (6 << _SHIFT) / max(1.0, math.dist(start, end)))
            cv2.arrowedLine(picture, start, end, colour, thickness, cv2.LINE_AA, _SHIFT, tip)
            cv2.circle(picture, start, (thickness + 1 << _SHIFT) // 2, colour, cv2.FILLED, cv2.LINE_AA, _SHIFT)
    return picture


def contact_sheet(title: str, about: str, most: float, sections: Sequence[Section]) -> Image:
    """The whole sheet, (H, W, 3) uint8.

    Args:
        title, about: the lines at its top.
        most: metres at the upper end of the colours of heights.
        sections: what it shows; all pictures of a panel have the same height.
    """
    rows = [row for section in sections for row in _rows(section)]
    width = max([row.shape[1] for row in rows] + [3 * LEGEND_WIDTH])
    parts = [_header(title, about, width), _legend(most, width), *(_widened(row, width) for row in rows)]
    sheet = np.concatenate(parts)
    return np.pad(sheet, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), constant_values=255)


def _blank(height: int, width: int) -> Image:
    return np.full((height, width, 3), 255, np.uint8)


def _widened(picture: Image, width: int) -> Image:
    return np.concatenate([picture, _blank(picture.shape[0], width - picture.shape[1])], axis=1)


def _rows(section: Section) -> list[Image]:
    heading = _blank(TITLE_LINE + 12, 20 * len(section.title))
    put_text(heading, section.title, (0, TITLE_LINE - 4), 0.7)
    rows: list[Image] = [heading]
    for first in range(0, len(section.panels), section.columns):
        drawn = [_panel(panel) for panel in section.panels[first : first + section.columns]]
        tallest = max(panel.shape[0] for panel in drawn)
        parts = []
        for panel in drawn:
            parts += [
                np.concatenate([panel, _blank(tallest - panel.shape[0], panel.shape[1])]),
                _blank(tallest, WIDE_GAP),
            ]
        rows.append(np.concatenate(parts[:-1], axis=1))
    return rows


def _panel(panel: Panel) -> Image:
    parts = []
    for picture in panel.pictures:
        parts += [picture, _blank(picture.shape[0], GAP)]
    pictures = np.concatenate(parts[:-1], axis=1)
    text = _blank(LINE * len(panel.lines) + 18, pictures.shape[1])
    for number, line in enumerate(panel.lines):
        put_text(text, line, (0, LINE * (number + 1)), 0.45, INK if number == 0 else GREY)
    return np.concatenate([pictures, text])


def _header(title: str, about: str, width: int) -> Image:
    header = _blank(2 * TITLE_LINE, width)
    put_text(header, title, (0, 26), 0.9)
    put_text(header, about, (0, 26 + LINE + 8), 0.5, GREY)
    return header


def _legend(most: float, width: int) -> Image:
    """The colours of the heights with their metres, the hatching, and an arrow."""
    legend = _blank(LEGEND_HEIGHT + 2 * LINE, width)
    bar = colours(np.broadcast_to(np.linspace(0, most, LEGEND_WIDTH), (LEGEND_HEIGHT, LEGEND_WIDTH)), most)
    legend[:LEGEND_HEIGHT, :LEGEND_WIDTH] = bar
    for share in (0.0, 0.5, 1.0):
        text = f"{most * share:g} m" + (" above ground" if share == 1 else "")
        put_text(legend, text, (round(share * (LEGEND_WIDTH - 24)), LEGEND_HEIGHT + LINE - 2), 0.45, GREY)
    left = LEGEND_WIDTH + 60
    legend[:LEGEND_HEIGHT, left : left + 40] = hatching(LEGEND_HEIGHT, 40)
    put_text(legend, "unknown", (left + 50, LEGEND_HEIGHT - 3), 0.45, GREY)
    left += 150
    _with_arrows(legend, [Arrow((left, 8), (left + 44, 8), (left + 44, 8))], 1.0)
    text = "from a surface to its ground by the labels; the ring: where the ground went with the image"
    put_text(legend, text, (left + 64, LEGEND_HEIGHT - 3), 0.45, GREY)
    return legend


def put_text(
    picture: Image,
    text: str,
    place: tuple[int, int],
    size: float,
    colour: tuple[int, int, int] = INK,
    thickness: int = 1,
) -> None:
    """Text, small enough that it ends where the picture does; the letters of OpenCV 4 are ASCII."""
    ascii_text = text.encode("ascii", "replace").decode()
    (length, _), _ = cv2.getTextSize(ascii_text, _FONT, size, thickness)
    size *= min(1.0, max(0, picture.shape[1] - place[0] - 2) / max(length, 1))
    cv2.putText(picture, ascii_text, place, _FONT, size, colour, thickness, cv2.LINE_AA)
