import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agl_core.training.schedule import Span
from jobs.planning.simulation import ENDLESS, FINISHED, GAVE_UP, Begin, Outcome, RunPlan, simulate
from jobs.planning.strikes import Queue, Rate, Strike, Strikes
from jobs.planning.timeline import Position, Timeline, nanoseconds
from tests.jobs.planning.small import QUEUE, plan, saving, seconds, strike, work


def run(*known: Strike, on: RunPlan | None = None, queue: Queue = QUEUE) -> Outcome:
    return simulate(on or plan(), Strikes(queue, known=known))


def test_a_run_that_nothing_interrupts() -> None:
    # 10 queue, 4 to the end of step 1, 9 steps, validations after 5 and 10, saves after 4 and 8, last save 1 + leave 1.
    found = run()
    assert seconds(found.items) == {
        "queue": 10, "start-up": 4, "training": 9, "validation": 4, "checkpoint": 1, "ending": 2,
    }  # fmt: skip
    assert (found.end, found.how, found.steps, found.lost, found.interruptions) == (30 * 10**9, FINISHED, 10, 0, 0)
    assert found.goodput == 9 / 30


def test_a_preemption_costs_a_save_the_queue_and_a_start() -> None:
    # Launched at 10, trains from 13; at 15.25 step 3 has begun: it is done at 16, saved at 17, away at 18. Back in the
    # queue for 10 + 5, launched at 33, trains from 36 with step 4: 7 steps, two validations, two saves, 2 to end.
    found = run(strike(15.25, "preempt"))
    assert found.end == nanoseconds(36 + 7 + 4 + 1 + 2)
    assert seconds(found.items) == {
        "queue": 25, "start-up": 8, "training": 8, "validation": 4, "checkpoint": 1, "ending": 4,
    }  # fmt: skip
    assert (found.steps, found.lost, found.interruptions) == (10, 0, 1)


def test_a_crash_goes_back_to_the_newest_checkpoint_that_was_whole() -> None:
    # Step 4 is done at 17 and its state whole at 18; step 5 at 18.5, validated at 20.5, step 6 done at 21.5. Killed at
    # 22: the time since 17 is lost, with steps 5 and 6. Noticed after 1 s; launched at 23, trains from 26.
    found = run(strike(22, "crash"))
    assert found.end == nanoseconds(26 + 6 + 4 + 0.5 + 2)
    assert seconds(found.items) == {
        "queue": 10, "start-up": 8, "training": 8, "validation": 4, "checkpoint": 0.5, "lost": 5, "down": 1,
        "ending": 2,
    }  # fmt: skip
    assert (found.steps, found.lost) == (10, 2)


def test_a_checkpoint_that_is_still_being_written_does_not_count() -> None:
    found = run(strike(17.999, "crash"))
    assert found.lost == 4
    assert seconds(found.items)["lost"] == pytest.approx(17.999 - 13)


def test_a_lost_node_sends_the_run_through_the_queue() -> None:
    assert run(strike(22, "node")).end == run(strike(22, "crash")).end + nanoseconds(15)


def test_the_others_save_when_one_rank_dies() -> None:
    # In the middle of step 7, which began at 21.5: 6 steps are saved, at 22.25 + 1; noticed after another second.
    found = run(strike(22.25, "rank"))
    assert found.lost == 0
    assert found.end == nanoseconds(22.25 + 1 + 1 + 3 + 4 + 0.5 + 2 + 2)


def test_known_waits_are_kept_and_the_time_until_the_owner_comes_back_is_his() -> None:
    found = run(strike(15.25, "stop", back=100))
    assert found.end == nanoseconds(115.25 + 3 + 7 + 4 + 1 + 2)
    assert seconds(found.items)["stopped"] == 115.25 - 18
    assert found.goodput == 8 / (found.end / 1e9 - (115.25 - 18))
    assert seconds(run(strike(22, "kill", back=9)).items)["stopped"] == 9


def test_a_warning_in_a_validation_ends_it_and_it_is_done_again() -> None:
    # Step 5 is done at 18.5; warned at 19 in the validation: saved at 20, away at 21; launched at 36, trains from 39:
    # validation, 5 steps, a save, a validation, 2 to end.
    found = run(strike(19, "preempt"))
    assert found.end == nanoseconds(39 + 2 + 5 + 0.5 + 2 + 2)
    assert seconds(found.items)["validation"] == 4


def test_a_grace_that_is_too_short_for_the_save_loses_the_steps() -> None:
    found = run(strike(22, "preempt"), on=plan(grace=nanoseconds(1)))
    assert found.lost == 2
    assert run(strike(22, "preempt"), on=plan(grace=nanoseconds(1.5))).lost == 0


def test_a_start_up_that_is_interrupted_is_done_again() -> None:
    found = run(strike(12, "preempt"))
    assert found.end == nanoseconds(13 + 15 + 20)
    assert seconds(found.items)["start-up"] == 6


def test_nothing_hits_a_run_that_waits() -> None:
    assert run(strike(5, "node")).end == run().end


def test_the_time_limit_sends_the_run_through_the_queue_again_and_again() -> None:
    # Warned 2 s before the limit of 8: at 16 step 3 has just ended, so step 4 is done at 17, saved at 18, away at 19.
    # Launched at 34, warned at 40: trains from 37, steps 5 to 7 would be done at 40 but for the validation: at 40 step
    # 6 has just ended, step 7 is done at 41, away at 43. Launched at 58, trains from 61: step 8, save, 9, warned at 64.
    site = plan(limit=nanoseconds(8), warning=nanoseconds(2))
    found = run(on=site)
    assert found.interruptions == 3
    assert found.how == FINISHED
    assert seconds(found.items)["queue"] == 10 + 3 * 15


def test_a_time_limit_that_leaves_no_time_to_train_never_ends() -> None:
    site = plan(limit=nanoseconds(5), warning=nanoseconds(3), fruitless=10)
    found = run(on=site)
    assert (found.how, found.interruptions, found.steps) == (GAVE_UP, 10, 0)
    assert run(on=plan(limit=nanoseconds(5), warning=nanoseconds(3))).how == ENDLESS


def test_a_restart_inside_keeps_its_time_limit() -> None:
    limited = plan(limit=nanoseconds(20), warning=nanoseconds(2))
    assert run(strike(12, "crash"), on=limited).interruptions == 2
    assert run(strike(12, "node"), on=limited).interruptions == 1


def test_checkpoints_are_due_by_steps_epochs_and_the_clock() -> None:
    by_epochs = Timeline(work(save_every=Span(1, "epochs"), validate_every=None), saving())
    assert by_epochs.finish(Position(0)).stalls == 4  # after 2, 4, 6 and 8
    by_clock = Timeline(work(save_every=None, validate_every=None), saving(interval=3))
    # After 3 steps; then the time of the save counts, so that 3 s have passed after 3 further steps: 6 and 9.
    assert by_clock.finish(Position(0)).stalls == 3
    both = Timeline(work(validate_every=None), saving(interval=3))
    # After 3 by the clock, 4 by the number; 3 s after that one began are over after step 7; 8 by the number.
    assert [both.moment(Position(0), nanoseconds(at)).kept.step for at in (4, 5.5, 9.4, 11)] == [3, 4, 7, 8]
    assert Timeline(work(save_every=None, validate_every=None), saving()).finish(Position(0)).stalls == 0


def test_a_save_by_the_clock_may_come_with_a_validation() -> None:
    # The clock asks after step 5, which is validated first: the save begins at 7 s and is whole at 8 s. It asks again
    # when the last step is done, whose state is saved anyway.
    line = Timeline(work(save_every=None), saving(interval=5))
    assert [line.moment(Position(0), nanoseconds(at)).kept.step for at in (7.9, 8)] == [0, 5]
    assert line.finish(Position(0)).stalls == 1


def test_a_save_that_takes_longer_than_the_interval_is_not_overtaken() -> None:
    slow = Timeline(work(save_every=None, validate_every=None), saving(interval=1, stall=0, write=3))
    assert [slow.moment(Position(0), nanoseconds(at)).kept.step for at in (3.9, 4, 7, 9.9)] == [0, 1, 4, 4]


def test_a_run_goes_on_from_where_it_stands() -> None:
    running = plan(begin=Begin(0, Position(6), allocated=nanoseconds(100)))
    assert run(on=running).end == nanoseconds(4 + 0.5 + 2 + 2)
    waiting = plan(begin=Begin(0, Position(6)))
    assert run(on=waiting).end == nanoseconds(10 + 3 + 4 + 0.5 + 2 + 2)


def test_stages_and_other_jobs_wait_each_for_themselves() -> None:
    two = plan([Timeline(work(), saving())] * 2)
    assert run(on=two).end == 2 * run().end
    assert run(on=replace(two, site=replace(two.site, queued=False))).end == 2 * (run().end - nanoseconds(10))
    found = run(on=replace(two, before=[nanoseconds(7)], after=[nanoseconds(8)]))
    assert found.end == 2 * run().end + nanoseconds(15 + 20)
    assert seconds(found.items)["other jobs"] == 15


def test_data_wait_is_a_share_of_the_steps() -> None:
    found = run(on=replace(plan(), waits=[0.25]))
    assert seconds(found.items)["data wait"] == 9 / 4
    assert found.end == run().end


times = st.floats(0.001, 50)


@settings(max_examples=150, deadline=None)
@given(
    steps=st.integers(1, 60), step=times, validation=times, stall=times, write=times, startup=times, leave=times,
    interval=st.none() | times, every=st.integers(1, 20), epochs=st.booleans(),
    rates=st.lists(st.floats(0, 3e4), min_size=6, max_size=6),
    limit=st.none() | st.floats(1, 300), seed=st.integers(0, 99), wait=st.floats(0, 0.99),
)  # fmt: skip
def test_the_items_add_up_to_the_end(
    steps: int, step: float, validation: float, stall: float, write: float, startup: float, leave: float,
    interval: float | None, every: int, epochs: bool, rates: list[float], limit: float | None, seed: int, wait: float,
) -> None:  # fmt: skip
    stage = work(
        steps, step=nanoseconds(step), validation=nanoseconds(validation),
        save_every=Span(every, "epochs" if epochs else "steps"),
    )  # fmt: skip
    timeline = Timeline(stage, saving(interval=interval, stall=stall, write=write))
    full = plan([timeline, timeline], startup=startup, leave=nanoseconds(leave), fruitless=20)
    full = replace(full, waits=[wait], site=replace(full.site, limit=None if limit is None else nanoseconds(limit)))
    kinds = ("preempt", "rank", "crash", "node", "stop", "kill")
    drawn = {kind: Rate(rate) for kind, rate in zip(kinds, rates, strict=True)}
    found = simulate(full, Strikes(Queue(30.0, requeue=6.0), drawn, seed=seed))
    assert sum(found.items.values()) == found.end
    assert min(found.items.values()) >= 0
    if found.how == FINISHED:
        assert found.steps == 2 * steps
    assert found.steps <= 2 * steps


@settings(max_examples=200, deadline=None)
@given(
    millions=st.integers(1, 500), every=st.integers(1, 50), stall=st.floats(0, 5), write=st.floats(5, 9), startup=times,
    low=st.floats(0, 2000), more=st.floats(0, 2000), seed=st.integers(0, 999),
)  # fmt: skip
def test_more_preemptions_never_end_earlier(
    millions: int, every: int, stall: float, write: float, startup: float, low: float, more: float, seed: int
) -> None:
    """One by one this holds where no interruption can spare anything: with steps so short (a microsecond) that no
    second warning comes in one, with saves by steps, as by the clock it may spare one that costs more, without
    validations, which it may have done again, and with a queue that is always as long."""
    million = 10**6
    stage = work(
        millions * million, step=nanoseconds(1e-6), validate_every=None, save_every=Span(every * million, "steps")
    )
    full = plan([Timeline(stage, saving(stall=stall, write=write))], startup=startup)

    def ends(rate: float) -> int:
        found = simulate(full, Strikes(Queue(samples=(30.0,)), {"preempt": Rate(rate)}, seed=seed))
        return found.end if found.how == FINISHED else 10**30

    assert ends(low) <= ends(low + more)


def test_more_preemptions_end_later_in_the_mean() -> None:
    """Whatever else there is."""
    stage = Timeline(work(2000, save_every=Span(100, "steps"), validate_every=Span(300, "steps")), saving(interval=60))
    full = plan([stage], limit=nanoseconds(900), warning=nanoseconds(20))
    means = []
    for rate in (0.0, 50.0, 100.0, 200.0, 400.0):
        rates = {"preempt": Rate(rate), "crash": Rate(50.0)}
        means.append(sum(simulate(full, Strikes(Queue(60.0), rates, draw=draw)).end for draw in range(60)))
    assert means == sorted(means)


def test_the_best_interval_is_that_of_young_and_daly() -> None:
    """Where a save costs far less than the time between two crashes, and a start little."""
    cost, between = 4.0, 3200.0
    stage = work(10000, step=nanoseconds(1), validate_every=None, save_every=None)
    ends = {}
    for factor in (0.25, 0.5, 1.0, 2.0, 4.0):
        interval = factor * math.sqrt(2 * cost * between)
        full = plan([Timeline(stage, saving(interval=interval, stall=cost, write=cost))], startup=1.0, leave=0)
        rate = {"crash": Rate(86400 / between)}
        ends[factor] = sum(simulate(full, Strikes(Queue(), rate, seed=draw)).end for draw in range(40)) / 40
    assert min(ends, key=lambda factor: ends[factor]) == 1.0
    # First order: the share of time that is lost is cost / interval + interval / (2 * between), here 5 %.
    assert ends[1.0] / 1e9 / 10000 - 1 == pytest.approx(0.05, rel=0.15)


def test_a_draw_is_a_function_of_its_seed() -> None:
    rates = {"preempt": Rate(2000.0), "crash": Rate.measured(3, 0.001, 1.0)}
    found = [
        simulate(plan(), Strikes(Queue(30.0), rates, seed=seed, draw=draw))
        for seed, draw in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert found[0] == found[1]
    assert len({outcome.end for outcome in found}) == 3


def test_events_come_as_often_as_their_rate_says() -> None:
    for rate in (0.3, 1.0, 5.0, 40.0):
        events, strikes, ran = 0, Strikes(Queue(), {"node": Rate(rate)}), 0
        while (found := strikes.next(0, ran)) is not None and ran + found.at < 1000 / rate * 86400 * 10**9:
            strikes.struck(found)
            events, ran = events + 1, ran + found.at
        assert events == pytest.approx(1000, abs=100)


def test_a_measured_rate_spreads_as_little_as_much_was_seen() -> None:
    import numpy as np

    random = np.random.Generator(np.random.Philox(0))
    for events, days in ((0, 0.0), (4, 2.0), (400, 200.0)):
        rate = Rate.measured(events, days, 0.5)
        drawn = [rate.draw(random) for _ in range(2000)]
        assert np.mean(drawn) == pytest.approx(rate.per_day, rel=0.1)
        assert np.std(drawn) == pytest.approx(rate.per_day / math.sqrt(events + 1), rel=0.1)
    assert Rate.measured(0, 0.0, 0.5).per_day == 0.5
    parts = [Rate.measured(events, 2.0, 0.5, 1 / 3).per_day for events in (1, 0, 4)]
    assert sum(parts) == pytest.approx(Rate.measured(5, 2.0, 0.5).per_day)
    assert Rate(3.0).draw(random) == 3.0


def test_the_first_start_may_take_longer_than_the_others() -> None:
    slow = replace(plan(), first_startup=nanoseconds(9))
    assert run(on=slow).end == run().end + nanoseconds(5)
    assert run(strike(20.25, "preempt"), on=slow).end == run(strike(15.25, "preempt")).end + nanoseconds(5)
