"""The pages of an LMDB file, read without LMDB, which has no call for where a value lies.

The format is that of LMDB 0.9 (mdb.c, "Page structures"): little-endian, a page header of 16 bytes, two meta pages
written in turn, nodes of 8 bytes + key + data in branch and leaf pages, and large data alone on overflow pages.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_META = struct.Struct("<IIQQ 48x QQQQQQ QQ")  # magic, version, ..., main database (pad, flags and depth first), ...
_META_MAGIC, _META_VERSION = 0xBEEFC0DE, 1
_PAGE_HEADER = 16
_BRANCH, _LEAF = 1, 2
_BIG_DATA, _OTHER_DATA = 1, 6  # of a node: data on overflow pages; sub-databases and duplicates, which no store has
_NODE = struct.Struct("<HHHH")
_DEEPEST = 32


class State(NamedTuple):
    """Which state of the file the last committed transaction left."""

    transaction: int
    root: int
    page_size: int
    pages: int
    """How many have been given out; the last of them may never have been written."""


class UnknownFormatError(Exception):
    """The file is not as LMDB 0.9 writes it."""


def read_state(file: int) -> State | None:
    """The state of the LMDB whose `data.mdb` is open as `file`; None if it has another format."""
    try:
        return _state(file)
    except (UnknownFormatError, struct.error):
        return None


def _state(file: int) -> State:
    # Two meta pages, written in turn; the size of a page is in both, as the first field of the free list's record.
    first = os.pread(file, _PAGE_HEADER + _META.size, 0)
    page_size = int(struct.unpack_from("<I", first, _PAGE_HEADER + 24)[0])
    if page_size < 512 or page_size & (page_size - 1):
        raise UnknownFormatError
    newest = None
    for raw in (first, os.pread(file, _PAGE_HEADER + _META.size, page_size)):
        magic, version, _, _, _, _, _, _, _, root, last, transaction = _META.unpack_from(raw, _PAGE_HEADER)
        if (magic, version) != (_META_MAGIC, _META_VERSION):
            raise UnknownFormatError
        if newest is None or transaction > newest.transaction:
            newest = State(transaction, root, page_size, last + 1)
    assert newest is not None
    return newest


def _values(file: int, page_size: int, page: int, depth: int) -> Iterator[tuple[bytes, int, int]]:
    """Key, offset and length of all values below a page, in the order of the keys."""
    raw = os.pread(file, page_size, page * page_size)
    number, _, flags, lower = struct.unpack_from("<QHHH", raw)
    if number != page or len(raw) != page_size or depth > _DEEPEST or flags not in (_BRANCH, _LEAF):
        raise UnknownFormatError
    for place in struct.unpack_from(f"<{(lower - _PAGE_HEADER) // 2}H", raw, _PAGE_HEADER):
        low, high, kind, key_size = _NODE.unpack_from(raw, place)
        if flags == _BRANCH:
            yield from _values(file, page_size, low | high << 16 | kind << 32, depth + 1)
            continue
        begin = place + _NODE.size + key_size
        if kind & _OTHER_DATA:
            raise UnknownFormatError
        if kind & _BIG_DATA:
            start = struct.unpack_from("<Q", raw, begin)[0] * page_size + _PAGE_HEADER
        else:
            start = page * page_size + begin
        yield raw[place + _NODE.size : begin], start, low | high << 16


def all_values(file: int, state: State) -> Iterator[tuple[bytes, int, int]]:
    """Key, offset and length of all values, in the order of the keys.

    Raises:
        UnknownFormatError: when the file is not as LMDB 0.9 writes it.
    """
    try:
        yield from _values(file, state.page_size, state.root, 0)
    except (struct.error, OverflowError):  # of a page that is too short, or far outside the file
        raise UnknownFormatError from None


def fill_up(data: Path) -> bool:
    """Make a file at least as long as its pages: then one that is shorter has been cut off. Nobody may write it.

    Returns:
        False when a value lies in what is missing, so that the file has been cut off already; it is left as it is.
    """
    with data.open("rb+") as file:
        state = read_state(file.fileno())
        size = os.fstat(file.fileno()).st_size
        if state is not None and size < state.pages * state.page_size:
            try:
                if any(start + length > size for _, start, length in all_values(file.fileno(), state)):
                    return False
            except UnknownFormatError:  # a page of keys is not there
                return False
            os.truncate(file.fileno(), state.pages * state.page_size)
            os.fsync(file.fileno())
    return True


def cut_off(data: Path) -> bool:
    """Whether a file that was filled up is shorter than it was: LMDB would die of touching what is missing."""
    with data.open("rb") as file:
        state = read_state(file.fileno())
        return state is not None and os.fstat(file.fileno()).st_size < state.pages * state.page_size
