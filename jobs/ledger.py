"""When a job is given up: counted from its history, so that no restart of anything resets it."""

from collections.abc import Sequence
from typing import Any

from agl_core.config import RestartConfig
from jobs.attempt import CRASHED
from jobs.history import incarnations


def give_up(
    entries: Sequence[dict[str, Any]],
    job: str,
    job_id: str,
    crashed: bool,
    step: int | None,
    kept: int | None,
    limits: RestartConfig,
) -> str | None:
    """Why the job should not be started again, or None. The attempt that has just ended is not in `entries` yet, but
    its beginning is.

    crashed: how it ended; step: what it has reached; kept: what the next one could build on. Only starts with this
    `job_id` count: who submits a job again has mended something.
    """
    if crashed:
        times = crashes_in_a_row(entries, job, job_id, step)
        if times >= limits.crashes:
            where = "" if step is None else f" at step {step}"
            return f"it has crashed {times} times in a row{where} (restart.crashes)"
    fruitless = 0
    for incarnation in reversed(incarnations(entries, job)):
        if incarnation.begin["id"] != job_id or incarnation.begin.get("step") != kept:
            break
        fruitless += 1
    if fruitless >= limits.fruitless:
        return f"{fruitless} starts in a row have brought nothing new (restart.fruitless)"
    return None


def crashes_in_a_row(entries: Sequence[dict[str, Any]], job: str, job_id: str, step: int | None) -> int:
    """How many starts, with the one that has just crashed and is open in `entries`, have crashed at `step` without
    another end between them."""
    times = 1
    for incarnation in reversed(incarnations(entries, job)[:-1]):
        end = incarnation.end
        same = end is not None and end["end"] == CRASHED and end.get("step") == step
        if not same or incarnation.begin["id"] != job_id:
            break
        times += 1
    return times
