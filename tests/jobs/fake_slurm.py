"""A cluster of shell scripts: what they answer lies in files beside them, and what they were asked is written down."""

import os
from pathlib import Path

import pytest

SCRIPTS = {
    # The lines of `queue` whose first cell is among the ids after --jobs.
    "squeue": """
        echo "squeue $*" >> asked; env | grep ^SQUEUE_ >> asked
        test -e queue || exit 1
        for id in $(echo "$3" | tr , ' '); do grep "^$id|" queue; done > shown
        test -s shown || test ! -e forgotten || { echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1; }
        cat shown """,
    "scontrol": """
        echo "scontrol $*" >> asked
        if [ "$1" = requeue ]; then test ! -e refusal || { cat refusal >&2; exit 1; }; exit 0; fi
        test -e job.$4 || { echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1; }
        cat job.$4 """,
    "scancel": """
        echo "scancel $*" >> asked
        test ! -e refusal || { cat refusal >&2; exit 1; } """,
    "sacct": """
        echo "sacct $*" >> asked
        test -e accounts || { echo 'Slurm accounting storage is disabled' >&2; exit 1; }
        cat accounts """,
}


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the cluster first on PATH; its queue is empty."""
    folder.mkdir()
    for name, body in SCRIPTS.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\ncd {folder}\n{body}\n")
        path.chmod(0o755)
    (folder / "queue").touch()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def remove(folder: Path) -> None:
    """Let Slurm answer no more."""
    (folder / "queue").unlink()


def asked(folder: Path) -> list[str]:
    """The commands that were given, and the filters in their environment."""
    path = folder / "asked"
    return path.read_text().splitlines() if path.exists() else []
