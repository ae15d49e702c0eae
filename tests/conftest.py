"""What many tests need: single-threaded torch, and a small store."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.slurm.left_out import pytest_terminal_summary as pytest_terminal_summary  # a hook

os.environ.setdefault("OMP_NUM_THREADS", "1")  # bits are compared: fixed thread count
os.environ["HF_HUB_OFFLINE"] = "1"  # tests never reach for the network


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed store of 13 tiles of three shapes in two cities, one of them without vector flow."""
    from agl_core.data.store import StoreEntry, StoreWriter

    path = tmp_path_factory.mktemp("tiny") / "store"
    generator = np.random.default_rng(0)
    with StoreWriter(path) as writer:
        for number in range(13):
            height, width = [(96, 96), (80, 130), (60, 64)][number % 3]
            agl = generator.integers(0, 3000, (height, width)).astype(np.uint16)
            agl[:5] = 65535
            rgb = generator.integers(0, 255, (height, width, 3)).astype(np.uint8)
            city, place = ("BBB", "AAA")[number % 2], f"place{number // 2}"
            scale, angle = (None, None) if number == 4 else (0.5 + number / 10, float(number % 6))
            entry = StoreEntry(f"{city}_{number:02d}", city, 0.5, height, width, scale, angle, place)
            writer.write(entry, rgb, agl)
        writer.seal()
    return path


@pytest.fixture(autouse=True)
def _no_handler_of_a_loader_stays() -> Iterator[None]:
    """A DataLoader made in the main thread, as only tests do, has every later death of a worker raised there."""
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)
