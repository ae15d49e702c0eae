import errno
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agl_core.durable import retention
from agl_core.durable.checkpoint import load_checkpoint, save_checkpoint
from agl_core.durable.retention import ABANDONED, Retention, list_checkpoints
from tests.durable.states import equal, state

KEEP_ALL = Retention(last=99)


def steps(folder: Path) -> list[int]:
    """The steps of the checkpoints; no hidden leftovers besides them."""
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    return [int(path.name.removeprefix("step_")) for path in reversed(list_checkpoints(folder))]


def damage(path: Path, name: str = "model.safetensors") -> None:
    (path / name).write_bytes(b"")


@pytest.mark.parametrize(("last", "kept"), [(1, [5]), (2, [4, 5]), (9, [1, 2, 3, 4, 5]), (0, [5])])
def test_the_newest_are_kept(last: int, kept: list[int], tmp_path: Path) -> None:
    for step in range(1, 6):
        save_checkpoint(tmp_path, state(step), Retention(last=last))
    assert steps(tmp_path) == kept


def test_the_newest_best_the_newest_scheduled_and_all_milestones_stay(tmp_path: Path) -> None:
    flags: dict[int, dict[str, bool]] = {
        1: {"best": True, "milestone": True},
        2: {"scheduled": True},
        3: {"best": True},
        4: {"milestone": True, "scheduled": True},
        5: {"best": False, "scheduled": False, "milestone": False},
        6: {},
    }
    for step, own in flags.items():
        save_checkpoint(tmp_path, state(step, **own), Retention(last=1))
    assert steps(tmp_path) == [1, 3, 4, 6]


def test_the_best_is_not_kept_where_it_is_not_wanted(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(1, best=True), Retention(last=1, best=False))
    save_checkpoint(tmp_path, state(2), Retention(last=1, best=False))
    assert steps(tmp_path) == [2]


@given(
    states=st.lists(
        st.dictionaries(st.sampled_from(["best", "scheduled", "milestone"]), st.sampled_from([True, False, 1, None])),
        min_size=1,
        max_size=8,
    ),
    last=st.integers(-1, 9),
    best=st.booleans(),
)
def test_what_is_kept_is_what_the_rule_says(states: list[dict[str, Any]], last: int, best: bool) -> None:
    kept = Retention(last, best).keeps(states)
    assert len(kept) == len(states)
    assert kept[0]
    for place, own in enumerate(states):
        newer = states[:place]
        reasons = [
            place < max(last, 1),
            own.get("milestone") is True,
            own.get("scheduled") is True and not any(other.get("scheduled") is True for other in newer),
            best and own.get("best") is True and not any(other.get("best") is True for other in newer),
        ]
        assert kept[place] == any(reasons)


def test_later_ones_are_left_alone_since_another_process_may_just_have_saved_them(tmp_path: Path) -> None:
    for step in (1, 2, 8, 9):
        save_checkpoint(tmp_path, state(step), KEEP_ALL)
    save_checkpoint(tmp_path, state(3), Retention(last=1))
    assert steps(tmp_path) == [3, 8, 9]


def test_a_damaged_later_one_that_was_skipped_makes_room_for_the_new_one(tmp_path: Path) -> None:
    for step in (200, 800, 900):
        path = save_checkpoint(tmp_path, state(step), KEEP_ALL)
        assert path is not None
        if step > 200:
            damage(path)
    _, skipped = load_checkpoint(tmp_path)
    save_checkpoint(tmp_path, state(300), Retention(last=1), discard=[line.partition(":")[0] for line in skipped])
    loaded, skipped = load_checkpoint(tmp_path)
    assert equal(loaded, state(300))
    assert skipped == []
    assert steps(tmp_path) == [300]


def test_what_is_to_be_discarded_goes_whatever_its_step_and_flags(tmp_path: Path) -> None:
    for step in (1, 4, 6, 9):
        save_checkpoint(tmp_path, state(step, milestone=True), KEEP_ALL)
    names = ["step_00000004", "step_00000009", "step_00000077", "..", "/", ""]
    save_checkpoint(tmp_path, state(5), KEEP_ALL, discard=names)
    assert steps(tmp_path) == [1, 5, 6]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("way", ["empty", "removed"])
def test_a_damaged_one_does_not_crowd_out_a_good_one(tmp_path: Path, name: str, way: str) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, state(step), KEEP_ALL)
    if way == "empty":
        damage(tmp_path / "step_00000003", name)
    else:
        (tmp_path / "step_00000003" / name).unlink()
    save_checkpoint(tmp_path, state(4), Retention(last=2))
    assert steps(tmp_path) == [2, 4]


@pytest.mark.parametrize(
    "content", [b"{}", b"[]", b"[" * 100_000, b"\xff", b'{"state.json": 1}'], ids=lambda c: repr(c[:9])
)
@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
def test_no_content_however_odd_of_an_older_one_stops_a_save(tmp_path: Path, name: str, content: bytes) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, state(step), KEEP_ALL)
    (tmp_path / "step_00000003" / name).write_bytes(content)
    save_checkpoint(tmp_path, state(4), Retention(last=2))
    assert steps(tmp_path) == [2, 4]


def test_one_that_cannot_be_read_just_now_is_kept_and_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, state(step), KEEP_ALL)
    read = Path.read_text

    def stale(path: Path, *args: Any, **more: Any) -> str:
        if "step_00000003" in str(path):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return read(path, *args, **more)

    monkeypatch.setattr(Path, "read_text", stale)
    save_checkpoint(tmp_path, state(4), Retention(last=2))
    assert steps(tmp_path) == [2, 3, 4]


def refusing(call: Callable[..., Any], part: str) -> Callable[..., Any]:
    """`call`, which is not permitted where the path contains `part`."""

    def refuse(path: Any, *args: Any, **more: Any) -> Any:
        if part in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return call(path, *args, **more)

    return refuse


@pytest.mark.parametrize("call", ["rename", "unlink", "rmdir"])
def test_a_deletion_that_is_not_permitted_harms_nothing_and_is_done_later(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, state(step))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refusing(getattr(os, call), "step_00000001"))
        save_checkpoint(tmp_path, state(3))
        loaded, skipped = load_checkpoint(tmp_path)
    assert equal(loaded, state(3))
    assert skipped == []
    assert len(list(tmp_path.iterdir())) == 3, "the deletion was not attempted"
    save_checkpoint(tmp_path, state(4))
    assert steps(tmp_path) == [3, 4]


def test_one_of_an_abandoned_course_that_stays_is_an_error_since_it_could_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 9):
        save_checkpoint(tmp_path, state(step))
    monkeypatch.setattr(os, "rename", refusing(os.rename, "step_00000009"))
    with pytest.raises(PermissionError):
        save_checkpoint(tmp_path, state(2), discard=["step_00000009"])


def leave(folder: Path, name: str, age: float) -> Path:
    """What a process leaves that is killed in the middle of a save or a deletion, `age` seconds ago."""
    path = folder / name
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"torn")
    then = time.time() - age
    for left in (path / "model.safetensors", path):
        os.utime(left, (then, then))
    return path


@pytest.mark.parametrize("step", [1, 3, 7])
def test_what_killed_processes_left_is_deleted(tmp_path: Path, step: int) -> None:
    leave(tmp_path, f".step_{step:08d}.0a1b.part", ABANDONED + 60)
    leave(tmp_path, f".step_{step:08d}.0a1b.gone", 0)
    leave(tmp_path, f".step_{step:08d}.part", ABANDONED + 60)
    os.utime(tmp_path, (0, 0))  # nothing has happened there for long
    save_checkpoint(tmp_path, state(3))
    assert steps(tmp_path) == [3]


@pytest.mark.parametrize("step", [1, 3, 7])
def test_a_part_that_may_still_be_written_is_left_alone(tmp_path: Path, step: int) -> None:
    part = leave(tmp_path, f".step_{step:08d}.0a1b.part", ABANDONED - 60)
    save_checkpoint(tmp_path, state(3))
    assert (part / "model.safetensors").read_bytes() == b"torn"


def test_one_leftover_that_stays_does_not_keep_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for token in ("0a", "1b", "2c"):
        leave(tmp_path, f".step_00000001.{token}.part", ABANDONED + 60)
    monkeypatch.setattr(os, "rename", refusing(os.rename, ".1b."))
    save_checkpoint(tmp_path, state(2))
    assert sorted(os.listdir(tmp_path)) == [".step_00000001.1b.part", "step_00000002"]


def test_a_part_in_which_a_file_has_grown_lately_is_left_alone(tmp_path: Path) -> None:
    part = leave(tmp_path, ".step_00000003.0a1b.part", ABANDONED + 60)
    os.utime(part / "model.safetensors")
    save_checkpoint(tmp_path, state(3))
    assert part.exists()


def test_what_is_left_is_deleted_before_the_new_one_is_written_so_that_it_cannot_fill_the_disk_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(tmp_path, ".step_00000003.0a1b.part", ABANDONED + 60)

    def full(path: Any, *args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, state(4))
    assert list(tmp_path.iterdir()) == []


class Killed(BaseException):
    """The end of a process."""


@pytest.mark.parametrize("deletions", [0, 1, 3, 9])
def test_a_part_that_was_taken_for_abandoned_is_never_published_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deletions: int
) -> None:
    """By a clock that jumps, say; and the process that deletes it is killed after some files."""
    save_checkpoint(tmp_path, state(1))
    polls, unlinks, unlink = count(), count(), os.unlink

    def deadly(path: Any, **more: Any) -> None:
        if next(unlinks) == deletions:
            raise Killed
        unlink(path, **more)

    def meanwhile() -> bool:
        if next(polls) == 6:  # the last look before it is published: all files are written
            with monkeypatch.context() as patch, suppress(Killed):
                patch.setattr(retention, "ABANDONED", -1.0)
                patch.setattr(os, "unlink", deadly)
                save_checkpoint(tmp_path, state(3))
        return False

    with pytest.raises(FileNotFoundError):
        save_checkpoint(tmp_path, state(2), cancelled=meanwhile)
    loaded, skipped = load_checkpoint(tmp_path)
    assert equal(loaded, state(3 if deletions == 9 else 1))
    assert skipped == []


def test_a_link_is_removed_and_not_what_it_points_to(tmp_path: Path) -> None:
    other, folder = tmp_path / "other", tmp_path / "stage"
    save_checkpoint(other, state(1))
    folder.mkdir()
    (folder / "step_00000001").symlink_to(other / "step_00000001")
    for step in (2, 3):
        save_checkpoint(folder, state(step))
    assert steps(folder) == [2, 3]
    assert equal(load_checkpoint(other)[0], state(1))


def test_what_else_lies_in_the_folder_is_not_touched(tmp_path: Path) -> None:
    for name in ("notes.txt", "step_best", ".nfs0001"):
        (tmp_path / name).write_text("mine")
    shutil.copytree(save_checkpoint(tmp_path, state(1)) or "", tmp_path / "step_00000001.bak")
    for step in (2, 3, 4):
        save_checkpoint(tmp_path, state(step), Retention(last=1))
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".nfs0001", "notes.txt", "step_00000001.bak", "step_00000004", "step_best"]
