import errno
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from agl_core.durable import checkpoint
from agl_core.durable.checkpoint import load_checkpoint, save_checkpoint, verify_checkpoint
from agl_core.durable.retention import Retention
from agl_core.durable.tensorfile import Fingerprint
from tests.durable.disk import read_tree
from tests.durable.states import equal, state

FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flip(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def test_the_newest_checkpoint_comes_back_whole(tmp_path: Path) -> None:
    for step in (9, 10, 11):
        save_checkpoint(tmp_path, state(step))
    loaded, skipped = load_checkpoint(tmp_path)
    assert equal(loaded, state(11))
    assert skipped == []
    assert names(tmp_path) == ["step_00000010", "step_00000011"]


def test_numbers_of_the_state_come_back_to_the_last_bit(tmp_path: Path) -> None:
    saved = state(1)
    saved.state |= {"scale": 2.0**-149, "third": 1 / 3, "big": 2**63, "none": None, "text": "µ\n", "rate": float("inf")}
    save_checkpoint(tmp_path, saved)
    loaded, _ = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded.state == saved.state


def test_the_newest_is_by_number_even_where_names_are_longer(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        save_checkpoint(tmp_path, state(step))
    loaded, _ = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded.step == 100_000_000


def test_a_loaded_checkpoint_does_not_need_its_files_any_more(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, state(1))
    loaded, _ = load_checkpoint(tmp_path)
    assert path is not None
    for name in FILES:
        with (path / name).open("r+b") as file:  # in place: the same inode that a memory map would show
            file.write(bytes((path / name).stat().st_size))
    assert equal(loaded, state(1))


def test_nothing_is_loaded_from_nothing(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "absent") == (None, [])
    assert load_checkpoint(tmp_path) == (None, [])


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, state(1))

    def stale(path: Path) -> list[str]:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    monkeypatch.setattr(os, "listdir", stale)
    with pytest.raises(OSError, match="Stale file handle"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "lengthen", "remove", "folder"])
def test_a_damaged_checkpoint_is_skipped_with_the_reason_and_an_older_one_is_used(
    tmp_path: Path, name: str, damage: str
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, state(step))
    path = tmp_path / "step_00000002" / name
    content = path.read_bytes()
    path.unlink()
    if damage == "flip":
        path.write_bytes(content)
        flip(path, len(content) // 2)
    elif damage == "folder":
        path.mkdir()
    elif damage != "remove":
        path.write_bytes({"truncate": content[:-3], "empty": b"", "lengthen": content + b" 1"}[damage])
    loaded, skipped = load_checkpoint(tmp_path)
    assert equal(loaded, state(1))
    assert len(skipped) == 1
    assert skipped[0].startswith("step_00000002: ")
    if damage in ("flip", "truncate") and name != "manifest.json":
        assert skipped == [f"step_00000002: {name} differs from its manifest"]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path, name: str) -> None:
    path = save_checkpoint(tmp_path, state(1))
    assert path is not None
    content = (path / name).read_bytes()
    unnoticed = []
    for place in range(len(content)):
        for bit in range(8) if name == "manifest.json" else [place % 8]:
            flip(path / name, place, bit)
            if verify_checkpoint(path) is None:
                unnoticed.append((place, bit))
            (path / name).write_bytes(content)
    assert unnoticed == []
    assert verify_checkpoint(path) is None


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_off_is_noticed_wherever_it_is_cut(tmp_path: Path, name: str) -> None:
    path = save_checkpoint(tmp_path, state(1))
    assert path is not None
    content = (path / name).read_bytes()
    for length in range(len(content)):
        (path / name).write_bytes(content[:length])
        assert verify_checkpoint(path) is not None, length


@pytest.mark.parametrize(
    "manifest",
    [b"", b"null", b"3", b"[]", b"{}", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"model.safetensors": 1}', b"\0" * 300],
    ids=lambda content: repr(content[:12]),
)
def test_no_manifest_however_odd_stops_the_loading(tmp_path: Path, manifest: bytes) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, state(step))
    (tmp_path / "step_00000002" / "manifest.json").write_bytes(manifest)
    loaded, skipped = load_checkpoint(tmp_path)
    assert equal(loaded, state(1))
    assert len(skipped) == 1


def test_a_manifest_that_leaves_a_file_out_does_not_vouch_for_it(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, state(1))
    assert path is not None
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["optimizer.safetensors"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert verify_checkpoint(path) == "optimizer.safetensors is not in the manifest"


def test_a_copy_under_the_name_of_another_step_is_not_taken_for_it(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, state(1))
    assert path is not None
    shutil.copytree(path, tmp_path / "step_00000007")
    loaded, skipped = load_checkpoint(tmp_path)
    assert equal(loaded, state(1))
    assert skipped == ["step_00000007: state.json is that of step 1"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), SafetensorError("header too large")])
def test_an_error_after_the_check_is_a_reason_to_go_on_to_the_next(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, state(step))
    real = checkpoint.load_file

    def failing(path: Path) -> Any:
        if path.parent.name == "step_00000002":
            raise error
        return real(path)

    monkeypatch.setattr(checkpoint, "load_file", failing)
    loaded, skipped = load_checkpoint(tmp_path)
    assert equal(loaded, state(1))
    assert skipped == [f"step_00000002: model.safetensors is unreadable ({error})"]


def test_a_file_or_a_stray_folder_with_a_similar_name_does_no_harm(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(1))
    (tmp_path / "step_00000002").write_text("not a folder")
    (tmp_path / "step_best").mkdir()
    (tmp_path / "step_00000003").mkdir()
    loaded, skipped = load_checkpoint(tmp_path)
    assert equal(loaded, state(1))
    assert [line[:15] for line in skipped] == ["step_00000003: ", "step_00000002: "]


def test_only_those_that_are_accepted_are_loaded_and_the_others_are_not_listed(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, state(step, scheduled=step in (1, 3)), Retention(last=9))
    flip(tmp_path / "step_00000003" / "model.safetensors", -1)
    seen = []

    def scheduled(content: dict[str, Any]) -> bool:
        seen.append(content["step"])
        return bool(content["scheduled"])

    loaded, skipped = load_checkpoint(tmp_path, scheduled)
    assert loaded is not None
    assert (loaded.step, seen) == (1, [4, 3, 2, 1])
    assert skipped == ["step_00000003: model.safetensors differs from its manifest"]


def test_one_that_is_deleted_while_it_is_read_sends_the_reader_to_the_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, state(1, milestone=True))
    save_checkpoint(tmp_path, state(2), Retention(last=1))
    real, once = checkpoint.load_file, iter([True])

    def overtaken(path: Path) -> Any:
        if next(once, False):
            save_checkpoint(tmp_path, state(3), Retention(last=1))
        return real(path)

    monkeypatch.setattr(checkpoint, "load_file", overtaken)
    loaded, skipped = load_checkpoint(tmp_path)
    assert equal(loaded, state(3))
    assert skipped == []


def test_an_entry_that_the_folder_lists_but_does_not_have_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, state(1))
    monkeypatch.setattr(os, "listdir", lambda path: ["step_00000001", "step_00000002"])
    loaded, skipped = load_checkpoint(tmp_path)
    assert equal(loaded, state(1))
    assert len(skipped) == 1


def test_files_and_folders_have_the_mode_of_the_users_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        saved = save_checkpoint(tmp_path / "new", state(1))
    finally:
        os.umask(before)
    assert saved is not None
    assert {path.stat().st_mode & 0o777 for path in saved.iterdir()} == {0o640}
    assert {path.stat().st_mode & 0o777 for path in (saved, saved.parent)} == {0o750}


def test_a_full_disk_is_the_operating_systems_own_error_and_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, state(1))
    before = read_tree(tmp_path)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(checkpoint, "_make_folder", lambda folder: None)
    with pytest.raises(OSError, match=r"No space left on device: .*model\.safetensors"):
        save_checkpoint(tmp_path, state(2))
    assert read_tree(tmp_path) == before


def test_a_state_that_is_not_json_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(1))
    bad = state(2)
    bad.state["tensor"] = torch.ones(1)
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, bad)
    assert names(tmp_path) == ["step_00000001"]


class LostError(RuntimeError):
    """What a fence raises."""


def test_a_fence_that_raises_keeps_all_as_it_was(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, state(step))
    flip(tmp_path / "step_00000002" / "model.safetensors", -1)
    before = read_tree(tmp_path)

    @contextmanager
    def lost() -> Iterator[None]:
        raise LostError
        yield

    for step in (2, 3):
        with pytest.raises(LostError):
            save_checkpoint(tmp_path, state(step), Retention(last=1), fence=lost, discard=["step_00000002"])
        assert read_tree(tmp_path) == before


def test_nothing_that_can_be_loaded_changes_outside_of_the_fence(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, state(step), Retention(last=9))
    flip(tmp_path / "step_00000003" / "model.safetensors", -1)
    seen: dict[str, list[str]] = {}

    def visible() -> list[str]:
        return [f"{name} {verify_checkpoint(tmp_path / name)}" for name in names(tmp_path) if name[0] != "."]

    @contextmanager
    def fence() -> Iterator[None]:
        seen["entered"] = visible()
        yield
        seen["left"] = visible()

    before = visible()
    save_checkpoint(tmp_path, state(3), Retention(last=2), fence=fence)
    assert seen["entered"] == before
    assert seen["left"] == visible() == ["step_00000002 None", "step_00000003 None"]


@pytest.mark.parametrize("answers", range(7))
def test_a_cancelled_save_leaves_nothing(tmp_path: Path, answers: int) -> None:
    save_checkpoint(tmp_path, state(1))
    asked: list[bool] = []

    def cancelled() -> bool:
        asked.append(len(asked) >= answers)
        return asked[-1]

    def fence() -> Any:
        raise AssertionError("a cancelled save publishes nothing")

    assert save_checkpoint(tmp_path, state(2), fence=fence, cancelled=cancelled) is None
    assert len(asked) == answers + 1
    assert names(tmp_path) == ["step_00000001"]


def test_a_step_that_is_there_and_good_stays_and_nothing_else_is_left(tmp_path: Path) -> None:
    saved = save_checkpoint(tmp_path, state(3))
    assert saved is not None
    before = read_tree(tmp_path), saved.stat().st_ino
    assert save_checkpoint(tmp_path, state(3, best=True)) == saved
    assert (read_tree(tmp_path), saved.stat().st_ino) == before


@pytest.mark.parametrize("bad", ["flipped", "empty folder", "file", "link to nothing"])
def test_a_step_that_is_there_and_bad_is_replaced(tmp_path: Path, bad: str) -> None:
    save_checkpoint(tmp_path, state(2))
    path = tmp_path / "step_00000003"
    if bad == "flipped":
        save_checkpoint(tmp_path, state(3))
        flip(path / "optimizer.safetensors", -1)
    elif bad == "empty folder":
        path.mkdir()
    elif bad == "file":
        path.write_text("")
    else:
        path.symlink_to("nowhere")
    save_checkpoint(tmp_path, state(3))
    loaded, skipped = load_checkpoint(tmp_path)
    assert equal(loaded, state(3))
    assert skipped == []
    assert names(tmp_path) == ["step_00000002", "step_00000003"]


def test_a_good_one_of_the_same_step_but_of_an_abandoned_course_is_replaced(tmp_path: Path) -> None:
    abandoned = state(3)
    abandoned.model["count"] = torch.tensor(-1)
    saved = save_checkpoint(tmp_path, abandoned)
    save_checkpoint(tmp_path, state(3), discard=["step_00000003"])
    assert equal(load_checkpoint(tmp_path)[0], state(3))
    assert saved is not None
    place = saved.stat().st_ino
    save_checkpoint(tmp_path, state(3), discard=["step_00000003"])
    assert saved.stat().st_ino == place, "the same state is not written over itself"


def at_once(*saves: Callable[[], Any]) -> list[Any]:
    """Run `saves` in threads of their own, and what each returned or raised."""
    results: list[Any] = [None] * len(saves)

    def run(number: int) -> None:
        try:
            results[number] = saves[number]()
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(saves))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def in_step(parties: int) -> Callable[[], Any]:
    """A fence without exclusion, at which all wait for each other: the worst moment to meet."""
    barrier = threading.Barrier(parties, timeout=60)  # one that fails earlier breaks it for all

    @contextmanager
    def fence() -> Iterator[None]:
        barrier.wait()
        yield

    return fence


@pytest.mark.parametrize("attempt", range(5))
@pytest.mark.parametrize("damaged", [False, True])
def test_the_same_step_saved_by_several_at_once_is_there_once(tmp_path: Path, attempt: int, damaged: bool) -> None:
    save_checkpoint(tmp_path, state(4))
    if damaged:
        path = save_checkpoint(tmp_path, state(5))
        assert path is not None
        flip(path / "model.safetensors", -1)
    fence = in_step(3)
    results = at_once(*[lambda: save_checkpoint(tmp_path, state(5), fence=fence)] * 3)
    assert results == [tmp_path / "step_00000005"] * 3
    loaded, skipped = load_checkpoint(tmp_path)
    assert equal(loaded, state(5))
    assert skipped == []
    assert names(tmp_path) == ["step_00000004", "step_00000005"]


@pytest.mark.parametrize("attempt", range(5))
def test_neighbouring_steps_saved_at_once_are_both_there(tmp_path: Path, attempt: int) -> None:
    save_checkpoint(tmp_path, state(1))
    fence = in_step(2)
    results = at_once(
        lambda: save_checkpoint(tmp_path, state(5), Retention(last=2), fence=fence),
        lambda: save_checkpoint(tmp_path, state(6), Retention(last=2), fence=fence),
    )
    assert results == [tmp_path / "step_00000005", tmp_path / "step_00000006"]
    assert equal(load_checkpoint(tmp_path)[0], state(6))
    assert set(names(tmp_path)) - {"step_00000001"} == {"step_00000005", "step_00000006"}


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_loading_executes_no_code_even_if_the_manifest_vouches_for_it(tmp_path: Path, name: str) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, state(step))
    path = tmp_path / "step_00000002"
    torch.save({"weight": Trap(tmp_path / "sprung")}, path / name)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest[name] = Fingerprint.of(path / name)._asdict()
    (path / "manifest.json").write_text(json.dumps(manifest))
    loaded, skipped = load_checkpoint(tmp_path)
    assert equal(loaded, state(1))
    assert len(skipped) == 1
    assert not (tmp_path / "sprung").exists()
