"""A run that goes on with a store that is not what it was says so; of files that were only touched it knows nothing."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from agl_core.data.store import Store, StoreWriter
from agl_core.durable.exits import InterruptedRunError
from tests.training.faults import kinds, small, train

pytestmark = pytest.mark.usefixtures("threads_end")


def warned(store: Path, run_dir: Path) -> list[str]:
    """What the run was told about its store."""
    return [event["text"] for event in kinds(run_dir, "warning") if str(store) in event["text"]]


def interrupt(step: int) -> None:
    if step == 2:
        os.kill(os.getpid(), signal.SIGUSR2)


@pytest.fixture
def store(tiny_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_store, tmp_path / "store"))


def test_other_labels_in_the_store_are_told_of(store: Path, tmp_path: Path) -> None:
    with pytest.raises(InterruptedRunError):
        train(small(store), tmp_path / "run", interrupt)
    entry = Store(store).entries[0]
    rgb, agl = Store(store).read_tile(0)
    with StoreWriter(store) as writer:
        writer.write(replace(entry, gsd=2 * entry.gsd), rgb, agl)
        writer.seal()
    train(small(store), tmp_path / "run")
    (text,) = warned(store, tmp_path / "run")
    assert "has other content" in text


def test_a_store_whose_files_were_only_touched_is_the_same(store: Path, tmp_path: Path) -> None:
    before = Store(store)
    with pytest.raises(InterruptedRunError):
        train(small(store), tmp_path / "run", interrupt)
    with StoreWriter(store) as writer:
        for tile in writer.finished():
            writer.note(tile, {"touched": 1})
            assert writer.sealed
    assert Store(store).digest == before.digest, "who reads it is not disturbed"
    before.read_tile(0)
    with StoreWriter(store) as writer:
        writer.seal()
    assert Store(store).digest == before.digest
    before.read_tile(1)
    train(small(store), tmp_path / "run")
    assert warned(store, tmp_path / "run") == []


@pytest.mark.parametrize(("codec", "told"), [("raw", True), ("zstd", False), ("auto", False)])
def test_a_codec_that_the_store_does_not_have_is_told_of(
    store: Path, tmp_path: Path, codec: str, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    train(small(store, steps=1, codec=codec), tmp_path / "run")
    assert ("the store is in codec zstd" in capsys.readouterr().err) is told
