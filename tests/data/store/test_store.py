"""The store: what goes in comes out, in crops, in any process, and only when it is finished."""

import errno
import json
import multiprocessing
import os
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agl_core.data.store import Store, StoreEntry, StoreWriter, reader
from agl_core.data.store.codec import CHECKSUM, CODECS, encode_tile
from agl_core.data.store.heights import heights_of, with_heights
from agl_core.data.store.layout import subtile_key
from agl_core.errors import UserError

Tile = tuple[StoreEntry, NDArray[np.uint8], NDArray[np.uint16]]

SHAPES = [(300, 520), (256, 256), (40, 30), (257, 511)]


def tile(name: str, height: int, width: int, seed: int = 0) -> Tile:
    generator = np.random.default_rng([seed, height, width])
    rgb = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    agl_cm = generator.integers(0, 65536, (height, width)).astype(np.uint16)
    entry = StoreEntry(name, name.partition("_")[0], 0.3, height, width, 1.7, 0.1, "north", *heights_of(agl_cm))
    return entry, rgb, agl_cm


def tiles() -> list[Tile]:
    """Not in the order of their ids; one id is the beginning of another."""
    return [tile(name, *shape) for name, shape in zip(["OMA_b", "ARG_aa", "ARG_a", "JAX_c"], SHAPES, strict=True)]


def fill(path: Path, content: list[Tile], codec: str = "auto") -> None:
    with StoreWriter(path, codec) as writer:
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


def put(path: Path, key: bytes, value: bytes | None) -> None:
    """Change a value, or delete it, without anybody noticing."""
    with lmdb.open(str(path), lock=False) as environment, environment.begin(write=True) as transaction:
        assert transaction.put(key, value) if value is not None else transaction.delete(key)


@pytest.fixture(scope="module", params=[(codec, located) for codec in CODECS for located in (True, False)])
def sealed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In each codec, with offsets and without."""
    path = tmp_path_factory.mktemp("store")
    codec, located = request.param
    fill(path, tiles(), codec)
    if not located:
        (path / "offsets.bin").unlink()
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
    agl_cm = np.full(shape, 123, np.uint16)
    entries = [
        StoreEntry("a", "A", 0.1 + 0.2, *shape, scale=1 / 3, angle=2 / 3, place="p\u00e9"),
        StoreEntry("b", "B", 1e-9, *shape, scale=None, angle=None, place=None),
    ]
    fill(tmp_path, [(entry, np.zeros((*shape, 3), np.uint8), agl_cm) for entry in entries])
    assert Store(tmp_path).entries == [with_heights(entry, agl_cm) for entry in entries]


def test_what_the_index_knows_of_the_heights_is_filled_in(tmp_path: Path) -> None:
    for name, heights, expected in (
        ("A_a", [5, 65535, 1234, 7], (12.34, 3, 1246, 25 + 1234**2 + 49)),
        ("A_b", [65535] * 4, (0.0, 0, 0, 0)),
        ("A_c", [0] * 4, (0.0, 4, 0, 0)),
        ("A_d", [65534] * 4, (655.34, 4, 4 * 65534, 4 * 65534**2)),
    ):
        entry = StoreEntry(name, "A", 1.0, 2, 2)
        agl_cm = np.array(heights, np.uint16).reshape(2, 2)
        fill(tmp_path, [(entry, np.zeros((2, 2, 3), np.uint8), agl_cm)])
        found = {entry.id: entry for entry in Store(tmp_path).entries}[name]
        assert (found.highest, found.known, found.sum_cm, found.sum_cm2) == expected


@settings(deadline=None, derandomize=True, max_examples=60)
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


def test_a_crop_is_read_into_arrays_of_any_strides_with_contiguous_rows(sealed: Path) -> None:
    store = Store(sealed)
    _, rgb, agl_cm = sorted(tiles(), key=lambda found: found[0].id)[3]  # 300 x 520
    images, heights = np.full((2, 5, 240, 410), 7, np.uint8), np.full((2, 250, 410), 7, np.uint16)
    store.read_into(3, 30, 101, images[1, 1:4, 10:220, 3:403], heights[1, 20:230, 5:405])
    crop = np.s_[30:240, 101:501]
    assert np.array_equal(images[1, 1:4, 10:220, 3:403], rgb[crop].transpose(2, 0, 1))
    assert np.array_equal(heights[1, 20:230, 5:405], agl_cm[crop])
    images[1, 1:4, 10:220, 3:403] = heights[1, 20:230, 5:405] = 7
    assert (images == 7).all(), "nothing is written outside of the crop"
    assert (heights == 7).all()
    spread = np.empty((210, 800), np.uint16)[:, ::2]
    for planes, agl in (
        (images[1, 1:4, 10:220, 3:403], spread),
        (images[1, 3:0:-1, 10:220, 3:403], heights[0, :210, :400]),
    ):
        with pytest.raises(ValueError, match="side by side"):
            store.read_into(3, 30, 101, planes, agl)
    with pytest.raises(ValueError, match="are not one crop"):
        store.read_into(3, 30, 101, images[1, 1:4, :210, :399], heights[0, :210, :400])


@pytest.mark.parametrize(
    "crop", [(-1, 0, 5, 5), (0, -1, 5, 5), (0, 0, 0, 5), (0, 0, 5, 0), (36, 0, 5, 5), (0, 26, 5, 5), (0, 0, 41, 30)]
)
def test_a_crop_that_is_not_inside_the_tile_is_refused(sealed: Path, crop: tuple[int, int, int, int]) -> None:
    store = Store(sealed)
    with pytest.raises(ValueError, match="is not inside tile ARG_a of 40 x 30"):
        store.read_crop(0, *crop)


def test_a_crop_reads_only_the_sub_tiles_that_it_touches(tmp_path: Path) -> None:
    fill(tmp_path, [tile("A_a", 600, 600)])
    put(tmp_path, subtile_key("A_a", 1, 1), None)
    store = Store(tmp_path)
    store.read_crop(0, 0, 0, 256, 600)
    store.read_crop(0, 512, 512, 88, 88)
    with pytest.raises(UserError, match=r"damaged at tile A_a \(sub-tile 1, 1\): it is missing.*run prepare again"):
        store.read_crop(0, 250, 250, 7, 7)


@pytest.mark.parametrize("codec", CODECS)
def test_a_damaged_value_names_tile_and_sub_tile(tmp_path: Path, codec: str) -> None:
    entry, rgb, agl_cm = tile("A_a", 260, 20)
    good = encode_tile(codec, rgb, agl_cm)[1]
    smaller = encode_tile(codec, rgb[256:, :19], agl_cm[256:, :19])[0]
    flipped = bytes([*good[:-1], good[-1] ^ 1])
    for bad, problem in ((b"short", "checksum"), (b"", "checksum"), (flipped, "checksum"), (smaller, "another size")):
        fill(tmp_path, [(entry, rgb, agl_cm)], codec)
        put(tmp_path, subtile_key("A_a", 1, 0), bad)
        store = Store(tmp_path)
        assert np.array_equal(store.read_crop(0, 0, 0, 256, 20)[0], rgb[:256])
        with pytest.raises(UserError, match=rf"damaged at tile A_a \(sub-tile 1, 0\): .*{problem}.*; delete the store"):
            store.read_tile(0)
        assert "(sub-tile 1, 0)" in str(store.verify(0))


def test_verify_finds_values_that_were_not_written_with_the_tile(sealed: Path, tmp_path: Path) -> None:
    store = Store(sealed)
    assert [store.verify(index) for index in range(4)] == [None] * 4
    fill(tmp_path, [tile("A_a", 260, 20)])
    _, rgb, agl_cm = tile("A_a", 260, 20, seed=1)
    put(tmp_path, subtile_key("A_a", 1, 0), encode_tile("zstd", rgb, agl_cm)[1])
    assert "does not agree with the record" in str(Store(tmp_path).verify(0))
    put(tmp_path, b"done/A_a", None)
    assert "does not agree with the record" in str(Store(tmp_path).verify(0))


@pytest.mark.parametrize("change", [{"highest": 700.0}, {"known": 1}, {"sum_cm": 1}, {"sum_cm2": 1}])
def test_verify_finds_heights_that_are_not_those_of_the_index(tmp_path: Path, change: dict[str, Any]) -> None:
    entry, rgb, agl_cm = tile("A_a", 260, 300)
    with StoreWriter(tmp_path) as writer:
        writer.write_encoded(replace(entry, **change), encode_tile("zstd", rgb, agl_cm))
        writer.seal()
    assert "does not agree with the record" in str(Store(tmp_path).verify(0))


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, [tile("A_a", 600, 600)])
    os.truncate(tmp_path / "data.mdb", (tmp_path / "data.mdb").stat().st_size - 4096)
    with pytest.raises(UserError, match=r"is damaged \(data.mdb is shorter than it was\)"):
        Store(tmp_path)


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


def test_a_store_is_pickled_without_what_belongs_to_its_process(sealed: Path) -> None:
    store = Store(sealed)
    before = len(pickle.dumps(store))
    mean(store)
    copy = pickle.loads(pickle.dumps(store))
    assert len(pickle.dumps(store)) == before
    assert copy.read_requests == 0
    assert mean(copy) == mean(store)


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
    keys = [subtile_key("ARG_a", *place) for place in places]
    assert keys == sorted(keys)
    assert keys[-1] < subtile_key("ARG_aa", 0, 0)


def test_no_store_is_answered_with_the_command_that_makes_one(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"^no store at .*: run `python launch.py prepare --data \.\.\.` first$"):
            Store(path)
    assert list(tmp_path.iterdir()) == []


def in_another_process(act: Callable[[], Any]) -> None:
    child = os.fork()
    if child == 0:
        try:
            act()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def written_anew(path: Path, seal: bool = True) -> None:
    """All tiles with other pixels."""
    with StoreWriter(path) as writer:
        for entry, _, _ in tiles():
            writer.write(*tile(entry.id, entry.height, entry.width, seed=5))
        if seal:
            writer.seal()


CHANGED = "^store {} was changed while it was read: start the run again when prepare has finished$"


@pytest.mark.parametrize("located", [True, False])
@pytest.mark.parametrize("seal", [True, False])
def test_a_store_that_another_process_changes_is_not_read_on(tmp_path: Path, located: bool, seal: bool) -> None:
    fill(tmp_path, tiles())
    if not located:
        (tmp_path / "offsets.bin").unlink()
    store, other = Store(tmp_path), Store(tmp_path)
    store.read_tile(0)
    in_another_process(lambda: written_anew(tmp_path, seal))
    sentence = CHANGED.format(re.escape(str(tmp_path)))
    for each in (store, other, pickle.loads(pickle.dumps(store))):
        with pytest.raises(UserError, match=sentence):
            each.read_tile(0)
    assert re.match(sentence, str(store.verify(1)))


@pytest.mark.parametrize("located", [True, False])
def test_a_store_that_is_changed_in_the_middle_of_a_read_gives_no_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, located: bool
) -> None:
    fill(tmp_path, tiles())
    if not located:
        (tmp_path / "offsets.bin").unlink()
    store = Store(tmp_path)
    store.read_tile(3)
    real, left = reader.decode_into, [1]

    def decode_into(*args: Any) -> None:
        if left[0]:
            left[0] = 0
            in_another_process(lambda: written_anew(tmp_path))
        real(*args)

    monkeypatch.setattr(reader, "decode_into", decode_into)
    with pytest.raises(UserError, match="was changed while it was read"):
        store.read_tile(1)
    assert left == [0]


def test_a_store_that_was_written_to_but_is_the_same_is_read_on(tmp_path: Path) -> None:
    fill(tmp_path, tiles())
    store = Store(tmp_path)
    expected = mean(store)

    def act() -> None:
        with StoreWriter(tmp_path) as writer:
            writer.unseal()
            writer.seal()

    in_another_process(act)
    assert mean(store) == expected


class Failing:
    """A system that answers `os.preadv` with an error the first `times` times."""

    def __init__(self, patch: pytest.MonkeyPatch, number: int, times: int) -> None:
        self.left, real = times, os.preadv

        def preadv(*args: Any) -> int:
            if self.left > 0:
                self.left -= 1
                raise OSError(number, os.strerror(number))
            return real(*args)

        patch.setattr(os, "preadv", preadv)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_file_that_fails_once_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    fill(tmp_path, tiles())
    store = Store(tmp_path)
    expected = mean(store)
    Failing(monkeypatch, number, 1)
    before = store._file
    assert mean(store) == expected
    assert store._file is not before
    assert store._mapping is None


@pytest.mark.parametrize(("number", "times"), [(errno.EIO, 2), (errno.ESTALE, 2), (errno.ENOENT, 1), (errno.EMFILE, 1)])
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, times: int
) -> None:
    fill(tmp_path, tiles())
    store = Store(tmp_path)
    expected = mean(store)
    sentence = f"^store {re.escape(str(tmp_path))} cannot be read \\({os.strerror(number)}\\): [^;\\n]*$"
    Failing(monkeypatch, number, times)
    with pytest.raises(UserError, match=sentence):
        store.read_tile(0)
    Failing(monkeypatch, number, times)
    assert re.match(sentence, str(store.verify(0)))
    assert mean(store) == expected


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, tiles())
    store = Store(tmp_path)
    (tmp_path / "data.mdb").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"cannot be read \(No such file or directory\)"):
        store.read_tile(0)
    (tmp_path / "elsewhere").rename(tmp_path / "data.mdb")
    monkeypatch.setattr(reader, "cut_off", lambda _: os.stat(tmp_path / "data.mdb" / "x"))
    with pytest.raises(UserError, match=r"cannot be read \(Not a directory\)"):
        Store(tmp_path)


@pytest.mark.parametrize("size", [0, 8192, 100_000])
def test_a_file_that_is_cut_off_while_it_is_read_does_not_end_the_process(tmp_path: Path, size: int) -> None:
    fill(tmp_path, [tile("A_a", 600, 600)])
    store = Store(tmp_path)
    store.read_tile(0)
    os.truncate(tmp_path / "data.mdb", size)
    for _ in range(2):
        with pytest.raises(UserError, match=r"is damaged \(data.mdb is shorter than it was\): copy it again"):
            store.read_tile(0)


@pytest.mark.parametrize("located", [True, False])
@pytest.mark.parametrize("codec", CODECS)
def test_verify_names_a_value_whose_checksum_is_right_but_which_is_no_sub_tile(
    tmp_path: Path, codec: str, located: bool
) -> None:
    entry, rgb, agl_cm = tile("A_a", 260, 20)
    values = encode_tile(codec, rgb, agl_cm)
    payload = values[1][CHECKSUM.size : -1]
    values[1] = CHECKSUM.pack(xxhash.xxh3_64_intdigest(payload)) + payload
    with StoreWriter(tmp_path, codec) as writer:
        writer.write_encoded(entry, values)
        writer.seal()
    if not located:
        (tmp_path / "offsets.bin").unlink()
    sentence = rf"^store {re.escape(str(tmp_path))} is damaged at tile A_a \(sub-tile 1, 0\): it is of another size;"
    assert re.match(sentence, str(Store(tmp_path).verify(0)))
