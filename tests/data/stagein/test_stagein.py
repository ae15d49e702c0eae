"""Copies of a store on the node's own disk: shared, verified, continued after a kill, and removed by the last."""

import errno
import fcntl
import multiprocessing
import os
import random
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest

from agl_core.data.stagein import copying
from agl_core.data.stagein import staged as stagein
from agl_core.data.stagein.staged import (
    ABOUT,
    JOURNAL,
    LOCK,
    NotStagedError,
    StagedCopy,
    StopCopyingError,
    expand,
)
from agl_core.data.stagein.state import StoreState

CHUNK = 64 << 10
CHUNKS = 20  # of the database, at least
PROCESSES: Any = multiprocessing.get_context("fork")


def never() -> bool:
    return False


@pytest.fixture(autouse=True)
def _another_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """All folders of a test lie on one file system, whose free space is not the test's business."""
    monkeypatch.setattr(stagein, "same_file_system", lambda *_: False)
    monkeypatch.setattr(stagein, "shortage", lambda *_: None)
    monkeypatch.setattr(stagein, "POLL", 0.001)
    monkeypatch.setattr(copying, "PIECE", 16 << 10)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """What a copy sees of a store: a database of 1.3 MB, and a file beside it."""
    path = tmp_path / "store"
    path.mkdir()
    change(path, b"meta", random.Random(0).randbytes(CHUNKS * CHUNK))
    (path / "offsets.bin").write_bytes(random.Random(1).randbytes(1000))
    (path / "writer.lock").touch()
    return path


@pytest.fixture
def node(tmp_path: Path) -> Path:
    path = tmp_path / "node"
    path.mkdir()
    return path


def change(store: Path, key: bytes, value: bytes) -> None:
    with lmdb.open(str(store), map_size=1 << 30, lock=False) as environment, environment.begin(write=True) as writing:
        writing.put(key, value)


def staged(store: Path, node: Path) -> StagedCopy:
    return StagedCopy(StoreState.of(store), node, CHUNK)


def assert_same(copy: StagedCopy, store: Path) -> None:
    """The copy is finished and has the bytes of the store."""
    assert sorted(path.name for path in copy.path.iterdir()) == sorted([LOCK, ABOUT, "data.mdb", "offsets.bin"])
    for name in ("data.mdb", "offsets.bin"):
        assert (copy.path / name).read_bytes() == (store / name).read_bytes()


def after(copy: StagedCopy, chunks: int, act: Callable[[], Any]) -> Callable[[], bool]:
    """A `stopped` that acts when so many chunks are done and the next is begun; what it returns says whether to
    stop."""

    def stopped() -> bool:
        return copy.bytes_done > chunks * CHUNK and bool(act())

    return stopped


def in_a_process(act: Callable[[], Any]) -> Any:
    process = PROCESSES.Process(target=act)
    process.start()
    return process


def killed(copy: StagedCopy, chunks: int) -> None:
    """A process dies of SIGKILL when it has so many chunks."""
    process = in_a_process(lambda: copy.obtain(after(copy, chunks, lambda: os.kill(os.getpid(), signal.SIGKILL))))
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_copy_has_the_bytes_of_the_store_and_belongs_to_this_user_alone(store: Path, node: Path) -> None:
    copy = staged(store, node)
    copy.obtain(never)
    assert_same(copy, store)
    assert copy.copied == copy.source.size == copy.bytes_done
    assert stat.S_IMODE(copy.path.stat().st_mode) == 0o700


def test_what_the_database_does_not_use_of_its_file_is_not_copied(store: Path, node: Path) -> None:
    used = (store / "data.mdb").stat().st_size
    os.truncate(store / "data.mdb", used + 50 * CHUNK)
    copy = staged(store, node)
    copy.obtain(never)
    assert (copy.path / "data.mdb").stat().st_size == used
    with lmdb.open(str(copy.path), readonly=True, lock=False) as environment, environment.begin() as reading:
        assert reading.get(b"meta") == random.Random(0).randbytes(CHUNKS * CHUNK)


def test_a_store_without_offsets_is_copied_too(store: Path, node: Path) -> None:
    (store / "offsets.bin").unlink()
    copy = staged(store, node)
    copy.obtain(never)
    assert sorted(path.name for path in copy.path.iterdir()) == sorted([LOCK, ABOUT, "data.mdb"])


def test_two_processes_share_a_copy_which_one_makes_while_the_other_waits(store: Path, node: Path) -> None:
    waits, copied = PROCESSES.Event(), PROCESSES.Queue()

    def other() -> None:
        copy = staged(store, node)

        def stopped() -> bool:
            waits.set()  # it has found the copy being made
            return False

        copy.obtain(stopped)
        assert_same(copy, store)
        copied.put(copy.copied)

    copy = staged(store, node)
    processes: list[Any] = []

    def act() -> None:
        if not processes:
            processes.append(in_a_process(other))
            assert waits.wait(60)

    copy.obtain(after(copy, 3, act))
    assert copy.copied == copy.source.size
    assert copied.get(timeout=60) is None
    processes[0].join()
    assert processes[0].exitcode == 0


def test_a_finished_copy_is_used_at_once(store: Path, node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staged(store, node).obtain(never)
    monkeypatch.setattr(stagein, "copy_file", None)
    copy = staged(store, node)
    copy.obtain(never)
    assert copy.copied is None


def test_a_process_that_was_killed_is_followed_by_one_that_copies_only_the_rest(store: Path, node: Path) -> None:
    killed(staged(store, node), 7)
    killed(staged(store, node), 12)
    copy = staged(store, node)
    copy.obtain(never)
    assert_same(copy, store)
    assert copy.copied == copy.source.size - 12 * CHUNK


def test_a_chunk_that_does_not_fit_its_digest_any_more_is_copied_again(store: Path, node: Path) -> None:
    copy = staged(store, node)
    killed(copy, 7)
    with (copy.path / "data.mdb.part").open("r+b") as file:
        file.seek(2 * CHUNK + 5)
        byte = file.read(1)
        file.seek(2 * CHUNK + 5)
        file.write(bytes([byte[0] ^ 1]))
    copy.obtain(never)
    assert_same(copy, store)
    assert copy.copied == copy.source.size - 6 * CHUNK


def test_after_a_power_cut_a_line_without_its_chunk_and_a_torn_line_count_as_none(store: Path, node: Path) -> None:
    copy = staged(store, node)
    killed(copy, 7)
    os.truncate(copy.path / "data.mdb.part", 5 * CHUNK + 100)
    lines = (copy.path / JOURNAL).read_text().splitlines()
    lines[1] = "\0" * 20
    lines[-1] = lines[-1][:-5]
    (copy.path / JOURNAL).write_text("\n".join(lines))
    copy.obtain(never)
    assert_same(copy, store)
    assert copy.copied == copy.source.size - 4 * CHUNK


def test_a_process_killed_while_it_declared_the_copy_finished_has_lost_nothing(
    store: Path, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = staged(store, node)
    with monkeypatch.context() as patch:
        patch.setattr(stagein, "write_json", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        killed(copy, 1000)
    copy.obtain(never)
    assert_same(copy, store)
    assert copy.copied == 0


@pytest.mark.parametrize("damage", ["{", '{"digest": 5}', "about of another", "file cut off"])
def test_a_finished_copy_that_is_not_what_it_says_is_made_anew(store: Path, node: Path, damage: str) -> None:
    copy = staged(store, node)
    copy.obtain(never)
    copy.leave(remove=False)
    if damage == "file cut off":
        os.truncate(copy.path / "data.mdb", 1000)
    elif damage == "about of another":
        text = (copy.path / ABOUT).read_text()
        (copy.path / ABOUT).write_text(text.replace(copy.source.digest, "0" * 32))
    else:
        (copy.path / ABOUT).write_text(damage)
    assert not copy.attach()
    copy.obtain(never)
    assert_same(copy, store)
    assert copy.copied == copy.source.size


class Spoilt:
    """A disk that keeps something else than was written, the first `times` times."""

    def __init__(self, patch: pytest.MonkeyPatch, times: int) -> None:
        real, left = os.pwrite, [times]

        def pwrite(handle: int, data: Any, offset: int) -> int:
            if offset == CHUNK and left[0] > 0:
                left[0] -= 1
                data = bytes(len(data))
            return real(handle, data, offset)

        patch.setattr(os, "pwrite", pwrite)


def test_what_is_not_read_back_as_it_was_written_is_written_again(
    store: Path, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Spoilt(monkeypatch, 1)
    copy = staged(store, node)
    copy.obtain(never)
    assert_same(copy, store)


def test_a_disk_that_does_not_keep_what_is_written_is_not_used(
    store: Path, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Spoilt(monkeypatch, 1000)
    with pytest.raises(NotStagedError, match=r"data\.mdb\.part: .*"):
        staged(store, node).obtain(never)
    assert list(node.iterdir()) == []


def test_a_disk_that_gets_full_meanwhile_is_given_back(
    store: Path, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def pwrite(handle: int, data: Any, offset: int) -> int:
        if offset >= 5 * CHUNK:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(NotStagedError, match="No space left on device"):
        staged(store, node).obtain(never)
    assert list(node.iterdir()) == []


@pytest.mark.parametrize("chunks", [0, 5])
def test_what_does_not_fit_or_does_not_any_more_is_given_up_and_its_space_given_back(
    store: Path, node: Path, monkeypatch: pytest.MonkeyPatch, chunks: int
) -> None:
    copy = staged(store, node)
    asked: list[int] = []

    def shortage(folder: Path, needed: int) -> str | None:
        asked.append(needed)
        return "too little" if len(asked) > chunks else None

    monkeypatch.setattr(stagein, "shortage", shortage)
    with pytest.raises(NotStagedError, match="too little"):
        copy.obtain(never)
    assert asked[0] == copy.source.size
    assert asked[-1] <= copy.source.size - chunks * CHUNK
    assert list(node.iterdir()) == []


def test_who_is_asked_to_stop_keeps_what_is_copied_and_lets_others_go_on(store: Path, node: Path) -> None:
    copy = staged(store, node)
    with pytest.raises(StopCopyingError):
        copy.obtain(after(copy, 9, lambda: True))
    other = staged(store, node)
    other.obtain(never)
    assert_same(other, store)
    assert other.copied == other.source.size - 9 * CHUNK


def test_who_waits_for_another_process_can_be_stopped_too(store: Path, node: Path) -> None:
    copy, other = staged(store, node), staged(store, node)

    def act() -> None:
        with pytest.raises(StopCopyingError):
            other.obtain(lambda: True)

    copy.obtain(after(copy, 3, act))
    assert_same(copy, store)


def test_a_process_that_does_not_come_on_is_not_waited_for(
    store: Path, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stagein, "STALLED", 0.0)
    copy, other = staged(store, node), staged(store, node)
    reasons: list[str] = []

    def act() -> None:
        with pytest.raises(NotStagedError) as refusal:
            other.obtain(never)
        reasons.append(str(refusal.value))

    copy.obtain(after(copy, 3, act))
    assert set(reasons) == {f"the process that is making {copy.path} does not come on"}


def test_a_store_that_changes_meanwhile_is_not_copied_and_its_next_state_has_a_copy_of_its_own(
    store: Path, node: Path
) -> None:
    copy = staged(store, node)
    with pytest.raises(NotStagedError, match="has changed while it was copied"):
        copy.obtain(after(copy, 3, lambda: change(store, b"more", b"1")))
    assert list(node.iterdir()) == []
    again = staged(store, node)
    assert again.path != copy.path
    with pytest.raises(NotStagedError, match="has changed while it was copied"):  # at the very end
        again.obtain(lambda: again.bytes_done == again.source.size and bool(change(store, b"more", b"22")))
    new = staged(store, node)
    new.obtain(never)
    assert_same(new, store)


def test_a_part_of_an_earlier_state_is_not_continued_but_removed(store: Path, node: Path) -> None:
    old = staged(store, node)
    killed(old, 7)
    change(store, b"more", b"1")
    new = staged(store, node)
    new.obtain(never)
    assert new.copied == new.source.size
    assert list(node.iterdir()) == [new.path]


def test_the_last_to_leave_removes_the_copy(store: Path, node: Path) -> None:
    first, second, third = (staged(store, node) for _ in range(3))
    for copy in (first, second, third):
        copy.obtain(never)
    first.leave(remove=True)
    second.leave(remove=False)  # as after a crash
    assert_same(third, store)
    third.leave(remove=True)
    assert list(node.iterdir()) == []


def test_a_crash_leaves_the_copy_for_the_next_start(store: Path, node: Path) -> None:
    copy = staged(store, node)
    copy.obtain(never)
    copy.leave(remove=False)
    assert_same(copy, store)


def test_a_process_that_a_leaving_one_has_forked_does_not_keep_the_copy(store: Path, node: Path) -> None:
    first, last, end = staged(store, node), staged(store, node), PROCESSES.Event()
    first.obtain(never)
    last.obtain(never)
    worker = in_a_process(end.wait)
    first.leave(remove=False)
    last.leave(remove=True)
    left = list(node.iterdir())
    end.set()
    worker.join()
    assert left == []


def test_who_comes_while_a_copy_is_removed_makes_a_new_one(store: Path, node: Path) -> None:
    old, new = staged(store, node), staged(store, node)
    old.obtain(never)
    fcntl.flock(old._lock, fcntl.LOCK_EX)
    removed: list[bool] = []

    def stopped() -> bool:
        if not removed:
            removed.append(True)
            old.leave(remove=True)
        return False

    (old.path / ABOUT).unlink()  # as in the middle of the removal
    new.obtain(stopped)
    assert removed
    assert_same(new, store)


def test_a_lock_that_was_removed_before_it_could_be_taken_is_none(
    store: Path, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = staged(store, node), staged(store, node)
    old.obtain(never)
    (old.path / ABOUT).unlink()
    real, removed = fcntl.flock, []

    def flock(handle: int, kind: int) -> None:
        if not removed:
            removed.append(True)
            old.leave(remove=True)
        real(handle, kind)

    monkeypatch.setattr(fcntl, "flock", flock)
    new.obtain(never)
    assert removed
    assert_same(new, store)
    assert staged(store, node).attach()  # its lock is the one that others see


def test_a_copy_that_another_has_made_in_the_meantime_is_not_removed_in_place_of_ones_own(
    store: Path, node: Path
) -> None:
    lost, new = staged(store, node), staged(store, node)
    lost.obtain(never)
    for path in lost.path.iterdir():  # by somebody who tidies up
        path.unlink()
    lost.path.rmdir()
    new.obtain(never)
    lost.leave(remove=True)
    assert_same(new, store)


def other_copy(node: Path, digit: str, *files: str) -> Path:
    path = node / f"agl-{os.geteuid()}-{digit * 32}"
    path.mkdir(mode=0o700)
    for name in files:
        (path / name).write_bytes(b"x" * 100)
    return path


def test_copies_that_nobody_holds_are_removed_before_one_is_made_and_nothing_else_is(store: Path, node: Path) -> None:
    left = other_copy(node, "1", LOCK, "data.mdb", ABOUT)
    part = other_copy(node, "2", LOCK, "data.mdb.part", JOURNAL, ".about.0a1b2c3d.part.json")
    held = other_copy(node, "3", LOCK, "data.mdb")
    unmarked = other_copy(node, "4", "data.mdb")
    strange = other_copy(node, "5", LOCK, "data.mdb", "thesis.tex")
    open_to_all = other_copy(node, "6", LOCK, "data.mdb")
    open_to_all.chmod(0o777)
    named_alike = node / f"agl-{os.geteuid()}-data"
    of_another = node / f"agl-{os.geteuid() + 1}-{'7' * 32}"
    for path in (named_alike, of_another):
        path.mkdir(mode=0o700)
        (path / LOCK).touch()
    elsewhere = node.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / LOCK).touch()
    link = node / f"agl-{os.geteuid()}-{'8' * 32}"
    link.symlink_to(elsewhere)
    with (held / LOCK).open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        copy = staged(store, node)
        copy.obtain(never)
    assert not left.exists()
    assert not part.exists()
    assert (strange / "thesis.tex").exists()
    for path in (held, unmarked, open_to_all):
        assert (path / "data.mdb").exists()
    for path in (named_alike, of_another, elsewhere):
        assert (path / LOCK).exists()
    assert link.is_symlink()


def test_a_folder_that_another_could_have_filled_is_not_used(store: Path, node: Path) -> None:
    copy = staged(store, node)
    elsewhere = node.parent / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    copy.path.symlink_to(elsewhere)
    with pytest.raises(NotStagedError, match="is not a folder that only this user can write to"):
        copy.obtain(never)
    copy.path.unlink()
    copy.path.mkdir()
    copy.path.chmod(0o770)
    with pytest.raises(NotStagedError, match="is not a folder that only this user can write to"):
        copy.obtain(never)
    copy.path.chmod(0o700)
    copy.obtain(never)


def test_a_folder_of_another_user_is_not_used(store: Path, node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = staged(store, node)
    copy.path.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: copy.path.stat().st_uid + 1)
    with pytest.raises(NotStagedError, match="is not a folder that only this user can write to"):
        copy.obtain(never)


def test_where_everybody_may_rename_folders_nothing_is_put(store: Path, node: Path) -> None:
    node.chmod(0o777)
    with pytest.raises(NotStagedError, match="it has no sticky bit"):
        staged(store, node)
    node.chmod(0o1777)
    staged(store, node).obtain(never)


def test_the_same_file_system_is_no_gain(store: Path, node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(NotStagedError, match="is on the same file system"):
        staged(store, node)


def test_the_folder_is_made_but_not_those_above_it(store: Path, node: Path) -> None:
    staged(store, node / "new").obtain(never)
    with pytest.raises(NotStagedError, match="No such file or directory"):
        staged(store, node / "no" / "such")
    (node / "file").touch()
    with pytest.raises(NotStagedError, match="Not a directory"):
        staged(store, node / "file").obtain(never)


def test_processes_that_see_the_same_folder_are_in_the_same_place(store: Path, node: Path) -> None:
    (node.parent / "link").symlink_to(node)
    (node / "other").mkdir()
    places = [staged(store, folder).place() for folder in (node, node.parent / "link", node / "other")]
    assert places[0] == places[1] != places[2]


def test_variables_are_those_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGL_HERE", "/here")
    monkeypatch.setenv("AGL_EMPTY", "")
    monkeypatch.delenv("AGL_MISSING", raising=False)
    assert expand("$AGL_HERE/a") == expand("${AGL_HERE}/a") == Path("/here/a")
    for text, name in (
        ("$AGL_MISSING", "AGL_MISSING"),
        ("${AGL_MISSING}/a", "AGL_MISSING"),
        ("$AGL_EMPTY", "AGL_EMPTY"),
    ):
        with pytest.raises(NotStagedError, match=f"the variable {name} of stage_in=.* is not set on this node"):
            expand(text)
    with pytest.raises(NotStagedError, match="is no full path"):
        expand("scratch")
