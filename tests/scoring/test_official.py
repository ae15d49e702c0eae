"""The numbers of the official script, written down directly in two_pass.py, are met to 1e-6 on any kind of tile."""

import numpy as np
import pytest

from agl_core.config import WorldConfig
from agl_core.data.catalog import read_catalog
from agl_core.data.tiles import UNKNOWN, read_agl, read_vflow
from agl_core.geometry import Pose
from agl_core.scoring.evaluate import evaluate
from agl_core.scoring.score import ImageResult, score
from agl_core.scoring.sums import image_sums
from agl_core.world.dataset import render_world
from tests.scoring.test_evaluate import write_images
from tests.scoring.test_score import random_image
from tests.scoring.two_pass import city_r2, official_score


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("world") / "data"
    render_world(WorldConfig(str(out), tiles=16, size=96, cities=4, views=2, workers=1))
    return out


def rendered(world):
    """city -> images; predictions are lower, smoother and leaning otherwise, as a network's."""
    rng, cities = np.random.default_rng(3), {}
    for record in read_catalog(world, "train"):
        truth, true = read_agl(record.agl, "cm"), read_vflow(record.vflow, "cm")
        level = np.where(truth == UNKNOWN, 0, truth)
        smooth = sum(np.roll(level, (dy, dx), (0, 1)).astype(float) for dy in (-2, 0, 2) for dx in (-2, 0, 2)) / 9
        predicted = np.clip(0.9 * smooth + rng.normal(0, 80, truth.shape), 0, 65534).astype(np.uint16)
        truth = truth.copy()
        truth[:9, rng.integers(0, 90) :] = UNKNOWN
        pose = Pose(true.scale * rng.uniform(0.8, 1.2), true.angle + rng.normal(0, 0.3))
        cities.setdefault(record.city, []).append((truth, predicted, true, pose))
    return cities


def random_tiles(_):
    rng = np.random.default_rng(4)
    return {
        city: [random_image(rng, offset, size=(60 + i, 70), unknown=0.3 * i) for i in range(3)]
        for city, offset in {"ARG": 0, "ATL": 500, "JAX": 30000, "OMA": 2}.items()
    }


@pytest.mark.parametrize("tiles", [random_tiles, rendered])
@pytest.mark.parametrize("count", [1, 4])
def test_the_official_numbers_are_met(tmp_path, world, tiles, count):
    cities = dict(list(tiles(world).items())[:count])
    assert len(cities) == count
    assert any((image[0] == UNKNOWN).any() for images in cities.values() for image in images)
    results = [
        ImageResult(f"{city}{i}", city, image_sums(*image[:2]), *image[2:])
        for city, images in cities.items()
        for i, image in enumerate(images)
    ]
    from_arrays = score(results)
    named = {f"{city}_{i}": image for city, images in cities.items() for i, image in enumerate(images)}
    config = write_images(tmp_path, named)
    (tmp_path / "metadata.csv").unlink()
    from_files = evaluate(config)
    for reached in (from_arrays, from_files):
        assert reached.score == pytest.approx(official_score(cities), abs=1e-6, rel=0)
        for city, images in cities.items():
            agl, flow = city_r2(images)
            assert reached.cities[city].agl_r2 == pytest.approx(agl, abs=1e-6, rel=0)
            assert reached.cities[city].vflow_r2 == pytest.approx(flow, abs=1e-6, rel=0)


def test_what_the_numbers_are_by_hand():
    # Two pixels of 1 m and 3 m, predicted as 2 m and 3 m; SSE 1, mean 4 / 2.0001, SST from it.
    truth, predicted = np.array([[100, 300, UNKNOWN]], np.uint16), np.array([[200, 300, 9999]], np.uint16)
    mean = 4 / 2.0001
    agl = 1 - 1 / ((1 - mean) ** 2 + (3 - mean) ** 2 + 1e-4)
    # Leaning along x by 2 px/m (angle pi/2): flows (2, 0), (6, 0); predicted down the image: (0, 4), (0, 6).
    mean = 8 / 4.0001
    variation = (2 - mean) ** 2 + (6 - mean) ** 2 + 2 * mean**2
    flow = 1 - (2**2 + 4**2 + 6**2 + 6**2) / (variation + 1e-4)
    true, pose = Pose(2, np.pi / 2), Pose(2, 0)
    assert city_r2([(truth, predicted, true, pose)]) == pytest.approx((agl, flow), abs=1e-9)
    reached = score([ImageResult("a", "A", image_sums(truth, predicted), true, pose)]).cities["A"]
    assert (reached.agl_r2, reached.vflow_r2) == pytest.approx((agl, flow), abs=1e-9)
