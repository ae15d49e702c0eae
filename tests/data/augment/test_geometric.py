"""What is drawn, how labels follow, and what a crop needs of its tile; that pictures are true: test_augment_world."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agl_core.config import AugmentConfig
from agl_core.data.augment.geometric import Geometry, draw_geometry, transform
from agl_core.data.sampling import BORDER
from agl_core.data.seeding import SampleStreams
from agl_core.data.tiles import UNKNOWN
from agl_core.geometry import D4, FLIP_HORIZONTAL, IDENTITY, ROT90, Pose, apply, apply_pose, rotate, zoom

POSE = Pose(0.8, 2.5)
ALWAYS = AugmentConfig(stretch=1, view=1, rotate=1, zoom=1)
SEVERAL = st.builds(
    Geometry,
    st.sampled_from(D4),
    st.floats(-math.pi, math.pi),
    st.floats(0.7, 1.3),
    st.floats(1.0, 2.0),
    st.floats(0.7, 1.3),
    st.floats(-0.6, 0.6),
)


def drawn(config: AugmentConfig, index: int = 0, pose: Pose | None = POSE, highest: float = 30.0) -> Geometry:
    return draw_geometry(config, SampleStreams(1, 0, 0, index), pose, highest)


def town(height: int, width: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Noise in colours; ground, boxes of up to 30 m, and here and there no height."""
    generator = np.random.default_rng(seed)
    agl = np.zeros((height, width), np.uint16)
    for row, column in generator.integers(0, (height - 20, width - 20), (height * width // 900, 2)):
        agl[row : row + 18, column : column + 14] = generator.integers(200, 3000)
    for row, column in generator.integers(0, (height - 5, width - 5), (height * width // 900, 2)):
        agl[row : row + 5, column : column + 5] = UNKNOWN
    return generator.integers(0, 256, (height, width, 3)).astype(np.uint8), agl


def test_the_labels_of_a_chain_are_those_of_its_links_in_order() -> None:
    geometry = Geometry(FLIP_HORIZONTAL, 0.7, 1.25, 1.5, 0.8, 0.3)
    pose, gsd = geometry.labels(POSE, 0.5)
    expected, size = zoom(*rotate(apply_pose(Pose(0.64, 2.8), FLIP_HORIZONTAL), 0.5, 0.7), 1.25)
    assert pose.scale == pytest.approx(expected.scale, rel=1e-12)
    assert pose.angle == pytest.approx(expected.angle, abs=1e-12)
    assert gsd == pytest.approx(size, rel=1e-12)
    assert (pose.scale, gsd) == pytest.approx((0.8, 0.4))  # 0.64 * 1.25 and 0.5 / 1.25


def test_doing_nothing_leaves_the_labels_to_the_bit() -> None:
    assert Geometry().labels(POSE, 0.31) == (POSE, 0.31)
    assert Geometry(stretch=1.7).labels(POSE, 0.31) == (POSE, 0.31)
    assert Geometry().exact
    assert Geometry(ROT90[1]).exact


@pytest.mark.parametrize(
    "changed", [{"turn": 0.1}, {"zoom": 1.1}, {"stretch": 1.1}, {"scale_by": 0.9}, {"angle_by": 1}]
)
def test_whatever_interpolates_is_not_exact(changed: dict[str, float]) -> None:
    assert not Geometry(**changed).exact  # type: ignore[arg-type]


@settings(deadline=None, derandomize=True)
@given(geometry=SEVERAL)
def test_the_metres_on_the_ground_that_a_height_leans_are_those_of_the_new_view(geometry: Geometry) -> None:
    pose, gsd = geometry.labels(POSE, 0.5)
    assert pose.scale * gsd == pytest.approx(geometry.scale_by * POSE.scale * 0.5)


def test_each_operation_is_drawn_as_often_as_its_chance_says_and_within_its_range() -> None:
    config = AugmentConfig(stretch=0.5, view=0.3, rotate=0.25, zoom=0.75, rotate_degrees=40, view_degrees=20)
    many = [drawn(config, index) for index in range(2000)]
    turns = [geometry.turn for geometry in many if geometry.turn]
    zooms = [geometry.zoom for geometry in many if geometry.zoom != 1]
    stretches = [geometry.stretch for geometry in many if geometry.stretch != 1]
    views = [(geometry.scale_by, geometry.angle_by) for geometry in many if geometry.turns_view]
    for found, chance in ((turns, 0.25), (zooms, 0.75), (stretches, 0.5), (views, 0.3)):
        assert len(found) / 2000 == pytest.approx(chance, abs=0.04)
    for values, least, most in (
        (turns, -math.radians(40), math.radians(40)),
        (zooms, 0.7, 1.3),
        (stretches, 1.0, 2.0),
        ([scale for scale, _ in views], 0.7, 1.3),
        ([angle for _, angle in views], -math.radians(20), math.radians(20)),
    ):
        assert least <= min(values) < least + 0.02 * (most - least)
        assert most - 0.02 * (most - least) < max(values) <= most


def test_no_height_is_stretched_above_the_highest_allowed() -> None:
    stretches = [drawn(ALWAYS, index, highest=150).stretch for index in range(300)]
    assert 1.3 < max(stretches) <= 200 / 150
    assert drawn(ALWAYS, highest=200).stretch == 1
    assert drawn(ALWAYS, highest=250).stretch == 1
    assert 1 < drawn(ALWAYS, highest=0).stretch <= 2


def test_without_a_pose_surfaces_stay_and_all_else_is_drawn_as_with_one() -> None:
    with_pose, without = drawn(ALWAYS), drawn(ALWAYS, pose=None)
    assert with_pose.moves
    assert without == replace(with_pose, stretch=1.0, scale_by=1.0, angle_by=0.0)
    rgb, agl = town(60, 60)
    transform(rgb, agl, None, without, 30, (29.5, 29.5))
    with pytest.raises(ValueError, match="without a pose"):
        transform(rgb, agl, None, with_pose, 30, (29.5, 29.5))


@pytest.mark.parametrize("name", ["stretch", "view", "rotate", "zoom"])
def test_what_one_operation_draws_does_not_depend_on_the_others(name: str) -> None:
    alone, all_of_them = drawn(AugmentConfig(**{name: 1.0}), 7), drawn(ALWAYS, 7)
    parts = {"stretch": ("stretch",), "view": ("scale_by", "angle_by"), "rotate": ("turn",), "zoom": ("zoom",)}[name]
    for part in parts:
        assert getattr(alone, part) == getattr(all_of_them, part) != getattr(Geometry(), part)


@pytest.mark.parametrize("symmetry", D4, ids=range(8))
@pytest.mark.parametrize("size", [40, 41])
def test_a_symmetry_exchanges_pixels_and_nothing_else(symmetry: Any, size: int) -> None:
    rgb, agl = town(60, 70)
    middle = 0.5 * (size - 1)
    image, heights = transform(rgb, agl, POSE, Geometry(symmetry), size, (12 + middle, 9 + middle))
    np.testing.assert_array_equal(image, apply(rgb[9 : 9 + size, 12 : 12 + size], symmetry))
    np.testing.assert_array_equal(heights, apply(agl[9 : 9 + size, 12 : 12 + size], symmetry))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(geometry=SEVERAL, angle=st.floats(0, 6.28), seed=st.integers(0, 5))
def test_a_crop_needs_no_more_of_its_tile_than_its_extent(geometry: Geometry, angle: float, seed: int) -> None:
    pose = Pose(0.6, angle)
    rgb, agl = town(300, 320, seed)
    highest = agl[agl != UNKNOWN].max() / 100
    x, y, size = 161.5, 150.5, 48
    least_x, most_x, least_y, most_y = geometry.extent(size, pose, highest)
    left, right = math.ceil(x + least_x) - BORDER, math.floor(x + most_x) + BORDER + 1
    top, bottom = math.ceil(y + least_y) - BORDER, math.floor(y + most_y) + BORDER + 1
    assert min(left, top) >= 0
    assert right <= 320
    assert bottom <= 300
    cut = np.ascontiguousarray(rgb[top:bottom, left:right]), np.ascontiguousarray(agl[top:bottom, left:right])
    image, heights = transform(*cut, pose, geometry, size, (x - left, y - top))
    whole, all_heights = transform(rgb, agl, pose, geometry, size, (x, y))
    # A coordinate that differs in its last bit may round to the other side.
    differs = np.abs(heights.astype(int) - all_heights) > 1
    assert differs.mean() < 0.002
    known = (heights != UNKNOWN) & ~differs
    assert (np.abs(image.astype(int) - whole)[known] > 8).mean() < 0.002


@settings(deadline=None, derandomize=True, max_examples=40)
@given(geometry=SEVERAL, seed=st.integers(0, 5))
def test_the_same_twice_is_the_same_and_the_input_stays(geometry: Geometry, seed: int) -> None:
    rgb, agl = town(120, 100, seed)
    kept = rgb.copy(), agl.copy()
    rgb.flags.writeable = agl.flags.writeable = False
    first = transform(rgb, agl, POSE, geometry, 64, (50.0, 60.0))
    for one, two in zip(first, transform(rgb, agl, POSE, geometry, 64, (50.0, 60.0)), strict=True):
        np.testing.assert_array_equal(one, two)
    for before, after in zip(kept, (rgb, agl), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("stretch", [1.0, 1.5])
def test_a_tile_without_any_height_keeps_its_colours_and_gets_none(stretch: float) -> None:
    rgb, _ = town(60, 60)
    agl = np.full((60, 60), UNKNOWN, np.uint16)
    image, heights = transform(rgb, agl, POSE, Geometry(stretch=stretch, scale_by=0.8), 40, (29.5, 29.5))
    assert (heights == UNKNOWN).all()
    np.testing.assert_array_equal(image, rgb[10:50, 10:50])


def test_level_ground_stays_whatever_the_view() -> None:
    rgb, _ = town(60, 60)
    agl = np.zeros((60, 60), np.uint16)
    image, heights = transform(rgb, agl, POSE, Geometry(IDENTITY, 0, 1, 2.0, 1.3, 0.5), 40, (29.5, 29.5))
    assert (heights == 0).all()
    np.testing.assert_array_equal(image, rgb[10:50, 10:50])


def test_a_stretched_roof_stands_where_the_pose_says_and_covers_the_ground_behind() -> None:
    rgb, agl = np.full((100, 100, 3), 90, np.uint8), np.zeros((100, 100), np.uint16)
    agl[40:60, 40:60], rgb[40:60, 40:60] = 1000, 200
    # Angle 0: the ground lies below a roof in the image, so that a higher roof moves up, by 10 m * 0.8.
    image, heights = transform(rgb, agl, Pose(0.8, 0.0), Geometry(stretch=2.0), 100, (49.5, 49.5))
    assert (heights[33:51, 41:59] == 2000).all()
    assert (image[33:51, 41:59] == 200).all()
    assert (heights[:31] == 0).all()
    assert (heights[62:] == 0).all()
    assert (heights[:, :39] == 0).all()
    # The wall was not in view: what the roof leaves is filled from the ground before it.
    assert (heights[53:61, 41:59] == 0).all()
    assert (image[53:61, 41:59] == 90).all()
    assert (heights != UNKNOWN).all()


def test_what_a_roof_of_unknown_height_should_have_come_to_stays_unknown() -> None:
    rgb, agl = town(100, 100)
    agl[:] = 0
    agl[30:70, 40:60] = 1000
    agl[45:55, 45:55] = UNKNOWN
    # All but the hole moves up by 8 pixels; where the hole should have come, the roof has left.
    _, heights = transform(rgb, agl, Pose(0.8, 0.0), Geometry(stretch=2.0), 100, (49.5, 49.5))
    assert (heights[39:46, 47:53] == UNKNOWN).all()
    assert (heights[25:35, 42:58] == 2000).all()


def test_a_view_from_above_uncovers_what_nobody_has_seen() -> None:
    rgb, agl = np.full((100, 100, 3), 90, np.uint8), np.zeros((100, 100), np.uint16)
    agl[40:60, 40:60], rgb[40:60, 40:60] = 1000, 200
    image, heights = transform(rgb, agl, Pose(1.0, 0.0), Geometry(scale_by=0.5), 100, (49.5, 49.5))
    assert (heights[46:59, 41:59] == 1000).all()  # 10 m * (1 - 0.5) down
    assert (heights[41:44, 41:59] == UNKNOWN).all()
    assert (image[41:44, 41:59] == 90).all()  # the colours of the ground beside it
    assert (heights[:39] == 0).all()
