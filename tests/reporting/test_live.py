"""What a view shows, word by word."""

import time
from collections.abc import Iterator

import pytest
from rich.console import Console

from agl_core.config import StageConfig, TrainConfig
from agl_core.reporting.live.rendering import line, plain, render, watch_line
from agl_core.reporting.live.snapshot import Snapshot, take
from agl_core.reporting.words import clean, moment, span
from tests.reporting.histories import Story

CITIES = {"ARG": {"score": 0.7}, "JAX": {"score": 0.8}}


@pytest.fixture(autouse=True)
def _one_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def recipe(run: str = "first") -> TrainConfig:
    first = StageConfig(length="1000 steps", crop=256, batch=8, validate_every="200 steps")
    second = StageConfig(length="500 steps", crop=512, batch=8, validate_every="200 steps", start="train/best")
    return TrainConfig(run=run, until="train", stages={"train": first, "fine": second})


def story() -> Story:
    """A run that was preempted once."""
    told = Story()
    told.submit()
    told.spend(600.0, "queue")
    told.launch()
    told.start(30.0)
    told.train(199, data=0.05)
    told.validate(20.0, 0.75, CITIES)
    told.train(200, data=0.05)
    told.validate(20.0, 0.6875, CITIES)
    told.save(stall=0.5)
    told.train(90, data=0.05)
    told.interrupt()
    told.leave("interrupted", "preempted", "requeue", "interrupted by TERM")
    return told


def again() -> Story:
    """It has gone on."""
    told = story()
    told.spend(1200.0, "queue")
    told.launch(restart=1, host="node2")
    told.start(35.0)
    told.train(31)
    return told


def shown(told: Story, width: int, later: float = 1.0, run: str = "first") -> str:
    return plain(take(told.events, recipe(run), told.now + later), width)


def test_a_run_that_trains() -> None:
    assert (
        shown(again(), 100)
        == """\
run       first trains
stage     1 of 2: train, on node2, job 17, 4 x cuda
done      epoch 52 of 100, step 520 of 1000
          ━━━━━━━━━━━━━━━━━━━━━─────────────────── 52.0%
loss      1.03 (agl 0.6203, direction 0.1371, scale 0.1625); learning rate 4.81e-05
speed     8 crops/s; of the time it waits 0.0% for data, 0.0% for checkpoints
score     0.6875 after epoch 40 (ARG 0.700, JAX 0.800)
best      0.7500 after epoch 20 (ARG 0.700, JAX 0.800)
restarts  1 (1 preempted); no step done again
last      15:26 UTC, after 9 min: preempted: another job needed its place; started again after 20
          min
goodput   20.3% of the time is training; interruptions have cost 21 min: 20 min in the queue, 1 min
          of starting again
left      about 9 min of this stage at the present rate, 29 min with interruptions as so far
end       all stages are done about 18:17 UTC, in 2.5 h, if interruptions go on as so far
"""
    )


def test_the_same_in_sixty_columns() -> None:
    text = shown(again(), 60)
    assert max(map(len, text.splitlines())) <= 60
    assert " ".join(text.split()).replace("━", "").replace("─", "") == " ".join(shown(again(), 100).split()).replace(
        "━", ""
    ).replace("─", "")


@pytest.mark.parametrize("height", [2, 4, 7, 10, 20])
def test_on_a_low_terminal_the_least_important_rows_are_left_out(height: int) -> None:
    found = take(again().events, recipe(), again().now + 1.0)
    console = Console(width=39, color_system=None)
    with console.capture() as capture:
        console.print(render(found, 39, {"ask": "somebody"}, height))
    shown = capture.get()
    assert shown.startswith("run  ")
    if height >= 7:
        assert len(shown.splitlines()) <= height
        assert {"end", "left"} <= {line.split()[0] for line in shown.splitlines() if line[0] != " "}


def test_an_end_that_was_a_kill_is_not_called_a_crash() -> None:
    told = story()
    told.launch(restart=1)
    told.start(30.0)
    told.leave("crashed", "", "again", "all ranks were killed (srun's exit code -9)")
    text = " ".join(shown(told, 200).split())
    assert "min: all ranks were killed (srun's exit code -9); not" in text or "s: all ranks were killed (srun's" in text
    assert "a process crashed" not in text


def test_a_run_that_waits_after_a_preemption() -> None:
    text = shown(story(), 100, 1200)
    assert text.startswith("""\
run      first waits in the queue since 15:26 UTC (20 min), to go on; it was preempted: another job
         needed its place
stage    1 of 2: train
done     epoch 49 of 100, step 490 of 1000
""")
    assert "speed" not in text
    assert "about 10 min of this stage at the last rate" in text


def test_a_run_that_starts_says_what_cannot_be_known() -> None:
    told = story()
    told.launch(restart=1)
    head = shown(told, 200, 40).splitlines()[0]
    assert (
        head
        == "run       first is starting since 15:26 UTC (40 s); how far its start has come cannot be known from outside"
    )


def test_a_run_that_is_finished_says_nothing_of_a_future() -> None:
    told = story()
    for stage, total in (("train", 1000), ("fine", 500)):
        told.turn_to(stage, total)
        told.launch()
        told.start(30.0)
        told.train(total - told.step)
        told.validate(20.0, 0.8, CITIES)
        told.finish()
        told.leave("done", deed="done")
    text = shown(told, 100, 50.0)
    assert text.splitlines()[0] == "run       first is finished: it ended at 15:44 UTC, after 38 min"
    assert "best score of train 0.8000" in text
    assert not any(row.startswith(("left", "end", "speed")) for row in text.splitlines())


EVIL = "\x1b[2J\x1b]0;mine\x07[bold red]rank\x00 1[/nothing]\nfell\u202e\x9b31m"


def test_nothing_of_others_is_an_order_or_markup() -> None:
    told = story()
    told.host = EVIL
    told.launch(host=EVIL)
    told.leave("crashed", "", "give up", EVIL)
    for text in (shown(told, 200, run=EVIL), watch_line(take(told.events, recipe(EVIL), told.now))):
        assert not set(text) & {"\x1b", "\x00", "\x07", "\x9b", "\u202e"}
        assert "[bold red]rank 1[/nothing] fell" in text


def test_the_line_of_a_log_has_what_matters() -> None:
    told = again()
    found = take(told.events, recipe(), told.now)
    assert line(found) == (
        "train 520/1000  epoch 52/100  loss 1.03 (agl 0.6203, direction 0.1371, scale 0.1625)  lr 4.81e-05  8 crops/s  "
        "data 0%  score 0.6875  best 0.7500  about 9 min left"
    )
    assert line(Snapshot("first", 0.0, job="train", step=3, steps=5)) == "train 3/5"


@pytest.mark.parametrize(
    ("later", "text"), [(60, "15:07 UTC"), (-86400, "Sat 14 Jun 15:06 UTC"), (5 * 86400, "Fri 20 Jun 15:06 UTC")]
)
def test_a_moment_has_its_date_where_it_is_not_today(later: float, text: str) -> None:
    assert moment(1_750_000_000.0 + later, 1_750_000_000.0) == text
    assert moment(1_750_000_000.0 + 300 * 86400, 1_750_000_000.0).startswith("2026-04-11")


def test_texts_become_one_plain_line() -> None:
    assert clean("a\tb\r\nc\x1b[31;1md\x1b(B") == "a b  cd"
    assert clean(5) == "5"
    assert span(3601.0) == "60 min"


@pytest.mark.parametrize(("place", "text"), [("CET-1", "16:07 CET"), ("<+0545>-5:45", "20:52 +0545")])
def test_a_moment_says_in_which_time_zone_it_is(monkeypatch: pytest.MonkeyPatch, place: str, text: str) -> None:
    monkeypatch.setenv("TZ", place)
    time.tzset()
    assert moment(1_750_000_060.0, 1_750_000_000.0) == text
    assert moment(1e300, 0.0) == "a time that no clock knows"
