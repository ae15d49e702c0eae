"""A few lines at the end of a terminal that change in place, while what is printed goes above them.

The cursor is not hidden and no mode of the terminal is changed: whatever ends the process leaves it as it was.
"""

import io
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.text import Text

NARROWEST = 20


def can_draw(stream: TextIO) -> bool:
    """Whether a stream is a terminal whose cursor can be moved."""
    try:
        return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")
    except ValueError:  # it is closed
        return False


class Screen:
    """Draws on `stream`, a terminal. Every frame is one write; nothing is written if nothing has changed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        probe = Console(file=stream)
        # What the user or the terminal says about colours: NO_COLOR, TERM.
        self._colours: Any = None if probe.no_color else probe.color_system
        self._lines: list[str] = []
        self._widths: list[int] = []  # of the lines drawn, in columns

    def size(self) -> tuple[int, int]:
        """Columns and lines of the terminal now."""
        try:
            size = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            return 80, 24
        return max(size.columns or 80, NARROWEST), max(size.lines or 24, 3)

    def draw(self, view: Callable[[int], RenderableType] | None, above: Iterable[str] = ()) -> None:
        """Show `view`, a function of the width, in place of what was drawn before, and `above` it further lines that
        stay. Without a view what was drawn is removed.

        Raises OSError (or ValueError, of a closed stream) if the terminal is gone.
        """
        columns, height = self.size()
        # The last column stays empty: some terminals break a line that fills it.
        lines = self._rendered(view(columns - 1), columns - 1)[: height - 1] if view is not None else []
        notes = list(above)
        if lines == self._lines and not notes:
            return
        # Lines that were drawn when the terminal was wider take more rows now.
        rows = sum(max(-(-width // columns), 1) for width in self._widths)
        back = f"\x1b[{rows}A" if rows else ""
        body = "".join(f"{line}\x1b[K\n" for line in [*notes, *lines])
        self._stream.write(f"\r{back}{body}\x1b[J")
        self._stream.flush()
        self._lines, self._widths = lines, [cell_len(Text.from_ansi(line).plain) for line in lines]

    def _rendered(self, view: RenderableType, width: int) -> list[str]:
        file = io.StringIO()
        console = Console(
            file=file, width=width, force_terminal=self._colours is not None, color_system=self._colours,
            legacy_windows=False, markup=False, emoji=False, highlight=False,
        )  # fmt: skip
        console.print(view)
        return [line.rstrip() for line in file.getvalue().splitlines()]


class Aside:
    """Stands for standard output or error while something is drawn: whole lines go to `say`, above the view.

    Who asks for an answer flushes a line without an end: then `pause` is called, and all goes straight to the stream
    until `paused` is false again. So it does in processes that were forked meanwhile, which have no view.
    """

    def __init__(self, stream: TextIO, say: Callable[[str], None], pause: Callable[[], None]) -> None:
        self._stream, self._say, self._pause = stream, say, pause
        self._owner, self._partial = os.getpid(), ""
        self.paused = False

    def write(self, text: str) -> int:
        """Print."""
        if self.paused or os.getpid() != self._owner:
            return self._stream.write(text)
        *whole, self._partial = (self._partial + text).split("\n")
        for line in whole:
            self._say(line)
        return len(text)

    def flush(self) -> None:
        """Show what has no end yet."""
        if os.getpid() == self._owner and self._partial and not self.paused:
            self.paused = True
            self._pause()
            partial, self._partial = self._partial, ""
            self._stream.write(partial)
        if self.paused or os.getpid() != self._owner:
            self._stream.flush()

    def rest(self) -> str:
        """What was printed without an end."""
        partial, self._partial = self._partial, ""
        return partial

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def standing_in(streams: Iterable[str], say: Callable[[str], None], pause: Callable[[], None]) -> dict[str, Aside]:
    """Asides in the place of those of `streams` (names in `sys`) that are terminals."""
    found = {}
    for name in streams:
        stream = getattr(sys, name)
        if not isinstance(stream, Aside) and can_draw(stream):
            found[name] = Aside(stream, say, pause)
            setattr(sys, name, found[name])
    return found


def step_back(asides: dict[str, Aside]) -> list[str]:
    """Put the streams back; returns what was printed to them without an end."""
    left = []
    for name, aside in asides.items():
        if getattr(sys, name) is aside:
            setattr(sys, name, aside._stream)
        left.append(aside.rest())
    return [text for text in left if text]
