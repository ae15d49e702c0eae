"""Where letters go in a drawing, and drawings for two widths of window."""

from collections.abc import Callable, Sequence

from agl_core.reporting.page.markup import NOTHING, Markup, el

LETTER = 6.3
"""Width of a letter in pixels, about, at the 11.5 pixels that charts are lettered with."""
LINE = 14.0
"""Pixels from one line of letters to the next."""

Size = tuple[int, int]


def spread(places: Sequence[float], least: float, top: float, bottom: float) -> list[float]:
    """Rising places moved as little as needed to be `least` apart, between `top` and `bottom` if there is room."""
    groups: list[tuple[float, int]] = []  # middle and number of those that touch
    for place in places:
        groups.append((place, 1))
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < least * (groups[-1][1] + groups[-2][1]) / 2:
            (a, m), (b, n) = groups[-2:]
            groups[-2:] = [((a * m + b * n) / (m + n), m + n)]
    found = [middle + least * (n - (count - 1) / 2) for middle, count in groups for n in range(count)]
    for number in range(len(found)):
        found[number] = max(found[number], top + least * number)
    for number in reversed(range(len(found))):
        found[number] = min(found[number], bottom - least * (len(found) - 1 - number))
    return found


def cut(text: str, most: int) -> str:
    """At most so many letters."""
    return text if len(text) <= most else text[: max(most - 1, 1)] + "…"


Draw = Callable[[int, int, str], Markup]


def twice(title: str, draw: Draw, wide: tuple[int, int], narrow: tuple[int, int], note: str = "") -> Markup:
    """A figure that `draw` makes for both widths of window."""
    drawn = [draw(*wide, "wide"), draw(*narrow, "narrow")]
    said = el("p", note, class_="note") if note else NOTHING
    return el("figure", el("figcaption", title) if title else NOTHING, *drawn, said, class_="chart")
