"""Values read at their offsets in the file: few requests, and never anything but what LMDB would return."""

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

from agl_core.data.store import Store, StoreWriter, ranges
from agl_core.data.store import offsets as offsets_module
from agl_core.data.store import writer as writer_module
from agl_core.data.store.codec import CODECS
from agl_core.data.store.layout import TILE_PREFIX, shared_mapping, subtile_key
from agl_core.data.store.offsets import locate
from agl_core.data.store.pages import UnknownFormatError, all_values, cut_off, fill_up, read_state
from agl_core.errors import UserError
from tests.data.store.test_store import Tile, fill, records, tile, tiles


def assert_reads(path: Path, expected: list[Tile], located: bool) -> None:
    """All is read right, and at offsets or not."""
    store = Store(path)
    for index, (entry, rgb, agl_cm) in enumerate(sorted(expected, key=lambda found: found[0].id)):
        assert store.entries[index] == entry
        found_rgb, found_agl = store.read_tile(index)
        assert np.array_equal(found_rgb, rgb)
        assert np.array_equal(found_agl, agl_cm)
    assert (store.read_requests > 0) == located
    assert (store._mapping is None) == located, "the map is not kept where nothing is read through it"


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sealed")
    fill(path, tiles())
    return path


@pytest.fixture
def copied(sealed: Path, tmp_path: Path) -> Path:
    shutil.copytree(sealed, tmp_path / "store")
    return tmp_path / "store"


def test_all_values_are_found_where_lmdb_has_them(tmp_path: Path) -> None:
    """Small ones inside the pages of the tree, large ones on pages of their own, in a tree of three levels."""
    generator = np.random.default_rng(0)
    with StoreWriter(tmp_path) as writer:
        for number in generator.permutation(1500).tolist():
            writer.write(*tile(f"A_{number:0{1 + number % 40}}", 1 + number % 7, 1 + number % 5))
            if number % 100 == 0:
                writer.write(*tile(f"B_{number}", 300, 300))
        for number in range(0, 1500, 3):
            writer.remove(f"A_{number:0{1 + number % 40}}")
        writer.write(*tile("C_c", 600, 600))
        assert writer.seal()
    with lmdb.open(str(tmp_path), readonly=True, lock=False) as environment:
        assert environment.stat()["depth"] >= 3
    expected = {key: value for key, value in records(tmp_path).items() if key.startswith(TILE_PREFIX)}
    located = locate(tmp_path / "data.mdb", expected)
    assert located is not None
    data = (tmp_path / "data.mdb").read_bytes()
    starts, lengths = located[1]
    found = [data[start : start + length] for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)]
    assert found == list(expected.values())
    assert locate(tmp_path / "data.mdb", list(expected)[:-1]) is None
    assert locate(tmp_path / "data.mdb", [*expected, b"tile/Z"]) is None
    assert locate(tmp_path / "data.mdb", [b"tile/Z", *list(expected)[1:]]) is None


def test_a_sealed_store_is_read_at_its_offsets(sealed: Path) -> None:
    assert_reads(sealed, tiles(), located=True)


@pytest.mark.parametrize("codec", CODECS)
def test_a_crop_of_512_takes_at_most_three_requests(tmp_path: Path, codec: str) -> None:
    fill(tmp_path, [tile("A_a", 2048, 1800)], codec)
    store = Store(tmp_path)
    value = 8 + 5 * 256 * 256 + 5000  # noise does not compress; what is between values is read as well
    for y, x in ((0, 0), (1, 1), (1536, 1288), (777, 333)):
        requests, read = store.read_requests, store.read_bytes
        store.read_crop(0, y, x, 512, 512)
        assert store.read_requests - requests <= 3
        assert store.read_bytes - read <= 9 * value
    requests = store.read_requests
    store.read_crop(0, 0, 0, 256, 1280)
    assert store.read_requests == requests + 1, "one request for five neighbours"


def test_requests_are_counted_for_each_process(sealed: Path) -> None:
    store = Store(sealed)
    assert (store.read_requests, store.read_bytes) == (0, 0)
    store.read_crop(0, 0, 0, 5, 5)
    assert store.read_requests == 1
    assert store.read_bytes > 40 * 30
    child = os.fork()
    if child == 0:
        before = store.read_requests
        store.read_crop(0, 0, 0, 5, 5)
        os._exit(0 if (before, store.read_requests) == (0, 1) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.read_requests == 1


def change_byte(path: Path, place: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)


def another_store(path: Path) -> None:
    """Offsets of a store with as many values of the same lengths, elsewhere."""
    aside = path.with_name("aside")
    fill(aside, [tile("ZZZ", 300, 300), *tiles()])
    with StoreWriter(aside) as writer:
        writer.remove("ZZZ")
        writer.seal()
    shutil.copy(aside / "offsets.bin", path)


def another_transaction(path: Path) -> None:
    """The file is written once more, with the same content."""
    with lmdb.open(str(path), lock=False) as environment:
        for _ in range(2):
            with environment.begin(write=True) as transaction:
                meta: Any = transaction.get(b"meta")
                transaction.put(b"meta", meta)


SPOILERS: dict[str, Callable[[Path], Any]] = {
    "missing": lambda path: (path / "offsets.bin").unlink(),
    "empty": lambda path: (path / "offsets.bin").write_bytes(b""),
    "cut": lambda path: os.truncate(path / "offsets.bin", 150),
    "longer": lambda path: (path / "offsets.bin").write_bytes((path / "offsets.bin").read_bytes() + b"x"),
    "magic": lambda path: change_byte(path / "offsets.bin", 0),
    "digest": lambda path: change_byte(path / "offsets.bin", 20),
    "offset": lambda path: change_byte(path / "offsets.bin", 100),
    "length": lambda path: change_byte(path / "offsets.bin", (path / "offsets.bin").stat().st_size - 3),
    "of another store": lambda path: another_store(path / "offsets.bin"),
    "of an older state": another_transaction,
}


@pytest.mark.parametrize("spoil", SPOILERS.values(), ids=SPOILERS.keys())
def test_offsets_that_do_not_fit_are_not_used_and_made_again(copied: Path, spoil: Callable[[Path], Any]) -> None:
    spoil(copied)
    assert_reads(copied, tiles(), located=False)
    StoreWriter(copied).close()
    assert_reads(copied, tiles(), located=True)


def test_wrong_offsets_are_found_by_the_checksums(sealed: Path) -> None:
    store = Store(sealed)
    expected = [store.read_tile(index) for index in range(len(store))]
    assert store._file is not None
    good = store._file._offsets
    for starts, lengths in (
        (good.starts + 8, good.lengths),
        (good.starts, good.lengths - 1),
        (good.starts, good.lengths * 0),
        (good.starts + (1 << 40), good.lengths),
        (good.starts, good.lengths + (1 << 30)),
    ):
        store._file._offsets = type(good)(starts, lengths)
        for index, (rgb, agl_cm) in enumerate(expected):
            found = store.read_tile(index)
            assert np.array_equal(found[0], rgb)
            assert np.array_equal(found[1], agl_cm)


def test_a_value_that_lmdb_does_not_have_right_either_is_damage(copied: Path) -> None:
    located = locate(copied / "data.mdb", [key for key in records(copied) if key.startswith(TILE_PREFIX)])
    assert located is not None
    change_byte(copied / "data.mdb", int(located[1].starts[0]) + 1000)
    with pytest.raises(UserError, match=r"damaged at tile ARG_a \(sub-tile 0, 0\): its checksum is wrong"):
        Store(copied).read_tile(0)
    assert "sub-tile 0, 0" in str(Store(copied).verify(0))
    assert Store(copied).verify(1) is None


def test_a_request_that_is_answered_in_pieces_is_continued(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, into, at: whole(file, [into[0][:10_000]], at))
    assert_reads(sealed, tiles(), located=True)


def test_large_reads_are_cut_into_buffers_full(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "MOST", 400_000)
    monkeypatch.setattr(ranges, "_local", type(ranges._local)())
    assert_reads(sealed, tiles(), located=True)


def test_a_store_changed_by_this_process_is_not_read_at_old_offsets_however_coarse_the_clock(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "_stamp", lambda _: (0, 0))
    for seed in range(1, 4):
        store = Store(copied)
        store.read_tile(0)
        fill(copied, [tile("ARG_a", *shape_of(store), seed=seed)])
        requests = store.read_requests
        with pytest.raises(UserError, match="was changed while it was read"):
            store.read_tile(0)
        assert store.read_requests == requests
        assert np.array_equal(Store(copied).read_tile(0)[0], tile("ARG_a", *shape_of(store), seed=seed)[1])


def shape_of(store: Store) -> tuple[int, int]:
    return store.entries[0].height, store.entries[0].width


def test_a_change_removes_the_offsets_before_the_seal(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    present = []
    put_meta = StoreWriter._put_meta

    def watched(writer: StoreWriter, sealed: dict[str, Any] | None) -> None:
        present.append((copied / "offsets.bin").exists())
        put_meta(writer, sealed)

    monkeypatch.setattr(StoreWriter, "_put_meta", watched)
    with StoreWriter(copied) as writer:
        assert (copied / "offsets.bin").exists()
        writer.unseal()
        writer.seal()
    assert present == [False, False]
    assert_reads(copied, tiles(), located=True)


@pytest.mark.parametrize("what", ["format", "sample"])
def test_without_offsets_a_store_is_sealed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def unknown(*_: Any) -> Any:
        raise UnknownFormatError

    if what == "format":
        monkeypatch.setattr(offsets_module, "all_values", unknown)
    else:
        monkeypatch.setattr(offsets_module, "agree", lambda *_: False)
    with StoreWriter(tmp_path) as writer:
        for found in tiles():
            writer.write(*found)
        assert not writer.seal()
    assert not (tmp_path / "offsets.bin").exists()
    assert_reads(tmp_path, tiles(), located=False)


def test_offsets_that_lmdb_does_not_agree_with_are_not_kept(sealed: Path) -> None:
    keys = [key for key in records(sealed) if key.startswith(TILE_PREFIX)]
    located = locate(sealed / "data.mdb", keys)
    assert located is not None
    mapping = shared_mapping(sealed)
    assert offsets_module.agree(sealed / "data.mdb", mapping.environment, keys, located[1])
    moved = located[1]._replace(starts=located[1].starts + 8)
    assert not offsets_module.agree(sealed / "data.mdb", mapping.environment, keys, moved)


def test_the_offsets_are_a_function_of_the_file(copied: Path) -> None:
    before = (copied / "offsets.bin").read_bytes()
    (copied / "offsets.bin").unlink()
    StoreWriter(copied).close()
    assert (copied / "offsets.bin").read_bytes() == before


@pytest.mark.parametrize("place", [16, 20, 40, 4096 + 16])
def test_a_file_of_another_format_has_no_state(copied: Path, place: int) -> None:
    data = copied / "data.mdb"
    with data.open("rb") as file:
        state = read_state(file.fileno())
        assert state is not None
        assert (state.page_size, state.pages * 4096) == (4096, data.stat().st_size)
    change_byte(data, place)
    with data.open("rb") as file:
        assert read_state(file.fileno()) is None
    data.write_bytes(struct.pack("<Q", 0))
    assert not cut_off(data)


def test_pages_that_were_given_out_but_never_written_are_filled_up(copied: Path) -> None:
    data = copied / "data.mdb"
    whole = data.stat().st_size
    os.truncate(data, whole - 1)
    assert cut_off(data)
    fill_up(data)
    assert not cut_off(data)
    assert data.stat().st_size == whole
    assert read_offsets_of(copied)


def read_offsets_of(path: Path) -> bool:
    store = Store(path)
    store.read_tile(0)
    return store.read_requests > 0


def test_a_store_is_filled_up_when_it_is_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled: list[Path] = []
    monkeypatch.setattr(writer_module, "fill_up", filled.append)
    fill(tmp_path, tiles())
    assert filled == [tmp_path / "data.mdb"]


def test_one_value_more_or_less_is_noticed_when_sealing(tmp_path: Path) -> None:
    with StoreWriter(tmp_path) as writer:
        writer.write(*tile("A_a", 300, 20))
        writer._writing().delete(subtile_key("A_a", 1, 0))
        assert not writer.seal()
    with pytest.raises(UserError, match=r"sub-tile 1, 0\): it is missing"):
        Store(tmp_path).read_tile(0)


def test_what_a_killed_seal_has_not_filled_up_the_next_writer_does(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = copied / "data.mdb"
    expected = records(copied)
    size = data.stat().st_size
    with data.open("rb+") as file:  # one page more was given out than was written, as LMDB does at times
        for at in (0, 4096):
            file.seek(at + 16 + 120)
            last = struct.unpack("<Q", file.read(8))[0]
            file.seek(at + 16 + 120)
            file.write(struct.pack("<Q", last + 1))
    with pytest.raises(UserError, match="shorter than it was"):
        Store(copied)
    StoreWriter(copied).close()
    assert data.stat().st_size == size + 4096
    assert_reads(copied, tiles(), located=True)
    assert records(copied) == expected


@pytest.mark.parametrize("left", [0.999, 0.5, 0.1])
def test_a_store_that_was_cut_off_is_not_filled_up(copied: Path, left: float) -> None:
    data = copied / "data.mdb"
    with data.open("rb") as file:
        state = read_state(file.fileno())
        assert state is not None
        end = max(start + length for _, start, length in all_values(file.fileno(), state))
    os.truncate(data, int(end * left) - 1)
    before = data.read_bytes()
    with pytest.raises(UserError, match=r"is damaged .data.mdb is shorter than it was.: copy it again, or delete"):
        StoreWriter(copied)
    assert data.read_bytes() == before
