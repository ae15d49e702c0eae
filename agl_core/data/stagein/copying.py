"""Copies of large files that are read back before they count, and that a killed process's successor continues."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import xxhash

CHUNK = 64 << 20  # bytes that are written, forced to the disk, read back and noted down together
PIECE = 4 << 20  # bytes that one request reads or writes: how soon somebody who wants an end is heard
ATTEMPTS = 2  # times that a chunk is written before the disk is given up


class ChunkJournal:
    """Which chunks of a folder's copies are on the disk: a text file with a line `<file> <offset> <length> <xxh3_128>`
    for each.

    A line says what was read back when it was written. Whoever continues hashes the chunk again: after a power cut a
    line may be there without its chunk.
    """

    def __init__(self, path: Path) -> None:
        """Read the journal `path`, which is made when there is none; lines that are torn or damaged count as none."""
        self._digests: dict[tuple[str, int, int], str] = {}
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        for line in text.splitlines():
            words = line.split()
            if len(words) == 4 and words[1].isdecimal() and words[2].isdecimal():
                self._digests[words[0], int(words[1]), int(words[2])] = words[3]
        self._file = path.open("a", encoding="utf-8")
        if text and not text.endswith("\n"):
            self._file.write("\n")

    def digest(self, name: str, offset: int, length: int) -> str | None:
        """The digest that was noted down for a chunk of the file `name`, None if it is not known to be there."""
        return self._digests.get((name, offset, length))

    def add(self, name: str, offset: int, length: int, digest: str) -> None:
        """Note down a chunk that is on the disk."""
        self._digests[name, offset, length] = digest
        self._file.write(f"{name} {offset} {length} {digest}\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def copy_file(
    source: Path,
    target: Path,
    size: int,
    journal: ChunkJournal,
    moved: Callable[[int], None],
    before_chunk: Callable[[], None] = lambda: None,
    chunk: int = CHUNK,
) -> int:
    """Copy the first `size` bytes of `source` to `target`, but for the chunks that are there already; the bytes copied.

    When this returns `target` is on the disk, and every chunk of it has been hashed twice: as it was read from
    `source`, by this process or one before, and as the disk gave it back. The source's pages are not left in memory.

    moved: called every few megabytes with the bytes of the file that are done; before_chunk: called before each chunk.
    What either raises ends the copying; the chunks in the journal stay.

    Raises:
        OSError: a disk refuses, is full, or does not give back what was written; `source` is shorter than `size`.
    """
    copied = 0
    reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        writing = os.open(target, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(writing, min(size, os.fstat(writing).st_size))
            for offset in range(0, size, chunk):
                length = min(chunk, size - offset)
                before_chunk()
                known = journal.digest(target.name, offset, length)
                if known is not None and known == _hash(writing, offset, length, moved):
                    continue
                digest = _copy_chunk(reading, writing, offset, length, moved, target)
                journal.add(target.name, offset, length, digest)
                copied += length
            os.fsync(writing)
        finally:
            os.close(writing)
    finally:
        os.close(reading)
    return copied


def _copy_chunk(
    reading: int, writing: int, offset: int, length: int, moved: Callable[[int], None], target: Path
) -> str:
    """Copy a chunk and read it back; its digest."""
    for _ in range(ATTEMPTS):
        digest = _hash(reading, offset, length, moved, writing)
        os.fdatasync(writing)
        for handle in (reading, writing):  # what is read back shall come from the disk, where that is possible
            os.posix_fadvise(handle, offset, length, os.POSIX_FADV_DONTNEED)
        if _hash(writing, offset, length, moved) == digest:
            return digest
    raise OSError(errno.EIO, "what is read back is not what was written", str(target))


def _hash(handle: int, offset: int, length: int, moved: Callable[[int], None], to: int | None = None) -> str:
    """xxh3_128 of a part of a file, which is written to the same place of the file `to` on the way, if there is one."""
    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(min(PIECE, length)))
    at, end = offset, offset + length
    while at < end:
        count = os.preadv(handle, [buffer[: end - at]], at)
        if count == 0:
            if to is None:
                return ""  # of a copy that was cut off
            raise OSError(errno.EIO, "it ends before its time")
        digest.update(buffer[:count])
        written = 0
        while to is not None and written < count:
            written += os.pwrite(to, buffer[written:count], at + written)
        at += count
        moved(at)
    return digest.hexdigest()
