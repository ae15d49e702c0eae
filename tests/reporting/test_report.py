"""The report says what the events say, and nothing that is in it can break its tables."""

from dataclasses import replace
from pathlib import Path

import pytest

from agl_core.reporting.events import EventLog, read_events, seconds_spent
from agl_core.reporting.report import (
    MOST_ROWS,
    Report,
    Stage,
    Start,
    Validation,
    duration,
    escape,
    read_stage,
    render,
    table,
    thinned,
)


def start(stage: str, step: int, at: float, generation: int = 0) -> dict[str, object]:
    return {
        "time": at, "kind": "start", "stage": stage, "generation": generation, "step": step, "steps": 20, "epochs": 4,
        "world_size": 2, "device": "cuda", "precision": "float16",
    }  # fmt: skip


def validation(stage: str, step: int, score: float, **cities: float) -> dict[str, object]:
    parts = {city: {"score": value, "agl_r2": value} for city, value in cities.items()}
    return {"time": 0, "kind": "validation", "stage": stage, "step": step, "epoch": step // 5, "score": score,
            "cities": parts}  # fmt: skip


EVENTS = [
    start("a", 0, 10),
    validation("a", 5, 0.2, X=0.1, Y=0.3),
    validation("a", 10, 0.5, X=0.4, Y=0.6),
    {"time": 30, "kind": "interruption", "stage": "a", "step": 12, "signal": "TERM", "saved": 12},
    start("a", 12, 100),
    validation("a", 15, 0.5, X=0.5, Y=0.5),
    {"time": 110, "kind": "step", "stage": "a", "step": 20, "epoch": 4},
    start("b", 0, 120),
]


def test_a_stage_is_what_its_events_say() -> None:
    stage = read_stage(EVENTS, "a", finished=True, seconds=30.0)
    assert (stage.step, stage.steps, stage.epoch, stage.epochs, stage.starts) == (20, 20, 4, 4, 2)
    assert stage.where == "2 x cuda, float16"
    assert [point.step for point in stage.curve] == [5, 10, 15]
    assert stage.curve[1].cities == {"X": 0.4, "Y": 0.6}
    assert stage.best is stage.curve[1]  # the first of the two highest
    assert read_stage(EVENTS, "c", finished=False) == Stage("c", False)


def test_the_average_has_a_column_and_may_be_the_best() -> None:
    events = [start("a", 0, 10)]
    events += [validation("a", 5, 0.5, X=0.5), validation("a", 10, 0.3, X=0.3), validation("a", 15, 0.4, X=0.4)]
    plain = render(Report("r", "run", {}, [read_stage(events, "a", True)], [], None))
    assert "| step | epoch | score | X |" in plain
    assert "0.5000 at step 5 |" in plain
    events[2] |= {"ema_score": 0.6}
    events[3] |= {"ema_score": 0.35}
    averaged = render(Report("r", "run", {}, [read_stage(events, "a", True)], [], None))
    assert "0.6000 at step 10, of the average |" in averaged
    for line in (
        "| step | epoch | score | average | X |",
        "| 5 | 1 | 0.5000 |  | 0.5000 |",
        "| 10 | 2 | 0.3000 | 0.6000 (best) | 0.3000 |",
        "| 15 | 3 | 0.4000 | 0.3500 | 0.4000 |",
    ):
        assert line in averaged.splitlines()


def test_the_time_of_a_stage_is_that_of_all_its_starts_with_what_was_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, clock = tmp_path / "events.jsonl", iter([0.0, 5.0, 9.0, 100.0, 103.0, 200.0, 201.0])
    monkeypatch.setattr("time.time", lambda: next(clock))
    for stage, generation, steps in (("a", 0, [0, 4, 8]), ("a", 1, [4, 6]), ("b", 2, [0, 1])):
        log = EventLog(path, stage, generation)
        for number, step in enumerate(steps):
            log.write("step" if number else "start", step=step)
        log.close()
    assert [event["step"] for event in read_events(path) if event["stage"] == "a"] == [0, 4, 4, 6]
    assert seconds_spent(path) == {"a": 12.0, "b": 1.0}
    assert seconds_spent(tmp_path / "none.jsonl") == {}


def report(**changes: object) -> Report:
    stage = read_stage(EVENTS, "a", finished=True, seconds=12000.0)
    starts = [Start(0.0, "a", "17", 12, "interrupted, preempted", "TERM; step 12 is saved")]
    score = {
        "score": 0.75,
        "cities": {"X": {"images": 3, "agl_r2": 0.5, "vflow_r2": None, "score": 0.5}},
        "best_constant": {"score": 0.01, "cities": {"X": {"score": 0.02}}},
    }
    facts = {"configuration": "abc", "encoder": "resnet18"}
    return replace(Report("first", "run", facts, [stage, Stage("b", False)], starts, score), **changes)


def lines_with(text: str, word: str) -> list[str]:
    return [line for line in text.splitlines() if word in line]


def test_the_page_tells_settings_stages_validation_starts_and_score() -> None:
    page = render(report())
    assert page.startswith("# Run first\n")
    assert "| configuration | abc |" in page
    assert "| a | finished | 20 of 20 | 4 of 4 | 0.5000 at step 10 | 2 | 3 h 20 min |  | 2 x cuda, float16 |" in page
    assert "| b | not begun | 0 |  | none | 0 | 0 s |  |" in page
    assert "| step | epoch | score | X | Y |" in page
    assert "| 10 | 2 | 0.5000 (best) | 0.4000 | 0.6000 |" in page
    assert "| 1970-01-01 00:00:00 | a | 17 | 12 | interrupted, preempted | TERM; step 12 is saved |" in page
    assert "| X | 3 | 0.5000 | no truth | 0.5000 | 0.0200 |" in page
    assert "| all | 3 |  |  | 0.7500 | 0.0100 |" in page
    assert render(report()) == page


def test_what_is_not_there_is_left_out() -> None:
    page = render(report(stages=[], starts=[], score=None))
    assert "##" not in page


@pytest.mark.parametrize("evil", ["a|b", "a\nb", "a\\|b", "`x` | `y", "<script>", "# x", "[x](y)", "*x*"])
def test_nothing_shown_can_leave_its_cell(evil: str) -> None:
    page = render(
        report(
            facts={"name": evil},
            stages=[Stage(evil, False, curve=[Validation(1, 1, 0.5, {evil: 0.5})])],
            starts=[Start(0.0, evil, evil, None, evil, evil)],
            score={"score": 1.0, "cities": {evil: {"images": 1}}},
        )
    )
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len(rows) == 3 + 3 + 3 + 3 + 4
    widths = [len(row.replace("\\\\", "").replace("\\|", "").split("|")) - 2 for row in rows]
    assert widths == [2] * 3 + [6] * 4 + [9] * 3 + [4] * 3 + [6] * 3
    assert "<script" not in page


def test_text_is_shown_as_it_is() -> None:
    assert escape("plain text, 3 x 4 (50 %) a_b") == "plain text, 3 x 4 (50 %) a_b"
    assert escape("a|b\nc\\d <e> & `f`") == "a\\|b c\\\\d &lt;e&gt; &amp; \\`f\\`"
    assert table(["x"], [["a|b"]]) == "| x |\n| --- |\n| a\\|b |"


def test_a_long_curve_is_thinned_out_and_keeps_its_best_and_its_last() -> None:
    curve = [Validation(step, step, 1 - abs(step - 77) / 1000, {"X": 0.5}) for step in range(1, 526)]
    stage = Stage("a", True, curve=curve)
    shown = thinned(curve, stage.best)
    assert len(shown) <= MOST_ROWS + 2
    assert {77, 525} <= {point.step for point in shown}
    assert thinned(curve[:MOST_ROWS], None) == curve[:MOST_ROWS]
    assert f"{len(shown)} of 525 validations are shown." in render(report(stages=[stage]))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (61, "1 min"), (3540, "59 min"), (3600, "1 h 0 min"), (90061, "1 d 1 h")],
)
def test_times_are_told_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_share_of_waiting_for_data_counts_by_steps_and_shows_in_the_table() -> None:
    def step(number: int, share: float | None, stage: str = "a") -> dict[str, object]:
        known = {} if share is None else {"data_wait": share}
        return {"time": 0, "kind": "step", "stage": stage, "step": number, "epoch": 1, **known}

    events = [start("a", 0, 10), step(1, 1.0), step(11, 0.2), start("a", 11, 50), step(12, 0.0), step(22, 0.5)]
    stage = read_stage([*events, start("b", 0, 90), step(5, None, "b")], "a", finished=True)
    assert stage.data_wait == pytest.approx((1 + 10 * 0.2 + 0 + 10 * 0.5) / 22)
    page = render(Report("r", "run", {}, [stage, read_stage(events, "b", finished=False)], [], None))
    head, row, other = (line.split(" | ") for line in page.splitlines() if line.startswith(("| stage", "| a ", "| b ")))
    assert (row[head.index("waiting for data")], other[head.index("waiting for data")]) == ("36%", "")
