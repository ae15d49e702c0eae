import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from agl_core.config import CheckpointConfig, PlanConfig, StageConfig, TrainConfig
from agl_core.errors import UserError
from agl_core.files import write_json, write_text
from agl_core.reporting.goodput.account import account
from jobs.cluster import load_cluster
from jobs.planning.plan import plan, scenarios
from jobs.planning.references import duration
from jobs.planning.show import moment
from jobs.settings import to_yaml
from tests.reporting.histories import BEGIN, Story

NOON = 1_772_366_400.0
"""A Sunday in March 2026."""
STAGES = {
    "first": StageConfig(length="100 steps", batch=16, micro_batch=4, crop=256, validate_every="50 steps"),
    "second": StageConfig(
        length="60 steps", start="first/best", batch=16, micro_batch=4, crop=512, validate_every="50 steps"
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def folder_of(tmp_path: Path, story: Story, finished: tuple[str, ...] = ()) -> Path:
    """A run of two stages with the events of a story."""
    folder = tmp_path / "runs" / "mine"
    (folder / "stages").mkdir(parents=True)
    config = TrainConfig(
        run="mine", runs=str(folder.parent), stages=STAGES, recipe="kbrodt",
        checkpoint=CheckpointConfig(every="20 steps", interval="never"),
    )  # fmt: skip
    write_text(folder / "config.yaml", to_yaml(config))
    write_text(folder / "cluster.yaml", to_yaml(load_cluster("slurm")))
    story.write(folder / "events.jsonl")
    for name in finished:
        write_json(folder / "stages" / f"{name}.json", {"finished": True, "steps": 1, "score": 0.5})
    return folder


def begun() -> Story:
    """The first stage: 20 s in the queue, a start of 30 s, 49 more steps of 2 s of which 0.5 s are data, a validation,
    saves, a preemption with 5 s of leaving; 300 s in the queue, 25 more steps."""
    story = Story("first", 100, every=5)
    story.submit()
    story.spend(20, "queue")
    story.launch()
    story.start(30, each=2)
    story.train(19, each=2, data=0.5)
    story.save(stall=0.5, write=3)
    story.train(30, each=2, data=0.5)
    story.validate(8)
    story.interrupt(seconds=5)
    story.leave("interrupted", "preempted", "requeue")
    story.spend(300, "queue")
    story.launch(restart=1)
    story.start(30, each=2)
    story.train(25, each=2, data=0.5)
    return story


def shown(
    capsys: pytest.CaptureFixture[str], now: float = NOON, keys: dict[str, str] | None = None, **values: Any
) -> str:
    plan(PlanConfig(**values), keys or {}, now)
    return capsys.readouterr().out


def told(
    capsys: pytest.CaptureFixture[str], now: float = NOON, keys: dict[str, str] | None = None, **values: Any
) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shown(capsys, now, keys, json=True, **values))
    return found


QUIET: dict[str, Any] = {"preemptions_per_day": 0.0, "crashes_per_day": 0.0, "queue_minutes": 0.0, "draws": 10}
DEMO: dict[str, Any] = {"recipe": "demo", "tiles": 96, "step_seconds": 2.0, **QUIET}


def test_an_undisturbed_run_ends_when_arithmetic_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, startup_seconds=60.0, save_seconds=1.0, validation_seconds=30.0, **DEMO)["scenarios"][0]
    # 58 s before the first step, 1300 steps, 2 validations, 12 scheduled saves (every 100 steps are 200 s, and 10
    # minutes are never over before), the last save of 10 s and 5 s to leave.
    assert found["end_seconds"] == dict.fromkeys(("median", "p10", "p90"), 58 + 2600 + 60 + 12 + 15)
    assert found["end_time"] == NOON + 2745
    assert sum(found["seconds"].values()) == pytest.approx(2745)
    assert found["steps_lost"]["median"] == 0
    assert found["text"] == "ends in 45 min 45 s, today at 12:45"


def test_the_text_says_first_when_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, recipe="kbrodt", tiles=5700, step_seconds=1.0, draws=20).splitlines()
    assert lines[0] == "recipe kbrodt, encoder efficientnet-b7 on slurm, 4 processes"
    assert lines[1].startswith("ends in 3 d 19 h, on Thursday at 0")
    assert " (3 d " in lines[1]
    text = "\n".join(lines)
    for words in (
        "default; --preemptions-per-day",
        "--step-seconds, for 4 processes",
        "5700 tiles (--tiles)",
        "Young/Daly says",
    ):
        assert words in text


def test_what_nobody_has_measured_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    values: dict[str, Any] = {"recipe": "kbrodt", "tiles": 5700, "step_seconds": 1.0, "draws": 10}
    assert "not measured" not in shown(capsys, **values)
    text = shown(capsys, cluster="slurm,slurm-h100", gpus="4,8", **values)
    assert text.count("a step is taken to share its crops among the processes without loss") == 1
    assert text.count("the GPUs of all clusters are taken to be as fast as the one that was measured") == 1
    assert text.count("8 processes need stages.pretrain.micro_batch=4") == 1


def test_the_items_add_up_to_what_stands_below_them(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, recipe="kbrodt", tiles=5700, step_seconds=1.0, draws=20).splitlines()
    first = next(number for number, line in enumerate(lines) if "mean of 20 runs" in line)
    shares = [float(line.split()[-1].rstrip("%")) for line in lines[first + 2 :] if line.endswith("% ")]
    assert shares[-1] == 100
    assert sum(shares[:-1]) == pytest.approx(100, abs=0.5)


def test_the_same_command_gives_the_same_numbers_and_another_seed_others(capsys: pytest.CaptureFixture[str]) -> None:
    values: dict[str, Any] = {"recipe": "kbrodt", "tiles": 570, "step_seconds": 10.0, "draws": 10}
    one, two = told(capsys, **values), told(capsys, **values)
    assert one == two
    assert told(capsys, seed=1, **values)["scenarios"][0]["end_seconds"] != one["scenarios"][0]["end_seconds"]


def test_gpus_share_the_micro_batches_of_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    values: dict[str, Any] = {"recipe": "kbrodt", "tiles": 5700, "step_seconds": 1.0, **QUIET}
    rows = told(capsys, gpus="1,2,3,4,8", **values)["scenarios"]
    steps = [row["numbers"]["seconds a step, pretrain"]["value"] for row in rows]
    assert steps == [4, 2, 2, 1, 0.5]  # of 4 micro-batches, 3 GPUs have 2, 1 and 1; 8 need smaller ones
    assert [bool(row["notes"]) for row in rows] == [False, False, False, False, True]
    assert rows[4]["notes"] == ["8 processes need stages.pretrain.micro_batch=4 stages.finetune.micro_batch=4"]
    with pytest.raises(UserError, match="a step of stage pretrain has 32 crops for 64 GPUs: give --gpus 32 or fewer"):
        plan(PlanConfig(gpus="64", **values), {})
    with pytest.raises(UserError, match="--gpus is '2,x': give numbers of GPUs with commas"):
        plan(PlanConfig(gpus="2,x", **values), {})


def test_clusters_are_compared_in_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, cluster="slurm,slurm-2x4,slurm-h100", recipe="kbrodt", tiles=5700, step_seconds=1.0, **QUIET)
    table = [line.split() for line in text.splitlines() if line.strip().startswith("slurm")]
    assert [(row[0], row[1], row[2]) for row in table] == [
        ("slurm", "4", "1"), ("slurm-2x4", "8", "0.5"), ("slurm-h100", "2", "2"),
    ]  # fmt: skip


def test_a_run_tells_its_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(tmp_path, begun())
    now = json.loads((folder / "events.jsonl").read_text().splitlines()[-1])["time"]
    found = told(capsys, now, run="mine", runs=str(folder.parent), interruptions="run", draws=10)["scenarios"][0]
    values: dict[str, Any] = {name: number["value"] for name, number in found["numbers"].items()}
    assert values["seconds a step, first"] == 2
    assert values["seconds a step, second"] == 8  # four times the pixels
    assert values["seconds a validation, first"] == values["seconds a validation, second"] == 8
    assert values["seconds of stall, a save"] == 0.5
    assert values["seconds to write one"] == 3
    assert values["seconds of a start"] == 30
    assert values["seconds to leave"] == 2  # of 5, 3 are the save
    assert values["steps of first"] == 100 - 75
    assert values["minutes in the queue"] == pytest.approx((20 + 300) / 2 / 60)
    assert found["numbers"]["preemptions a day"]["source"].startswith("1 in 3 min 40 s of running (run mine)")
    assert found["cluster"] == "the cluster of mine"


def test_the_rest_of_a_run_goes_on_from_its_step_without_a_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path, begun())
    now = json.loads((folder / "events.jsonl").read_text().splitlines()[-1])["time"]
    found = told(capsys, now, run="mine", runs=str(folder.parent), **QUIET)["scenarios"][0]
    # First: 25 steps, a save after 80, the last validation, 3 + 2 to end. Second: a start of 22 before its steps (30
    # with the first), 60 steps of 8, validations after 50 and 60, saves after 20 and 40 (60 is the end), 3 + 2.
    assert found["end_seconds"]["median"] == pytest.approx((50 + 0.5 + 8 + 5) + (22 + 480 + 16 + 1 + 5))
    assert found["seconds"]["data wait"] == pytest.approx(0.25 * 50, abs=0.01)


def test_plan_and_account_agree_item_by_item_on_a_run_that_went_as_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    story = begun()
    story.save(stall=0.5, write=3)  # late, so that one story serves: after step 76
    story.train(24, each=2, data=0.5)
    story.validate(8)
    story.finish(5)
    story.leave("done", deed="done")
    folder = folder_of(tmp_path, story, finished=("first",))
    known = tmp_path / "known.json"
    # Warned in step 50, which is validated only then: after that the run waits for 300 s.
    launched = 20 + 30 + 49 * 2 + 0.5 + 8
    write_json(
        known, {"events": [{"at": launched - 8.5 - 1, "kind": "preempt", "back": 8.5 + 1 + 5 + 300}], "queue": [20]}
    )
    recipe = tmp_path / "one.yaml"
    stage = asdict(STAGES["first"])
    write_text(
        recipe, json.dumps({"stages": {"first": stage}, "checkpoint": {"every": "20 steps", "interval": "never"}})
    )
    values: dict[str, Any] = {
        "run": "mine",
        "runs": str(folder.parent),
        "recipe": str(recipe),
        "interruptions": str(known),
        "draws": 10,
    }
    found = told(capsys, cluster="slurm", **values)["scenarios"][0]
    measured = account(story.events)
    assert measured is not None
    # Two more scheduled saves than the story had, and the start that was warned in a step does not validate.
    assert found["end_seconds"]["median"] == pytest.approx(measured.wall + 1.0, abs=10)
    for item in ("start-up", "training", "data wait"):
        assert found["seconds"][item] == pytest.approx(measured.seconds[item], abs=0.01), item


def test_runs_tell_how_often_they_were_interrupted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(tmp_path, begun())
    found = told(
        capsys, interruptions="runs", runs=str(folder.parent), recipe="kbrodt", tiles=570, step_seconds=10.0, draws=10
    )
    numbers = found["scenarios"][0]["numbers"]
    assert numbers["preemptions a day"]["source"].startswith("1 in 3 min 40 s of running (1 runs in")
    assert numbers["preemptions a day"]["value"] == pytest.approx(12, rel=0.05)
    assert "drawn from these" in numbers["minutes in the queue"]["source"]


def test_fit_tells_the_time_of_a_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "fit.json"
    pace = {"micro_batch": 4, "crop": 256, "compute": 0.5, "commit": 0.1, "crops_per_second": 6.7}
    write_json(
        file, {"rows": [{"encoder": "efficientnet-b7", "largest": 32, "pace": pace}, {"encoder": "x", "pace": None}]}
    )
    values: dict[str, Any] = {"recipe": "kbrodt", "tiles": 5700, "fit": str(file), **QUIET}
    rows = told(capsys, gpus="4,1", **values)["scenarios"]
    # 8 crops of four times the pixels, in one round or four.
    assert [row["numbers"]["seconds a step, pretrain"]["value"] for row in rows] == pytest.approx([4.1, 16.1])
    with pytest.raises(UserError, match=r"holds no measured time of senet154, only of efficientnet-b7"):
        plan(PlanConfig(encoder="senet154", **values), {})
    write_json(file, {"rows": [{"encoder": "efficientnet-b7", "pace": {"crop": 3}}]})
    with pytest.raises(UserError, match="is not what `fit --json` writes"):
        plan(PlanConfig(**values), {})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"recipe": "kbrodt", "step_seconds": 1.0}, "how many tiles one has is unknown: give --tiles, --data or --run"),
        ({"recipe": "demo"}, r"the time of a step is unknown \(it depends on your GPU\): give --step-seconds, --fit"),
        ({"run": "nobody"}, "no run 'nobody', and none at all in runs"),
        ({"recipe": "demo", "step_seconds": 1.0, "interruptions": "run"}, "--interruptions run needs a run"),
        ({"recipe": "demo", "step_seconds": 1.0, "interruptions": "away.json"}, "away.json cannot be read"),
        (
            {"recipe": "demo", "step_seconds": 1.0, "interruptions": "runs", "runs": "empty"},
            "--interruptions runs: no run in empty has begun",
        ),
        ({"recipe": "demo", "fit": "away.json", "tiles": 3}, "--fit away.json does not exist: write it with"),
        ({"recipe": "nothing"}, "unknown recipe 'nothing'"),
        ({"cluster": "nothing", "recipe": "demo"}, "unknown cluster 'nothing'"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said_in_one_sentence(
    values: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said) as refused:
        plan(PlanConfig(**values), {})
    assert "\n" not in str(refused.value)


def test_a_run_refuses_what_it_cannot_tell(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, begun(), finished=("first", "second"))
    values: dict[str, Any] = {"run": "mine", "runs": str(folder.parent)}
    with pytest.raises(UserError, match="run mine has finished its stages: give --recipe"):
        plan(PlanConfig(**values), {})
    (folder / "stages" / "second.json").unlink()
    with pytest.raises(UserError, match="run mine trains efficientnet-b7, not x: leave out --encoder"):
        plan(PlanConfig(encoder="x", **values), {})
    with pytest.raises(UserError, match="run mine has measured efficientnet-b7, not tu-resnet10t: give --step-seconds"):
        plan(PlanConfig(recipe="demo", **values), {})
    (folder / "events.jsonl").unlink()
    with pytest.raises(UserError, match="run mine has not begun, so nothing is measured"):
        plan(PlanConfig(**values), {})


def test_an_impossible_run_never_ends_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    often = {**DEMO, "preemptions_per_day": 500.0, "startup_seconds": 3600.0}
    found = shown(capsys, **often).splitlines()[1]
    assert found == (
        "never ends: an interruption comes after 2 min 53 s in the mean, and a start takes 1 h: too often to come on; "
        "it gives up (restart.fruitless)"
    )
    assert told(capsys, **often)["scenarios"][0]["end_seconds"] is None
    short = shown(capsys, keys={"time_hours": "0.06"}, **DEMO).splitlines()[1]
    assert short.startswith("never ends: a job of 3 min 36 s (time_hours) is warned 3 min before its end")


def test_how_often_to_save_comes_with_the_option_to_write(capsys: pytest.CaptureFixture[str]) -> None:
    values: dict[str, Any] = {"recipe": "kbrodt", "tiles": 2000, "step_seconds": 8.0, "draws": 10, "queue_minutes": 1.0}
    found = told(capsys, **{**values, "crashes_per_day": 24.0, "save_seconds": 5.0})["checkpoint"]
    assert found["young_daly_seconds"] == pytest.approx((2 * 5 * 3600) ** 0.5)  # 190 s
    assert found["agree"]
    assert found["option"] in (
        'checkpoint.interval="2 minutes"',
        'checkpoint.interval="5 minutes"',
        'checkpoint.interval="190 seconds"',
    )
    assert not found["keep"]
    quiet = shown(capsys, **{**values, "crashes_per_day": 0.0, "preemptions_per_day": 0.0})
    assert "Young/Daly has nothing to say" in quiet
    assert told(capsys, **DEMO)["checkpoint"]["keep"]  # it saves by the number of steps, every 200 s


def test_a_data_set_tells_its_tiles(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "train").mkdir(parents=True)
    ids = [f"ARG_{number}" for number in range(40)]
    write_text(
        data / "geopose_train.csv", "\n".join(["id,agl,json,rgb", *(f"{one},{one}.a,{one}.j,{one}.r" for one in ids)])
    )
    write_text(data / "metadata.csv", "\n".join(["id,city,gsd", *(f"{one},ARG,0.5" for one in ids)]))
    for one in ids:
        for suffix in "ajr":
            (data / "train" / f"{one}.{suffix}").touch()
    config = PlanConfig(recipe="kbrodt", data=str(data), step_seconds=1.0)
    (place,) = scenarios(config, {}, NOON)
    assert {told.value for told in place.inputs.tiles.values()} == {39}  # 40 folds
    assert place.inputs.work(0, "pretrain", 4).steps == -(-525 * 39 // 32)


def test_a_machine_of_ones_own_has_no_queue(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, cluster="local", recipe="demo", tiles=96, step_seconds=1.0, draws=10)["scenarios"][0]
    assert found["interruptions"]["p90"] == 0
    assert found["seconds"]["queue"] == 0


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "0 s"), (0.25, "0.25 s"), (12.4, "12 s"), (59.7, "1 min"), (200, "3 min 20 s"), (3599.6, "1 h"),
        (19200, "5 h 20 min"), (86399, "1 d"), (6 * 86400 + 3 * 3600 + 60, "6 d 3 h"),
    ],
)  # fmt: skip
def test_durations_are_in_two_units(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_clock_times_are_as_near_as_they_are() -> None:
    assert moment(NOON + 7200, NOON) == "today at 14:00"
    assert moment(NOON + 86400, NOON) == "on Monday at 12:00"
    assert moment(NOON + 6 * 86400, NOON) == "on Saturday, 2026-03-07 at 12:00"


def test_a_run_that_has_told_no_times_of_steps_is_read_by_its_clock(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    story = begun()
    for event in story.events:
        event.pop("seconds", None) if event["kind"] == "step" else None
    folder = folder_of(tmp_path, story)
    found = told(capsys, BEGIN + 600, run="mine", runs=str(folder.parent), **QUIET)["scenarios"][0]
    assert found["numbers"]["seconds a step, first"]["value"] == pytest.approx(2, abs=0.1)
