"""A save is killed at every single operation, and the power is cut there; what can be loaded afterwards?"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from agl_core.durable import checkpoint, retention
from agl_core.durable.checkpoint import load_checkpoint, save_checkpoint, verify_checkpoint
from agl_core.durable.retention import Retention
from tests.durable.disk import Disk, PowerCut, Tree, read_tree, write_tree
from tests.durable.states import equal, state

Deaf = Callable[[str], bool]


@dataclass(frozen=True)
class Scenario:
    """A save of step 3 into what `prepare` leaves, where `before` is the newest good step (None: there is none) and
    those named in `bad` are damaged. From the rename on that contains `turn`, step 3 may be the newest, and from the
    next fsync of the folder on it must be."""

    prepare: Callable[[Path], None]
    before: int | None
    bad: tuple[str, ...] = ()
    discard: tuple[str, ...] = ()
    turn: str = ".part stage/step_00000003"


def flip(path: Path) -> None:
    """Change the last byte of the tensors' data."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def damaged_same_step(root: Path) -> None:
    """Steps 1 and 2 good, 3 damaged, and what two killed processes left: a part and a deletion."""
    for step in (1, 2, 3):
        save_checkpoint(root / "stage", state(step), Retention(last=3))
    flip(root / "stage" / "step_00000003" / "model.safetensors")
    for name in (".step_00000002.00.part", ".step_00000000.00.gone"):
        shutil.copytree(root / "stage" / "step_00000002", root / "stage" / name)
    age(root / "stage")


def rolled_back(root: Path) -> None:
    """Went back from 9 to 2: 3 is to be replaced although it is good, 9 to be deleted although it is later."""
    for step in (1, 2, 9):
        save_checkpoint(root / "stage", state(step), Retention(last=3))
    other = state(3)
    other.model["count"] = other.model["count"] + 1
    save_checkpoint(root / "stage", other, Retention(last=4))


def nothing(root: Path) -> None:
    pass


SAVES = {
    "into nothing": Scenario(nothing, None),
    "over a damaged one of the same step": Scenario(damaged_same_step, 2, bad=("step_00000003",)),
    "after a roll-back": Scenario(
        rolled_back, 9, discard=("step_00000003", "step_00000009"), turn="stage/step_00000009 stage/."
    ),
}


def age(folder: Path) -> None:
    """Make the parts of killed saves old enough to be deleted."""
    for part in folder.glob(".*.part"):
        for path in [part, *part.iterdir()]:
            os.utime(path, (0, 0))


@pytest.fixture
def counted_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that do not differ from run to run, so that equal pictures of the disk are examined once."""
    numbers = count()
    monkeypatch.setattr("secrets.token_hex", lambda size: f"f{next(numbers):x}")
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # the account of the simulated disk is what counts


pytestmark = pytest.mark.usefixtures("counted_tokens")


def run_save(scenario: Scenario, root: Path, disk: Disk, step: int = 3) -> BaseException | None:
    """Save on `disk`; what it ended with."""
    with pytest.MonkeyPatch.context() as patch:
        numbers = count(100 * disk.processes)
        patch.setattr("secrets.token_hex", lambda size: f"{next(numbers):0{2 * size}x}")
        disk.attach(patch)
        try:
            save_checkpoint(root / "stage", state(step), Retention(last=2), discard=scenario.discard)
        except (PowerCut, OSError) as error:
            return error
    return None


def crashes(scenario: Scenario, tmp_path: Path, deaf: Deaf) -> Iterator[tuple[str, set[int | None], str, Tree]]:
    """Every crash point, what may be loaded after it, and every picture of the disk there."""
    template = tmp_path / "template"
    template.mkdir()
    scenario.prepare(template)
    whole = tmp_path / "whole"
    shutil.copytree(template, whole)
    disk = Disk(whole, deaf=deaf)
    assert run_save(scenario, whole, disk) is None
    numbers = range(1, len(disk.trace) + 2)  # the last one does not come: that save ends
    torn_writes = [number for number, line in enumerate(disk.trace, 1) if line.startswith("write")]
    for die_at, torn in [*((number, False) for number in numbers), *((number, True) for number in torn_writes)]:
        root = tmp_path / "crashed"
        shutil.copytree(template, root)
        disk = Disk(root, die_at, torn, deaf=deaf)
        died = run_save(scenario, root, disk)
        assert read_tree(root) == dict(sorted(next(disk.pictures())[1].items())), "the simulation is wrong"
        done, last = disk.trace if died is None else disk.trace[:-1], disk.trace[-1]
        disk.unplug()
        shutil.rmtree(root)
        turns = [number for number, line in enumerate(done) if line.startswith("rename") and scenario.turn in line]
        steps = {scenario.before, 3} if turns else {scenario.before}
        if died is None or (turns and "fsync stage" in done[turns[0] :]):
            steps = {3}
        where = f"dead at {die_at} ({last})" if died is not None else "done"
        for name, tree in disk.pictures():
            # A kill alone loses nothing that was done.
            yield where, steps - {scenario.before} if turns and name == "as it stands" else steps, name, tree


def examine(scenario: Scenario, root: Path, steps: set[int | None]) -> str | None:
    """What is wrong with the folder `root` after a crash, or None; also after the next save."""
    folder = root / "stage"
    bad = {path.name for path in folder.glob("step_*") if verify_checkpoint(path) is not None}
    loaded, skipped = load_checkpoint(folder)
    step = None if loaded is None else loaded.step
    if step not in steps:
        return f"step {step} is loaded"
    if loaded is not None and not equal(loaded, state(loaded.step)):
        return f"step {step} has other bits"
    if not bad <= set(scenario.bad):
        return f"{bad} look like damaged checkpoints"
    age(folder)
    discard = [line.partition(":")[0] for line in skipped]
    save_checkpoint(folder, state(10), Retention(last=2), discard=discard)
    expected = ["step_00000010"] if step is None else [f"step_{step:08d}", "step_00000010"]
    if sorted(os.listdir(folder)) != expected:
        return f"the next save leaves {sorted(os.listdir(folder))}"
    return None


def harm(scenario: Scenario, tmp_path: Path, deaf: Deaf = lambda path: False) -> Iterator[str]:
    """Every way in which a crash does harm."""
    examined = set()
    for where, steps, name, tree in crashes(scenario, tmp_path, deaf):
        key = (frozenset(steps), tuple(tree.items()))
        if key in examined:
            continue
        examined.add(key)
        root = tmp_path / "picture"
        write_tree(root, tree)
        problem = examine(scenario, root, steps)
        shutil.rmtree(root)
        if problem is not None:
            yield f"{where}, {name}: {problem}"


@pytest.mark.parametrize("name", SAVES)
def test_whenever_a_save_dies_the_newest_complete_state_is_loaded_bit_for_bit(name: str, tmp_path: Path) -> None:
    assert list(harm(SAVES[name], tmp_path)) == []


def test_a_save_after_a_killed_one_survives_the_power_cut_that_follows(tmp_path: Path) -> None:
    for die_at in count(1):
        root = tmp_path / "killed" / "run"
        root.mkdir(parents=True)
        disk = Disk(root, die_at)
        killed = run_save(SAVES["into nothing"], root, disk)
        disk.unplug()
        assert run_save(SAVES["over a damaged one of the same step"], root, disk) is None
        for number, (name, tree) in enumerate(disk.pictures()):
            write_tree(tmp_path / f"{number}", tree)
            loaded, _ = load_checkpoint(tmp_path / f"{number}" / "stage")
            assert equal(loaded, state(3)), (die_at, name)
            shutil.rmtree(tmp_path / f"{number}")
        shutil.rmtree(root)
        if killed is None:
            break
    assert die_at > 30


def test_what_a_killed_retention_hid_is_not_deleted_before_its_new_name_is_durable(tmp_path: Path) -> None:
    """Killed between a rename and the fsync after it; the next save is caught by a power cut, whenever that is."""
    scenario = SAVES["over a damaged one of the same step"]
    template = tmp_path / "template"
    template.mkdir()
    scenario.prepare(template)
    whole = tmp_path / "whole"
    shutil.copytree(template, whole)
    disk = Disk(whole)
    run_save(scenario, whole, disk)
    renames = [number for number, line in enumerate(disk.trace, 1) if line.startswith("rename") and "gone" in line]
    assert len(renames) == 3  # the old part, the damaged step 3, and step 1, which is not kept
    root, picture, examined = tmp_path / "killed", tmp_path / "picture", set()
    for die_at in count(1):
        shutil.copytree(template, root)
        disk = Disk(root, die_at=renames[-1] + 1)
        run_save(scenario, root, disk)
        disk.unplug()
        disk.die_at = die_at
        died = run_save(scenario, root, disk, step=4)
        disk.unplug()
        shutil.rmtree(root)
        for name, tree in disk.pictures():
            if tuple(tree.items()) in examined:
                continue
            examined.add(tuple(tree.items()))
            write_tree(picture, tree)
            bad = {path.name for path in picture.glob("stage/step_*") if verify_checkpoint(path) is not None}
            assert bad <= set(scenario.bad), (die_at, name)
            loaded, _ = load_checkpoint(picture / "stage")
            assert loaded is not None, (die_at, name)
            assert equal(loaded, state(loaded.step)), (die_at, name)
            shutil.rmtree(picture)
        if died is None:
            break


@pytest.mark.parametrize(("name", "code"), [*zip(SAVES, [errno.ENOSPC, errno.EIO, errno.EACCES], strict=True)])
def test_whenever_an_operation_fails_the_error_says_so_or_it_did_no_harm(name: str, code: int, tmp_path: Path) -> None:
    template, raised = tmp_path / "template", []
    template.mkdir()
    SAVES[name].prepare(template)
    for fail_at in count(1):
        root = tmp_path / "failed"
        shutil.copytree(template, root)
        disk = Disk(root, fail_at=fail_at, error=code)
        error = run_save(SAVES[name], root, disk)
        assert disk.handles == {} or disk.trace[fail_at - 1].startswith("close"), "a file is left open"
        disk.unplug()
        failed = disk.failed
        if error is None:
            steps: set[int | None] = {3}
        else:
            assert isinstance(error, OSError)
            assert error.errno == code
            assert error.filename is not None, f"the error of {failed} names no file"
            assert list(root.glob("stage/.step_00000003.*.part")) == []
            steps = {SAVES[name].before, 3}
            raised.append(failed)
        assert examine(SAVES[name], root, steps) is None, failed
        shutil.rmtree(root)
        if failed is None:
            break
    assert any(line.startswith("write") for line in raised)
    assert not any(line.startswith(("unlink", "rmdir")) for line in raised), "a deletion that fails is no error"


DEAF: dict[str, tuple[str, Deaf]] = {
    "the fsync of the folder": ("over a damaged one of the same step", lambda path: path == "stage"),
    "the fsync of the folder's own folder": ("into nothing", lambda path: path == "."),
    "the fsync of the new directory": ("into nothing", lambda path: path.endswith(".part")),
    "the fsync of the tensors": ("into nothing", lambda path: path.endswith(".safetensors")),
    "the fsync of the state": ("into nothing", lambda path: path.endswith("state.json")),
    "the fsync of the manifest": ("into nothing", lambda path: path.endswith("manifest.json")),
}


@pytest.mark.parametrize("left_out", DEAF)
def test_the_crash_points_notice_when_an_fsync_is_left_out(left_out: str, tmp_path: Path) -> None:
    name, deaf = DEAF[left_out]
    assert any("is loaded" in problem for problem in harm(SAVES[name], tmp_path, deaf))


def test_the_crash_points_notice_when_the_manifest_is_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = SAVES["over a damaged one of the same step"]
    monkeypatch.setattr(checkpoint, "_check", lambda path, name, manifest: None)
    assert any("step 3 is loaded" in problem for problem in harm(scenario, tmp_path))


def test_the_crash_points_notice_when_a_checkpoint_is_deleted_under_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "hide", lambda path: path)
    assert any(
        "look like damaged checkpoints" in problem
        for problem in harm(SAVES["over a damaged one of the same step"], tmp_path)
    )


def test_the_crash_points_notice_when_files_are_deleted_before_the_new_name_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "sync_folder", lambda folder: None)
    assert any(
        "look like damaged checkpoints" in problem
        for problem in harm(SAVES["over a damaged one of the same step"], tmp_path)
    )


def test_the_crash_points_notice_when_a_file_is_written_under_its_final_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint._write

    def in_place(aside: Path, *args: Any) -> Any:
        os.rename(aside, aside.with_name("step_00000003"))
        return write(aside.with_name("step_00000003"), *args)

    monkeypatch.setattr(checkpoint, "_write", in_place)
    monkeypatch.setattr(checkpoint, "_publish", lambda aside, final, manifest, discarded: [])
    assert any("look like damaged checkpoints" in problem for problem in harm(SAVES["into nothing"], tmp_path))
