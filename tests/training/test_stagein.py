"""Runs that read the store from a copy on their node: the same bits, and a copy that comes and goes as it should."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from agl_core.config import TrainConfig
from agl_core.data.dataset import CropDataset
from agl_core.data.stagein import copying
from agl_core.data.stagein import staged as stagein
from agl_core.data.store import Store
from agl_core.durable.exits import InterruptedRunError, PeerLostError
from agl_core.durable.guard import Guard
from agl_core.training import staging
from agl_core.training.parallel import Parallel
from agl_core.training.trainer import train_stage
from tests.training.faults import PROCESSES, assert_same_result, kinds, small, train
from tests.training.incarnations import events
from tests.training.runs import InterruptionError
from tests.training.test_damage import damage

CHUNK = 16 << 10


@pytest.fixture(autouse=True)
def _another_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stagein, "same_file_system", lambda *_: False)
    monkeypatch.setattr(stagein, "shortage", lambda *_: None)


@pytest.fixture
def node(tmp_path: Path) -> Path:
    path = tmp_path / "node"
    path.mkdir()
    return path


@pytest.fixture
def read_from(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that the data sets of the runs of this process read."""
    paths: list[Path] = []
    real = CropDataset.__init__

    def init(dataset: CropDataset, store: Store, *args: Any, **more: Any) -> None:
        paths.append(store.path)
        real(dataset, store, *args, **more)

    monkeypatch.setattr(CropDataset, "__init__", init)
    return paths


def staged_in(store: Path, folder: Path | str, **changes: Any) -> TrainConfig:
    return small(store, stage_in=str(folder), **changes)


def the_event(run_dir: Path) -> dict[str, Any]:
    return kinds(run_dir, "stage-in")[-1]


def test_a_run_from_a_copy_is_the_same_run_and_leaves_no_copy(
    tiny_store: Path, tmp_path: Path, node: Path, undisturbed: Path, read_from: list[Path]
) -> None:
    train(staged_in(tiny_store, node), tmp_path / "run", lambda step: assert_one_copy(node))
    assert_same_result(tmp_path / "run", undisturbed)
    assert [path.parent for path in read_from] == [node]
    assert list(node.iterdir()) == []
    event = the_event(tmp_path / "run")
    assert (event["outcome"], event["where"], event["processes"]) == ("copied", str(read_from[0]), 1)
    assert event["bytes"] > 0
    assert "stage-in" in kinds(tmp_path / "run", "startup")[0]["seconds"]


def assert_one_copy(node: Path) -> None:
    assert len(list(node.iterdir())) == 1


@pytest.mark.parametrize("stage_in", ["", "none"])
def test_without_stage_in_nothing_is_copied_or_said(
    tiny_store: Path, tmp_path: Path, read_from: list[Path], stage_in: str
) -> None:
    train(staged_in(tiny_store, stage_in, steps=1), tmp_path / "run")
    assert read_from == [tiny_store]
    assert kinds(tmp_path / "run", "stage-in") == []
    assert "stage-in" not in kinds(tmp_path / "run", "startup")[0]["seconds"]


def test_what_cannot_be_staged_is_said_in_one_line_and_read_where_it_lies(
    tiny_store: Path,
    tmp_path: Path,
    node: Path,
    undisturbed: Path,
    read_from: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(stagein, "shortage", lambda *_: "too little")
    monkeypatch.delenv("AGL_MISSING", raising=False)
    refused: list[tuple[Path | str, str]] = [
        (node, "too little"),
        ("$AGL_MISSING/x", "the variable AGL_MISSING of stage_in=$AGL_MISSING/x is not"),
    ]
    for number, (folder, reason) in enumerate(refused):
        run_dir = tmp_path / f"run{number}"
        train(staged_in(tiny_store, folder), run_dir)
        assert_same_result(run_dir, undisturbed)
        assert read_from.pop() == tiny_store
        lines = [line for line in capfd.readouterr().err.splitlines() if reason in line]
        assert len(lines) == 1
        assert f"the store is read where it lies, {tiny_store}: {reason}" in lines[0]
        event = the_event(run_dir)
        assert (event["outcome"], event["bytes"], event["processes"]) == ("in place", 0, 0)
        assert list(node.iterdir()) == []


def test_an_error_that_nobody_has_thought_of_does_not_end_a_run_either(
    tiny_store: Path, tmp_path: Path, node: Path, read_from: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy_file(*_: Any) -> int:
        raise ZeroDivisionError("never thought of")

    monkeypatch.setattr(stagein, "copy_file", copy_file)
    train(staged_in(tiny_store, node, steps=1), tmp_path / "run")
    assert read_from == [tiny_store]
    assert "never thought of" in the_event(tmp_path / "run")["reason"]


def test_a_copy_whose_index_is_damaged_is_removed_and_not_read(
    tiny_store: Path, tmp_path: Path, node: Path, read_from: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PeerLostError):
        train(staged_in(tiny_store, node), tmp_path / "run", lost)
    (copy,) = node.iterdir()
    with (copy / "data.mdb").open("r+b") as file:
        file.write(bytes(8192))
    train(staged_in(tiny_store, node), tmp_path / "run")
    assert read_from == [copy, tiny_store]
    assert the_event(tmp_path / "run")["outcome"] == "in place"
    assert list(node.iterdir()) == []


def lost(step: int) -> None:
    if step == 2:
        raise PeerLostError("gone")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_copy_that_is_damaged_does_not_end_a_run_and_is_made_anew(
    tiny_store: Path,
    tmp_path: Path,
    node: Path,
    undisturbed: Path,
    read_from: list[Path],
    capfd: pytest.CaptureFixture[str],
    workers: int,
) -> None:
    settings = staged_in(tiny_store, node, workers=workers)
    with pytest.raises(PeerLostError):
        train(settings, tmp_path / "first", lost)
    (copy,) = node.iterdir()
    for tile in range(len(Store(copy))):
        damage(copy, tile)
    with pytest.raises(PeerLostError):
        train(settings, tmp_path / "run", lost)
    assert the_event(tmp_path / "run")["outcome"] == "found"
    lines = [line for line in capfd.readouterr().err.splitlines() if "damaged at tile" in line]
    assert len(lines) == 1
    assert f"store {copy} is damaged at tile " in lines[0]
    assert f"is read from {tiny_store} instead" in lines[0]
    train(settings, tmp_path / "run")
    assert the_event(tmp_path / "run")["outcome"] == "copied"
    assert_same_result(tmp_path / "run", undisturbed)
    assert set(read_from) == {copy}
    assert "damaged at tile" not in capfd.readouterr().err


def warned(step: int) -> None:
    if step == 2:
        os.kill(os.getpid(), signal.SIGTERM)


def crash(step: int) -> None:
    if step == 2:
        raise InterruptionError


@pytest.mark.parametrize(
    ("how", "error", "outcome"),
    [
        (warned, InterruptedRunError, "copied"),
        (lost, PeerLostError, "found"),
        (crash, InterruptionError, "found"),
    ],
)
def test_the_copy_goes_with_a_run_that_leaves_and_stays_after_a_crash(
    tiny_store: Path,
    tmp_path: Path,
    node: Path,
    undisturbed: Path,
    how: Callable[[int], None],
    error: type[Exception],
    outcome: str,
) -> None:
    run_dir = tmp_path / "run"
    with pytest.raises(error):
        train(staged_in(tiny_store, node), run_dir, how)
    assert len(list(node.iterdir())) == (outcome == "found")
    train(staged_in(tiny_store, node), run_dir)
    assert the_event(run_dir)["outcome"] == outcome
    assert_same_result(run_dir, undisturbed)
    assert list(node.iterdir()) == []


def test_a_signal_while_the_store_is_copied_makes_the_run_leave_and_the_next_start_copies_the_rest(
    tiny_store: Path, tmp_path: Path, node: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, real = tmp_path / "run", copying.copy_file
    small_chunks(monkeypatch)

    def copy_file(source: Path, target: Path, size: int, journal: Any, moved: Any, *more: Any) -> int:
        def moving(done: int) -> None:
            if done > 3 * CHUNK:
                os.kill(os.getpid(), signal.SIGUSR2)
                threading.Event().wait(0.01)
            moved(done)

        return real(source, target, size, journal, moving, *more)

    with monkeypatch.context() as patch:
        patch.setattr(stagein, "copy_file", copy_file)
        with pytest.raises(InterruptedRunError, match="interrupted by USR2; nothing is saved yet"):
            train(staged_in(tiny_store, node), run_dir)
    assert_one_copy(node)
    train(staged_in(tiny_store, node), run_dir)
    assert_same_result(run_dir, undisturbed)
    event = the_event(run_dir)
    assert event["outcome"] == "continued"
    assert 0 < event["bytes"] <= (tiny_store / "data.mdb").stat().st_size - 3 * CHUNK + 10_000
    assert list(node.iterdir()) == []


def small_chunks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(copying, "PIECE", 4 << 10)
    real = stagein.StagedCopy
    patch.setattr(staging, "StagedCopy", lambda source, folder: real(source, folder, CHUNK))


class Together:
    """Several processes train; in each, `prepare(rank)` patches what it likes first."""

    def __init__(self, settings: TrainConfig, run_dir: Path, folders: list[Path]) -> None:
        self.settings, self.run_dir, self.folders = settings, run_dir, folders
        self.results: Any = PROCESSES.Queue()
        run_dir.mkdir(parents=True, exist_ok=True)

    def run(self, act: Callable[[int, pytest.MonkeyPatch], None]) -> dict[int, list[Any]]:
        """By rank: how it ended, the folder it read and the steps it did."""
        address = f"file://{self.run_dir}/rendezvous_{len(list(self.run_dir.glob('rendezvous*')))}"
        ranks = range(len(self.folders))
        processes = [
            PROCESSES.Process(
                target=_rank, args=(self.settings, self.run_dir, rank, self.folders, address, act, self.results)
            )
            for rank in ranks
        ]
        for process in processes:
            process.start()
        found = [self.results.get(timeout=120) for _ in processes]
        for process in processes:
            process.join()
        return {rank: rest for rank, *rest in found}


def _rank(
    settings: TrainConfig,
    run_dir: Path,
    rank: int,
    folders: list[Path],
    address: str,
    act: Callable[[int, pytest.MonkeyPatch], None],
    results: Any,
) -> None:
    torch.set_num_threads(1)
    os.environ["AGL_NODE"] = str(folders[rank])  # each node has its own
    patch, steps, end, stores = pytest.MonkeyPatch(), 0, "finished", []
    patch.setattr(stagein, "same_file_system", lambda *_: False)
    patch.setattr(stagein, "shortage", lambda *_: None)
    small_chunks(patch)
    real = CropDataset.__init__

    def init(dataset: CropDataset, store: Store, *args: Any, **more: Any) -> None:
        stores.append(str(store.path.parent))
        real(dataset, store, *args, **more)

    patch.setattr(CropDataset, "__init__", init)
    act(rank, patch)

    def observe(report: Any) -> None:
        nonlocal steps
        steps += 1

    try:
        with Guard() as guard, Parallel(rank, len(folders), rank, address) as parallel:
            train_stage(settings, "first", run_dir, parallel, observe, guard)
    except Exception as error:
        end = type(error).__name__ if isinstance(error, InterruptedRunError) else repr(error)
    results.put((rank, end, stores[-1] if stores else "", steps))


def nothing(rank: int, patch: pytest.MonkeyPatch) -> None:
    pass


def test_processes_of_a_node_share_a_copy_and_every_node_has_its_own(
    tiny_store: Path, tmp_path: Path, node: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    folders = [node, other, node]
    settings = staged_in(tiny_store, "$AGL_NODE", steps=3)
    for stage in settings.stages.values():
        stage.batch, stage.micro_batch = 6, 2
    plain = Together(staged_in(tiny_store, "none", steps=3), tmp_path / "plain", folders)
    plain.settings.stages.update(settings.stages)
    ends = Together(settings, tmp_path / "run", folders).run(nothing)
    assert ends == {rank: ["finished", str(folder), 3] for rank, folder in enumerate(folders)}
    assert {end[0] for end in plain.run(nothing).values()} == {"finished"}
    assert_same_result(tmp_path / "run", tmp_path / "plain")
    (event,) = events(tmp_path / "run", "stage-in")
    assert (event["outcome"], event["processes"]) == ("copied", 3)
    assert list(node.iterdir()) == list(other.iterdir()) == []


def the_second_has_no_room(rank: int, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stagein, "shortage", lambda *_: "too little" if rank == 1 else None)


def test_a_node_without_room_reads_the_store_where_it_lies_and_the_others_their_copies(
    tiny_store: Path, tmp_path: Path, node: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    together = Together(staged_in(tiny_store, "$AGL_NODE", steps=2), tmp_path / "run", [node, other])
    ends = together.run(the_second_has_no_room)
    assert ends == {0: ["finished", str(node), 2], 1: ["finished", str(tiny_store.parent), 2]}
    assert events(tmp_path / "run", "stage-in")[0]["processes"] == 1
    assert list(node.iterdir()) == list(other.iterdir()) == []


def the_waiting_one_is_warned(rank: int, patch: pytest.MonkeyPatch) -> None:
    """The first process copies until it is stopped, from its fourth chunk on; the second, which waits, is warned."""
    if rank == 1:
        real_wait = staging._wait

        def wait(*args: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            real_wait(*args)

        patch.setattr(staging, "_wait", wait)
        return
    real = copying.copy_file

    def copy_file(source: Path, target: Path, size: int, journal: Any, moved: Any, *more: Any) -> int:
        def moving(done: int) -> None:
            while done > 3 * CHUNK:
                moved(done)  # raises at last
                threading.Event().wait(0.01)
            moved(done)

        return real(source, target, size, journal, moving, *more)

    patch.setattr(stagein, "copy_file", copy_file)


def test_a_warning_to_a_process_that_waits_makes_all_leave_with_the_copied_part_kept(
    tiny_store: Path, tmp_path: Path, node: Path
) -> None:
    together = Together(staged_in(tiny_store, "$AGL_NODE", steps=2), tmp_path / "run", [node, node])
    ends = together.run(the_waiting_one_is_warned)
    assert ends == {0: ["InterruptedRunError", "", 0], 1: ["InterruptedRunError", "", 0]}
    assert_one_copy(node)
    ends = together.run(nothing)
    assert ends == {0: ["finished", str(node), 2], 1: ["finished", str(node), 2]}
    assert events(tmp_path / "run", "stage-in")[-1]["outcome"] == "continued"
    assert list(node.iterdir()) == []


def test_the_watchdog_hears_of_a_copy_that_comes_on_and_not_of_one_that_does_not() -> None:
    beats: list[int] = []
    copying = staging._Copying()
    table = iter([(1, 0, 5, 0, 9), (1, 0, 5, 0, 9), (1, 0, 5, 0, 9), (1, 0, 6, 1, 9), (0, 0, 6, 0, 9)])

    class Scripted(Parallel):
        def gather(self, values: torch.Tensor) -> list[torch.Tensor]:
            return [torch.tensor(next(table))]

    def leave() -> Any:
        raise AssertionError

    staging._wait(copying, 1, Scripted(), lambda: False, leave, lambda: beats.append(1))
    assert len(beats) == 2
