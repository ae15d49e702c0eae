"""Corrections found on some images improve others of the same city, and few images ask for none."""

import math

import numpy as np
import pytest

from agl_core.errors import UserError
from agl_core.geometry import Pose
from agl_core.scoring.calibration import calibrate
from agl_core.scoring.score import ImageResult, score
from agl_core.scoring.sums import ImageSums, image_sums

GSD = 0.4


def simulate(count, seed, factor=1.0, line=(0.0, 1.0), noise=0.1, city="A", corrected=None):
    """Images whose heights and scales are wrong in the same way: the true ones are factor * these and a + b * these.

    Each image is wrong by chance as well: by the share `noise` in its heights, by a tenth of that in its scale.
    """
    rng = np.random.default_rng(seed)
    results, gsds = [], {}
    for number in range(count):
        image = f"{city}_{number:03d}"
        gsds[image] = GSD * rng.uniform(0.8, 1.2)
        truth = rng.gamma(1.5, 4.0, (24, 24))
        heights = truth / factor * (1 + noise * rng.normal()) + rng.normal(0, 1, truth.shape)
        cotangent = rng.uniform(0.2, 0.7)
        predicted = (cotangent - line[0]) / line[1] * (1 + 0.1 * noise * rng.normal())
        if corrected is not None:
            heights, predicted = heights * corrected[0], corrected[1][0] + corrected[1][1] * predicted
        angle = rng.uniform(0, math.tau)
        sums = image_sums(centimetres(truth), centimetres(heights))
        true, pose = (Pose(value / gsds[image], angle) for value in (cotangent, max(predicted, 0.0)))
        results.append(ImageResult(image, city, sums, true, pose))
    return results, gsds


def centimetres(metres):
    return np.rint(np.clip(metres, 0, 200) * 100).astype(np.uint16)


def of_city(calibration, city="A"):
    about = calibration["cities"][city]
    return about["height_factor"], tuple(about["scale_line"])


def test_what_was_found_on_some_images_improves_the_score_of_others():
    wrong = {"factor": 1.3, "line": (0.05, 1.15)}
    factor, line = of_city(calibrate(*simulate(40, seed=1, **wrong)))
    assert factor == pytest.approx(1.3, abs=0.08)
    assert line == pytest.approx((0.05, 1.15), abs=0.03)
    before = score(simulate(40, seed=2, **wrong)[0])
    after = score(simulate(40, seed=2, **wrong, corrected=(factor, line))[0])
    assert after.cities["A"].agl_r2 > before.cities["A"].agl_r2 + 0.05
    assert after.cities["A"].vflow_r2 > before.cities["A"].vflow_r2 + 0.1
    assert after.cities["A"].scale_error < 0.2 * before.cities["A"].scale_error


def test_of_many_images_the_factor_is_that_of_the_least_squared_error():
    results, gsds = simulate(60, seed=3, factor=0.8, noise=0.02)
    factor, _ = of_city(calibrate(results, gsds))
    pp, pg, gg = (sum(getattr(result.sums, name) for result in results) for name in ("pp", "pg", "gg"))

    def error(by):
        return by**2 * pp - 2 * by * pg + gg

    assert error(factor) < min(error(factor * 1.002), error(factor * 0.998))
    assert pg / pp < factor < 1  # never more than that


def test_what_is_right_already_is_left_exactly_as_it_is():
    perfect = []
    for result in simulate(30, seed=4)[0]:
        sums = result.sums
        same = ImageSums(sums.known, sums.g, sums.gg, sums.gg, sums.gg)
        perfect.append(ImageResult(result.id, "A", same, result.truth, result.truth))
    assert of_city(calibrate(perfect, {result.id: GSD for result in perfect})) == (1.0, (0.0, 1.0))


def test_chance_alone_seldom_asks_for_a_correction_and_never_for_a_large_one():
    found = [of_city(calibrate(*simulate(12, seed=seed, noise=0.15))) for seed in range(40)]
    assert sum(line == (0.0, 1.0) for _, line in found) >= 30
    assert all(abs(slope - 1) < 0.05 and abs(offset) < 0.05 for _, (offset, slope) in found)
    assert all(abs(factor - 1) < 0.15 for factor, _ in found)


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_very_few_images_ask_for_nothing_however_wrong_they_are(count):
    assert of_city(calibrate(*simulate(count, seed=5, factor=2.0, line=(0.1, 1.5)))) == (1.0, (0.0, 1.0))


def test_some_images_ask_for_a_factor_but_not_for_a_line():
    factor, (offset, slope) = of_city(calibrate(*simulate(9, seed=6, factor=1.5, line=(0.05, 1.3), noise=0.02)))
    assert factor == pytest.approx(1.5, abs=0.1)
    assert offset == 0
    assert slope > 1.2


def test_an_offset_that_is_taken_in_part_leaves_the_middle_where_it_is():
    """Both the line and that through the origin pass by the middle of the images, and so does what lies between."""
    parts = 0
    for seed in range(20):
        results, gsds = simulate(18, seed, line=(0.05, 1.1), noise=0.6)
        _, (offset, slope) = of_city(calibrate(results, gsds))
        x, y = (
            np.mean([pose.scale * gsds[image] for pose, image in poses])
            for poses in (
                [(result.prediction, result.id) for result in results],
                [(result.truth, result.id) for result in results],
            )
        )
        parts += offset != 0 and slope > 1.12
        assert offset + slope * x == pytest.approx(y, rel=0.02)
    assert parts > 2


def test_few_images_do_not_make_others_worse():
    """Of many cities with nine images each, the corrections lower the score of no more than a few, and by little."""
    changes = []
    for seed in range(30):
        factor, line = of_city(calibrate(*simulate(9, seed=seed, noise=0.2)))
        before = score(simulate(25, seed=1000 + seed, noise=0.2)[0]).score
        changes.append(score(simulate(25, seed=1000 + seed, noise=0.2, corrected=(factor, line))[0]).score - before)
    assert min(changes) > -0.06
    assert sum(change < -0.005 for change in changes) <= 8


def test_one_image_that_alone_is_off_asks_for_nothing():
    results, gsds = simulate(20, seed=7, noise=0.0)
    last = results[-1]
    results[-1] = ImageResult(last.id, "A", last.sums, Pose(5 * last.truth.scale, 1.0), last.prediction)
    assert of_city(calibrate(results, gsds))[1] == (0.0, 1.0)


def test_cities_are_apart_and_the_order_of_the_images_changes_no_bit():
    first, gsds = simulate(20, seed=8, factor=1.4)
    second, more = simulate(20, seed=9, line=(0.0, 0.7), city="B")
    both = calibrate([*first, *second], {**gsds, **more})
    assert list(both["cities"]) == ["A", "B"]
    assert both["cities"]["A"] == calibrate(first, gsds)["cities"]["A"]
    assert both["cities"]["B"]["images"] == both["cities"]["B"]["images_with_pose"] == 20
    assert calibrate([*second[::-1], *first[::-1]], {**more, **gsds}) == both
    assert of_city(both, "B")[1][1] == pytest.approx(0.7, abs=0.02)


def test_without_true_poses_there_is_a_factor_but_no_line():
    results, _ = simulate(20, seed=10, factor=1.4)
    nadir = [ImageResult(result.id, "A", result.sums, None, result.prediction) for result in results]
    calibration = calibrate(nadir, {})
    assert of_city(calibration)[1] == (0.0, 1.0)
    assert of_city(calibration)[0] > 1.2
    assert calibration["cities"]["A"]["images_with_pose"] == 0


def test_predictions_that_say_nothing_are_left_alone():
    results, gsds = simulate(20, seed=11)
    silent = [
        ImageResult(result.id, "A", ImageSums(result.sums.known, result.sums.g, result.sums.gg, 0, 0), truth, pose)
        for result, truth, pose in ((result, result.truth, Pose(0.0, 0.0)) for result in results)
    ]
    factor, line = of_city(calibrate(silent, gsds))
    assert factor == 1.0
    middle = np.mean([result.truth.scale * gsds[result.id] for result in results])
    assert line[0] == pytest.approx(middle, rel=0.05)  # of a scale that is always the same, the mean of the true ones


def test_what_cannot_be_a_correction_is_refused_in_one_sentence():
    with pytest.raises(UserError, match="no image"):
        calibrate([], {})
    results, _ = simulate(9, seed=12)
    with pytest.raises(UserError, match=r"gsd of A_000, A_001, A_002, A_003, A_004 and 3 more is not known"):
        calibrate(results[::-1], {"A_008": 0.3})
    metres = [ImageResult(result.id, "A", in_metres(result.sums), None, result.prediction) for result in results]
    with pytest.raises(UserError, match=r"city A would have to be multiplied with \d+"):
        calibrate(metres, {})


def in_metres(sums):
    """As if the predicted numbers were metres and not centimetres."""
    return ImageSums(sums.known, sums.g, sums.gg, sums.pp // 10000, sums.pg // 100)
