"""The code that a run's jobs execute: a copy made when they are submitted.

A job may wait for days and come back for weeks; what happens in the checkout meanwhile must not reach it.
"""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from agl_core.errors import UserError
from agl_core.files import fsync_file, fsync_folder, writable_folder

ROOT = Path(__file__).parent.parent
PACKAGES = ("agl_core", "jobs", "cluster_configs")
FILES = ("launch.py",)
SUFFIXES = (".py", ".yaml", ".yml", ".json")
DIGITS = 12  # of the digest in the folder's name


def sources(root: Path = ROOT) -> Iterator[Path]:
    """The files of the project that a job may need, relative to `root`, in the order of their names."""
    found = [root / name for name in FILES if (root / name).is_file()]
    for package in PACKAGES:
        found += [path for path in (root / package).rglob("*") if path.suffix in SUFFIXES and path.is_file()]
    yield from sorted(path.relative_to(root) for path in found)


def digest(root: Path = ROOT) -> str:
    """SHA-256 of the names and contents of all sources, hex."""
    total = hashlib.sha256()
    for path in sources(root):
        content = (root / path).read_bytes()
        total.update(f"{path.as_posix()}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()


def snapshot_path(folder: Path, root: Path = ROOT) -> Path:
    """Where `take_snapshot` puts the present code."""
    return folder / digest(root)[:DIGITS]


def take_snapshot(folder: Path, root: Path = ROOT) -> Path:
    """Copy the sources below `root` to `<folder>/<digest>` and return that folder; the same code is copied once.

    The copy is there whole or not at all. A process that runs from a copy hands on that copy.

    Raises:
        UserError: the folder cannot be written to.
    """
    target = snapshot_path(folder, root)
    if target.is_dir():
        return target
    writable_folder(folder, "--runs")
    aside = folder / f".{target.name}.{secrets.token_hex(4)}.part"
    try:
        for path in sources(root):
            (aside / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / path, aside / path)
            fsync_file(aside / path)
        if digest(aside)[:DIGITS] != target.name:
            raise _changed(root, folder)
        try:
            os.replace(aside, target)
        except OSError:  # another process was faster with the same code
            if not target.is_dir():
                raise
        fsync_folder(folder)
    except FileNotFoundError:
        raise _changed(root, folder) from None
    except OSError as error:
        raise UserError(f"{folder} cannot take a copy of the code ({error.strerror}): choose another --runs") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _changed(root: Path, folder: Path) -> UserError:
    return UserError(f"{root} changed while it was copied to {folder}: give the same command again")
