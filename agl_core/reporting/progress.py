"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

FIRST, MOST = 15.0, 60.0  # seconds between two lines of a log, at first and later


def pause(elapsed: float, first: float = FIRST) -> float:
    """Seconds until the next line of a log that is `elapsed` seconds long."""
    return max(first, min(elapsed / 10, MOST))


class Progress:
    """Counts finished pieces of `total` and shows rate, time left and any named values.

    On a terminal this is a bar; in a log file it is a line now and then, `interval` seconds apart at first and up to
    a minute later, and one at the end, so that a long log stays readable. It writes to standard error, which leaves
    standard output to results.

        with Progress("predict", total=len(images), unit="images") as progress:
            for image in images:
                ...
                progress.advance()
    """

    def __init__(
        self,
        label: str,
        total: int,
        unit: str = "",
        start: int = 0,
        stream: TextIO | None = None,
        interval: float = FIRST,
        shown: bool = True,
    ) -> None:
        """`start` pieces were done before (a resumed run): they count as done, but not for the rate.

        With `shown` False nothing is printed (the other processes of a group).
        """
        self.label, self.total, self.unit = label, total, unit
        self.done = self._start = start
        self._stream = stream if stream is not None else sys.stderr
        self._interval, self._shown = interval, shown
        self._began = self._printed = time.monotonic()
        self._values = ""
        self._bar: RichProgress | None = None
        if shown and self._stream.isatty():
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]} {task.fields[values]}"),
                TimeRemainingColumn(compact=True),
                console=Console(file=self._stream),
            )
            self._task = self._bar.add_task(label, total=total, completed=start, rate="", values="")

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            with suppress(OSError):  # the terminal may be gone, which must not end the work
                self._bar.stop()
        elif self.done > self._start and self._shown:
            self._print_line()

    def advance(self, count: int = 1, **values: float | str) -> None:
        """Count `count` more pieces as done; `values` are shown beside the rate (`loss=0.5`)."""
        self.done += count
        if values:
            self._values = " ".join(
                f"{name} {value if isinstance(value, str) else format(value, '.4g')}" for name, value in values.items()
            )
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rate=self._rate_text(), values=self._values)
        elif self._shown and self.done < self.total:
            passed = self._printed - self._began
            if time.monotonic() - self._printed >= pause(passed, self._interval):
                self._print_line()

    def note(self, text: str) -> None:
        """Print one line that stays, above the bar where there is one."""
        if self._bar is not None:
            with suppress(OSError):
                self._bar.console.print(text, markup=False, highlight=False)
        elif self._shown:
            self._print(text)

    def _rate_text(self) -> str:
        elapsed = time.monotonic() - self._began
        rate = (self.done - self._start) / elapsed if elapsed > 0 else 0.0
        return f"{rate:.3g} {self.unit}/s" if self.unit else f"{rate:.3g}/s"

    def _print_line(self) -> None:
        self._printed = time.monotonic()
        elapsed = self._printed - self._began
        parts = [f"{self.label} {self.done}/{self.total}", self._rate_text(), self._values]
        if self.done == self.total:
            parts.append(f"in {_clock(elapsed)}")
        elif self.done > self._start:  # before, nobody knows
            parts.append(f"{_clock((self.total - self.done) * elapsed / (self.done - self._start))} left")
        self._print("  ".join(part for part in parts if part))

    def _print(self, line: str) -> None:
        with suppress(OSError):  # the stream may be a file on a full disk, which must not end the work
            print(line, file=self._stream, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
