"""The run directory: created whole, continued when it is the same run, refused when it is another."""

from dataclasses import replace
from pathlib import Path

import pytest

from agl_core.config import StageConfig, TrainConfig
from agl_core.errors import UserError
from agl_core.files import write_json
from jobs.runs import Run, check_same_run, create, differences, run_of


def config(tmp_path: Path, **values: object) -> TrainConfig:
    stages = {"a": StageConfig(), "b": StageConfig(start="a/last")}
    return replace(TrainConfig(run="first", runs=str(tmp_path / "runs"), recipe="demo", stages=stages), **values)


def begin(run: Run) -> None:
    run.events.write_text("{}\n")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_run_holds_its_whole_configuration(tmp_path: Path) -> None:
    asked = config(tmp_path, seed=5)
    run = run_of(asked)
    notes = create(run, asked)
    assert notes == [f"run first begins in {run.path}"]
    assert run.config() == asked
    assert sorted(tree(run.path)) == ["config.yaml"]


def test_the_same_configuration_opens_the_run_again_and_changes_nothing(tmp_path: Path) -> None:
    asked = config(tmp_path)
    run = run_of(asked)
    create(run, asked)
    begin(run)
    before = tree(run.path)
    assert create(run, asked) == [f"run first continues in {run.path}"]
    assert tree(run.path) == before


def test_where_and_how_fast_a_run_runs_may_change(tmp_path: Path) -> None:
    run = run_of(config(tmp_path))
    create(run, config(tmp_path, data="/old", store="/old/store"))
    begin(run)
    moved = config(tmp_path, data="/new", store="/old/store", cluster="slurm", workers=9, threads=2)
    assert create(run, moved) == [f"run first continues in {run.path}", "data was /old and is now /new"]
    assert run.config() == moved


def test_another_configuration_is_refused_with_the_first_keys_that_differ(tmp_path: Path) -> None:
    run = run_of(config(tmp_path))
    create(run, config(tmp_path))
    begin(run)
    before = tree(run.path)
    other = config(tmp_path, seed=1, encoder="resnet18", fold=3)
    other.stages["a"].optimizer.lr = 0.5
    with pytest.raises(UserError) as refusal:
        create(run, other)
    message = str(refusal.value)
    assert "'first' is in use with another configuration" in message
    assert "encoder is efficientnet-b7 there and resnet18 here" in message
    assert "seed is 314159 there and 1 here" in message
    assert "fold is 0 there and 3 here" in message
    assert "(and 1 more)" in message
    assert "--run" in message
    assert tree(run.path) == before


def test_a_run_in_which_nothing_was_trained_takes_another_configuration(tmp_path: Path) -> None:
    run = run_of(config(tmp_path))
    create(run, config(tmp_path))
    run.jobs.mkdir()
    mended = config(tmp_path, seed=1, folds=3)
    assert create(run, mended) == [f"run first begins in {run.path}"]
    assert run.config() == mended


@pytest.mark.parametrize("trace", ["events.jsonl", "checkpoints", "stages"])
def test_whatever_training_leaves_commits_the_run_to_its_configuration(tmp_path: Path, trace: str) -> None:
    run = run_of(config(tmp_path))
    create(run, config(tmp_path))
    (run.path / trace).mkdir()
    with pytest.raises(UserError, match="in use with another configuration"):
        create(run, config(tmp_path, seed=1))


def test_a_difference_deep_in_a_stage_is_named(tmp_path: Path) -> None:
    other = config(tmp_path)
    other.stages["a"].augment.rot90 = 0.5
    other.model.use_city = False
    assert differences(config(tmp_path), other) == [
        ("model.use_city", True, False),
        ("stages.a.augment.rot90", 0.0, 0.5),
    ]


def test_another_stage_or_another_order_is_another_run(tmp_path: Path) -> None:
    one, two = StageConfig(), StageConfig()
    ab = config(tmp_path, stages={"a": one, "b": two})
    assert differences(ab, config(tmp_path, stages={"a": one}))[0][0] == "stages.b.length"
    assert differences(config(tmp_path, stages={"a": one}), ab)[0] == ("stages.b.length", None, "1 epoch")
    assert differences(ab, config(tmp_path, stages={"b": two, "a": one})) == [
        ("the order of stages", ["a", "b"], ["b", "a"])
    ]


def test_how_often_to_save_is_not_part_of_the_identity(tmp_path: Path) -> None:
    other = config(tmp_path)
    other.checkpoint.every = "7 steps"
    assert differences(config(tmp_path), other) == []


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    asked = config(tmp_path)
    run = run_of(asked)
    run.path.mkdir(parents=True)
    (run.path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is no run"):
        create(run, asked)
    assert tree(run.path) == {"thesis.txt": b"mine"}


def test_a_run_whose_configuration_cannot_be_read_is_refused(tmp_path: Path) -> None:
    asked = config(tmp_path)
    run = run_of(asked)
    create(run, asked)
    begin(run)
    run.config_file.write_text("future_key: 1\n")
    with pytest.raises(UserError, match=r"config.yaml: unknown key 'future_key'"):
        create(run, asked)


def test_runs_that_cannot_be_written_to_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file is in the way")
    asked = config(tmp_path)
    with pytest.raises(UserError, match="--runs"):
        create(run_of(asked), asked)
    assert (tmp_path / "runs").read_text() == "a file is in the way"


def test_a_configuration_that_cannot_be_written_leaves_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("jobs.runs.write_text", full)
    asked = config(tmp_path)
    with pytest.raises(OSError, match="No space"):
        create(run_of(asked), asked)
    assert not run_of(asked).path.exists()


@pytest.mark.parametrize("name", ["a/b", "..", ".", ".hidden", "-x", "a b", "é", "a\n", "../up"])
def test_a_name_that_cannot_be_a_folder_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="run name"):
        run_of(TrainConfig(run=name))


DEFAULT_NAMES = [
    ({}, "kbrodt-efficientnet-b7-fold0"),
    (
        {"recipe": "/some/where/my recipe.yaml", "encoder": "tu-hf-hub:timm/x", "fold": 3},
        "my-recipe-tu-hf-hub-timm-x-fold3",
    ),
    ({"recipe": "demo", "encoder": "resnet18", "fold": -1}, "demo-resnet18-fold-1"),
]


@pytest.mark.parametrize(("values", "name"), DEFAULT_NAMES)
def test_a_run_without_a_name_is_called_after_what_it_trains(values: dict[str, object], name: str) -> None:
    assert run_of(TrainConfig(**values)).name == name


def test_a_stage_is_finished_when_its_record_says_so(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert not run.finished("a")
    run.stage_record("a").parent.mkdir()
    write_json(run.stage_record("a"), {"finished": True, "steps": 5, "score": 0.5})
    write_json(run.stage_record("b"), {"finished": False})
    assert run.finished("a")
    assert not run.finished("b")


def test_everything_of_a_run_lies_below_its_folder(tmp_path: Path) -> None:
    run = Run(tmp_path / "first")
    places = [
        run.events,
        run.jobs,
        run.submitted,
        run.lock,
        run.tensorboard,
        run.checkpoints("a"),
        run.weights("a", "best"),
        run.stage_record("a"),
    ]
    assert [str(place.relative_to(run.path)) for place in places] == [
        "events.jsonl", "jobs", "jobs/submitted.json", "lock", "tensorboard",
        "checkpoints/a", "weights/a/best.safetensors", "stages/a.json",
    ]  # fmt: skip


def test_what_a_start_that_was_killed_has_left_does_not_occupy_the_name(tmp_path: Path) -> None:
    config = TrainConfig(run="first", runs=str(tmp_path))
    run = run_of(config)
    run.path.mkdir()
    for name in (".config.1f2e3d4c.part.yaml", ".1f2e3d4c.probe", "lock"):
        (run.path / name).touch()
    check_same_run(run, config)
    (run.path / "thesis.tex").touch()
    with pytest.raises(UserError, match="exists but is no run"):
        check_same_run(run, config)
