"""The picture of a tile: what is where, and in which colours."""

import numpy as np
import pytest

from agl_core.geometry import Pose
from agl_core.reporting.pictures.look import UNKNOWN_CM
from agl_core.reporting.pictures.panel import (
    ERROR_STOPS,
    PREDICTED,
    error_colours,
    height_colours,
    highest,
    panel,
    pose_words,
    widest_error,
)
from agl_core.reporting.pictures.sheet import HATCH_DARK, HATCH_LIGHT
from agl_core.reporting.pictures.tile import Tile

FLAT = Pose(0, 0)


def tile(truth: np.ndarray, predicted: np.ndarray, true: Pose | None = FLAT, pose: Pose = FLAT, **changes) -> Tile:
    rgb = np.full((*truth.shape, 3), 90, np.uint8)
    heights = {"truth_cm": truth.astype(np.uint16), "predicted_cm": predicted.astype(np.uint16)}
    return Tile(**{"id": "A_1", "city": "A", "rgb": rgb, **heights, "truth": true, "prediction": pose, **changes})


def pictures(one: Tile, side: int, **how) -> list[np.ndarray]:
    """The pictures of a panel that magnifies nothing."""
    columns = 3 if one.rgb is None else 4
    gap = 3 if side > 100 else 2
    drawn = panel(one, columns * side + (columns - 1) * gap, words=False, **how)
    assert drawn.shape == (side, columns * side + (columns - 1) * gap, 3)
    return [drawn[:, place * (side + gap) :][:, :side] for place in range(columns)]


def test_image_truth_prediction_and_error_stand_side_by_side_at_a_common_scale() -> None:
    truth, predicted = np.full((64, 64), 1000), np.full((64, 64), 1600)
    image, true, told, error = pictures(tile(truth, predicted), 64, highest_cm=2000)
    assert (image == 90).all()
    assert (true == height_colours(np.full((64, 64), 10.0), 20.0)).all()
    assert (told == height_colours(np.full((64, 64), 16.0), 20.0)).all()
    assert (error == error_colours(np.full((64, 64), 6.0), widest_error(2000))).all()


def test_without_its_image_a_tile_has_three_pictures() -> None:
    truth = np.full((64, 64), 1000)
    assert len(pictures(tile(truth, truth, rgb=None), 64)) == 3


def test_too_low_is_blue_too_high_is_orange_and_right_is_white() -> None:
    low, right, high = error_colours(np.array([[-9.0, 0.0, 9.0]]), 5.0)[0]
    assert tuple(low) == ERROR_STOPS[0]
    assert low[2] > low[0]
    assert tuple(right) == (255, 255, 255)
    assert tuple(high) == ERROR_STOPS[-1]
    assert high[0] > high[2]


def test_errors_of_the_same_size_are_as_bright_on_both_sides() -> None:
    errors = np.linspace(0.1, 5, 40)[None]
    weights = np.array([0.2126, 0.7152, 0.0722])
    below, above = (error_colours(sign * errors, 5.0).astype(float) @ weights for sign in (-1, 1))
    assert np.abs(below - above).max() < 45
    assert (np.diff(below[0]) < 0).all()
    assert (np.diff(above[0]) < 0).all()


def test_heights_rise_in_brightness_for_who_sees_no_colours() -> None:
    bar = height_colours(np.linspace(0, 10, 200)[None], 10.0).astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(bar[0]) > -1).all()
    assert bar[0, -1] - bar[0, 0] > 150


def test_what_nobody_knows_is_hatched_in_truth_and_error_but_not_in_the_prediction() -> None:
    truth, predicted = np.full((64, 64), 1000), np.full((64, 64), 1000)
    truth[:32] = UNKNOWN_CM
    _, true, told, error = pictures(tile(truth, predicted), 64)
    for picture in (true, error):
        assert {tuple(pixel) for pixel in picture[:32].reshape(-1, 3)} == {HATCH_LIGHT, HATCH_DARK}
    assert len({tuple(pixel) for pixel in told.reshape(-1, 3)}) == 1


@pytest.mark.parametrize("angle", [0.0, np.pi / 2])
def test_arrows_lead_from_a_top_to_its_ground_by_truth_and_prediction(angle: float) -> None:
    """The true one points down or right, the predicted one the other way."""
    truth = np.zeros((128, 128))
    truth[60:68, 60:68] = 2000
    drawn = pictures(tile(truth, truth, Pose(2, angle), Pose(2, angle + np.pi)), 128)[0]
    white = np.argwhere((drawn > 245).all(axis=2))
    orange = np.argwhere((np.abs(drawn.astype(int) - PREDICTED) < 12).all(axis=2))
    axis = 0 if angle == 0 else 1
    assert 80 < white[:, axis].max() <= 106
    assert 22 <= orange[:, axis].min() < 48


def test_arrows_of_a_tile_that_was_made_smaller_are_as_long_as_its_picture_wants() -> None:
    truth = np.zeros((128, 128))
    truth[60:68, 60:68] = 2000
    whole = pictures(tile(truth, truth, Pose(2, 0), Pose(2, 0)), 128)[0]
    shrunk = pictures(tile(truth, truth, Pose(8, 0), Pose(8, 0), zoom=0.25), 128)[0]
    assert (whole == shrunk).all()


def test_a_common_scale_is_round_and_leaves_out_what_sticks_out() -> None:
    truth = np.full((100, 100), 4100)
    truth[0, 0] = 60000
    truth[50:] = UNKNOWN_CM
    other = tile(np.full((9, 9), 300), np.full((9, 9), 300))
    assert highest([other]) == 500
    assert highest([other, tile(truth, np.full((100, 100), 200))]) == 5000


def test_a_panel_with_words_is_as_wide_as_asked_and_higher() -> None:
    truth = np.full((64, 80), 1000)
    with_words, without = panel(tile(truth, truth), 1000), panel(tile(truth, truth), 1000, words=False)
    assert 980 < with_words.shape[1] == without.shape[1] <= 1000
    assert with_words.shape[0] > without.shape[0] + 40
    for strange in ("naïve \U0001f600 \x1b[31m", "x" * 300):
        panel(tile(truth, truth, id=strange, city=strange), 400)


def test_the_poses_are_told_with_how_far_they_are_apart() -> None:
    one = tile(np.zeros((4, 4)), np.zeros((4, 4)), Pose(0.5, 0.1), Pose(0.4, 2 * np.pi - 0.1))
    assert pose_words(one) == (
        "scale 0.500 true, 0.400 predicted px/m;   angle 5.7 true, 354.3 predicted deg, 11.5 apart"
    )


def test_a_smaller_tile_keeps_its_means_and_knows_how_much_smaller_it_is() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3000, (2048, 1024)).astype(np.uint16)
    truth[:1024, :512] = UNKNOWN_CM
    small = tile(truth, np.full((2048, 1024), 700)).smaller()
    assert small.truth_cm.shape == (512, 256)
    assert small.rgb is not None
    assert small.rgb.shape == (512, 256, 3)
    assert small.zoom == 0.25
    assert (small.truth_cm[:256, :128] == UNKNOWN_CM).all()
    assert abs(float(small.truth_cm[256:].mean()) - float(truth[1024:].mean())) < 1
    assert (small.predicted_cm == 700).all()
    assert small.smaller() is small
