"""A disk that counts what is done to it, dies at a given moment, and then shows what may have survived."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

Tree = dict[str, bytes | None]
"""Path below the root -> content of the file, or None for a folder."""


class PowerCut(BaseException):
    """The process ends here. Not an Exception: nothing may go on as if a call had failed."""


@dataclass(eq=False)
class File:
    content: bytearray = field(default_factory=bytearray)
    synced: bytes = b""


@dataclass(eq=False)
class Folder:
    entries: dict[str, "File | Folder"] = field(default_factory=dict)
    first: dict[str, "File | Folder"] = field(default_factory=dict)


@dataclass(eq=False)
class Change:
    """One change of the entries of a folder; it survives from the fsync of this folder on."""

    folder: Folder
    entries: dict[str, File | Folder | None]
    durable: bool = False


class Disk:
    """Passes the calls of `os` below `root` on, counts them, and keeps a second account of what is durable.

    die_at: the number of the operation, from 1, before which the process dies; with `torn` in the middle of it, if it
    is a write. fail_at: the operation that raises `error` instead. deaf: paths below the root whose fsync does
    nothing, as if it had been left out of the code.
    """

    CALLS = ("open", "write", "fsync", "close", "rename", "unlink", "mkdir", "rmdir")

    def __init__(
        self,
        root: Path,
        die_at: int = 0,
        torn: bool = False,
        fail_at: int = 0,
        error: int = 0,
        deaf: Callable[[str], bool] = lambda path: False,
    ) -> None:
        self.root, self.die_at, self.torn, self.fail_at, self.error, self.deaf = (
            root,
            die_at,
            torn,
            fail_at,
            error,
            deaf,
        )
        self.trace: list[str] = []
        self.changes: list[Change] = []
        self.handles: dict[int, tuple[str, File | Folder]] = {}
        self.processes = 1
        self.dead = False
        self.failed: str | None = None
        self.tree = self._scan(root)
        self.real: dict[str, Callable[..., Any]] = {}

    def attach(self, patch: pytest.MonkeyPatch) -> None:
        for name in self.CALLS:
            self.real[name] = getattr(os, name)
            patch.setattr(os, name, getattr(self, f"_{name}"))

    def unplug(self) -> None:
        """Close the files that the dead process had open; another process may go on with the same disk."""
        for handle in self.handles:
            os.close(handle)
        self.handles, self.dead, self.die_at, self.trace = {}, False, 0, []
        self.processes += 1

    def pictures(self) -> Iterator[tuple[str, Tree]]:
        """What may be on the disk when the power comes back."""
        yield "as it stands", self._picture(lambda change: True, synced=False)
        pending = [change for change in self.changes if not change.durable]
        for count in range(len(pending) + 1):
            kept = pending[:count]
            name = f"unsynced contents lost, {count} of {len(pending)} unsynced changes of folders made"
            yield name, self._picture(lambda change, kept=kept: change in kept, synced=True)  # type: ignore[misc]
        for number, lost in enumerate(pending):
            name = f"unsynced contents lost, change {number} of folders lost"
            yield name, self._picture(lambda change, lost=lost: change is not lost, synced=True)  # type: ignore[misc]

    def _picture(self, made: Callable[[Change], bool], synced: bool) -> Tree:
        entries: dict[Folder, dict[str, File | Folder]] = {}
        for change in self.changes:
            if change.durable or made(change):
                of = entries.setdefault(change.folder, dict(change.folder.first))
                for name, node in change.entries.items():
                    if node is None:
                        of.pop(name, None)
                    else:
                        of[name] = node
        tree: Tree = {}

        def walk(folder: Folder, prefix: str) -> None:
            for name, node in entries.get(folder, folder.first).items():
                if isinstance(node, Folder):
                    tree[prefix + name] = None
                    walk(node, f"{prefix}{name}/")
                else:
                    tree[prefix + name] = node.synced if synced else bytes(node.content)

        walk(self.tree, "")
        return tree

    def _scan(self, path: Path) -> Folder:
        """What is there at the beginning, all of it durable."""
        folder = Folder()
        for entry in path.iterdir():
            if entry.is_dir():
                folder.first[entry.name] = self._scan(entry)
            else:
                content = entry.read_bytes()
                folder.first[entry.name] = File(bytearray(content), content)
        folder.entries = dict(folder.first)
        return folder

    def _below(self, path: Any) -> str | None:
        path = Path(path)
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else None

    def _node(self, below: str) -> File | Folder:
        node: File | Folder = self.tree
        for name in below.split("/") if below != "." else []:
            assert isinstance(node, Folder)
            node = node.entries[name]
        return node

    def _change(
        self, path: Any, node: File | Folder | None, other: dict[str, File | Folder | None] | None = None
    ) -> None:
        path = Path(path)
        folder = self._node(self._below(path.parent) or ".")
        assert isinstance(folder, Folder)
        change = Change(folder, {**(other or {}), path.name: node})
        for name, value in change.entries.items():
            if value is None:
                del folder.entries[name]
            else:
                folder.entries[name] = value
        self.changes.append(change)

    def _count(self, name: str, below: str) -> None:
        if self.dead:
            raise PowerCut
        self.trace.append(f"{name} {below}")
        if len(self.trace) == self.die_at and not (self.torn and name == "write"):
            self.dead = True
            raise PowerCut
        if len(self.trace) == self.fail_at:
            self.failed = self.trace[-1]
            # As the system does: only calls with a path tell it.
            named = [] if name in ("write", "fsync", "close") else [str(self.root / below)]
            raise OSError(self.error, os.strerror(self.error), *named)

    def _open(self, path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        below = self._below(path) if isinstance(path, (str, Path)) else None
        if below is None:
            return int(self.real["open"](path, flags, mode, **more))
        self._count("open", below)
        handle = int(self.real["open"](path, flags, mode, **more))
        if flags & os.O_CREAT:
            assert flags & os.O_EXCL, "an existing file is opened for writing"
            self._change(path, File())
        self.handles[handle] = below, self._node(below)
        return handle

    def _write(self, handle: int, data: Any) -> int:
        if handle not in self.handles:
            return int(self.real["write"](handle, data))
        below, node = self.handles[handle]
        self._count("write", below)
        assert isinstance(node, File)
        dying = len(self.trace) == self.die_at
        written = int(self.real["write"](handle, data[: len(data) // 2] if dying else data))
        node.content += data[:written]
        if dying:
            self.dead = True
            raise PowerCut
        return written

    def _fsync(self, handle: int) -> None:
        if handle not in self.handles:
            return self.real["fsync"](handle)  # type: ignore[no-any-return]
        below, node = self.handles[handle]
        self._count("fsync", below)
        if self.deaf(below):
            return None
        if isinstance(node, File):
            node.synced = bytes(node.content)
        else:
            for change in self.changes:
                change.durable = change.durable or change.folder is node
        return None

    def _close(self, handle: int) -> None:
        if handle not in self.handles:
            return self.real["close"](handle)  # type: ignore[no-any-return]
        below, _ = self.handles[handle]
        if not self.dead:
            del self.handles[handle]
            self.real["close"](handle)  # it is closed, whether the call reports an error or not
        self._count("close", below)
        return None

    def _rename(self, old: Any, new: Any) -> None:
        source, target = self._below(old), self._below(new)
        assert source is not None
        assert Path(old).parent == Path(new).parent
        self._count("rename", f"{source} {target}")
        self.real["rename"](old, new)
        self._change(new, self._node(source), {Path(old).name: None})

    def _unlink(self, path: Any, **more: Any) -> None:
        self._remove("unlink", path, more)

    def _rmdir(self, path: Any, **more: Any) -> None:
        self._remove("rmdir", path, more)

    def _remove(self, name: str, path: Any, more: dict[str, Any]) -> None:
        below = self._below(path)
        if below is not None:
            self._count(name, below)
        self.real[name](path, **more)
        if below is not None:
            self._change(path, None)

    def _mkdir(self, path: Any, mode: int = 0o777, **more: Any) -> None:
        below = self._below(path)
        if below is not None:
            self._count("mkdir", below)
        self.real["mkdir"](path, mode, **more)
        if below is not None:
            self._change(path, Folder())


def write_tree(root: Path, tree: Tree) -> None:
    """Put a picture into the new folder `root`."""
    root.mkdir()
    for below, content in tree.items():
        if content is None:
            (root / below).mkdir()
        else:
            (root / below).write_bytes(content)


def read_tree(root: Path) -> Tree:
    """What lies below `root`."""
    paths = sorted(root.rglob("*"))
    return {path.relative_to(root).as_posix(): None if path.is_dir() else path.read_bytes() for path in paths}
