"""What the index knows of a tile's heights: exact, in parts as in one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from agl_core.data.store.heights import Heights, heights_of
from agl_core.data.tiles import HIGHEST_CM, UNKNOWN


def slowly(agl_cm: NDArray[np.uint16]) -> Heights:
    known = [int(value) for value in agl_cm.ravel() if value != UNKNOWN]
    return Heights(max(known, default=0) / 100, len(known), sum(known), sum(value**2 for value in known))


@given(st.lists(st.sampled_from([0, 1, 2, 3000, 40_000, HIGHEST_CM, UNKNOWN]), min_size=1, max_size=60), st.data())
def test_heights_are_summed_up_as_python_would_and_parts_join(values: list[int], data: st.DataObject) -> None:
    agl_cm = np.array([values], np.uint16)
    found = heights_of(agl_cm)
    assert found == slowly(agl_cm)
    assert [type(value) for value in found] == [float, int, int, int]
    cut = data.draw(st.integers(0, len(values)))
    assert heights_of(agl_cm[:, :cut]).joined(heights_of(agl_cm[:, cut:])) == found


@pytest.mark.parametrize("value", [HIGHEST_CM, UNKNOWN, 0])
def test_sums_beyond_the_numbers_that_float64_holds_are_exact(value: int) -> None:
    agl_cm = np.full((1500, 1600), value, np.uint16)  # the sum of squares is above 2^53
    agl_cm[-1, -1] = 1
    known = agl_cm.size - 1 if value != UNKNOWN else 0
    heights = value if known else 0
    assert heights_of(agl_cm) == (max(heights, 1) / 100, known + 1, known * heights + 1, known * heights**2 + 1)


def test_a_window_of_a_larger_array_is_looked_at_alone() -> None:
    agl_cm = np.random.default_rng(0).integers(0, 65536, (70, 90)).astype(np.uint16)
    assert heights_of(agl_cm[3:60, 5:80:2]) == slowly(agl_cm[3:60, 5:80:2])
