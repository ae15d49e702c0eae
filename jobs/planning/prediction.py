"""Many simulated runs in one place, what they have in common, and how often to save there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agl_core.durable.interval import DAY, MINUTE, Interval, young_daly
from agl_core.reporting.goodput.account import ITEMS
from jobs.planning.scenario import UNANNOUNCED, Scenario
from jobs.planning.simulation import ENDLESS, FINISHED, Outcome, simulate
from jobs.planning.strikes import Strikes
from jobs.planning.timeline import SECOND

CANDIDATES = (1, 2, 5, 10, 15, 20, 30, 60)
"""Intervals that are tried, minutes."""
COMPARED, STARTS = 40, 2000
"""Simulated runs for each of them: so many at most, and fewer of runs that are started often."""
HOPELESS = 5  # simulated runs after which one that never ends is believed
SAME = 0.001
"""Share of the time of a run that is no difference between two intervals."""


@dataclass(frozen=True)
class Prediction:
    """Of a run in one place; times in seconds, each a median with the tenth and the ninetieth of a hundred. items: in
    the mean. finished: share of the simulated runs that came to their end, from which all these are; without any, they
    are of what was simulated."""

    finished: float
    how: str
    end: tuple[float, float, float]
    goodput: tuple[float, float, float]
    lost: tuple[float, float, float]
    interruptions: tuple[float, float, float]
    items: Mapping[str, float]
    draws: int

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        ends = self.finished > 0
        return {
            "finished": self.finished,
            "how": self.how,
            "end_seconds": _triple(self.end) if ends else None,
            "goodput": _triple(self.goodput),
            "steps_lost": _triple(self.lost),
            "interruptions": _triple(self.interruptions),
            "seconds": dict(self.items),
            "draws": self.draws,
        }


@dataclass(frozen=True)
class Advice:
    """How often to save. seconds: the best of those that were tried; young_daly: by the formula, None without crashes;
    agree: whether a run takes as long with the one as with the other; gain: share of the time that the best spares
    over what is written; ends: mean seconds of the run by what was tried; matters: whether it makes any difference."""

    seconds: float
    young_daly: float | None
    agree: bool
    gain: float
    ends: Mapping[float, float]
    matters: bool

    @property
    def keep(self) -> bool:
        """Whether what is written is as good as the best."""
        return self.gain <= SAME

    @property
    def option(self) -> str:
        """As it is written on the command line."""
        minutes = self.seconds / MINUTE
        many = f"{minutes:g} minutes" if minutes == round(minutes) else f"{self.seconds:.0f} seconds"
        return f'checkpoint.interval="{many}"'


def predict(scenario: Scenario, interval: Interval, draws: int, seed: int) -> Prediction:
    """Simulate a run `draws` times."""
    outcomes = outcomes_of(scenario, interval, draws, seed)
    ended = [outcome for outcome in outcomes if outcome.how == FINISHED]
    used = ended or outcomes
    how = FINISHED if ended else max((outcome.how for outcome in outcomes), key=[one.how for one in outcomes].count)
    items = {item: sum(outcome.items[item] for outcome in used) / len(used) / SECOND for item in ITEMS}
    return Prediction(
        len(ended) / len(outcomes),
        how,
        _range([outcome.end / SECOND for outcome in used]),
        _range([outcome.goodput for outcome in used]),
        _range([outcome.lost for outcome in used]),
        _range([outcome.interruptions for outcome in used]),
        items,
        len(outcomes),
    )


def outcomes_of(scenario: Scenario, interval: Interval, draws: int, seed: int) -> list[Outcome]:
    """The simulated runs; fewer, where none of the first ends."""
    plan, found = scenario.plan(interval), list[Outcome]()
    those = scenario.interruptions
    for draw in range(draws):
        found.append(simulate(plan, Strikes(those.queue, those.rates, those.known, seed, draw)))
        if draw + 1 == HOPELESS and all(outcome.how == ENDLESS for outcome in found):
            break
    return found


def advise(scenario: Scenario, interval: Interval, draws: int, seed: int) -> Advice:
    """Try several intervals with the same interruptions; `interval` is what is written."""
    between = scenario.interruptions.per_day(UNANNOUNCED)
    formula = young_daly(scenario.inputs.stall.value, DAY / between) if between else None
    tried = sorted({minutes * MINUTE for minutes in CANDIDATES} | ({formula} if formula is not None else set()))
    starts = 1 + outcomes_of(scenario, interval, 1, seed)[0].interruptions
    draws = min(draws, COMPARED, max(STARTS // starts, 3))
    ends = {seconds: _mean(scenario, Interval(seconds), draws, seed) for seconds in tried}
    written = _mean(scenario, interval, draws, seed)
    least = min(ends.values())
    equal = [seconds for seconds in tried if ends[seconds] <= (1 + SAME) * least]
    agree = formula in equal
    best = min(equal, key=lambda seconds: ends[seconds])
    if agree and formula is not None and equal != [formula]:  # of equals the round number that is nearest to it
        best = min((one for one in equal if one != formula), key=lambda seconds: abs(np.log(seconds / formula)))
    elif agree and formula is not None:
        best = round(formula)
    return Advice(
        best, formula, agree, 1 - ends.get(best, least) / written, ends, max(ends.values()) > (1 + SAME) * least
    )


def _mean(scenario: Scenario, interval: Interval, draws: int, seed: int) -> float:
    """Mean seconds of a run."""
    found = outcomes_of(scenario, interval, draws, seed)
    return float(np.mean([outcome.end for outcome in found])) / SECOND


def _range(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = np.quantile(np.asarray(values, np.float64), (0.1, 0.5, 0.9)).tolist()
    return middle, low, high


def _triple(values: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(("median", "p10", "p90"), values, strict=True))
