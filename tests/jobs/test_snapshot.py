"""The copy of the code that submitted jobs run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agl_core.errors import UserError
from jobs import snapshot
from jobs.snapshot import ROOT, digest, snapshot_path, sources, take_snapshot


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout with a little of everything."""
    root = tmp_path / "checkout"
    for name, text in {
        "launch.py": "print('launched')\n",
        "jobs/__init__.py": "",
        "jobs/work.py": "ANSWER = 1\n",
        "jobs/__pycache__/work.cpython-311.pyc": "compiled",
        "agl_core/__init__.py": "",
        "agl_core/recipes/demo.yaml": "seed: 1\n",
        "cluster_configs/slurm.yaml": "executor: slurm\n",
        "tests/test_work.py": "",
        "runs/first/config.yaml": "seed: 1\n",
        "README.md": "",
        "jobs/notes.txt": "",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


SOURCES = [
    "agl_core/__init__.py",
    "agl_core/recipes/demo.yaml",
    "cluster_configs/slurm.yaml",
    "jobs/__init__.py",
    "jobs/work.py",
    "launch.py",
]


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_only_the_sources_are_copied_and_all_of_them(project: Path, tmp_path: Path) -> None:
    copy = take_snapshot(tmp_path / "code", project)
    assert files(copy) == SOURCES
    assert all((copy / name).read_text() == (project / name).read_text() for name in SOURCES)
    assert [path.name for path in (tmp_path / "code").iterdir()] == [copy.name]


def test_the_project_s_own_sources_are_all_that_its_packages_have() -> None:
    found = {path.as_posix() for path in sources()}
    assert {"launch.py", "jobs/conductor.py", "jobs/rank.py", "agl_core/config/train.py"} <= found
    assert {"agl_core/recipes/kbrodt.yaml", "cluster_configs/slurm.yaml"} <= found
    assert not any(name.startswith(("tests/", "runs/", ".")) or "__pycache__" in name for name in found)


def test_the_same_code_is_copied_once(project: Path, tmp_path: Path) -> None:
    first = take_snapshot(tmp_path / "code", project)
    (project / "tests" / "test_work.py").write_text("changed")
    (project / "jobs" / "__pycache__" / "work.cpython-311.pyc").write_text("compiled anew")
    before = first.stat().st_mtime_ns
    assert take_snapshot(tmp_path / "code", project) == first == snapshot_path(tmp_path / "code", project)
    assert first.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "edit",
    [
        lambda root: (root / "jobs" / "work.py").write_text("ANSWER = 2\n"),
        lambda root: (root / "agl_core" / "recipes" / "demo.yaml").write_text("seed: 2\n"),
        lambda root: (root / "jobs" / "new.py").touch(),
        lambda root: (root / "jobs" / "work.py").rename(root / "jobs" / "play.py"),
        lambda root: (root / "jobs" / "work.py").unlink(),
    ],
    ids=["a line", "a recipe", "a new file", "another name", "a file less"],
)
def test_an_edit_gives_another_copy_and_leaves_the_first(project: Path, tmp_path: Path, edit) -> None:
    first = take_snapshot(tmp_path / "code", project)
    edit(project)
    second = take_snapshot(tmp_path / "code", project)
    assert second != first
    assert (first / "jobs" / "work.py").read_text() == "ANSWER = 1\n"
    assert digest(second) == digest(project) != digest(first)


def change(root: Path) -> None:
    (root / "launch.py").write_text("print('edited')\n")


def remove(root: Path) -> None:
    (root / "launch.py").unlink()


@pytest.mark.parametrize("meanwhile", [change, remove], ids=["edited", "deleted"])
def test_code_that_changes_while_it_is_copied_is_not_taken(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile
) -> None:
    copyfile = shutil.copyfile

    def copy(source: Path, target: Path) -> None:
        copyfile(source, target)
        if source.name == "work.py":
            meanwhile(project)

    monkeypatch.setattr(snapshot.shutil, "copyfile", copy)
    with pytest.raises(UserError, match="changed while it was copied"):
        take_snapshot(tmp_path / "code", project)
    assert files(tmp_path / "code") == []
    monkeypatch.undo()
    assert take_snapshot(tmp_path / "code", project).is_dir()


def test_a_disk_that_fails_while_copying_leaves_nothing(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshot, "fsync_file", full)
    with pytest.raises(UserError, match=r"No space left on device.*--runs"):
        take_snapshot(tmp_path / "code", project)
    assert list((tmp_path / "code").iterdir()) == []


def test_another_process_may_be_faster_with_the_same_code(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, target = os.replace, snapshot_path(tmp_path / "code", project)

    def late(source: Path, destination: Path) -> None:
        shutil.copytree(source, destination)
        replace(source, destination)

    monkeypatch.setattr(snapshot.os, "replace", late)
    assert take_snapshot(tmp_path / "code", project) == target
    assert files(tmp_path / "code") == [f"{target.name}/{name}" for name in SOURCES]


def python(code: Path, folder: Path, *words: str) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, *words], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_process_in_the_checkout_s_folder_imports_the_copy_and_hands_it_on(tmp_path: Path) -> None:
    copy = take_snapshot(tmp_path / "code")
    show = (
        "import agl_core, jobs, sys; from pathlib import Path; from jobs.snapshot import take_snapshot; "
        "from jobs.cluster import CLUSTERS; from agl_core.config import RECIPES; "
        "print(jobs.__file__, agl_core.__file__, CLUSTERS, RECIPES, "
        "*(take_snapshot(Path(folder)) for folder in sys.argv[1:]))"
    )
    found = python(copy, ROOT, "-c", show, str(tmp_path / "code"), str(tmp_path / "other"))
    assert found == [
        f"{copy}/jobs/__init__.py",
        f"{copy}/agl_core/__init__.py",
        f"{copy}/cluster_configs",
        f"{copy}/agl_core/recipes",
        str(copy),
        str(tmp_path / "other" / copy.name),
    ]
    assert files(tmp_path / "other" / copy.name) == [path.as_posix() for path in sources()]


def test_the_edit_of_a_checkout_does_not_reach_a_process_with_a_copy(project: Path, tmp_path: Path) -> None:
    copy = take_snapshot(tmp_path / "code", project)
    (project / "jobs" / "work.py").write_text("ANSWER = 2\n")
    assert python(copy, project, "-c", "import jobs.work; print(jobs.work.ANSWER)") == ["1"]
