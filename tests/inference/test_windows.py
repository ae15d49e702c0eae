"""Windows cover the image, overlap as asked, and blend without gaps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agl_core.inference.windows import blend_weights, pad_to_multiple, window_starts


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 700), st.integers(1, 300), st.data())
def test_windows_cover_the_axis_and_neighbours_share_the_overlap(length, window, data):
    overlap = data.draw(st.integers(0, window - 1))
    starts = window_starts(length, window, overlap)
    if length <= window:
        assert starts == [0]
        return
    assert starts[0] == 0
    assert starts[-1] + window == length
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert (steps <= window - overlap).all()
    assert steps.max() - steps.min() <= 1  # evenly spread


def test_no_more_windows_than_needed():
    assert window_starts(1000, 400, 100) == [0, 300, 600]
    assert len(window_starts(1001, 400, 100)) == 4


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 300), st.integers(0, 299))
def test_weights_are_nowhere_zero_symmetric_and_highest_in_the_middle(length, overlap):
    weights = blend_weights(length, overlap)
    assert weights.min() > 0
    assert weights.max() <= 1
    np.testing.assert_array_equal(weights, weights[::-1])
    assert (np.diff(weights[: (length + 1) // 2]) >= 0).all()


@pytest.mark.parametrize("overlap", [1, 2, 31, 64])
def test_the_weights_of_neighbours_add_up_to_one_where_they_overlap(overlap):
    weights = blend_weights(128, overlap)
    np.testing.assert_allclose(weights[-overlap:] + weights[:overlap], 1, atol=1e-12)
    np.testing.assert_array_equal(weights[overlap : 128 - overlap], 1)


def test_padding_mirrors_the_image_at_the_bottom_and_on_the_right():
    image = np.arange(5 * 6 * 3).reshape(5, 6, 3)
    padded = pad_to_multiple(image, 8)
    assert padded.shape == (8, 8, 3)
    np.testing.assert_array_equal(padded[:5, :6], image)
    np.testing.assert_array_equal(padded[5:, :6], image[3:0:-1])
    np.testing.assert_array_equal(padded[:, 6:], padded[:, 4:2:-1])


def test_an_image_too_small_to_be_mirrored_repeats_its_edge():
    image = np.arange(3 * 6).reshape(3, 6)
    padded = pad_to_multiple(image, 8)
    np.testing.assert_array_equal(padded[3:], padded[[2] * 5])
    assert pad_to_multiple(np.zeros((1, 1, 3)), 32).shape == (32, 32, 3)


def test_an_image_that_fits_is_left_alone():
    image = np.zeros((64, 32, 3))
    assert pad_to_multiple(image, 32) is image
