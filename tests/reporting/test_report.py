"""What a report says of a stage is what its events say, also of an older version and of damaged files."""

from pathlib import Path

import pytest

from agl_core.reporting.events import EventLog, read_events, seconds_spent
from agl_core.reporting.report import Stage, duration, read_stage


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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (78, "1 min 18 s"),
        (3540, "59 min 0 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (86399, "1 d 0 h"),
        (90061, "1 d 1 h"),
        (529000, "6 d 3 h"),
    ],
)
def test_times_are_told_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_share_of_waiting_for_data_counts_by_steps() -> None:
    def step(number: int, share: float | None, stage: str = "a") -> dict[str, object]:
        known = {} if share is None else {"data_wait": share}
        return {"time": 0, "kind": "step", "stage": stage, "step": number, "epoch": 1, **known}

    events = [start("a", 0, 10), step(1, 1.0), step(11, 0.2), start("a", 11, 50), step(12, 0.0), step(22, 0.5)]
    stage = read_stage([*events, start("b", 0, 90), step(5, None, "b")], "a", finished=True)
    assert stage.data_wait == pytest.approx((1 + 10 * 0.2 + 0 + 10 * 0.5) / 22)
    assert read_stage(events, "b", finished=False).data_wait is None


def test_curves_restarts_and_machines_are_those_of_the_events() -> None:
    def step(number: int, **values: object) -> dict[str, object]:
        return {"time": 0, "kind": "step", "stage": "a", "step": number, "epoch": 1, **values}

    events = [
        {**start("a", 0, 10), "device_name": "V100", "host": "n1"},
        step(1, loss=2.0, lr=0.1, agl_loss=1.5),
        {**start("a", 1, 20), "device_name": "V100", "host": "n1"},
        step(2, loss=1.0, lr=0.1),
        {**start("a", 2, 30), "device_name": "H100", "host": "n2"},
    ]
    stage = read_stage(events, "a", finished=False)
    assert stage.curves == {"loss": [(1, 2), (2, 1)], "agl_loss": [(1, 1.5)], "lr": [(1, 0.1), (2, 0.1)]}
    assert stage.restarts == [1, 2]
    assert [machine["device_name"] for machine in stage.machines] == ["V100", "H100"]
    assert stage.at(10) == 2  # epochs


@pytest.mark.parametrize("wrong", [None, "x", [], {}, True, float("nan"), float("inf"), "<script>"])
def test_values_of_another_kind_are_left_out(wrong: object) -> None:
    names = (
        "step",
        "steps",
        "epoch",
        "epochs",
        "loss",
        "score",
        "cities",
        "ema_score",
        "data_wait",
        "world_size",
        "text",
    )
    events = [
        {"time": 0, "kind": kind, "stage": "a"} for kind in ("start", "step", "validation", "warning", "rollback")
    ]
    events = [event | dict.fromkeys(names, wrong) for event in events]
    stage = read_stage([start("a", 0, 1), *events], "a", finished=False)
    assert (stage.curve, stage.step, stage.steps) == ([], 0, None)
    assert not stage.curves
