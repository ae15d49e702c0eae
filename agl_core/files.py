"""Files that appear whole or not at all."""

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agl_core.errors import UserError


def fsync_folder(path: Path) -> None:
    """Make the entries of the folder `path` (creations, renames, deletions) survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_file(path: Path) -> None:
    """Make the content of the file `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add `path` to errors of calls on an open file, which do not name it."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed to `path`, on failure removed.

    After the block `path` holds the complete content and survives a power cut; before that, nobody has seen any
    of it. The temporary name keeps the suffix of `path`, since some libraries choose the format by it, and is
    created by whoever writes it, with the user's umask.
    """
    path = Path(path)
    aside = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        with naming(path):
            yield aside
            fsync_file(aside)
            os.replace(aside, path)
            fsync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all; NaN and infinity are refused, since they are not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or damaged one is a `UserError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); replace the file") from None


def is_file(text: str | Path) -> bool:
    """Whether there is a file of that name; what cannot be a name, since it is too long for one, is none."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False


def expanded(path: str, option: str) -> Path:
    """The absolute path that is meant by `path`, with `~` and environment variables filled in.

    A variable that is not set is a `UserError` that names the command-line `option` to change.
    """
    text = os.path.expanduser(os.path.expandvars(path))
    if unset := re.search(r"\$(\w+|\{\w+\})", text):
        raise UserError(
            f"{path} names {unset[0]}, which is not set here; set it or choose another folder with {option}"
        )
    return Path(text).absolute()


def writable_folder(path: Path, option: str) -> Path:
    """Create the folder `path` where needed and make sure that it can be written to.

    A folder that cannot is a `UserError` that names the command-line `option` to change.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be created ({error.strerror}); choose another folder with {option}") from None
    probe = path / f".{secrets.token_hex(4)}.probe"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{path} cannot be written to ({error.strerror}); choose another folder with {option}"
        ) from None
    return path
