import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agl_core.config import ScheduleConfig
from agl_core.data.order import Order
from agl_core.errors import UserError
from agl_core.training.schedule import Span, learning_rate

ORDER = Order(0, 0, n_samples=10, global_batch=4)  # epochs end after 2.5, 5, 7.5, 10 steps


def test_spans_are_read_as_people_write_them() -> None:
    assert Span.parse("3 epochs", "length") == Span.parse("3epoch", "length") == Span(3, "epochs")
    assert Span.parse("1 step", "length") == Span.parse("1-steps", "length") == Span(1, "steps")
    for wrong in ("", "3", "epochs", "0 steps", "-1 steps", "1.5 epochs", "3 hours"):
        with pytest.raises(UserError, match=r"stages\.a\.length is .*'N epochs' or 'N steps'"):
            Span.parse(wrong, "stages.a.length")


def test_a_span_of_epochs_is_due_at_the_step_that_completes_it() -> None:
    assert [step for step in range(12) if Span(1, "epochs").due(step, ORDER)] == [3, 5, 8, 10]
    assert [step for step in range(12) if Span(2, "epochs").due(step, ORDER)] == [5, 10]
    assert [step for step in range(12) if Span(4, "steps").due(step, ORDER)] == [4, 8]
    assert Span(2, "epochs").steps(ORDER) == 5
    assert Span(7, "steps").steps(ORDER) == 7


def test_a_batch_larger_than_the_data_completes_several_epochs_at_once() -> None:
    order = Order(0, 0, n_samples=3, global_batch=8)
    assert all(Span(2, "epochs").due(step, order) for step in range(1, 9))


def test_the_references_cosine_is_pytorchs_annealing_per_epoch_and_ends_at_the_floor() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1e-4)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=25, eta_min=1e-6)
    config = ScheduleConfig(name="cosine-epochs", half_period=25, floor=1e-6)
    order = Order(0, 0, n_samples=8, global_batch=4)
    for epoch in range(526):
        ours = learning_rate(config, 1e-4, epoch * 2, 1052, order)
        assert ours == pytest.approx(theirs.get_last_lr()[0], rel=1e-6)
        assert ours == learning_rate(config, 1e-4, epoch * 2 + 1, 1052, order)
        optimizer.step()
        theirs.step()
    assert ours == pytest.approx(1e-6)


def test_warm_up_rises_to_the_peak_and_one_cosine_falls_to_the_floor() -> None:
    config = ScheduleConfig(name="cosine", warmup=0.1, floor=1e-5)
    rates = [learning_rate(config, 1e-2, step, 100, ORDER) for step in range(101)]
    assert rates[0] == pytest.approx(1e-3)
    assert rates[9] == rates[10] == 1e-2
    assert rates[55] == pytest.approx(1e-5 + (1e-2 - 1e-5) / 2 * (1 + math.cos(math.pi / 2)))
    assert rates[100] == pytest.approx(1e-5)
    assert learning_rate(ScheduleConfig(name="constant"), 0.5, 99, 100, ORDER) == 0.5


SCHEDULES = st.builds(
    ScheduleConfig,
    name=st.sampled_from(["cosine", "one-cycle", "flat-cosine", "constant"]),
    warmup=st.floats(0, 1),
    flat=st.floats(0, 1),
    initial=st.floats(0, 1),
    floor=st.floats(0, 1e-3),
).filter(lambda config: config.name != "flat-cosine" or config.warmup <= config.flat)
PEAKS, TOTALS = st.floats(1e-3, 1), st.integers(1, 400)


def curve(config: ScheduleConfig, peak: float, total: int) -> list[float]:
    """The rate of every step, and what it comes to with the end."""
    return [learning_rate(config, peak, step, total, ORDER) for step in range(total + 1)]


@settings(deadline=None)
@given(SCHEDULES, PEAKS, TOTALS)
def test_no_rate_is_above_the_peak_or_below_where_a_schedule_may_go(
    config: ScheduleConfig, peak: float, total: int
) -> None:
    rates, warmup = curve(config, peak, total), round(config.warmup * total)
    tolerance = 1e-12 * peak  # a small rate is the difference of two large ones
    assert max(rates) <= peak + tolerance
    begin = config.initial * peak if config.name == "one-cycle" else 0.0
    assert min(rates[:warmup], default=peak) >= begin - tolerance
    assert min(rates[warmup:]) >= config.floor - tolerance


@settings(deadline=None)
@given(SCHEDULES, PEAKS, TOTALS)
def test_a_rate_rises_during_the_warm_up_and_never_again(config: ScheduleConfig, peak: float, total: int) -> None:
    rates, warmup = curve(config, peak, total), round(config.warmup * total)
    tolerance = 1e-12 * peak
    assert all(one <= other + tolerance for one, other in itertools.pairwise(rates[: warmup + 1]))
    assert all(one + tolerance >= other for one, other in itertools.pairwise(rates[warmup:]))


@settings(deadline=None)
@given(SCHEDULES, PEAKS, TOTALS)
def test_a_rate_makes_no_jumps(config: ScheduleConfig, peak: float, total: int) -> None:
    """A half cosine over n steps moves by at most pi / 2n of its height in each."""
    rates, warmup = curve(config, peak, total), round(config.warmup * total)
    begin = round(config.flat * total) if config.name == "flat-cosine" else warmup
    for step, (one, other) in enumerate(itertools.pairwise(rates)):
        if step < warmup:
            most = peak * math.pi / 2 / warmup
        else:
            most = peak * math.pi / 2 / max(total - begin, 1) if step >= begin else 0.0
        assert abs(other - one) <= most + 1e-12


@settings(deadline=None)
@given(SCHEDULES, PEAKS, TOTALS)
def test_the_stage_ends_at_the_floor(config: ScheduleConfig, peak: float, total: int) -> None:
    rates, warmup = curve(config, peak, total), round(config.warmup * total)
    begin = round(config.flat * total) if config.name == "flat-cosine" else warmup
    ends_at_floor = config.name != "constant" and begin < total
    assert rates[-1] == pytest.approx(config.floor if ends_at_floor else peak, rel=1e-9, abs=1e-15)


def test_one_cycle_is_pytorchs_with_its_peak_at_the_end_of_the_warm_up() -> None:
    """torch counts from the first step to the last; ours comes to the floor one step after the last."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1e-2)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1e-2, total_steps=101, pct_start=31 / 101, div_factor=25, final_div_factor=40
    )
    config = ScheduleConfig(name="one-cycle", warmup=0.3, initial=0.04, floor=1e-5)
    for step in range(101):
        ours = learning_rate(config, 1e-2, step, 100, ORDER)
        assert ours == pytest.approx(theirs.get_last_lr()[0], rel=1e-6), step
        optimizer.step()
        if step < 100:
            theirs.step()


def test_one_cycle_begins_at_its_share_of_the_peak() -> None:
    config = ScheduleConfig(name="one-cycle", warmup=0.5, initial=0.1, floor=0.0)
    assert learning_rate(config, 2.0, 0, 100, ORDER) == pytest.approx(0.2)
    assert learning_rate(config, 2.0, 25, 100, ORDER) == pytest.approx(1.1)
    assert learning_rate(config, 2.0, 50, 100, ORDER) == 2.0
    assert learning_rate(config, 2.0, 75, 100, ORDER) == pytest.approx(1.0)


def test_flat_cosine_stays_at_the_peak_for_its_share() -> None:
    config = ScheduleConfig(name="flat-cosine", warmup=0.1, flat=0.7, floor=1e-4)
    rates = curve(config, 1e-2, 100)
    assert rates[0] == pytest.approx(1e-3)
    assert set(rates[9:71]) == {1e-2}
    assert rates[71] < 1e-2
    assert rates[85] == pytest.approx((1e-2 + 1e-4) / 2)
    assert rates[100] == pytest.approx(1e-4)
    assert set(curve(ScheduleConfig(name="flat-cosine", flat=1.0), 0.5, 10)) == {0.5}
