"""Several runs in one command: which they are, what they are called, and how they are joined."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from agl_core.config import TrainConfig
from agl_core.errors import UserError
from agl_core.files import write_json
from jobs.cli import parse
from jobs.many import (
    Several,
    changed,
    create_ensemble,
    describe_ensemble,
    ensemble_of,
    read_ensemble,
    runs_of,
)
from jobs.runs import Run, run_of


def asked(text: str) -> TrainConfig | Several:
    found = parse(shlex.split(f"--recipe demo {text}")).config
    assert isinstance(found, TrainConfig | Several)
    return found


def test_a_command_without_a_list_is_one_run_as_ever() -> None:
    found = asked("--encoder resnet18 --fold 1 --run a")
    assert isinstance(found, TrainConfig)
    assert (found.encoder, found.fold, found.run) == ("resnet18", 1, "a")
    assert runs_of(found) == [found]
    assert ensemble_of(found) is None


SEVERAL = [
    ("--encoder resnet18,resnet34 --fold 1,2", [("resnet18", 1), ("resnet18", 2), ("resnet34", 1), ("resnet34", 2)]),
    ("encoder=resnet18,resnet34 fold=1", [("resnet18", 1), ("resnet34", 1)]),
    ("--fold=-1,0", [("tu-resnet10t", -1), ("tu-resnet10t", 0)]),
    ("--fold '3, 4'", [("tu-resnet10t", 3), ("tu-resnet10t", 4)]),
]


@pytest.mark.parametrize(("text", "expected"), SEVERAL)
def test_lists_of_encoders_and_folds_are_every_one_with_every_other(text: str, expected: list[tuple[str, int]]) -> None:
    configs = runs_of(asked(text))
    assert [(config.encoder, config.fold) for config in configs] == expected
    assert [config.run for config in configs] == [f"demo-{encoder}-fold{fold}" for encoder, fold in expected]


def test_everything_else_is_the_same_for_all_of_them() -> None:
    one, two = runs_of(asked("--fold 1,2 --seed 7 stages.train.crop=64"))
    assert replace(one, fold=2, run=two.run) == two
    assert (one.seed, one.stages["train"].crop) == (7, 64)


def test_a_name_for_several_runs_is_the_beginning_of_theirs_whatever_varies() -> None:
    assert [config.run for config in runs_of(asked("--fold 1,2 --run x"))] == [
        "x-tu-resnet10t-fold1",
        "x-tu-resnet10t-fold2",
    ]
    longer = runs_of(asked("--encoder tu-resnet10t,resnet18 --fold 1,2,3 --run x"))
    assert {"x-tu-resnet10t-fold1", "x-tu-resnet10t-fold2"} < {config.run for config in longer}


def test_the_runs_of_a_list_are_the_same_as_those_of_single_commands() -> None:
    for config in runs_of(asked("--encoder resnet18,resnet34 --fold 1,2")):
        assert run_of(config) == run_of(asked(f"--encoder {config.encoder} --fold {config.fold}"))  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "name"), [("--fold 1,2", "demo-ensemble"), ("--fold 1,2 --run x", "x-ensemble")])
def test_the_ensemble_is_called_after_the_runs(text: str, name: str) -> None:
    run = ensemble_of(asked(f"{text} --runs somewhere"))
    assert run == Run(Path("somewhere").absolute() / name)


REFUSED = [
    ("--fold 1,1", "fold is '1,1', which has 1 twice"),
    ("--encoder resnet18,,resnet34", "one comma between two of them"),
    ("--fold 1,", "one comma between two of them"),
    ("--fold 1,x", "fold is 'x': must be a whole number"),
    ("--fold 1,99", "fold is 99, but there are 10 folds"),
    ("--fold 1,2 --run a/b", "run name 'a/b'"),
    ("--encoder tu-a/b,tu-a:b", "would both be the run demo-tu-a-b-fold0"),
    ("--encoder resnet18,resnet34 --encoder-weights w.safetensors", "which can fit one encoder only"),
    ("--fold 1,2 --cluster local cluster.processes=9", "9 processes"),
]


@pytest.mark.parametrize(("text", "words"), REFUSED)
def test_lists_that_make_no_sense_are_refused_in_one_sentence(text: str, words: str) -> None:
    with pytest.raises(UserError) as refusal:
        asked(text)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_one_encoder_s_weights_are_for_all_its_folds() -> None:
    assert len(runs_of(asked("--fold 1,2 --encoder-weights w.safetensors"))) == 2


@pytest.fixture
def ensemble(tmp_path: Path) -> tuple[Run, list[TrainConfig], list[Run]]:
    """The new folder of an ensemble, and the members' configurations and runs."""
    runs = [Run(tmp_path / name) for name in ("q", "r", "s")]
    configs = [TrainConfig(run=run.name, data="/data", unit="m") for run in runs]
    folder = Run(tmp_path / "e")
    folder.path.mkdir()
    return folder, configs, runs


def test_the_file_of_an_ensemble_says_all_that_its_jobs_need(ensemble) -> None:
    folder, configs, runs = ensemble
    content = describe_ensemble(configs, runs)
    assert changed(folder, content)
    assert create_ensemble(folder, content) == [f"ensemble e of q, r, s in {folder.path}"]
    assert read_ensemble(folder) == content
    assert content.members == [str(run.path / "predictions") for run in runs]
    assert (content.data, content.unit, content.runs) == ("/data", "m", ["q", "r", "s"])
    assert folder.is_ensemble()
    assert not folder.exists()  # it is no run
    assert create_ensemble(folder, content) == []


def test_other_members_are_another_ensemble_and_another_order_is_not(ensemble) -> None:
    folder, configs, runs = ensemble
    create_ensemble(folder, describe_ensemble(configs[:2], runs[:2]))
    assert not changed(folder, describe_ensemble(configs[1::-1], runs[1::-1]))
    assert changed(folder, describe_ensemble([replace(config, unit="cm") for config in configs[:2]], runs[:2]))
    more = describe_ensemble(configs, runs)
    assert changed(folder, more)
    assert create_ensemble(folder, more) == ["ensemble e had q, r and has now q, r, s"]
    assert not changed(folder, more)


def test_a_finished_ensemble_is_made_again_when_a_member_has_predicted_again(ensemble) -> None:
    from jobs.many import made_of

    folder, configs, runs = ensemble
    content = describe_ensemble(configs, runs)
    create_ensemble(folder, content)
    for run in (*runs, folder):
        run.stage_record("x").parent.mkdir(parents=True)
    for run in runs:
        write_json(run.stage_record("predict"), {"finished": True, "time": 1.0})
    write_json(folder.stage_record("ensemble"), {"finished": True, "members": made_of(content)})
    assert not changed(folder, content)
    write_json(runs[1].stage_record("predict"), {"finished": True, "time": 2.0})
    assert changed(folder, content)
