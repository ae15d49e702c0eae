"""How much time to let pass between two checkpoints."""

import math
import re
from dataclasses import dataclass

from agl_core.errors import UserError

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
SHORTEST, LONGEST = 1 * MINUTE, 60 * MINUTE
"""Bounds of a computed interval, seconds. Below a minute there is nothing to win; above an hour a wrong guess of the
rate of interruptions costs more than the saves do."""

UNITS = {"second": 1.0, "minute": MINUTE, "hour": HOUR}


@dataclass(frozen=True)
class Interval:
    """Time between two checkpoints: fixed, or computed from what saving costs and how often the run is interrupted.

    fixed: seconds, inf for never; None for a computed one.
    """

    fixed: float | None

    @staticmethod
    def parse(text: str, key: str) -> "Interval":
        """Read 'N seconds', 'N minutes', 'N hours' (also '1 minute', '0.5 hours'), 'auto' or 'never'.

        Raises:
            UserError: it is none of these, or N is not above 0; `key` is named.
        """
        text_given, text = text, text.strip().lower()
        if text == "auto":
            return Interval(None)
        if text == "never":
            return Interval(math.inf)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)[\s_-]*(second|minute|hour)s?", text, re.ASCII)
        if match is None or float(match[1]) <= 0:
            raise UserError(
                f"{key} is {text_given!r}: write a time as 'N seconds', 'N minutes' or 'N hours', N above 0, or auto "
                "or never"
            )
        return Interval(float(match[1]) * UNITS[match[2]])

    def seconds(self, cost: float, interruptions: int, observed: float) -> float:
        """Seconds to let pass after one checkpoint before the next is begun; inf for never.

        Args:
            cost: seconds by which one checkpoint holds training up (its stall, not the write in the background);
                0 as long as none has been measured.
            interruptions: how often the run has been interrupted without warning or otherwise so far.
            observed: seconds over which these were counted.
        """
        if self.fixed is not None:
            return self.fixed
        return young_daly(cost, mean_time_between(interruptions, observed))


def mean_time_between(interruptions: int, observed: float) -> float:
    """Expected seconds between two interruptions, after `interruptions` of them in `observed` seconds.

    Interruptions are taken for a Poisson process. Its rate is estimated as if one more interruption in one more day
    had been seen (a gamma prior of shape 1 and rate 1 day): a run that has not been interrupted yet expects one a
    day, and after a few the observed rate is what counts.

    Raises:
        ValueError: one of the two is below 0.
    """
    if interruptions < 0 or not observed >= 0:
        raise ValueError(f"{interruptions} interruptions in {observed} seconds: neither may be below 0")
    return (DAY + observed) / (1 + interruptions)


def young_daly(cost: float, mean_time_between: float) -> float:
    """The interval, in seconds, that loses least time to saving and to repeating work together.

    sqrt(2 * cost * mean_time_between), held between `SHORTEST` and `LONGEST`. J. W. Young, "A first order
    approximation to the optimum checkpoint interval", Communications of the ACM 17 (1974); J. T. Daly, "A higher order
    estimate of the optimum checkpoint interval for restart dumps", Future Generation Computer Systems 22 (2006), whose
    further terms do not matter here, where a save costs far less than the time between two interruptions.

    Args:
        cost: seconds by which one checkpoint holds training up.
        mean_time_between: seconds from one interruption to the next, in the mean.

    Raises:
        ValueError: one of the two is below 0 or not a number.
    """
    if not cost >= 0 or not mean_time_between >= 0:
        raise ValueError(f"a cost of {cost} s and {mean_time_between} s between interruptions: neither may be below 0")
    return min(max(math.sqrt(2 * cost * mean_time_between), SHORTEST), LONGEST)
