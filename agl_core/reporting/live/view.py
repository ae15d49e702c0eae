"""What training shows while it goes on: the live view on a terminal, plain lines elsewhere.

Training must not be ended or held up by its view: what training calls here only notes things down. On a terminal a
thread draws, which may wait for a terminal that does not take anything as long as it likes.
"""

import sys
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from agl_core.config import TrainConfig
from agl_core.reporting.live.rendering import line, render
from agl_core.reporting.live.screen import Aside, Screen, can_draw, standing_in, step_back
from agl_core.reporting.live.seen import Validated
from agl_core.reporting.live.tracker import Tracker
from agl_core.reporting.progress import pause
from agl_core.reporting.tail import Tail

OFTEN, SELDOM = 0.5, 5.0  # seconds between two frames at least, and at most
SHARE = 0.002  # of one core that drawing may take
PATIENCE = 2.0  # seconds in which the last frame must be drawn


class LiveView:
    """Shows one stage. With `shown` False nothing is printed (the other processes of a group).

    with LiveView("pretrain", 5000, shown=True) as view:
        ...
        view.event({"kind": "step", "stage": "pretrain", "step": 10, ...})
        view.advance(11)
    """

    def __init__(
        self,
        stage: str,
        total: int,
        start: int = 0,
        config: TrainConfig | None = None,
        history: Path | None = None,
        stream: TextIO | None = None,
        shown: bool = True,
    ) -> None:
        """total: steps of the stage; start: those that were done before. history: events.jsonl of the run, from which
        the view on a terminal takes what was before."""
        self._stage, self._total, self._step = stage, total, start
        self._stream = stream if stream is not None else sys.stderr
        self._shown = shown
        on_terminal = shown and can_draw(self._stream)
        self._config = config
        self._tracker = self._new_tracker(accounts=on_terminal)
        self._begun = self._printed = time.monotonic()
        self._printed_step = start
        self._drawer: Drawer | None = None
        if on_terminal:
            try:
                self._drawer = Drawer(self._stream, self._tracker, stage, history)
            except Exception as error:
                self._undrawn(error)

    def __enter__(self) -> "LiveView":
        if self._drawer is not None:
            try:
                self._drawer.start()
            except Exception as error:  # no room for one more thread
                self._undrawn(error)
        return self

    def _undrawn(self, error: Exception) -> None:
        """Go on with plain lines: a view is not worth a run."""
        self._drawer = None
        self._tracker = self._new_tracker(accounts=False)
        self._print(f"warning: the view cannot be drawn ({type(error).__name__}: {error}); plain lines come instead")

    def _new_tracker(self, accounts: bool) -> Tracker:
        return Tracker(self._config.run if self._config is not None else "", self._config, accounts=accounts)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        drawer, self._drawer = self._drawer, None
        if drawer is not None:
            drawer.stop()
        elif self._shown and self._step > self._printed_step:
            self._print_line()

    def event(self, event: dict[str, Any]) -> None:
        """What has been written to events.jsonl, with its `time`, `kind` and `stage`."""
        if self._drawer is not None:
            self._drawer.tell(event)
        elif self._shown:
            with suppress(Exception):  # nothing that is shown is worth a run
                self._tracker.add(event)

    def best(self, validated: Validated) -> None:
        """The best of the stage before this start."""
        self._tracker.best(self._stage, validated)

    def advance(self, step: int) -> None:
        """`step` is done."""
        self._step = step
        if self._drawer is not None:
            self._drawer.advance(step)
        elif self._shown and time.monotonic() - self._printed >= pause(self._printed - self._begun):
            self._print_line()

    def note(self, text: str) -> None:
        """One line that stays, above the view where there is one."""
        if self._drawer is not None:
            self._drawer.say(text)
        elif self._shown:
            self._print(text)

    def _print_line(self) -> None:
        self._printed, self._printed_step = time.monotonic(), self._step
        now = time.time()
        with suppress(Exception):
            self._tracker.stepped(self._stage, self._step, now)
            self._print(line(self._tracker.snapshot(now, job=self._stage)))

    def _print(self, text: str) -> None:
        with suppress(OSError, ValueError):  # a file on a full disk, or closed, must not end the work
            print(text, file=self._stream, flush=True)


class Drawer:
    """Draws in a thread of its own what it is told; see the module."""

    def __init__(self, stream: TextIO, tracker: Tracker, stage: str, history: Path | None) -> None:
        self._stream, self._screen, self._tracker = stream, Screen(stream), tracker
        self._stage, self._history = stage, history
        # Only what was there before this start: what comes now is told.
        self._upto = _size(history) if history is not None else 0
        self._events: deque[dict[str, Any]] = deque()
        self._notes: deque[str] = deque()
        self._latest: tuple[int, float] | None = None
        self._wake, self._done, self._alive = threading.Event(), False, True
        self._drawing = threading.Lock()
        self._asides: dict[str, Aside] = {}
        self._thread = threading.Thread(target=self._run, name="view", daemon=True)

    def start(self) -> None:
        """Begin to draw; standard output and error go above the view from now on, where they are terminals.

        Raises:
            RuntimeError: no thread can be started; standard output and error are as before.
        """
        self._asides = standing_in(("stdout", "stderr"), self.say, self._step_aside)
        try:
            self._thread.start()
        except Exception:
            step_back(self._asides)
            raise

    def tell(self, event: dict[str, Any]) -> None:
        """There is a new event."""
        self._events.append(event)
        self._wake.set()

    def advance(self, step: int) -> None:
        """A step is done."""
        self._latest = step, time.time()
        self._wake.set()
        for aside in self._asides.values():
            aside.paused = False

    def say(self, text: str) -> None:
        """A line above the view."""
        self._notes.append(text)
        self._wake.set()

    def stop(self) -> None:
        """Draw for the last time, if the terminal takes it, and give standard output and error back."""
        self._done = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(PATIENCE)
        left = step_back(self._asides)
        if self._thread.is_alive() or not self._alive:
            return  # the terminal takes nothing, or is gone
        with suppress(OSError, ValueError):
            for text in [*self._taken(self._notes), *left]:
                print(text, file=self._stream)

    def _step_aside(self) -> None:
        """Somebody asks the user for something: it is asked in the place of the view, which goes on below."""
        if self._drawing.acquire(timeout=PATIENCE):
            with suppress(OSError, ValueError):
                self._screen.draw(None, self._taken(self._notes))
            self._drawing.release()

    def _run(self) -> None:
        try:
            self._read_history()
        except Exception:  # what was before is then not shown
            self._upto = 0
        while not self._done:
            self._wake.wait()
            self._wake.clear()
            if any(aside.paused for aside in self._asides.values()):
                continue
            began = time.thread_time()
            try:
                self._frame()
            except Exception:  # the terminal is gone, or something cannot be shown: training goes on without
                self._alive = False
                return
            deadline = time.monotonic() + min(max(OFTEN, (time.thread_time() - began) / SHARE), SELDOM)
            while not self._done and (left := deadline - time.monotonic()) > 0:
                time.sleep(min(left, 0.1))
        with suppress(Exception):
            self._frame()

    def _read_history(self) -> None:
        if self._history is not None and self._upto:
            for event in Tail(self._history).read(self._upto)[0]:
                self._tracker.add(event)

    def _frame(self) -> None:
        with self._drawing:
            for event in self._taken(self._events):
                self._tracker.add(event)
            if self._latest is not None:
                self._tracker.stepped(self._stage, *self._latest)
            self._screen.draw(self._view, self._taken(self._notes))

    def _view(self, width: int) -> Any:
        height = self._screen.size()[1] - 1
        return render(self._tracker.snapshot(time.time(), job=self._stage), width, height=height)

    @staticmethod
    def _taken(queue: "deque[Any]") -> list[Any]:
        taken = []
        while queue:
            taken.append(queue.popleft())
        return taken


def _size(path: Path) -> int:
    """Bytes of a file; 0 if there is none, or nobody can say."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
