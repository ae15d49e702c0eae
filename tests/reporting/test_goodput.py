"""Where the time of a run has gone: simulated histories with known answers, and what no history may break."""

import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agl_core.reporting.events import JOB_KINDS, read_all
from agl_core.reporting.goodput.account import ITEMS, Account, account
from jobs.history import incarnations, read_history
from jobs.runs import Run
from tests.reporting.histories import BEGIN, Story, long_run, long_story


def check(found: Account | None) -> Account:
    """What every account must be: a line without gaps, whose items add up to it to the last millisecond."""
    assert found is not None
    assert tuple(found.seconds) == ITEMS
    assert all(seconds >= 0 for seconds in found.seconds.values())
    assert round(1000 * sum(found.seconds.values())) == round(1000 * found.wall)
    assert all(before.end == after.begin and before.begin < before.end for before, after in pairwise(found.spans))
    if found.spans:
        assert (found.spans[0].begin, found.spans[-1].end) == (found.begin, found.end)
    for item in ITEMS:
        spans = [round(1000 * span.end) - round(1000 * span.begin) for span in found.spans if span.item == item]
        assert sum(spans) == round(1000 * found.seconds[item])
    assert 0 <= found.goodput <= 1
    json.dumps(found.as_json(), allow_nan=False)
    return found


def spent(found: Account | None) -> dict[str, float]:
    """The items that have any time."""
    return {item: seconds for item, seconds in check(found).seconds.items() if seconds}


def agrees(story: Story, now: float | None = None) -> Account:
    """The account of a story at its end, which says what the story does."""
    found = check(account(story.events, story.now if now is None else now))
    assert spent(found) == pytest.approx(story.seconds, abs=1e-6)
    assert found.steps_lost == sum(life.lost for life in found.lives) == story.lost
    return found


def begun(seconds: float = 30.0, queue: float = 60.0, total: int = 1000) -> Story:
    """A job that was submitted, has waited and has done its first step."""
    story = Story(total=total)
    story.submit()
    story.spend(queue, "queue")
    story.launch()
    story.start(seconds)
    return story


# --- every item, and every kind of end


def test_a_run_without_events_has_no_account() -> None:
    assert account([]) is None
    assert account([{"time": BEGIN, "kind": "nothing"}]) is None
    assert account([{"time": True, "kind": "start", "stage": "a"}]) is None


def test_an_undisturbed_stage_is_itemised() -> None:
    story = begun(total=101)
    story.train(50, data=0.25)
    story.validate(12.0)
    story.save(0.5)
    story.train(50, data=0.125)
    story.validate(12.0)
    story.finish(7.0)
    story.leave("done", deed="done")
    found = agrees(story)
    assert spent(found) == {
        "queue": 60.0, "start-up": 30.0, "training": 81.25, "data wait": 18.75, "validation": 24.0, "checkpoint": 0.5,
        "ending": 7.0,
    }  # fmt: skip
    assert (found.steps, found.steps_lost, found.interruptions) == (101, 0, 0)
    assert found.goodput == pytest.approx(81.25 / 221.5)
    (life,) = found.lives
    assert (life.queued, life.launched, life.started) == (BEGIN, BEGIN + 60, BEGIN + 90)
    assert (life.from_step, life.reached, life.kept, life.lost) == (0, 101, 101, 0)
    assert (life.ended, life.end, life.deed, life.host) == (story.now, "done", "done", "node1")
    assert [span.item for span in found.spans] == [
        "queue", "start-up", "training", "data wait", "validation", "training", "data wait", "checkpoint", "validation",
        "ending",
    ]  # fmt: skip


@pytest.mark.parametrize("why", ["preempted", "time limit", "warned"])
def test_who_is_warned_loses_nothing_and_waits_in_the_queue(why: str) -> None:
    story = begun()
    story.train(47, data=0.5)  # the last steps have no event of their own
    story.interrupt("TERM", 3.0)
    story.spend(0.5, "ending")
    story.leave("interrupted", why, "requeue")
    story.spend(130.0, "queue")
    story.launch(restart=1)
    story.start(25.0)
    story.train(20)
    found = agrees(story)
    assert (found.steps_lost, found.interruptions) == (0, 1)
    assert found.lives[1].queued == found.lives[0].ended
    queues = [(span.job, span.life) for span in found.spans if span.item == "queue"]
    assert queues == [("train", 1), ("train", 2)]


def test_a_rank_that_was_killed_costs_its_steps_and_the_time_until_somebody_notices() -> None:
    story = begun()
    story.train(20)
    story.save(0.25)
    story.train(33)
    story.spend(45.0, "down")
    story.leave("crashed", "warned", "again")
    story.launch(attempt=1)
    story.start(20.0)
    story.train(40)
    found = agrees(story)
    assert spent(found)["lost"] == 33.0
    assert spent(found)["down"] == 45.0
    assert [(life.attempt, life.kept, life.lost, life.queued) for life in found.lives] == [
        (0, 21, 33, BEGIN), (1, 60, 0, None)
    ]  # fmt: skip


def test_survivors_that_have_saved_lose_nothing() -> None:
    story = begun()
    story.train(29)  # step 30, of which there is an event
    story.spend(12.0, "down")
    story.leave("crashed", "warned", "again")
    story._saved["train"] = story.step
    story.launch(attempt=1)
    story.start()
    story.train(10)
    assert agrees(story).steps_lost == 0


def test_the_last_steps_of_who_left_are_known_though_they_have_no_event() -> None:
    story = begun()
    story.train(33)
    story.leave("crashed", "warned", "give up")
    (life,) = agrees(story).lives
    assert (life.reached, life.kept) == (34, 34)


def test_what_survivors_have_saved_was_reached_whatever_else_is_known() -> None:
    story = begun()
    story.train(33)
    story._saved["train"] = story.step
    story.spend(10.0, "down")
    story.leave("crashed", "warned", "again")
    story.launch(attempt=1)
    story.start()
    story.train(6)
    for event in story.events:
        if event["kind"] in ("launch", "leave"):
            event.pop("step"), event.pop("reached", None)
    assert [(life.reached, life.lost) for life in agrees(story).lives] == [(34, 0), (40, 0)]


def test_everything_is_killed_and_nobody_has_written_that_down() -> None:
    story = begun()
    story.train(40)
    story.save()
    story.train(26)
    story.spend(900.0, "down")
    story.submit("18")
    story.spend(30.0, "queue")
    story.launch("18", 0)
    story.start()
    story.train(40)
    found = agrees(story)
    assert found.lives[0].end == ""
    assert (found.lives[0].lost, found.interruptions) == (26, 1)
    down = [span.life for span in found.spans if span.item == "down"]
    assert down == [1]


def test_validation_and_waiting_among_lost_steps_are_lost_with_them() -> None:
    story = begun()
    story.train(19, data=0.25)
    story.save()
    story.train(20, data=0.5)
    story.validate(30.0)
    story.train(10, data=0.5)
    story.leave("crashed", "warned", "again")
    story.launch(attempt=1)
    story.start()
    story.train(20)
    found = agrees(story)
    assert spent(found)["lost"] == 60.0
    assert "validation" not in spent(found)
    assert spent(found)["data wait"] == 4.75


def test_the_validation_before_a_save_of_the_same_step_counts() -> None:
    story = begun()
    story.train(19)
    story.validate(15.0)
    story.save(0.5)
    story.train(13)
    story.leave("crashed", "warned", "again")
    story.launch(attempt=1)
    story.start()
    story.train(20)
    assert spent(agrees(story))["validation"] == 15.0


def test_a_node_is_lost_and_its_processes_go_on_for_a_while() -> None:
    """Two lives at once: what the new one starts from counts, whoever did it when."""
    story = begun()
    story.train(29)
    story.save(0.5)
    old = list(story.events)
    story.events.clear()
    lost_at = story.now
    story.spend(100.0, "down")
    story.launch(restart=1, host="node2")
    story.start(40.0)
    story.train(30)
    # The old one does 20 steps more, beside the launch and the start-up of the new one, and writes while that trains.
    late = [
        {"time": lost_at + 10.0 * n, "kind": "step", "stage": "train", "generation": 1, "step": 30 + 10 * n,
         "seconds": 10.0, "waited": 0.0} for n in (1, 2, 11, 15)
    ]  # fmt: skip
    new, found = story.events, None
    for order in ([*old, *late, *new], [*old, *new, *late]):
        found = check(account(order))
        assert found.seconds["training"] == 29.0 + 29.0
        assert found.seconds["lost"] == 100.0  # until the new one is launched
        assert found.seconds["start-up"] == 30.0 + 40.0
        assert [(life.reached, life.kept, life.lost) for life in found.lives] == [(180, 30, 150), (60, 60, 0)]
        assert (found.steps, found.steps_lost, found.interruptions) == (60, 150, 1)


def test_an_old_life_that_leaves_late_says_nothing_about_the_new_one() -> None:
    story = begun()
    story.train(29)
    story.save()
    old = {"id": "17", "restart": 0, "attempt": 0, "end": "interrupted", "why": "cancelled", "deed": "leave"}
    story.launch(restart=1, host="node2")
    story.start()
    story.events.append({"time": story.now, "kind": "leave", "stage": "train", **old})
    story.train(29)
    story.spend(4000.0, "down")
    found = check(account(story.events, story.now))
    assert (found.seconds["down"], found.seconds["stopped"]) == (4000.0, 0.0)


def test_what_an_old_life_has_saved_while_the_new_one_was_launched_counts() -> None:
    story = begun()
    story.train(29)
    story.events.append(
        {"time": story.now + 5, "kind": "launch", "stage": "train", "id": "17", "restart": 1, "attempt": 0, "host": ""}
    )
    story.train(20)
    story.validate(7.0)
    story.save(0.0)
    story.generation += 1
    story.spend(9.0, "start-up")
    head = {"time": story.now, "stage": "train", "generation": 2}
    story.events.append({**head, "kind": "start", "step": story.step, "launched": story.now - 31.0})
    story.events.append({**head, "kind": "step", "step": story.step + 1, "seconds": 1.0, "waited": 0.0})
    found = check(account(story.events))
    assert (found.seconds["training"], found.seconds["validation"]) == (49.0, 7.0)
    assert found.seconds["start-up"] == 39.0
    assert found.steps_lost == 0


def test_a_cancelled_run_that_is_resumed_a_day_later_was_stopped() -> None:
    story = begun()
    story.train(30)
    story.cancel("17")
    story.interrupt("TERM", 2.0)
    story.leave("interrupted", "cancelled", "leave")
    story.spend(86_400.0, "stopped")
    story.submit("20")
    story.spend(60.0, "queue")
    story.launch("20", 0)
    story.start()
    story.train(10)
    found = agrees(story)
    assert found.goodput == pytest.approx(40 / (found.wall - 86_400))
    assert [life.queued for life in found.lives] == [BEGIN, BEGIN + 122 + 86_400]
    assert [(span.job, span.life) for span in found.spans if span.item == "stopped"] == [("train", 1)]


def test_a_run_that_is_cancelled_in_the_queue_is_stopped() -> None:
    story = Story()
    story.submit()
    story.spend(50.0, "queue")
    story.cancel("17")
    story.spend(1000.0, "stopped")
    story.submit("18")
    story.spend(5.0, "queue")
    story.launch("18")
    story.start()
    assert agrees(story).goodput == 0.0


@pytest.mark.parametrize(("end", "deed"), [("refused", "give up"), ("crashed", "give up"), ("interrupted", "leave")])
def test_a_run_that_waits_for_its_owner_is_stopped(end: str, deed: str) -> None:
    story = begun()
    story.train(20)
    story.save()
    story.leave(end, "", deed)
    story.spend(500.0, "stopped")
    story.launch("19", 0)
    story.start()
    found = agrees(story)
    assert found.interruptions == (0 if end == "refused" else 1)


def test_a_job_that_comes_after_another_waits_only_from_its_end_on() -> None:
    story = Story("crops", 100)
    story.submit("1", "crops")
    story.submit("2", "full")
    story.spend(10.0, "queue")
    story.launch("1")
    story.start()
    story.train(99)
    story.finish()
    story.leave("done", deed="done")
    story.turn_to("full", 50)
    story.spend(77.0, "queue")
    story.launch("2", 0)
    story.start()
    story.train(49)
    story.finish()
    story.leave("done", deed="done")
    found = agrees(story)
    assert found.steps == 150
    assert [(life.job, life.queued) for life in found.lives] == [("crops", BEGIN), ("full", BEGIN + 143)]
    assert agrees(story, now=story.now + 1e6).end == story.now  # it is finished


def test_other_jobs_have_an_item_of_their_own() -> None:
    story = Story("prepare")
    for number, job in enumerate(("prepare", "train", "predict", "evaluate", "report")):
        story.submit(str(number), job)
    story.spend(10.0, "queue")
    story.launch("0")
    story.spend(600.0, "other jobs")
    story.leave("done", deed="done")
    story.turn_to("train", 30)
    story.launch("1")
    story.start()
    story.train(29)
    story.finish()
    story.leave("done", deed="done")
    for number, job in ((2, "predict"), (3, "evaluate"), (4, "report")):
        story.turn_to(job)
        story.spend(5.0, "queue")
        story.launch(str(number))
        story.spend(20.0, "other jobs")
        story.leave("done", deed="done")
    found = agrees(story)
    assert spent(found)["other jobs"] == 660.0
    assert [life.reached for life in found.lives] == [None, 30, None, None, None]


def test_steps_that_were_rolled_back_are_lost() -> None:
    story = begun()
    story.train(19)
    story.save()
    story.train(17)
    story.roll_back(20, 2.0)
    story.save()
    story.train(13)
    found = agrees(story)
    assert (found.steps, found.steps_lost) == (33, 17)
    assert spent(found)["lost"] == 19.0


def test_a_rollback_to_before_the_start_takes_back_what_an_earlier_life_did() -> None:
    story = begun()
    story.train(19)
    story.save()
    story.train(20)
    story.interrupt()
    story.leave("interrupted", "preempted", "requeue")
    story.launch(restart=1)
    story.start()
    story.train(9)
    story.roll_back(20, 2.0)
    story.train(10)
    found = agrees(story)
    assert [(life.kept, life.lost) for life in found.lives] == [(20, 20), (60, 10)]


def test_a_rollback_that_was_taken_back_itself_takes_nothing_back() -> None:
    story = begun()
    story.train(19)
    story.save()
    story.train(20)
    before = list(story.pieces)
    story.roll_back(10, 2.0)
    after = len(story.pieces)
    story.train(5)
    story.leave("crashed", "warned", "again")
    story.launch(attempt=1)
    story._saved["train"] = 20
    story.start()
    found = check(account(story.events))
    assert after == len(before) + 1
    assert found.seconds["training"] == 19.0
    assert found.seconds["lost"] == 20.0 + 2.0 + 5.0


def test_a_start_from_an_earlier_checkpoint_takes_back_several_lives() -> None:
    """The newest checkpoints turn out to be damaged."""
    story = begun()
    story.train(19)
    story.save()
    for _ in range(2):
        story.train(20)
        story.interrupt()
        story.leave("interrupted", "preempted", "requeue")
        story.launch(restart=story.restart + 1)
        story.start()
    story._saved["train"] = 10
    story.train(5)
    story.leave("crashed", "warned", "again")
    story.launch(attempt=1)
    story.start()
    story.train(100)
    found = agrees(story)
    assert [(life.from_step, life.kept, life.lost) for life in found.lives] == [
        (0, 10, 30), (40, 40, 21), (61, 61, 6), (10, 110, 0)
    ]  # fmt: skip


def test_killed_before_the_first_step_is_start_up() -> None:
    story = Story()
    story.submit()
    story.launch()
    story.spend(25.0, "start-up")
    story.leave("interrupted", "preempted", "requeue")
    story.spend(60.0, "queue")
    story.launch(restart=1)
    story.start()
    story.train(10)
    found = agrees(story)
    assert (found.lives[0].started, found.lives[0].from_step, found.interruptions) == (None, None, 1)


def test_a_start_that_finds_all_steps_done_only_ends() -> None:
    story = begun(total=11)
    story.train(10)
    story.leave("crashed", "warned", "again")
    story._saved["train"] = 11
    story.launch(attempt=1)
    story.generation += 1
    story.spend(20.0, "start-up")
    story.event("start", step=11, steps=11)
    story.validate(9.0)
    story.finish(3.0)
    story.leave("done", deed="done")
    found = agrees(story)
    assert (found.steps, found.interruptions) == (11, 1)


def test_what_goes_on_between_a_validation_and_the_next_step_is_part_of_it() -> None:
    """The best weights are written, and pictures."""
    story = begun()
    story.train(19)
    story.validate(10.0)
    story.spend(4.0, "validation")
    story.save(0.5)
    story.train(20, data=0.25)
    agrees(story)


# --- what goes on still


def test_what_runs_is_followed_to_the_present() -> None:
    story = begun()
    story.train(29)
    found = agrees(story)
    assert check(account(story.events, story.now + 20)).seconds["training"] == found.seconds["training"] + 20
    assert check(account(story.events, story.now - 20)).wall == found.wall
    assert found.lives[0].ended is None


def test_what_waits_is_followed_to_the_present() -> None:
    story = Story()
    story.submit()
    assert spent(account(story.events, story.now + 100)) == {"queue": 100.0}
    story.spend(30.0, "queue")
    story.launch()
    assert spent(account(story.events, story.now + 15)) == {"queue": 30.0, "start-up": 15.0}
    story.start()
    story.train(20)
    story.interrupt()
    story.leave("interrupted", "preempted", "requeue")
    assert check(account(story.events, story.now + 50)).seconds["queue"] == 80.0


def test_who_is_silent_for_long_is_taken_for_dead() -> None:
    story = begun()
    story.train(99)
    found = check(account(story.events, story.now + 7200))
    assert (found.seconds["down"], found.seconds["training"]) == (7200.0, 99.0)
    assert (found.lives[0].ended, found.interruptions) == (None, 0)


def test_what_its_owner_has_stopped_stays_stopped() -> None:
    story = begun()
    story.train(10)
    story.leave("interrupted", "", "leave")
    assert check(account(story.events, story.now + 70)).seconds["stopped"] == 70.0


# --- runs of before, damage, clocks


def old(story: Story) -> list[dict[str, Any]]:
    """The events as they were before there were launches."""
    new = {"step": ("seconds", "waited"), "checkpoint": ("at",), "start": ("launched", "job"),
           "interruption": ("at", "waited")}  # fmt: skip
    kept = [event for event in story.events if event["kind"] not in JOB_KINDS]
    return [{key: event[key] for key in event if key not in new.get(event["kind"], ())} for event in kept]


def test_an_old_run_is_accounted_for_as_far_as_it_tells() -> None:
    story = begun()
    story.train(49, data=0.25)
    story.validate(12.0)
    story.save(0.5, write=0.0)
    story.train(30, data=0.5)
    story.spend(300.0, "down")
    story.launch(attempt=1)
    story.start(40.0)
    story.train(50)
    story.finish()
    known, found = story.seconds, check(account(old(story)))
    assert found.wall == sum(known.values()) - known["queue"]
    assert spent(found) == pytest.approx({item: known[item] for item in known if item != "queue"}, abs=0.51)
    assert (found.steps, found.steps_lost, found.interruptions) == (101, 30, 1)
    assert [life.launched - found.begin for life in found.lives] == [0.0, pytest.approx(30 + 91.5 + 300)]


def test_an_old_run_that_was_asked_to_leave_says_no_more() -> None:
    story = begun()
    story.train(30)
    story.interrupt("TERM", 5.0)
    story.spend(1000.0, "down")
    story.launch("9", 0)
    story.start()
    story.train(8)
    known, found = story.seconds, check(account(old(story)))
    assert spent(found) == pytest.approx({item: known[item] for item in known if item != "queue"})
    assert check(account([*old(story)[:-1]], story.now + 99)).seconds["down"] >= 1000.0


def test_torn_lines_cost_only_themselves(tmp_path: Path) -> None:
    story = begun()
    story.train(100)
    story.interrupt()
    story.leave("interrupted", "preempted", "requeue")
    lines = [json.dumps(event) for event in story.events]
    whole = check(account(story.events))
    for number in range(len(lines)):
        path = tmp_path / "events.jsonl"
        path.write_text("\n".join([*lines[:number], lines[number][:40], *lines[number + 1 :]]) + "\n")
        events = read_all(path)
        assert len(events) == len(lines) - 1
        assert check(account(events)).wall == pytest.approx(whole.wall, abs=60)


def test_a_clock_that_is_set_back_makes_no_time_negative() -> None:
    story = begun()
    story.train(50)
    changed = [event | {"time": event["time"] - 20.0} if number > 5 else event
               for number, event in enumerate(story.events)]  # fmt: skip
    found = check(account(changed))
    assert found.seconds["training"] == pytest.approx(30.0, abs=10.0)
    assert found.steps == 50
    story.events[-1]["time"] -= 3600.0
    assert check(account(story.events, story.now + 60)).seconds["down"] == 0.0  # it is not silent


def test_an_event_that_comes_late_is_of_its_time() -> None:
    """A full disk keeps it back, and it is written with the next one."""
    story = begun()
    story.train(30)
    story.interrupt()
    story.leave("interrupted", "preempted", "requeue")
    left = story.events.pop()
    story.spend(50.0, "queue")
    story.launch(restart=1)
    story.events.append(left)
    story.start()
    story.train(20)
    agrees(story)


def two_nodes(behind: float) -> tuple[Story, list[dict[str, Any]]]:
    """A run that goes on on another node, whose clock is behind by so many seconds; and its events."""
    story = begun()
    story.train(50)
    story.save()
    story.train(20)
    story.interrupt()
    story.leave("interrupted", "preempted", "requeue")
    story.spend(300.0, "queue")
    first = len(story.events)
    story.launch(restart=1, host="node2")
    story.start()
    story.train(40)
    story.validate(9.0)
    story.save()
    story.train(20)
    story.interrupt()
    story.leave("interrupted", "preempted", "requeue")
    late = [
        event | {name: event[name] - behind for name in ("time", "at", "launched") if name in event}
        for event in story.events[first:]
    ]
    return story, [*story.events[:first], *late]


@pytest.mark.parametrize("behind", [3600.0, 301.0, 86_400.0])
def test_a_node_whose_clock_is_behind_costs_only_the_wait_before_it(behind: float) -> None:
    story, events = two_nodes(behind)
    found = check(account(events))
    assert spent(found) == pytest.approx({**story.seconds, "queue": 60.0})
    assert found.wall == pytest.approx(sum(story.seconds.values()) - 300.0)
    assert [life.launched for life in found.lives] == sorted(life.launched for life in found.lives)


def test_a_clock_that_is_behind_by_less_than_the_wait_is_seen_as_a_shorter_wait() -> None:
    story, events = two_nodes(200.0)
    assert spent(account(events)) == pytest.approx({**story.seconds, "queue": 160.0})


def test_a_clock_that_was_ahead_shifts_what_comes_after_it_on_a_right_one_and_no_more() -> None:
    story, events = two_nodes(-3600.0)
    first = story.now
    story.spend(100.0, "queue")
    count = len(story.events)
    story.launch(restart=2, host="node1")
    story.start()
    story.train(17)
    found = check(account([*events, *story.events[count:]]))
    assert spent(found) == pytest.approx({**story.seconds, "queue": 60.0 + 3900.0})
    assert found.lives[2].launched == first + 3600.0


def test_a_login_node_whose_clock_is_ahead_is_believed_as_to_what_came_first() -> None:
    story = Story()
    story.submit()
    story.launch()
    story.start()
    story.train(29)
    submitted = story.events[0] | {"time": story.events[0]["time"] + 500.0}
    assert spent(account([submitted, *story.events[1:]])) == pytest.approx(story.seconds)


# --- suspended


def suspended_story(seconds: float, data: float = 0.0) -> Story:
    """A step takes so many seconds in which the processes were stopped; `data`: they waited for data."""
    story = begun()
    story.train(55, data=0.25)
    story.spend(seconds, "down")
    story.spend(data, "data wait")
    story._busy += round(1000 * (seconds + data))
    story._waited += round(1000 * data)
    story.train(24, data=0.25)
    return story


def test_who_was_suspended_in_a_step_was_down() -> None:
    story = suspended_story(18_000.0)
    found = check(account(story.events))
    assert found.seconds["down"] == pytest.approx(18_000.0 - 600.0 + 10 * 0.75, abs=0.1)
    assert found.seconds["training"] + found.seconds["down"] == pytest.approx(18_000.0 + 79 * 0.75, abs=0.1)
    assert found.seconds["data wait"] == pytest.approx(79 * 0.25, abs=0.1)
    assert (found.steps, found.interruptions) == (80, 0)


def test_a_slow_step_and_one_that_waits_for_data_are_no_suspension() -> None:
    assert check(account(suspended_story(500.0).events)).seconds["down"] == 0.0
    assert check(account(suspended_story(0.0, 9000.0).events)).seconds["down"] == 0.0
    story = begun()
    for _ in range(5):
        story.train(10, each=900.0)
    agrees(story)


# --- whatever comes

numbers = st.one_of(
    st.integers(-5, 60), st.floats(allow_nan=True, allow_infinity=True), st.booleans(), st.none(), st.text(max_size=2),
    st.sampled_from([10**30, -1, 1e18, BEGIN]),
)  # fmt: skip
moments = st.one_of(st.floats(0, 100), st.floats(BEGIN, BEGIN + 1e5), numbers)
kinds = st.sampled_from([
    *JOB_KINDS, "start", "startup", "step", "validation", "checkpoint", "skip", "rollback", "interruption", "refusal",
    "finish", "warning", "stage-in", "unheard-of",
])  # fmt: skip
strange_events = st.fixed_dictionaries(
    {"time": moments, "kind": kinds, "stage": st.sampled_from(["a", "b", "predict", ""])},
    optional={
        "generation": numbers, "step": numbers, "steps": numbers, "seconds": numbers, "waited": numbers, "at": moments,
        "stall": numbers, "to": numbers, "total": numbers, "launched": moments, "data_wait": numbers,
        "id": st.sampled_from(["1", "2", 3, None]), "ids": st.sampled_from(["1", "1,2", 7]), "restart": numbers,
        "attempt": numbers, "reached": numbers, "signal": st.sampled_from(["TERM", "INT", 5]), "host": numbers,
        "end": st.sampled_from(["done", "crashed", "interrupted", "refused", "taken over", 1]),
        "why": st.sampled_from(["", "requeued", "unknown"]),
        "deed": st.sampled_from(["requeue", "again", "leave", "give up", "done"]),
    },
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(strange_events, max_size=25), st.one_of(st.none(), moments))
def test_whatever_is_in_the_file_adds_up_to_the_wall_time(events: list[dict[str, Any]], now: Any) -> None:
    found = account(events, now)
    if found is not None:
        check(found)


def a_life(story: Story, draw: Callable[[int], int]) -> None:
    """Something that a run can do, and an end of it."""
    story.start(5.0 + draw(20), each=0.5)
    for _ in range(draw(6)):
        story.train(1 + draw(25), each=0.5, data=0.0)
        if draw(2):
            story.validate(1.0 + draw(9))
        if draw(2):
            story.save(0.125 * draw(5))
    how = draw(4)
    if how in (0, 3):  # a signal is heard at the end of a step, before anything else is done
        story.train(1, each=0.5)
    if how == 0:
        story.interrupt("TERM", 1.0 + draw(5))
        story.leave("interrupted", "preempted", "requeue")
        story.spend(1.0 + draw(100), "queue")
        story.launch(restart=story.restart + 1)
    elif how == 1:
        story.spend(1.0 + draw(20), "down")
        story.leave("crashed", "warned", "again")
        story.launch(attempt=story.attempt + 1)
    elif how == 2:
        story.spend(1.0 + draw(300), "down")
        story.launch(restart=story.restart + 1)
    else:
        story.interrupt("TERM", 1.0 + draw(5))
        story.cancel(story.id)
        story.leave("interrupted", "cancelled", "leave")
        story.spend(1.0 + draw(5000), "stopped")
        story.submit(str(int(story.id) + 1))
        story.spend(1.0 + draw(50), "queue")
        story.launch(str(int(story.id) + 1), 0)


@pytest.mark.parametrize("seed", range(40))
def test_runs_drawn_at_random_are_accounted_for_exactly(seed: int) -> None:
    generator = random.Random(seed)
    story = Story(total=100_000)
    story.submit()
    story.spend(10.0, "queue")
    story.launch()
    for _ in range(1 + generator.randrange(12)):
        a_life(story, lambda below: generator.randrange(below))
    story.start(9.0)
    story.train(40)
    agrees(story)


def test_a_run_of_weeks_is_accounted_for_exactly(tmp_path: Path) -> None:
    story = long_story(300, 20)
    found = agrees(story)
    run = Run(long_run(tmp_path / "long", 300, 20))
    assert check(account(read_all(run.events))) == found
    assert list(run.config().stages) == ["crops", "full"]
    starts = incarnations(read_history(run.history))
    assert [one.begin["job"] for one in starts] == [life.job for life in found.lives]
    assert (found.steps, len(found.lives), found.interruptions) == (12_000, 21, 18)
