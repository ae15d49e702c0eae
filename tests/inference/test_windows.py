"""Windows cover the image, overlap as asked, and blend without gaps."""

import numpy as np
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
@given(st.integers(1, 3000), st.integers(1, 8), st.data())
def test_windows_begin_where_the_networks_cells_do(length, cells, data):
    overlap = data.draw(st.integers(0, 32 * (cells - 1)))
    window = 32 * cells
    starts = window_starts(length, window, overlap, unit=32)
    assert all(start % 32 == 0 for start in starts)
    if length > window:
        assert (window - np.diff(starts) >= overlap).all()
        assert length <= starts[-1] + window < length + 32
    else:
        assert starts == [0]


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 900), st.integers(1, 300), st.data())
def test_the_weights_of_all_windows_add_up_to_one_everywhere(length, window, data):
    starts = window_starts(length, window, data.draw(st.integers(0, window - 1)))
    total = np.zeros(length)
    weights = blend_weights(length, window, starts)
    for start, own in zip(starts, weights, strict=True):
        assert own.min() >= 0
        assert len(own) == min(window, length - start)
        total[start : start + len(own)] += own
    np.testing.assert_allclose(total, 1, atol=1e-12)


def test_nothing_counts_beside_a_border_that_is_not_the_images():
    first, middle, last = blend_weights(288, 128, [0, 80, 160])  # neighbours share 48 pixels
    for weights, left, right in ((first, False, True), (middle, True, True), (last, True, False)):
        assert (weights[:12] == (0 if left else 1)).all()
        assert (weights[-12:] == (0 if right else 1)).all()
        assert (weights[48:80] == 1).all()
    np.testing.assert_allclose(first[80:] + middle[:48], 1, atol=1e-12)
    assert (np.diff(middle[12:36]) > 0).all()


def test_windows_that_share_nothing_stand_for_their_own_pixels():
    assert all((weights == 1).all() for weights in blend_weights(150, 64, [0, 64, 128]))


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
