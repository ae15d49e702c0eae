"""Errors by height and of the flow are exact sums of one pass, and add up in any order."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agl_core.errors import UserError
from agl_core.geometry import Pose
from agl_core.scoring import errors as errors_module
from agl_core.scoring.errors import HEIGHT_EDGES, ErrorSums, ImageErrors, height_edges, measure, nothing_measured
from agl_core.scoring.sums import image_sums
from tests.scoring.test_score import random_image
from tests.scoring.two_pass import end_point_errors

EDGES = height_edges(2)


def python_bins(truth, predicted, edges):
    rows = [[0, 0, 0, 0] for _ in edges]
    for g, p in zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True):
        if g != 65535:
            number = max(i for i, edge in enumerate(edges) if edge <= g)
            found = (1, p - g, abs(p - g), (p - g) ** 2)
            rows[number] = [a + b for a, b in zip(rows[number], found, strict=True)]
    return rows


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([3, 2500, 60000]), above=st.sampled_from([0, 2, 3.3, 600])
)
def test_the_sums_are_those_of_python_integers_in_every_bin(seed, spread, above):
    truth, predicted, true, pose = random_image(np.random.default_rng(seed), spread_cm=spread, size=(7, 9))
    edges = height_edges(above)
    found = measure(truth, predicted, edges, true, pose)
    assert [[b.pixels, b.error, b.absolute, b.squared] for b in found.errors.bins] == python_bins(
        truth, predicted, edges
    )
    assert found.sums == image_sums(truth, predicted)
    assert found.holes == 0


def test_a_height_on_an_edge_belongs_to_the_bin_above_it():
    edges = [100 * edge for edge in HEIGHT_EDGES]
    truth = np.array([[height - 1 for height in edges[1:]], edges[1:]], np.uint16)
    found = measure(truth, truth, height_edges(2), None, Pose(0, 0)).errors
    assert [found.within(low, high).pixels for low, high in zip(edges, [*edges[1:], None], strict=True)] == [
        1, *[2] * (len(edges) - 2), 1,
    ]  # fmt: skip


def test_the_mean_end_point_error_is_that_of_the_pixels():
    rng = np.random.default_rng(1)
    images = [random_image(rng) for _ in range(3)]
    found = [measure(truth, predicted, EDGES, true, pose).errors for truth, predicted, true, pose in images]
    together = found[0] + found[1] + found[2]
    lengths = end_point_errors(images)
    assert together.flow_pixels == lengths.size
    assert together.end_point_error == pytest.approx(lengths.mean(), abs=5e-7)
    assert together.micropixels == pytest.approx(np.rint(lengths * 1e6).sum(), abs=2)  # ties may fall either way


def test_a_flow_of_a_known_length_has_that_error():
    # 3 m too much along y with 2 px/m, and 4 m of truth along x with 2 px/m that is not predicted: 10 px.
    truth, predicted = np.full((2, 2), 400, np.uint16), np.full((2, 2), 300, np.uint16)
    found = measure(truth, predicted, EDGES, Pose(2, math.pi / 2), Pose(2, 0)).errors
    assert found.end_point_error == 10.0
    assert (found.within(0).bias, found.within(0).mae, found.within(0).rmse) == (-1.0, 1.0, 1.0)


def test_the_longest_flows_of_a_whole_tile_do_not_overflow():
    tallest = np.full((2048, 2048), 65534, np.uint16)
    found = measure(tallest, tallest, EDGES, Pose(1e6, 0), Pose(1e6, math.pi))
    assert found.errors.end_point_error == pytest.approx(2 * 655.34e6, rel=1e-12)
    assert found.errors.bins[-1].pixels == 2048**2
    assert found.sums == image_sums(tallest, tallest)
    assert 2**12 * 2 * 655.34e6 * 1e6 < 2**63  # what is added up before it is split
    flat = measure(tallest, np.zeros_like(tallest), EDGES, None, Pose(0, 0)).errors.bins[-1]
    assert flat == ErrorSums(2048**2, -65534 * 2048**2, 65534 * 2048**2, 65534**2 * 2048**2)


def test_parts_add_up_to_the_whole_in_any_order_and_in_any_blocks(monkeypatch):
    rng = np.random.default_rng(2)
    truth, predicted, true, pose = random_image(rng, size=(97, 53))
    whole = measure(truth, predicted, EDGES, true, pose)
    parts = [measure(truth[i : i + 13], predicted[i : i + 13], EDGES, true, pose) for i in range(0, 97, 13)]
    for order in (parts, parts[::-1]):
        assert sum(order, nothing_measured(EDGES)) == whole
    monkeypatch.setattr(errors_module, "_BLOCK", 100)
    assert measure(truth, predicted, EDGES, true, pose) == whole
    assert 2**30 * 65535**2 < 2**63  # the real block


def test_errors_with_other_edges_cannot_be_added_or_asked_for():
    bins = (ErrorSums(),) * len(EDGES)
    with pytest.raises(ValueError, match="edges"):
        ImageErrors(EDGES, bins) + ImageErrors(height_edges(3), (*bins, ErrorSums()))
    with pytest.raises(ValueError, match="150"):
        ImageErrors(EDGES, bins).within(150)


def test_without_a_true_pose_or_pixels_there_are_no_figures():
    truth = np.full((3, 3), 65535, np.uint16)
    found = measure(truth, np.zeros_like(truth), EDGES, Pose(1, 1), Pose(1, 1)).errors
    assert found.end_point_error is None
    assert (found.within(0).bias, found.within(0).mae, found.within(0).rmse) == (None, None, None)
    nadir = measure(np.ones_like(truth), truth - 1, EDGES, None, Pose(1, 1)).errors
    assert (nadir.flow_pixels, nadir.end_point_error, nadir.within(0).pixels) == (0, None, 9)


def test_holes_are_counted_and_another_size_is_refused():
    truth = np.full((4, 5), 7, np.uint16)
    holes = np.zeros_like(truth)
    truth[0], holes[0, :2], holes[2, 1] = 65535, 65535, 65535
    assert measure(truth, holes, EDGES, None, Pose(0, 0)).holes == 3
    with pytest.raises(UserError, match="predicted AGL is 3 x 5 but the truth is 4 x 5"):
        measure(truth, holes[:3], EDGES, None, Pose(0, 0))


def test_the_height_above_ground_is_an_edge_even_between_two():
    assert height_edges(2) == tuple(100 * edge for edge in HEIGHT_EDGES)
    assert height_edges(2.5) == (0, 100, 200, 250, 500, 1000, 2000, 5000, 10000)
