"""Which tiles a stage trains on and validates on."""

from dataclasses import replace
from pathlib import Path

import pytest

from agl_core.config import StageConfig, TrainConfig
from agl_core.data.split import Split, stage_cities
from agl_core.data.store import Store
from agl_core.errors import UserError

CONFIG = TrainConfig(fold=1, folds=3, stages={"all": StageConfig(), "own": StageConfig(cities="BBB")})


@pytest.fixture(scope="module")
def store(tiny_store: Path) -> Store:
    """Thirteen tiles of AAA and BBB, two of each place but one."""
    return Store(tiny_store)


def cities_of(store: Store, tiles: list[int]) -> set[str]:
    return {store.entries[number].city for number in tiles}


def test_a_stage_without_cities_has_every_tile_on_one_side(store: Store) -> None:
    split = Split.of(store, CONFIG, "all")
    assert sorted(split.train + split.validation) == list(range(13))
    assert split == Split.of(store, CONFIG)
    assert cities_of(store, split.train) == cities_of(store, split.validation) == {"AAA", "BBB"}


@pytest.mark.parametrize("by", ["city", "place"])
@pytest.mark.parametrize("fold", [0, 1, 2, -1])
def test_a_stage_of_one_city_has_its_tiles_each_on_the_side_it_has_in_other_stages(
    store: Store, fold: int, by: str
) -> None:
    config = replace(CONFIG, fold=fold, fold_by=by)
    whole, own = Split.of(store, config), Split.of(store, config, "own")
    assert own.train == [number for number in whole.train if store.entries[number].city == "BBB"]
    assert own.validation == [number for number in whole.validation if store.entries[number].city == "BBB"]
    assert own.train
    assert own.digest(store) != whole.digest(store)


@pytest.mark.parametrize("text", ["AAA,BBB", " BBB , AAA,", "", " "])
def test_naming_all_cities_is_naming_none(store: Store, text: str) -> None:
    config = replace(CONFIG, stages={"some": StageConfig(cities=text)})
    assert Split.of(store, config, "some") == Split.of(store, config)
    assert stage_cities(config, "some", store.cities) == ["AAA", "BBB"]


def test_a_city_that_is_not_there_is_refused_with_those_that_are(store: Store) -> None:
    config = replace(CONFIG, stages={"tune": StageConfig(cities="BBB,AA")})
    with pytest.raises(UserError, match=r"^stages\.tune\.cities: there is no city 'AA' among .*; choose of AAA, BBB$"):
        Split.of(store, config, "tune")


def test_a_fold_without_a_tile_of_the_stages_cities_is_refused(store: Store) -> None:
    config = replace(CONFIG, folds=13)
    alone = [fold for fold in range(13) if cities_of(store, Split.of(store, replace(config, fold=fold)).validation)]
    assert alone == list(range(13))
    fold = next(f for f in alone if cities_of(store, Split.of(store, replace(config, fold=f)).validation) == {"AAA"})
    with pytest.raises(UserError) as refusal:
        Split.of(store, replace(config, fold=fold), "own")
    assert f"fold {fold} of 13 leaves 7 tiles of the cities of stages.own.cities to train on and 0" in str(
        refusal.value
    )
    assert "other cities for stage own" in str(refusal.value)
