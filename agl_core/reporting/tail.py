"""The events of a run as they come: only what is new is read."""

import os
from pathlib import Path
from typing import Any

from agl_core.reporting.events import parse

Event = dict[str, Any]


class Tail:
    """Reads a growing events.jsonl, each byte once; what is torn, damaged or no event is left
    out, as by `read_all`."""

    def __init__(self, path: Path) -> None:
        self._path = Path(path)
        self._position = 0
        self._file: tuple[int, int] | None = None

    def read(self, upto: int | None = None) -> tuple[list[Event], bool]:
        """The events of lines completed since the last call, up to byte `upto`; and whether the file is another one
        now, so that what was read before does not count any more.

        Raises OSError if the file cannot be read; one that is not there yet has no events.
        """
        try:
            with self._path.open("rb") as file:
                about = os.fstat(file.fileno())
                identity = about.st_dev, about.st_ino
                another = self._file is not None and (identity != self._file or about.st_size < self._position)
                if another:
                    self._position = 0
                self._file = identity
                file.seek(self._position)
                content = file.read(-1 if upto is None else max(upto - self._position, 0))
        except FileNotFoundError:
            return [], False
        whole = content[: content.rfind(b"\n") + 1]
        self._position += len(whole)
        return [
            event for line in whole.split(b"\n") if (event := parse(line.decode("utf-8", "replace"))) is not None
        ], another
