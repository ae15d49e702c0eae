"""Tiles as pictures in the page: image, truth, prediction and error, heights of all of them in the same colours."""

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agl_core.reporting.page.markup import NOTHING, Markup, el, join
from agl_core.reporting.report import Gallery

if TYPE_CHECKING:
    from agl_core.reporting.pictures.tiles import Tile

WIDTH = 1128  # pixels of the pictures of a tile side by side
QUALITY = 82  # of WebP


def gallery_section(gallery: Gallery) -> Markup:
    """The worst and the best tiles, or those of training; nothing where there are none."""
    tiles = [*gallery.worst, *gallery.best, *gallery.fixed]
    note = el("p", gallery.note, class_="about") if gallery.note else NOTHING
    if not tiles:
        return note
    from agl_core.reporting.pictures.tiles import highest

    most = highest(tiles)
    parts = [note, _legend(most)]
    for title, shown in (
        ("Worst", gallery.worst),
        ("Best", gallery.best),
        ("", gallery.fixed),
    ):
        if shown:
            figures = (_tile(tile, most, gallery.lost) for tile in shown)
            parts += [el("h3", title) if title else NOTHING, el("div", *figures, class_="tiles")]
    return join(parts)


def _tile(tile: "Tile", most: int, lost: Mapping[str, float]) -> Markup:
    from agl_core.reporting.pictures.panel import pose_words
    from agl_core.reporting.pictures.tiles import panel

    columns = ["true heights", "predicted heights", "error"]
    columns = columns if tile.rgb is None else ["image", *columns]
    width = WIDTH * len(columns) // 4
    pictures = split(panel(tile, width, most, words=False), len(columns), max(2, round(width / 160)))
    cost = f", takes {lost[tile.id]:.4f} from the score" if tile.id in lost else ""
    words = f" ({tile.city}){cost}; {pose_words(tile)}" if tile.city else f"{cost}; {pose_words(tile)}"
    cells = [
        el("div", _image(picture, f"{tile.id}: {name}"), el("span", name))
        for picture, name in zip(pictures, columns, strict=True)
    ]
    return el("figure", el("figcaption", el("b", tile.id), words), el("div", *cells, class_="four"))


def split(picture: Any, columns: int, gap: int) -> list[Any]:
    """The pictures that `panel` has put side by side, `gap` pixels apart."""
    side = (picture.shape[1] - (columns - 1) * gap) // columns
    return [picture[:, number * (side + gap) : number * (side + gap) + side] for number in range(columns)]


def _image(pixels: Any, words: str) -> Markup:
    return el("img", src=data_uri(pixels), alt=words, width=pixels.shape[1], height=pixels.shape[0], decoding="async")


def data_uri(pixels: Any) -> Markup:
    """(H, W, 3) uint8 RGB as a WebP that is part of the page."""
    import numpy as np

    from agl_core.opencv import cv2

    done, encoded = cv2.imencode(".webp", np.ascontiguousarray(pixels[..., ::-1]), [cv2.IMWRITE_WEBP_QUALITY, QUALITY])
    assert done
    return Markup(f"data:image/webp;base64,{base64.b64encode(encoded.tobytes()).decode()}")


def _legend(most: int) -> Markup:
    """The colours of heights and of errors with their metres."""
    import numpy as np

    from agl_core.reporting.pictures.panel import error_colours, height_colours, widest_error

    high, error = most / 100, widest_error(most)
    heights = height_colours(np.broadcast_to(np.linspace(0, high, 256), (4, 256)), high)
    errors = error_colours(np.broadcast_to(np.linspace(-error, error, 256), (4, 256)), error)
    bars: Sequence[tuple[Any, str, list[str]]] = (
        (heights, "height above ground, of all tiles alike", ["0", f"{high / 2:g}", f"{high:g} m and above"]),
        (errors, "error: predicted less true height", [f"-{error:g} (too low)", "0", f"+{error:g} m (too high)"]),
    )
    parts = [
        el("div", el("p", name), _image(bar, name), el("div", *(el("span", tick) for tick in ticks), class_="ticks"))
        for bar, name, ticks in bars
    ]
    arrows = "Arrows lead from a top to where it stands: white by the truth, orange as predicted. Hatched: not known."
    return el("div", *parts, class_="bars") + el("p", arrows, class_="note")
