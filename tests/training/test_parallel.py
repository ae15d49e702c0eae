"""A process leaves its group, however it leaves it."""

import multiprocessing
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from agl_core.durable.exits import InterruptedRunError, PeerLostError
from agl_core.durable.lease import LeaseLostError
from agl_core.errors import UserError
from agl_core.training.memory import MemoryShortageError
from agl_core.training.parallel import Parallel


class LeaveError(Exception):
    """Stands for whatever ends training in the middle."""


def _enter_and_leave(rank: int, folder: Path, times: int) -> None:
    torch.set_num_threads(1)
    for number in range(times):
        try:
            with Parallel(rank, 2, rank, f"file://{folder}/{number}") as parallel:
                model = parallel.wrap(torch.nn.Linear(4, 4))
                parallel.sum(torch.zeros(8))
                raise LeaveError(model)  # which outlives the group
        except LeaveError:
            pass


def test_an_error_with_a_reduction_just_behind_it_never_hangs_the_process(tmp_path: Path) -> None:
    """Each time is a race that is lost about once in fifty if the model may be the last to hold the group."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_enter_and_leave, args=(rank, tmp_path, 200)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0, 0]


def _pulse(rank: int, folder: Path, found: Any) -> None:
    with Parallel(rank, 2, rank, f"file://{folder}/meeting") as parallel:
        store = parallel._pulse_store()
        store.add(f"beat/{rank}", rank + 1)
        parallel.barrier()
        found.put([store.add(f"beat/{other}", 0) for other in range(2)])
        parallel.barrier()


def test_processes_that_met_in_a_file_beat_in_memory(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    processes = [context.Process(target=_pulse, args=(rank, tmp_path, found)) for rank in range(2)]
    for process in processes:
        process.start()
    assert [found.get(timeout=120) for _ in processes] == [[1, 2], [1, 2]]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def test_who_has_given_up_on_the_others_exchanges_nothing_more() -> None:
    parallel = Parallel(0, 2)
    parallel.abandon()
    with pytest.raises(PeerLostError, match="has given up on the others"):
        parallel.barrier()


def test_a_job_that_has_asked_for_gpus_does_not_make_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Parallel().device.type == "cpu"
    with pytest.raises(RuntimeError, match=r"no GPU can be used on .*, though this job has asked for some"):
        Parallel(needs_gpu=True)


class Pulse:
    """Stands for the heartbeat that processes with GPUs have."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def fail(self) -> None:
        self.said.append("failed")

    def close(self) -> None:
        self.said.append("left")


def test_who_cannot_go_on_tells_the_others_and_gives_up_on_them() -> None:
    parallel, pulse = Parallel(0, 2), Pulse()
    parallel._heartbeat = cast(Any, pulse)
    parallel.fail()
    assert pulse.said == ["failed"]
    with pytest.raises(PeerLostError, match="has given up on the others"):
        parallel.barrier()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryShortageError("8 crops"), ["failed", "left"]),
        (RuntimeError("a defect"), ["failed", "left"]),
        (UserError("all of them"), ["left"]),
        (InterruptedRunError("TERM", 7), ["left"]),
        (PeerLostError("rank 1 is gone"), ["left"]),
        (LeaseLostError("taken over"), ["left"]),
        (None, ["left"]),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, list) else value[0],
)
def test_who_fails_by_itself_does_not_leave_in_order(error: Exception | None, said: list[str]) -> None:
    parallel, pulse = Parallel(0, 2), Pulse()
    parallel._heartbeat = cast(Any, pulse)
    parallel.__exit__(None if error is None else type(error), error, None)
    assert pulse.said == said
