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
from agl_core.data.store import Store, writer
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


def test_the_store_is_the_same_to_the_byte_whatever_the_number_of_workers(data: Path, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("workers", [1, 2])
def test_all_bad_tiles_are_listed_at_once_and_nothing_can_be_read_yet(data: Path, workers: int) -> None:
    train = data / "train"
    (train / "ARG_a_RGB.tif").write_bytes(b"broken")
    write_agl(train / "JAX_c_AGL.tif", np.zeros((32, 64), np.uint16), "cm")
    (train / "OMA_e_VFLOW.json").write_text('{"scale": -1, "angle": 0}')
    config = PrepareConfig(data=str(data), workers=workers)
    with pytest.raises(UserError, match=r"^3 tiles of .* are bad: ") as caught:
        prepare(config)
    message = str(caught.value)
    assert "ARG_a_RGB.tif cannot be read as an image" in message
    assert f"tile JAX_c: AGL is 32 x 64 but RGB is 64 x 64 (in {train / 'JAX_c_AGL.tif'})" in message
    assert "OMA_e_VFLOW.json has scale -1" in message
    assert "\n" not in message
    with pytest.raises(UserError, match="not finished"):
        Store(data / "store")


def test_of_many_bad_tiles_each_has_its_line(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ingest, "MOST_LISTED", 2)
    for tile in TILES:
        (data / "train" / f"{tile}_RGB.tif").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"^5 tiles of .*ARG_a.*ARG_b.*; and 3 more, see above$"):
        prepare(PrepareConfig(data=str(data), workers=1))
    assert capsys.readouterr().err.count("bad: ") == 5


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
