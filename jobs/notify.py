"""Telling the owner of a run what happens to it: `notify` of its configuration.

Whoever starts the ranks of a job and waits for them (the conductor of a submitted job, the launcher on this machine)
has a thread that reads what they write: the run's history, its events and its lease. All that is told is derived from
these files, so that what one life of a job could not tell any more is told by the next. The ranks have no part in it,
but where the job runs in the launcher's own process: there the thread sleeps beside the training.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

from agl_core.config import TrainConfig
from agl_core.config.train import NotifyConfig
from agl_core.durable.lease import LEASE
from agl_core.errors import UserError
from agl_core.files import read_json
from agl_core.reporting.tail import Tail
from jobs.history import BEGIN, END, Entry, History, restarts
from jobs.many import read_ensemble
from jobs.notices import (
    SCORE,
    STALL,
    Course,
    Notice,
    as_json,
    from_history,
    from_validation,
    is_number,
    stalled,
)
from jobs.pipeline import ENSEMBLE, PREDICT, STAGE, follow_ups
from jobs.runs import Run
from jobs.telling import Teller

LOOK = 2.0  # seconds between two looks at the run's folder
OVERSLEPT = 30.0  # seconds: a thread that slept longer was stopped itself, perhaps with those that it watches
COMING_ON = ("step", "validation", "checkpoint")  # the events that say how far a stage is
SIGNS = (STAGE, PREDICT)  # the jobs that show in the run's folder that they come on


@contextmanager
def following(run: Run, name: str, kind: str) -> Iterator[None]:
    """Tell what happens while the job `name` of the run is done inside, as the run's configuration asks for it; what
    is left to tell when the job has ended is told before this returns, within twice the time of the command.

    Nothing that goes wrong here harms the job.
    """
    with ExitStack() as stack:
        try:
            config = settings(run)
            if config is not None and config.notify.command and config.notify.events:
                stack.enter_context(Follower(run, name, kind, config))
        except Exception as error:  # no room for a thread, a disk that is away: the job is done all the same
            complain(error)
        yield


def settings(run: Run) -> TrainConfig | None:
    """The configuration that says what is to be told of a run: its own, that of an ensemble's first member; None where
    there is none, as for the verb `predict`."""
    try:
        if run.exists():
            return run.config()
        if run.is_ensemble():
            return Run(run.path.parent / read_ensemble(run).runs[0]).config()
    except (OSError, UserError, IndexError):
        return None
    return None


def course(run: Run, config: TrainConfig) -> Course:
    """How far the run is, from what its jobs have left."""
    after = follow_ups(config)
    stages = [] if run.is_ensemble() else list(config.stages)
    jobs = [ENSEMBLE, *(name for name in after if name != PREDICT)] if run.is_ensemble() else [*stages, *after]
    records = {name: _record(run.stage_record(name)) for name in jobs}
    official = _record(run.score_file).get("score")
    return Course(
        run.name,
        stages,
        jobs[-1],
        all(record.get("finished") is True for record in records.values()),
        {name: record["score"] for name, record in records.items() if is_number(record.get("score"))},
        {name: int(record["steps"]) for name, record in records.items() if is_number(record.get("steps"))},
        official if is_number(official) else None,
    )


def _record(path: Path) -> dict[str, Any]:
    with suppress(UserError, OSError):
        found = read_json(path)
        return found if isinstance(found, dict) else {}
    return {}


class Follower:
    """A context manager whose thread reads the run's folder and hands over what is to be told."""

    def __init__(self, run: Run, name: str, kind: str, config: TrainConfig, look: float = LOOK) -> None:
        self._run, self._name, self._kind, self._config = run, name, kind, config
        wanted = config.notify
        self._teller = Teller(run.jobs, wanted.command, wanted.timeout, environment(run, os.environ))
        self._look_every = min(look, wanted.stall_minutes * 60 / 10)
        self._stall = Stall(wanted.stall_minutes)
        self._history, self._history_was = History(run.history), (0, 0)
        self._entries: list[Entry] = []
        self._notices: list[Notice] = []  # all that the history has, told or not
        self._events, self._step, self._reached = Tail(run.events), dict[str, int](), list[Notice]()
        self._since = 0.0
        self._closing, self._said = threading.Event(), False
        self._thread = threading.Thread(target=self._follow, name="notify", daemon=True)

    def __enter__(self) -> "Follower":
        self._since = self._teller.since()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        try:
            self._thread.join(2 * self._config.notify.timeout)
        finally:  # Ctrl-C once more, too
            self._teller.stop.set()
            self._thread.join(10.0)

    def _follow(self) -> None:
        while True:
            last = self._closing.wait(self._look_every)
            try:
                self._look()
            except Exception as error:  # whatever it is, it is no reason to end a run
                self._complain(error)
            if last:
                return

    def _look(self) -> None:
        wanted = self._config.notify
        for notice in [*self._from_history(), *self._from_events(), *self._from_signs()]:
            if notice.event in wanted.events and (notice.event == SCORE or notice.time >= self._since):
                content = as_json(notice, self._run.name, str(self._run.path), socket.gethostname())
                self._teller.tell(notice.event, notice.key, content)

    def _from_history(self) -> Sequence[Notice]:
        if (now := _state(self._run.history)) != self._history_was:
            self._entries, self._history_was = self._history.entries(), now
            self._notices = from_history(self._entries, course(self._run, self._config))
        return self._notices

    def _from_events(self) -> Sequence[Notice]:
        """The first score that is high enough; on the way, how far each stage is."""
        wanted = self._config.notify.score
        events, _ = self._events.read()
        for event in events:
            if event["kind"] in COMING_ON and is_number(event.get("step")):
                self._step[event["stage"]] = int(event["step"])
            if wanted is not None and not self._reached:
                found = from_validation(event, wanted, self._run.name)
                self._reached += [replace(each, restarts=restarts(self._entries, each.job)) for each in [found] if each]
        return self._reached

    def _from_signs(self) -> Iterator[Notice]:
        if self._kind not in SIGNS or STALL not in self._config.notify.events or not self._runs():
            self._stall.reset()
            return
        files = [self._run.events, self._run.path / LEASE, self._run.history, self._run.predictions]
        states = [_state(path) for path in files]
        sign = f"{max(time for time, _ in states) // 1_000_000}-{crc32(repr(states).encode()):08x}"
        if self._stall.look(sign, time.monotonic()):
            again, step = restarts(self._entries, self._name), self._step.get(self._name)
            minutes = self._config.notify.stall_minutes
            yield stalled(self._run.name, self._name, minutes, sign, time.time(), step, again)

    def _runs(self) -> bool:
        """Whether the job has been begun by this process and has not ended."""
        own = [entry for entry in self._entries if entry["job"] == self._name and entry["kind"] in (BEGIN, END)][-1:]
        here = (os.getpid(), socket.gethostname())
        return any(entry["kind"] == BEGIN and (entry.get("pid"), entry.get("host")) == here for entry in own)

    def _complain(self, error: Exception) -> None:
        if not self._said:
            self._said = True
            complain(error)


def complain(error: Exception) -> None:
    """Say on standard error that nobody can be told."""
    with suppress(OSError, ValueError):
        print(
            f"warning: notify: nobody can be told ({type(error).__name__}: {error}); the run goes on", file=sys.stderr
        )


class Stall:
    """Whether something that should change has not for so many minutes; says so once, and again when it has changed
    meanwhile. Only this machine's own clock counts, which others cannot set."""

    def __init__(self, minutes: float, overslept: float = OVERSLEPT) -> None:
        self._limit, self._overslept = minutes * 60, overslept
        self._sign: str | None = None
        self._since = self._before = 0.0
        self._told = False

    def reset(self) -> None:
        """Nothing is expected any more."""
        self._sign, self._told = None, False

    def look(self, sign: str, now: float) -> bool:
        """Whether it is time to say so. sign: what should change; now: monotonic, seconds."""
        if sign != self._sign or (not self._told and now - self._before > self._overslept):
            self._told = self._told and sign == self._sign
            self._sign, self._since = sign, now
        self._before = now
        if self._told or now - self._since < self._limit:
            return False
        self._told = True
        return True


def environment(run: Run, outside: Mapping[str, str]) -> dict[str, str]:
    """The user's environment for the command: without what makes a submitted job's python find its copy of the code."""
    inside, code = dict(outside), str(run.code)
    paths = inside.get("PYTHONPATH", "").split(os.pathsep)
    if paths[0].startswith(code):
        inside.pop("PYTHONSAFEPATH", None)
        inside["PYTHONPATH"] = os.pathsep.join(paths[1:])
        if not paths[1:]:
            del inside["PYTHONPATH"]
    return inside


def _state(path: Path) -> tuple[int, int]:
    """When a file has changed, nanoseconds, and its size; zeros for none."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def wanted_of(runs: Sequence[Run]) -> NotifyConfig:
    """What the first of these runs that has a configuration wants to be told; all of a submission want the same."""
    return next((config.notify for run in runs if (config := settings(run)) is not None), NotifyConfig())
