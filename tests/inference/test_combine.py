"""Several members' heights and poses become one, the same to the last bit in whatever order they come."""

import itertools
import math

import numpy as np
import pytest

from agl_core.errors import UserError
from agl_core.geometry import Pose
from agl_core.inference import combine as combine_module
from agl_core.inference.combine import combine_heights, combine_poses, scaled_weights

WEIGHTS = (0.7, 0.1, 0.2, 1.3, 0.1)


@pytest.fixture
def heights():
    """Five members, with pixels where two or more of them say the same."""
    rng = np.random.default_rng(0)
    members = [rng.normal(20, 7, (37, 53)).astype(np.float32) for _ in range(5)]
    members[1][:10] = members[0][:10]
    for member in members[2:]:
        member[5:20] = members[1][5:20]
    return members


def median_of(values, weights):
    """The definition: the value below and above which lies at most half of the weight; the middle of two of them."""
    half = sum(weights) / 2
    fits = [
        value
        for value in values
        if sum(weight for other, weight in zip(values, weights, strict=True) if other < value) <= half + 1e-9
        and sum(weight for other, weight in zip(values, weights, strict=True) if other > value) <= half + 1e-9
    ]
    return (min(fits) + max(fits)) / 2


def test_the_mean_and_the_spread_are_those_of_numpy(heights):
    stack = np.stack(heights).astype(np.float64)
    for weights in ((), WEIGHTS, (3, 3, 3, 3, 3)):
        mean, spread = combine_heights(heights, weights, spread=True)
        expected = np.average(stack, axis=0, weights=weights or None)
        np.testing.assert_allclose(mean, expected, rtol=1e-13)
        deviation = np.sqrt(np.average((stack - expected) ** 2, axis=0, weights=weights or None))
        np.testing.assert_allclose(spread, deviation, rtol=1e-9, atol=1e-12)
        assert mean.dtype == spread.dtype == np.float64
    assert combine_heights(heights)[1] is None


@pytest.mark.parametrize("weights", [(), WEIGHTS, (1, 2, 3, 1, 1), (0.1, 0.1, 0.1, 0.2, 0.5), (9, 1, 1, 1, 1)])
@pytest.mark.parametrize("members", [2, 3, 4, 5])
def test_the_median_has_at_most_half_of_the_weight_on_either_side(heights, weights, members):
    heights, weights = heights[:members], weights[:members]
    median, spread = combine_heights(heights, weights, "median", spread=True)
    pixels = zip(*(member.ravel().tolist() for member in heights), strict=True)
    expected = [median_of(values, weights or [1.0] * members) for values in pixels]
    np.testing.assert_array_equal(median.ravel(), expected)
    np.testing.assert_array_equal(spread, combine_heights(heights, weights, "mean", spread=True)[1])
    if not weights:
        np.testing.assert_array_equal(median, np.median(np.stack(heights).astype(np.float64), axis=0))


def test_just_half_of_the_weight_is_the_middle_of_two_also_where_the_weights_round():
    heights = [np.array([value]) for value in (1.0, 2.0, 10.0)]
    assert combine_heights(heights, (0.1, 0.2, 0.3), "median")[0] == [6.0]
    assert 0.7 + 0.1 < 0.8
    assert combine_heights(heights, (0.7, 0.1, 0.8), "median")[0] == [6.0]
    assert combine_heights(heights, (1, 2, 3.001), "median")[0] == [10.0]
    assert combine_heights(heights, (1, 2, 2.999), "median")[0] == [2.0]


@pytest.mark.parametrize("weights", [WEIGHTS, (1, 1, 1, 1, 1)])
@pytest.mark.parametrize("how", ["mean", "median"])
def test_no_bit_depends_on_the_order_of_the_members_or_on_the_threads(heights, monkeypatch, how, weights):
    monkeypatch.setattr(combine_module, "_BLOCK", 100)
    heights[0][0, :20], heights[2][0, :20], heights[3][0, :20] = 0.0, -0.0, -0.0
    found = set()
    for order in itertools.permutations(range(5)):
        joined = combine_heights(
            [heights[i] for i in order], [weights[i] for i in order], how, spread=True, threads=1 + order[0] % 3
        )
        found.add(b"".join(part.tobytes() for part in joined))
    assert len(found) == 1


def test_whole_centimetres_of_sixteen_bits_are_averaged_exactly():
    heights = [np.full((3, 4), value, np.uint16) for value in (65534, 65534, 65531)]
    np.testing.assert_array_equal(combine_heights(heights)[0], 65533)
    np.testing.assert_array_equal(combine_heights(heights, (1, 1, 6))[0], (2 * 65534 + 6 * 65531) / 8)
    np.testing.assert_array_equal(combine_heights([other.T for other in heights], how="median")[0], 65534)


def test_one_member_stays_what_it_is(heights):
    for how in ("mean", "median"):
        joined, spread = combine_heights(heights[:1], (0.3,), how, spread=True)
        np.testing.assert_array_equal(joined, heights[0])
        assert not spread.any()


def test_the_pose_is_the_mean_scale_and_the_direction_of_the_mean_unit_vector():
    poses = [Pose(1.0, 0.1), Pose(3.0, math.tau - 0.3)]
    pose = combine_poses(poses)
    assert pose.scale == 2.0
    assert pose.angle == pytest.approx(math.tau - 0.1)
    weighted = combine_poses(poses, (3, 1))
    assert weighted.scale == 1.5
    x, y = (3 * f(0.1) + f(-0.3) for f in (math.sin, math.cos))
    assert weighted.angle == pytest.approx(math.atan2(x, y))


def test_no_bit_of_the_pose_depends_on_the_order():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        members = [(Pose(rng.uniform(0, 3), rng.uniform(0, 6)), weight) for weight in WEIGHTS]
        members[4] = (members[1][0], members[4][1])
        found = {combine_poses(*zip(*order, strict=True)) for order in itertools.permutations(members)}
        assert len(found) == 1


def test_directions_that_cancel_leave_that_of_the_heaviest_member_or_else_of_the_smallest_angle():
    east, west, north = Pose(1.0, math.pi / 2), Pose(3.0, 3 * math.pi / 2), Pose(2.0, math.pi)
    for order in ((east, west), (west, east)):
        assert combine_poses(order) == Pose(2.0, math.pi / 2)
    assert combine_poses((east, west), (1, 1.001)).angle == pytest.approx(west.angle)
    thirds = [Pose(1.0, angle) for angle in (3.0, 3.0 + math.tau / 3, 3.0 - math.tau / 3)]
    assert combine_poses(thirds).angle == thirds[2].angle
    cancelled = combine_poses((east, east, west, north, Pose(1.0, 0.0)), (1, 1, 2, 1.5, 1.5))
    assert cancelled.angle == west.angle


def test_weights_are_checked_and_alike_ones_count_as_none():
    assert scaled_weights((), 3) == scaled_weights((0.3, 0.3, 0.3), 3) == [1.0, 1.0, 1.0]
    assert scaled_weights((2, 1), 2) == scaled_weights((4, 2), 2)
    assert math.isfinite(sum(scaled_weights((1e308, 1e308, 1), 3)))
    with pytest.raises(UserError, match="2 but there are 3 members"):
        scaled_weights((1, 2), 3)
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="greater than 0"):
            scaled_weights((1, wrong), 2)
    with pytest.raises(UserError, match="combine"):
        combine_heights([np.zeros(2)], how="mode")
    with pytest.raises(ValueError, match="one shape"):
        combine_heights([np.zeros(2), np.zeros(3)])
