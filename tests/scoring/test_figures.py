"""Errors in metres and pixels are those of the pixels, of images, cities and all together."""

import json
import math

import numpy as np
import pytest

from agl_core.scoring.errors import height_edges, measure
from agl_core.scoring.figures import figures
from agl_core.scoring.score import ImageResult
from tests.scoring.test_score import random_image
from tests.scoring.two_pass import end_point_errors, heights


def measured(images, above):
    results = []
    for i, (truth, predicted, true, pose) in enumerate(images):
        found = measure(truth, predicted, height_edges(above), true, pose)
        results.append(ImageResult(str(i), "A", found.sums, true, pose, found.errors))
    return results


@pytest.fixture
def images():
    rng = np.random.default_rng(5)
    images = [random_image(rng, spread_cm=6000) for _ in range(3)]
    return [*images, (*images[0][:2], None, images[0][3])]


@pytest.mark.parametrize("above", [2.0, 3.75])
def test_the_figures_are_those_of_all_pixels_together(images, above):
    found = figures(measured(images, above), above)
    g, p = heights(images)
    for sums, chosen in (
        (found.heights, g >= 0),
        (found.above_ground, g >= above),
        (found.by_height[0, 1], g < 1),
        (found.by_height[2, 5], (g >= 2) & (g < 5)),
        (found.by_height[20, 50], (g >= 20) & (g < 50)),
        (found.by_height[50, 100], (g >= 50) & (g < 100)),
    ):
        error = (p - g)[chosen]
        assert sums.pixels == error.size > 0
        assert (sums.bias, sums.mae, sums.rmse) == pytest.approx(
            (error.mean(), abs(error).mean(), math.sqrt((error**2).mean())), abs=1e-9
        )
    assert list(found.by_height) == [(0, 1), (1, 2), (2, 5), (5, 10), (10, 20), (20, 50), (50, 100), (100, None)]
    assert found.by_height[100, None].rmse is None
    lengths = end_point_errors(images)
    assert found.end_point_error == pytest.approx(lengths.mean(), abs=1e-6)
    assert found.end_point_rms == pytest.approx(math.sqrt((lengths**2).mean()), abs=1e-9)


def test_angles_and_scales_are_judged_by_their_median(images):
    found = figures(measured(images, 2), 2)
    apart = [math.remainder(true.angle - pose.angle, math.tau) for *_, true, pose in images if true]
    assert found.angle_error == pytest.approx(np.degrees(np.median(np.abs(apart))))
    assert found.scale_error == pytest.approx(
        np.median([abs(true.scale - pose.scale) for *_, true, pose in images if true])
    )
    nadir = figures(measured(images[3:], 2), 2)
    assert (nadir.angle_error, nadir.scale_error, nadir.end_point_error, nadir.end_point_rms) == (None,) * 4


def test_the_order_does_not_reach_the_last_bit_and_all_is_plain_json(images):
    results = measured(images, 2)
    found = figures(results, 2)
    assert figures(results[::-1], 2) == found
    content = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert content["rmse"] == found.heights.rmse
    assert content["above"] == {"from": 2, "pixels": found.above_ground.pixels, "bias": found.above_ground.bias,
                                "mae": found.above_ground.mae, "rmse": found.above_ground.rmse}  # fmt: skip
    assert content["by_height"][-1] == {"from": 100, "to": None, "pixels": 0, "bias": None, "mae": None, "rmse": None}
