"""The files of shown tiles: whole, replaced at once, and read by whoever comes along meanwhile."""

import errno
import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agl_core.errors import UserError
from agl_core.geometry import Pose
from agl_core.reporting.pictures import tiles as module
from agl_core.reporting.pictures.tiles import Tile, read_about, read_tiles, write_tiles


def some(count: int = 3, salt: int = 0) -> list[Tile]:
    found = []
    for number in range(count):
        rng = np.random.default_rng(number)
        truth = rng.integers(0, 65536, (12, 20)).astype(np.uint16)
        rgb = None if number == 1 else rng.integers(0, 256, (12, 20, 3)).astype(np.uint8)
        predicted = np.random.default_rng([number, salt]).integers(0, 65535, (12, 20)).astype(np.uint16)
        pose = None if number == 2 else Pose(0.1 * number, 1 / 3)
        found.append(Tile(f"T<{number}>", "A", rgb, truth, predicted, pose, Pose(0.7, 0.1 + salt), 0.3))
    return found


def same(first: list[Tile], second: list[Tile]) -> bool:
    def key(tile: Tile) -> list[Any]:
        arrays = [None if a is None else (a.dtype, a.tolist()) for a in (tile.rgb, tile.truth_cm, tile.predicted_cm)]
        return [*arrays, tile.id, tile.city, tile.truth, tile.prediction, tile.zoom]

    return [key(tile) for tile in first] == [key(tile) for tile in second]


def test_tiles_come_back_to_the_last_bit(tmp_path: Path) -> None:
    assert (read_tiles(tmp_path / "none"), read_about(tmp_path / "none")) == ([], {})
    write_tiles(tmp_path, some(), step=7, score=0.5)
    assert same(read_tiles(tmp_path), some())
    assert read_about(tmp_path) == {"step": 7, "score": 0.5}


def test_new_tiles_replace_the_old_ones_and_what_is_the_same_is_not_written_again(tmp_path: Path) -> None:
    write_tiles(tmp_path, some())
    for name in (".0123456789abcdef.01234567.part.png", ".tiles.01234567.part.json"):  # left by a kill
        (tmp_path / name).touch()
    (tmp_path / "notes.txt").touch()
    before = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    write_tiles(tmp_path, some(salt=1))
    assert same(read_tiles(tmp_path), some(salt=1))
    after = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    assert len(after) == 1 + 2 + 3 + 3 + 1  # images, truths and predictions, the index, and the notes
    assert sum(before.get(name) == inode for name, inode in after.items()) == 2 + 3 + 1


@pytest.mark.parametrize("call", range(1, 8))
def test_a_disk_that_refuses_leaves_the_old_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    write_tiles(tmp_path, some())
    calls, real = 0, os.replace

    def refuse(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls >= call:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    news = [replace(tile, truth_cm=tile.truth_cm[::-1].copy()) for tile in some(salt=1)]
    with pytest.raises(OSError, match="No space"):
        write_tiles(tmp_path, news)
    assert same(read_tiles(tmp_path), some())
    monkeypatch.undo()
    write_tiles(tmp_path, news)
    assert same(read_tiles(tmp_path), news)
    assert not [path for path in tmp_path.iterdir() if "part" in path.name]


def _write_and_die(folder: Path, call: int) -> None:
    calls, real = 0, os.replace

    def die(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            os._exit(9)
        real(source, target)

    os.replace = die  # type: ignore[assignment]
    write_tiles(folder, some(salt=1))
    os._exit(0)


@pytest.mark.parametrize("call", range(1, 5))
def test_a_kill_anywhere_leaves_the_old_tiles_and_nothing_after_the_next_writing(tmp_path: Path, call: int) -> None:
    write_tiles(tmp_path, some())
    process = multiprocessing.get_context("fork").Process(target=_write_and_die, args=(tmp_path, call))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert same(read_tiles(tmp_path), some())
    write_tiles(tmp_path, some(salt=2))
    assert len(list(tmp_path.iterdir())) == 1 + 2 + 3 + 3


def test_who_reads_while_tiles_are_replaced_gets_the_new_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiles(tmp_path, some())
    real = module.read_json
    reads = 0

    def read(path: Path) -> Any:
        nonlocal reads
        reads += 1
        found = real(path)
        if reads == 1:
            write_tiles(tmp_path, some(salt=1))
        return found

    monkeypatch.setattr(module, "read_json", read)
    assert same(read_tiles(tmp_path), some(salt=1))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda entry: entry.update(truth_cm="../../etc/passwd"),
        lambda entry: entry.update(truth_cm=7),
        lambda entry: entry.update(zoom=0),
        lambda entry: entry.update(prediction=None),
        lambda entry: entry.update(prediction={"scale": -1, "angle": 0}),
        lambda entry: entry.update(rgb=entry["truth_cm"]),
        lambda entry: entry.pop("predicted_cm"),
    ],
)
def test_damaged_files_are_refused_in_one_sentence(tmp_path: Path, spoil: Any) -> None:
    write_tiles(tmp_path, some())
    index = json.loads((tmp_path / "tiles.json").read_text())
    spoil(index["tiles"][0])
    (tmp_path / "tiles.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"tiles\.json") as caught:
        read_tiles(tmp_path)
    assert "\n" not in str(caught.value)


def test_no_file_outside_of_the_folder_is_read(tmp_path: Path) -> None:
    write_tiles(tmp_path / "in", some(1))
    index = tmp_path / "in" / "tiles.json"
    known = json.loads(index.read_text())
    name = known["tiles"][0]["truth_cm"]
    (tmp_path / name).write_bytes((tmp_path / "in" / name).read_bytes())
    known["tiles"][0]["truth_cm"] = f"../{name}"
    index.write_text(json.dumps(known))
    with pytest.raises(UserError, match="is not the name of a picture"):
        read_tiles(tmp_path / "in")


def test_a_picture_that_is_gone_or_broken_is_refused(tmp_path: Path) -> None:
    write_tiles(tmp_path, some())
    picture = next(tmp_path.glob("*.png"))
    picture.write_bytes(b"no picture")
    with pytest.raises(UserError, match="cannot be read"):
        read_tiles(tmp_path)
    picture.unlink()
    with pytest.raises(UserError, match="does not exist"):
        read_tiles(tmp_path)
