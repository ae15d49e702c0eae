"""A damaged copy is read from the original; only where that fails too is it an error, which names the original."""

import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from agl_core.data.stagein.reading import StagedStore
from agl_core.data.stagein.staged import ABOUT
from agl_core.data.store.layout import subtile_key
from agl_core.errors import UserError
from tests.data.store.test_store import fill, put, tile

TILES = [tile("A_a", 300, 600), tile("A_b", 40, 30)]


@pytest.fixture
def original(tmp_path: Path) -> Path:
    fill(tmp_path / "original", TILES)
    return tmp_path / "original"


@pytest.fixture
def copy(original: Path) -> Path:
    path = Path(shutil.copytree(original, original.with_name("copy")))
    (path / ABOUT).write_text("{}")
    return path


def spoil(path: Path) -> None:
    put(path, subtile_key("A_a", 1, 1), b"no sub-tile")


def assert_reads(store: StagedStore) -> None:
    for index, (_, rgb, agl_cm) in enumerate(TILES):
        found = store.read_tile(index)
        assert np.array_equal(found[0], rgb)
        assert np.array_equal(found[1], agl_cm)


def test_a_copy_that_is_whole_is_read_alone(original: Path, copy: Path) -> None:
    store = StagedStore(copy, original)
    shutil.rmtree(original)
    assert_reads(store)
    assert (copy / ABOUT).exists()


def test_what_is_damaged_is_read_from_the_original_and_said_once(
    original: Path, copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil(copy)
    store = StagedStore(copy, original)
    for _ in range(3):
        assert_reads(store)
        assert_reads(pickle.loads(pickle.dumps(store)))
    assert not (copy / ABOUT).exists()
    assert capfd.readouterr().err == (
        f"store {copy} is damaged at tile A_a (sub-tile 1, 1): its checksum is wrong; "
        f"what is wrong there is read from {original} instead\n"
    )


@pytest.mark.parametrize("lost", ["removed", "cut off"])
def test_a_copy_that_is_taken_away_is_replaced_too(original: Path, copy: Path, lost: str) -> None:
    store = StagedStore(copy, original)
    store.read_tile(0)
    if lost == "removed":
        store.close()
        shutil.rmtree(copy)
    else:
        os.truncate(copy / "data.mdb", 8192)
    assert_reads(store)


def test_an_original_that_is_damaged_too_is_what_the_error_names(original: Path, copy: Path) -> None:
    spoil(copy)
    spoil(original)
    store = StagedStore(copy, original)
    with pytest.raises(UserError, match=rf"^store {re.escape(str(original))} is damaged at tile A_a \(sub-tile 1, 1\)"):
        store.read_tile(0)
    store.read_tile(1)


def test_an_original_that_is_another_one_by_now_is_not_read(original: Path, copy: Path) -> None:
    spoil(copy)
    store = StagedStore(copy, original)
    fill(original, [tile("A_a", 300, 600, seed=1)])
    with pytest.raises(
        UserError, match=rf"^store {re.escape(str(original))} was changed while a copy of it was read: "
    ):
        store.read_tile(0)
