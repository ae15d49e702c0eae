"""What a report says of a run beside its events: where it stands, its settings and what differs from its recipe, and
the cluster."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from agl_core.config import TrainConfig
from agl_core.errors import UserError
from agl_core.reporting.events import LAUNCH, LEAVE
from agl_core.reporting.report import Now, Setting, number
from agl_core.reporting.words import NEW_RUN, REASONS, plural
from jobs.history import BEGIN, DONE, END, read_history
from jobs.pipeline import REPORT
from jobs.runs import Run
from jobs.settings import flat, read_mapping, train_config
from jobs.standing import NOT_STARTED, JobStanding, RunStanding

OF_THE_PLACE = ("run", "runs", "recipe", "data", "store", "encoder_weights", "weights_cache")
"""Keys that every run has values of its own for, and that are no news for that."""
SECRET = ("notify.command",)
"""Keys whose value may hold an address or a token."""


def now_of(standing: RunStanding, run: Run) -> Now:
    """Where a run stands, in plain values. The job that makes the report, which is at work or waits for it, is no part
    of what the report is on."""
    jobs = [job for job in standing.jobs if job.job != REPORT]
    current = standing.current
    if current is None or current.job == REPORT:
        undone = [job for job in jobs if job.state != DONE]
        current = undone[0] if undone else (jobs[-1] if jobs else None)
    if current is None:
        return Now(NOT_STARTED, last_sign=standing.last_sign, advice=_advice(standing, run, NOT_STARTED))
    done = bool(jobs) and all(job.state == DONE for job in jobs)
    state = "finished" if done else current.state
    if state == NOT_STARTED and any(job.state == DONE for job in jobs):
        state = "not finished"
    troubled = next((job for job in jobs if job.text or job.traceback), current)
    return Now(
        state=state,
        job="" if done else current.job,
        id=current.id,
        host=_host(current, run),
        detail=current.detail,
        problem=troubled.text,
        traceback=troubled.traceback,
        last_sign=standing.last_sign,
        advice=_advice(standing, run, state),
    )


def _host(job: JobStanding, run: Run) -> str:
    """Where the newest start of a job is or was."""
    try:
        begins = [entry for entry in read_history(run.history) if entry["kind"] == BEGIN and entry["job"] == job.job]
    except OSError:
        return ""
    return str(begins[-1].get("host", "")) if begins else ""


def _advice(standing: RunStanding, run: Run, state: str) -> list[tuple[str, str]]:
    from jobs.status import command

    runs = str(run.path.parent)
    if state == "finished":
        return []
    if standing.active:
        return [
            (command("watch", run.name, runs), "shows it live"),
            (command("logs", run.name, runs), "what it prints"),
        ]
    logs = (command("logs", run.name, runs), "what it printed")
    if not run.exists() or any(NEW_RUN in job.text for job in standing.jobs):
        return [logs]
    resume = command("resume", run.name, runs)
    if any(job.detail == REASONS["refused"] for job in standing.jobs):  # as it is, it would be refused again
        return [logs, (resume, "continues it, when that is mended")]
    return [(resume, "continues it"), logs]


def with_history(events: Sequence[dict[str, Any]], run: Run) -> list[dict[str, Any]]:
    """The events of a run, with the starts and ends of its jobs from jobs/history.jsonl where they do not tell of these
    themselves: in runs of earlier versions."""
    if any(event.get("kind") in (LAUNCH, LEAVE) for event in events):
        return list(events)
    try:
        entries = read_history(run.history)
    except OSError:
        return list(events)
    kinds = {BEGIN: LAUNCH, END: LEAVE}
    told = [
        entry | {"kind": kinds[entry["kind"]], "stage": entry["job"]} for entry in entries if entry["kind"] in kinds
    ]
    known = [event for event in events if number(event.get("time"))]
    return sorted([*told, *known], key=lambda event: float(event["time"]))  # of the same moment, a launch is first


def read_settings(config: TrainConfig) -> list[Setting]:
    """Every key of a configuration, beside what its recipe says."""
    usual: dict[str, Any] = {}
    try:
        usual = {".".join(path): value for path, value, _ in flat(train_config({"recipe": config.recipe}))}
    except (UserError, OSError):  # a recipe of somebody's own, which is gone, or was never on this machine
        usual = {".".join(path): value for path, value, _ in flat(TrainConfig())}
    return [_setting(".".join(path), value, usual, identity) for path, value, identity in flat(config)]


def _setting(key: str, value: Any, usual: Mapping[str, Any], identity: bool) -> Setting:
    known = key in usual and key not in OF_THE_PLACE
    if key not in SECRET:
        return Setting(key, _spoken(value), _spoken(usual[key]) if known else None, identity)
    shown, before = first_word(value), first_word(usual[key]) if known else None
    if known and usual[key] != value and shown == before:
        before = f"{before}, not the same"
    return Setting(key, shown, before, identity, hidden=json.dumps(value))


def first_word(words: Any) -> str:
    """Of a command, the first word and how many there are: the others may hold an address or a token, and a page is
    passed on."""
    if not isinstance(words, list) or not words:
        return _spoken("set" if words else [])
    return str(words[0]) + (f" and {plural(len(words) - 1, 'more word')}" if len(words) > 1 else "")


def cluster_facts(run: Run) -> dict[str, str]:
    """The cluster configuration of the last start, by key; none if there is no file, or it cannot be read. Nothing of
    it is told that may be a secret: of variables of the environment their names, of lines of the shell their number, of
    commands their first word."""
    if not run.cluster_file.exists():
        return {}
    try:
        return dict(_leaves(_public(read_mapping(run.cluster_file, resolve=False)), ""))
    except UserError:
        return {}


def _public(cluster: Mapping[str, Any]) -> dict[str, Any]:
    tellers: dict[str, Callable[[Any], str]] = {
        "environment": lambda value: ", ".join(map(str, value)) if isinstance(value, dict) else "set",
        "setup": lambda value: plural(len(value), "line") if isinstance(value, list) else "set",
        "wrapper": first_word,
    }
    return {name: tellers[name](value) if value and name in tellers else value for name, value in cluster.items()}


def _leaves(mapping: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in mapping.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        elif value not in (None, "", []):
            yield f"{prefix}{key}", _spoken(value)


def _spoken(value: Any) -> str:
    """A value as a recipe has it."""
    if value is None or isinstance(value, bool | list | dict):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
