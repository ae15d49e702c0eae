"""The files that TensorBoard reads, written and read here record by record.

torch's own writer hands records to a thread, which may lose the last ones when the process is killed, and names files
by the second, so that two starts in one second, or on two machines whose clocks differ, may be read in the wrong order.
Here a record is in the file when `append` returns, and files are read in the order of the starts.
"""

import io
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter, masked_crc32c

VERSION = "brain.Event:2"
_HEADER, _FOOTER = 12, 4  # bytes around a record: its length and checksums
_SUSPECT = 1 << 18  # bytes at the end of a file that a power cut may have spoilt


def file_name(generation: int, part: int = 0) -> str:
    """Of the file of one start of the run, which begins another `part` after the disk has refused one. The 9 has it
    read after those that are named by the time of their making, seconds since 1970, as earlier versions did."""
    return f"events.out.tfevents.9{generation:09d}.{part:03d}"


def summary(step: int, at: float, content: bytes) -> bytes:
    """A record of values. at: seconds since 1970; content: an encoded Summary."""
    event = Event(wall_time=at, step=step)
    event.summary.MergeFromString(content)
    return bytes(event.SerializeToString())


def session(step: int, at: float) -> bytes:
    """A record that takes back all earlier ones of `step` and later steps, unless it is the first of its kind."""
    begun = SessionLog(status=SessionLog.START)
    return bytes(Event(wall_time=at, step=step, session_log=begun).SerializeToString())


class RecordFile:
    """Appends records to a new file."""

    def __init__(self, path: Path, at: float) -> None:
        """at: seconds since 1970. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        if not self._file.tell():
            self.append([Event(wall_time=at, file_version=VERSION).SerializeToString()])

    def append(self, records: Iterable[bytes]) -> None:
        """Append all of them; they are in the file when this returns.

        Raises:
            OSError: the disk refuses; what follows belongs into another file, as nobody reads on after half a record.
        """
        content = io.BytesIO()
        writer = RecordWriter(content)
        for record in records:
            writer.write(record)
        if self._file.write(content.getbuffer()) != content.tell():
            raise OSError(f"{self._file.name} did not take a whole record")

    def close(self) -> None:
        """Close the file. Raises OSError."""
        self._file.close()


def read_records(folder: Path) -> Iterator[Any]:
    """The events of all files in `folder`, in the order in which TensorBoard reads them; of a damaged file those before
    the damage, as TensorBoard does.

    Raises OSError if a file cannot be read."""
    paths = sorted(path for path in folder.glob("*tfevents*") if path.is_file())
    for path in paths:
        content = path.read_bytes()
        place = 0
        while (record := _record(content, place)) is not None:
            try:
                event = Event.FromString(record)
            except DecodeError:  # what is far from the end is not checked: it was damaged on the disk
                break
            yield event
            place += _HEADER + len(record) + _FOOTER


def _record(content: bytes, place: int) -> bytes | None:
    """The record at `place`; None at the end, or where there is none that is whole."""
    header = content[place : place + _HEADER]
    if len(header) < _HEADER:
        return None
    length, check = struct.unpack("<QI", header)
    begin = place + _HEADER
    if check != masked_crc32c(header[:8]) or begin + length + _FOOTER > len(content):
        return None
    record = content[begin : begin + length]
    if begin + length + _SUSPECT > len(content):  # checking takes longer than all else
        (check,) = struct.unpack("<I", content[begin + length : begin + length + _FOOTER])
        if check != masked_crc32c(record):
            return None
    return record
