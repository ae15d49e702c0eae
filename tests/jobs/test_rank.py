"""One rank under srun: where it meets the others, and what it does for a conductor that was killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agl_core.durable.exits import INTERRUPTED, InterruptedRunError
from agl_core.durable.guard import Guard
from agl_core.errors import UserError
from agl_core.files import read_json
from jobs import conductor, rank
from jobs import work as works
from jobs.attempt import RankEnd, read_ends, recorded
from jobs.failure import MISTAKE
from jobs.rank import ATTEMPT, CONDUCTOR, GPUS, MOST_ATTEMPTS, PORT, WARNINGS, main, meeting
from jobs.stages import Place

TWO_NODES = {"SLURM_NNODES": "2", PORT: "20017"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({PORT: "20017"}, "tcp://127.0.0.1:20017"),
        ({"SLURM_NNODES": "1", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7", PORT: "20017"}, "tcp://127.0.0.1:20017"),
        ({**TWO_NODES, "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7"}, "tcp://10.0.0.7:20017"),
        ({**TWO_NODES, "SLURM_LAUNCH_NODE_IPADDR": "::ffff:10.0.0.7"}, "tcp://10.0.0.7:20017"),
        ({**TWO_NODES, "SLURM_LAUNCH_NODE_IPADDR": "fd00::7"}, "tcp://[fd00::7]:20017"),
    ],
    ids=["no word of nodes", "one node", "two nodes", "IPv4 in IPv6", "IPv6"],
)
def test_ranks_meet_on_this_machine_or_where_the_first_of_them_is(environment: dict[str, str], expected: str) -> None:
    assert meeting(environment) == expected


class Left(BaseException):
    """In the place of the end of the process."""


def leave(code: int) -> None:
    raise Left(code)


@pytest.fixture
def stood_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """For whom rank 0 has stood in; the signals that a rank holds back are let through again afterwards."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(conductor, "stand_in", lambda *place: calls.append(place))
    monkeypatch.setattr(rank, "recorded", partial(recorded, leave=leave))
    handlers = {number: signal.getsignal(number) for number in WARNINGS}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield calls
    for number, handler in handlers.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def dead() -> int:
    """The id of a process that is no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def be(
    monkeypatch: pytest.MonkeyPatch, folder: Path, error: BaseException | None, number: int = 0, boss: int | None = None
) -> tuple[int, list[Any]]:
    """Be rank `number` of two, whose work ends with `error`; its exit code, and what it was to do."""
    done: list[Any] = []

    def carry_out(*arguments: Any, **options: Any) -> bool:
        done.append((*arguments, options))
        if error is not None:
            raise error
        return False

    monkeypatch.setattr(works, "carry_out", carry_out)
    slurm = {"SLURM_PROCID": str(number), "SLURM_NTASKS": "2", "SLURM_LOCALID": str(number), "SLURM_NNODES": "1"}
    slurm |= {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "2", ATTEMPT: "3", GPUS: "4"}
    for name, value in {**slurm, PORT: "20017", CONDUCTOR: str(boss or os.getpid())}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Left) as left:
        main(Path("runs/first"), "pretrain", "stage", folder)
    return left.value.args[0], done


def test_a_rank_does_its_part_and_says_that_it_is_done(tmp_path: Path, stood_in, monkeypatch) -> None:
    code, done = be(monkeypatch, tmp_path, None, number=1)
    assert code == 0
    place = Place(1, 2, 1, "tcp://127.0.0.1:20017", needs_gpu=True, job="17", turn=2 * MOST_ATTEMPTS + 3)
    assert done == [(Path("runs/first"), "pretrain", "stage", place, {"watch": True})]
    assert read_ends(tmp_path, 2) == [None, RankEnd(0)]


def test_the_only_rank_meets_nobody(tmp_path: Path, stood_in, monkeypatch) -> None:
    monkeypatch.setattr(works, "carry_out", lambda *arguments, **_: done.append(arguments[3]))
    done: list[Place] = []
    slurm = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_JOB_ID": "17", ATTEMPT: "0", CONDUCTOR: "1"}
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Left):
        main(Path("runs/first"), "report", "report", tmp_path)
    assert done == [Place(0, 1, 0, None, job="17")]


def test_a_rank_that_was_interrupted_leaves_the_rest_to_its_conductor(tmp_path: Path, stood_in, monkeypatch) -> None:
    code, _ = be(monkeypatch, tmp_path, InterruptedRunError("TERM", 7))
    assert code == INTERRUPTED
    assert stood_in == []
    assert read_ends(tmp_path, 1) == [RankEnd(INTERRUPTED, "interrupted by TERM; step 7 is saved", "TERM")]


def test_rank_0_stands_in_for_a_conductor_that_was_killed(tmp_path: Path, stood_in, monkeypatch) -> None:
    code, _ = be(monkeypatch, tmp_path, InterruptedRunError("TERM", 7), boss=dead())
    assert code == INTERRUPTED
    assert stood_in == [(Path("runs/first"), "pretrain", "stage", 3)]


@pytest.mark.parametrize(
    ("error", "number"),
    [(InterruptedRunError("TERM", 7), 1), (None, 0), (UserError("no store"), 0), (RuntimeError("defect"), 0)],
    ids=["rank 1", "done", "mistake", "defect"],
)
def test_nobody_else_stands_in(tmp_path: Path, stood_in, monkeypatch, error, number: int) -> None:
    be(monkeypatch, tmp_path, error, number, boss=dead())
    assert stood_in == []


def test_a_conductor_of_another_user_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert rank._lives(1)


def test_a_warning_during_the_imports_waits_for_who_knows_what_to_do(tmp_path: Path, stood_in, monkeypatch) -> None:
    be(monkeypatch, tmp_path, None)
    assert {signal.SIGTERM, signal.SIGUSR2} <= signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_real_rank_of_a_run_that_is_gone_ends_with_the_code_of_a_mistake(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.rank", str(tmp_path / "gone"), "pretrain", "stage", str(tmp_path)]
    slurm = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_JOB_ID": "17", ATTEMPT: "0"}
    environment = {**os.environ, **slurm, CONDUCTOR: str(os.getpid())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == MISTAKE
    assert done.stdout.startswith("error: ")
    assert str(tmp_path / "gone") in read_json(tmp_path / "rank0.json")["text"]


def test_warnings_do_nothing_any_more_when_the_guard_has_gone(tmp_path: Path, stood_in, monkeypatch) -> None:
    error = InterruptedRunError("TERM", 7)

    def carry_out(*_: Any, **__: Any) -> bool:
        with Guard():
            pass
        os.kill(os.getpid(), signal.SIGTERM)  # srun ends the ranks whose peer was a little faster
        raise error

    be(monkeypatch, tmp_path, None)
    monkeypatch.setattr(works, "carry_out", carry_out)
    with pytest.raises(Left) as left:
        main(Path("runs/first"), "pretrain", "stage", tmp_path)
    assert left.value.args == (INTERRUPTED,)
