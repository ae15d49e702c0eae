"""The debugger opens at a crash, on a terminal, and nowhere else."""

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PROGRAM = """
import sys
from agl_core.durable.exits import InterruptedRunError
from agl_core.durable.lease import LeaseLostError
from agl_core.errors import UserError
from jobs.debug import post_mortem

def deep(how):
    spoilt = 41
    if how == "crash":
        raise ValueError("a defect")
    raise {
        "mistake": UserError("a mistake"),
        "interruption": InterruptedRunError("TERM", 3),
        "take-over": LeaseLostError("taken over"),
        "keyboard": KeyboardInterrupt(),
        "exit": SystemExit(7),
    }[how]

with post_mortem(sys.argv[2] == "on"):
    deep(sys.argv[1])
"""
PROMPT = b"(Pdb) "
PATIENCE = 60.0


class Terminal:
    """The program on a pseudo terminal; `redirected` names the streams that go elsewhere."""

    def __init__(self, how: str, switch: str = "on", redirected: tuple[str, ...] = ()) -> None:
        self._own, theirs = pty.openpty()
        other = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        streams = {name: other[name] if name in redirected else theirs for name in other}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, how, switch], cwd=ROOT, env={**os.environ, "TERM": "dumb"}, **streams
        )
        os.close(theirs)
        self.shown = b""

    def type(self, line: str) -> None:
        self.wait_for_prompt()
        self.shown = b""
        os.write(self._own, line.encode() + b"\n")

    def wait_for_prompt(self) -> None:
        assert self._read_until(lambda: self.shown.endswith(PROMPT)), self.shown

    def end(self) -> int:
        """Its exit code, when all that it says has been read."""
        self._read_until(lambda: False)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                self.shown += stream.read()
        os.close(self._own)
        return self.process.wait(PATIENCE)

    def _read_until(self, enough) -> bool:
        deadline = time.monotonic() + PATIENCE
        while not enough():
            ready, _, _ = select.select([self._own], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"nothing more was said in {PATIENCE} s: {self.shown!r}"
            try:
                found = os.read(self._own, 4096)
            except OSError:  # the program has closed the terminal
                return False
            if not found:
                return False
            self.shown += found
        return True


@pytest.mark.parametrize("redirected", [(), ("stdout",)])
def test_a_crash_on_a_terminal_opens_the_debugger_in_its_frame_and_then_goes_on(redirected: tuple[str, ...]) -> None:
    terminal = Terminal("crash", redirected=redirected)
    terminal.wait_for_prompt()
    assert b"ValueError: a defect" in terminal.shown
    assert b"in deep" in terminal.shown
    terminal.type("p spoilt + 1")
    terminal.wait_for_prompt()
    assert b"42" in terminal.shown
    terminal.type("q")
    assert terminal.end() == 1
    assert b"ValueError: a defect" in terminal.shown  # the exception went on, and Python has told it


@pytest.mark.parametrize("stream", ["stdin", "stderr"])
def test_without_a_terminal_a_crash_is_a_crash(stream: str) -> None:
    terminal = Terminal("crash", redirected=(stream,))
    assert terminal.end() == 1
    assert b"ValueError: a defect" in terminal.shown
    assert PROMPT not in terminal.shown


def test_switched_off_a_crash_is_a_crash() -> None:
    terminal = Terminal("crash", switch="off")
    assert terminal.end() == 1
    assert PROMPT not in terminal.shown


@pytest.mark.parametrize(
    ("how", "code"), [("mistake", 1), ("interruption", 1), ("take-over", 1), ("keyboard", -2), ("exit", 7)]
)
def test_what_is_no_defect_opens_no_debugger(how: str, code: int) -> None:
    terminal = Terminal(how)
    assert terminal.end() == code
    assert PROMPT not in terminal.shown
