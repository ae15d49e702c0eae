"""A small built-in world, prepared, on which every recipe is tried."""

from pathlib import Path

import pytest

from agl_core.config import PrepareConfig, WorldConfig
from agl_core.data.prepare.ingest import prepare
from agl_core.world.dataset import render_world


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cities: 42 tiles of 14 places to train on, at least as many as any recipe has folds, and 9 to predict."""
    out = tmp_path_factory.mktemp("recipes") / "world"
    render_world(WorldConfig(out=str(out), tiles=51, size=80, test_share=0.06, workers=1))
    prepare(PrepareConfig(data=str(out), workers=1))
    return out
