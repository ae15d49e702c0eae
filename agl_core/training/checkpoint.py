"""Checkpoints: one directory per step, whole or not at all, checked when it is read.

    checkpoints/<stage>/step_00001234/
        model.safetensors      weights and buffers
        optimizer.safetensors  moments and steps by parameter name
        state.json             step, best score, gradient scaler, configuration digest
        manifest.json          size and xxh3 of every file above

Random generators are not in it: every stream is a function of the step (`agl_core.data.seeding`).
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from safetensors.torch import load_file
from torch import Tensor

from agl_core.files import fsync_file, fsync_folder
from agl_core.model.tensors import save_tensors

MANIFEST = "manifest.json"
PREFIX = "step_"


@dataclass
class Checkpoint:
    """The complete state after `step` optimiser steps of a stage."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write `checkpoint` below `folder` and delete all but the newest `keep` up to its step.

    Later steps are deleted too: they are damaged, or the run would have continued from them.
    After this returns the checkpoint survives a power cut; before, none of it can be seen. Saving a step that is
    there already replaces it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{PREFIX}{checkpoint.step:08d}"
    aside = folder / f".{final.name}.part"
    _remove(aside)
    aside.mkdir()
    save_tensors(aside / "model.safetensors", checkpoint.model)
    save_tensors(aside / "optimizer.safetensors", checkpoint.optimizer)
    state = {"step": checkpoint.step, **checkpoint.state}
    (aside / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
    manifest = {path.name: _fingerprint(path) for path in sorted(aside.iterdir())}
    (aside / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    for path in sorted(aside.iterdir()):
        fsync_file(path)
    fsync_folder(aside)
    _remove(final)
    aside.rename(final)
    fsync_folder(folder)
    steps = _steps(folder)
    newest = steps.index(final)
    for other in steps[:newest] + steps[newest + max(keep, 1) :]:
        _remove(other)
    return final


def load_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint below `folder` whose files match their manifest, and why newer ones were skipped.

    None if there is no good one. No code is executed by reading: safetensors and JSON only.
    """
    skipped: list[str] = []
    for path in _steps(folder):
        problem = verify_checkpoint(path)
        if problem is None:
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            model, optimizer = load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors")
            return Checkpoint(int(state.pop("step")), model, optimizer, state), skipped
        skipped.append(f"{path.name}: {problem}")
    return None, skipped


def verify_checkpoint(path: Path) -> str | None:
    """What is wrong with the checkpoint directory `path`, or None."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
            if name not in manifest:
                return f"{name} is not in the manifest"
            if _fingerprint(path / name) != manifest[name]:
                return f"{name} differs from its manifest"
    except (OSError, ValueError, TypeError) as error:
        return f"unreadable ({error})"
    return None


def _steps(folder: Path) -> list[Path]:
    """The checkpoint directories below `folder`, newest first."""
    return sorted(folder.glob(f"{PREFIX}[0-9]*"), reverse=True) if folder.is_dir() else []


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return {"size": path.stat().st_size, "xxh3": digest.hexdigest()}


def _remove(path: Path) -> None:
    """Delete a directory. A deletion that fails leaves a directory without a manifest or an old checkpoint, which
    harms nothing, so it is not an error."""
    if path.is_dir():
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
