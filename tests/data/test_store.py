"""The store: what goes in comes out, in crops, in any process, and only when it is finished."""

import json
import multiprocessing
import os
import pickle
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agl_core.data import store as store_module
from agl_core.data.layout import subtile_key
from agl_core.data.store import Store, StoreEntry, StoreWriter
from agl_core.errors import UserError

Tile = tuple[StoreEntry, NDArray[np.uint8], NDArray[np.uint16]]

SHAPES = [(300, 520), (256, 256), (40, 30), (257, 511)]


def tile(name: str, height: int, width: int, seed: int = 0) -> Tile:
    generator = np.random.default_rng([seed, height, width])
    entry = StoreEntry(name, name.partition("_")[0], 0.3, height, width, 1.7, 0.1, "north")
    rgb = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return entry, rgb, generator.integers(0, 65536, (height, width)).astype(np.uint16)


def tiles() -> list[Tile]:
    """Not in the order of their ids; one id is the beginning of another."""
    return [tile(name, *shape) for name, shape in zip(["OMA_b", "ARG_aa", "ARG_a", "JAX_c"], SHAPES, strict=True)]


def fill(path: Path, content: list[Tile]) -> None:
    with StoreWriter(path) as writer:
        for entry, rgb, agl_cm in content:
            writer.write(entry, rgb, agl_cm)
        writer.seal()


def records(path: Path) -> dict[bytes, bytes]:
    with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return dict(transaction.cursor())


def change_meta(path: Path, **changes: Any) -> None:
    with lmdb.open(str(path), lock=False) as environment, environment.begin(write=True) as transaction:
        meta = json.loads(transaction.get(b"meta")) | changes
        transaction.put(b"meta", json.dumps(meta).encode())


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store")
    fill(path, tiles())
    return path


def test_tiles_come_back_whole_sorted_by_id(sealed: Path) -> None:
    store = Store(sealed)
    expected = sorted(tiles(), key=lambda found: found[0].id)
    assert store.entries == [entry for entry, _, _ in expected]
    assert store.cities == ["ARG", "JAX", "OMA"]
    assert len(store) == 4
    for index, (_, rgb, agl_cm) in enumerate(expected):
        found_rgb, found_agl = store.read_tile(index)
        assert np.array_equal(found_rgb, rgb)
        assert np.array_equal(found_agl, agl_cm)


def test_labels_come_back_bit_for_bit_and_may_be_absent(tmp_path: Path) -> None:
    shape = (2, 2)
    entries = [
        StoreEntry("a", "A", 0.1 + 0.2, *shape, scale=1 / 3, angle=2 / 3, place="p\u00e9"),
        StoreEntry("b", "B", 1e-9, *shape, scale=None, angle=None, place=None),
    ]
    fill(tmp_path, [(entry, np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint16)) for entry in entries])
    assert Store(tmp_path).entries == entries


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.data())
def test_any_crop_inside_a_tile_is_that_part_of_it(sealed: Path, data: st.DataObject) -> None:
    store = Store(sealed)
    index = data.draw(st.integers(0, 3))
    entry, rgb, agl_cm = sorted(tiles(), key=lambda found: found[0].id)[index]
    y, x = data.draw(st.integers(0, entry.height - 1)), data.draw(st.integers(0, entry.width - 1))
    height, width = data.draw(st.integers(1, entry.height - y)), data.draw(st.integers(1, entry.width - x))
    found_rgb, found_agl = store.read_crop(index, y, x, height, width)
    assert np.array_equal(found_rgb, rgb[y : y + height, x : x + width])
    assert np.array_equal(found_agl, agl_cm[y : y + height, x : x + width])
    assert (found_rgb.dtype, found_agl.dtype) == (np.uint8, np.uint16)
    for array in (found_rgb, found_agl):
        assert array.flags.c_contiguous
        assert array.flags.writeable, "a copy: the map is not touched after the read"


@pytest.mark.parametrize(
    "crop", [(-1, 0, 5, 5), (0, -1, 5, 5), (0, 0, 0, 5), (0, 0, 5, 0), (36, 0, 5, 5), (0, 26, 5, 5), (0, 0, 41, 30)]
)
def test_a_crop_that_is_not_inside_the_tile_is_refused(sealed: Path, crop: tuple[int, int, int, int]) -> None:
    store = Store(sealed)
    with pytest.raises(ValueError, match="is not inside tile ARG_a of 40 x 30"):
        store.read_crop(0, *crop)


def test_a_crop_reads_only_the_sub_tiles_that_it_touches(tmp_path: Path) -> None:
    fill(tmp_path, [tile("A_a", 600, 600)])
    with lmdb.open(str(tmp_path), lock=False) as environment, environment.begin(write=True) as transaction:
        transaction.delete(subtile_key("A_a", 1, 1, b"r"))
    store = Store(tmp_path)
    store.read_crop(0, 0, 0, 256, 600)
    store.read_crop(0, 512, 512, 88, 88)
    with pytest.raises(UserError, match=r"damaged at tile A_a \(sub-tile 1, 1\).*run prepare again"):
        store.read_crop(0, 250, 250, 7, 7)


def test_a_sub_tile_of_the_wrong_size_names_the_tile(tmp_path: Path) -> None:
    fill(tmp_path, [tile("A_a", 20, 20)])
    with lmdb.open(str(tmp_path), lock=False) as environment, environment.begin(write=True) as transaction:
        transaction.put(subtile_key("A_a", 0, 0, b"a"), b"short")
    with pytest.raises(UserError, match="damaged at tile A_a"):
        Store(tmp_path).read_tile(0)


def mean(store: Store) -> float:
    return float(store.read_tile(1)[0].mean())


def mean_in_forked_child(store: Store) -> float:
    """Read in a child that inherits everything, the map too."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, repr((mean(store), mean(Store(store.path)))).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        first, second = json.loads(answer.read().replace("(", "[").replace(")", "]"))
    assert first == second
    return float(first)


@pytest.mark.parametrize("read_before", [False, True])
def test_a_forked_child_reads_what_its_parent_reads(sealed: Path, read_before: bool) -> None:
    store, other = Store(sealed), Store(sealed)
    if not read_before:
        store.close()
        other.close()
    expected = mean(Store(sealed))
    assert mean_in_forked_child(store) == expected
    assert mean(store) == mean(other) == expected, "the parent's map is not harmed"


def test_a_forked_child_makes_its_own_map(sealed: Path) -> None:
    store = Store(sealed)
    inherited = store._map()
    child = os.fork()
    if child == 0:
        os._exit(0 if store._map() is not inherited and store._map() is Store(sealed)._map() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store._map() is inherited


def test_a_store_is_pickled_without_its_map(sealed: Path) -> None:
    store = Store(sealed)
    mean(store)
    assert mean(pickle.loads(pickle.dumps(store))) == mean(store)


def test_a_spawned_process_reads_a_store_that_was_sent_to_it(sealed: Path) -> None:
    store = Store(sealed)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(mean, (store,)) == mean(store)


def test_stores_of_one_process_share_the_map_and_threads_may_read_at_once(sealed: Path) -> None:
    stores = [Store(sealed) for _ in range(4)]
    assert len({id(store._map()) for store in stores}) == 1
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(mean, stores * 25))) == 1


def test_keys_sort_by_tile_then_row_then_column() -> None:
    places = [(row, column) for row in (0, 1, 256, 300) for column in (0, 1, 256)]
    keys = [subtile_key("ARG_a", *place, b"a") for place in places]
    assert keys == sorted(keys)
    assert keys[-1] < subtile_key("ARG_aa", 0, 0, b"a")


def test_no_store_is_answered_with_the_command_that_makes_one(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"^no store at .*: run `python launch.py prepare --data \.\.\.` first$"):
            Store(path)
    assert list(tmp_path.iterdir()) == []


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
        with pytest.raises(UserError, match=r"has version 2, this program reads version 1: run prepare .* --store"):
            opened(tmp_path)
        change_meta(tmp_path, format="other")
        with pytest.raises(UserError, match="another program's database"):
            opened(tmp_path)
    change_meta(tmp_path, format="agl-store", version=1, codec="zstd")
    with pytest.raises(UserError, match="codec zstd"):
        StoreWriter(tmp_path)


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
    assert np.array_equal(store.read_tile(0)[0], tile("A_a", 20, 20, seed=1)[1])


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
    monkeypatch.setattr(store_module, "_COMMIT_BYTES", 1)
    content = [tile(f"A_{number}", 300, 20) for number in range(3)]
    fill(tmp_path / "whole", content)
    for survivors in range(4):
        path = tmp_path / str(survivors)
        child = os.fork()
        if child == 0:
            writer = StoreWriter(path)
            for entry, rgb, agl_cm in content[:survivors]:
                writer.write(entry, rgb, agl_cm)
            monkeypatch.setattr(store_module, "_COMMIT_BYTES", 1 << 30)
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
        if next(asked) == 3:
            raise KeyboardInterrupt
        return subtile_key(*arguments)

    monkeypatch.setattr(store_module, "subtile_key", interrupted)
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
