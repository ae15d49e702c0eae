"""What the checks have found, and how it is told."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TextIO

from rich.text import Text

GOOD, WARNING, FAILURE = LEVELS = ("good", "warning", "failure")
SIGNS = {GOOD: "+", WARNING: "!", FAILURE: "x"}
STYLES = {GOOD: "green", WARNING: "yellow", FAILURE: "bold red"}
MOST = 400  # characters of what another program has said that are shown


@dataclass(frozen=True)
class Finding:
    """One line of the doctor. level: good, warning or failure; about: what was looked at, in a word or two; text: what
    was found; remedy: what to do about it, empty where all is well."""

    level: str
    about: str
    text: str
    remedy: str = ""


def good(about: str, text: str) -> Finding:
    """All is well."""
    return Finding(GOOD, about, text)


def warning(about: str, text: str, remedy: str) -> Finding:
    """It may bite."""
    return Finding(WARNING, about, text, remedy)


def failure(about: str, text: str, remedy: str) -> Finding:
    """It will not work."""
    return Finding(FAILURE, about, text, remedy)


def badness(findings: Iterable[Finding]) -> tuple[int, int]:
    """How many fail, then how many may bite: the less, the better."""
    levels = [finding.level for finding in findings]
    return levels.count(FAILURE), levels.count(WARNING)


def spoken(seconds: float) -> str:
    """A time in words."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.4g} h"


def shown(text: str) -> str:
    """What another program or file has said, as one line without characters that a terminal would obey."""
    line = " ".join(re.sub(r"[^\x20-\x7e\xa0-\U0010ffff]", " ", text).split())
    return line if len(line) <= MOST else f"{line[: MOST - 3]}..."


def tell(findings: Sequence[Finding], file: TextIO, summed_up: bool = True) -> None:
    """Print a line for each, with the remedy below what is not good; the level is said by a word and a sign, and where
    the stream is a terminal by a colour too."""
    from rich.console import Console

    console = Console(file=file, soft_wrap=True, highlight=False, emoji=False)
    width = max((len(finding.about) for finding in findings), default=0)
    for finding in findings:
        line = Text()
        line.append(f"{SIGNS[finding.level]} {finding.level:<8}", style=STYLES[finding.level])
        line.append(f"{finding.about:<{width}}  ", style="bold")
        line.append(shown(finding.text))
        console.print(line)
        if finding.remedy:
            console.print(Text(f"{'':{width + 12}}{shown(finding.remedy)}", style="dim"))
    if summed_up:
        console.print(Text(summary(findings)))


def summary(findings: Sequence[Finding]) -> str:
    """How many of each level there are."""
    counts = {level: sum(finding.level == level for finding in findings) for level in LEVELS}
    words = [f"{counts[GOOD]} good"]
    words += [f"{counts[level]} {level}{'s' * (counts[level] != 1)}" for level in (WARNING, FAILURE)]
    return ", ".join(words)


def as_json(findings: Sequence[Finding]) -> str:
    """The findings, and how many of each level there are."""
    counts = {level: sum(finding.level == level for finding in findings) for level in LEVELS}
    return json.dumps({**counts, "findings": [asdict(finding) for finding in findings]}, indent=2)
