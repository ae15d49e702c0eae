"""Where a run is at one moment: what its live view, its status and its report say of it, from its events alone."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from agl_core.config import TrainConfig
from agl_core.reporting.live.seen import Validated

WAITS, STARTS, TRAINS, VALIDATES, SILENT = "waits", "is starting", "trains", "validates", "is silent"
WORKS, FINISHED, NOT_STARTED = "works", "is finished", "was not started"
INTERRUPTED, CANCELLED, FAILED = "was interrupted", "was cancelled", "has failed"
ENDED = (FINISHED, INTERRUPTED, CANCELLED, FAILED)
"""States in which nothing goes on by itself."""


@dataclass(frozen=True)
class LastEnd:
    """How a start of a job ended last before its job was done. reason: a key of `agl_core.reporting.words.REASONS`;
    text: what was said about it; at: unix time; ran: seconds from its launch; away: seconds until it was launched
    again, None while it was not; at_step: the last step that it had done; deed: what was done about it."""

    job: str
    reason: str
    text: str
    at: float
    ran: float
    away: float | None
    at_step: int | None
    deed: str = ""

    @property
    def verb(self) -> str:
        """What has happened, as in `interrupted last`."""
        return "refused" if self.reason == "refused" else "given up" if self.deed == "give up" else "interrupted"


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment. What is not known is None, or empty.

    job: the stage, or other job, that it is at; stage_number, of stages: 1 for the first, 0 for a job that is no stage.
    state: one of those of this module; told: a sentence about it; since: its unix time. where: host, device and id.
    epoch, step: done, of epochs, steps. losses: of the newest step that told, by name; crops_per_second: of the newest
    steps; data_wait, checkpoint_share: of the time (0 to 1). validation, best: of the stage. scores: the best of every
    stage. interruptions, steps_lost, goodput (0 to 1): of the run; reasons: of its restarts, with their number; costs:
    seconds that interruptions have cost, by item of the account; cost_share: these per second of undisturbed progress.
    seconds: where all the time has gone, by item. seconds_left: of the stage, undisturbed, at its present rate;
    ends_at: unix time at which all stages will be done, with what interruptions have cost so far; of a stage that waits
    to go on it is not known, but to_end: seconds from its next start to then, and starts_at: when that is expected, if
    somebody knows. last_sign: unix time. refused: something must be mended before it can go on. ended: unix time, and
    wall: seconds from the first event to then, of a run that is finished.
    """

    run: str
    now: float
    job: str = ""
    stage_number: int = 0
    stages: int = 0
    state: str = NOT_STARTED
    told: str = ""
    since: float | None = None
    where: str = ""
    epoch: int | None = None
    epochs: int | None = None
    step: int | None = None
    steps: int | None = None
    losses: Mapping[str, float] = field(default_factory=dict)
    lr: float | None = None
    crops_per_second: float | None = None
    data_wait: float | None = None
    checkpoint_share: float | None = None
    validation: Validated | None = None
    best: Validated | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    interruptions: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    steps_lost: int = 0
    goodput: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)
    cost_share: float = 0.0
    seconds_left: float | None = None
    ends_at: float | None = None
    last_sign: float | None = None
    last_end: LastEnd | None = None
    to_end: float | None = None
    starts_at: float | None = None
    refused: bool = False
    ended: float | None = None
    wall: float | None = None

    @property
    def interrupted_seconds(self) -> float:
        """What interruptions have cost so far, in seconds."""
        return sum(self.costs.values())

    def as_json(self) -> dict[str, Any]:
        """Plain values, for scripts."""
        return {**asdict(self), "interrupted_seconds": self.interrupted_seconds}


def take(events_all: Iterable[Mapping[str, Any]], config: TrainConfig | None, now: float) -> Snapshot:
    """Where a run is at `now` (unix time). events_all: as `agl_core.reporting.events.read_all` gives them."""
    from agl_core.reporting.live.tracker import Tracker

    tracker = Tracker(config.run if config is not None else "", config)
    for event in events_all:
        tracker.add(event)
    return tracker.snapshot(now, exact=True)
