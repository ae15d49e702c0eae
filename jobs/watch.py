"""`python launch.py watch`: the live view of a run, from its folder alone; it never writes, and asks no scheduler."""

import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from agl_core.config import WatchConfig
from agl_core.durable.lease import read_lease
from agl_core.errors import UserError
from agl_core.reporting.live import snapshot as states
from agl_core.reporting.live.rendering import plain, render, watch_line
from agl_core.reporting.live.screen import Screen, can_draw
from agl_core.reporting.live.snapshot import Snapshot
from agl_core.reporting.live.tracker import Tracker
from agl_core.reporting.live.turns import SILENCE
from agl_core.reporting.progress import pause
from agl_core.reporting.tail import Tail
from agl_core.reporting.words import NEW_RUN
from jobs import survey
from jobs.failure import JobError
from jobs.pipeline import ENSEMBLE, PREDICT
from jobs.progress import predicted
from jobs.runs import Run
from jobs.status import command
from jobs.table import width_of_output

GONE = "its folder cannot be read just now"


class Follower:
    """Reads what is new of a run, and says where it is."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._tail, self._tracker = Tail(run.events), self._fresh()
        self._before = survey.unmirrored(run)

    def look(self, now: float) -> Snapshot:
        """Where the run is at `now` (unix time). Raises OSError if its folder cannot be read."""
        events, another = self._tail.read()
        if another:
            self._tracker, self._before = self._fresh(), survey.unmirrored(self.run)
        if self._before:
            events, self._before = sorted([*self._before, *events], key=lambda event: event["time"]), []
        for event in events:
            self._tracker.add(event)
        self._look_around(now)
        return self._tracker.snapshot(now)

    def further(self) -> dict[str, str]:
        """What else its folder says."""
        rows = {}
        job = self._tracker.turns.at(self._tracker.stage_names())
        images = predicted(self.run) if job in (PREDICT, ENSEMBLE) else 0
        if images:
            rows["images"] = f"{images} predicted"
        if (score := survey.official(self.run)) is not None:
            rows["result"] = f"score of the predictions {score:.4f}"
        return rows

    def _fresh(self) -> Tracker:
        stages, planned, _ = survey.plan(self.run)
        config = None
        if stages:
            with suppress(UserError):
                config = self.run.config()
        tracker = Tracker(self.run.name, config)
        tracker.turns.planned = planned
        return tracker

    def _look_around(self, now: float) -> None:
        """Signs that are no events: records, the lease, and whether a process of this machine is still there."""
        turns = self._tracker.turns
        turns.done = survey.records(self.run)
        lease = read_lease(self.run.path)
        self._tracker.sign = lease.renewed if lease is not None else None
        stages = self._tracker.stage_names()
        host, id = turns.place(turns.at(stages))
        number = id.removeprefix("pid ")
        here = host == socket.gethostname() and number != id and number.isdecimal()
        held = survey.holder(self.run) is not None
        turns.dead = here and not held and not survey.lives(int(number))
        alive = lease is not None and lease.released is None and now - lease.renewed < SILENCE
        turns.idle = not held and not alive and turns.at(stages) not in survey.submitted(self.run)


def watch(config: WatchConfig) -> None:
    """Show how a run fares, until it is finished or Ctrl-C.

    Raises:
        UserError: there is no such run.
        JobError: the run has failed.
    """
    run = survey.find_run(config.runs, config.run)
    follower = Follower(run)
    again = command("watch", config.run, config.runs)
    show: Callable[[Snapshot, dict[str, str]], None]
    show = _Drawn() if can_draw(sys.stdout) and not config.once else _Printed(config.once)
    try:
        while True:
            snapshot = _look(follower)
            if snapshot is not None:
                show(snapshot, _advice(snapshot, config, follower.further()))
                if snapshot.state == states.FAILED:
                    raise JobError(f"run {run.name} {snapshot.told}")
                if config.once or snapshot.state == states.FINISHED:
                    return
            time.sleep(config.every)
    except KeyboardInterrupt:
        print(f"\nthis ends the view, not the run; to look again: {again}")


def _look(follower: Follower) -> Snapshot | None:
    """Where the run is now; None if its folder cannot be read for the moment."""
    if not survey.is_run(follower.run.path):
        raise UserError(f"{follower.run.path} is not there any more: `python launch.py status` lists the runs")
    try:
        return follower.look(time.time())
    except OSError as error:  # a file system that is away comes back
        print(f"{GONE} ({error.strerror})", file=sys.stderr)
        return None


def _advice(snapshot: Snapshot, config: WatchConfig, rows: dict[str, str]) -> dict[str, str]:
    """What the user can do about it."""
    halted = (states.INTERRUPTED, states.CANCELLED, states.FAILED)
    if snapshot.state in halted or (snapshot.state == states.NOT_STARTED and snapshot.since):
        again = command("resume", config.run, config.runs)
        if NEW_RUN not in snapshot.told:
            rows["go on"] = f"when that is mended: {again}" if snapshot.refused else again
    if snapshot.state == states.FAILED:
        rows["why"] = command("status", config.run, config.runs)
    if snapshot.state in (states.WAITS, states.SILENT):
        rows["ask"] = f"{command('status', config.run, config.runs)} asks the queue too"
    return rows


class _Drawn:
    """On a terminal: in place."""

    def __init__(self) -> None:
        self._screen = Screen(sys.stdout)

    def __call__(self, snapshot: Snapshot, further: dict[str, str]) -> None:
        height = self._screen.size()[1] - 1
        self._screen.draw(lambda width: render(snapshot, width, further, height))


class _Printed:
    """Into a file or a pipe: all of it once, then a line whenever the state changes, and now and then."""

    def __init__(self, once: bool) -> None:
        self._once = once
        self._begun = self._printed = time.monotonic()
        self._state = ""

    def __call__(self, snapshot: Snapshot, further: dict[str, str]) -> None:
        now = time.monotonic()
        if not self._state:
            print(plain(snapshot, width_of_output(), further), end="", flush=True)
        elif snapshot.state != self._state or now - self._printed >= pause(self._printed - self._begun):
            print(watch_line(snapshot), flush=True)
            self._printed = now
        self._state = snapshot.state
