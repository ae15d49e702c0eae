"""The challenge's submission: all files of all images in one flat archive."""

import gzip
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from agl_core.errors import UserError
from agl_core.files import whole_file, writable_folder
from agl_core.inference.folder import AGL, VFLOW

_SUFFIXES = (".tar.gz", ".tgz", ".tar")
_LEVEL = 1  # heights are compressed already
_MOST_LISTED = 20


def pack(folder: Path, ids: Sequence[str], archive: Path, between: Callable[[], None] = lambda: None) -> None:
    """Write `<id>_AGL.tif` and `<id>_VFLOW.json` of all `ids` to `archive`, whole or not at all.

    The bytes depend on the names and contents of the files alone. `between` is called before each image; what it raises
    ends this without an archive.

    Raises:
        UserError: an image is not complete (all are named), or the archive cannot be written there.
    """
    archive = Path(archive)
    check_name(archive)
    names = [f"{image}{kind}" for image in sorted(ids) for kind in (AGL, VFLOW)]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        more = f" and {len(missing) - _MOST_LISTED} more" if len(missing) > _MOST_LISTED else ""
        raise UserError(
            f"{archive} is not written, since {folder} lacks {', '.join(missing[:_MOST_LISTED])}{more}: predict all "
            "images first"
        )
    writable_folder(archive.absolute().parent, "--archive")
    with (
        whole_file(archive) as aside,
        open(aside, "wb") as file,
        _packed(file, archive.name) as inner,
        tarfile.open(fileobj=inner, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in names:
            between()
            _add(tar, folder / name)


def check_name(archive: Path) -> None:
    """Raise a `UserError` for an archive of another kind, or one that is a folder."""
    if not archive.name.endswith(_SUFFIXES):
        raise UserError(f"archive is {str(archive)!r}: give the name of a .tar.gz or .tar file")
    if archive.is_dir():
        raise UserError(f"{archive} is a folder: give the name of a .tar.gz or .tar file with --archive")


@contextmanager
def _packed(file: IO[bytes], name: str) -> Iterator[IO[bytes]]:
    if name.endswith(".tar"):
        yield file
        return
    with gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=file, mtime=0) as inner:
        yield inner  # type: ignore[misc]


def _add(tar: tarfile.TarFile, path: Path) -> None:
    """Add a file with nothing but its name, size and content."""
    about = tarfile.TarInfo(path.name)
    about.mode = 0o644
    with path.open("rb") as file:
        about.size = path.stat().st_size
        tar.addfile(about, file)
