"""Where a run is and when it will end, from simulated histories with known answers."""

from dataclasses import replace
from typing import Any

import pytest

from agl_core.config import StageConfig, TrainConfig
from agl_core.reporting.live import snapshot as states
from agl_core.reporting.live.rendering import ends_in_words
from agl_core.reporting.live.seen import Validated
from agl_core.reporting.live.snapshot import Snapshot, take
from agl_core.reporting.live.tracker import Tracker
from agl_core.reporting.words import in_words, moment, span, spans
from tests.reporting.histories import Story

CITIES = {"ARG": {"score": 0.7}, "JAX": {"score": 0.8}}


def recipe(**changes: Any) -> TrainConfig:
    """A stage of 1000 steps, and one of 500 with crops of four times as many pixels."""
    first: dict[str, Any] = {"length": "1000 steps", "crop": 256, "batch": 8, "validate_every": "200 steps"}
    second = {**first, "length": "500 steps", "crop": 512, "start": "train/best"}
    stages = {"train": StageConfig(**(first | changes)), "fine": StageConfig(**second)}  # type: ignore[arg-type]
    return TrainConfig(run="first", until="train", stages=stages)


def begun(steps: int = 100, **more: float) -> Story:
    """A run that was queued for 600 s, took 30 s to start, and has done so many steps of a second."""
    story = Story()
    story.submit()
    story.spend(600.0, "queue")
    story.launch()
    story.start(30.0)
    story.train(steps - 1, **more)
    return story


def now(story: Story, later: float = 0.0) -> Snapshot:
    return take(story.events, recipe(), story.now + later)


def test_of_a_run_that_was_never_started_nothing_is_said() -> None:
    found = take([], recipe(), 5.0)
    assert (found.state, found.job, found.stage_number, found.stages) == (states.NOT_STARTED, "train", 1, 2)
    assert (found.goodput, found.ends_at, found.last_sign) == (None, None, None)
    assert take([], None, 5.0).state == states.NOT_STARTED


def test_a_stage_is_followed_through_all_that_happens_to_it() -> None:
    story = Story()
    story.submit()
    assert now(story, 60).state == states.WAITS
    story.spend(600.0, "queue")
    story.launch()
    assert now(story, 60).state == states.STARTS
    story.start(30.0)
    story.train(149)
    assert now(story).state == states.TRAINS
    story.train(50)
    assert now(story, 60).state == states.VALIDATES  # steps come every second, and after 200 a validation is due
    story.validate(100.0, 0.75, CITIES)
    story.train(10)
    assert now(story).state == states.TRAINS
    assert now(story, 5000).state == states.SILENT
    story.interrupt()
    assert now(story).state == states.INTERRUPTED
    story.leave("interrupted", "preempted", "requeue")
    waits = now(story, 1200)
    assert (waits.state, waits.since) == (states.WAITS, story.now)
    assert "preempted: another job needed its place" in waits.told
    story.spend(1200.0, "queue")
    story.launch(restart=1, host="node2")
    assert now(story).state == states.STARTS
    story.start(40.0)
    assert now(story).where == "on node2, job 17, 4 x cuda"
    story.leave("crashed", "", "again", "rank 1 was killed")
    assert now(story).state == states.STARTS
    story.launch(attempt=1)
    story.start(40.0)
    story.leave("crashed", "", "give up", "rank 1 was killed; 4 crashes at the same step")
    failed = now(story)
    assert (failed.state, failed.ends_at, failed.seconds_left) == (states.FAILED, None, None)
    assert failed.told.endswith("rank 1 was killed; 4 crashes at the same step")


def test_the_next_stage_is_turned_to_when_one_is_finished() -> None:
    story = begun(1000)
    story.finish()
    story.leave("done", deed="done")
    after = now(story)
    assert (after.job, after.stage_number, after.state) == ("fine", 2, states.WAITS)
    story.turn_to("fine", 500)
    story.launch("18")
    story.start(30.0)
    story.train(499)
    story.finish()
    story.leave("done", deed="done")
    assert (now(story).job, now(story).state) == ("fine", states.FINISHED)


def test_a_cancelled_run_says_so_whatever_its_processes_say_later() -> None:
    story = begun()
    story.cancel("17", "18")
    assert now(story).state == states.CANCELLED
    story.interrupt()
    story.leave("interrupted", "unknown", "leave")
    assert now(story).state == states.CANCELLED
    story.cancel("5")
    story.submit("19")
    assert now(story).state == states.WAITS


def test_other_jobs_are_named_and_work() -> None:
    story = Story("prepare")
    story.launch()
    found = now(story, 5000)
    assert (found.job, found.stage_number, found.state) == ("prepare", 0, states.WORKS)
    story.leave("done", deed="done")
    assert (now(story).job, now(story).state) == ("train", states.WAITS)


def test_the_time_left_is_that_of_steps_validations_and_checkpoints() -> None:
    story = begun(200)
    story.validate(50.0, 0.75, CITIES)
    story.save(stall=0.5)
    story.train(200, each=2.0, data=0.5)
    steps = [event for event in story.events if event["kind"] == "step"][1:]  # the first step of a start is slow
    each = sum(event["seconds"] for event in steps) / (steps[-1]["step"] - 1)
    assert now(story).seconds_left == pytest.approx(600 * (each + 0.5 / 400) + 3 * 50.0)


def test_validations_are_counted_as_they_come_due() -> None:
    for every, validations in (("200 steps", 4), ("300 steps", 4), ("7 steps", 115), ("1 epoch", 2), ("5000 steps", 1)):
        story = begun(200)
        story.validate(50.0)
        found = take(story.events, recipe(validate_every=every), story.now)  # 8 of 4000 tiles a step: 500 an epoch
        assert found.seconds_left == pytest.approx(800 * 1.0 + validations * 50.0), every


def test_the_end_of_the_run_counts_later_stages_by_the_pixels_of_their_crops() -> None:
    story = begun(200)
    story.validate(50.0)
    found = now(story)
    left = 800 * 1.0 + 4 * 50.0
    later = 500 * 4 * 1.0 + 3 * 50.0
    begin = 600.0 + 30.0  # the second stage waits and starts too
    assert found.ends_at == pytest.approx(story.now + left + later + begin)
    assert found.costs == {}


def test_what_interruptions_have_cost_is_taken_to_go_on() -> None:
    story = begun(200)
    story.save(stall=0.0)
    story.train(20)
    story.leave("crashed", "", "requeue")
    story.spend(480.0, "queue")
    story.launch(restart=1)
    story.start(30.0)
    story.train(1)
    found = now(story)
    # 20 steps again, 480 s in the queue and 30 s of starting, beside 201 steps that count (the first of each start
    # belongs to its start-up).
    assert found.costs == pytest.approx({"queue": 480.0, "start-up": 30.0, "lost": 20.0})
    kept = found.seconds["training"]
    assert kept == pytest.approx(199.0)  # of the last step no event tells yet
    assert found.cost_share == pytest.approx(530.0 / kept)
    assert found.ends_at == pytest.approx(story.now + (798 + 2000) * (1 + 530.0 / kept) + 630.0)
    assert (found.interruptions, found.steps_lost, found.reasons) == (1, 20, {"crashed": 1})


def test_a_stage_that_waits_to_begin_is_forecast_by_the_one_before() -> None:
    story = begun(1000)
    story.finish()
    story.leave("done", deed="done")
    found = now(story)
    assert found.ends_at == pytest.approx(story.now + 500 * 4 * 1.0 + 630.0, abs=5.0)


def test_without_any_rate_nothing_is_forecast() -> None:
    story = Story()
    story.launch()
    assert (now(story).seconds_left, now(story).ends_at) == (None, None)


def test_the_rate_of_a_new_start_counts_as_soon_as_there_is_one() -> None:
    story = begun(200)
    story.save(stall=0.0)
    story.leave("interrupted", "preempted", "requeue")
    story.launch(restart=1)
    story.start(30.0, each=9.0)
    assert now(story).seconds_left == pytest.approx(799 * 9.0)
    story.train(19, each=3.0)
    assert now(story).seconds_left == pytest.approx(780 * 3.0)
    assert now(story).crops_per_second == pytest.approx(8 / 3.0)


def test_time_that_goes_by_while_it_trains_is_no_longer_left() -> None:
    story = begun(200)
    assert now(story, 1).seconds_left == pytest.approx(799.0)
    assert now(story, 1).ends_at == now(story).ends_at


def test_scores_that_a_restart_took_back_do_not_count() -> None:
    story = begun(200)
    story.validate(10.0, 0.75, CITIES)
    story.save()
    story.train(200)
    story.validate(10.0, 0.99, CITIES)
    best = now(story).best
    assert best is not None
    assert best.score == 0.99
    story.leave("crashed", "", "again")
    story.launch(attempt=1)
    story.start(30.0)
    found = now(story)
    assert found.best is not None
    assert found.validation == found.best
    assert (found.best.score, found.best.cities) == (0.75, {"ARG": 0.7, "JAX": 0.8})


def test_the_average_of_the_weights_counts_where_it_is_better() -> None:
    story = begun(200)
    story.validate(10.0, 0.5, CITIES)
    story.events[-1] |= {"ema_score": 0.6, "ema_cities": {"ARG": {"score": 0.6}}}
    found = now(story).best
    assert found is not None
    assert (found.score, found.average, found.cities) == (0.6, True, {"ARG": 0.6})


def test_what_an_earlier_start_still_writes_is_left_out() -> None:
    story = begun(200)
    old = dict(story.events[-1])
    story.save()
    story.launch(restart=1)
    story.start(30.0)
    late = {**old, "time": story.now, "step": 900}
    assert take([*story.events, late], recipe(), story.now).step == 201


def test_the_last_end_is_told_with_its_reason_and_how_long_it_was_away() -> None:
    story = begun(200)
    story.save()
    story.interrupt(seconds=3.0)
    story.leave("interrupted", "time limit", "requeue")
    left = story.now
    waiting = now(story, 60).last_end
    assert waiting is not None
    assert (waiting.reason, waiting.at, waiting.away, waiting.at_step) == ("time limit", left, None, 200)
    story.spend(900.0, "queue")
    story.launch(restart=1)
    found = now(story).last_end
    assert found is not None
    assert found.away == pytest.approx(900.0)
    story.start(30.0)
    story.leave("done", deed="done")
    assert now(story).last_end == found


def test_a_start_that_left_no_end_was_killed_unless_the_trainer_said_why() -> None:
    for signal, reason in (("", "killed"), ("INT", "INT")):
        story = Story()
        story.start(30.0)
        story.train(10)
        story.save()
        if signal:
            story.interrupt(signal)
        story.spend(100.0, "down")
        story.start(30.0)
        assert now(story).reasons == {reason: 1}


def test_a_view_that_goes_on_agrees_with_the_account() -> None:
    story = begun(200, data=0.25)
    tracker = Tracker("first", recipe())
    for event in story.events:
        tracker.add(event)
    tracker.snapshot(story.now)  # makes the books at this moment
    before = len(story.events)
    story.train(300, data=0.25)
    story.validate(30.0)
    story.train(10)
    for event in story.events[before:]:
        tracker.add(event)
    carried, exact = tracker.snapshot(story.now), tracker.snapshot(story.now, exact=True)
    assert carried.goodput == pytest.approx(exact.goodput, abs=0.002)
    assert carried.ends_at == pytest.approx(exact.ends_at, rel=1e-9)


def followed(story: Story, later: float = 0.0, exact: bool = True, **known: bool) -> Tracker:
    """A tracker that knows more than the events say, and has been asked."""
    tracker = Tracker("first", recipe())
    for event in story.events:
        tracker.add(event)
    for name, value in known.items():
        setattr(tracker.turns, name, value)
    tracker.snapshot(story.now + later, exact=exact)
    return tracker


@pytest.mark.parametrize("exact", [True, False])
def test_the_time_of_a_run_that_was_killed_does_not_go_on_as_training(exact: bool) -> None:
    story = begun(200)
    alive = now(story)
    tracker = followed(story, 0.0, exact, dead=True)
    for later in (1.0, 60.0, 500.0, 5000.0):
        dead = tracker.snapshot(story.now + later, exact=exact)
        assert dead.state == states.INTERRUPTED
        assert (dead.goodput, dead.seconds) == (alive.goodput, alive.seconds)
        assert dead.interruptions == 1
        assert dead.last_end is not None
        assert (dead.last_end.reason, dead.last_end.away, dead.last_end.at) == ("killed", None, story.now)


def test_a_run_whose_node_died_and_that_waits_is_in_the_queue() -> None:
    story = begun(200)
    found = followed(story, requeued=True).snapshot(story.now + 100.0, exact=True)
    assert (found.state, found.seconds["queue"]) == (states.WAITS, 700.0)
    assert "it was killed without a warning" in found.told
    assert found.seconds["training"] == now(story).seconds["training"]


def test_who_would_start_a_run_again_is_gone_with_it() -> None:
    story = begun(200)
    story.leave("crashed", "", "again", "rank 1 was killed")
    assert now(story).state == states.STARTS
    assert followed(story, dead=True).snapshot(story.now).state == states.INTERRUPTED


def test_the_time_of_a_finished_run_ends_with_it_whatever_was_submitted_and_never_launched() -> None:
    story = Story()
    story.submit()
    story.submit("19", "predict")
    story.launch()
    story.start(30.0)
    story.train(99)
    story.finish()
    story.leave("done", deed="done")
    story.turn_to("fine", 100)
    story.launch("18")
    story.start(30.0)
    story.train(99)
    story.finish()
    story.leave("done", deed="done")
    assert [now(story, later).seconds["queue"] for later in (0.0, 10.0, 9000.0)] == [0.0] * 3
    assert now(story, 9000.0).told.startswith("is finished: it ended at ")
    assert (now(story, 9000.0).ended, now(story, 9000.0).wall) == (story.now, pytest.approx(266.0))


def test_a_stage_that_hangs_is_silent_and_nearly_done_no_longer_than_it_was() -> None:
    story = begun(850)
    before = now(story)
    assert before.seconds_left == pytest.approx(150.0)
    for later in (31.0, 100.0, 500.0):
        found = now(story, later)
        assert found.state == states.SILENT
        assert found.told.startswith(f"has given no sign of life for {span(later)}")
        assert found.seconds_left == pytest.approx(150.0)
        assert found.seconds == before.seconds
    assert now(story, 29.0).state == states.TRAINS
    assert now(begun(300), 29.0).seconds_left == pytest.approx(690.0)  # ten steps, and no more, may have been done


def test_steps_that_were_skipped_are_done_and_the_epoch_is_that_of_the_newest_step() -> None:
    story = begun(600)
    for event in story.events:
        if event["kind"] == "step":
            event["epoch"] = event["step"] * 8 // 4000
    assert (now(story).step, now(story).epoch) == (600, 1)
    for _ in range(450):
        story._done["train"] += 1
        story.event("skip", step=story.step, losses=["nan"])
    assert (now(story).step, now(story).epoch) == (1050, 2)


def test_the_end_of_a_run_that_waits_is_so_long_after_it_starts() -> None:
    story = begun(200)
    story.interrupt()
    story.leave("interrupted", "preempted", "requeue")
    early, late = now(story, 1.0), now(story, 900.0)
    assert (early.ends_at, late.ends_at) == (None, None)
    assert early.to_end is not None
    assert str(ends_in_words(early)).startswith("all stages are done ")
    assert str(ends_in_words(early)).endswith(" after it starts")
    known = str(ends_in_words(replace(early, starts_at=early.now + 3600.0)))
    assert f"which is expected about {moment(early.now + 3600.0, early.now)}" in known
    assert moment(early.now + 3600.0 + early.to_end, early.now) in known


def test_why_a_run_of_one_machine_ended_has_one_wording() -> None:
    for signal, cancelled, key in (("INT", False, "INT"), ("TERM", False, "TERM"), ("TERM", True, "cancelled")):
        story = Story()
        story.launch("pid 5")
        story.start(30.0)
        story.train(10)
        if cancelled:
            story.cancel("pid 6")
        story.interrupt(signal)
        story.leave("interrupted", "", "leave")
        found = now(story).last_end
        assert found is not None
        assert found.reason == key
    assert "Ctrl-C" in in_words("INT")


def test_a_refusal_and_a_run_that_is_given_up_are_told_as_such() -> None:
    for end, deed, verb in (("refused", "give up", "refused"), ("crashed", "give up", "given up"),
                            ("crashed", "again", "interrupted")):  # fmt: skip
        story = begun(100)
        story.leave(end, "", deed, "no")
        found = now(story)
        assert found.last_end is not None
        assert (found.last_end.verb, found.refused) == (verb, end == "refused")


def test_the_best_of_earlier_starts_is_known_without_their_events() -> None:
    story = begun(200)
    tracker = Tracker("first", recipe(), accounts=False)
    tracker.best("train", Validated(90, 0, 0.7, {}, False, story.now, None))
    for event in story.events:
        tracker.add(event)
    best = tracker.snapshot(story.now).best
    assert best is not None
    assert (best.score, tracker.snapshot(story.now).validation) == (0.7, None)


@pytest.mark.parametrize("parts", [[7.4, 2.4, 0.6], [0.6, 0.6], [0.5, 0.5, 0.5], [1200.0, 35.0, 3.0], [9e5, 5e4, 7e3]])
def test_parts_of_a_time_add_up_to_what_is_shown_of_it(parts: list[float]) -> None:
    whole, told = spans(parts)
    number, unit = whole.split()
    assert whole == span(float(sum(parts))) or float(number) == round(sum(parts))
    assert {text.split()[1] for text in told if text} == {unit}
    assert sum(float(text.split()[0]) for text in told if text) == pytest.approx(float(number))


ODD: list[dict[str, Any]] = [
    {"kind": "start", "stage": "train", "step": None, "steps": "x", "epochs": [], "tiles": "many", "device": 5},
    {"kind": "step", "stage": "train", "step": "x", "loss": "nan", "lr": {}, "seconds": "x", "waited": None},
    {"kind": "step", "stage": "train", "step": 5, "seconds": -1.0, "generation": "x"},
    {"kind": "validation", "stage": "train", "step": 5, "score": "x", "cities": [1]},
    {"kind": "validation", "stage": "train", "step": 5, "score": 0.5, "cities": {"A": 5, "B": {"score": "x"}}},
    {"kind": "checkpoint", "stage": "train", "step": 5, "stall": "x"},
    {"kind": "finish", "stage": "other"},
    {"kind": "leave", "stage": "train"},
    {"kind": "launch", "stage": "train", "id": None, "host": 5},
    {"kind": "cancel", "stage": "", "ids": None},
    {"kind": "submit", "stage": "train"},
    {"kind": "interruption", "stage": "train", "signal": 5},
    {"kind": "add", "stage": "train"},
    {"kind": "rollback", "stage": "train", "to": "x"},
    {"kind": "what", "stage": "what"},
]


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_odd_events_end_nothing(odd: dict[str, Any]) -> None:
    story = begun(50)
    odd = {"time": story.now, **odd}
    for events in ([odd], [odd, *story.events], [*story.events, odd], [*story.events, odd, story.events[-1]]):
        for config in (recipe(), None):
            assert take(events, config, story.now + 5).now == story.now + 5


def test_time_in_which_it_was_suspended_is_no_rate() -> None:
    told = Story()
    told.submit()
    told.launch()
    told.start(30.0)
    told.train(205)
    told.spend(18_000.0, "down")
    told._busy += 18_000_000
    following, before = Tracker("first", None), len(told.events)
    for event in told.events:
        following.add(event)
    following.snapshot(told.now)
    told.train(94)
    for event in told.events[before:]:
        following.add(event)
    for found in (take(told.events, None, told.now), following.snapshot(told.now)):
        assert found.seconds_left == pytest.approx(700.0)
        assert found.goodput == pytest.approx((298 + 590) / (18_000 + 328), abs=0.001)
