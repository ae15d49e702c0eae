"""`prepare --check`: damage, changes, and stores that are well; nothing is written."""

import errno
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

from agl_core.config import PrepareConfig
from agl_core.data.prepare.ingest import prepare
from agl_core.data.store.layout import release, subtile_key
from agl_core.data.tiles import write_agl
from agl_core.errors import UserError
from jobs.cli import parse
from jobs.snapshot import ROOT
from tests.data.prepare.test_ingest import decoded as decoded  # a fixture
from tests.data.prepare.test_ingest import make_data, records, replace_line


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set whose store is sealed."""
    data = make_data(tmp_path / "data")
    prepare(PrepareConfig(data=str(data), workers=1))
    return data


def files(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def damage(store: Path, tile: str, row: int = 0) -> None:
    """Flip a bit of a value where it lies in the file, as a bad disk would."""
    with lmdb.open(str(store), readonly=True, lock=False) as environment, environment.begin() as transaction:
        value = bytes(transaction.get(subtile_key(tile, row, 0)))
    content = bytearray((store / "data.mdb").read_bytes())
    where = content.find(value[:64])
    assert where > 0
    content[where + len(value) // 2] ^= 4
    (store / "data.mdb").write_bytes(content)
    release(store)


def check(data: Path, workers: int = 1) -> None:
    prepare(PrepareConfig(data=str(data), workers=workers, check=True))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_good_store_is_said_to_be_good_and_nothing_is_written(
    data: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(data)
    capsys.readouterr()
    check(data, workers)
    assert "all 5 tiles are whole" in capsys.readouterr().out
    assert files(data) == before


def test_a_store_that_cannot_be_written_to_is_checked(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write to every folder; so each attempt to open a file of the store for writing fails."""
    opened = os.open

    def read_only(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, flags, *arguments, **options)

    for path in [*(data / "store").iterdir(), data / "store"]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    monkeypatch.setattr(os, "open", read_only)
    try:
        check(data)
    finally:
        (data / "store").chmod(0o755)


@pytest.mark.parametrize("workers", [1, 2])
def test_all_damaged_tiles_are_listed_and_the_command_that_is_named_repairs_them_and_nothing_else(
    data: Path, workers: int, capsys: pytest.CaptureFixture[str], decoded: list[str]
) -> None:
    good = records(data / "store")
    damage(data / "store", "OMA_e")
    damage(data / "store", "ARG_b", row=1)
    before = files(data)
    with pytest.raises(
        UserError, match=r"of 5 tiles, 2 damaged \(ARG_b, OMA_e\): run `.*`.* and nothing else$"
    ) as said:
        check(data, workers)
    assert files(data) == before
    lines = capsys.readouterr().err
    assert "tile ARG_b (sub-tile 1, 0)" in lines
    assert "tile OMA_e (sub-tile 0, 0)" in lines
    command = re.search("`(.*)`", str(said.value))
    assert command is not None
    decoded.clear()
    prepare(replace(parse(shlex.split(command[1])[2:]).config, workers=1))
    assert decoded == ["ARG_b", "OMA_e"]
    check(data, workers)
    assert records(data / "store") == good


def test_a_store_with_many_damaged_tiles_is_to_be_made_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agl_core.data.prepare import check as module

    monkeypatch.setattr(module, "MOST_REDONE", 1)
    damage(data / "store", "OMA_e")
    damage(data / "store", "ARG_b")
    with pytest.raises(UserError, match=r"delete the folder .*/store and run prepare again"):
        check(data)


def test_the_data_set_s_changes_are_told_and_a_plain_run_of_prepare_follows_them(data: Path) -> None:
    train = data / "train"
    write_agl(train / "JAX_c_AGL.tif", np.full((64, 64), 7, np.uint16), "cm")
    vflow = train / "ARG_a_VFLOW.json"
    vflow.write_text(vflow.read_text().replace("1", "2"))  # of the same size
    os.utime(train / "JAX_d_RGB.tif", ns=(0, 12345))  # of the same content
    (train / "OMA_f_RGB.tif").write_bytes((train / "OMA_e_RGB.tif").read_bytes())
    (train / "OMA_f_AGL.tif").write_bytes((train / "OMA_e_AGL.tif").read_bytes())
    replace_line(data / "geopose_train.csv", "OMA_e", "OMA_f,OMA_f_AGL.tif,,OMA_f_RGB.tif")
    replace_line(data / "metadata.csv", "OMA_e", "OMA_f,OMA,0.9,place0")
    before = files(data)
    with pytest.raises(UserError) as said:
        check(data)
    assert (
        f"store {data}/store: of 5 tiles, 1 missing (OMA_f), 2 made of files that have changed since (ARG_a, JAX_c), "
        "1 no longer in the data set (OMA_e): run `"
    ) in str(said.value)
    assert files(data) == before
    prepare(PrepareConfig(data=str(data), workers=1))
    check(data)


def test_a_store_that_is_not_finished_is_said_to_be_so(data: Path) -> None:
    (data / "train" / "ARG_b_RGB.tif").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be read as an image"):
        prepare(PrepareConfig(data=str(data), workers=1))
    with pytest.raises(UserError, match="is not finished: run prepare again"):
        check(data)


def test_a_store_without_offsets_is_good_and_it_is_said_that_it_is_slow(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    check(data)
    assert "offsets.bin" not in capsys.readouterr().out
    (data / "store" / "offsets.bin").unlink()
    before = files(data)
    check(data)
    said = capsys.readouterr().out
    assert "all 5 tiles are whole" in said
    assert "without an offsets.bin that fits, reads over a network are slow; prepare writes it anew" in said
    assert files(data) == before


def test_the_exit_codes_are_those_of_every_command(data: Path) -> None:
    command = [sys.executable, str(ROOT / "launch.py"), "prepare", "--data", str(data), "--check", "--workers", "2"]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    damage(data / "store", "JAX_c")
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
