"""Whatever Slurm does to a run, it comes to its end by itself, with the bits of a run that was left alone."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.slurm.table import SCENARIOS


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_run_comes_to_its_end_on_a_real_slurm(name: str, result_of: Callable[[str], dict[str, Any]]) -> None:
    result = result_of(name)
    assert result["problems"] == [], f"{result['strikes']}\n{result['logs']}"
