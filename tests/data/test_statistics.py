"""Mean and variance of each city, pooled over tiles, from the index alone."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agl_core.data.statistics import CityStatistics
from agl_core.data.store import Store, StoreEntry
from agl_core.data.store.heights import with_heights
from agl_core.data.tiles import UNKNOWN


def index_of(tiles: list[tuple[str, list[int]]]) -> Any:
    """What the statistics look at of a store: a tile of one row for each city and heights in centimetres."""
    entries = [
        with_heights(StoreEntry(f"{city}_{number}", city, 0.5, 1, len(heights)), np.array([heights], np.uint16))
        for number, (city, heights) in enumerate(tiles)
    ]
    return SimpleNamespace(entries=entries, cities=sorted({city for city, _ in tiles}))


def test_statistics_of_a_store_are_those_of_its_pixels_pooled_by_city(tiny_store: Path) -> None:
    store = Store(tiny_store)
    tiles = list(range(0, len(store), 2))
    found = CityStatistics.of(store, tiles)
    assert found.cities == ("AAA", "BBB")
    for place, city in enumerate(found.cities):
        heights = [store.read_tile(number)[1] for number in tiles if store.entries[number].city == city]
        known = np.concatenate([each[each != UNKNOWN] for each in heights]) / 100
        assert found.count[place] == len(known)
        assert found.mean[place] == pytest.approx(known.mean(), rel=1e-14)
        assert found.variance[place] == pytest.approx(known.var(), rel=1e-12)
    assert [values.dtype for values in (found.count, found.mean, found.variance)] == [np.float64] * 3


def test_no_tile_is_read(tiny_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "read_into", lambda *_: pytest.fail("a tile was read"))
    assert CityStatistics.of(Store(tiny_store), range(13)).count.all()


def test_a_city_without_known_pixels_has_zeros_and_its_place() -> None:
    index = index_of([("A", [100, 300]), ("B", [UNKNOWN, UNKNOWN]), ("C", [500, UNKNOWN]), ("D", [7])])
    found = CityStatistics.of(index, [0, 1, 2])
    assert found.cities == ("A", "B", "C", "D")
    assert found.count.tolist() == [2, 0, 1, 0]
    assert found.mean.tolist() == [2, 0, 5, 0]
    assert found.variance.tolist() == [1, 0, 0, 0]


@given(
    st.lists(
        st.tuples(st.sampled_from("ABC"), st.lists(st.integers(0, UNKNOWN), min_size=1, max_size=9)),
        min_size=1,
        max_size=9,
    ),
    st.randoms(use_true_random=False),
)
def test_the_order_of_the_tiles_changes_no_bit(tiles: list[tuple[str, list[int]]], random: Any) -> None:
    index = index_of(tiles)
    order = list(range(len(tiles)))
    random.shuffle(order)
    one, other = CityStatistics.of(index, range(len(tiles))), CityStatistics.of(index, order)
    assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("count", "mean", "variance"))
    for place, city in enumerate(one.cities):
        known = [value for name, values in tiles if name == city for value in values if value != UNKNOWN]
        assert one.count[place] == len(known)
        assert one.variance[place] == pytest.approx(np.var(np.array(known) / 100) if known else 0, abs=1e-9)


def test_a_small_variance_about_a_great_mean_is_not_lost() -> None:
    known, sum_cm, sum_cm2 = 10**12, 60_000 * 10**12 + 10, 60_000**2 * 10**12 + 20 * 60_000 + 10
    entry = StoreEntry("A_0", "A", 0.5, 1, 1, known=known, sum_cm=sum_cm, sum_cm2=sum_cm2)
    index: Any = SimpleNamespace(entries=[entry], cities=["A"])
    found = CityStatistics.of(index, [0])
    assert found.variance[0] == pytest.approx(1e-15, rel=1e-9), "ten pixels in 10^12 are one centimetre higher"
