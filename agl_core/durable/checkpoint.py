"""Checkpoints: one directory per step, whole or not at all, checked when it is read.

    checkpoints/<stage>/step_00001234/
        model.safetensors      weights and buffers
        optimizer.safetensors  moments and steps by parameter name
        average.safetensors    the average of the weights, where the stage keeps one
        state.json             step, best score, gradient scaler, why it was saved
        manifest.json          size and xxh3 of every file above

Random generators are not in it: every stream is a function of the step (`agl_core.data.seeding`).
"""

import errno
import json
import os
import secrets
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from agl_core.durable.retention import (
    AVERAGE,
    FILES,
    MANIFEST,
    PART,
    STATE,
    Retention,
    checkpoint_name,
    checkpoint_step,
    files_of,
    hide,
    list_checkpoints,
    remove,
    retire,
    sweep,
    sync_folder,
)
from agl_core.durable.tensorfile import Fingerprint, never, write_file, write_tensors

MODEL, OPTIMIZER, _ = FILES

Fence = Callable[[], AbstractContextManager[Any]]
"""Entered to publish: excludes every other writer, and raises if this process is no longer one."""

Manifest = dict[str, dict[str, Any]]


@dataclass
class Checkpoint:
    """The complete state after `step` optimiser steps of a stage; `state` holds JSON values, `average` is empty in a
    stage without an average of its weights."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    average: dict[str, Tensor] = field(default_factory=dict)


class DamagedCheckpointError(ValueError):
    """What is wrong with one checkpoint; it is caught in this module and becomes a line for the user."""


def save_checkpoint(
    folder: Path,
    checkpoint: Checkpoint,
    retention: Retention = Retention(),  # noqa: B008  (frozen)
    fence: Fence = nullcontext,
    cancelled: Callable[[], bool] = never,
    discard: Collection[str] = (),
) -> Path | None:
    """Write `checkpoint` below `folder`, then delete those that `retention` does not keep; None if `cancelled`.

    After this returns a path the checkpoint survives a power cut; before, either none of it can be seen or all of it.
    At every moment, also of a power cut, the newest complete checkpoint can be loaded. All data are written and
    fsynced aside; within `fence()` there are only the rename, the fsync of the folder and the renames of the
    retention, so that it is held for milliseconds (but for a step that is there already, which is read).

    If the step is there already and is good, another survivor has saved the same state: it stays, and what was
    written is removed. If it is bad, or named in `discard` and not the same, it is replaced.

    discard: names of checkpoints found bad, or later than the one that the run went back to. They are deleted. To be
    given until a save has succeeded and not after, since the run then comes by the same steps again.

    Raises:
        OSError: the checkpoint cannot be written: what was there before can still be loaded, and nothing of the new
            one is left. Or the file system failed at the very end: the new one is there, but a power cut may take it
            away or one of `discard` may be loaded in its place. That an old checkpoint cannot be deleted is no error.
        Exception: whatever `fence` raises; nothing has been published.
    """
    _make_folder(folder)
    final = folder / checkpoint_name(checkpoint.step)
    # The token keeps apart two processes that save the same step at the same moment.
    aside = folder / f".{final.name}.{secrets.token_hex(4)}{PART}"
    sweep(folder)  # before anything is written: what was left may be what fills the disk
    try:
        os.mkdir(aside)
        manifest = _write(aside, checkpoint, cancelled)
        if manifest is None or cancelled():
            return None
        with fence():
            gone = _publish(aside, final, manifest, final.name in discard)
            # Only now is anything deleted that a power cut could make necessary again.
            sync_folder(folder)
            gone += retire(folder, final, retention, discard)
    finally:
        remove(aside)
    for path in gone:
        remove(path)
    return final


def load_checkpoint(
    folder: Path, accept: Callable[[dict[str, Any]], bool] | None = None
) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint below `folder` that matches its manifest and can be read, and why newer ones were
    skipped ("step_00000012: model.safetensors differs from its manifest"); None if there is no good one.

    accept: sees the content of state.json, with "step"; checkpoints that it refuses are passed over without a word.
    The tensors are in memory of their own: the files may be deleted afterwards. No code is executed by reading:
    safetensors and JSON only.

    Raises:
        OSError: `folder` is there but cannot be read, which must not look like a run without checkpoints.
    """
    while True:
        found, bad, paths = None, {}, list_checkpoints(folder)
        for path in paths:
            try:
                found = _read(path, accept)
            except DamagedCheckpointError as error:
                bad[path] = str(error)
            if found is not None:
                break
        # A process that still writes may have deleted one while it was read: then there is a newer one.
        if all(os.path.lexists(path) for path in bad) or list_checkpoints(folder) == paths:
            return found, [f"{path.name}: {problem}" for path, problem in bad.items()]


def read_digests(path: Path) -> dict[str, str]:
    """xxh3_128 of the files of "model" and "optimizer", and of "average" if there is one, of the sound checkpoint
    `path`, in hexadecimal.

    The same state always makes the same files, so equal digests mean equal bits.
    """
    manifest = _read_manifest(path)
    return {Path(name).stem: manifest[name]["xxh3"] for name in files_of(manifest) if name != STATE}


def verify_checkpoint(path: Path) -> str | None:
    """What is wrong with the checkpoint directory `path`, or None. Reads all of it."""
    try:
        manifest, _ = _read_state(path)
        for name in files_of(manifest):
            if name != STATE:
                _check(path, name, manifest)
    except DamagedCheckpointError as error:
        return str(error)
    return None


def _make_folder(folder: Path) -> None:
    """Create `folder` and the one that it is in where needed so that they survive a power cut, also if the process that
    created one was killed before it could see to that: every folder is made durable before another is created in it,
    so only the last that is there already can be in doubt.

    What these two are in is the run directory. It is never made anew: its disk may be away and come back.
    """
    missing: list[Path] = []
    while not folder.is_dir():
        if len(missing) == 2:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
        missing.append(folder)
        folder = folder.parent
    sync_folder(folder.parent)
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def _write(aside: Path, checkpoint: Checkpoint, cancelled: Callable[[], bool]) -> Manifest | None:
    """Write the files into `aside` and make them durable; their manifest, or None if cancelled."""
    manifest: Manifest = {}
    parts = {MODEL: checkpoint.model, OPTIMIZER: checkpoint.optimizer}
    if checkpoint.average:
        parts[AVERAGE] = checkpoint.average
    for name, tensors in parts.items():
        fingerprint = write_tensors(aside / name, tensors, cancelled)
        if fingerprint is None:
            return None
        manifest[name] = fingerprint._asdict()
    state = {**checkpoint.state, "step": checkpoint.step}
    fingerprint = write_file(aside / STATE, [json.dumps(state, indent=2).encode()])
    assert fingerprint is not None
    manifest[STATE] = fingerprint._asdict()
    write_file(aside / MANIFEST, [json.dumps(manifest, indent=2).encode()])
    sync_folder(aside)
    return manifest


def _publish(aside: Path, final: Path, manifest: Manifest, discarded: bool) -> list[Path]:
    """Rename `aside` to `final`, unless a good checkpoint is there; hidden directories that are to be deleted."""
    gone: list[Path] = []
    while True:
        if os.path.lexists(final):
            if verify_checkpoint(final) is None and (not discarded or _read_manifest(final) == manifest):
                return gone
            bad = hide(final)
            if bad is not None:
                gone.append(bad)
        try:
            os.rename(aside, final)
        except OSError as error:
            # Without a common fence somebody else may have published in between. A directory is never overwritten.
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        else:
            return gone


def _read(path: Path, accept: Callable[[dict[str, Any]], bool] | None) -> Checkpoint | None:
    """The checkpoint in `path`, or None if `accept` refuses it."""
    manifest, state = _read_state(path)
    if accept is not None and not accept(state):
        return None
    model, optimizer = (_read_tensors(path, name, manifest) for name in (MODEL, OPTIMIZER))
    average = _read_tensors(path, AVERAGE, manifest) if AVERAGE in manifest else {}
    return Checkpoint(int(state.pop("step")), model, optimizer, state, average)


def _read_manifest(path: Path) -> Manifest:
    try:
        manifest: Manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        for name in FILES:
            if name not in manifest:
                raise DamagedCheckpointError(f"{name} is not in the manifest")
    except DamagedCheckpointError:
        raise
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DamagedCheckpointError(f"unreadable ({error})") from error
    return manifest


def _check(path: Path, name: str, manifest: Manifest) -> None:
    try:
        fingerprint = Fingerprint.of(path / name)
    except OSError as error:
        raise DamagedCheckpointError(f"unreadable ({error})") from error
    if fingerprint._asdict() != manifest[name]:
        raise DamagedCheckpointError(f"{name} differs from its manifest")


def _read_state(path: Path) -> tuple[Manifest, dict[str, Any]]:
    manifest = _read_manifest(path)
    _check(path, STATE, manifest)
    try:
        state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
        step = state["step"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedCheckpointError(f"unreadable ({error})") from error
    if step != checkpoint_step(path.name):
        raise DamagedCheckpointError(f"{STATE} is that of step {step}")
    return manifest, state


def _read_tensors(path: Path, name: str, manifest: Manifest) -> dict[str, Tensor]:
    _check(path, name, manifest)
    try:
        # The library maps the file into memory; the clones do not depend on it.
        return {key: tensor.clone() for key, tensor in load_file(path / name).items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise DamagedCheckpointError(f"{name} is unreadable ({error})") from error
