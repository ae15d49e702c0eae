"""The marks by which curves are told apart without their colours."""

from agl_core.reporting.page.markup import Markup, el, short

KINDS = 8
"""Colours and marks; a ninth curve has those of the first."""

# Around (0, 0), each about 7 pixels wide.
_SHAPES = (
    "m-3.2 0a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0 -6.4 0z",  # circle
    "m-3 -3h6v6h-6z",  # square
    "m0 -3.8l3.6 6.4h-7.2z",  # triangle
    "m0 -4.2l4.2 4.2l-4.2 4.2l-4.2 -4.2z",  # diamond
    "m0 3.8l3.6 -6.4h-7.2z",  # triangle, upside down
    "m-1.2 -3.6h2.4v2.4h2.4v2.4h-2.4v2.4h-2.4v-2.4h-2.4v-2.4h2.4z",  # cross
    "m-3.2 0l1.6 -3h3.2l1.6 3l-1.6 3h-3.2z",  # hexagon
    "m-3.6 -1.6h7.2v3.2h-7.2z",  # bar
)


def symbol(kind: int, x: float, y: float) -> Markup:
    """The mark of the curves of a kind, at a place."""
    kind %= KINDS
    return el("path", d=f"M{short(x)} {short(y)}{_SHAPES[kind]}", class_=f"mark k{kind}")
