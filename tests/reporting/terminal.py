"""Terminals for tests: one of paper, which shows what output comes to on the screen, and a real one for a process."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time

PATIENCE = 120.0
ORDER = re.compile(r"\x1b\[(\??)([0-9;]*)([A-Za-z])")


class Terminal:
    """Takes what is written to a terminal of `columns` columns, and knows its lines; a line that is too long goes on in
    the next one. Orders other than those for moving up, erasing and colours are kept in `odd`."""

    def __init__(self, columns: int = 80) -> None:
        self.columns = columns
        self.lines: list[str] = [""]
        self.odd: list[str] = []
        self._row = self._column = 0

    def feed(self, text: str) -> "Terminal":
        """Write."""
        place = 0
        while place < len(text):
            match = ORDER.match(text, place)
            if match:
                self._obey(match[1], match[2], match[3])
                place = match.end()
            else:
                self._put(text[place])
                place += 1
        return self

    @property
    def text(self) -> str:
        """All that is to be seen."""
        return "\n".join(line.rstrip() for line in self.lines).rstrip("\n")

    def _put(self, mark: str) -> None:
        if mark == "\r":
            self._column = 0
        elif mark == "\n":
            self._down()
        else:
            if self._column == self.columns:
                self._down()
            line = self.lines[self._row].ljust(self._column)
            self.lines[self._row] = line[: self._column] + mark + line[self._column + 1 :]
            self._column += 1

    def _down(self) -> None:
        self._row, self._column = self._row + 1, 0
        if self._row == len(self.lines):
            self.lines.append("")

    def _obey(self, private: str, number: str, order: str) -> None:
        if order == "A" and not private:
            self._row = max(self._row - int(number or 1), 0)
        elif order == "K":
            self.lines[self._row] = self.lines[self._row][: self._column]
        elif order == "J":
            self.lines[self._row] = self.lines[self._row][: self._column]
            del self.lines[self._row + 1 :]
        elif order != "m":
            self.odd.append(private + number + order)


def _on_terminal() -> None:
    """As a shell starts a command: with the terminal, and with Ctrl-C, which a job in the background does not hear."""
    os.login_tty(os.dup(0))
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Session:
    """A process on a terminal of its own."""

    def __init__(self, *words: object, columns: int = 100) -> None:
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (40, columns))
        self.before = termios.tcgetattr(self.master)
        environment = {**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1"}
        environment.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            [sys.executable, *map(str, words)], stdin=slave, stdout=slave, stderr=slave, env=environment,
            start_new_session=True, preexec_fn=_on_terminal,
        )  # fmt: skip
        os.close(slave)
        self.output = b""

    def until(self, text: bytes) -> None:
        """Wait until `text` was shown."""
        end = time.monotonic() + PATIENCE
        while text not in self.output and time.monotonic() < end and self._read(1.0):
            pass
        assert text in self.output, self.output.decode()

    def finish(self) -> int:
        """Wait for the end; the exit code."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self._read(1.0):
            pass
        return self.process.wait(PATIENCE)

    def _read(self, seconds: float) -> bool:
        if not select.select([self.master], [], [], seconds)[0]:
            return True
        try:
            more = os.read(self.master, 65536)
        except OSError:  # the other end is closed
            return False
        self.output += more
        return bool(more)
