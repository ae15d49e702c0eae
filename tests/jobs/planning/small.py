"""A small stage, to be simulated by hand: 10 steps of 1 s, a validation of 2 s after steps 5 and 10, a save each 4
steps that holds training up for 0.5 s and is written in 1 s; 4 s from the launch to the end of the first step, 1 s to
leave."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from agl_core.data.order import Order
from agl_core.training.schedule import Span
from jobs.planning.simulation import Begin, RunPlan, Site
from jobs.planning.strikes import Queue, Strike
from jobs.planning.timeline import Saving, StageWork, Timeline, nanoseconds

ORDER = Order(0, 0, 8, 4)  # two steps are an epoch
FRESH = Begin()
SITE = Site(leave=nanoseconds(1), grace=nanoseconds(30))
QUEUE = Queue(samples=(10.0,), requeue=5.0)


def work(steps: int = 10, **values: Any) -> StageWork:
    given: dict[str, Any] = {
        "name": "train",
        "steps": steps,
        "step": nanoseconds(1),
        "validation": nanoseconds(2),
        "order": ORDER,
        "validate_every": Span(5, "steps"),
        "save_every": Span(4, "steps"),
    }
    return StageWork(**{**given, **values})


def saving(**seconds: float | None) -> Saving:
    given: dict[str, float | None] = {"interval": None, "stall": 0.5, "write": 1.0, **seconds}
    return Saving(**{name: None if value is None else nanoseconds(value) for name, value in given.items()})  # type: ignore[arg-type]


def plan(
    stages: Sequence[Timeline] = (),
    site: Site = SITE,
    startup: float = 4.0,
    begin: Begin = FRESH,
    **site_values: Any,
) -> RunPlan:
    return RunPlan(
        stages or [Timeline(work(), saving())], nanoseconds(startup), replace(site, **site_values), begin=begin
    )


def strike(at: float, kind: str, back: float | None = None) -> Strike:
    return Strike(nanoseconds(at), kind, 0.0, None if back is None else nanoseconds(back))


def seconds(items: Any) -> dict[str, float]:
    """The items that are not 0, in seconds."""
    return {name: time / 1e9 for name, time in items.items() if time}
