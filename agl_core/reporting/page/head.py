"""What a reader wants to know first: which run this is, where it stands, its score, when it ends, what it has cost."""

import math
from typing import Any

from agl_core.reporting.page.lives import told as told_end
from agl_core.reporting.page.markup import MOST_LETTERS, NOTHING, Markup, el, join
from agl_core.reporting.page.scales import utc
from agl_core.reporting.page.scores import mapping
from agl_core.reporting.page.timing import percent
from agl_core.reporting.report import Report, duration, number
from agl_core.reporting.words import in_words, plural

PILLS = {
    "finished": ("good", "✓"),
    "running": ("live", "▸"),
    "ending": ("live", "▸"),
    "waiting": ("wait", "◷"),
    "unknown": ("wait", "?"),
    "not started": ("wait", "·"),
    "interrupted": ("wait", "‖"),
    "cancelled": ("wait", "■"),
    "not finished": ("wait", "‖"),
}
"""Class and sign of the states; all others are bad news."""


def pill(state: str) -> Markup:
    """A run's state, told by colour, sign and word."""
    class_, sign = PILLS.get(state, ("bad", "✕"))
    return el("span", f"{sign} {state}", class_=f"pill {class_}")


def head_section(report: Report) -> Markup:
    """Sentences and figures, and what is wrong if anything is."""
    return join(
        [
            el("p", where(report), class_="lead"),
            *(el("p", line) for line in (ends(report), last_end(report)) if line),
            trouble(report),
            figures(report),
            advice(report),
        ]
    )


def where(report: Report) -> str:
    """Where the run is, in one sentence."""
    now, snapshot = report.now, report.snapshot
    place = f" on {now.host}" if now.host else ""
    place += f" as job {now.id}" if now.id.isdecimal() else f" ({now.id})" if now.id else ""
    if now.state == "finished":
        return _finished(report)
    if now.state == "not started" and not report.stages:
        return "Nothing of it was started yet."
    stages = [stage.name for stage in report.stages]
    told = now.job or "nothing"
    if now.job in stages:
        stage = report.stages[stages.index(now.job)]
        told = f"stage {now.job} ({stages.index(now.job) + 1} of {len(stages)})"
        if stage.epochs and (stage.steps or stage.epoch is not None):
            epoch = math.floor(stage.at(stage.step) + 1e-6) if stage.steps else stage.epoch
            told += f", epoch {epoch:g} of {stage.epochs:g}"
        if stage.steps:
            told += f", step {count(stage.step)} of {count(stage.steps)}"
    verb = {
        "running": f"It is at {told}{place}",
        "ending": f"It is ending {told}{place}",
        "waiting": f"It waits to go on with {told}",
        "not started": "Nothing of it was started yet",
        "not finished": f"It has come to {told}, which was not started",
    }
    sentence = verb.get(now.state, f"It has stopped ({now.state}) at {told}{place}")
    if now.detail:
        sentence += f": {now.detail}"
    if now.last_sign is not None:
        ago = max(report.made - now.last_sign, 0)
        sentence += f"; last sign of life {utc(now.last_sign)} UTC, {duration(ago)} before this report"
    return (snapshot.told if snapshot is not None and not now.job and snapshot.told else sentence) + "."


def _finished(report: Report) -> str:
    """When all was done, and what it was."""
    account = report.account
    told = f"Finished {utc(account.end)} UTC, after {duration(account.wall)}" if account else "All of it is done"
    stages = [stage for stage in report.stages if stage.starts]
    if not stages:
        return f"{told}."
    unit = "epochs" if all(stage.epochs for stage in stages) else "steps"
    names = [f"{count(stage.length)} {unit} of {stage.name}" for stage in stages]
    return f"{told}: {' and '.join([', '.join(names[:-1]), names[-1]] if len(names) > 1 else names)}."


def ends(report: Report) -> str:
    """When it will end, or when and after what it did, with its goodput, in one sentence."""
    account, snapshot = report.account, report.snapshot
    if account is None:
        return ""
    useful = f"{percent(account.goodput)} of its time was training that counts (goodput)"
    many = plural(account.interruptions, "interruption")
    if report.now.state == "finished":
        return f"{useful[:1].upper()}{useful[1:]}, through {many}."
    if snapshot is not None and snapshot.ends_at is not None and _goes_on(report):
        left = duration(max(snapshot.ends_at - report.made, 0))
        rate = "with interruptions as so far" if account.interruptions else "at its present rate"
        return f"It will end about {utc(snapshot.ends_at)} UTC, in {left}, {rate}; {useful}, through {many}."
    if snapshot is not None and snapshot.seconds_left is not None and report.now.state == "running":
        done = utc(report.made + snapshot.seconds_left)
        rest = f"Stage {snapshot.job} will be done about {done} UTC if nothing interrupts it, the rest is not known yet"
        return f"{rest}; {useful}, through {many}."
    return f"{useful[:1].upper()}{useful[1:]}, through {many}."


def last_end(report: Report) -> str:
    """Why it was interrupted last, or would not go on."""
    snapshot = report.snapshot
    if snapshot is None or snapshot.last_end is None or report.now.state == "finished":
        return ""
    last = snapshot.last_end
    how = "Refused to go on" if last.reason == "refused" else "Last interrupted"  # which counts as no interruption
    told = f"{how} {utc(last.at)} UTC, in {last.job}: {in_words(last.reason)}"
    if last.away is not None:
        told += f"; started again {duration(last.away)} later"
    return f"{told}."


def _goes_on(report: Report) -> bool:
    return report.now.state in ("running", "waiting", "ending", "unknown")


def trouble(report: Report) -> Markup:
    """What somebody has to look at."""
    now = report.now
    bad = PILLS.get(now.state, ("bad", ""))[0] == "bad"
    parts = [el("p", note) for note in report.notes]
    if (bad or not _goes_on(report)) and now.problem and now.state != "finished":
        parts.append(el("p", el("b", f"{now.state.capitalize()}: "), now.problem))
    if now.traceback and now.state != "finished":
        parts.append(el("details", el("summary", "What it printed last"), el("pre", now.traceback[-MOST_LETTERS:])))
    return el("div", *parts, class_="alarm") if parts else NOTHING


def advice(report: Report) -> Markup:
    """The commands that one would give next."""
    told = [el("p", el("code", command), f" {what}", class_="note") for command, what in report.now.advice]
    return el("div", *told, class_="advice") if told else NOTHING


def figures(report: Report) -> Markup:
    """The numbers of a run, each with a line about it."""
    found = [_score(report), _held_out(report), _progress(report), _end(report), _goodput(report), _interrupted(report)]
    cells = [
        el("div", el("dt", name), el("dd", value), el("dd", about)) for name, value, about in found if value is not None
    ]
    return el("dl", *cells, class_="figures") if cells else NOTHING


Figure = tuple[str, Any, str]


def _score(report: Report) -> Figure:
    score = report.score or {}
    if not number(score.get("score")):
        return "Test score", None, ""
    constant = mapping(score.get("best_constant")).get("score")
    about = f"best constant {constant:.4f}" if number(constant) else ""
    return "Test score", f"{score['score']:.4f}", about


def _held_out(report: Report) -> Figure:
    if report.best is None:
        return "Best held-out score", None, ""
    stage, best = report.best
    return "Best held-out score", f"{best.highest:.4f}", f"{stage.name}, epoch {best.epoch:g}"


def _progress(report: Report) -> Figure:
    begun = [stage for stage in report.stages if stage.starts]
    if not begun or not report.stages:
        return "Progress", None, ""
    done = math.floor(sum(stage.length if stage.finished else stage.at(stage.step) for stage in begun) + 1e-6)
    planned = sum(stage.length for stage in report.stages)
    whole = all(stage.starts for stage in report.stages)
    share = min(done / planned, 1.0) if planned else 0.0
    unit = "epochs" if all(stage.epochs for stage in begun) else "steps"
    about = f"{done:,.0f} of {planned:,.0f} {unit}" if whole else f"{done:,.0f} {unit}, more stages to come"
    return "Progress", f"{100 * share:.0f} %" if whole else f"{done:,.0f}", about


def _end(report: Report) -> Figure:
    if report.account is None:
        return "", None, ""
    if not _goes_on(report):
        name = "Ended" if report.now.state == "finished" else "Last sign of it"
        return name, utc(report.account.end, "%-d %b %H:%M"), f"UTC, after {duration(report.account.wall)}"
    snapshot = report.snapshot
    if snapshot is None or snapshot.ends_at is None:
        return "Will end", "unknown", "too little was measured yet"
    left = duration(max(snapshot.ends_at - report.made, 0))
    return "Will end about", utc(snapshot.ends_at, "%-d %b %H:%M"), f"UTC, in {left}"


def _goodput(report: Report) -> Figure:
    if report.account is None or not report.account.seconds.get("training"):
        return "", None, ""
    return "Goodput", percent(report.account.goodput), "of the time was training that counts"


def _interrupted(report: Report) -> Figure:
    account = report.account
    if account is None:
        return "", None, ""
    reasons = report.snapshot.reasons if report.snapshot is not None else {}
    most = max(reasons, key=lambda name: reasons[name], default="")
    about = f"{plural(account.steps_lost, 'step')} done twice"
    if most and account.interruptions > 1 and 2 * reasons[most] > sum(reasons.values()):
        about = f"mostly {told_end(most).split(':')[0]}; {about}"
    return "Interruptions", count(account.interruptions), about


def count(number: float) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{number:,.0f}".replace(",", "\u202f")
