"""Where the time of a run went: goodput, item by item, and the reasons for which its starts ended."""

from collections import Counter
from typing import TYPE_CHECKING

from agl_core.reporting.page.items import CLASSES, MEANINGS, class_of, key
from agl_core.reporting.page.layout import LETTER, twice
from agl_core.reporting.page.lives import AT_WORK, ended, lives_table
from agl_core.reporting.page.markup import NOTHING, Markup, Row, el, join, table
from agl_core.reporting.page.timeline import timeline
from agl_core.reporting.report import Report, duration
from agl_core.reporting.words import in_words, plural

if TYPE_CHECKING:
    from agl_core.reporting.goodput.account import Account, Life

STOPPED = "stopped"
FEW_LIVES = 12
"""So many are listed at once; more are listed where one asks for them."""


def time_section(report: Report) -> Markup:
    """Goodput, the timeline and the ends; nothing if nothing has begun."""
    account = report.account
    if account is None or account.wall <= 0:
        return NOTHING
    return join(
        [
            el("p", _sentence(account), class_="about"),
            twice("", lambda *size: _bar(account, *size), (940, 60), (350, 64)),
            _table(account),
            el("h3", "From the first start until now" if _goes_on(report) else "From the first start to the end"),
            timeline(account, report),
            _reasons(account, report),
            _lives(account, report),
        ]
    )


def _goes_on(report: Report) -> bool:
    return report.now.state in ("running", "waiting", "ending", "unknown")


def _sentence(account: "Account") -> str:
    training = account.seconds.get("training", 0.0)
    stopped = account.seconds.get("stopped", 0.0)
    told = f"Of {duration(account.wall)} between the first start and the last sign"
    if stopped:
        told += f", without the {duration(stopped)} in which it was not to run"
    lost = f"{account.steps_lost} of {account.steps + account.steps_lost} steps were done twice"
    return f"{told}, {duration(training)} or {percent(account.goodput)} were training that counts (goodput); {lost}."


def percent(share: float) -> str:
    """A share as a percentage with one decimal, and 0 % only for nothing."""
    return f"{100 * share:.1f} %" if share >= 0.0005 or share == 0 else "<0.1 %"


def _parts(account: "Account") -> list[tuple[str, float]]:
    """The items that took any time, in their order."""
    order = [*CLASSES, *(item for item in account.seconds if item not in CLASSES)]
    return [(item, account.seconds[item]) for item in order if account.seconds.get(item, 0.0) > 0]


def _bar(account: "Account", width: int, height: int, class_: str) -> Markup:
    """One bar of the time in which the run was wanted, its larger items named above it."""
    x, parts, wanted = 0.0, [], _wanted(account)
    for item, seconds in _parts(account):
        if item == STOPPED:
            continue
        wide = width * seconds / wanted
        share = percent(seconds / wanted)
        title = el("title", f"{item}: {duration(seconds)}, {share}")
        parts.append(el("rect", title, x=x, y=20, width=max(wide, 0.5), height=34, class_=class_of(item)))
        text = f"{item} {share}"
        if wide > LETTER * len(text) + 10:
            parts.append(el("text", text, x=x + 1, y=13, class_="label"))
        x += wide
    names = ", ".join(f"{item} {percent(s / wanted)}" for item, s in _parts(account) if item != STOPPED)
    return el("svg", *parts, viewBox=f"0 0 {width} {height}", class_=class_, role="img", aria_label=names)


def _wanted(account: "Account") -> float:
    """Seconds in which the run was to go on."""
    return max(account.wall - account.seconds.get(STOPPED, 0.0), 1e-3)


def _table(account: "Account") -> Markup:
    """Time and share of every item; two shares where there was time in which the run was stopped."""
    wanted = _wanted(account)
    both = account.seconds.get(STOPPED, 0.0) > 0
    rows: list[list[Markup | str]] = []
    for item, seconds in _parts(account):
        share = [] if not both else ["" if item == STOPPED else percent(seconds / wanted)]
        rows.append(
            [
                el("span", key(item), item, class_="whole"),
                duration(seconds),
                *share,
                percent(seconds / account.wall),
                MEANINGS.get(item, ""),
            ]
        )
    total = ["all", duration(account.wall), *(["100 %"] if both else []), "100 %", "from the first sign to the last"]
    rows.append(Row(total, "total"))
    head = ["time went into", "time", *(["while it was wanted"] if both else []), "of all", "that is"]
    return table(head, rows, (0, len(head) - 1))


def _reasons(account: "Account", report: Report) -> Markup:
    """The reasons of all ends, the most frequent first, with what they cost."""
    ends: dict[str, list[Life]] = {}
    for life in account.lives:
        reason = ended(life, report)
        if reason not in ("done", *AT_WORK):
            ends.setdefault(reason, []).append(life)
    if not ends:
        return el("p", "Nothing has interrupted it.", class_="note")
    rows = [
        [
            in_words(reason),
            str(len(lives)),
            str(sum(life.lost or 0 for life in lives)),
            el("div", _most(Counter(life.host for life in lives if life.host)), class_="text"),
        ]
        for reason, lives in sorted(ends.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    return el("h3", "Why jobs ended before they were done") + table(
        ["reason", "times", "steps done again", "on"], rows, (0, 3)
    )


def _most(hosts: "Counter[str]") -> str:
    told = [f"{host} ({count})" if count > 1 else host for host, count in hosts.most_common(4)]
    return ", ".join([*told, *(["..."] if len(hosts) > 4 else [])])


def _lives(account: "Account", report: Report) -> Markup:
    lives = account.lives
    if not lives:
        return NOTHING
    listed = lives_table(account, report)
    if len(lives) <= FEW_LIVES:
        return join([el("h3", "Every start and its end"), listed])
    return el("details", el("summary", f"All {plural(len(lives), 'start')} and their ends"), listed)
