"""Real trainings: what TensorBoard and the tiles' folder show does not depend on what has happened to the run."""

import logging
import signal
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from agl_core.config import TrainConfig
from agl_core.reporting.pictures import tiles as tile_files
from agl_core.reporting.pictures.tiles import read_about, read_tiles
from agl_core.training.gallery import Gallery
from tests.training import runs
from tests.training.incarnations import Strike, config, events, live

TIMES = ("crops_per_second", "data_wait")
STEPS = 8


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "tensorboard")


def settings(store: Path, **changes: Any) -> TrainConfig:
    return config(store, STEPS, tensorboard_tiles=3, **changes)


@pytest.fixture(scope="module")
def whole(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole")
    assert live(settings(tiny_store), run).codes == [0, 0]
    return run


def shown(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The scalars and the pictures of a run, by tag."""
    everything = EventMultiplexer(size_guidance={"scalars": 0, "images": 0}).AddRunsFromDirectory(str(run)).Reload()
    name, pictures = "tensorboard/first", "tensorboard/first.tiles"
    scalars = {
        tag: [(one.step, one.value) for one in everything.Scalars(name, tag)]
        for tag in everything.Runs()[name]["scalars"]
    }
    images = {
        tag: [(one.step, one.encoded_image_string) for one in everything.Images(pictures, tag)]
        for tag in everything.Runs()[pictures]["images"]
    }
    return scalars, images


def files(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "tiles" / "first").iterdir()}


def test_a_training_shows_its_scalars_by_city_and_its_tiles(whole: Path) -> None:
    scalars, images = shown(whole)
    assert {f"first/{name}" for name in ("loss", "agl_loss", "lr", "crops_per_second", "score")} <= set(scalars)
    for name in ("score", "agl_r2", "agl_rmse", "magnitude_r2", "magnitude_rmse", "vflow_r2", "vflow_rmse"):
        for city in ("AAA", "BBB"):
            assert [step for step, _ in scalars[f"first/{name}/{city}"]] == [2, 4, 6, 8]
    assert [step for step, _ in scalars["first/loss"]] == list(range(1, STEPS + 1))
    assert len(images) == 3
    best = max(events(whole, "validation"), key=lambda event: event["score"])
    assert read_about(whole / "tiles" / "first") == {"step": best["step"], "score": best["score"]}
    for tag, pictures in images.items():
        assert {2, 8} <= {step for step, _ in pictures}, tag
    assert {f"first/{tile.city}/{tile.id}" for tile in read_tiles(whole / "tiles" / "first")} == set(images)


STORIES: dict[str, list[Strike]] = {
    "between its two logs": [Strike("told", call=9), Strike("told", call=7, victims="all")],
    "while it shows tiles": [Strike("picture"), Strike("tiles", victims="all"), Strike("picture", victims="all")],
    "the other one, and warned": [
        Strike("validation", call=3, rank=1),
        Strike("compute", call=2, victims="all", signal=signal.SIGTERM),
    ],
}


@pytest.mark.parametrize("story", STORIES)
def test_a_run_that_was_killed_again_and_again_shows_what_an_undisturbed_one_shows(
    tiny_store: Path, tmp_path: Path, whole: Path, story: str
) -> None:
    for strike in STORIES[story]:
        life = live(settings(tiny_store), tmp_path, strike)
        assert life.struck == 1, life.logs
        assert life.codes != [0, 0]
    assert live(settings(tiny_store), tmp_path).codes == [0, 0]
    (scalars, images), (undisturbed, pictures) = shown(tmp_path), shown(whole)
    assert [value for _, value in scalars["first/restarts"]][-1] == len(STORIES[story])
    for tag in undisturbed:
        found, wanted = scalars[tag], undisturbed[tag]
        if tag.endswith(TIMES):
            found, wanted = ([step for step, _ in points] for points in (found, wanted))
        assert tag == "first/restarts" or found == wanted, tag
    assert scalars.keys() == undisturbed.keys()
    assert images == pictures
    assert files(tmp_path) == files(whole)


def test_the_last_validation_is_shown_though_the_best_was_another_and_a_kill_fell_on_it(
    tiny_store: Path, tmp_path: Path
) -> None:
    wanted = settings(tiny_store, seed=2)  # whose scores fall
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert live(wanted, whole).codes == [0, 0]
    assert live(wanted, killed, Strike("picture", call=2)).struck == 1
    assert live(wanted, killed).codes == [0, 0]
    assert [event["step"] for event in events(killed, "validation")].count(STEPS) == 2
    (scalars, images), (undisturbed, pictures) = shown(killed), shown(whole)
    assert {step for points in pictures.values() for step, _ in points} == {2, STEPS}
    assert images == pictures
    assert scalars["first/score"] == undisturbed["first/score"]
    assert files(killed) == files(whole)
    assert read_about(killed / "tiles" / "first")["step"] == 2


def test_tiles_that_the_disk_refuses_cost_a_warning_and_no_bit(tiny_store: Path, tmp_path: Path) -> None:
    few = config(tiny_store, 2, tensorboard_tiles=2)
    for name in ("alone", "refused"):
        (tmp_path / name).mkdir()
    (tmp_path / "refused" / "tiles").write_text("in the way")
    for name in ("alone", "refused"):
        runs.train(few, tmp_path / name)
    assert runs.same_bits(runs.weights(tmp_path / "refused"), runs.weights(tmp_path / "alone"))
    assert "cannot be shown" in events(tmp_path / "refused", "warning")[0]["text"]
    assert shown(tmp_path / "refused")[1] == shown(tmp_path / "alone")[1]


def test_a_defect_in_drawing_ends_no_run(tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(Gallery, "draw", broken)
    runs.train(config(tiny_store, 2), tmp_path)
    assert (tmp_path / "stages" / "first.json").is_file()
    assert "a defect" in events(tmp_path, "warning")[0]["text"]


def test_without_tiles_none_are_kept_or_drawn(tiny_store: Path, tmp_path: Path) -> None:
    runs.train(config(tiny_store, 2, tensorboard_tiles=0), tmp_path)
    assert not (tmp_path / "tiles").exists()
    assert [path.name for path in (tmp_path / "tensorboard").iterdir()] == ["first"]
    assert tile_files.read_tiles(tmp_path / "tiles" / "first") == []
