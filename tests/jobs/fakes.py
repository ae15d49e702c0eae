"""Slurm's commands as shell scripts: what they answer lies in files, and what they are asked is written down."""

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest


class FakeSlurm:
    """The commands in `folder`, which comes first in PATH.

    The k-th srun (from 0) does what `attempt` was called for the k-th time; after the last it does that again.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        self._attempts = 0
        self._write("srun", self._srun())
        self._write("scontrol", self._scontrol())
        self._write("scancel", 'echo "scancel $*" >> calls\n')
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "AGL_"))]:
            monkeypatch.delenv(name)

    def _srun(self) -> str:
        return """
            for word; do case "$word" in --output=*) out=${word#--output=};; esac; done
            export FOLDER=${out%/*} RUN=${out%/jobs/*}
            n=$(ls seen | wc -l); env > seen/$n; printf '%s\\n' "$@" > words
            while [ ! -e attempt.$n ]; do n=$((n - 1)); done
            . ./attempt.$n
            """

    def _scontrol(self) -> str:
        return """
            answer() { head -n 1 $1; if [ $(wc -l < $1) -gt 1 ]; then sed -i 1d $1; fi; }
            echo "scontrol $*" >> calls
            case "$1 $2" in
                "show job") said=$(answer facts); echo "$said"; [ -n "$said" ] && [ "$said" != silent ];;
                "show partition") [ -e partition ] && cat partition;;
                requeue*) if [ -s refusals ]; then head -n 1 refusals >&2; sed -i 1d refusals; exit 1; fi;;
                update*) [ ! -e no-update ];;
            esac
            """

    def _write(self, name: str, body: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/bash\ncd {shlex.quote(str(self.folder))}; mkdir -p seen\n{body}")
        path.chmod(0o755)

    def attempt(self, code: int = 0, ends: Sequence[dict[str, Any] | None] = (), before: str = "") -> None:
        """What the ranks of the next srun leave, and its exit code; `before` are lines of bash, with the attempt's
        folder in FOLDER and the run's in RUN. No ends: one rank that has ended with `code`."""
        lines = [before]
        for rank, end in enumerate(ends or [{"code": code}]):
            if end is not None:
                lines.append(f"echo {shlex.quote(json.dumps(end))} > $FOLDER/rank{rank}.json")
        text = "\n".join([*lines, f"exit {code}\n"])
        (self.folder / f"attempt.{self._attempts}").write_text(text)
        self._attempts += 1

    def says(self, *lines: str) -> None:
        """What scontrol says about the job, one time after the other, the last for ever; "silent": nothing."""
        (self.folder / "facts").write_text("".join(said.strip() + "\n" for said in lines))

    def refuses(self, *refusals: str) -> None:
        """How scontrol refuses the next requeues."""
        (self.folder / "refusals").write_text("".join(f"{refusal}\n" for refusal in refusals))

    @property
    def starts(self) -> int:
        """How often srun was called."""
        return len(list((self.folder / "seen").iterdir())) if (self.folder / "seen").exists() else 0

    def environment(self, number: int) -> dict[str, str]:
        """The environment of srun number `number`."""
        lines = (self.folder / "seen" / str(number)).read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    @property
    def words(self) -> list[str]:
        """The words of the last srun."""
        return (self.folder / "words").read_text().splitlines()

    def calls(self, kind: str = "") -> list[str]:
        """The calls of scontrol and scancel that begin with `kind`, but for questions."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if line.startswith(kind or ("scontrol requeue", "scontrol update", "scancel"))]
