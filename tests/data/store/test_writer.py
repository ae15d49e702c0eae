"""Writing the store: what is done survives, what is not finished is not read, and the order leaves no trace."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

from agl_core.data.store import Store, StoreWriter, layout
from agl_core.data.store import writer as writer_module
from agl_core.data.store.codec import encode_tile
from agl_core.data.store.failures import sentence
from agl_core.data.store.layout import subtile_key
from agl_core.data.store.pages import all_values, read_state
from agl_core.errors import UserError
from tests.data.store.test_store import change_meta, fill, records, tile


def test_a_store_without_its_seal_cannot_be_read(tmp_path: Path) -> None:
    with StoreWriter(tmp_path) as writer:
        writer.write(*tile("A_a", 20, 20))
    with pytest.raises(UserError, match="is not finished: run prepare again"):
        Store(tmp_path)


def test_any_change_breaks_the_seal_until_the_next(tmp_path: Path) -> None:
    fill(tmp_path, [tile("A_a", 20, 20), tile("A_b", 20, 20)])
    with StoreWriter(tmp_path) as writer:
        assert writer.sealed
        assert list(writer.finished()) == ["A_a", "A_b"]
        assert writer.sealed, "looking changes nothing"
        writer.remove("A_a")
        assert not writer.sealed
    with pytest.raises(UserError, match="is not finished"):
        Store(tmp_path)
    with StoreWriter(tmp_path) as writer:
        writer.seal()
    assert [entry.id for entry in Store(tmp_path).entries] == ["A_b"]


def test_an_empty_store_cannot_be_sealed(tmp_path: Path) -> None:
    with StoreWriter(tmp_path) as writer, pytest.raises(ValueError, match="has no tiles"):
        writer.seal()


def test_stores_of_another_version_or_program_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, [tile("A_a", 20, 20)])
    for opened in (Store, StoreWriter):
        change_meta(tmp_path, version=2, format="agl-store")
        with pytest.raises(
            UserError, match=r"has version 2, this program reads version 3: delete the folder, or .* --store"
        ):
            opened(tmp_path)
        change_meta(tmp_path, format="other")
        with pytest.raises(UserError, match="another program's database"):
            opened(tmp_path)
    change_meta(tmp_path, format="agl-store", version=3, codec="webp")
    for opened in (Store, StoreWriter):
        with pytest.raises(UserError, match=r"in codec webp, which this program does not .*--store"):
            opened(tmp_path)


def test_a_store_keeps_its_codec(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "new") as writer:
        assert writer.codec == "zstd"
    fill(tmp_path / "raw", [tile("A_a", 20, 20)], "raw")
    assert Store(tmp_path / "raw").codec == "raw"
    with StoreWriter(tmp_path / "raw") as writer:
        assert writer.codec == "raw"
        assert writer.sealed
    with pytest.raises(UserError, match=r"is in codec raw, not zstd: choose another folder with --store, or leave"):
        StoreWriter(tmp_path / "raw", "zstd")
    with pytest.raises(UserError, match="unknown codec 'png': choose one of auto, zstd, raw"):
        StoreWriter(tmp_path / "raw", "png")


def test_values_that_another_process_encoded_make_the_same_store(tmp_path: Path) -> None:
    entry, rgb, agl_cm = tile("A_a", 300, 300)
    fill(tmp_path / "one", [(entry, rgb, agl_cm)])
    with StoreWriter(tmp_path / "two") as writer:
        values = encode_tile(writer.codec, rgb, agl_cm)
        with pytest.raises(ValueError, match="tile A_a: 3 values for 4 sub-tiles"):
            writer.write_encoded(entry, values[1:])
        writer.write_encoded(entry, values)
        writer.seal()
    assert records(tmp_path / "one") == records(tmp_path / "two")


def test_the_digest_is_that_of_the_content_alone(tmp_path: Path) -> None:
    content = [tile("A_a", 300, 20), tile("A_b", 20, 20)]
    fill(tmp_path / "one", content)
    for again in content[::-1]:
        fill(tmp_path / "two", [again])  # in another order, sealed in between
    digest = Store(tmp_path / "one").digest
    assert len(digest) == 32
    assert Store(tmp_path / "two").digest == digest
    assert records(tmp_path / "one") == records(tmp_path / "two")
    for changed in ([tile("A_a", 300, 20, seed=1)], [tile("A_c", 20, 20)]):
        fill(tmp_path / "two", changed)
        assert Store(tmp_path / "two").digest != digest


def test_a_foreign_lmdb_is_not_touched(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path)) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"key", b"value")
    for opened in (Store, StoreWriter):
        with pytest.raises(UserError, match="another program's database"):
            opened(tmp_path)
    assert records(tmp_path) == {b"key": b"value"}


def test_a_file_that_is_no_lmdb_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"not a database" * 1000)
    for opened in (Store, StoreWriter):
        with pytest.raises(UserError, match=r"cannot be opened.*delete the folder"):
            opened(tmp_path)


def test_replacing_a_tile_by_a_smaller_one_leaves_nothing_of_it(tmp_path: Path) -> None:
    fill(tmp_path / "one", [tile("A_a", 600, 600), tile("A_aa", 20, 20)])
    fill(tmp_path / "one", [tile("A_a", 300, 100)])
    fill(tmp_path / "two", [tile("A_a", 300, 100), tile("A_aa", 20, 20)])
    assert records(tmp_path / "one") == records(tmp_path / "two")


def test_a_writer_takes_over_from_the_readers_of_its_own_process(tmp_path: Path) -> None:
    fill(tmp_path, [tile("A_a", 20, 20)])
    store = Store(tmp_path)
    store.read_tile(0)
    fill(tmp_path, [tile("A_a", 20, 20, seed=1)])
    assert np.array_equal(Store(tmp_path).read_tile(0)[0], tile("A_a", 20, 20, seed=1)[1])
    with pytest.raises(UserError, match="was changed while it was read"):
        store.read_tile(0)


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    with StoreWriter(tmp_path), pytest.raises(UserError, match="another process is writing"):
        StoreWriter(tmp_path)
    StoreWriter(tmp_path).close()


def test_arrays_that_do_not_fit_the_entry_are_refused(tmp_path: Path) -> None:
    entry, rgb, agl_cm = tile("A_a", 20, 30)
    with StoreWriter(tmp_path) as writer:
        with pytest.raises(ValueError, match=r"tile A_a: RGB is \(30, 20, 3\) uint8"):
            writer.write(entry, rgb.transpose(1, 0, 2), agl_cm)
        with pytest.raises(ValueError, match=r"tile A_a: AGL is \(20, 30\) int64"):
            writer.write(entry, rgb, agl_cm.astype(np.int64))  # type: ignore[arg-type]
        assert writer.finished() == {}


def test_provenance_is_given_back(tmp_path: Path) -> None:
    with StoreWriter(tmp_path) as writer:
        entry, rgb, agl_cm = tile("A_a", 20, 20)
        writer.write(entry, rgb, agl_cm, {"files": ["a.tif", 12]})
        assert writer.finished() == {"A_a": (entry, {"files": ["a.tif", 12]})}


def test_killed_after_any_tile_the_store_goes_on_from_what_was_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "_COMMIT_BYTES", 1)
    content = [tile(f"A_{number}", 300, 20) for number in range(3)]
    fill(tmp_path / "whole", content)
    for survivors in range(4):
        path = tmp_path / str(survivors)
        child = os.fork()
        if child == 0:
            writer = StoreWriter(path)
            for entry, rgb, agl_cm in content[:survivors]:
                writer.write(entry, rgb, agl_cm)
            monkeypatch.setattr(writer_module, "_COMMIT_BYTES", 1 << 30)
            for entry, rgb, agl_cm in content[survivors:]:
                writer.write(entry, rgb, agl_cm)  # not committed
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        with StoreWriter(path) as writer:
            assert list(writer.finished()) == [entry.id for entry, _, _ in content[:survivors]]
            for entry, rgb, agl_cm in content[survivors:]:
                writer.write(entry, rgb, agl_cm)
            writer.seal()
        assert records(path) == records(tmp_path / "whole")


def test_an_exception_in_the_middle_of_a_tile_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = iter(range(100))

    def interrupted(*arguments: Any) -> bytes:
        if next(asked) == 2:
            raise KeyboardInterrupt
        return subtile_key(*arguments)

    monkeypatch.setattr(writer_module, "subtile_key", interrupted)
    with pytest.raises(KeyboardInterrupt), StoreWriter(tmp_path) as writer:
        writer.write(*tile("A_a", 600, 20))
    with StoreWriter(tmp_path) as writer:
        assert writer.finished() == {}


def test_a_full_disk_is_one_sentence_and_what_was_committed_stays(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        import resource

        status = 1
        try:
            fill(tmp_path, [tile("A_a", 20, 20)])
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
            with StoreWriter(tmp_path) as writer:
                writer.write(*tile("A_b", 2000, 100))
        except UserError as error:
            status = 0 if "cannot be written" in str(error) and "make room" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with StoreWriter(tmp_path) as writer:
        assert list(writer.finished()) == ["A_a"]
        assert not writer.sealed


def test_an_unwritable_folder_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another folder with --store"):
        StoreWriter(tmp_path / "file" / "store")


def in_child(work: Callable[[], str]) -> str:
    """The last 4000 characters that `work` returns in a process whose limits it may change; a refusal as its text."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = work()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, answer.encode()[-4000:])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer


def limit_memory(more: int) -> None:
    """This process may map `more` bytes more than it has."""
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, used + more))


def test_where_address_space_is_limited_a_smaller_map_does(tmp_path: Path) -> None:
    def work() -> str:
        limit_memory(20 << 30)
        fill(tmp_path, [tile("A_a", 300, 300), tile("A_b", 300, 300)])
        return str(len(Store(tmp_path)))

    assert in_child(work) == "2"
    assert [entry.id for entry in Store(tmp_path).entries] == ["A_a", "A_b"]


def test_without_address_space_the_limit_is_named_and_nothing_is_to_be_deleted(tmp_path: Path) -> None:
    fill(tmp_path, [tile("A_a", 300, 300)])

    def work() -> str:
        limit_memory(4 << 30)
        StoreWriter(tmp_path)
        return "opened"

    message = in_child(work)
    assert message.startswith("UserError: store ")
    assert "Cannot allocate memory): raise the limit of virtual memory (ulimit -v)" in message
    assert "delete" not in message


def test_a_store_that_outgrows_a_small_map_names_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_MAP_SIZES", (1 << 20,))
    with (
        pytest.raises(UserError, match=r"larger than the memory map .* raise the limit of virtual memory \(ulimit -v"),
        StoreWriter(tmp_path) as writer,
    ):
        writer.write(*tile("A_a", 1000, 1000))


@pytest.mark.parametrize("opened", [Store, StoreWriter])
def test_a_store_that_may_not_be_opened_is_not_to_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Callable[[Path], Any]
) -> None:
    fill(tmp_path, [tile("A_a", 20, 20)])
    for code, advice in (
        (errno.EACCES, "change the permissions"),
        (errno.EMFILE, "raise the limit of open files"),
        (errno.EIO, "see whether its disk"),
        (errno.EINVAL, "see whether its disk is there and works"),
    ):

        def refused(path: str, *, text: str = os.strerror(code), **_: Any) -> None:
            raise lmdb.Error(f"{path}: {text}")

        monkeypatch.setattr(layout.lmdb, "open", refused)
        with pytest.raises(UserError, match=rf"cannot be opened \(.*\): {advice}") as refusal:
            opened(tmp_path)
        assert "delete" not in str(refusal.value)


def test_a_damaged_tree_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    content = [tile(f"A_{number}", 300, 20) for number in range(40)]
    fill(tmp_path, content)
    data = tmp_path / "data.mdb"
    with data.open("rb+") as file:
        state = read_state(file.fileno())
        assert state is not None
        for page in {start // 4096 for key, start, length in all_values(file.fileno(), state) if length < 1000}:
            file.seek(page * 4096 + 10)
            file.write(b"\0\0")  # no kind of page
    with (
        pytest.raises(UserError, match=r"is damaged \(.*\): delete the folder and run prepare again") as refusal,
        StoreWriter(tmp_path) as writer,
    ):
        writer.finished()
    assert "make room" not in str(refusal.value)
    with (
        pytest.raises(UserError, match=r"is damaged \(.*\): delete the folder and run prepare again") as refusal,
        StoreWriter(tmp_path) as writer,
    ):
        writer.write(*content[0])
    assert "make room" not in str(refusal.value)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (lmdb.Error("mdb_txn_commit: No space left on device"), "make room there and run prepare again"),
        (lmdb.DiskError("mdb_txn_commit: Disk quota exceeded"), "make room there and run prepare again"),
        (lmdb.Error("mdb_txn_commit: Input/output error"), "disk is broken, or full, then make room"),
        (lmdb.PageNotFoundError("mdb_put: MDB_PAGE_NOTFOUND"), "delete the folder and run prepare again"),
        (lmdb.CorruptedError("mdb_put: MDB_CORRUPTED"), "delete the folder and run prepare again"),
    ],
)
def test_what_failed_decides_the_advice(tmp_path: Path, error: lmdb.Error, advice: str) -> None:
    message = sentence(tmp_path, "written", error)
    assert advice in message
    assert "\n" not in message
    assert ("delete" in message) == advice.startswith("delete")
