"""Handing an event to the command of the run's owner: once, within its time, and without harm to the run."""

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any
from zlib import crc32

from agl_core.errors import UserError
from agl_core.files import write_text
from jobs.notices import plain
from jobs.processes import Family

LOOK = 0.05  # seconds between two looks at a command that runs
MARGIN = 60.0  # seconds beyond its time after which a command is taken for dead together with whoever started it
MOST_OUTPUT = 4000  # characters of a command's output that are kept
MOST_LOG = 1 << 18  # bytes of the log; of a longer one the older half is dropped
ROUNDED = 0.001  # seconds by which an entry of the history may say that it is older than it is
LEAST_SECRET = 8  # characters of a word that is not shown again in the log
DEAF = ("sh", "-c", "trap '' TERM; exec \"$@\"", "sh")
"""Words before a command that make it deaf to TERM; they become that command, and its own words are not read. (What is
only blocked instead, many shells unblock.)"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended. problem: empty, or what went wrong; broken: whether something else than this process ended
    it, so that it may be handed over once more; signal: the number of the one that did."""

    problem: str = ""
    broken: bool = False
    output: str = ""
    signal: int = 0


def hand_over(
    command: Sequence[str],
    text: str,
    timeout: float,
    environment: Mapping[str, str],
    stop: threading.Event,
) -> Outcome:
    """Run `command` with `text` on its standard input; `stop` ends it early. What it started is ended with it if it
    had to be killed. It does not hear TERM, which Slurm sends to all processes of a job that goes back to the queue."""
    if shutil.which(command[0], path=environment.get("PATH")) is None:
        return Outcome("could not be started (it is not found, or is no program)")
    outcome = _once(command, text, timeout, environment, stop)
    # It was hit before it could be made deaf, so that it has done nothing yet.
    return _once(command, text, timeout, environment, stop) if outcome.signal == signal.SIGTERM else outcome


def _once(
    command: Sequence[str], text: str, timeout: float, environment: Mapping[str, str], stop: threading.Event
) -> Outcome:
    try:
        with _input(text) as file:
            process = subprocess.Popen(
                [*DEAF, *command], stdin=file, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
                env=dict(environment), bufsize=0,
            )  # fmt: skip
    except (OSError, ValueError) as error:  # ValueError: a word with a NUL
        return Outcome(f"could not be started ({getattr(error, 'strerror', None) or error})")
    assert process.stdout is not None
    with process.stdout as output:
        family, deadline, said = Family(process.pid), time.monotonic() + timeout, b""
        while process.poll() is None and time.monotonic() < deadline and not stop.is_set():
            said = _more(output, said, LOOK)
        late = process.poll() is None
        if late:
            _kill(family)
            with suppress(subprocess.TimeoutExpired):  # it may hang in a file system, where no signal reaches it
                process.wait(5.0)
        said = _more(output, said, 0.0)
    shown = plain(said.decode("utf-8", "replace"))[-MOST_OUTPUT:]
    if late:
        if stop.is_set():
            return Outcome("was killed, since its run's process had to end", True, shown)
        return Outcome(f"was killed after {timeout:g} seconds (notify.timeout)", output=shown)
    if process.returncode < 0:
        return Outcome(f"was killed by {_signal(-process.returncode)}", True, shown, -process.returncode)
    return Outcome(f"ended with exit code {process.returncode}" if process.returncode else "", output=shown)


def _input(text: str) -> IO[bytes]:
    """An open file that holds the text, on no disk where the system can do that. No pipe: a process that is forked off
    meanwhile would hold it open, and the command would wait for its end."""
    handle = os.memfd_create("event") if hasattr(os, "memfd_create") else _on_disk()
    os.write(handle, text.encode())  # a few kilobytes, which are taken as a whole
    os.lseek(handle, 0, os.SEEK_SET)
    return os.fdopen(handle, "rb")


def _on_disk() -> int:
    handle, path = tempfile.mkstemp()
    os.unlink(path)
    return handle


def _more(output: IO[bytes], said: bytes, patience: float) -> bytes:
    """What was said until now, with what comes within `patience`; its end, if it is too much. A command that says
    nothing more is waited for all the same."""
    until = time.monotonic() + patience
    while select.select([output], [], [], max(until - time.monotonic(), 0.0))[0]:
        read = os.read(output.fileno(), 1 << 16)
        if not read:
            time.sleep(max(until - time.monotonic(), 0.0))
            break
        said = (said + read)[-4 * MOST_OUTPUT :]
        if time.monotonic() >= until:
            break
    return said


def _kill(family: Family) -> None:
    with suppress(UserError, subprocess.SubprocessError, OSError, ValueError):  # no `ps` here
        family.kill()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(family.root, signal.SIGKILL)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Teller:
    """Hands each event of a run to a command, in one process of perhaps several that know of the same event.

    folder: `jobs` of the run. Whoever creates notified/<key> there, which only one can, hands the event over, whatever
    the command makes of it. If that process or the command was killed meanwhile, the event is handed over a second time
    by the next that comes across it, and not a third time. Where no file can be created, a process remembers by itself
    what it has told. notify.log has what the command has said; what it was called with is not shown in it.
    """

    def __init__(self, folder: Path, command: Sequence[str], timeout: float, environment: Mapping[str, str]) -> None:
        self.marks, self.log = Path(folder) / "notified", Path(folder) / "notify.log"
        self.stop = threading.Event()  # ends a command that runs, and keeps others from being started
        self._command, self._timeout, self._environment = list(command), timeout, environment
        self._settled: set[str] = set()
        self._failed = False

    def since(self) -> float:
        """When this run was first told of: what lies before that is told nobody. Unix time."""
        path, now = self.marks / "since", time.time() - ROUNDED
        try:
            self.marks.mkdir(parents=True, exist_ok=True)
            _create(path, repr(now))
            return now
        except FileExistsError:
            with suppress(OSError, ValueError):
                return float(path.read_text(encoding="utf-8"))
            return 0.0  # it was torn: better once more than never
        except OSError:
            return now

    def tell(self, event: str, key: str, content: Mapping[str, Any]) -> None:
        """Hand an event over, if nobody has and `stop` is not set."""
        if key in self._settled or self.stop.is_set():
            return
        mark = self.marks / _file_name(key)
        if (mine := self._claim(key, mark)) is None:
            return
        began = time.monotonic()
        outcome = hand_over(
            self._command, json.dumps(content) + "\n", self._timeout, self._environment, self.stop
        )  # fmt: skip
        if not outcome.broken:
            self._settled.add(key)
            with suppress(OSError):
                write_text(mine, json.dumps({"told": time.time(), "problem": outcome.problem}) + "\n")
        self._write_down(event, key, outcome, time.monotonic() - began)

    def _claim(self, key: str, mark: Path) -> Path | None:
        """The file by which this process has the right to tell; None if it has not."""
        again = mark.with_name(f"{mark.name}.again")
        for path in (mark, again):
            try:
                _create(path, json.dumps({"begun": time.time(), "host": socket.gethostname(), "pid": os.getpid()}))
                return path
            except FileExistsError:
                if not self._broken_off(path):
                    break
            except OSError:
                self._settled.add(key)
                return mark
        if _is_told(mark) or _is_told(again) or again.exists():
            self._settled.add(key)
        return None

    def _broken_off(self, mark: Path) -> bool:
        """Whether an event was begun to be told, and nobody can be at it any more."""
        try:
            return not _is_told(mark) and time.time() - mark.stat().st_mtime > self._timeout + MARGIN
        except OSError:
            return False

    def _write_down(self, event: str, key: str, outcome: Outcome, seconds: float) -> None:
        how = outcome.problem or "told"
        lines = [f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC {event} ({key}): {how} ({seconds:.1f} s)"]
        lines += [f"  | {line}" for line in self._masked(outcome.output).splitlines()]
        with suppress(OSError):
            with self.log.open("a", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
            _shorten(self.log)
        if outcome.problem and not self._failed:
            self._failed = True
            with suppress(OSError, ValueError):
                print(
                    f"warning: notify.command, told of {event}, {outcome.problem}; the run goes on, and {self.log} has "
                    "what it said",
                    file=sys.stderr,
                    flush=True,
                )

    def _masked(self, text: str) -> str:
        """A text without the words of the command, which may hold an address or a token that is nobody's business."""
        for number, word in enumerate(self._command[1:], 2):
            if len(word) >= LEAST_SECRET:
                text = text.replace(word, f"<word {number} of notify.command>")
        return text


def _create(path: Path, text: str) -> None:
    """Create a file; only one process can.

    Raises:
        FileExistsError: another one has.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with suppress(OSError):  # that it is there is what counts
        os.write(handle, f"{text}\n".encode())
    with suppress(OSError):
        os.close(handle)


def _is_told(mark: Path) -> bool:
    try:
        return "told" in json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _file_name(key: str) -> str:
    """A key as the name of a file, another one for every key."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", key)[:150]
    return name if name == key else f"{name}.{crc32(key.encode()):08x}"


def _shorten(log: Path) -> None:
    if log.stat().st_size > MOST_LOG:
        kept = log.read_bytes()[-MOST_LOG // 2 :]
        write_text(log, kept[kept.find(b"\n") + 1 :].decode("utf-8", "replace"))
