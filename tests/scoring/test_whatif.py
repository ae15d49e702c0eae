"""The what-if table is the official score of predictions of which part is right, found from the sums alone."""

import numpy as np
import pytest

from agl_core.geometry import Pose
from agl_core.scoring.score import lost, score
from agl_core.scoring.whatif import AS_PREDICTED, CHANGES, what_if
from tests.scoring.test_score import random_image, results_of
from tests.scoring.two_pass import city_r2, official_score

RIGHT = {
    "true angle": lambda truth, predicted, true, pose: (truth, predicted, true, Pose(pose.scale, true.angle)),
    "true scale": lambda truth, predicted, true, pose: (truth, predicted, true, Pose(true.scale, pose.angle)),
    "true pose": lambda truth, predicted, true, pose: (truth, predicted, true, true),
    "true heights": lambda truth, predicted, true, pose: (truth, truth, true, pose),
}


@pytest.fixture
def cities():
    rng = np.random.default_rng(11)
    return {city: [random_image(rng, error_cm=900) for _ in range(3)] for city in "AB"}


def test_every_change_is_scored_as_if_it_had_been_predicted(cities):
    found = what_if(results_of(cities))
    assert list(found) == [AS_PREDICTED, *RIGHT] == [AS_PREDICTED, *CHANGES]
    assert found[AS_PREDICTED] == score(results_of(cities))
    for name, right in RIGHT.items():
        changed = {city: [right(*image) for image in images] for city, images in cities.items()}
        assert found[name].score == pytest.approx(official_score(changed), abs=1e-9)
        for city, images in changed.items():
            agl, flow = city_r2(images)
            assert (found[name].cities[city].agl_r2, found[name].cities[city].vflow_r2) == pytest.approx(
                (agl, flow), abs=1e-9
            )
    assert len({round(one.score, 6) for one in found.values()}) == 5
    assert found["true heights"].cities["A"].agl_r2 == 1.0


def test_an_image_without_a_true_pose_keeps_what_it_has(cities):
    truth, predicted, _, pose = cities["A"][0]
    cities["A"][0] = (truth, predicted, None, pose)
    found = what_if(results_of(cities))
    assert found["true pose"].cities["A"].agl_r2 == found[AS_PREDICTED].cities["A"].agl_r2
    cities["A"] = [(truth, predicted, None, pose)]
    found = what_if(results_of(cities))
    assert found["true pose"].cities["A"].score == found[AS_PREDICTED].cities["A"].score


def test_what_the_images_lose_adds_up_to_what_the_score_lacks(cities):
    truth, predicted, true, pose = cities["B"][0]
    cities["B"][0] = (truth, predicted, None, pose)  # which loses by its heights alone
    whole = cities["B"][1][0]
    cities["B"][1] = (whole, np.where(whole == 65535, 0, whole).astype(np.uint16), true, true)  # and this one nothing
    cities["C"] = [(truth, predicted, None, pose)]  # a city without any pose
    results = results_of(cities)
    shares = lost(results)
    assert sum(shares.values()) == pytest.approx(1 - score(results).score, abs=1e-12)
    assert min(shares.values()) == shares["B_1"] == 0
    assert shares["B_0"] > 0
    assert lost(results[::-1]) == shares
