"""The score agrees with the official formula written down directly, and does not depend on the order of the images."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agl_core.errors import UserError
from agl_core.geometry import Pose
from agl_core.scoring.score import ImageResult, best_constant, score
from agl_core.scoring.sums import ImageSums, image_sums
from tests.scoring.two_pass import city_r2, end_point_errors, heights, magnitudes, official_score, r2


def random_image(rng, offset_cm=0, spread_cm=3000, unknown=0.2, error_cm=200, size=(41, 29)):
    """A truth with unknown pixels and tall offsets, and a prediction that is roughly right."""
    truth = offset_cm + rng.integers(0, spread_cm, size)
    predicted = np.clip(truth + rng.normal(0, error_cm, size), 0, 65534).round().astype(np.uint16)
    truth = truth.astype(np.uint16)
    truth[rng.random(size) < unknown] = 65535
    true = Pose(rng.uniform(0, 3), rng.uniform(0, math.tau))
    return truth, predicted, true, Pose(abs(true.scale + rng.normal(0, 0.1)), true.angle + rng.normal(0, 0.3))


def results_of(cities):
    return [
        ImageResult(f"{city}_{i}", city, image_sums(truth, predicted), true, pose)
        for city, images in cities.items()
        for i, (truth, predicted, true, pose) in enumerate(images)
    ]


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    offset=st.sampled_from([0, 1000, 20000, 60000]),
    spread=st.sampled_from([2, 100, 5000]),
    error=st.sampled_from([0, 1, 300]),
)
def test_the_score_agrees_with_the_two_pass_formula(seed, sizes, offset, spread, error):
    rng = np.random.default_rng(seed)
    cities = {
        f"C{i}": [random_image(rng, offset, spread, error_cm=error) for _ in range(size)]
        for i, size in enumerate(sizes)
    }
    ours = score(results_of(cities))
    for city, images in cities.items():
        agl, flow = city_r2(images)
        assert ours.cities[city].agl_r2 == pytest.approx(agl, rel=1e-9, abs=1e-9)
        assert ours.cities[city].vflow_r2 == pytest.approx(flow, rel=1e-9, abs=1e-9)
    assert ours.score == pytest.approx(official_score(cities), rel=1e-9, abs=1e-9)


def rms(values):
    return float(np.sqrt(np.mean(values**2)))


@pytest.mark.parametrize(("offset", "spread"), [(0, 3000), (60000, 5000), (20000, 2)])
def test_errors_in_metres_and_pixels_agree_with_the_two_pass_formulas(offset, spread):
    rng = np.random.default_rng(offset)
    images = [random_image(rng, offset, spread) for _ in range(3)]
    nadir = random_image(rng, offset, spread)
    images.append((*nadir[:2], None, nadir[3]))  # counts for the heights alone
    found = score(results_of({"A": images})).cities["A"]
    g, p = heights(images)
    assert found.agl_rmse == pytest.approx(rms(p - g), rel=1e-9)
    true, predicted = magnitudes(images)
    assert found.magnitude_rmse == pytest.approx(rms(predicted - true), rel=1e-9)
    assert found.magnitude_r2 == pytest.approx(r2(true, predicted), rel=1e-9, abs=1e-9)
    assert found.vflow_rmse == pytest.approx(rms(end_point_errors(images)), rel=1e-9)


def test_the_angle_matters_to_the_flow_and_not_to_its_length():
    truth, _, true, _ = random_image(np.random.default_rng(6))
    turned = Pose(true.scale, true.angle + 1)
    heights_cm = np.where(truth == 65535, 0, truth).astype(np.uint16)
    found = score(results_of({"A": [(truth, heights_cm, true, turned)]})).cities["A"]
    assert (found.agl_rmse, found.magnitude_rmse, found.magnitude_r2) == (0, 0, 1)
    assert found.vflow_rmse > 1
    assert found.vflow_r2 < 1


def test_where_no_pose_is_known_there_are_errors_of_the_heights_alone():
    truth, predicted, _, pose = random_image(np.random.default_rng(7))
    found = score(results_of({"A": [(truth, predicted, None, pose)]})).cities["A"]
    assert found.agl_rmse > 0
    assert (found.magnitude_r2, found.magnitude_rmse, found.vflow_rmse) == (None, None, None)


def test_the_epsilons_are_where_the_official_script_has_them():
    # One pixel of 3 m: mean 3 / 1.0001, so that even a perfect height has a variation to be compared with.
    one = ImageSums(1, 300, 300**2, 200**2, 300 * 200)
    variation = (3 - 3 / 1.0001) ** 2
    reached = score([ImageResult("a", "A", one, None, Pose(0, 0))])
    assert reached.score == pytest.approx(1 - 1 / (variation + 1e-4), rel=1e-12)


def test_the_flow_has_one_mean_for_both_components():
    # Two pixels of 1 m, leaning along x by 2 px/m: components 2, 2, 0, 0 with the common mean 1.
    sums = ImageSums(2, 200, 2 * 100**2, 2 * 100**2, 2 * 100**2)
    straight_down = ImageResult("a", "A", sums, Pose(2, math.pi / 2), Pose(2, 0))
    error = 2 * (2**2 + 2**2)
    mean = 4 / (4 + 1e-4)
    variation = 2 * (2 - mean) ** 2 + 2 * mean**2
    assert score([straight_down]).cities["A"].vflow_r2 == pytest.approx(1 - error / (variation + 1e-4), rel=1e-12)


def test_a_perfect_prediction_scores_one_and_the_angle_matters_only_to_the_flow():
    rng = np.random.default_rng(1)
    truth, _, true, _ = random_image(rng, unknown=0)
    perfect = ImageResult("a", "A", image_sums(truth, truth), true, true)
    turned = ImageResult("a", "A", perfect.sums, true, Pose(true.scale, true.angle + 1))
    assert score([perfect]).score == 1.0
    assert score([turned]).cities["A"].agl_r2 == 1.0
    assert score([turned]).cities["A"].vflow_r2 < 1.0


def test_the_order_of_the_images_does_not_reach_the_last_bit():
    rng = np.random.default_rng(2)
    results = results_of({city: [random_image(rng) for _ in range(5)] for city in "BCA"})
    forwards = score(results)
    assert list(forwards.cities) == ["A", "B", "C"]
    for _ in range(5):
        shuffled = [results[i] for i in rng.permutation(len(results))]
        assert score(shuffled) == forwards
        assert best_constant(shuffled) == best_constant(results)


def test_images_without_a_true_pose_count_for_the_heights_alone():
    rng = np.random.default_rng(3)
    oblique, other = random_image(rng), random_image(rng)
    nadir = (*other[:2], None, other[3])
    mixed = score(results_of({"A": [oblique, nadir]})).cities["A"]
    agl, flow = city_r2([oblique, nadir])
    assert (mixed.agl_r2, mixed.vflow_r2) == (pytest.approx(agl, abs=1e-9), pytest.approx(flow, abs=1e-9))
    assert flow == pytest.approx(city_r2([oblique])[1], abs=1e-9)
    flat = score(results_of({"A": [nadir]})).cities["A"]
    assert flat.vflow_r2 is None
    assert flat.score == flat.agl_r2
    assert flat.angle_error is None


def test_an_oblique_image_with_nothing_known_does_not_make_a_perfect_flow():
    rng = np.random.default_rng(6)
    truth, predicted, true, pose = random_image(rng)
    blank = (np.full_like(truth, 65535), predicted, true, pose)
    city = score(results_of({"A": [(truth, predicted, None, pose), blank]})).cities["A"]
    assert city.vflow_r2 is None
    assert (city.images, city.known_pixels) == (2, np.count_nonzero(truth != 65535))


def test_no_constant_prediction_beats_the_best_constant():
    rng = np.random.default_rng(4)
    images = [random_image(rng, offset_cm=500) for _ in range(6)]
    best = best_constant(results_of({"A": images})).cities["A"]
    assert best.agl_r2 == pytest.approx(0, abs=1e-6)
    assert best.vflow_r2 is not None
    assert 0 <= best.vflow_r2 < 1

    height = np.mean(np.concatenate([truth[truth != 65535] for truth, *_ in images]))
    flows = [
        truth[truth != 65535] * true.scale * np.exp(1j * (math.pi / 2 - true.angle)) for truth, _, true, _ in images
    ]
    mean_flow = np.mean(np.concatenate(flows))
    pose = Pose(abs(mean_flow) / height, math.pi / 2 - np.angle(mean_flow))

    def constant(cm, pose):
        predicted = np.full(images[0][0].shape, round(cm), np.uint16)
        return official_score({"A": [(truth, predicted, true, pose) for truth, _, true, _ in images]})

    assert constant(height, pose) == pytest.approx(best.score, abs=1e-4)  # it is attained, but for whole centimetres
    for _ in range(20):
        other = Pose(pose.scale * rng.uniform(0.8, 1.2), pose.angle + rng.normal(0, 0.2))
        assert constant(height * rng.uniform(0.8, 1.2), other) < best.score


def test_the_errors_of_angle_and_scale_are_medians_over_the_images():
    sums = ImageSums(1, 100, 100**2, 100**2, 100**2)
    true = [Pose(1, 0.1), Pose(1, 6.2), Pose(1, 3), Pose(0, 0)]
    predicted = [Pose(1.5, 6.2), Pose(1.25, 0.1), Pose(1, 2), Pose(0, 2)]
    results = [ImageResult(str(i), "A", sums, *pair) for i, pair in enumerate(zip(true, predicted, strict=True))]
    city = score(results).cities["A"]
    # Around zero the short way counts, and where nothing leans there is no angle.
    assert city.angle_error == pytest.approx(math.degrees(0.1 + math.tau - 6.2))
    assert city.scale_error == pytest.approx(0.125)


def test_the_score_is_plain_json():
    rng = np.random.default_rng(5)
    reached = score(results_of({"A": [random_image(rng)], "B": [random_image(rng)]}))
    content = json.loads(json.dumps(reached.as_json(), allow_nan=False))
    assert content["score"] == reached.score
    assert content["cities"]["B"]["agl_r2"] == reached.cities["B"].agl_r2
    assert {"agl_r2", "vflow_r2", "score", "images", "known_pixels"} <= set(content["cities"]["A"])


def test_nothing_to_score_is_refused():
    with pytest.raises(UserError, match="no image"):
        score([])
    unknown = ImageResult("a", "A", ImageSums(0, 0, 0, 0, 0), Pose(1, 1), Pose(1, 1))
    for function in (score, best_constant):
        with pytest.raises(UserError, match=r"city A .* no pixel"):
            function([unknown])
