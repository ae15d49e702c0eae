"""The built-in world: its files, its determinism, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agl_core.config import WorldConfig
from agl_core.data.catalog import read_catalog
from agl_core.data.tiles import UNKNOWN, read_agl, read_rgb, read_vflow, write_rgb
from agl_core.errors import UserError
from agl_core.world.dataset import render_world
from agl_core.world.plan import plan
from agl_core.world.style import style_of


def small(folder: Path, **changes: object) -> WorldConfig:
    """Two cities, two places each (one held out), the last place of all with one view only."""
    config = WorldConfig(out=str(folder), tiles=7, size=64, cities=2, views=2, workers=1)
    return replace(config, **changes)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "world"
    render_world(small(out))
    return out


def test_the_folder_is_a_data_set_of_the_challenges_layout(world: Path) -> None:
    train, test = read_catalog(world, "train"), read_catalog(world, "test")
    assert (len(train), len(test)) == (3, 4)
    for record in train:
        assert record.agl is not None
        assert record.vflow is not None
        assert read_rgb(record.rgb).shape == (64, 64, 3)
        assert read_agl(record.agl, "cm").shape == (64, 64)
        assert 0.2 < read_vflow(record.vflow, "cm").scale < 1.3
    assert {path.name for path in (world / "test").iterdir()} == {record.rgb.name for record in test}
    truth = {path.name for path in (world / "test_truth").iterdir()}
    assert truth == {f"{record.id}{end}" for record in test for end in ("_AGL.tif", "_VFLOW.json")}
    assert len(list((world / "train").iterdir())) == 3 * len(train)
    tables = {"geopose_train.csv", "geopose_test.csv", "metadata.csv", "world.json"}
    assert {path.name for path in world.iterdir()} == tables | {"train", "test", "test_truth"}


def test_held_out_places_are_in_the_test_split_only_and_in_every_city(world: Path) -> None:
    train, test = read_catalog(world, "train"), read_catalog(world, "test")
    assert {record.place for record in train}.isdisjoint({record.place for record in test})
    assert {record.city for record in train} == {record.city for record in test}


def test_the_views_of_a_place_differ_in_pose_and_show_the_same_ground(world: Path) -> None:
    test = read_catalog(world, "test")
    for place in {record.place for record in test}:
        one, two = (record for record in test if record.place == place)
        poses = [read_vflow(world / "test_truth" / f"{record.id}_VFLOW.json", "cm") for record in (one, two)]
        assert poses[0] != poses[1]
        assert one.gsd != two.gsd
        assert (read_rgb(one.rgb) != read_rgb(two.rgb)).any()


def test_a_tiles_gsd_is_within_five_percent_of_its_citys(world: Path) -> None:
    nominal = {record.city: record.gsd for record in read_catalog(world, "train")}
    assert len(nominal) == 2
    styles = sorted(style_of(city).gsd for city in range(2))
    for gsd, expected in zip(sorted(nominal.values()), styles, strict=True):
        assert gsd == pytest.approx(expected, rel=0.051)


def test_the_number_of_processes_does_not_change_a_byte(world: Path, tmp_path: Path) -> None:
    render_world(small(tmp_path / "again", workers=2))
    assert contents(tmp_path / "again") == contents(world)


def test_another_seed_is_another_world(world: Path, tmp_path: Path) -> None:
    render_world(small(tmp_path / "other", seed=1))
    mine, other = contents(world), contents(tmp_path / "other")
    images = {data for name, data in mine.items() if name.endswith("_RGB.tif")}
    assert images.isdisjoint(other.values())


def test_more_tiles_leave_the_others_as_they_are(world: Path, tmp_path: Path) -> None:
    render_world(small(tmp_path / "larger", tiles=8))
    mine, larger = contents(world), contents(tmp_path / "larger")
    names = [name for name in mine if name.startswith(("train", "test"))]
    assert all(mine[name] == larger[name] for name in names)


def test_metres_and_jpeg_2000_hold_the_same_world(world: Path, tmp_path: Path) -> None:
    render_world(small(tmp_path / "metres", unit="m", format="j2k"))
    metres = read_catalog(tmp_path / "metres", "train")
    for record, other in zip(read_catalog(world, "train"), metres, strict=True):
        assert record.agl is not None
        assert record.vflow is not None
        assert other.agl is not None
        assert other.vflow is not None
        assert other.rgb.suffix == ".j2k"
        np.testing.assert_array_equal(read_rgb(record.rgb), read_rgb(other.rgb))
        np.testing.assert_array_equal(read_agl(record.agl, "cm"), read_agl(other.agl, "m"))
        assert read_vflow(record.vflow, "cm").scale == pytest.approx(read_vflow(other.vflow, "m").scale)


def test_a_complete_world_is_left_as_it_is(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in world.rglob("*")}
    render_world(small(world))
    assert {path: path.stat().st_mtime_ns for path in world.rglob("*")} == before
    assert "already" in capsys.readouterr().err


def test_an_interrupted_world_is_continued_and_ends_as_the_same(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "cut"
    finished: list[Path] = []

    def stop_after_three(path: Path, rgb: NDArray[np.uint8]) -> None:
        if len(finished) == 3:
            raise KeyboardInterrupt
        write_rgb(path, rgb)
        finished.append(path)

    monkeypatch.setattr("agl_core.world.dataset.write_rgb", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        render_world(small(out))
    monkeypatch.undo()
    assert not (out / "world.json").exists()
    (out / "train" / ".X_RGB.00.part.tif").touch()
    times = {path: path.stat().st_mtime_ns for path in finished}

    render_world(small(out))
    assert contents(out) == contents(world)
    assert {path: path.stat().st_mtime_ns for path in finished} == times


def test_a_full_disk_is_told_in_a_sentence_and_leaves_no_complete_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("agl_core.world.dataset.write_agl", full)
    with pytest.raises(UserError, match="No space left on device"):
        render_world(small(tmp_path / "world"))
    assert not (tmp_path / "world" / "world.json").exists()


def test_another_world_in_the_folder_is_refused_and_kept(world: Path) -> None:
    before = contents(world)
    with pytest.raises(UserError, match="tiles 7 instead of 8"):
        render_world(small(world, tiles=8))
    assert contents(world) == before


def test_a_folder_with_other_files_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        render_world(small(tmp_path))
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--out"):
        render_world(small(tmp_path / "file" / "world"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 63}, "size is 63"),
        ({"size": 10_000}, "size is 10000"),
        ({"tiles": 0}, "tiles is 0"),
        ({"tiles": 6}, "too few"),
        ({"views": 0}, "views is 0"),
        ({"cities": 0}, "cities is 0"),
        ({"cities": 981}, "cities is 981"),
        ({"seed": -1}, "seed is -1"),
        ({"workers": 0}, "workers is 0"),
        ({"test_share": 0.0}, "test_share is 0"),
        ({"test_share": 1.0}, "test_share is 1"),
        ({"format": "png"}, "tif, j2k"),
        ({"unit": "ft"}, "cm, m"),
        ({"out": ""}, "--out"),
    ],
)
def test_values_that_make_no_world_are_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        render_world(small(tmp_path / "world", **changes))
    assert not (tmp_path / "world").exists()


@settings(deadline=None, derandomize=True, max_examples=80)
@given(
    cities=st.integers(1, 7), views=st.integers(1, 5), extra=st.integers(0, 60), share=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**40),
)  # fmt: skip
def test_a_plan_has_exactly_the_tiles_asked_for_and_trains_and_tests_on_every_city(
    cities: int, views: int, extra: int, share: float, seed: int
) -> None:
    tiles = (2 * cities - 1) * views + 1 + extra
    config = WorldConfig(out="x", tiles=tiles, cities=cities, views=views, test_share=share, seed=seed)
    planned = plan(config)
    assert len(planned) == len({tile.id for tile in planned}) == tiles
    splits: dict[tuple[int, int], set[str]] = {}
    for tile in planned:
        splits.setdefault((tile.city, tile.place), set()).add(tile.split)
    assert all(len(split) == 1 for split in splits.values())
    for city in range(cities):
        places = [split for (where, _), split in splits.items() if where == city]
        assert {"train"} in places
        assert {"test"} in places
        assert abs(len(places) - len(splits) / cities) < 1


def test_world_json_records_the_settings_and_nothing_of_the_machine(world: Path) -> None:
    settings_of_world = json.loads((world / "world.json").read_text())
    assert settings_of_world["tiles"] == 7
    assert not {"out", "workers"} & settings_of_world.keys()


def test_the_heights_of_the_world_are_those_of_cities(tmp_path: Path) -> None:
    render_world(small(tmp_path / "world", tiles=16, cities=3, views=3, size=128))
    highest: dict[str, float] = {}
    for record in read_catalog(tmp_path / "world", "train"):
        assert record.agl is not None
        agl = read_agl(record.agl, "cm")
        highest[record.city] = max(highest.get(record.city, 0), agl[agl != UNKNOWN].max() / 100)
    low, middle, high = sorted(highest.values())
    assert 4 < low < 20
    assert 10 < middle < 40
    assert 20 < high < 85
