"""How times, ends and names are spoken to a person, in a terminal and in a page."""

import math
import re
import time
import unicodedata
from collections.abc import Mapping, Sequence

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
    "INT": "Ctrl-C",
    "TERM": "asked to leave by TERM",
    "USR2": "asked to leave by USR2",
    "USR1": "asked to leave by USR1",
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
    "down": "{} dead before it was noticed, or suspended",
}
"""What interruptions cost, by item of the account, in words."""


UNITS = ((86400, "d", 1), (3600, "h", 1), (60, "min", 0))
"""Units of time: seconds, name, and digits after the point."""
NEW_RUN = "start a new --run"
"""What a refusal says if its run cannot go on whatever is mended."""


def clean(text: object) -> str:
    """A text from elsewhere on one line, without anything that a terminal would take for an order."""
    plain = _ESCAPES.sub("", str(text))
    kept = (" " if mark in "\n\r\t" else mark for mark in plain)
    return "".join(mark for mark in kept if unicodedata.category(mark)[0] != "C")


def span(seconds: float) -> str:
    """A stretch of time in its largest sensible unit."""
    seconds = max(seconds, 0.0)
    for unit, name, digits in UNITS:
        if seconds >= 2 * unit:
            return f"{seconds / unit:.{digits}f} {name}"
    return f"{seconds:.0f} s"


def spans(parts: Sequence[float]) -> tuple[str, list[str]]:
    """Stretches of time and their sum before them, all in its unit, such that what is shown adds up; "" for those of
    which nothing is left in it."""
    total = max(math.fsum(parts), 0.0)
    size, name, digits = next((unit for unit in UNITS if total >= 2 * unit[0]), (1, "s", 0))
    least = size / 10**digits
    shares = [max(part, 0.0) / least for part in parts]
    whole = [math.floor(share) for share in shares]
    largest = sorted(range(len(parts)), key=lambda place: (whole[place] - shares[place], place))
    for place in largest[: round(total / least) - sum(whole)]:
        whole[place] += 1
    told = [f"{number * least / size:.{digits}f} {name}" if number else "" for number in whole]
    return f"{sum(whole) * least / size:.{digits}f} {name}", told


def moment(at: float, now: float) -> str:
    """A clock time near `now`, both unix seconds, in local time with its zone: with the date where it is not today."""
    try:
        then, today = time.localtime(at), time.localtime(now)
    except (OverflowError, ValueError, OSError):  # of a damaged file
        return "a time that no clock knows"
    form = "%H:%M" if then[:3] == today[:3] else "%a %d %b %H:%M" if abs(at - now) < 180 * 86400 else "%Y-%m-%d %H:%M"
    return f"{time.strftime(form, then)} {zone(at)}"


def zone(at: float) -> str:
    """The time zone in which the local time of unix second `at` is told: `CET`, or how far it is from UTC where it has
    no name."""
    then = time.localtime(at)
    name = time.strftime("%Z", then)
    return name if name.isalpha() else time.strftime("%z", then)


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
