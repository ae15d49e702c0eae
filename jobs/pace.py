"""How far a job has come, how fast it goes and how often it was started again: pure functions of what a run's folder
says."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeGuard

from agl_core.reporting.events import is_finite
from jobs.history import CANCEL, CRASHED, DONE, Entry, Incarnation
from jobs.pipeline import EVALUATE
from jobs.survey import Findings

SCORES = ("score", "ema_score")  # of a validation: that of the weights, and of their average if there is one
RECENT = 50  # events of steps from which the rate is taken


def reasons(known: Sequence[Incarnation]) -> dict[str, int]:
    """Why a job was started again, with the number of times, most frequent first. (One that was done and is done again
    was not interrupted.)"""
    found = Counter(_reason(incarnation.end) for incarnation in known[:-1])
    return {reason: number for reason, number in found.most_common() if reason != DONE}


def _reason(end: Entry | None) -> str:
    if end is None:
        return "killed"
    return CRASHED if end.get("end") == CRASHED else str(end.get("why") or end.get("end"))


def progress(findings: Findings, name: str) -> dict[str, Any]:
    """step, steps, epoch, epochs, score and data_wait of a stage, and the score of the predictions for the job that
    makes it."""
    if name == EVALUATE:
        return {"score": findings.official if name in findings.records else None}
    own = [event for event in findings.events if event.get("stage") == name]
    starts, counted = of_kind(own, name, "start"), [event for event in own if isinstance(event.get("step"), int)]
    record = findings.records.get(name, {})
    epochs = [event["epoch"] for event in own if isinstance(event.get("epoch"), int)]
    waits = [event["data_wait"] for event in of_kind(own, name, "step") if _is_number(event.get("data_wait"))]
    validations = of_kind(own, name, "validation")
    scores = [score for event in validations for key in SCORES if _is_number(score := event.get(key))]
    total = starts[-1].get("steps") if starts else record.get("steps")
    step = record.get("steps", counted[-1]["step"] if counted else None)
    if step is None and name in findings.stages:
        step = next((e["step"] for e in reversed(findings.entries) if e["job"] == name and e.get("step")), None)
    done, all_epochs = name in findings.records, starts[-1].get("epochs") if starts else None
    return {
        "step": step,
        "steps": total,
        "epoch": all_epochs if done else (epochs[-1] if epochs else None),
        "epochs": all_epochs,
        "score": record.get("score", max(scores, default=None)),
        "data_wait": waits[-1] if waits else None,
    }


def seconds_left(events: Sequence[dict[str, Any]], stage: str) -> float | None:
    """How long the rest of a stage takes at the rate of its newest steps, validations and saves included; that of an
    earlier start where the last has told of one step only, None if no rate is known."""
    starts, steps = of_kind(events, stage, "start"), of_kind(events, stage, "step")
    steps = [step for step in steps if _is_number(step.get("step")) and _is_number(step.get("time"))]
    total = starts[-1].get("steps") if starts else None
    if not steps or not _is_number(total):
        return None
    left = max(total - steps[-1]["step"], 0)
    for generation in dict.fromkeys(step.get("generation") for step in reversed(steps)):
        recent = [step for step in steps if step.get("generation") == generation][-RECENT:]
        done, seconds = recent[-1]["step"] - recent[0]["step"], recent[-1]["time"] - recent[0]["time"]
        if done > 0 and seconds >= 0:
            return float(left * seconds / done)
    return None


def of_kind(events: Sequence[dict[str, Any]], stage: str, kind: str) -> list[dict[str, Any]]:
    """The events of one kind of a stage, in their order."""
    return [event for event in events if event.get("kind") == kind and event.get("stage") == stage]


def last_sign(findings: Findings, name: str, newest: Incarnation | None) -> float | None:
    """When a job was last known to do something; unix time."""
    own = [event["time"] for event in findings.events if event.get("stage") == name and _is_number(event.get("time"))]
    signs = own[-1:] + [e["time"] for e in findings.entries if e["job"] == name and e["kind"] != CANCEL][-1:]
    open_ = newest is not None and newest.end is None
    last = bool(findings.events) and findings.events[-1].get("stage") == name
    if findings.lease is not None and name in findings.stages and (open_ or last):  # the lease is the whole run's
        signs.append(findings.lease.renewed)
    return max(signs, default=None)


def _is_number(value: Any) -> TypeGuard[int | float]:
    return is_finite(value)
