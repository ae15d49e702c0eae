"""What a run shows while it trains: on a terminal a view that changes in place, in a log plain lines."""

import os
import re
import signal
import sys
import termios
from pathlib import Path

import pytest

from agl_core.reporting.live import view
from tests.reporting.terminal import Session, Terminal
from tests.training.faults import small, train


@pytest.mark.parametrize("how", ["ctrl-c", "term"])
def test_the_terminal_is_as_before_after_an_interruption(how: str, tiny_store: Path, tmp_path: Path) -> None:
    session = Session("-m", "tests.training.on_terminal", tiny_store, tmp_path, 100000)
    session.until(b"crops/s")
    if how == "ctrl-c":
        os.write(session.master, b"\x03")
    else:
        os.kill(session.process.pid, signal.SIGTERM)
    after = termios.tcgetattr(session.master)
    assert session.finish() == 75
    assert after == session.before
    screen = Terminal(100).feed(session.output.decode())
    assert screen.odd == []  # nothing but moving up, erasing and colours: the cursor was never hidden
    assert re.search(r"done +epoch \d+ of \d+, step \d+ of 100000", screen.text), screen.text
    assert screen.text.count("learning rate") == 1, screen.text
    reason = "Ctrl-C" if how == "ctrl-c" else "asked to leave by TERM"
    assert "first was interrupted at" in screen.text
    assert reason in screen.text
    assert screen.text.splitlines()[0].startswith("first: from the start, 100000 steps")
    if how == "ctrl-c":
        assert "saving at the end of this step; Ctrl-C once more ends at once" in screen.text


def test_a_log_file_holds_plain_lines(tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "log").open("w") as log:
        monkeypatch.setattr(sys, "stderr", log)
        monkeypatch.setattr(view, "pause", lambda elapsed: 0.0)
        train(small(tiny_store, validate=True), tmp_path / "run")
    text = (tmp_path / "log").read_text()
    assert not set(text) & {"\x1b", "\r"}
    lines = [line for line in text.splitlines() if line.startswith("first 5/5")]
    assert len(lines) == 1, text
    assert re.fullmatch(
        r"first 5/5  epoch 2/2  loss \S+ \(agl \S+, direction \S+, scale \S+\)  lr \S+  \S+ crops/s  data \S+%"
        r"(  saving \S+%)?  score \S+  best \S+",
        lines[0],
    ), lines
