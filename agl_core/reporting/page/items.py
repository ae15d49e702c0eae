"""What the time of a run went into: words, fillings and keys of the items of `agl_core.reporting.goodput.account`."""

from agl_core.reporting.page.markup import Markup, el, join

CLASSES = {
    "training": "training",
    "data wait": "data",
    "validation": "validation",
    "checkpoint": "checkpoint",
    "start-up": "start",
    "lost": "lost",
    "ending": "ending",
    "queue": "queue",
    "down": "down",
    "stopped": "stopped",
    "other jobs": "other",
}
"""Classes of the style sheet by item."""

MEANINGS = {
    "training": "steps whose result counts",
    "data wait": "steps that waited for data",
    "validation": "scoring the held-out fold",
    "checkpoint": "training stood still while its state was copied",
    "start-up": "from the launch of the processes to the first step",
    "lost": "steps that were done again, with all that went on meanwhile",
    "ending": "from the last step to the end of the processes: the last save, leaving",
    "queue": "submitted or requeued, until launched",
    "down": "dead before anybody noticed, suspended, or not known",
    "stopped": "ended by its owner or for good, until started again; no part of goodput",
    "other jobs": "preparing, predicting, scoring, reporting",
}


def class_of(item: str) -> str:
    """The class of an item; of one that is not known that of the least of them."""
    return f"item {CLASSES.get(item, 'other')}"


def key(item: str) -> Markup:
    """A little field filled as the item is."""
    field = el("rect", x=0.5, y=0.5, width=21, height=11, rx=2, class_=class_of(item))
    return el("svg", field, class_="key", viewBox="0 0 22 12", aria_hidden="true")


def patterns() -> Markup:
    """The patterns that tell items apart without their colours; once in a page."""
    lines = {
        "data": ("var(--data)", [("M-1 7L7 -1M5 7L7 5M-1 1L1 -1", "shade")]),
        "checkpoint": ("var(--checkpoint)", [("M0 3h6", "shade ink")]),
        "lost": ("var(--lost)", [("M0 0l6 6M6 0l-6 6", "shade")]),
        "down": ("var(--down)", [("M-1 -1l8 8M-1 5l2 2M5 -1l2 2", "shade")]),
        "stopped": ("var(--stopped)", [("M3 0v6", "shade ink")]),
    }
    found = [_pattern(name, fill, paths) for name, (fill, paths) in lines.items()]
    return el("svg", el("defs", *found), class_="defs", aria_hidden="true")


def _pattern(name: str, fill: str, paths: list[tuple[str, str]]) -> Markup:
    ground = el("rect", width=6, height=6, fill=fill)
    drawn = join(el("path", d=d, class_=class_) for d, class_ in paths)
    return el("pattern", ground, drawn, id=name, width=6, height=6, patternUnits="userSpaceOnUse")
