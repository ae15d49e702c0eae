"""Stage-in: a copy of the sealed store on the node's own disk or in its memory, shared by all processes of the node.

A copy is a folder `agl-<uid>-<digest>` below the folder that the user names:

    agl-stage-in.lock   flock(2): exclusive while the copy is made or removed, shared while it is read
    data.mdb, offsets.bin
    about.json          written last: whose copy it is, and the sizes of its files
    *.part, chunks.txt  while it is made: what is there already, see `agl_core.data.stagein.copying`

The digest stands for the store's place and state, so that another state of it has another copy. What crashes, or is
killed, leaves its copy for whoever starts next; a copy of another state or store that nobody holds is removed by the
next one that is made beside it. Nothing without the right name, owner and lock file is ever touched.
"""

import fcntl
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from agl_core.data.stagein.copying import CHUNK, ChunkJournal, copy_file
from agl_core.data.stagein.room import shortage
from agl_core.data.stagein.state import DATABASE, StoreState
from agl_core.errors import UserError
from agl_core.files import fsync_folder, read_json, write_json

LOCK, ABOUT, JOURNAL = "agl-stage-in.lock", "about.json", "chunks.txt"
FORMAT = "agl-stage-in"
OWN = re.compile(
    r"data\.mdb|offsets\.bin|(data\.mdb|offsets\.bin)\.part|about\.json|\.about\.\w+\.part\.json|chunks\.txt"
)
VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})")
POLL = 0.1  # seconds between two looks whether another process has finished the copy
STALLED = 300.0  # seconds without a sign of life of the process that makes it, after which it is not waited for
ROUNDS = 3  # times that a copy which was taken away at the last moment is asked for again


class NotStagedError(Exception):
    """There is no copy to read from, for the reason that the message says."""


class StopCopyingError(Exception):
    """Somebody has asked for an end; what is copied stays."""


def expand(text: str) -> Path:
    """The folder that the user has named, with the environment variables of this node; NotStagedError if there is
    none of them here, or if it is no full path."""
    for plain, braced in VARIABLE.findall(text):
        if not os.environ.get(plain or braced):
            raise NotStagedError(f"the variable {plain or braced} of stage_in={text} is not set on this node")
    folder = Path(os.path.expandvars(text))
    if not folder.is_absolute():
        raise NotStagedError(f"stage_in={text} is no full path on this node")
    return folder


class StagedCopy:
    """This process's view of the copy of a store on its node: to be made, waited for, read and left.

    `bytes_done` counts what the copying has come through, `signs` grows as long as it, here or in the process that is
    waited for, comes on; `copied` are the bytes that this process has copied itself, None as long as it has not had to.
    """

    def __init__(self, source: StoreState, folder: Path, chunk: int = CHUNK) -> None:
        """The copy of `source` below `folder`, which is made if only it is missing.

        Raises:
            NotStagedError: the folder cannot be used, or there is nothing to gain.
        """
        with _in_words(folder):
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            _check_shared(folder)
            if same_file_system(source.path / DATABASE, folder):
                raise NotStagedError(f"{folder} is on the same file system")
        self.source, self.folder, self._chunk = source, folder, chunk
        self.path = folder / f"agl-{os.geteuid()}-{source.digest}"
        self.bytes_done = self.signs = 0
        self.copied: int | None = None
        self._lock = -1

    def place(self) -> str:
        """The same text in all processes that see this very copy."""
        known = self.folder.stat()
        boot = Path("/proc/sys/kernel/random/boot_id")
        node = boot.read_text() if boot.exists() else os.uname().nodename
        return f"{node} {known.st_dev} {known.st_ino} {self.path.name}"

    def obtain(self, stopped: Callable[[], bool]) -> None:
        """Make the copy, continue one, or wait for whoever makes it; afterwards this process holds it.

        Raises:
            NotStagedError: it cannot be had; what was begun is removed.
            StopCopyingError: `stopped` said so; what was begun stays.
        """
        with _in_words(self.folder):
            for _ in range(ROUNDS):
                if not self._claim(stopped):
                    return
                self._make(stopped)
                fcntl.flock(self._lock, fcntl.LOCK_SH)  # for a moment it is free, and may be removed
                if self._sound():
                    return
                self.leave(remove=False)
        raise NotStagedError(f"{self.path} was taken away again and again")

    def attach(self) -> bool:
        """Hold the copy if it is finished."""
        if self._finished() and self._open(fcntl.LOCK_SH):
            if self._sound():
                return True
            self.leave(remove=False)
        return False

    def leave(self, remove: bool) -> None:
        """Hold it no longer; the last process to leave with `remove` removes it."""
        if self._lock < 0:
            return
        with suppress(OSError):
            if remove:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(self._lock), os.stat(self.path / LOCK)):
                    _remove(self.path)
        # Processes that were forked meanwhile have the file open too: closing it here would not unlock it.
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        os.close(self._lock)
        self._lock = -1

    def _claim(self, stopped: Callable[[], bool]) -> bool:
        """Hold the copy alone, to make it; False if it is finished, and held as `attach` does.

        Raises:
            NotStagedError: the other process does not come on.
        """
        seen, since = 0.0, time.monotonic()
        while not self.attach():
            if self._open(fcntl.LOCK_EX):
                return True
            if stopped():
                raise StopCopyingError
            with suppress(FileNotFoundError):
                if (sign := (self.path / LOCK).stat().st_mtime) != seen:
                    seen, since, self.signs = sign, time.monotonic(), self.signs + 1
            if time.monotonic() - since > STALLED:
                raise NotStagedError(f"the process that is making {self.path} does not come on")
            time.sleep(POLL)
        return False

    def _open(self, kind: int) -> bool:
        """Take the lock, if it is free and its file is still the one that everybody sees."""
        with suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
        _check_own(self.path)
        handle = -1
        try:
            handle = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), os.stat(self.path / LOCK)):
                self._lock, handle = handle, -1
                return True
        except (BlockingIOError, FileNotFoundError):  # held, or just being removed
            pass
        finally:
            if handle >= 0:
                os.close(handle)
        return False

    def _sound(self) -> bool:
        """Whether what is held is a finished copy that everybody sees."""
        with suppress(OSError):
            return os.path.samestat(os.fstat(self._lock), os.stat(self.path / LOCK)) and self._finished()
        return False

    def _finished(self) -> bool:
        try:
            about = read_json(self.path / ABOUT)
            sizes = [[name, (self.path / name).stat().st_size] for name, _ in self.source.files]
        except (UserError, OSError):
            return False
        wanted = {"format": FORMAT, "digest": self.source.digest, "files": sizes}
        return sizes == [list(each) for each in self.source.files] and about == wanted

    def _make(self, stopped: Callable[[], bool]) -> None:
        """Copy what is missing and declare the copy finished; it is held alone meanwhile."""
        if self._finished():
            return
        try:
            remove_others(self.folder, self.path.name)
            self._copy(stopped)
            self._check_unchanged()
            self._publish()
        except BaseException as error:
            self.leave(remove=not isinstance(error, StopCopyingError))
            raise

    def _copy(self, stopped: Callable[[], bool]) -> None:
        for name, _ in self.source.files:  # of a process that was killed while it declared the copy finished
            with suppress(FileNotFoundError):
                os.replace(self.path / name, self.path / f"{name}.part")
        (self.path / ABOUT).unlink(missing_ok=True)
        journal = ChunkJournal(self.path / JOURNAL)
        try:
            self.copied = before = 0
            for name, size in self.source.files:

                def moved(done: int, before: int = before) -> None:
                    if stopped():
                        raise StopCopyingError
                    self.bytes_done = before + done
                    self.signs += 1

                source, target = self.source.path / name, self.path / f"{name}.part"
                self.copied += copy_file(source, target, size, journal, moved, self._check_room, self._chunk)
                before += size
        finally:
            journal.close()

    def _check_room(self) -> None:
        """Before each chunk, since others write to the same disk or memory."""
        os.utime(self._lock)  # a sign of life
        self._check_unchanged()
        parts = (self.path / f"{name}.part" for name, _ in self.source.files)
        there = sum(part.stat().st_blocks * 512 for part in parts if part.exists())
        if (reason := shortage(self.folder, max(self.source.size - there, 0))) is not None:
            raise NotStagedError(reason)

    def _check_unchanged(self) -> None:
        if self.source.changed():
            raise NotStagedError(f"{self.source.path} has changed while it was copied")

    def _publish(self) -> None:
        for name, _ in self.source.files:
            os.replace(self.path / f"{name}.part", self.path / name)
        fsync_folder(self.path)
        files = [list(each) for each in self.source.files]
        write_json(self.path / ABOUT, {"format": FORMAT, "digest": self.source.digest, "files": files})
        (self.path / JOURNAL).unlink()


def remove_others(folder: Path, but: str) -> None:
    """Remove the copies below `folder` that this user has made and that no process holds, but the one named `but`."""
    pattern = re.compile(rf"agl-{os.geteuid()}-[0-9a-f]{{32}}")
    for name in sorted(os.listdir(folder)):
        if name == but or not pattern.fullmatch(name):
            continue
        with suppress(OSError, NotStagedError):
            _check_own(folder / name)
            handle = os.open(folder / name / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(handle), os.stat(folder / name / LOCK)):
                    _remove(folder / name)
            finally:
                os.close(handle)


def _remove(path: Path) -> None:
    """Remove a copy whose lock is held alone, the lock last: who takes it then sees that it is not there any more."""
    for name in sorted(os.listdir(path)):
        if OWN.fullmatch(name):
            (path / name).unlink()
    (path / LOCK).unlink()
    path.rmdir()


def same_file_system(file: Path, folder: Path) -> bool:
    """Whether both lie on the same disk, as far as that can be known."""
    return os.stat(file).st_dev == os.stat(folder).st_dev


def _check_own(path: Path) -> None:
    """Nobody else may have made this folder, nor be able to write to it: it could hold anything."""
    with suppress(FileNotFoundError):  # removed this moment
        known = path.lstat()
        if not stat.S_ISDIR(known.st_mode) or known.st_uid != os.geteuid() or known.st_mode & 0o022:
            raise NotStagedError(f"{path} is not a folder that only this user can write to")


def _check_shared(folder: Path) -> None:
    """Where everybody may write, only the sticky bit keeps them from exchanging folders of others."""
    mode = folder.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise NotStagedError(f"everybody may rename what is in {folder}: it has no sticky bit")


@contextmanager
def _in_words(folder: Path) -> Iterator[None]:
    """What the systems of either side refuse is a reason to read the store where it lies, and not to end."""
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        raise NotStagedError(f"{where}: {error.strerror or error}") from error
