"""The drawing of a quick look."""

import math

import numpy as np
import pytest

from agl_core.geometry import Pose, direction
from agl_core.reporting.pictures.arrows import Sizes, arrow_words, flow_arrows
from agl_core.reporting.pictures.look import look, nice, numbers
from agl_core.reporting.pictures.sheet import colours, hatching, spread_colours

SIZES = Sizes(1.0)
PURPLE = (90, 40, 160)  # which nothing else that is drawn has
UNKNOWN = 65535


def tower(height: int = 400, width: int = 600) -> np.ndarray:
    metres = np.zeros((height, width), np.float32)
    metres[100:140, 200:240] = 20
    return metres


@pytest.mark.parametrize("angle", np.linspace(0, 2 * math.pi, 8, endpoint=False))
def test_an_arrow_goes_from_the_middle_of_a_top_to_where_it_stands(angle: float) -> None:
    arrows, longer = flow_arrows(tower(), 3.0, angle, SIZES)
    assert longer == 1
    dx, dy = direction(angle)
    for arrow in arrows:
        assert 100 <= arrow.y < 140
        assert 200 <= arrow.x < 240
        assert (arrow.dx, arrow.dy) == (pytest.approx(60 * dx), pytest.approx(60 * dy))
    assert arrows


@pytest.mark.parametrize(("per_metre", "longer"), [(1.6, 1), (0.8, 2), (0.4, 5), (0.16, 10), (0.08, 20)])
def test_arrows_that_would_be_too_short_are_made_longer_and_it_is_said(per_metre: float, longer: int) -> None:
    arrows, found = flow_arrows(tower(), per_metre, 1.0, SIZES)
    assert found == longer
    assert math.hypot(arrows[0].dx, arrows[0].dy) == pytest.approx(20 * per_metre * longer)
    words = arrow_words(arrows, found)
    assert ("to scale" if longer == 1 else f"drawn {longer} x as long") in words


def test_there_are_no_arrows_where_nothing_leans_or_nothing_is_high_or_known() -> None:
    for metres, per_metre in ((tower(), 0.0), (tower(), 0.01), (tower() * 0.02, 3.0), (tower() * np.nan, 3.0)):
        arrows, longer = flow_arrows(metres.astype(np.float32), per_metre, 1.0, SIZES)
        assert (arrows, longer) == ([], 1)
    assert "no arrows" in arrow_words([], 1)


def test_a_single_pixel_that_sticks_out_gets_no_arrow() -> None:
    metres = np.zeros((300, 300), np.float32)
    metres[50, 50] = 60
    assert flow_arrows(metres, 3.0, 1.0, SIZES)[0] == []


def test_arrows_are_not_in_each_others_way() -> None:
    metres = np.random.default_rng(0).uniform(20, 25, (500, 500)).astype(np.float32)
    arrows, _ = flow_arrows(metres, 2.0, 0.7, SIZES)
    assert len(arrows) > 8
    points = [
        np.array([(one.x + share * one.dx, one.y + share * one.dy) for share in np.linspace(0, 1, 30)])
        for one in arrows
    ]
    for number, one in enumerate(points):
        for other in points[:number]:
            assert np.linalg.norm(one[:, None] - other[None], axis=-1).min() > 25


def test_heights_are_in_colours_from_zero_to_the_end_of_the_bar_and_unknown_ones_are_hatched() -> None:
    agl = np.zeros((256, 256), np.uint16)
    agl[64:128, 64:128] = 2000
    agl[200:] = UNKNOWN
    picture = look(np.full((256, 256, 3), PURPLE, np.uint8), agl, Pose(0, 0), 0.5, "A_1", 256)
    ends = colours(np.array([[0.0, 20.0]]), 20.0)[0]
    for colour, pixels in ((ends[0], 200 * 256 - 64 * 64), (ends[1], 64 * 64)):
        count = (picture == colour).all(axis=2).sum()
        assert pixels <= count <= pixels * 1.25, "the panel, and the bar"
    assert (picture == PURPLE).all(axis=2).sum() == 256 * 256
    hatched = [tuple(pixel) for pixel in np.unique(hatching(16, 16).reshape(-1, 3), axis=0)]
    assert sum((picture == colour).all(axis=2).sum() for colour in hatched) >= 56 * 256


def test_the_panels_have_the_width_that_was_asked_for_or_are_enlarged_up_to_fourfold() -> None:
    agl = np.zeros((64, 64), np.uint16)
    rgb = np.full((64, 64, 3), PURPLE, np.uint8)
    for width, side in ((1024, 256), (200, 192), (32, 32)):
        picture = look(rgb, agl, Pose(0, 0), None, "A_1", width)
        assert (picture == PURPLE).all(axis=2).sum() == side**2
        assert picture.dtype == np.uint8


def test_wide_images_lie_below_each_other_and_an_uncertainty_has_a_panel_of_its_own() -> None:
    rgb, agl = np.full((100, 400, 3), 77, np.uint8), np.zeros((100, 400), np.uint16)
    two = look(rgb, agl, Pose(0, 0), 0.5, "A_1", 400)
    three = look(rgb, agl, Pose(0, 0), 0.5, "A_1", 400, np.full((100, 400), 50, np.uint16))
    assert two.shape[1] == three.shape[1] < 500
    assert three.shape[0] > two.shape[0] + 100
    own = spread_colours(np.array([[0.5]]), 0.5)[0, 0]
    assert (three == own).all(axis=2).sum() >= 100 * 400
    alone = look(None, agl, Pose(0, 0), None, "A_1", 400)
    assert alone.shape[0] < two.shape[0]


def test_the_spread_gets_brighter_too() -> None:
    light = spread_colours(np.linspace(0, 3, 64)[None], 3.0)[0].astype(float) @ (0.299, 0.587, 0.114)
    assert (np.diff(light) > 0).all()


def test_the_numbers_are_those_of_the_image() -> None:
    told = numbers(Pose(1.0, math.pi / 2), 0.5, (300, 400))
    assert "400 x 300 px" in told
    assert "scale 1 px/m" in told
    assert "angle 1.5708 rad (90.0 deg)" in told
    assert "gsd 0.5 m/px" in told
    assert "63.4 deg above the horizon" in told, "arctan(1 / (1 * 0.5))"
    assert "gsd not known" in numbers(Pose(1.0, 0), None, (300, 400))


def test_a_large_scene_made_smaller_is_drawn_as_the_scene() -> None:
    agl = np.zeros((512, 512), np.uint16)
    agl[128:192, 128:256] = 3000
    rgb = np.full((512, 512, 3), 77, np.uint8)
    whole = look(rgb, agl, Pose(1.0, 0.6), 0.5, "A_1", 256)
    part = look(rgb[::2, ::2].copy(), agl[::2, ::2].copy(), Pose(1.0, 0.6), 0.5, "A_1", 256, zoom=0.5)
    assert whole.shape == part.shape
    assert (np.abs(whole.astype(int) - part).max(axis=2) > 8).mean() < 0.005


@pytest.mark.parametrize("shape", [(1, 1), (40000, 1), (1, 40000), (20000, 60), (60, 20000), (3, 2)])
@pytest.mark.parametrize("holes", [False, True])
def test_tiny_and_thin_images_are_drawn_too(shape: tuple[int, int], holes: bool) -> None:
    agl = np.full(shape, 1234, np.uint16)
    if holes:
        agl[: max(1, shape[0] // 3)] = UNKNOWN
    rgb = np.full((*shape, 3), PURPLE, np.uint8)
    for gsd, spread, zoom in ((0.5, agl, 1.0), (None, None, 0.1)):
        assert (look(rgb, agl, Pose(0, 0), gsd, "A_1", spread_cm=spread, zoom=zoom) == PURPLE).all(axis=2).any()
        look(rgb, agl, Pose(0.5, 1.0), gsd, "A_1", spread_cm=spread, zoom=zoom)
        look(None, agl, Pose(0.5, 1.0), gsd, "A_1", spread_cm=spread, zoom=zoom)


def test_ends_of_bars_are_round_numbers_that_are_not_below() -> None:
    assert [nice(value) for value in (0.5, 1.0, 1.1, 7, 8.1, 33, 99)] == pytest.approx([0.5, 1, 2, 8, 10, 40, 100])
