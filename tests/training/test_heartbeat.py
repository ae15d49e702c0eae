"""A process that stops beating is noticed by the others; one that leaves in order is not."""

import multiprocessing
import os
import signal
import threading
from pathlib import Path

from torch.distributed import FileStore, HashStore

from agl_core.training.heartbeat import Heartbeat


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def pair(limit: float = 15.0) -> tuple[Clock, Heartbeat, Heartbeat]:
    clock, store = Clock(), HashStore()
    one, two = (Heartbeat(store, rank, 2, lambda: None, limit=limit, clock=clock) for rank in range(2))
    return clock, one, two


def test_processes_that_beat_are_not_lost_however_long_it_takes() -> None:
    clock, one, two = pair()
    for _ in range(50):
        clock.now += 10
        assert not one.look()
        assert not two.look()


def test_a_process_that_stops_beating_is_lost_after_the_limit() -> None:
    clock, one, two = pair()
    assert not two.look()
    assert not one.look()
    clock.now = 15.0
    assert not one.look()
    clock.now = 15.1
    assert one.look()


def test_a_process_that_has_not_begun_has_the_whole_limit() -> None:
    clock, one, _ = pair()
    clock.now = 100.0
    assert not one.look()
    clock.now = 115.1
    assert one.look()


def test_a_process_that_left_in_order_is_not_lost() -> None:
    clock, one, two = pair()
    two.start()
    assert not one.look()
    two.close()
    clock.now = 1000.0
    assert not one.look()


def test_a_process_that_cannot_go_on_is_lost_at_once_even_if_it_leaves_in_order() -> None:
    _, one, two = pair()
    two.start()
    assert not one.look()
    two.fail()
    assert one.look()
    two.close()
    assert one.look()


def test_who_cannot_go_on_need_not_reach_the_others() -> None:
    Heartbeat(Gone(), 1, 2, lambda: None).fail()


class Gone:
    def add(self, key: str, amount: int) -> int:
        raise RuntimeError("Connection reset by peer")


def test_a_store_out_of_reach_is_the_first_process_lost() -> None:
    beat = Heartbeat(Gone(), 1, 2, lambda: None)
    assert beat.look()


def _beat(path: Path, connection: object) -> None:
    Heartbeat(FileStore(str(path), 2), 1, 2, lambda: None, period=0.05).start()
    connection.send("beating")  # type: ignore[attr-defined]
    signal.pause()


def test_a_killed_process_is_noticed_by_the_thread_of_another(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    other = context.Process(target=_beat, args=(tmp_path / "store", there))
    other.start()
    noticed = threading.Event()
    beat = Heartbeat(FileStore(str(tmp_path / "store"), 2), 0, 2, noticed.set, period=0.05, limit=1.0)
    assert here.recv() == "beating"
    beat.start()
    assert other.pid is not None
    os.kill(other.pid, signal.SIGKILL)
    assert noticed.wait(60)
    assert beat.lost
    beat.close()
    other.join()
