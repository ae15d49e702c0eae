"""Lives of a small run in processes of their own, struck at places that are named and counted.

A strike is data: at the n-th call of a named function in one rank, these processes get this signal. So a failure names
what happened, and it happens again.
"""

import faulthandler
import functools
import itertools
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agl_core.config import CheckpointConfig, TrainConfig
from agl_core.durable import checkpoint
from agl_core.durable.chain import ChainLog, first_difference, read_chains
from agl_core.durable.exits import INTERRUPTED, PEER_LOST, InterruptedRunError, PeerLostError
from agl_core.durable.guard import Guard
from agl_core.durable.snapshot import Snapshot
from agl_core.inference.predictor import Predictor
from agl_core.reporting.pictures import tiles
from agl_core.reporting.tensorboard.scalars import Scalars
from agl_core.training import best, endings
from agl_core.training.build import Origin
from agl_core.training.gallery import Gallery
from agl_core.training.parallel import Parallel
from agl_core.training.step import OptimizerStep
from agl_core.training.trainer import train_stage
from agl_core.training.workbench import Workbench
from tests.training import runs

LIMIT = 60.0  # seconds after which a life is taken for hung; none comes near it
PATIENCE = 10.0  # seconds for the kernel to end the workers of a process that was killed
KEYBOARD = 130  # exit code after Ctrl-C

# Processes are forked from a server that has imported this module once, torch included, and has done nothing else.
_context: Any = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.training.preloaded"])

POINTS: dict[str, tuple[Any, str, str]] = {
    "start": (Origin, "build", "before"),
    "ready": (Workbench, "announce", "before"),
    "compute": (OptimizerStep, "compute", "after"),
    "chain": (ChainLog, "step", "before"),
    "commit": (OptimizerStep, "commit", "after"),
    "validation": (Predictor, "predict", "before"),
    "best": (best, "save_weights", "before"),
    "snapshot": (Snapshot, "take", "after"),
    "write": (checkpoint, "write_tensors", "after"),
    "publish": (checkpoint, "_publish", "before"),
    "retire": (checkpoint, "retire", "before"),
    "finish": (endings, "_last_weights", "before"),
    "record": (endings, "_record", "before"),
    "told": (Scalars, "take", "before"),
    "picture": (Gallery, "draw", "before"),
    "tiles": (tiles, "write_json", "before"),
}
"""The function that stands for each place of a run, and on which side of it a strike falls. Only the first rank comes
to those from "best" on, as long as no other has to save in its stead."""


@dataclass(frozen=True)
class Strike:
    """At the `call`-th time (from 1) that `rank` comes to `point`, `victims` get `signal`, `times` times.

    victims: "self", "other" (the next rank), "all" ranks, or "everything": all ranks with all of their processes.
    """

    point: str
    call: int = 1
    rank: int = 0
    victims: str = "self"
    signal: int = signal.SIGKILL
    times: int = 1

    def __str__(self) -> str:
        name = signal.Signals(self.signal).name.removeprefix("SIG") + (f" x {self.times}" if self.times > 1 else "")
        return f"{name} to {self.victims} at {self.point} {self.call} of rank {self.rank}"


@dataclass
class Life:
    """One incarnation after its end.

    codes: exit code by rank, negative for a signal; begun: the step it continued from by rank, -1 if it did not come
    so far; reached: the last step that a rank had taken; struck: how many strikes fell; left: processes that were
    still there when the ranks had ended; logs: all that the ranks of this and earlier lives have printed.
    """

    codes: list[int]
    begun: list[int]
    reached: list[int]
    struck: int
    left: list[int]
    logs: str


@dataclass
class _Shared:
    """What the processes of a life and its observer see of each other; by rank."""

    pids: Any
    begun: Any
    reached: Any
    struck: Any


def config(store: Path, /, steps: int = 4, every: str = "1 step", **changes: Any) -> TrainConfig:
    """The run of `runs.config` with the smallest network that has convolutions, batch norms and dropout."""
    saving = CheckpointConfig(every=every, interval="never")
    return runs.config(store, steps=steps, **{"encoder": "tu-test_efficientnet", "checkpoint": saving, **changes})


def live(
    config: TrainConfig,
    run_dir: Path,
    *strikes: Strike,
    world_size: int = 2,
    grace: float = 30.0,
    keyboard: bool = False,
) -> Life:
    """Run stage "first" of `config` in `world_size` processes until all have ended, however they end."""
    run_dir.mkdir(parents=True, exist_ok=True)
    meeting = run_dir / f"rendezvous_{len(list(run_dir.glob('rendezvous_*')))}"
    meeting.touch()
    # Without locks: a process that is killed while it holds one would never let it go.
    shared = _Shared(*(_context.Array("i", [first] * world_size, lock=False) for first in (-1, -1, -1, 0)))
    how = (strikes, shared, grace, keyboard)
    processes = [
        _context.Process(target=_rank, args=(config, run_dir, (rank, world_size, f"file://{meeting}"), *how))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + LIMIT
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    hung = [process for process in processes if process.is_alive()]
    for process in hung:
        os.kill(process.pid, signal.SIGABRT)  # its stacks go to the log
    for process in processes:
        process.join()
    left = _left(shared.pids)
    logs = "\n".join(path.read_text() for path in sorted(run_dir.glob("rank*.log")))
    assert not hung, f"hung after {', '.join(map(str, strikes))}\n{logs}"
    codes = [process.exitcode for process in processes]
    return Life(codes, list(shared.begun), list(shared.reached), sum(shared.struck), left, logs)


def assert_same_result(run_dir: Path, whole: Path) -> None:
    """The run in `run_dir` did and left, bit for bit, what the undisturbed one in `whole` did and left."""
    chains, (undisturbed,) = read_chains(run_dir, "first"), read_chains(whole, "first")
    difference = first_difference(chains, undisturbed)
    assert difference is None, str(difference)
    for which in ("last", "best"):
        assert runs.same_bits(runs.weights(run_dir, which=which), runs.weights(whole, which=which)), which
    record = Path("stages") / "first.json"
    assert (run_dir / record).read_bytes() == (whole / record).read_bytes()


def half_written(run_dir: Path) -> list[Path]:
    """What a save that did not come to its end has left behind."""
    return [path for path in run_dir.rglob("*") if path.name.endswith(".part")]


def checkpoints(run_dir: Path) -> set[int]:
    """The steps of which there are checkpoints."""
    return {int(path.name.removeprefix("step_")) for path in run_dir.glob("checkpoints/first/step_*")}


def events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """All events of a kind, also of what was done twice."""
    lines = (run_dir / "events.jsonl").read_text().splitlines()
    return [event for line in lines if (event := json.loads(line))["kind"] == kind]


def _rank(
    config: TrainConfig,
    run_dir: Path,
    place: tuple[int, int, str],
    strikes: tuple[Strike, ...],
    shared: _Shared,
    grace: float,
    keyboard: bool,
) -> None:
    """One process of a life; it ends with the exit codes of a submitted one."""
    rank, world_size, address = place
    os.setpgid(0, 0)  # its workers are found by this
    # Workers as in a program of its own: a child of a fork server would ask the server for them.
    multiprocessing.set_start_method("fork", force=True)
    log = os.open(run_dir / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(log, stream)
    faulthandler.enable()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    shared.pids[rank] = os.getpid()
    _observe(rank, shared)
    for strike in strikes:
        if strike.rank == rank:
            _arm(strike, shared)
    try:
        with Guard(grace, keyboard=keyboard) as guard, Parallel(rank, world_size, rank, address) as parallel:
            train_stage(config, "first", run_dir, parallel, guard=guard)
    except InterruptedRunError as error:
        print(error, flush=True)
        sys.exit(INTERRUPTED)
    except PeerLostError as error:
        print(error, flush=True)
        sys.exit(PEER_LOST)
    except KeyboardInterrupt:
        sys.exit(KEYBOARD)


def _observe(rank: int, shared: _Shared) -> None:
    """Keep where this rank is known to the observer, whatever becomes of it."""

    def built(found: Any, *_: Any) -> None:
        shared.begun[rank] = shared.reached[rank] = found[0].step

    def moved(found: None, step: OptimizerStep) -> None:
        shared.reached[rank] = step.state.step

    _wrap(Origin, "build", after=built)
    _wrap(OptimizerStep, "_next", after=moved)


def _arm(strike: Strike, shared: _Shared) -> None:
    owner, name, side = POINTS[strike.point]
    calls = itertools.count(1)

    def fall(*_: Any) -> None:
        if next(calls) == strike.call:
            _fall(strike, shared)

    _wrap(owner, name, **{side: fall})


def _fall(strike: Strike, shared: _Shared) -> None:
    shared.struck[strike.rank] += 1
    own = shared.pids[strike.rank]
    others = [pid for pid in shared.pids if pid != own]
    victims = {"self": [own], "other": [shared.pids[(strike.rank + 1) % len(shared.pids)]]}
    send = os.killpg if strike.victims == "everything" else os.kill
    for _ in range(strike.times):
        for pid in victims.get(strike.victims, [*others, own]):
            with suppress(ProcessLookupError):  # it may be gone, by this or another strike
                send(pid, strike.signal)


def _wrap(
    owner: Any, name: str, before: Callable[..., None] | None = None, after: Callable[..., None] | None = None
) -> None:
    """Have `before` called with the arguments of a function, `after` with what it returned and its arguments."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before(*args)
        result = original(*args, **kwargs)
        if after is not None:
            after(result, *args)
        return result

    setattr(owner, name, wrapper)


def _left(leaders: Any) -> list[int]:
    """The processes that are there still when those that are dying have had the time for it."""
    deadline = time.monotonic() + PATIENCE
    while (left := [pid for leader in leaders for pid in _group(leader)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


def _group(leader: int) -> list[int]:
    """The living processes of the group that `leader` leads or has led."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = stat.read_text().rsplit(")", 1)[1].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(group) == leader and state != "Z":
            found.append(int(stat.parent.name))
    return found
