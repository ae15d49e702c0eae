"""How far a job has come, read from the run directory alone and quickly: for the ledger of restarts."""

import json
from pathlib import Path
from typing import Any

from agl_core.durable.chain import chain_files
from agl_core.durable.retention import checkpoint_step, list_checkpoints
from agl_core.errors import UserError
from jobs.pipeline import ENSEMBLE, PREDICT, PREPARE, STAGE
from jobs.runs import Run

TAIL = 1 << 16  # bytes at the end of a chain in which its last step is looked for; a line has all losses of a batch


def kept(run: Run, name: str, kind: str) -> int | None:
    """What an attempt at a job can build on: a number that grows whenever something was kept, None if nothing can be.

    For a stage it is the step of its newest checkpoint; for the others a size on disk or a number of files.
    """
    if kind == STAGE:
        try:
            known = list_checkpoints(run.checkpoints(name))
        except OSError:  # the disk is away for a moment, which must end no job
            return None
        return checkpoint_step(known[0].name) if known else 0
    if kind == PREPARE:
        try:
            return (Path(run.config().store) / "data.mdb").stat().st_blocks
        except (OSError, UserError):
            return 0
    if kind in (PREDICT, ENSEMBLE):
        return predicted(run)
    return None


def predicted(run: Run) -> int:
    """How many images are predicted where the run has its predictions, or a job of the verb `predict` writes them."""
    try:
        folder = Path(run.prediction().out) if run.is_prediction() else run.predictions
        return sum(1 for _ in folder.glob("*_VFLOW.json")) if folder.is_dir() else 0
    except (OSError, UserError):
        return 0


def reached(run: Run, name: str, kind: str) -> int | None:
    """The last step that the newest incarnation of a stage has done, whether it was kept or not; for other jobs what
    was kept; None if it cannot be known. A later one may have come less far than an earlier one that kept nothing."""
    if kind != STAGE:
        return kept(run, name, kind)
    try:
        newest = chain_files(run.path, name)[-1:]
    except OSError:  # the disk is away for a moment, which must end no job, and start none twice
        return None
    steps = [step for path in newest if (step := _last_step(path)) is not None]
    return max([*steps, kept(run, name, kind) or 0])


def _last_step(path: Path) -> int | None:
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - TAIL, 0))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return None
    for line in reversed(lines):
        try:
            entry: Any = json.loads(line)
        except (ValueError, RecursionError):  # the first one was cut at its beginning, and any may be torn
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int) and "losses" in entry:
            return int(entry["step"])
    return None
