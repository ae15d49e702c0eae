"""What the files of the digest chain hold, and how they are read; see `agl_core.durable.chain`."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from agl_core.errors import UserError

START = "0" * 32
"""The link of a run that has done nothing yet."""


@dataclass(frozen=True)
class StepEntry:
    """One optimiser step: samples, losses and link as they stand in the file."""

    step: int
    samples: str
    losses: tuple[str, ...]
    link: str

    def after(self, link: str) -> str:
        """The link that this entry has when the one before it is `link`."""
        return _hash(f"{link} step {self.step} {self.samples} {' '.join(self.losses)}")

    def line(self) -> str:
        """The entry as a line of the file."""
        return _line(step=self.step, samples=self.samples, losses=self.losses, link=self.link)


@dataclass(frozen=True)
class RollbackEntry:
    """The run diverged: after step `step` it took back its weights after step `to`, and went on with the next step."""

    step: int
    to: int
    link: str

    def after(self, link: str) -> str:
        """The link that this entry has when the one before it is `link`."""
        return _hash(f"{link} rollback {self.step} {self.to}")

    def line(self) -> str:
        """The entry as a line of the file."""
        return _line(rollback=self.step, to=self.to, link=self.link)


@dataclass(frozen=True)
class StateEntry:
    """Digests of the complete state after step `step`, by part (model, optimizer, average)."""

    step: int
    state: tuple[tuple[str, str], ...]

    def line(self) -> str:
        """The entry as a line of the file."""
        return _line(step=self.step, state=dict(self.state))


Entry = StepEntry | RollbackEntry | StateEntry


def read_chains(run_dir: Path, stage: str) -> list[list[Entry]]:
    """The chains of all incarnations of a stage, oldest first; incarnations that wrote nothing are left out.

    A last line that was cut off by a kill is left out; the incarnation after it has done that step again.

    Raises:
        UserError: a damaged line that is not a file's last.
    """
    return [chain for path in chain_files(run_dir, stage) if (chain := read_chain(path))]


def chain_files(run_dir: Path, stage: str) -> list[Path]:
    """The files of the chains of a stage, oldest incarnation first."""
    name = re.compile(rf"{re.escape(stage)}\.(\d+)(?:-(\d+))?\.jsonl")
    found = []
    for path in (Path(run_dir) / "chain").glob("*.jsonl"):
        if match := name.fullmatch(path.name):
            found.append((int(match[1]), int(match[2] or 1), path))
    return [path for *_, path in sorted(found)]


def read_chain(path: Path) -> list[Entry]:
    """The entries of one file; see `read_chains`."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]  # what follows the last \n is torn
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(_entry(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path} is damaged in line {number}; a run cannot be judged by it any more") from None
    return entries


def _entry(value: Any) -> Entry:
    """The entry that a line of JSON holds; ValueError, KeyError, TypeError or AttributeError if none."""
    if "rollback" in value:
        return RollbackEntry(int(value["rollback"]), int(value["to"]), str(value["link"]))
    if "state" in value:
        return StateEntry(int(value["step"]), tuple(sorted((str(k), str(v)) for k, v in value["state"].items())))
    return StepEntry(int(value["step"]), str(value["samples"]), tuple(map(str, value["losses"])), str(value["link"]))


def _line(**values: Any) -> str:
    return json.dumps(values) + "\n"


def _hash(text: str) -> str:
    return xxhash.xxh3_128(text.encode()).hexdigest()
