"""What is said about these tests on a machine without Slurm; see `tests/conftest.py`."""

import os
from collections.abc import Iterable
from typing import Any

from tests.slurm.minislurm import missing

NEEDED = "AGL_NEED_SLURM"
"""Environment variable: 1 where a missing Slurm is a failure, as in CI."""
HERE = "tests/slurm/"


def reason() -> str | None:
    """Why there can be no cluster here; None if there can."""
    names = missing()
    return f"no {', '.join(names)} here (apt-get install slurm-wlm)" if names else None


def needed() -> bool:
    """Whether it must be there."""
    return os.environ.get(NEEDED, "") not in ("", "0")


def sentence(skipped: Iterable[Any]) -> str | None:
    """One line about the tests that were left out for want of Slurm; None if there were none."""
    count = sum(report.nodeid.startswith(HERE) for report in skipped)
    return f"left out: {count} tests on a real Slurm, {reason()}" if count and reason() else None


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say it at the end of the session."""
    if told := sentence(terminalreporter.stats.get("skipped", [])):
        terminalreporter.write_line(told)
