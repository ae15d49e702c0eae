"""What the tests of faults, divergence, take-overs and hangs share."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.faults import small, train


@pytest.fixture(scope="module")
def undisturbed(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed")
    train(small(tiny_store), run_dir)
    return run_dir


@pytest.fixture
def threads_end() -> Iterator[None]:
    """What runs beside a training ends with it, however it ends."""
    before = {thread.name for thread in threading.enumerate()}
    yield
    left = {thread.name for thread in threading.enumerate() if thread.name in ("checkpoint", "guard", "watchdog")}
    assert left <= before
