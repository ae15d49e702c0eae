"""The report as one HTML file that needs nothing else: no network, no other file, and no script to be read.

Its policy (the meta element) lets nothing be loaded or run but what is in it: the style sheet and the script by their
digests, and pictures that are part of the page.
"""

import base64
import hashlib
from collections.abc import Sequence

from agl_core.reporting.page.compare import by_city, curves, differences, overview
from agl_core.reporting.page.curves import learning_section, rates_section
from agl_core.reporting.page.head import head_section, pill
from agl_core.reporting.page.items import patterns
from agl_core.reporting.page.markup import NOTHING, Markup, el, join
from agl_core.reporting.page.pictures import gallery_section
from agl_core.reporting.page.scales import utc
from agl_core.reporting.page.scores import score_section
from agl_core.reporting.page.script import SCRIPT
from agl_core.reporting.page.settings import machine_section, settings_section
from agl_core.reporting.page.style import style
from agl_core.reporting.page.timing import time_section
from agl_core.reporting.report import Report

SECTIONS = (
    ("learning", "Learning curves", learning_section),
    ("rates", "Losses and rates", rates_section),
    ("score", "Score of the test images", score_section),
    ("tiles", "Tiles", lambda report: gallery_section(report.gallery)),
    ("time", "Where the time went", time_section),
    ("settings", "Configuration", settings_section),
    ("machine", "Versions and hardware", machine_section),
)
"""Of one run, in the order in which a reader wants them: id, title and content."""


def page(reports: Sequence[Report]) -> str:
    """The file's content; the same reports always give the same."""
    return _one(reports[0]) if len(reports) == 1 else _several(reports)


def _one(report: Report) -> str:
    shown = [(id, title, content) for id, title, of in SECTIONS if (content := of(report))]
    title = join([report.name, pill(report.now.state)])
    kind = report.kind.capitalize()
    top = [el("p", kind, class_="kind"), el("h1", title), head_section(report), _nav([(a, b) for a, b, _ in shown])]
    main = join(el("section", el("h2", name, id=id), content) for id, name, content in shown)
    return _document(f"{kind} {report.name}", join(top), main, [report])


def _several(reports: Sequence[Report]) -> str:
    names = ", ".join(report.name for report in reports)
    parts = [
        ("differences", "What differs", differences(reports)),
        ("curves", "Curves", curves(reports)),
        ("scores", "Scores", by_city(reports)),
        ("runs", "Each run", join(_detail(number, report) for number, report in enumerate(reports))),
    ]
    shown = [part for part in parts if part[2]]
    top = [
        el("p", f"{len(reports)} runs compared", class_="kind"),
        el("h1", names),
        overview(reports),
        _nav([(id, title) for id, title, _ in shown]),
    ]
    main = join(el("section", el("h2", title, id=id), content) for id, title, content in shown)
    return _document(f"Runs {names}", join(top), main, reports)


def _detail(number: int, report: Report) -> Markup:
    """A run among several: all of its own report, on demand."""
    shown = [(title, content) for _, title, of in SECTIONS if (content := of(report))]
    body = join(join([el("h3", title), content]) for title, content in shown)
    summary = el("summary", report.name, pill(report.now.state))
    return el("details", summary, head_section(report), body, class_="run", id=f"run{number}")


def _nav(parts: Sequence[tuple[str, str]]) -> Markup:
    if len(parts) < 2:
        return NOTHING
    return el("nav", *(el("a", title, href=f"#{id}") + " " for id, title in parts), aria_label="Contents")


def _document(title: str, top: Markup, main: Markup, reports: Sequence[Report]) -> str:
    sheet = style()
    allowed = [
        "default-src 'none'",
        f"style-src '{_digest(sheet)}'",
        f"script-src '{_digest(SCRIPT)}'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    head = join(
        [
            el("meta", charset="utf-8"),
            el("meta", http_equiv="Content-Security-Policy", content=Markup("; ".join(allowed))),
            el("meta", name="viewport", content="width=device-width, initial-scale=1"),
            el("meta", name="referrer", content="no-referrer"),
            el("title", title),
            el("link", rel="icon", href="data:,"),
            el("style", Markup(sheet)),
        ],
        "\n",
    )
    places = ", ".join(report.path for report in reports)
    foot = (
        f"Made {utc(reports[0].made)} UTC from {places} by version {reports[0].version} of this project. "
        "This file holds all that it shows and asks for nothing over a network."
    )
    body = join(
        [
            patterns(),
            el("header", top, class_="top"),
            el("main", main),
            el("footer", el("p", foot)),
            el("script", Markup(SCRIPT)),
        ]
    )
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def _digest(text: str) -> str:
    """As a content security policy names an inline style sheet or script that may be used."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
