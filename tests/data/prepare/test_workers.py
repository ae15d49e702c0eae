"""Work on tiles in other processes: in order, bounded, deaf to warnings, and not stopped by a death."""

import multiprocessing
import os
import signal
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from agl_core.data.prepare.workers import ATTEMPTS, in_order
from agl_core.errors import UserError


def noted(item: int, folder: Path, slow: int = -1) -> tuple[int, int]:
    """Leave a file that says when the item was worked on."""
    with (folder / str(item)).open("a") as file:
        file.write("x")
    if item == slow:
        time.sleep(0.5)
    return item, os.getpid()


def dying(item: int, folder: Path, fatal: int, times: int) -> int:
    """Be killed at one item, so many times."""
    if item == fatal and len(list(folder.iterdir())) < times:
        (folder / str(time.monotonic_ns())).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def failing(item: int) -> int:
    return 1 // (item - 3)


def pid(item: int) -> int:
    return os.getpid()


def warned(item: int) -> int:
    """Get every warning that a cluster sends."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        os.kill(os.getpid(), number)
    return item


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_answers_come_in_order_whoever_is_slow(tmp_path: Path, count: int) -> None:
    found = list(in_order(partial(noted, folder=tmp_path, slow=1), range(7), count, str))
    assert [item for item, _ in found] == list(range(7))
    assert len({process for _, process in found}) == min(count, 7)
    assert (os.getpid() in {process for _, process in found}) == (count == 1)
    assert not multiprocessing.active_children()


def test_no_work_starts_no_process(tmp_path: Path) -> None:
    assert list(in_order(pid, [], 4, str)) == []


def test_processes_do_not_run_ahead_of_who_takes_the_answers(tmp_path: Path) -> None:
    with closing(in_order(partial(noted, folder=tmp_path), range(100), 2, str)) as answers:
        next(answers)
        time.sleep(1)
        assert len(list(tmp_path.iterdir())) <= 5  # the one taken, and of each process one ready, one in the making
    assert not multiprocessing.active_children()


def test_a_cluster_s_warning_to_all_processes_does_not_end_those_that_work() -> None:
    assert list(in_order(warned, range(6), 2, str)) == list(range(6))


@pytest.mark.parametrize("fatal", [0, 3, 6])
def test_a_process_that_is_killed_is_replaced_and_no_answer_is_lost_or_doubled(tmp_path: Path, fatal: int) -> None:
    work = partial(dying, folder=tmp_path, fatal=fatal, times=ATTEMPTS - 1)
    assert list(in_order(work, range(7), 2, str)) == list(range(7))
    assert len(list(tmp_path.iterdir())) == ATTEMPTS - 1


def test_an_item_that_kills_its_process_again_and_again_is_named_in_one_sentence(tmp_path: Path) -> None:
    work = partial(dying, folder=tmp_path, fatal=4, times=100)
    with closing(in_order(work, range(7), 2, str)) as answers:
        assert [next(answers) for _ in range(4)] == [0, 1, 2, 3]
        with pytest.raises(UserError, match=r"was killed 3 times at tile 4, by SIGKILL.*--workers below 2.*is kept$"):
            next(answers)
    assert not multiprocessing.active_children()


def test_a_defect_in_another_process_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)at tile 3.*ZeroDivisionError"):
        list(in_order(failing, range(7), 2, str))
    assert not multiprocessing.active_children()


def test_processes_are_killed_whatever_they_do_when_nobody_wants_their_answers() -> None:
    with closing(in_order(time.sleep, [0, 3600, 3600, 3600], 2, str)) as answers:
        next(answers)
    assert not multiprocessing.active_children()
