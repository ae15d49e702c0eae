"""Which held-out tiles are shown, when, and that they are the same whoever has predicted them."""

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agl_core.data.store import Store, StoreEntry
from agl_core.inference.predictor import Predictor
from agl_core.reporting.pictures.tile import SIDE, smaller_heights, smaller_image, smaller_shape
from agl_core.reporting.pictures.tiles import read_about, read_tiles
from agl_core.reporting.tensorboard.scalars import Pictures
from agl_core.training import gallery as module
from agl_core.training.gallery import PARTS, Gallery, choose, worth_a_picture
from agl_core.training.parallel import Parallel
from agl_core.training.validation import validate
from tests.inference.fakes import SurroundingsNet

SHOWN = [12, 8, 9, 7, 2, 5]  # held-out tiles of the tiny store, in some order


def entries(cities: str) -> list[StoreEntry]:
    return [StoreEntry(f"{city}_{number}", city, 0.5, 8, 8, None, None, None) for number, city in enumerate(cities)]


def test_the_tiles_are_spread_over_the_cities_and_do_not_depend_on_their_order() -> None:
    known = entries("AAAAAAAABBBC")
    everything = list(range(len(known)))
    chosen = choose(known, everything, 4)
    assert sorted(known[number].city for number in chosen) == ["A", "A", "B", "C"]
    assert choose(known, everything[::-1], 4) == chosen
    assert choose(known, everything, 2) == chosen[:2]
    assert choose(known, [3, 9], 4) in ([3, 9], [9, 3])
    assert choose(known, everything, 0) == []


def test_the_tiles_are_those_of_their_names_wherever_they_lie_in_the_store() -> None:
    known = entries("AAABBB")
    names = [known[number].id for number in choose(known, range(6), 3)]
    turned = known[::-1]
    assert [turned[number].id for number in choose(turned, range(6), 3)] == names


def test_the_first_the_last_and_some_new_bests_get_a_picture() -> None:
    total, last, shown = 1550 * 10, None, []
    for step in range(10, total + 1, 10):  # every validation is better than all before
        if worth_a_picture(step, total, last, True):
            shown.append(step)
        last = step
    assert (shown[0], shown[-1]) == (10, total)
    assert PARTS <= len(shown) <= PARTS + 2
    assert worth_a_picture(total, total, 10, False)
    assert not worth_a_picture(total - 10, total, 10, False)


@pytest.mark.parametrize("shape", [(2048, 2048), (700, 1030), (513, 3), (60, 64), (1, 4000)])
def test_what_travels_has_the_shape_that_all_expect(shape: tuple[int, int]) -> None:
    heights = np.arange(shape[0] * shape[1], dtype=np.uint32).reshape(shape).astype(np.uint16)
    small = smaller_heights(heights)
    assert small.shape == smaller_shape(shape) == smaller_image(np.zeros((*shape, 3), np.uint8)).shape[:2]
    assert max(small.shape) <= max(SIDE, 1)
    packed = module._packed(module.Shown(small, module.Pose(0.1, 0.7)), small.shape)
    back = module._unpacked(packed, small.shape)
    assert (back.agl_cm == small).all()
    assert back.pose == module.Pose(0.1, 0.7)
    assert module._packed(None, small.shape).shape == packed.shape


def _predict(rank: int, world_size: int, path: Path, folder: Path, results: Any) -> None:
    torch.set_num_threads(1)
    store = Store(path)
    predictor = Predictor(SurroundingsNet(("AAA", "BBB")), {"default": 200.0})
    with Parallel(rank, world_size, rank, f"file://{folder}/meeting" if world_size > 1 else None) as parallel:
        gallery = Gallery(store, SHOWN, 4, parallel, Pictures(None, "first", 0, 1), folder / "tiles")
        gallery.forget()
        score = validate(predictor, store, SHOWN, parallel, look=gallery.look())
        shown = gallery.collect(0)
        assert score is not None
        if parallel.first:
            gallery.write(gallery.tiles_with(shown), 5, score.score)
        results.put((score.score, len(shown)))
        parallel.barrier()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_any_number_of_processes_shows_the_same_tiles(tiny_store: Path, tmp_path: Path, world_size: int) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.preloaded"])
    results = context.Queue()
    processes = [
        context.Process(target=_predict, args=(rank, world_size, tiny_store, tmp_path, results))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    # What each tile is by itself, without other processes.
    store = Store(tiny_store)
    predictor = Predictor(SurroundingsNet(("AAA", "BBB")), {"default": 200.0})
    alone = validate(predictor, store, SHOWN, Parallel())
    assert alone is not None
    assert sorted(found) == sorted([(alone.score, 4)] + [(alone.score, 0)] * (world_size - 1))
    tiles = read_tiles(tmp_path / "tiles")
    assert read_about(tmp_path / "tiles") == {"step": 5, "score": alone.score}
    assert [tile.id for tile in tiles] == [store.entries[number].id for number in choose(store.entries, SHOWN, 4)]
    for tile, number in zip(tiles, choose(store.entries, SHOWN, 4), strict=True):
        rgb, agl = store.read_tile(number)
        prediction = predictor.predict(rgb, tile.city, store.entries[number].gsd)
        assert (tile.predicted_cm == prediction.agl_cm).all()
        assert (tile.truth_cm == agl).all()
        assert tile.rgb is not None
        assert (tile.rgb == rgb).all()
        assert tile.prediction == prediction.pose
        assert (tile.truth is None) == (store.entries[number].scale is None)
    assert sum(tile.truth is None for tile in tiles) == 1
