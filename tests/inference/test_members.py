"""Runs, stages, folds and weights files that predict together; each that cannot is refused in one sentence."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from agl_core.config import ModelConfig
from agl_core.errors import UserError
from agl_core.inference.members import (
    Member,
    check_cities,
    common_cities,
    find_members,
    load_members,
    max_agl,
    named,
    trained_precision,
)
from agl_core.model.network import GeoposeNet
from agl_core.model.weights import save_weights
from tests.inference.fakes import PointwiseNet


@pytest.fixture
def runs(tmp_path):
    """Two folds with weights of two stages, one that has none yet, and the ensemble of the first two."""
    runs = tmp_path / "runs"
    for name, kinds in (
        ("a-fold0", ["pretrain/best", "finetune/best", "finetune/last"]),
        ("a-fold1", ["pretrain/best", "pretrain/last"]),
        ("new", []),
    ):
        (runs / name).mkdir(parents=True)
        (runs / name / "config.yaml").write_text("stages:\n  pretrain: {crop: 64}\n  finetune: {crop: 64}\n")
        for kind in kinds:
            path = runs / name / "weights" / f"{kind}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name} {kind}")
    (runs / "a-ensemble").mkdir()
    (runs / "a-ensemble" / "ensemble.yaml").write_text("runs: [a-fold0, a-fold1]\n")
    return runs


def found(runs, *asked):
    return [(str(member.path.relative_to(runs)), member.weight) for member in find_members(runs, *asked)]


def test_one_run_is_one_member_called_as_ever(runs):
    [member] = find_members(runs, "a-fold1")
    assert member == Member(
        runs / "a-fold1/weights/pretrain/best.safetensors", "a-fold1, pretrain/best (finetune has none yet)", 1.0
    )
    assert named([member]) == member.name


def test_runs_give_one_member_for_each_kind_of_weights_and_then_come_the_files(runs, tmp_path):
    best, last = "weights/finetune/best.safetensors", "weights/finetune/last.safetensors"
    other = "a-fold1/weights/pretrain/best.safetensors"
    assert found(runs, "a-fold0,a-fold1", "best") == [(f"a-fold0/{best}", 1), (other, 1)]
    assert found(runs, "a-fold0", "best,last") == [(f"a-fold0/{best}", 1), (f"a-fold0/{last}", 1)]
    assert found(runs, "a-fold0", f"{runs / other}, last", "2, 0.5") == [(f"a-fold0/{last}", 2), (other, 0.5)]
    assert found(runs, "", f"{runs / other},{runs / 'a-fold0' / best}", "3,1") == [(other, 3), (f"a-fold0/{best}", 1)]
    assert found(runs, "nobody", str(runs / other)) == [(other, 1)]  # files do without a run
    assert "2 members (a-fold0, finetune/best; a-fold1, pretrain/best" in named(find_members(runs, "a-fold0,a-fold1"))


def test_an_ensemble_stands_for_its_runs(runs):
    assert found(runs, "a-ensemble", "pretrain/best") == found(runs, "a-fold0,a-fold1", "pretrain/best")


def test_a_comma_in_the_name_of_a_file_that_exists_is_no_list(runs, tmp_path):
    path = tmp_path / "a,b.safetensors"
    path.write_text("")
    assert [member.path for member in find_members(runs, "", str(path))] == [path]


@pytest.mark.parametrize(
    ("run", "weights", "member_weights", "words"),
    [
        ("", "best", "", "no run ''"),
        ("a-fold0,nobody", "best", "", "no run 'nobody' in .*a-fold0, a-fold1, new"),
        ("a-fold0,new", "best", "", "run 'new' has no weights 'best' yet: it has none"),
        ("a-fold1", "last-ema", "", "no weights 'last-ema' yet: it has weights/pretrain/best"),
        ("a-fold0", "newest", "", "unknown weights 'newest'"),
        ("a-fold0", "third/best", "", "unknown stage 'third'"),
        ("a-fold0,,a-fold1", "best", "", "run is 'a-fold0,,a-fold1'.*one comma"),
        ("a-fold0,a-fold0", "best", "", r"finetune/best.safetensors is given twice"),
        ("a-fold0", "best,finetune/best", "", "is given twice"),
        ("", 40 * "a-fold0/weights/best,", "", "with one comma between"),
        ("", ",".join(40 * ["a-fold0.safetensors"]), "", "a-fold0.safetensors do not exist"),
        ("", f"{5000 * 'a'}.safetensors,b.safetensors", "", "do not exist"),
        (5000 * "a", "best", "", "no run 'aaa"),
        ("", "gone.safetensors", "", "gone.safetensors do not exist"),
        ("a-fold0,a-fold1", "best", "2", "member_weights is '2', 1 number, but there are 2 members"),
        ("a-fold0", "best", "2,1", "member_weights is '2,1', 2 numbers, but there is 1 member"),
        ("a-fold0,a-fold1", "best", "2,-1", "number greater than 0 for each member"),
        ("a-fold0,a-fold1", "best", "2,x", "number greater than 0 for each member"),
        ("a-fold0,a-fold1", "best", "2,nan", "number greater than 0 for each member"),
    ],
)
def test_members_that_cannot_predict_are_refused_in_one_sentence(runs, run, weights, member_weights, words):
    with pytest.raises(UserError, match=words) as refusal:
        find_members(runs, run, weights, member_weights)
    assert "\n" not in str(refusal.value)


def test_a_damaged_ensemble_is_refused(runs):
    (runs / "a-ensemble" / "ensemble.yaml").write_text("runs: {")
    with pytest.raises(UserError, match=r"ensemble.yaml cannot be read"):
        find_members(runs, "a-ensemble")
    (runs / "a-ensemble" / "ensemble.yaml").write_text("data: world")
    with pytest.raises(UserError, match=r"ensemble.yaml names no runs"):
        find_members(runs, "a-ensemble")


def test_members_are_loaded_with_their_metadata_and_checked_before_any_is_read(tmp_path, monkeypatch):
    net = GeoposeNet("resnet18", ["A", "B"], ModelConfig())
    paths = [tmp_path / name for name in ("one.safetensors", "two.safetensors")]
    for number, path in enumerate(paths):
        save_weights(path, net, {"score": number})
    models, metadata = load_members(find_members(tmp_path, "", ",".join(map(str, paths))))
    assert [one["score"] for one in metadata] == [0, 1]
    assert all(isinstance(model, GeoposeNet) and not model.training for model in models)
    assert {str(parameter.device) for model in models for parameter in model.parameters()} == {"cpu"}
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, other)
    monkeypatch.setattr("agl_core.model.weights.load_weights", lambda _: pytest.fail("the second is wrong"))
    with pytest.raises(UserError, match=r"other.safetensors is a safetensors file, but not weights of this project"):
        load_members(find_members(tmp_path, "", f"{paths[0]},{other}"))


def test_the_member_that_does_not_know_a_city_is_named(runs):
    members = find_members(runs, "a-fold0,a-fold1")
    models = [PointwiseNet(cities=("B", "A")), PointwiseNet(cities=("A", "C"))]
    check_cities(members, models, ["A", "A"])
    with pytest.raises(UserError, match=r"^a-fold1, pretrain/best.*does not know city 'B': it was trained on A, C"):
        check_cities(members, models, ["A", "B"])
    with pytest.raises(UserError, match=r"^the model does not know city 'C'"):
        check_cities(members[:1], models[:1], ["C"])
    check_cities(members[:1], [PointwiseNet(use_city=False)], ["C"])


def test_the_cities_in_common_are_those_of_the_members_that_look_at_the_city():
    models = [PointwiseNet(cities=("B", "A")), PointwiseNet(cities=("A", "C")), PointwiseNet(use_city=False)]
    assert common_cities(models) == ["A"]
    assert common_cities([models[0], PointwiseNet(cities=("C",))]) == []
    assert common_cities(models[2:]) is None


def test_what_the_members_were_trained_with_counts():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    half = {"config": {"precision": "float16"}}
    assert [trained_precision(half, cpu), trained_precision(half, gpu)] == ["auto", "float16"]
    assert trained_precision({}, gpu) == "auto"
    assert max_agl({"config": {"max_agl": {"A": 50.0}}}) == {"A": 50.0}
    assert max_agl({})["default"] == 200.0


def test_finding_members_does_not_wait_for_torch():
    code = (
        "import sys, agl_core.inference.members; print([name for name in ('torch', 'rasterio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
