"""Batches step by step, through the death of those who read them."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from agl_core.config import AugmentConfig, StageConfig
from agl_core.data import feed as feed_module
from agl_core.data.batch import KEPT, Batch
from agl_core.data.dataset import CropDataset, batches
from agl_core.data.feed import Feed
from agl_core.data.order import Order
from agl_core.data.store import Store
from agl_core.errors import UserError

STEPS = 6


@pytest.fixture
def dataset(tiny_store: Path) -> CropDataset:
    stage = StageConfig(crop=32, batch=8, micro_batch=2, augment=AugmentConfig(rot90=1.0))
    return CropDataset(Store(tiny_store), range(13), stage, 0, 0)


def feed(dataset: CropDataset, workers: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Feed:
    return Feed(dataset, Order(0, 0, 13, 8), start, STEPS, rank, world_size, workers)


def same(one: list[Batch], two: list[Batch]) -> bool:
    return len(one) == len(two) and all(
        torch.equal(a.nan_to_num() if a.is_floating_point() else a, b.nan_to_num() if b.is_floating_point() else b)
        for first, second in zip(one, two, strict=True)
        for a, b in zip(first, second, strict=True)
    )


def copied(step: list[Batch] | None) -> list[Batch] | None:
    """What is left when the next step is taken."""
    return None if step is None else [Batch(*(part.clone() for part in batch)) for batch in step]


def take_all(source: Feed, count: int) -> list[list[Batch]]:
    try:
        return [step for _ in range(count) if (step := copied(source.take())) is not None]
    finally:
        source.close()


def workers_of(source: Feed) -> list[int]:
    return [process.pid for process in source._loader.workers if process.pid]  # type: ignore[union-attr]


def test_steps_are_the_same_with_and_without_workers_and_from_anywhere(dataset: CropDataset) -> None:
    alone = take_all(feed(dataset, 0), STEPS)
    assert len(alone) == STEPS
    assert all(len(step) == 4 for step in alone)
    read_ahead = take_all(feed(dataset, 2), STEPS)
    assert all(same(one, two) for one, two in zip(alone, read_ahead, strict=True))
    later = take_all(feed(dataset, 2, start=4), 2)
    assert same(later[0], alone[4])
    assert same(later[1], alone[5])


def test_processes_share_the_micro_batches_of_a_step(dataset: CropDataset) -> None:
    whole = take_all(feed(dataset, 0), 1)[0]
    for rank in range(3):
        own = take_all(feed(dataset, 0, rank=rank, world_size=3), 1)[0]
        assert same(own, whole[rank::3])


def test_a_killed_worker_costs_no_batch(dataset: CropDataset) -> None:
    alone = take_all(feed(dataset, 0), STEPS)
    source = feed(dataset, 2)
    found = [copied(source.take()), copied(source.take())]
    for process in workers_of(source):
        os.kill(process, signal.SIGKILL)
    found += [copied(source.take()) for _ in range(STEPS - 2)]
    told = source.notes()
    source.close()
    assert all(step is not None and same(step, other) for step, other in zip(found, alone, strict=True))
    assert len(told) == 1
    assert "data loading goes on with new processes" in told[0]
    assert source.notes() == []


def test_workers_that_die_again_and_again_end_the_run(dataset: CropDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "MOST_DEATHS", 1)  # each takes seconds to be noticed
    monkeypatch.setattr(CropDataset, "__getitems__", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    source = feed(dataset, 1)
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        source.take()
    assert len(source.notes()) == 1
    source.close()


def test_an_error_in_a_worker_is_raised_where_the_batch_is_taken(
    dataset: CropDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("tile x")

    monkeypatch.setattr(CropDataset, "__getitems__", broken)
    source = feed(dataset, 1)
    with pytest.raises(ValueError, match="tile x"):
        source.take()
    source.close()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_damaged_tile_is_one_sentence_where_its_step_is_taken(
    dataset: CropDataset, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    order = Order(0, 0, 13, 8)
    bad = order.batch(1)[3].sample
    assert bad not in {key.sample for key in order.batch(0)}
    whole = take_all(feed(dataset, 0), 1)[0]
    real = Store.read_into

    def damaged(store: Store, index: int, *where: Any) -> None:
        if index == bad:
            raise UserError(f"tile {store.entries[index].id} is damaged")
        real(store, index, *where)

    monkeypatch.setattr(Store, "read_into", damaged)
    source = feed(dataset, workers)
    before = source.take()
    assert before is not None
    assert same(before, whole)
    with pytest.raises(UserError) as refused:
        source.take()
    assert str(refused.value) == f"tile {dataset.store.entries[bad].id} is damaged"
    assert source.notes() == []
    source.close()


def test_code_is_loaded_once_before_workers_are_forked_and_not_without_them(
    dataset: CropDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    plain = feed_module.batches
    monkeypatch.setattr(CropDataset, "load_code", lambda _: done.append("load"))
    monkeypatch.setattr(feed_module, "batches", lambda *given: (done.append("fork"), plain(*given))[1])
    for workers, expected in ((2, ["load", "fork"]), (0, ["fork"])):
        done.clear()
        source = feed(dataset, workers)
        source.take()
        source.close()
        assert done == expected


def test_a_worker_uses_one_thread(dataset: CropDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def threads(*_: object) -> None:
        from agl_core.opencv import cv2

        raise UserError(f"torch {torch.get_num_threads()}, OpenCV {cv2.getNumThreads()}")

    monkeypatch.setattr(CropDataset, "fill", threads)
    source = feed(dataset, 1)
    with pytest.raises(UserError, match=r"^torch 1, OpenCV 1$"):
        source.take()
    source.close()


def test_waiting_for_workers_that_hang_can_be_broken_off_and_they_are_ended(
    dataset: CropDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CropDataset, "__getitems__", lambda *_: threading.Event().wait())
    source = feed(dataset, 1)
    asked: list[int] = []

    def give_up() -> bool:
        asked.append(1)
        return len(asked) > 3

    assert source.take(give_up) is None
    processes = workers_of(source)
    source.close()
    assert not any(Path(f"/proc/{process}").exists() for process in processes)


def test_warnings_to_the_workers_do_not_reach_them(dataset: CropDataset) -> None:
    source = feed(dataset, 2)
    source.take()
    for process in workers_of(source):
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            os.kill(process, number)
    for _ in range(STEPS - 1):
        assert source.take() is not None
    assert source.notes() == []
    source.close()


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError(104, "reset"), FileNotFoundError(2, "no socket")])
def test_a_worker_that_dies_while_it_hands_on_a_batch_costs_none(
    dataset: CropDataset, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    alone = take_all(feed(dataset, 0), STEPS)
    taken, whole = [0], Feed._step

    def broken_once(source: Feed) -> list[Batch]:
        taken[0] += 1
        if taken[0] == 3:
            os.kill(workers_of(source)[0], signal.SIGKILL)
            raise error
        return whole(source)

    monkeypatch.setattr(Feed, "_step", broken_once)
    source = feed(dataset, 1)
    found = take_all(source, STEPS)
    assert all(same(step, other) for step, other in zip(found, alone, strict=True))
    assert source.notes() == ["a data loading process was lost while it handed on a batch; data loading goes on with "
                              "new processes"]  # fmt: skip


def test_a_broken_line_of_another_kind_is_an_error(dataset: CropDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(source: Feed) -> list[Batch]:
        raise FileNotFoundError(2, "the store is gone")

    monkeypatch.setattr(feed_module, "NOTICED", 0.1)
    monkeypatch.setattr(Feed, "_step", broken)
    source = feed(dataset, 1)
    with pytest.raises(FileNotFoundError):
        source.take()
    source.close()


def test_memory_is_used_again_when_its_step_is_over_and_not_before(dataset: CropDataset) -> None:
    order = Order(0, 0, 13, 8)
    alone = take_all(Feed(dataset, order, 0, 60, 0, 1, 0), 60)
    source = Feed(dataset, order, 0, 60, 0, 1, 1)
    places = set()
    for step in alone:
        found = source.take()
        assert found is not None
        time.sleep(0.005)  # long enough for the worker to write elsewhere what comes next
        assert same(found, step)
        places |= {os.fstat(batch.image.untyped_storage()._share_fd_cpu_()[0]).st_ino for batch in found}
    source.close()
    assert 4 <= len(places) <= KEPT < 60 * 4


def test_batches_that_nobody_gives_back_stay_whole(dataset: CropDataset) -> None:
    order = Order(0, 0, 13, 8)
    held = list(batches(dataset, order, 0, 20, workers=1))
    alone = list(batches(dataset, order, 0, 20))
    assert len(held) == 80 > KEPT
    assert same(held, alone)
