"""How times, ends and names are spoken to a person, in a terminal and in a page."""

import re
import time
import unicodedata
from collections.abc import Mapping

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]")

REASONS = {
    "preempted": "preempted: another job needed its place",
    "cancelled by preemption": "preempted without a grace: another job needed its place",
    "requeued": "sent back to the queue by somebody, or as its node failed",
    "time limit": "its time limit was reached",
    "warned": "asked to leave by a signal: a time limit, or somebody by hand",
    "conductor died": "the process that starts its ranks died",
    "cancelled": "cancelled by its owner",
    "unknown": "asked to leave, nobody could say why",
    "killed": "killed without a warning: its processes, its node or the power",
    "crashed": "a process crashed",
    "INT": "interrupted with Ctrl-C",
    "TERM": "asked to leave by the signal TERM",
    "USR2": "asked to leave by the signal USR2",
    "USR1": "asked to leave by the signal USR1",
    "HUP": "its terminal was closed",
    "interrupted": "asked to leave by a signal",
    "refused": "something must be mended first",
    "taken over": "another process has taken the run over",
    "again": "started again",
}
"""Why a start of a job ended, as the history has it, in words."""

COSTS = {
    "queue": "{} in the queue",
    "start-up": "{} of starting again",
    "lost": "{} of steps done again",
    "ending": "{} of saving and leaving",
    "down": "{} dead before it was noticed",
}
"""What interruptions cost, by item of the account, in words."""


def clean(text: object) -> str:
    """A text from elsewhere on one line, without anything that a terminal would take for an order."""
    plain = _ESCAPES.sub("", str(text))
    kept = (" " if mark in "\n\r\t" else mark for mark in plain)
    return "".join(mark for mark in kept if unicodedata.category(mark)[0] != "C")


def span(seconds: float) -> str:
    """A stretch of time in its largest sensible unit."""
    seconds = max(seconds, 0.0)
    for unit, name, digits in ((86400, "d", 1), (3600, "h", 1), (60, "min", 0)):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.{digits}f} {name}"
    return f"{seconds:.0f} s"


def moment(at: float, now: float) -> str:
    """A clock time near `now`, both unix seconds, in local time: with the date where it is not today."""
    then, today = time.localtime(at), time.localtime(now)
    form = "%H:%M" if then[:3] == today[:3] else "%a %d %b %H:%M" if abs(at - now) < 180 * 86400 else "%Y-%m-%d %H:%M"
    return time.strftime(form, then)


def reason(end: str, why: str) -> str:
    """The key of `REASONS` for how a start of a job ended; empty ends were killed."""
    if not end:
        return "killed"
    return "crashed" if end == "crashed" else why or end


def in_words(key: str) -> str:
    """A reason as a person would say it; one that is not known is passed on."""
    return REASONS.get(key, clean(key))


def counted(reasons: Mapping[str, int]) -> str:
    """`6 preempted, 1 crashed`."""
    return ", ".join(f"{number} {clean(name)}" for name, number in reasons.items())


def plural(number: int, one: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{number} {one}{'s' * (number != 1)}"
