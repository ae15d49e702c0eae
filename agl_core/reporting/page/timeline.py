"""All starts of a run on one axis of time: a row for each job, filled with what its time went into."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from agl_core.reporting.page.items import CLASSES, class_of, key
from agl_core.reporting.page.layout import LETTER, cut, twice
from agl_core.reporting.page.lives import AT_WORK, GLYPHS, ended, told
from agl_core.reporting.page.markup import NOTHING, Markup, el, join
from agl_core.reporting.page.scales import Scale, moments, utc
from agl_core.reporting.report import Report, duration

if TYPE_CHECKING:
    from agl_core.reporting.goodput.account import Account, Span

ROW, GAP, TOP = 26.0, 20.0, 18.0
MOST_ROWS = 16
MOST_NAME = 14
_COLUMN = 0.5  # pixels of the finest detail


def timeline(account: "Account", report: Report) -> Markup:
    """The figure with its keys."""
    jobs = list(dict.fromkeys([*(span.job for span in account.spans), *(life.job for life in account.lives)]))
    order = [stage.name for stage in report.stages]
    jobs.sort(key=lambda job: order.index(job) if job in order else -1)  # stages stay in their order
    first = {job: next((s.begin for s in account.spans if s.job == job), account.end) for job in jobs}
    jobs = sorted((job for job in jobs if job), key=lambda job: first[job])[:MOST_ROWS]
    height = int(TOP + len(jobs) * (ROW + GAP) + 34)

    def draw(width: int, _: int, class_: str) -> Markup:
        return _draw(account, jobs, report, width, height, class_)

    items = [item for item in CLASSES if account.seconds.get(item, 0) > 0]
    keys = [el("span", key(item), item) for item in items]
    ends = list(dict.fromkeys(ended(life, report) for life in account.lives))
    signs = [el("span", f"{GLYPHS.get(end, '▼')} {told(end).split(':')[0]}") for end in ends]
    below = el("p", *keys, class_="keys") + el("p", *signs, class_="keys")
    return join([twice("", draw, (940, height), (350, height)), below])


def _draw(account: "Account", jobs: Sequence[str], report: Report, width: int, height: int, class_: str) -> Markup:
    left = 8.0 + LETTER * max((min(len(job), MOST_NAME) for job in jobs), default=0)
    x, ticks = moments(
        account.begin, account.end, left + 6, width - 12, max(2, int((width - left) / (75 if width < 500 else 110)))
    )
    bottom = height - 34.0
    parts: list[Markup] = []
    for at, text in ticks:
        parts.append(el("line", x1=x(at), x2=x(at), y1=TOP - 8, y2=bottom, class_="grid"))
        parts.append(el("line", x1=x(at), x2=x(at), y1=bottom, y2=bottom + 4, class_="base"))
        parts.append(el("text", text, x=x(at), y=bottom + 17, class_="tick middle"))
    parts.append(el("line", x1=x.begin, x2=x.end, y1=bottom, y2=bottom, class_="base"))
    parts.append(el("text", "UTC", x=x.end, y=bottom + 31, class_="axis end"))
    for number, job in enumerate(jobs):
        y = TOP + number * (ROW + GAP)
        parts.append(el("text", cut(job, MOST_NAME), x=left, y=y + ROW / 2 + 4, class_="label end"))
        parts.append(el("line", x1=x.begin, x2=x.end, y1=y + ROW, y2=y + ROW, class_="row"))
        parts += [_piece(piece, x, y) for piece in pieces([s for s in account.spans if s.job == job], x)]
        parts.append(_ends(account, job, x, y + ROW + 13, report))
    words = f"Timeline from {utc(account.begin)} to {utc(account.end)} UTC, {len(account.lives)} starts"
    return el("svg", *parts, viewBox=f"0 0 {width} {height}", class_=class_, role="img", aria_label=words)


Piece = tuple[float, float, str]


def pieces(spans: Sequence["Span"], x: Scale) -> list[Piece]:
    """What is drawn of some spans: from and to which pixel, and of which item. Of what is too fine to be seen, the item
    that has most of a half pixel stands for it."""
    shares: dict[int, dict[str, float]] = {}
    found: list[Piece] = []

    def flush() -> None:
        for column in sorted(shares):
            items = shares[column]
            item = max(items, key=lambda name: (items[name], name))
            found.append((column * _COLUMN, (column + 1) * _COLUMN, item))
        shares.clear()

    for span in spans:
        begin, end = x(span.begin), x(span.end)
        first, last = int(begin / _COLUMN), int(end / _COLUMN)
        if last - first < 2:
            for column in range(first, last + 1):
                part = min(end, (column + 1) * _COLUMN) - max(begin, column * _COLUMN)
                if part > 0 or first == last:
                    items = shares.setdefault(column, {})
                    items[span.item] = items.get(span.item, 0.0) + max(part, 0.0)
            continue
        flush()
        found.append((begin, end, span.item))
    flush()
    return _joined(found)


def _joined(found: Sequence[Piece]) -> list[Piece]:
    """Neighbours of one item as one."""
    joined: list[Piece] = []
    for begin, end, item in found:
        if joined and joined[-1][2] == item and begin - joined[-1][1] < _COLUMN:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]), item)
        else:
            joined.append((begin, end, item))
    return joined


def _piece(piece: Piece, x: Scale, y: float) -> Markup:
    begin, end, item = piece
    by = (x.high - x.low) / (x.end - x.begin)
    title = el("title", f"{item}, {duration((end - begin) * by)}, from {utc(x.low + (begin - x.begin) * by)}")
    low = item in ("queue", "down", "stopped")  # nothing is at work: half as high
    top, tall = (y + ROW / 2, ROW / 2) if low else (y, ROW)
    return el("rect", title, x=begin, y=top, width=max(end - begin, _COLUMN), height=tall, class_=class_of(item))


def _ends(account: "Account", job: str, x: Scale, y: float, report: Report) -> Markup:
    """A sign below the place where each start ended, as far as there is room for them."""
    parts: list[Markup] = []
    before = -20.0
    for life in account.lives:
        if life.job != job:
            continue
        end = ended(life, report)
        moment = account.end if end in AT_WORK else life.ended
        if moment is None:
            continue
        place = min(max(x(moment), x.begin), x.end)
        if place - before < 12:
            continue
        title = el("title", f"{utc(moment)}: {told(end)}")
        parts.append(el("text", title, GLYPHS.get(end, "▼"), x=place, y=y, class_="tick middle"))
        before = place
    return join(parts) if parts else NOTHING
