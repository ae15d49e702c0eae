"""The healthy site as a cluster of shell scripts: what they answer lies in files beside them."""

import os
from pathlib import Path

import pytest

from tests.jobs.doctor.healthy import TEXTS

ANSWERS = {
    "sinfo": "cat version",
    "scontrol": """
        echo "scontrol $*" >> asked
        test ! -e hanging || sleep 60
        case "$*" in *"show config") cat config;; *"show partition"*) cat partitions;; *"show node"*) cat nodes;;
            *) exit 1;; esac """,
    "sacctmgr": 'case "$4" in qos) cat qos;; assoc) cat associations;; esac',
    "sbatch": """
        cat > script; echo "sbatch $*" >> asked
        test ! -e refusal || { cat refusal >&2; exit 1; }
        echo "sbatch: Job 7 to start at 2030-01-01T00:00:00" >&2 """,
    "srun": "true",
    "squeue": "true",
    "scancel": "true",
}


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the site first on PATH."""
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    for name, body in ANSWERS.items():
        path = folder / f"{name}"
        path.write_text(f"#!/bin/bash\ncd {folder}\n{body}\n")
        path.chmod(0o755)
    stamp = "$(date +%Y-%m-%dT%H:%M:%S)"  # the controller's clock is that of this machine
    lines = TEXTS["config"].splitlines()[1:]
    (folder / "config").write_text("\n".join(lines) + "\n")
    script = (
        (folder / "scontrol").read_text().replace("cat config", f'echo "Configuration data as of {stamp}"; cat config')
    )
    (folder / "scontrol").write_text(script)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def plant(folder: Path, which: str, old: str, new: str) -> None:
    """Have a command answer otherwise."""
    text = (folder / which).read_text()
    assert old in text
    (folder / which).write_text(text.replace(old, new))


def asked(folder: Path) -> list[str]:
    """The commands that were given."""
    path = folder / "asked"
    return path.read_text().splitlines() if path.exists() else []
