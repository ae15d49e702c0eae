"""How often to save."""

import math

import pytest

from agl_core.durable.interval import DAY, HOUR, LONGEST, SHORTEST, Interval, mean_time_between, young_daly
from agl_core.errors import UserError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10 minutes", 600),
        ("1 minute", 60),
        ("90 seconds", 90),
        ("2hours", 7200),
        (" 0.5 Hours ", 1800),
        ("1_second", 1),
        ("never", math.inf),
    ],
)
def test_a_fixed_interval_stays_what_was_written_whatever_is_measured(text: str, seconds: float) -> None:
    interval = Interval.parse(text, "checkpoint.interval")
    assert interval.seconds(cost=0.1, interruptions=0, observed=0) == seconds
    assert interval.seconds(cost=100, interruptions=50, observed=DAY) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10",
        "ten minutes",
        "0 seconds",
        "0.0 hours",
        "-5 minutes",
        "1 epoch",
        "5 minutes 3",
        "1e3 seconds",
        "٣ hours",
    ],
)
def test_a_text_that_is_no_time_is_answered_with_one_sentence(text: str) -> None:
    with pytest.raises(UserError) as caught:
        Interval.parse(text, "checkpoint.interval")
    assert str(caught.value) == (
        f"checkpoint.interval is {text!r}: write a time as 'N seconds', 'N minutes' or 'N hours', N above 0, or auto "
        "or never"
    )


def test_young_and_dalys_interval_is_the_one_of_least_loss() -> None:
    cost, between = 2.0, 4 * HOUR

    def loss(interval: float) -> float:
        """Share of time: a save each interval, and half an interval repeated at each interruption."""
        return cost / interval + interval / 2 / between

    best = young_daly(cost, between)
    assert best == pytest.approx(240)
    assert loss(best) < min(loss(best * 0.9), loss(best * 1.1))


def test_the_figure_of_a_tenth_of_a_second_and_a_failure_a_day_is_about_two_minutes() -> None:
    assert young_daly(0.1, DAY) == pytest.approx(131.5, abs=0.1)


def test_a_computed_interval_lies_between_a_minute_and_an_hour() -> None:
    assert young_daly(0.0, DAY) == SHORTEST == 60
    assert young_daly(1e-3, 10.0) == SHORTEST
    assert young_daly(1000.0, 100 * DAY) == LONGEST == 3600


def test_a_run_that_was_never_interrupted_expects_one_interruption_a_day() -> None:
    assert mean_time_between(0, 0) == DAY
    assert mean_time_between(0, DAY) == 2 * DAY


def test_after_many_interruptions_the_observed_rate_is_what_counts() -> None:
    assert mean_time_between(100, 100 * HOUR) == pytest.approx(HOUR, rel=0.25)
    assert mean_time_between(1, 0) == DAY / 2


def test_auto_saves_more_often_the_more_often_it_is_interrupted_and_the_cheaper_it_is() -> None:
    auto = Interval.parse("auto", "checkpoint.interval")
    assert auto.seconds(0.1, 0, 0) == young_daly(0.1, DAY)
    assert auto.seconds(1.0, 9, DAY) < auto.seconds(1.0, 0, DAY) < auto.seconds(4.0, 0, DAY)


@pytest.mark.parametrize("wrong", [-1.0, math.nan])
def test_what_cannot_have_been_measured_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="neither may be below 0"):
        young_daly(wrong, DAY)
    with pytest.raises(ValueError, match="neither may be below 0"):
        young_daly(1.0, wrong)
    with pytest.raises(ValueError, match="neither may be below 0"):
        mean_time_between(0, wrong)
    with pytest.raises(ValueError, match="neither may be below 0"):
        mean_time_between(-1, 0.0)
