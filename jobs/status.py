"""`python launch.py status`: where runs stand, from their folders and Slurm's queue; it never writes."""

import json
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from agl_core.config import StatusConfig
from agl_core.errors import UserError
from agl_core.reporting.goodput.account import Account
from agl_core.reporting.live import snapshot as states
from agl_core.reporting.live.rendering import end_in_words, ends_in_words, goodput_in_words
from agl_core.reporting.live.snapshot import Snapshot
from agl_core.reporting.live.tracker import Tracker
from agl_core.reporting.words import NEW_RUN, clean, counted, plural
from jobs import scontrol, survey
from jobs.history import DONE, INTERRUPTED
from jobs.runs import Run
from jobs.standing import (
    ENDING,
    FAILED,
    GAVE_UP,
    LOST,
    NOT_STARTED,
    RUNNING,
    WAITING,
    JobStanding,
    RunStanding,
    assess,
    vanished,
)
from jobs.table import console, details, overview, slurm_time
from jobs.why import CANCELLED

MOST_SHOWN = 8  # jobs that scontrol is asked about one by one
PATIENCE = 10.0  # seconds for sacct, whose database may be away


def status(config: StatusConfig) -> None:
    """Print where runs stand; of a single run that was asked for all jobs, and the tracebacks of what failed.

    Raises:
        UserError: there is no such run.
    """
    names = [name for name in config.run.split(",") if name]
    runs = [survey.find_run(config.runs, name) for name in dict.fromkeys(names)] or survey.find_runs(Path(config.runs))
    if not runs and not Path(config.runs).is_dir() and config.runs != StatusConfig().runs:
        raise UserError(f"{config.runs} is not a folder: give the folder of all runs with --runs")
    now = time.time()
    found = [with_snapshot(standing, run, now) for standing, run in zip(standings(runs, now), runs, strict=True)]
    if config.json:
        print(json.dumps([as_json(run) for run in found], indent=2))
    elif not found:
        print(f"no runs in {config.runs} yet: python launch.py --help tells how to train one")
    elif len(names) == 1:
        show(found[0], now, console(), names[0], config.runs)
    else:
        out = console()
        out.print(overview(found, now, out.width))


def standings(runs: Sequence[Run], now: float) -> list[RunStanding]:
    """Where the runs stand at the unix time `now`, with one question to Slurm for all of them."""
    submitted = {run.path: survey.submitted(run) for run in runs}
    ids = [
        id for run in runs for job, id in submitted[run.path].items() if not run.stage_record(job).exists()
    ]  # fmt: skip
    queue = scontrol.queue(ids)  # before the folders are read, see `survey.read`
    findings = [survey.read(run, submitted[run.path]) for run in runs]
    found = [assess(each, queue, {}, now) for each in findings]
    lost = [id for standing in found for id in vanished(standing)] if queue is not None else []
    if not lost:
        return found
    ended = explain(lost)
    return [assess(each, queue, ended, now) for each in findings]


def with_snapshot(standing: RunStanding, run: Run, now: float) -> RunStanding:
    """Add what the events of a run say of goodput, costs and end, as `watch` and the report have it."""
    events = survey.everything(run)
    if not events:
        return standing
    snapshot, _ = told(events, standing, run, now)
    return replace(standing, jobs=tuple(_seen(job, snapshot) for job in standing.jobs), snapshot=snapshot)


def told(
    events: Iterable[Mapping[str, Any]], standing: RunStanding, run: Run, now: float
) -> tuple[Snapshot, Account | None]:
    """What the events of a run say of it, and where its time has gone, knowing how it stands."""
    tracker, current = followed(run, standing), standing.current
    for event in events:
        tracker.add(event)
    snapshot = agreed(replace(tracker.snapshot(now, exact=True), run=standing.run), standing)
    if not standing.active:  # Slurm, or the history, knows better
        snapshot = replace(snapshot, ends_at=None, to_end=None, seconds_left=None)
    elif snapshot.state == states.WAITS and snapshot.ends_at is None and snapshot.to_end is not None and current:
        starts = slurm_time(current.start)
        end = None if starts is None else max(starts, now) + snapshot.to_end
        snapshot = replace(snapshot, starts_at=None if starts is None else max(starts, now), ends_at=end)
    return snapshot, tracker.account


def followed(run: Run, standing: RunStanding) -> Tracker:
    """What follows the events of a run that stands so: it knows what they do not tell."""
    config = None
    with suppress(UserError):
        config = run.config() if run.exists() else None
    tracker = Tracker(run.name, config)
    turns, current = tracker.turns, standing.current
    turns.planned = survey.plan(run)[1]
    turns.done = [job.job for job in standing.jobs if job.state == DONE]
    turns.dead = current is not None and current.state in HALTED
    turns.requeued = current is not None and current.state == WAITING and current.id.isdecimal()
    tracker.sign = current.last_sign if current is not None else None
    return tracker


HALTED = (LOST, INTERRUPTED, CANCELLED, FAILED, GAVE_UP)
"""States of a job of which no process is there."""
AT_WORK = (states.STARTS, states.TRAINS, states.VALIDATES, states.SILENT, states.WORKS)
STATES = {
    WAITING: (states.WAITS,), RUNNING: AT_WORK, ENDING: AT_WORK, LOST: (states.INTERRUPTED,),
    INTERRUPTED: (states.INTERRUPTED,), CANCELLED: (states.CANCELLED,), FAILED: (states.FAILED,),
    GAVE_UP: (states.FAILED,), NOT_STARTED: (states.NOT_STARTED,), DONE: (states.FINISHED,),
}  # fmt: skip
"""The states of a snapshot that agree with those of a job."""


def agreed(snapshot: Snapshot, standing: RunStanding) -> Snapshot:
    """A snapshot that says what the queue and the processes say, where its events do not know it."""
    current = standing.current
    fitting = STATES.get(standing.state, ())
    if current is None or not fitting or (snapshot.state in fitting and snapshot.job == current.job):
        return snapshot
    if snapshot.job != current.job and standing.state in (WAITING, NOT_STARTED):
        return snapshot  # of jobs that wait, both are right
    state = fitting[-1] if standing.state in (RUNNING, ENDING) else fitting[0]
    return snapshot if snapshot.state in fitting else replace(snapshot, state=state, told="")


def _seen(job: JobStanding, snapshot: Snapshot) -> JobStanding:
    """What the events say of a job better than single ones of them."""
    if job.job != snapshot.job or job.state == DONE:
        return job
    epoch = job.epoch if snapshot.epoch is None or job.epoch is None else snapshot.epoch
    left = job.seconds_left if None in (job.seconds_left, snapshot.seconds_left) else snapshot.seconds_left
    return replace(job, epoch=epoch, seconds_left=left)


def explain(ids: Sequence[str]) -> dict[str, str]:
    """How Slurm says that jobs ended which are in its queue no more: states by id, as far as it remembers them."""
    known = {id: scontrol.show_job(id) for id in ids[-MOST_SHOWN:]}
    found = {id: facts.state for id, facts in known.items() if facts is not None}
    left = [id for id in ids if id not in found]
    return found | (accounts(left) if left else {})


def accounts(ids: Sequence[str]) -> dict[str, str]:
    """The same from Slurm's accounts, which many sites have and some do not."""
    columns = ["--noheader", "--allocations", "--parsable2", "--format", "JobID,State"]
    done = scontrol.call(["sacct", *columns, "--jobs", ",".join(ids)], PATIENCE)
    if done is None or done.returncode != 0:
        return {}
    cells = [line.split("|") for line in done.stdout.splitlines()]
    return {id: state for id, state in (pair for pair in cells if len(pair) == 2) if id in ids}


def as_json(run: RunStanding) -> dict[str, object]:
    """A run for scripts."""
    snapshot = run.snapshot.as_json() if run.snapshot is not None else None
    return {**asdict(run), "snapshot": snapshot, "active": run.active, "score": run.score}


def show(run: RunStanding, now: float, out: Console, name: str, runs: str) -> None:
    """Print one run with its jobs, what failed, and what can be done about it. name, runs: as the user calls it."""
    out.print(Text(f"run {run.run} in {run.path}"))
    if run.note:
        out.print(Text(clean(run.note), "red"))
    if not run.jobs:
        out.print("nothing was started yet")
        return
    out.print(details(run, now, out.width))
    for sentence in sentences(run, now):
        out.print(Text(sentence))
    for job in run.jobs:
        if job.text or job.traceback:
            out.print(Text(clean(f"{job.job} {job.state}: {job.text}").rstrip(": ")), soft_wrap=True)
            for line in job.traceback.splitlines():
                out.print(Text(f"  {clean(line)}"), soft_wrap=True)
    if not run.active and not all(job.state == DONE for job in run.jobs):
        again = command("resume", name, runs)
        if not any(NEW_RUN in job.text for job in run.jobs):
            mend = run.snapshot is not None and run.snapshot.refused
            out.print(f"when that is mended: {again}" if mend else f"to continue: {again}", soft_wrap=True)
    if run.active:
        out.print(f"to watch it: {command('watch', name, runs)}", soft_wrap=True)
    out.print(f"what it printed: {command('logs', name, runs)}", soft_wrap=True)


def sentences(run: RunStanding, now: float) -> Iterator[str]:
    """When a run will end, why it was interrupted last, and what interruptions have cost so far."""
    snapshot = run.snapshot
    if snapshot is None:
        return
    if (end := ends_in_words(snapshot)) is not None:
        yield end
    if snapshot.reasons:
        number = sum(snapshot.reasons.values())
        yield f"started again {plural(number, 'time')} ({counted(snapshot.reasons)}), with " + (
            f"{plural(snapshot.steps_lost, 'step')} done again" if snapshot.steps_lost else "no step done again"
        )
    if snapshot.last_end is not None:
        yield f"{snapshot.last_end.verb} last at {end_in_words(snapshot.last_end, now)}"
    if snapshot.goodput:
        yield f"goodput: {goodput_in_words(snapshot)}"


def command(verb: str, name: str, runs: str, further: Iterable[str] = ()) -> str:
    """The command line of a verb for a run."""
    folder = ["--runs", runs] if runs != StatusConfig().runs and "/" not in name else []
    return shlex.join(["python", "launch.py", verb, name, *folder, *further])
