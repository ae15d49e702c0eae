"""Which checkpoints are kept, and how the others go away without ever looking like checkpoints that are damaged."""

import json
import os
import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agl_core.files import fsync_folder, naming

MANIFEST = "manifest.json"
STATE = "state.json"
FILES = ("model.safetensors", "optimizer.safetensors", STATE)
"""What the manifest of a checkpoint vouches for."""
AVERAGE = "average.safetensors"
"""And for this, where the state has an average of the weights."""
PREFIX = "step_"
PART, GONE = ".part", ".gone"
ABANDONED = 3600.0
"""Seconds after the last change after which the part of a save is taken for that of a killed process."""


@dataclass(frozen=True)
class Retention:
    """Keeps the newest `last` checkpoints, the newest that was the best of its time (if `best`), the newest that was
    saved on schedule (a roll-back goes there), and all milestones."""

    last: int = 2
    best: bool = True

    def keeps(self, states: Sequence[dict[str, Any]]) -> list[bool]:
        """Which of the sound checkpoints with these contents of state.json, newest first, are kept.

        The first is the one that has just been saved and is always kept.
        """
        kept = [place < max(self.last, 1) or state.get("milestone") is True for place, state in enumerate(states)]
        # It may have been saved, at an interruption, before it was known to be the best.
        best_step = states[0].get("best_step") if states and self.best else None
        for place, state in enumerate(states):
            kept[place] |= best_step is not None and state.get("step") == best_step
        for flag in ["scheduled", *(["best"] if self.best else [])]:
            newest = next((place for place, state in enumerate(states) if state.get(flag) is True), None)
            if newest is not None:
                kept[newest] = True
        return kept


def checkpoint_name(step: int) -> str:
    """The name of the directory of the checkpoint after `step` steps."""
    return f"{PREFIX}{step:08d}"


def checkpoint_step(name: str) -> int | None:
    """The step of the checkpoint directory `name`, or None if it is not the name of one."""
    match = re.fullmatch(rf"{PREFIX}(\d+)", name)
    return int(match[1]) if match else None


def files_of(manifest: Collection[str]) -> list[str]:
    """The files of the checkpoint with this manifest, which may miss some of them."""
    return [*FILES, *([AVERAGE] if AVERAGE in manifest else [])]


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoint directories below `folder`, good or bad, newest first; none if there is no `folder`.

    Raises:
        OSError: the folder cannot be read, which must not be taken for an empty one.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    steps = [(step, name) for name in names if (step := checkpoint_step(name)) is not None]
    return [folder / name for _, name in sorted(steps, reverse=True)]


def retire(folder: Path, saved: Path, retention: Retention, discard: Collection[str]) -> list[Path]:
    """Hide the checkpoints of `folder` that are not kept now that `saved` is durable, and return what is left of
    them, to be deleted with `remove`.

    Only those before `saved` are subject to `retention`: a later one may be that of another process, which has just
    saved it. Of the earlier ones only sound ones count, so that a damaged one never crowds out a good one; damaged
    ones go. Those named in `discard` go whatever their step, except `saved`.

    Raises:
        OSError: one of `discard` stays, which is of another course of the run and could be loaded instead of `saved`,
            or the file system fails. That an old checkpoint stays is no error: the next save tries again.
    """
    names = {path.name for path in list_checkpoints(folder)} - {saved.name}
    hidden = [hide(folder / name) for name in sorted(names.intersection(discard))]
    for path in _outdated(folder, saved, retention):
        try:
            hidden.append(hide(path))
        except OSError:
            continue  # permissions, say: an old checkpoint more
    gone = [path for path in hidden if path is not None]
    if gone:
        # Their names must be gone for good before their files are: they would look like damaged checkpoints.
        sync_folder(folder)
    return gone


def sync_folder(folder: Path) -> None:
    """Make the entries of `folder` survive a power cut; an OSError names it."""
    with naming(folder):
        fsync_folder(folder)


def hide(path: Path) -> Path | None:
    """Rename the checkpoint `path` to a name that no one loads or publishes; None if it is not there any more.

    Raises:
        OSError: it cannot be renamed.
    """
    hidden = path.with_name(f".{path.name.removeprefix('.')}.{secrets.token_hex(4)}{GONE}")
    try:
        os.rename(path, hidden)
    except FileNotFoundError:
        return None
    return hidden


def remove(path: Path) -> bool:
    """Delete the file, link or directory `path`, which has a hidden name; whether it is gone.

    A deletion that fails (permissions, a network file system that keeps open files) leaves a hidden directory that
    nobody loads, and the next save tries again; so it is not an error.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            for name in sorted(os.listdir(path)):
                remove(path / name)
            os.rmdir(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        return True  # somebody else was faster
    except OSError:
        return False
    return True


def sweep(folder: Path) -> None:
    """Delete what killed processes left below `folder`: deletions and saves that were not finished.

    What is safe: a directory of a deletion is of no use to anyone. A part may belong to another survivor of the same
    group that saves the same or a neighbouring step at this moment, and its step does not tell, since a killed
    incarnation may have been ahead or behind; but whoever lives writes. So only the time of the last change counts,
    and an hour is more than any write or fsync takes. Should it still be alive, then the rename, which comes before
    the deletion, makes its own rename fail as a whole: it never publishes a directory that is half deleted.
    """
    try:
        os.utime(folder)  # asks the file system for its own clock, which may differ from this machine's
        now = folder.stat().st_mtime
        left = sorted(name for name in os.listdir(folder) if name.startswith(f".{PREFIX}"))
        gone = [folder / name for name in left if name.endswith(GONE)]
        for path in (folder / name for name in left if name.endswith(PART)):
            if (hidden := _hide_abandoned(path, now)) is not None:
                gone.append(hidden)
        if gone:
            sync_folder(folder)  # as in `retire`, whose process may have been killed before its own
    except OSError:
        return  # of no harm: the next save tries again
    for path in gone:
        remove(path)


def _hide_abandoned(part: Path, now: float) -> Path | None:
    """Hide the part of a save that no living process writes; None if it is in use, gone or not ours to rename."""
    try:
        last_change = max(path.stat().st_mtime for path in [part, *part.iterdir()])
        return hide(part) if now - last_change > ABANDONED else None
    except OSError:
        return None


def _outdated(folder: Path, saved: Path, retention: Retention) -> list[Path]:
    """The checkpoints before `saved` that `retention` does not keep or that are damaged, newest first."""
    newest = checkpoint_step(saved.name)
    assert newest is not None
    sound: list[tuple[Path, dict[str, Any]]] = []
    damaged: list[Path] = []
    for path in list_checkpoints(folder):
        step = checkpoint_step(path.name)
        assert step is not None
        if step > newest:
            continue
        try:
            sound.append((path, _state_if_sound(path)))
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError, RecursionError):
            damaged.append(path)
        except OSError:
            continue  # it cannot be read just now, which is no reason to delete it
    kept = retention.keeps([state for _, state in sound])
    outdated = [path for (path, _), keep in zip(sound, kept, strict=True) if not keep]
    return [path for path in [*damaged, *outdated] if path.name != saved.name]


def _state_if_sound(path: Path) -> dict[str, Any]:
    """The content of state.json, if the files have the sizes of the manifest; contents are not read, it is too dear
    to do at every save."""
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    for name in files_of(manifest):
        if (path / name).stat().st_size != manifest[name]["size"]:
            raise ValueError(f"{name} has not the size in the manifest")
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    if not isinstance(state, dict):
        raise ValueError(f"{STATE} is not an object")
    return state
