"""A job that asks a real Slurm why it was signalled is told the truth."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import scontrol
from jobs.why import UNKNOWN, why
from tests.slurm.why_rows import ROWS


@pytest.mark.parametrize("name", ROWS)
def test_a_job_knows_why_it_was_signalled(name: str, result_of: Callable[[str], dict[str, Any]]) -> None:
    result = result_of(name)
    assert result["problems"] == []


def test_a_slurm_that_is_not_there_leaves_the_reason_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert why(scontrol.show_job("1"), 0) == UNKNOWN


def test_a_controller_that_does_not_answer_leaves_the_reason_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slurm.conf").write_text("ClusterName=none\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=9\n")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    assert why(scontrol.show_job("1"), 0) == UNKNOWN
