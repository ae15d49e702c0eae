"""Batches step by step, through the death of those who read them."""

import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from agl_core.config import AugmentConfig, StageConfig
from agl_core.data import feed as feed_module
from agl_core.data.dataset import Batch, CropDataset
from agl_core.data.feed import Feed
from agl_core.data.order import Order
from agl_core.data.store import Store

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


def take_all(source: Feed, count: int) -> list[list[Batch]]:
    try:
        return [batch for _ in range(count) if (batch := source.take()) is not None]
    finally:
        source.close()


def workers_of(source: Feed) -> list[int]:
    return [process.pid for process in source._loader._workers]  # type: ignore[union-attr]


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
    found = [source.take(), source.take()]
    for process in workers_of(source):
        os.kill(process, signal.SIGKILL)
    found += [source.take() for _ in range(STEPS - 2)]
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
