"""Where the time of an interrupted run went by its events, and when `plan` says that such a run ends."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from agl_core.config import PlanConfig
from agl_core.durable.interval import Interval
from agl_core.files import write_json
from agl_core.reporting.events import read_all
from agl_core.reporting.goodput.account import ITEMS, Account, account
from jobs.planning.inputs import Told
from jobs.planning.measured import measure
from jobs.planning.plan import scenarios
from jobs.planning.prediction import outcomes_of
from jobs.planning.simulation import Outcome
from jobs.planning.strikes import CRASH, KILL, PREEMPT, RANK, STOP
from jobs.planning.timeline import SECOND
from jobs.runs import Run
from tests.slurm.scenario import Scenario
from tests.slurm.tiny import Workplace, folder_name

DEVIATION = 0.1
"""Share of the time of a run by which the plan may be wrong."""

SPOKEN = {
    "preempt": PREEMPT,
    "requeue": PREEMPT,
    "warn": PREEMPT,
    "kill one": RANK,
    "kill all": CRASH,
    "kill conductor": PREEMPT,  # the ranks are warned, and the first of them hands the job back
    "node down": PREEMPT,
    "cancel": STOP,
    "kill everything": KILL,
}
"""What `plan` calls the deeds of the drill, by what they do to the run."""

Known = tuple[str, float, float | None]
"""A deed, when it was done (unix time), and the seconds until the job was started again."""


@dataclass(frozen=True)
class Foretold:
    """Seconds from the submission of a run to the end of its training, measured and by `plan`; by item, those of `plan`
    and those of the account. own: the end by `plan` with the times that the interrupted run has measured itself; paces:
    by what factors its steps and its starts took longer than those from which the plan was made; met: how many of the
    interruptions the simulated run came to; it may end before the last."""

    measured: float
    planned: float
    own: float
    planned_items: dict[str, float]
    items: dict[str, float]
    paces: tuple[float, float]
    met: int

    @property
    def wrong(self) -> bool:
        """Whether the plan is wrong by too much. Where the machine has changed its pace meanwhile, which no plan can
        know, it is the one with the times of the interrupted run that counts."""
        steady = all(1 / (1 + DEVIATION) <= pace <= 1 + DEVIATION for pace in self.paces)
        return abs(self.deviation if steady else self.own_deviation) > DEVIATION

    @property
    def deviation(self) -> float:
        """By what share of the time the plan is too late."""
        return self.planned / self.measured - 1

    @property
    def own_deviation(self) -> float:
        """The same with the times of the interrupted run."""
        return self.own / self.measured - 1

    def __str__(self) -> str:
        return (
            f"plan {self.planned:.1f} s, measured {self.measured:.1f} s ({self.deviation:+.1%}; by the interrupted "
            f"run's own times {self.own_deviation:+.1%}; its steps took {self.paces[0]:.2f} and its starts "
            f"{self.paces[1]:.2f} times as long as those that were measured before; {self.met} interruptions met)"
        )

    def table(self) -> Table:
        """A line for each item."""
        shown = Table(caption="seconds, of the whole run; plan: of its training, from its times when left alone")
        for name in ("where the time went", "measured", "share", "plan"):
            shown.add_column(name, justify="left" if name == "where the time went" else "right")
        wall = sum(self.items.values())
        for item in ITEMS:
            if self.items[item] or self.planned_items[item]:
                share, planned = self.items[item] / wall, self.planned_items[item]
                shown.add_row(item, f"{self.items[item]:.1f}", f"{share:.1%}", f"{planned:.1f}")
        shown.add_row("in all", f"{wall:.1f}", "100.0%", f"{self.planned:.1f}")
        return shown

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return {**asdict(self), "deviation": self.deviation, "own_deviation": self.own_deviation, "wrong": self.wrong}


def spent(run_dir: Path) -> Account:
    """The account of a run, from its events alone."""
    found = account(read_all(run_dir / "events.jsonl"))
    assert found is not None, f"{run_dir} has no events"
    return found


def adds_up(run_dir: Path) -> list[str]:
    """What of the account of a run is not as it should be, a sentence each."""
    found, times = spent(run_dir), [event["time"] for event in read_all(run_dir / "events.jsonl")]
    wall, total = max(times) - min(times), sum(found.seconds.values())
    problems = []
    if abs(total - found.wall) > 1 or abs(found.wall - wall) > 1:
        problems.append(f"the items of the time are {total:.3f} s of {found.wall:.3f} s, and the events {wall:.3f} s")
    if min(found.seconds.values()) < 0 or sorted(found.seconds) != sorted(ITEMS):
        problems.append(f"the items of the time are {found.seconds}")
    begins, ends = [span.begin for span in found.spans], [span.end for span in found.spans]
    if [found.begin, *ends] != [*begins, found.end]:
        problems.append("the spans of the time have gaps or overlap")
    return problems


def foretell(
    workplace: Workplace,
    scenario: Scenario,
    alone: Path,
    interrupted: Path,
    known: Sequence[Known],
    again: Path | None = None,
) -> Foretold:
    """What `plan` says of the run `interrupted` by what happened to it, and by the times of the run `alone`. again: a
    run that was started a second time, which takes less than the first time."""
    measured = spent(interrupted)
    stages = Run(interrupted).config().stages
    lives = [life for life in measured.lives if life.job in stages]
    begin = min(event["time"] for event in read_all(interrupted / "events.jsonl") if event["kind"] == "submit")
    file = interrupted / "known.json"
    first = lives[0].launched - (begin if lives[0].queued is None else lives[0].queued)
    events = [{"at": max(at - begin, 0.0), "kind": SPOKEN[deed], "back": back} for deed, at, back in known]
    write_json(file, {"events": events, "queue": [first]})

    def planned(by: Path, again: Path | None = None) -> tuple[Outcome, float, tuple[float, float]]:
        config = PlanConfig(
            run=by.name,
            runs=str(by.parent),
            recipe=str(workplace.folder / f"{scenario.recipe}.yaml"),
            cluster=str(workplace.folder / f"{folder_name(scenario.name)}.cluster.yaml"),
            interruptions=str(file),
        )
        (place,) = scenarios(config, {}, measured.end)
        if again is not None and (restarted := measure(Run(again), measured.end)) is not None:
            assert restarted.startup is not None
            startup = Told(restarted.startup, str(again))
            place = replace(place, inputs=replace(place.inputs, startup=startup))
        (reference,) = place.inputs.references.values()
        (outcome,) = outcomes_of(place, Interval.parse("never", ""), 1, 0)
        assert outcome.how == "finished", outcome
        end = (outcome.end - outcome.items["other jobs"]) / SECOND
        return outcome, end, (reference.seconds, place.inputs.startup.value)

    outcome, end, before = planned(alone, again)
    _, own, meanwhile = planned(interrupted)
    items = {name: time / SECOND if name != "other jobs" else 0.0 for name, time in outcome.items.items()}
    last = max(life.ended for life in lives if life.ended is not None)
    paces = meanwhile[0] / before[0], meanwhile[1] / before[1]
    return Foretold(last - begin, end, own, items, dict(measured.seconds), paces, outcome.interruptions)
