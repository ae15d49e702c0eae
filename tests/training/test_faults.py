"""Full, failing and vanishing disks around a stage, and defects in the background.

Whatever it is, the stage ends with the bits of an undisturbed one, or in one sentence that says why it cannot.
"""

import errno
import os
import resource
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from agl_core.config import CheckpointConfig, TrainConfig
from agl_core.durable import writer
from agl_core.durable.exits import InterruptedRunError, PeerLostError
from agl_core.errors import UserError
from agl_core.files import read_json
from agl_core.model import weights as weights_module
from agl_core.model.tensors import save_tensors
from agl_core.reporting.events import EventLog, read_events
from agl_core.training import best as best_module
from agl_core.training import saver as saver_module
from agl_core.training.best import BestWeights
from agl_core.training.parallel import Parallel
from agl_core.training.trainer import StepReport, train_stage
from tests.training.faults import (
    PROCESSES,
    Disk,
    Watch,
    assert_same_best,
    assert_same_result,
    disturb,
    kinds,
    published,
    scored,
    small,
    train,
)
from tests.training.runs import InterruptionError, same_bits, weights

pytestmark = pytest.mark.usefixtures("threads_end")


TENSORBOARD = (
    "ignore:Exception in thread:pytest.PytestUnhandledThreadExceptionWarning"  # its thread ends with a traceback
)


@pytest.fixture(autouse=True)
def _retries_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver_module, "RETRY", 0.01)
    monkeypatch.setattr(best_module, "RETRY", 0.0)


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("write", errno.ENOSPC),
        ("fsync", errno.EIO),
        ("mkdir", errno.EROFS),
        ("rename", errno.EACCES),
    ],
)
def test_training_goes_on_while_the_disk_refuses_checkpoints_and_warns_each_time(
    tiny_store: Path,
    tmp_path: Path,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    call: str,
    code: int,
) -> None:
    disk = Disk(monkeypatch, call, code, lambda step, attempt: step in (2, 3))
    assert train(small(tiny_store), tmp_path) == [1, 2, 3, 4, 5]
    assert disk.saves == [1, 2, 3, 4, 5]
    warnings = kinds(tmp_path, "warning")
    lines = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == len(lines) == 2
    for warning, line in zip(warnings, lines, strict=True):
        assert str(tmp_path / "checkpoints" / "first") in warning["text"]
        assert os.strerror(code) in warning["text"]
        assert "the last good checkpoint is that of step 1" in warning["text"]
        assert warning["text"] in line
    assert [event["step"] for event in kinds(tmp_path, "checkpoint")] == [1, 4, 5]
    assert_same_result(tmp_path, undisturbed)


def test_a_refused_checkpoint_is_tried_again_without_waiting_for_the_next_that_is_due(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, "write", errno.ENOSPC, lambda step, attempt: attempt == 1)
    rare = CheckpointConfig(every="4 steps", interval="never")
    train(small(tiny_store, steps=8, checkpoint=rare), tmp_path, lambda step: time.sleep(0.05))
    assert disk.saves[0] == 4
    assert 4 < disk.saves[1] < 8
    assert disk.saves[2:] == [8]


def test_who_is_warned_while_the_disk_is_full_leaves_without_a_state(
    tiny_store: Path, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Disk(monkeypatch, "write", errno.ENOSPC, lambda step, attempt: True)
    with pytest.raises(InterruptedRunError) as stopped:
        train(small(tiny_store), tmp_path, lambda step: disturb("signal") if step == 2 else None)
    assert stopped.value.saved_step is None
    assert any("the state of step 3 could not be saved" in event["text"] for event in kinds(tmp_path, "warning"))
    monkeypatch.undo()
    train(small(tiny_store), tmp_path)
    assert_same_result(tmp_path, undisturbed)


def test_a_disk_that_stays_full_ends_the_run_in_one_sentence(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, "write", errno.ENOSPC, lambda step, attempt: step > 2)
    impatient = CheckpointConfig(every="1 step", interval="never", patience=1e-9)
    with pytest.raises(UserError) as said:
        train(small(tiny_store, steps=9, checkpoint=impatient), tmp_path)
    folder = tmp_path / "checkpoints" / "first"
    assert str(said.value) == (
        f"{folder} could not be written to for 0 s "
        f"([Errno 28] No space left on device: '{part_of(said.value)}'), and the last good checkpoint is that of step "
        "2: free some space there and give the same command again"
    )
    assert disk.saves[:3] == [1, 2, 3]
    monkeypatch.undo()
    assert train(small(tiny_store, steps=9), tmp_path)[0] == 3


def part_of(error: UserError) -> str:
    return str(error).split("'")[1]


def test_the_last_checkpoint_is_insisted_on(
    tiny_store: Path, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, "write", errno.ENOSPC, lambda step, attempt: 5 <= attempt < 8)
    train(small(tiny_store), tmp_path)
    assert disk.saves == [1, 2, 3, 4, 5, 5, 5, 5]
    assert len(kinds(tmp_path, "warning")) == 3
    assert_same_result(tmp_path, undisturbed)


def test_a_signal_ends_the_waiting_for_a_full_disk(
    tiny_store: Path, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(step: int, attempt: int) -> bool:
        if attempt == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return step == 5

    Disk(monkeypatch, "write", errno.ENOSPC, refuses)
    with pytest.raises(InterruptedRunError) as stopped:
        train(small(tiny_store), tmp_path)
    assert (stopped.value.signal, stopped.value.saved_step) == ("TERM", 4)
    assert not (tmp_path / "stages").exists()
    assert kinds(tmp_path, "interruption")[0]["saved"] == 4
    monkeypatch.undo()
    assert train(small(tiny_store), tmp_path) == [5]
    assert_same_result(tmp_path, undisturbed)


@pytest.mark.parametrize("name", ["last.safetensors", "first.json"])
def test_the_weights_and_the_record_are_insisted_on(
    tiny_store: Path, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real, attempts = os.replace, []

    def replace(source: Any, target: Any) -> None:
        if Path(target).name == name:
            attempts.append(name)
            if len(attempts) < 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    train(small(tiny_store), tmp_path)
    assert len(attempts) == 3
    assert published(tmp_path) >= {"weights/first/last.safetensors", "stages/first.json"}
    assert_same_result(tmp_path, undisturbed)


SCORES = {2: 0.9, 4: 0.5, 5: 0.4}


@pytest.fixture(scope="module")
def judged(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run whose first score is the best."""
    run_dir = tmp_path_factory.mktemp("judged")
    with pytest.MonkeyPatch.context() as patch:
        scored(patch, SCORES)
        train(small(tiny_store, validate=True), run_dir)
    return run_dir


@pytest.mark.parametrize("interrupted", [False, True])
def test_best_weights_that_the_disk_refuses_are_written_later_and_no_checkpoint_passes_them(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judged: Path, interrupted: bool
) -> None:
    settings = small(tiny_store, validate=True)
    attempts, waiting = [], [True]

    def save(path: Path, *more: Any) -> None:
        if "best" in path.name:
            attempts.append(path)
            if waiting[0]:
                path.write_bytes(b"half")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_tensors(path, *more)

    monkeypatch.setattr(weights_module, "save_tensors", save)
    disk = Disk(monkeypatch, "write", errno.ENOSPC, lambda step, attempt: False)

    def watch(step: int) -> None:
        if step == 4:
            if interrupted:
                raise InterruptionError
            waiting[0] = False

    scored(monkeypatch, SCORES)
    with suppress(InterruptionError):
        train(settings, tmp_path, watch)
    assert not list(tmp_path.rglob("*.part*"))
    if interrupted:
        assert disk.saves == [1]
        waiting[0] = False
        scored(monkeypatch, SCORES)
        assert train(settings, tmp_path) == [2, 3, 4, 5]
    else:
        assert disk.saves == [1, 4, 5]
        assert len(attempts) == 4  # after step 2, once more, and after steps 3 and 4
    assert_same_best(tmp_path, judged)
    assert_same_result(tmp_path, judged)


@pytest.mark.parametrize("how", ["peer", "signal"])
def test_who_must_leave_while_the_best_weights_wait_writes_them_or_saves_nothing(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judged: Path, how: str
) -> None:
    settings = small(tiny_store, validate=True)
    full = [True]

    def save(path: Path, *more: Any) -> None:
        if "best" in path.name and full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_tensors(path, *more)

    monkeypatch.setattr(weights_module, "save_tensors", save)
    scored(monkeypatch, SCORES)
    with pytest.raises((PeerLostError, InterruptedRunError)):
        train(settings, tmp_path, lambda step: disturb(how) if step == 3 else None)
    full[0] = False
    scored(monkeypatch, SCORES)
    train(settings, tmp_path)
    assert_same_best(tmp_path, judged)


def _best_in_two(settings: TrainConfig, run_dir: Path, rank: int, when: str) -> None:
    """The first process is killed while it writes the best weights of step 2, or while the disk keeps it from that."""
    torch.set_num_threads(1)

    def write(best: BestWeights) -> None:
        if best.pending and when == "writing":
            os.kill(os.getpid(), signal.SIGKILL)
        if best.pending:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def observe(report: StepReport) -> None:
        if rank == 0 and report.step == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BestWeights, "write", write)
        with (
            suppress(PeerLostError),
            Parallel(rank, 2, rank, f"file://{run_dir}/rendezvous") as parallel,
        ):
            train_stage(settings, "first", run_dir, parallel, observe)


@pytest.mark.parametrize(("when", "newest"), [("writing", {2}), ("waiting", {None, 1})])
def test_no_survivor_saves_a_score_whose_weights_died_with_the_first_process(
    tiny_store: Path, tmp_path: Path, when: str, newest: set[int | None]
) -> None:
    """The save of step 1 may have died with it as well."""
    settings = small(tiny_store, validate=True, encoder="tu-resnet10t")
    processes = [PROCESSES.Process(target=_best_in_two, args=(settings, tmp_path, rank, when)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, 0]
    folders = sorted((tmp_path / "checkpoints" / "first").glob("step_*"))
    states = [read_json(folder / "state.json") for folder in folders]
    assert (states[-1]["step"] if states else None) in newest
    assert all((state["best_step"], state["validated"]) == (None, 0) for state in states)


@pytest.mark.filterwarnings(TENSORBOARD)
def test_events_scalars_and_chains_that_cannot_be_written_end_no_run(
    tiny_store: Path, tmp_path: Path, undisturbed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for room in ("chain", "tensorboard"):  # files where folders should be
        (tmp_path / room).write_text("in the way")
    (tmp_path / "events.jsonl").symlink_to(tmp_path / "gone" / "events.jsonl")
    assert train(small(tiny_store), tmp_path) == [1, 2, 3, 4, 5]
    assert same_bits(weights(tmp_path), weights(undisturbed))
    assert capfd.readouterr().err.count("events and scalars cannot be written") == 1


def test_a_log_on_a_full_disk_ends_no_run(
    tiny_store: Path, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a process prints often goes to a file beside its checkpoints."""
    Disk(monkeypatch, "write", errno.ENOSPC, lambda step, attempt: step in (2, 3))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Path("/dev/full").open("w"))  # noqa: SIM115  (closing it would fail)
        train(small(tiny_store), tmp_path)
        with suppress(OSError):
            sys.stderr.close()
    assert len(kinds(tmp_path, "warning")) == 2
    assert_same_result(tmp_path, undisturbed)


@pytest.mark.parametrize("how", ["end", "signal"])
def test_a_disk_that_refuses_the_last_events_hides_no_ending(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """What could not be written is still in a buffer when the file is closed."""
    made: list[EventLog] = []
    real = EventLog.write

    def write(log: EventLog, kind: str, **values: Any) -> None:
        real(log, kind, **values)
        if log not in made:
            made.append(log)
            refuse(log._file._file)

    monkeypatch.setattr(EventLog, "write", write)
    watch: Watch = (lambda step: disturb("signal") if step == 2 else None) if how == "signal" else lambda step: None
    if how == "signal":
        with pytest.raises(InterruptedRunError):
            train(small(tiny_store), tmp_path, watch)
    else:
        train(small(tiny_store), tmp_path, watch)
    assert len(made) == 1
    assert [event["kind"] for event in read_events(tmp_path / "events.jsonl")] == ["start"]


def refuse(file: Any) -> None:
    """From now on the open `file` leads to a disk that is full."""
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, file.fileno())
    os.close(full)


@pytest.mark.filterwarnings(TENSORBOARD)
def test_a_run_directory_that_vanishes_and_comes_back_costs_nothing(
    tiny_store: Path, tmp_path: Path, undisturbed: Path
) -> None:
    run_dir, away = tmp_path / "run", tmp_path / "away"

    def watch(step: int) -> None:
        if step == 2:
            run_dir.rename(away)
        if step == 4:
            assert not run_dir.exists()  # nobody has made it anew
            away.rename(run_dir)

    assert train(small(tiny_store), run_dir, watch) == [1, 2, 3, 4, 5]
    assert kinds(run_dir, "warning")
    assert_same_result(run_dir, undisturbed)


@pytest.mark.filterwarnings(TENSORBOARD)
def test_a_run_directory_that_is_gone_for_good_ends_the_run_in_one_sentence(tiny_store: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    impatient = CheckpointConfig(every="1 step", interval="never", patience=0.002)

    def watch(step: int) -> None:
        if step == 3:  # the save of step 1 has ended by then: that of step 2 has waited for it
            run_dir.rename(tmp_path / "away")

    with pytest.raises(
        UserError, match=r"run/checkpoints/first could not be written to for \d+ s \(.*No such file.* of step [12]:"
    ):
        train(small(tiny_store, checkpoint=impatient), run_dir, watch)
    assert not run_dir.exists()


@pytest.mark.parametrize("how", ["nothing", "signal"])
def test_a_defect_in_the_background_comes_out_at_the_next_boundary(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    ended = threading.Event()

    def save(*args: Any) -> NoReturn:
        ended.set()
        raise ValueError("a defect")

    monkeypatch.setattr(writer, "save_checkpoint", save)
    steps: list[int] = []

    def watch(step: int) -> None:
        steps.append(step)
        if step == 2:
            ended.wait()
            time.sleep(0.05)  # until its outcome is there
            disturb(how)

    with pytest.raises(ValueError, match="a defect"):
        train(small(tiny_store), tmp_path, watch)
    assert steps == [1, 2]


def _train_with_a_limit(settings: TrainConfig, run_dir: Path, limit: int) -> None:
    """No file may grow above `limit` bytes until after step 3: the kernel itself refuses the checkpoints."""
    torch.set_num_threads(1)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))

    def watch(step: int) -> None:
        if step == 3:
            time.sleep(0.1)  # the attempt of step 2 has ended
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    train(settings, run_dir, watch)


def test_a_write_error_of_the_kernel_itself_is_survived(tiny_store: Path, tmp_path: Path, undisturbed: Path) -> None:
    process = PROCESSES.Process(target=_train_with_a_limit, args=(small(tiny_store), tmp_path, 300_000))
    process.start()
    process.join()
    assert process.exitcode == 0
    warnings = kinds(tmp_path, "warning")
    assert warnings
    assert all(os.strerror(errno.EFBIG) in warning["text"] for warning in warnings)
    assert_same_result(tmp_path, undisturbed)
