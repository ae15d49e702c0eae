"""Preparing a data set: whole, continued, repeated, and refused."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

from agl_core.config import PrepareConfig
from agl_core.data.catalog import TileRecord
from agl_core.data.prepare import ingest, sources
from agl_core.data.prepare.decode import BadTile, EncodedTile
from agl_core.data.prepare.ingest import prepare
from agl_core.data.store import Store, StoreWriter, writer
from agl_core.data.store.layout import StoreEntry
from agl_core.data.tiles import UNKNOWN, read_agl, read_rgb, write_agl, write_rgb, write_vflow
from agl_core.errors import UserError
from agl_core.geometry import Pose

TILES = {"ARG_a": (30, 40), "ARG_b": (300, 20), "JAX_c": (64, 64), "JAX_d": (10, 10), "OMA_e": (33, 257)}


def make_data(folder: Path, unit: str = "cm", suffix: str = ".tif") -> Path:
    """Five tiles of three cities; JAX_d is a nadir image without VFLOW."""
    train = folder / "train"
    train.mkdir(parents=True)
    rows, metadata = [], []
    for number, (name, (height, width)) in enumerate(TILES.items()):
        generator = np.random.default_rng(number)
        agl = generator.integers(0, 20000, (height, width)).astype(np.uint16)
        agl[:1] = UNKNOWN
        write_rgb(train / f"{name}_RGB{suffix}", generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        write_agl(train / f"{name}_AGL.tif", agl, unit)
        vflow = "" if name == "JAX_d" else f"{name}_VFLOW.json"
        if vflow:
            write_vflow(train / vflow, Pose(1.5 + number, 0.5 * number), unit)
        rows.append([name, f"{name}_AGL.tif", vflow, f"{name}_RGB{suffix}"])
        metadata.append([name, name[:3], 0.3 + number / 10, f"place{number % 2}"])
    write_table(folder / "geopose_train.csv", ["id", "agl", "json", "rgb"], rows[::-1])
    write_table(folder / "metadata.csv", ["id", "city", "gsd", "place"], metadata)
    return folder


def write_table(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def replace_line(path: Path, start: str, line: str) -> None:
    lines = [line if found.startswith(start) else found for found in path.read_text().splitlines()]
    path.write_text("\n".join(found for found in lines if found) + "\n")


def records(path: Path) -> dict[bytes, bytes]:
    with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return dict(transaction.cursor())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the tiles that are decoded in this process, as they are."""
    names: list[str] = []
    encode = ingest.encode

    def noted(record: TileRecord, unit: str, codec: str) -> EncodedTile | BadTile:
        names.append(record.id)
        return encode(record, unit, codec)

    monkeypatch.setattr(ingest, "encode", noted)
    return names


@pytest.mark.parametrize(("unit", "suffix"), [("cm", ".tif"), ("m", ".j2k")])
def test_the_store_holds_what_the_files_hold(tmp_path: Path, unit: str, suffix: str) -> None:
    data = make_data(tmp_path, unit, suffix)
    path = prepare(PrepareConfig(data=str(data), unit=unit, workers=1))
    assert path == data / "store"
    store = Store(path)
    assert [entry.id for entry in store.entries] == sorted(TILES)
    assert store.cities == ["ARG", "JAX", "OMA"]
    for index, entry in enumerate(store.entries):
        rgb, agl_cm = store.read_tile(index)
        assert np.array_equal(rgb, read_rgb(data / "train" / f"{entry.id}_RGB{suffix}"))
        assert np.array_equal(agl_cm, read_agl(data / "train" / f"{entry.id}_AGL.tif", unit))
        assert (entry.height, entry.width) == TILES[entry.id]
        assert entry.gsd == pytest.approx(0.3 + index / 10)
        assert entry.place == f"place{index % 2}"
        if entry.id == "JAX_d":
            assert (entry.scale, entry.angle) == (None, None)
        else:
            assert (entry.scale, entry.angle) == (pytest.approx(1.5 + index), 0.5 * index)


def test_the_store_is_the_same_to_the_byte_whatever_the_number_of_workers(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_COMMIT_SECONDS", 1e9)  # a slow machine would commit elsewhere, of the same content
    stores = [
        prepare(PrepareConfig(data=str(data), store=str(tmp_path / f"{workers}"), workers=workers))
        for workers in (1, 2)
    ]
    first, second = ((path / "data.mdb").read_bytes() for path in stores)
    assert first == second


def test_the_summary_tells_cities_size_and_share_of_unknown_heights(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(PrepareConfig(data=str(data), workers=1))
    out = capsys.readouterr().out
    unknown = sum(width for _, width in TILES.values()) / sum(height * width for height, width in TILES.values())
    assert "5 tiles (2 ARG, 2 JAX, 1 OMA)" in out
    assert f"{unknown:.1%} of the heights unknown" in out
    assert "1 tiles without pose" in out
    assert "negative" not in out


def test_negative_heights_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import rasterio

    data = make_data(tmp_path, "m")
    with rasterio.open(data / "train" / "JAX_d_AGL.tif", "r+") as raster:
        raster.write(np.full((1, 10, 10), -0.5, np.float32))
    prepare(PrepareConfig(data=str(data), unit="m", workers=1))
    assert "100 negative heights set to 0" in capsys.readouterr().out


def test_a_second_run_finds_nothing_to_do(data: Path, decoded: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    path = prepare(PrepareConfig(data=str(data), workers=1))
    before = (path / "data.mdb").read_bytes()
    decoded.clear()
    capsys.readouterr()
    prepare(PrepareConfig(data=str(data), workers=1))
    assert decoded == []
    assert "up to date: 5 tiles, nothing to do" in capsys.readouterr().out
    assert (path / "data.mdb").read_bytes() == before


def test_only_changed_tiles_are_read_again(data: Path, decoded: list[str]) -> None:
    prepare(PrepareConfig(data=str(data), workers=1))
    decoded.clear()
    write_agl(data / "train" / "JAX_c_AGL.tif", np.full((64, 64), 7, np.uint16), "cm")
    replace_line(data / "metadata.csv", "OMA_e", "OMA_e,OMA,0.9,place0")
    vflow = data / "train" / "ARG_a_VFLOW.json"
    vflow.write_text(vflow.read_text().replace("1", "2"))  # of the same size
    os.utime(data / "train" / "ARG_b_RGB.tif", ns=(0, 12345))
    path = prepare(PrepareConfig(data=str(data), workers=1))
    assert decoded == ["ARG_a", "JAX_c", "OMA_e"]
    store = Store(path)
    assert (store.read_tile(2)[1] == 7).all()
    assert store.entries[4].gsd == 0.9


def test_files_that_were_only_copied_are_compared_once_and_not_decoded_again(
    data: Path, tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(PrepareConfig(data=str(data), workers=1))
    for path in (data / "train").iterdir():
        os.utime(path, ns=(0, 12345))
    decoded.clear()
    hashed: list[Path] = []
    contents = sources.contents
    monkeypatch.setattr(sources, "contents", lambda record: hashed.append(record.rgb) or contents(record))
    for _ in range(2):
        path = prepare(PrepareConfig(data=str(data), workers=1))
        assert decoded == []
        assert len(hashed) == len(TILES)
        assert len(Store(path)) == len(TILES)
    fresh = prepare(PrepareConfig(data=str(data), store=str(tmp_path / "fresh"), workers=1))
    assert records(path) == records(fresh)


def test_copied_files_are_compared_in_other_processes_too(data: Path, decoded: list[str]) -> None:
    prepare(PrepareConfig(data=str(data), workers=1))
    decoded.clear()
    for path in (data / "train").iterdir():
        os.utime(path, ns=(0, 12345))
    write_agl(data / "train" / "JAX_d_AGL.tif", np.full((10, 10), 7, np.uint16), "cm")
    prepare(PrepareConfig(data=str(data), workers=2))
    assert decoded == ["JAX_d"]  # a single one is decoded in this process


def test_a_file_that_changes_while_it_is_read_makes_a_bad_tile(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agl_core.data.prepare import decode

    read = decode.read_rgb

    def changed(path: Path) -> Any:
        rgb = read(path)
        if path.name.startswith("JAX_c"):
            os.utime(path, ns=(0, 12345))
        return rgb

    monkeypatch.setattr(decode, "read_rgb", changed)
    with pytest.raises(UserError, match=r"^the files of tile JAX_c were changed while they were read: run prepare"):
        prepare(PrepareConfig(data=str(data), workers=1))


def test_tiles_are_made_again_on_demand(data: Path, decoded: list[str]) -> None:
    path = prepare(PrepareConfig(data=str(data), workers=1))
    before = records(path)
    decoded.clear()
    prepare(PrepareConfig(data=str(data), workers=1, redo="OMA_e, ARG_b"))
    assert decoded == ["ARG_b", "OMA_e"]
    assert records(path) == before


def test_the_codec_is_chosen_once(data: Path) -> None:
    path = prepare(PrepareConfig(data=str(data), workers=1, codec="raw"))
    assert Store(path).codec == "raw"
    assert Store(prepare(PrepareConfig(data=str(data), workers=1))).codec == "raw"
    with pytest.raises(UserError, match="is in codec raw, not zstd"):
        prepare(PrepareConfig(data=str(data), workers=1, codec="zstd"))
    assert Store(path).codec == "raw"


def test_what_an_interrupted_write_left_of_a_tile_that_is_gone_since_is_gone_too(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done_key, asked = writer.done_key, []

    def interrupted(tile: str) -> bytes:
        asked.append(tile)
        if len(asked) == 2:  # to remove what there was, and then to write the record, after the values
            raise KeyboardInterrupt
        return done_key(tile)

    monkeypatch.setattr(writer, "done_key", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(PrepareConfig(data=str(data), workers=1))
    monkeypatch.undo()
    assert [key[:10] for key in records(data / "store")] == [b"meta", b"tile/ARG_a"]
    replace_line(data / "geopose_train.csv", "ARG_a", "")
    path = prepare(PrepareConfig(data=str(data), workers=1))
    fresh = prepare(PrepareConfig(data=str(data), store=str(tmp_path / "fresh"), workers=1))
    assert records(path) == records(fresh)


def test_tiles_that_left_the_catalogue_leave_the_store(data: Path, decoded: list[str], tmp_path: Path) -> None:
    path = prepare(PrepareConfig(data=str(data), workers=1))
    replace_line(data / "geopose_train.csv", "ARG_b", "")
    decoded.clear()
    prepare(PrepareConfig(data=str(data), workers=1))
    assert decoded == []
    assert [entry.id for entry in Store(path).entries] == ["ARG_a", "JAX_c", "JAX_d", "OMA_e"]
    fresh = prepare(PrepareConfig(data=str(data), store=str(tmp_path / "fresh"), workers=1))
    assert records(path) == records(fresh)


def test_killed_before_any_tile_and_run_again_it_does_only_the_rest(
    data: Path, tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_COMMIT_BYTES", 1)
    whole = prepare(PrepareConfig(data=str(data), store=str(tmp_path / "whole"), workers=1))
    encode = ingest.encode
    for kill_at in range(len(TILES)):
        config = PrepareConfig(data=str(data), store=str(tmp_path / str(kill_at)), workers=1)
        child = os.fork()
        if child == 0:

            def killed(record: TileRecord, unit: str, codec: str, last: str = sorted(TILES)[kill_at]) -> Any:
                if record.id == last:
                    os.kill(os.getpid(), signal.SIGKILL)
                return encode(record, unit, codec)

            monkeypatch.setattr(ingest, "encode", killed)
            prepare(config)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        with pytest.raises(UserError, match="not finished"):
            Store(Path(config.store))
        decoded.clear()
        prepare(config)
        assert decoded == sorted(TILES)[kill_at:]
        assert records(Path(config.store)) == records(whole)


def test_on_slow_sources_a_kill_loses_only_what_came_since_the_last_commit_by_the_clock(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = prepare(PrepareConfig(data=str(data), store=str(tmp_path / "undisturbed"), workers=1))
    now, encode = [0.0], ingest.encode
    child = os.fork()
    if child == 0:

        def slow(record: TileRecord, unit: str, codec: str) -> Any:
            now[0] += 4  # commits come with the third tile
            if record.id == "OMA_e":
                os.kill(os.getpid(), signal.SIGKILL)
            return encode(record, unit, codec)

        monkeypatch.setattr(writer.time, "monotonic", lambda: now[0])
        monkeypatch.setattr(ingest, "encode", slow)
        prepare(PrepareConfig(data=str(data), workers=1))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with StoreWriter(data / "store") as opened:
        assert list(opened.finished()) == ["ARG_a", "ARG_b", "JAX_c"]
    assert records(prepare(PrepareConfig(data=str(data), workers=1))) == records(undisturbed)


@pytest.mark.parametrize("workers", [1, 2])
def test_each_bad_tile_has_its_line_and_nothing_can_be_read_yet(
    data: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    train = data / "train"
    (train / "ARG_a_RGB.tif").write_bytes(b"broken")
    write_agl(train / "JAX_c_AGL.tif", np.zeros((32, 64), np.uint16), "cm")
    (train / "OMA_e_VFLOW.json").write_text('{"scale": -1, "angle": 0}')
    config = PrepareConfig(data=str(data), workers=workers)
    with pytest.raises(UserError, match=r"^3 tiles of .* are bad, .* above; the first: [^;]*ARG_a_RGB[^;]*;") as caught:
        prepare(config)
    assert not [unwanted for unwanted in ("\n", "JAX_c", "OMA_e") if unwanted in str(caught.value)]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bad: ")]
    assert len(lines) == 3
    assert "ARG_a_RGB.tif cannot be read as an image" in lines[0]
    assert f"tile JAX_c: AGL is 32 x 64 but RGB is 64 x 64 (in {train / 'JAX_c_AGL.tif'})" in lines[1]
    assert "OMA_e_VFLOW.json has scale -1" in lines[2]
    with pytest.raises(UserError, match="not finished"):
        Store(data / "store")


def other_data(folder: Path, shared: tuple[str, ...] = ()) -> Path:
    """A data set whose tiles have other ids, but for those that are shared."""
    data = make_data(folder)
    for name in ("geopose_train.csv", "metadata.csv"):
        for tile in TILES.keys() - set(shared):
            lines = (data / name).read_text().splitlines()
            line = next(line for line in lines if line.startswith(tile))
            replace_line(data / name, tile, line.replace(tile, f"new_{tile}", 1))
    return data


def test_the_store_of_another_data_set_is_refused_and_stays(data: Path, tmp_path: Path) -> None:
    store = prepare(PrepareConfig(data=str(data), workers=1))
    before = whole(store)
    other = other_data(tmp_path / "other")
    for check in (False, True):
        with pytest.raises(
            UserError,
            match=r"^store .*/store holds 5 tiles of another data set \(ARG_a, ARG_b, JAX_c and 2 more\): choose "
            "another folder with --store, or delete it$",
        ):
            prepare(PrepareConfig(data=str(other), store=str(store), workers=1, check=check))
        assert whole(store) == before


def test_a_store_that_is_not_finished_is_refused_to_another_data_set_too(data: Path, tmp_path: Path) -> None:
    (data / "train" / "ARG_b_RGB.tif").write_bytes(b"broken")
    with pytest.raises(UserError, match="ARG_b"):
        prepare(PrepareConfig(data=str(data), workers=1))
    before = records(data / "store")
    with pytest.raises(UserError, match="holds 4 tiles of another data set"):
        prepare(PrepareConfig(data=str(other_data(tmp_path / "other")), store=str(data / "store"), workers=1))
    assert records(data / "store") == before


def test_a_data_set_of_which_one_tile_is_left_is_the_same(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = prepare(PrepareConfig(data=str(data), workers=1))
    other = other_data(tmp_path / "other", ("JAX_c",))
    prepare(PrepareConfig(data=str(other), store=str(store), workers=1))
    assert "JAX_c" in {entry.id for entry in Store(store).entries}
    assert capsys.readouterr().out.rstrip().endswith("; 4 added, 4 dropped, 1 kept")


@pytest.mark.parametrize(("unit", "given"), [("m", "cm"), ("cm", "m")])
def test_a_store_made_in_another_unit_names_it_and_stays(tmp_path: Path, unit: str, given: str) -> None:
    data = make_data(tmp_path, unit)
    store = prepare(PrepareConfig(data=str(data), unit=unit, workers=1))
    os.utime(data / "train" / "ARG_b_RGB.tif", ns=(0, 12345))
    replace_line(data / "metadata.csv", "OMA_e", "OMA_e,OMA,0.9,place0")
    before = whole(store)
    for change in ({}, {"check": True}, {"redo": "ARG_a"}):
        with pytest.raises(UserError, match=rf"was made of the same files with --unit {unit}, not {given}: give that"):
            prepare(PrepareConfig(data=str(data), unit=given, workers=1, **change))  # type: ignore[arg-type]
        assert whole(store) == before


def test_files_that_were_replaced_by_those_of_another_unit_are_read_again(data: Path, tmp_path: Path) -> None:
    store = prepare(PrepareConfig(data=str(data), workers=1))
    metres = make_data(tmp_path / "metres", "m")
    for path in (metres / "train").iterdir():
        path.replace(data / "train" / path.name)
    prepare(PrepareConfig(data=str(data), unit="m", workers=1))
    fresh = prepare(PrepareConfig(data=str(data), unit="m", store=str(tmp_path / "fresh"), workers=1))
    assert records(store) == records(fresh)


def test_the_summary_says_what_was_done(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = (data / "geopose_train.csv").read_text()
    replace_line(data / "geopose_train.csv", "JAX_d", "")
    prepare(PrepareConfig(data=str(data), workers=1))
    assert ";" not in capsys.readouterr().out
    (data / "geopose_train.csv").write_text(table)
    replace_line(data / "geopose_train.csv", "ARG_b", "")
    write_agl(data / "train" / "JAX_c_AGL.tif", np.full((64, 64), 7, np.uint16), "cm")
    prepare(PrepareConfig(data=str(data), workers=1))
    assert capsys.readouterr().out.endswith("; 1 made again, 1 added, 1 dropped, 2 kept\n")
    prepare(PrepareConfig(data=str(data), workers=1, redo="JAX_d"))
    assert capsys.readouterr().out.endswith("; 1 made again, 3 kept\n")


def test_offsets_that_are_missing_or_do_not_fit_are_written_anew_and_that_is_said(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offsets = prepare(PrepareConfig(data=str(data), workers=1)) / "offsets.bin"
    good = offsets.read_bytes()
    assert "anew" not in capsys.readouterr().out
    for wrong in (None, good[:-1]):
        offsets.unlink()
        if wrong is not None:
            offsets.write_bytes(wrong)
        prepare(PrepareConfig(data=str(data), workers=1))
        assert "offsets.bin was missing or did not fit, and was written anew" in capsys.readouterr().out
        assert offsets.read_bytes() == good
    prepare(PrepareConfig(data=str(data), workers=1))
    assert "anew" not in capsys.readouterr().out


@pytest.mark.parametrize("workers", [1, 2])
def test_who_is_interrupted_by_the_keyboard_keeps_what_is_done_and_is_told(
    data: Path, workers: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = StoreWriter.write_encoded

    def interrupted(self: StoreWriter, entry: StoreEntry, *arguments: Any) -> None:
        if entry.id == "JAX_c":
            raise KeyboardInterrupt
        write(self, entry, *arguments)

    monkeypatch.setattr(StoreWriter, "write_encoded", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(PrepareConfig(data=str(data), workers=workers))
    monkeypatch.undo()
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"interrupted: 2 of 5 tiles are in the store {data / 'store'}; the same command does the rest"
    prepare(PrepareConfig(data=str(data), workers=1))
    assert capsys.readouterr().out.endswith("; 3 added, 2 kept\n")


@pytest.mark.parametrize("workers", [1, 2])
def test_if_the_first_tiles_are_all_of_another_unit_the_rest_are_not_read(
    data: Path, workers: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ingest, "WRONG_UNITS", 3)
    with pytest.raises(UserError, match=r"^[^ ]*ARG_a_AGL.tif holds uint16, [^;]*: give --unit cm$"):
        prepare(PrepareConfig(data=str(data), unit="m", workers=workers))
    assert "bad: " not in capsys.readouterr().err, "one sentence says it of all"
    (data / "train" / "ARG_b_AGL.tif").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"^5 tiles of "):
        prepare(PrepareConfig(data=str(data), unit="m", workers=workers))


def test_a_wrong_unit_is_found_before_an_image_is_decoded(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agl_core.data.prepare import decode

    monkeypatch.setattr(decode, "read_rgb", lambda path: pytest.fail(f"{path} is decoded"))
    with pytest.raises(UserError, match="give --unit cm"):
        prepare(PrepareConfig(data=str(data), unit="m", workers=1))


@pytest.mark.parametrize("workers", [1, 2])
def test_on_demand_the_first_bad_tile_ends_the_run_and_what_is_done_is_kept(
    data: Path, request: pytest.FixtureRequest, workers: int
) -> None:
    good = (data / "train" / "JAX_c_RGB.tif").read_bytes()
    for tile in ("JAX_c", "OMA_e"):
        (data / "train" / f"{tile}_RGB.tif").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"^/[^ ]*JAX_c_RGB\.tif cannot be read as an image[^;]*; replace the file$"):
        prepare(PrepareConfig(data=str(data), workers=workers, bad_tiles="stop"))
    (data / "train" / "JAX_c_RGB.tif").write_bytes(good)
    replace_line(data / "geopose_train.csv", "OMA_e", "")
    decoded = request.getfixturevalue("decoded")
    prepare(PrepareConfig(data=str(data), workers=1))
    assert decoded == ["JAX_c", "JAX_d"]


def test_mending_the_bad_tiles_is_all_that_is_left_to_do(data: Path, decoded: list[str]) -> None:
    good = (data / "train" / "ARG_b_RGB.tif").read_bytes()
    (data / "train" / "ARG_b_RGB.tif").write_bytes(good[:100])
    with pytest.raises(UserError, match=r"^/[^ ]*ARG_b_RGB\.tif cannot be read as an image[^;]*; replace the file$"):
        prepare(PrepareConfig(data=str(data), workers=1))
    (data / "train" / "ARG_b_RGB.tif").write_bytes(good)
    decoded.clear()
    assert len(Store(prepare(PrepareConfig(data=str(data), workers=1)))) == 5
    assert decoded == ["ARG_b"]


@pytest.mark.parametrize("changed", [True, False])
def test_a_sealed_store_that_meets_a_bad_tile_is_no_longer_sealed(data: Path, changed: bool) -> None:
    table = (data / "geopose_train.csv").read_text()
    if not changed:  # the bad tile comes later
        replace_line(data / "geopose_train.csv", "ARG_b", "")
    prepare(PrepareConfig(data=str(data), workers=1))
    (data / "geopose_train.csv").write_text(table)
    (data / "train" / "ARG_b_RGB.tif").write_bytes(b"broken")
    with pytest.raises(
        UserError, match=r"ARG_b.*prepare is run again, the store .*/store cannot be used for"
    ) as refusal:
        prepare(PrepareConfig(data=str(data), workers=1))
    assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match="not finished"):
        Store(data / "store")


def test_the_wrong_unit_is_refused_with_the_option(data: Path) -> None:
    with pytest.raises(UserError, match=r"holds uint16, .* give --unit cm"):
        prepare(PrepareConfig(data=str(data), unit="m", workers=1))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"unit": "feet"}, "'feet': choose one of cm, m"),
        ({"workers": 0}, "workers is 0: give at least 1"),
        ({"data": "nowhere"}, "no data set at nowhere"),
        ({"redo": "ARG_a,ARG_z"}, "has no tile 'ARG_z'"),
        ({"redo": "ARG_a", "check": True}, "--check changes nothing"),
        ({"check": True}, "no store at"),
    ],
)
def test_impossible_options_are_refused_and_nothing_is_written(
    data: Path, change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        prepare(PrepareConfig(**{"data": str(data), **change}))
    assert not (data / "store").exists()


def test_a_store_that_cannot_be_written_names_the_option(data: Path) -> None:
    (data / "store").write_text("a file is in the way")
    with pytest.raises(UserError, match="choose another folder with --store"):
        prepare(PrepareConfig(data=str(data), workers=1))


def test_decoders_do_not_outlive_a_parent_that_is_killed(data: Path) -> None:
    # The decoders inherit standard output: reading it to its end waits for the last of them.
    code = (
        "import os, signal\n"
        "from agl_core.config import PrepareConfig\n"
        "from agl_core.data.prepare import ingest\n"
        "ingest.StoreWriter.write_encoded = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"ingest.prepare(PrepareConfig(data={str(data)!r}, workers=2))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL


def test_decoders_do_not_load_torch() -> None:
    code = "import sys, agl_core.data.prepare.ingest; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def whole(store: Path) -> dict[str, bytes]:
    return {name: (store / name).read_bytes() for name in ("data.mdb", "offsets.bin")}


@pytest.mark.parametrize("touched_only", [True, False])
def test_while_copied_files_are_compared_the_store_stays_usable(
    data: Path, monkeypatch: pytest.MonkeyPatch, touched_only: bool
) -> None:
    store = prepare(PrepareConfig(data=str(data), workers=1))
    before = whole(store)
    for path in (data / "train").iterdir():
        os.utime(path, ns=(0, 12345))
    if not touched_only:
        replace_line(data / "metadata.csv", "ARG_a", "ARG_a,ARG,0.9,place0")
        replace_line(data / "geopose_train.csv", "ARG_b", "")
    contents, compared = sources.contents, []

    def watched(record: TileRecord) -> list[str | None]:
        assert whole(store) == before
        compared.append(record.id)
        return contents(record)

    monkeypatch.setattr(sources, "contents", watched)
    prepare(PrepareConfig(data=str(data), workers=1))
    assert compared == (sorted(TILES) if touched_only else ["JAX_c", "JAX_d", "OMA_e"])
    assert len(Store(store)) == (5 if touched_only else 4)
    prepare(PrepareConfig(data=str(data), workers=1))
    assert len(compared) == (5 if touched_only else 3), "what was found is noted"


def test_killed_while_copied_files_are_compared_the_store_is_as_it_was(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = prepare(PrepareConfig(data=str(data), workers=1))
    before = whole(store)
    for path in (data / "train").iterdir():
        os.utime(path, ns=(0, 12345))
    contents = sources.contents
    child = os.fork()
    if child == 0:

        def killed(record: TileRecord) -> list[str | None]:
            if record.id == "OMA_e":
                os.kill(os.getpid(), signal.SIGKILL)
            return contents(record)

        monkeypatch.setattr(sources, "contents", killed)
        prepare(PrepareConfig(data=str(data), workers=1))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert whole(store) == before
    assert len(Store(store)) == 5


def test_what_was_compared_is_kept_when_other_tiles_are_bad(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(PrepareConfig(data=str(data), workers=1))
    for path in (data / "train").iterdir():
        os.utime(path, ns=(0, 12345))
    (data / "train" / "ARG_b_RGB.tif").write_bytes(b"broken")
    with pytest.raises(UserError, match="ARG_b"):
        prepare(PrepareConfig(data=str(data), workers=1))
    contents, compared = sources.contents, []
    monkeypatch.setattr(sources, "contents", lambda record: compared.append(record.id) or contents(record))
    with pytest.raises(UserError, match="ARG_b"):
        prepare(PrepareConfig(data=str(data), workers=1))
    assert [tile for tile in compared if tile != "ARG_b"] == []
