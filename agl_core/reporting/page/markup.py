"""HTML that cannot be broken by what it shows.

`Markup` is text that is HTML already; whatever else goes into an element is text of unknown origin, which is escaped,
and in which characters that would act instead of being seen (control characters, overrides of the writing direction)
are replaced by their names.
"""

import html
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

_ACTING = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories of what is not seen: control and format characters, surrogates, unassigned, line separators."""
_VOID = ("br", "meta", "img", "link", "rect", "line", "path", "circle", "use", "polygon")
_BLOCKS = ("section", "figure", "table", "tr", "thead", "tbody", "header", "footer", "main", "svg", "details", "dl")
MOST_LETTERS = 4000
"""Of one text that is shown; a longer one is cut."""


class Markup(str):
    """HTML that is safe to go into a page as it is."""

    __slots__ = ()

    def __add__(self, other: str) -> "Markup":
        """What stands on the right is escaped unless it is `Markup`."""
        return Markup(str.__add__(self, escape(other)))


NOTHING = Markup("")


def visible(text: str) -> str:
    """`text` with what acts instead of being seen replaced by its code point in brackets; line feeds and tabs stay."""
    if len(text) > MOST_LETTERS:
        text = text[:MOST_LETTERS] + " [...]"
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        letter if letter in "\n\t" or unicodedata.category(letter) not in _ACTING else f"[U+{ord(letter):04X}]"
        for letter in text
    )


def escape(value: Any) -> Markup:
    """Any value as text of a page or of an attribute; `Markup` stays what it is."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(visible(str(value)), quote=True))


def join(parts: Iterable[Any], between: str = "") -> Markup:
    """Parts one after the other, each escaped unless it is `Markup`."""
    return Markup(between.join(map(escape, parts)))


def el(name: str, /, *content: Any, **attributes: Any) -> Markup:
    """An element. `class_` is the attribute class, `_` in other names is `-`; attributes that are None are left out."""
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{told}/>" if name not in ("br", "meta", "img", "link") else f"<{name}{told}>")
    end = "\n" if name in _BLOCKS else ""
    return Markup(f"<{name}{told}>{join(content)}</{name}>{end}")


def _number(value: Any) -> Any:
    """Coordinates with two decimals, as short as they come."""
    return short(value) if isinstance(value, float) else value


def short(value: float) -> str:
    """A coordinate in pixels: two decimals at most, none that are zero."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def table(
    head: Sequence[Any], rows: Sequence[Sequence[Any]], text_columns: Iterable[int] = (0,), class_: str | None = None
) -> Markup:
    """A table that scrolls sideways by itself where it is too wide. text_columns: those that are not numbers."""
    of_text = set(text_columns)

    def cells(kind: str, row: Sequence[Any]) -> Markup:
        return join(
            el(kind, cell, class_=None if number in of_text else "n", scope="col" if kind == "th" else None)
            for number, cell in enumerate(row)
        )

    body = join(el("tr", cells("td", row), class_=getattr(row, "class_", None)) for row in rows)
    content = [el("thead", el("tr", cells("th", head))), el("tbody", body)]
    return el("div", el("table", *content, class_=class_), class_="scroll", tabindex="0")


class Row(list[Any]):
    """A row of a table with a class of its own."""

    def __init__(self, cells: Iterable[Any], class_: str) -> None:
        super().__init__(cells)
        self.class_ = class_
