"""The five sums are exact, merge in any order, and refuse what is not finished."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from agl_core.errors import UserError
from agl_core.scoring import sums as sums_module
from agl_core.scoring.sums import NO_PIXELS, ImageSums, image_sums

HEIGHTS = st.integers(0, 65535)
FINISHED = st.integers(0, 65534)


@st.composite
def pairs(draw):
    shape = draw(array_shapes(min_dims=2, max_dims=2, max_side=9))
    return draw(arrays(np.uint16, shape, elements=HEIGHTS)), draw(arrays(np.uint16, shape, elements=FINISHED))


def python_sums(truth, predicted):
    known = [(int(g), int(p)) for g, p in zip(truth.flat, predicted.flat, strict=True) if g != 65535]
    return ImageSums(
        len(known),
        sum(g for g, _ in known),
        sum(g * g for g, _ in known),
        sum(p * p for _, p in known),
        sum(p * g for g, p in known),
    )


@settings(deadline=None, derandomize=True, max_examples=60)
@given(pairs())
def test_the_sums_are_those_of_python_integers(pair):
    assert image_sums(*pair) == python_sums(*pair)


def test_the_largest_heights_of_a_whole_tile_are_summed_without_overflow():
    tallest = np.full((2048, 2048), 65534, np.uint16)
    pixels, square = 2048**2, 2048**2 * 65534**2
    assert image_sums(tallest, tallest) == ImageSums(pixels, pixels * 65534, square, square, square)


def test_an_image_is_summed_in_blocks_that_fit_into_int64(monkeypatch):
    rng = np.random.default_rng(0)
    truth, predicted = (rng.integers(0, 65535, (37, 53)).astype(np.uint16) for _ in range(2))
    truth[3:5] = 65535
    whole = image_sums(truth, predicted)
    monkeypatch.setattr(sums_module, "_BLOCK", 100)
    assert image_sums(truth, predicted) == whole == python_sums(truth, predicted)
    assert 2**30 * 65534**2 < 2**63  # the real block


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.lists(pairs(), max_size=4))
def test_images_merge_to_the_sums_of_all_their_pixels_in_any_order(images):
    merged = sum((image_sums(*pair) for pair in images), NO_PIXELS)
    backwards = sum((image_sums(*pair) for pair in reversed(images)), NO_PIXELS)
    truth = np.concatenate([np.empty(0, np.uint16), *(pair[0].ravel() for pair in images)])
    predicted = np.concatenate([np.empty(0, np.uint16), *(pair[1].ravel() for pair in images)])
    assert merged == backwards == python_sums(truth, predicted)


def test_the_sums_travel_between_processes_as_five_ints_that_fit_into_int64():
    tallest = np.full((64, 64), 65534, np.uint16)
    sums = image_sums(tallest, tallest)
    assert ImageSums(*np.array(sums.as_ints(), np.int64).tolist()) == sums


def test_a_view_and_a_read_only_array_give_the_same_sums_as_a_copy():
    truth = np.arange(200, dtype=np.uint16).reshape(10, 20)
    view = truth[::2, ::-3]
    frozen = np.frombuffer(np.ascontiguousarray(view).tobytes(), np.uint16).reshape(view.shape)
    assert image_sums(view, view) == image_sums(frozen, frozen) == python_sums(view, view)


@pytest.mark.parametrize("truth_there", [7, 65535])
def test_a_hole_in_the_prediction_is_refused_and_counted_wherever_it_is(truth_there):
    truth = np.full((4, 5), 7, np.uint16)
    predicted = np.zeros((4, 5), np.uint16)
    truth[1, :2], predicted[1, :2] = truth_there, 65535
    with pytest.raises(UserError, match="2 holes"):
        image_sums(truth, predicted)


def test_another_size_is_refused_with_both_sizes():
    with pytest.raises(UserError, match="predicted AGL is 4 x 5 but the truth is 4 x 6"):
        image_sums(np.zeros((4, 6), np.uint16), np.zeros((4, 5), np.uint16))


def test_heights_that_are_not_uint16_centimetres_are_a_defect_of_the_caller():
    with pytest.raises(TypeError, match="float32"):
        image_sums(np.zeros((4, 4), np.uint16), np.zeros((4, 4), np.float32))
