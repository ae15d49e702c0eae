"""Every start of every job, with its end, in a table."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agl_core.reporting.page.markup import Markup, el, table
from agl_core.reporting.page.scales import utc
from agl_core.reporting.report import duration
from agl_core.reporting.words import in_words, reason

if TYPE_CHECKING:
    from agl_core.reporting.goodput import Life

GLYPHS = {
    "done": "✓",
    "runs": "▸",
    "preempted": "▼",
    "cancelled by preemption": "▼",
    "time limit": "◷",
    "killed": "✕",
    "crashed": "!",
    "cancelled": "■",
    "refused": "■",
}
"""Signs of ends in the timeline; all others have a triangle."""


def ended(life: "Life", goes_on: bool = False) -> str:
    """Why a start ended, as a key of `agl_core.reporting.words.REASONS`; "done", or "runs" of one that goes on."""
    if life.end == "done":
        return "done"
    return "runs" if goes_on and not life.end else reason(str(life.end or ""), str(life.why or ""))


def told(end: str) -> str:
    """An end in words."""
    return {"done": "done", "runs": "still at work"}.get(end) or in_words(end)


def lives_table(lives: Sequence["Life"], goes_on: bool) -> Markup:
    """A row for every start. goes_on: the last one has not ended."""
    rows = [_row(life, ended(life, goes_on and life is lives[-1])) for life in lives]
    head = [
        "", "start (UTC)", "job", "id", "on", "waited before", "starting up", "ran", "steps", "done again", "end",
        "in words",
    ]  # fmt: skip
    return table(head, rows, (0, 1, 2, 3, 4, 10, 11), class_="lives")


def _row(life: "Life", end: str) -> list[Any]:
    began = life.launched if life.launched is not None else life.started
    attempt = f", attempt {life.attempt + 1}" if life.attempt else ""
    return [
        str(life.number),
        "" if began is None else utc(began),
        life.job,
        f"{life.id}{attempt}",
        life.host or "",
        _between(life.queued, life.launched),
        _between(life.launched, life.started),
        _between(life.launched, life.ended),
        _steps(life),
        str(life.lost) if life.lost else "",
        el("span", f"{GLYPHS.get(end, '▼')} {told(end)}"),
        el("div", life.text or "", class_="text"),
    ]


def _between(begin: float | None, end: float | None) -> str:
    return "" if begin is None or end is None or end < begin else duration(end - begin)


def _steps(life: "Life") -> str:
    if life.reached is None or not life.reached:
        return ""
    return f"{life.from_step or 0} to {life.reached}"
