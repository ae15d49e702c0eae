"""Folds by city as in the reference, and by place so that nothing leaks."""

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agl_core.data.folds import assign_folds
from agl_core.errors import UserError

story = settings(deadline=None, derandomize=True)


@dataclass(frozen=True)
class Tile:
    id: str
    city: str
    place: str | None = None


def tiles_of(cities: str) -> list[Tile]:
    """One tile per letter."""
    return [Tile(f"{number:04d}", city) for number, city in enumerate(cities)]


@st.composite
def placed_tiles(draw: st.DrawFn) -> list[Tile]:
    """Two cities, places of one to six tiles."""
    tiles = []
    for place in range(draw(st.integers(2, 20))):
        city = draw(st.sampled_from("AB"))
        tiles += [Tile(f"{place}-{view}", city, f"{city}{place}") for view in range(draw(st.integers(1, 6)))]
    return draw(st.permutations(tiles))


def test_folds_by_city_are_scikit_learns() -> None:
    # The example in the documentation of RepeatedStratifiedKFold, and the dealing worked out by hand below.
    assert assign_folds(tiles_of("0011"), 2, "city", 36851234) == [0, 1, 1, 0]


def test_the_first_city_of_the_list_is_dealt_first() -> None:
    # As first met, B B A A is dealt to three folds: B and A to fold 0, B to fold 1, A to fold 2.
    for seed in range(5):
        found = assign_folds(tiles_of("BABA"), 3, "city", seed)
        assert {*zip(found, "BABA", strict=True)} == {(0, "B"), (0, "A"), (1, "B"), (2, "A")}


@story
@given(st.text("ABC", min_size=2, max_size=200), st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_folds_by_city_are_even_in_every_city_and_over_all(cities: str, folds: int, seed: int) -> None:
    assume(len(cities) >= folds)
    found = assign_folds(tiles_of(cities), folds, "city", seed)
    assert len(found) == len(cities)
    for city in {*cities}:
        counts = Counter(fold for fold, name in zip(found, cities, strict=True) if name == city)
        assert max(counts[fold] for fold in range(folds)) - min(counts[fold] for fold in range(folds)) <= 1
    counts = Counter(found)
    assert max(counts.values()) - min(counts[fold] for fold in range(folds)) <= 1


def test_a_city_with_fewer_tiles_than_folds_is_in_some_of_them() -> None:
    found = assign_folds(tiles_of("A" * 20 + "BB"), 10, "city", 0)
    assert len({fold for fold, tile in zip(found, tiles_of("A" * 20 + "BB"), strict=True) if tile.city == "B"}) == 2


@story
@given(placed_tiles(), st.integers(2, 8), st.integers(0, 100))
def test_a_place_is_in_one_fold_only_and_cities_stay_even(tiles: list[Tile], folds: int, seed: int) -> None:
    sizes = Counter(tile.place for tile in tiles)
    assume(len(sizes) >= folds)
    found = assign_folds(tiles, folds, "place", seed)
    assert len({(tile.place, fold) for tile, fold in zip(tiles, found, strict=True)}) == len(sizes)
    for city in {tile.city for tile in tiles}:
        counts = Counter(fold for fold, tile in zip(found, tiles, strict=True) if tile.city == city)
        largest = max(sizes[tile.place] for tile in tiles if tile.city == city)
        assert max(counts.values()) - min(counts[fold] for fold in range(folds)) <= largest


@story
@given(placed_tiles(), st.integers(0, 100))
def test_folds_by_place_do_not_depend_on_the_order_of_the_tiles(tiles: list[Tile], seed: int) -> None:
    found = dict(zip(tiles, assign_folds(tiles, 2, "place", seed), strict=True))
    ordered = sorted(tiles, key=lambda tile: tile.id)
    assert found == dict(zip(ordered, assign_folds(ordered, 2, "place", seed), strict=True))


def test_large_places_are_placed_first_so_that_small_ones_can_even_out() -> None:
    tiles = [
        Tile(f"{place}{view}", "A", place) for place, views in {"a": 1, "b": 1, "c": 2}.items() for view in range(views)
    ]
    for seed in range(10):
        assert Counter(assign_folds(tiles, 2, "place", seed)) == {0: 2, 1: 2}


def test_no_fold_of_places_is_empty_even_if_the_cities_are_small() -> None:
    tiles = [Tile(str(number), f"city{number}", f"place{number}") for number in range(6)]
    assert sorted(assign_folds(tiles, 6, "place", 0)) == list(range(6))


@pytest.mark.parametrize("by", ["city", "place"])
def test_the_seed_alone_decides(by: str) -> None:
    tiles = [Tile(str(number), "AB"[number % 2], f"p{number // 3}") for number in range(60)]
    once = assign_folds(tiles, 5, by, 1)
    assert once == assign_folds(tiles, 5, by, 1)
    assert once != assign_folds(tiles, 5, by, 2)


def test_a_place_name_that_two_cities_share_is_still_in_one_fold() -> None:
    tiles = [Tile(f"{city}{number}", city, f"p{number}") for city in "AB" for number in range(8)]
    found = assign_folds(tiles, 4, "place", 0)
    assert found[:8] == found[8:]


@pytest.mark.parametrize(
    ("folds", "by", "seed", "sentence"),
    [
        (1, "city", 0, "folds is 1: give at least 2"),
        (5, "city", 0, r"4 tile\(s\) cannot fill 5 folds: give --folds 4 or fewer"),
        (2, "country", 0, "'country': choose one of city, place"),
        (2, "place", 0, "4 of 4 have none.*add a `place` column to metadata.csv"),
        (2, "city", -1, "seed is -1"),
    ],
)
def test_impossible_folds_are_refused(folds: int, by: str, seed: int, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        assign_folds(tiles_of("AABB"), folds, by, seed)


def test_fewer_places_than_folds_are_refused() -> None:
    tiles = [Tile(str(number), "A", f"p{number % 2}") for number in range(9)]
    with pytest.raises(UserError, match=r"2 place\(s\) cannot fill 3 folds"):
        assign_folds(tiles, 3, "place", 0)
