"""Every start of every job, with its end, in a table."""

from typing import TYPE_CHECKING, Any

from agl_core.reporting.page.markup import Markup, el, table
from agl_core.reporting.page.scales import utc
from agl_core.reporting.report import Report, duration
from agl_core.reporting.words import in_words, reason

if TYPE_CHECKING:
    from agl_core.reporting.goodput.account import Account, Life

GLYPHS = {
    "done": "✓",
    "runs": "▸",
    "makes": "▸",
    "preempted": "▼",
    "cancelled by preemption": "▼",
    "time limit": "◷",
    "killed": "✕",
    "crashed": "!",
    "cancelled": "■",
    "refused": "■",
}
"""Signs of ends in the timeline; all others have a triangle."""


AT_WORK = ("runs", "makes")
"""What `ended` says of a start that has not."""


def ended(life: "Life", report: Report) -> str:
    """Why a start ended, as a key of `agl_core.reporting.words.REASONS`; "done", or "runs" of one that is at work, and
    "makes" of one that makes this report."""
    if life.end == "done":
        return "done"
    if life.number and not life.end and life.number in (report.maker, report.alive):
        return "makes" if life.number == report.maker else "runs"
    return reason(str(life.end or ""), str(life.why or ""))


def told(end: str) -> str:
    """An end in words."""
    return {"done": "done", "runs": "still at work", "makes": "makes this report"}.get(end) or in_words(end)


def lives_table(account: "Account", report: Report) -> Markup:
    """A row for every start."""
    rows = [_row(life, ended(life, report), account.end) for life in account.lives]
    head = [
        "", "start (UTC)", "job", "id", "on", "waited before", "starting up", "ran", "steps", "done again", "end",
        "in words",
    ]  # fmt: skip
    return table(head, rows, (0, 1, 2, 3, 4, 10, 11), class_="lives")


def _row(life: "Life", end: str, now: float) -> list[Any]:
    began = life.launched if life.launched is not None else life.started
    until = now if end in AT_WORK else life.ended
    attempt = f", attempt {life.attempt + 1}" if life.attempt else ""
    return [
        str(life.number),
        "" if began is None else utc(began),
        life.job,
        f"{life.id}{attempt}".replace("pid ", "pid\u00a0"),  # a line does not end there
        life.host or "",
        _between(life.queued, life.launched),
        _between(life.launched, life.started),
        _between(life.launched, until),
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
