"""What it costs the training that it is watched: events, TensorBoard, the view, and who tells the owner of the run.

All contenders are `train_stage` itself on one CPU thread, side by side in one process, with the same network, samples
and order; their losses must be the same to the last bit. The baseline writes no events and no TensorBoard, shows
nothing, and nobody is told. Watched, it has all of this: events.jsonl, TensorBoard, the accounts of time, a thread that
follows the run for `notify` with all its events, and the lines of a log file or the view on a terminal (one that takes
everything at once). A round is one stretch between two lines of losses of each.

The ratio says no more than the noise of the machine lets it. So the calls themselves are timed as well, in a further
run with validations whose tiles are drawn every time: the median of each kind of call in the thread that trains, and
the processor time of the threads beside it, as if they took it from the training. The sum of that is what is promised.
"""

import functools
import io
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

if not __package__:  # run as a file: Python then looks for modules in this folder, not in the one above
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agl_core.config import CheckpointConfig, ScheduleConfig, StageConfig, TrainConfig
from agl_core.config.option import NOTIFICATIONS
from agl_core.config.train import NotifyConfig
from agl_core.reporting.events import EventLog
from agl_core.reporting.live.view import LiveView
from agl_core.reporting.tensorboard.scalars import Pictures, Scalars
from agl_core.training import trainer as trainer_module
from agl_core.training import workbench
from agl_core.training.gallery import Gallery
from agl_core.training.journal import Journal
from agl_core.training.trainer import StageTrainer
from agl_core.training.workbench import Workbench
from benchmarks.harness import Contender, Table, arguments, at_most, compare, report
from benchmarks.training import STAGE, Trainer, write_store
from jobs.history import History
from jobs.notify import following
from jobs.pipeline import STAGE as STAGE_KIND
from jobs.runs import Run
from jobs.settings import to_yaml

UNWATCHED, LOG, TERMINAL = "nothing watched", "watched, log file", "watched, terminal"
MOST = 0.5  # per cent of the training that watching may cost
VALIDATIONS = 500
"""Steps from one validation to the next, for the account: fewer than the epoch of any recipe on the challenge's data
has."""
THREADS = ("view", "notify")  # beside the one that trains


@dataclass(frozen=True)
class Case:
    """What is trained: steps of `batch` crops of `crop` x `crop` pixels, with a line of losses every `log_every`.

    rounds: of the comparison; counted: steps of the run whose calls are timed; validate: those from one of its
    validations to the next; tiles: of the store, `side` pixels wide; shown: of those that are held out."""

    encoder: str
    crop: int
    batch: int
    micro_batch: int
    log_every: int
    rounds: int
    counted: int
    validate: int
    tiles: int
    side: int
    shown: int

    def config(self, store: Path, validate: int = 1_000_000) -> TrainConfig:
        """The settings of every contender. validate: steps from one validation to the next."""
        stage = StageConfig(
            length="1000000 steps",
            crop=self.crop,
            batch=self.batch,
            micro_batch=self.micro_batch,
            schedule=ScheduleConfig(name="constant"),
            validate_every=f"{validate} steps",
        )
        return TrainConfig(
            store=str(store),
            encoder=self.encoder,
            encoder_weights="none",
            fold=0,
            folds=max(self.tiles // self.shown, 2),
            precision="float32",
            workers=1,
            threads=1,
            log_every=self.log_every,
            tensorboard_tiles=self.shown,
            checkpoint=CheckpointConfig(every="1000000 steps", interval="never"),
            notify=NotifyConfig(command=["true"], events=list(NOTIFICATIONS), score=0.0),
            stages={STAGE: stage},
        )


QUICK = Case("tu-resnet10t", 64, 4, 2, log_every=2, rounds=2, counted=8, validate=2, tiles=8, side=96, shown=2)
FULL = Case("tu-resnet10t", 256, 4, 2, log_every=10, rounds=5, counted=30, validate=10, tiles=16, side=512, shown=4)


class Terminal(io.StringIO):
    """A terminal that takes everything and keeps nothing."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)


class LogFile(Terminal):
    """A file of the same kind."""

    def isatty(self) -> bool:
        return False


@contextmanager
def watched_by(stream: io.StringIO | None) -> Iterator[None]:
    """Trainers that begin inside show what they do on `stream`; with None they write and show nothing."""

    def nowhere(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda path, *args, **named: original(None, *args, **named)

    def view(*args: Any, **named: Any) -> LiveView:
        return LiveView(*args, **{**named, "shown": stream is not None, "stream": stream})

    with ExitStack() as stack:
        stack.enter_context(patch.dict("os.environ", TERM="xterm"))
        stack.enter_context(patch.object(workbench, "LiveView", view))
        if stream is None:
            for name, original in (("EventLog", EventLog), ("Scalars", Scalars), ("Pictures", Pictures)):
                stack.enter_context(patch.object(workbench, name, nowhere(original)))
        yield


class Watched:
    """A trainer with all that watches it; the owner's thread is there as long as a stretch is trained."""

    def __init__(self, config: TrainConfig, folder: Path, steps: int, stream: io.StringIO, stack: ExitStack) -> None:
        self.run = Run(folder)
        folder.mkdir()
        self.run.config_file.write_text(to_yaml(config), encoding="utf-8")
        History(self.run.history).begin(STAGE, "1", step=0)
        with watched_by(stream):
            self.trainer = stack.enter_context(Trainer(config, folder, steps))

    def __call__(self) -> None:
        with following(self.run, STAGE, STAGE_KIND):
            self.trainer()


class Clock:
    """Times the calls of some methods, by the name of the part that they belong to, as long as it is entered. A call
    inside another one belongs to that."""

    PARTS: tuple[tuple[str, type[Any], str], ...] = (
        ("a step is noted", Journal, "advance"),
        ("time is accounted", Workbench, "stepped"),
        ("a line of losses", Journal, "step"),
        ("a validation is announced", Journal, "validating"),
        ("a score", Journal, "validation"),
        ("tiles are drawn and kept", StageTrainer, "_show"),
    )
    LOOK = "a shown tile is made small"

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._inside = threading.local()
        self._stack = ExitStack()

    def __enter__(self) -> "Clock":
        for part, kind, name in self.PARTS:
            self._stack.enter_context(patch.object(kind, name, self.timed(part, getattr(kind, name))))
        look = Gallery.look

        def timed_look(gallery: Gallery) -> Callable[..., None]:
            return self.timed(self.LOOK, look(gallery))

        self._stack.enter_context(patch.object(Gallery, "look", timed_look))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, with its time taken."""

        @functools.wraps(function)
        def call(*args: Any, **named: Any) -> Any:
            if getattr(self._inside, "now", False):
                return function(*args, **named)
            self._inside.now, began = True, time.perf_counter()
            try:
                return function(*args, **named)
            finally:
                self.seconds[part].append(time.perf_counter() - began)
                self._inside.now = False

        return call


class Part(NamedTuple):
    """What one kind of call takes: seconds each time, how often, and that in words."""

    name: str
    seconds: float
    each: float
    often: str


def thread_seconds() -> dict[str, float]:
    """Processor time that the threads beside the training have taken; of those that live now, where the system says
    it."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return {}
    return {
        thread.name: time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        for thread in threading.enumerate()
        if thread.name in THREADS and thread.ident is not None
    }


def account(case: Case, store: Path, folder: Path) -> tuple[list[Part], float]:
    """What the calls take in a run that is shown on a terminal; and the seconds of a step beside them."""
    each_step, seldom = (1.0, "every step"), (1 / VALIDATIONS, f"every {VALIDATIONS} steps")
    shares = {
        "a step is noted": each_step,
        "time is accounted": each_step,
        "a line of losses": (1 / case.log_every, f"every {case.log_every} steps"),
        Clock.LOOK: (case.shown / VALIDATIONS, f"{case.shown} times every {VALIDATIONS} steps"),
    }
    with ExitStack() as stack, Clock() as clock:
        stack.enter_context(patch.object(trainer_module, "worth_a_picture", lambda *_: True))
        watched = Watched(case.config(store, case.validate), folder, 1, Terminal(), stack)
        with following(watched.run, STAGE, STAGE_KIND):
            for _ in range(case.validate + 1):  # until everything has been done once
                watched.trainer()
            before, spans, start = thread_seconds(), list[float](), time.perf_counter()
            for _ in range(case.counted):
                began = time.perf_counter()
                watched.trainer()
                spans.append(time.perf_counter() - began)
            after, elapsed = thread_seconds(), time.perf_counter() - start
    parts = []
    for name in [*(part for part, _, _ in clock.PARTS), clock.LOOK]:
        taken = clock.seconds[name][1:] or clock.seconds[name]  # the first one loads what it needs
        parts.append(Part(name, median(taken), *shares.get(name, seldom)))
    for name in THREADS:
        if name in after:
            used = (after[name] - before[name]) / elapsed * median(spans)
            parts.append(Part(f"thread {name}, processor time", used, *each_step))
    return parts, median(spans)


def as_table(parts: Sequence[Part], step: float, case: Case) -> Table:
    """The parts and their sum."""
    rows = [
        [part.name, f"{1000 * part.seconds:.3f}", part.often, f"{1000 * part.seconds * part.each:.4f}",
         f"{100 * part.seconds * part.each / step:.4f}"]
        for part in parts
    ]  # fmt: skip
    total = total_seconds(parts)
    rows.append(["all together", "", "", f"{1000 * total:.4f}", f"{100 * total / step:.4f}"])
    note = (
        f"a step takes {1000 * step:.0f} ms, the median of those without a validation; medians of calls, the first of "
        f"each kind left out; tiles of {case.side} x {case.side} pixels of noise, {case.shown} shown"
    )
    return Table("the calls themselves", ["part", "ms each", "how often", "ms per step", "% of a step"], rows, note)


def total_seconds(parts: Sequence[Part]) -> float:
    """Of all parts, per step."""
    return sum(part.seconds * part.each for part in parts)


def check_same(trainers: dict[str, Trainer]) -> Table:
    """That watching has changed no bit of the training.

    Raises:
        SystemExit: it has.
    """
    expected = trainers[UNWATCHED].losses
    for name, trainer in trainers.items():
        if trainer.losses != expected:
            raise SystemExit(f"{name!r} computes other losses than {UNWATCHED!r}: watching must not change training")
    rows = [[name, str(len(trainer.losses)), "0"] for name, trainer in trainers.items()]
    return Table("all compute the same", ["contender", "steps", "differences of the losses"], rows)


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments("Watching: what events, TensorBoard, the view and notifications cost the training.", argv)
    case = QUICK if options.quick else FULL
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="watching-") as name, ExitStack() as stack:
        folder = Path(name)
        store = write_store(folder / "store", case.tiles, case.side)
        config = case.config(store)
        with watched_by(None):
            bare = stack.enter_context(Trainer(replace(config, tensorboard_tiles=0), folder / "bare", case.log_every))
        watched = {
            LOG: Watched(config, folder / "log", case.log_every, LogFile(), stack),
            TERMINAL: Watched(config, folder / "terminal", case.log_every, Terminal(), stack),
        }
        contenders: dict[str, Contender] = {UNWATCHED: bare, **watched}
        comparison = compare(contenders, case.rounds, baseline=UNWATCHED)
        same = check_same({UNWATCHED: bare, **{name: one.trainer for name, one in watched.items()}})
        stack.close()
        parts, step = account(case, store, folder / "timed")
    promises = [at_most("watching, of a step's time", 100 * total_seconds(parts) / step, MOST, "%", 3)]
    title = (
        f"{case.log_every} optimiser steps of {case.encoder}, {case.batch} crops of {case.crop} x {case.crop}, "
        f"{case.rounds} rounds"
    )
    settings = {**vars(case), "threads": 1, "workers": 1}
    report(comparison, title, settings, options, [as_table(parts, step, case), same], promises)


if __name__ == "__main__":
    main()
