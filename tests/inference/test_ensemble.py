"""Several predictions of the same images become their average, or everything that is wrong with them is said."""

import itertools
import math
import signal
from pathlib import Path

import numpy as np
import pytest
import rasterio

from agl_core.config import EnsembleConfig
from agl_core.data.tiles import read_agl, read_vflow, write_agl, write_vflow
from agl_core.durable.exits import InterruptedRunError
from agl_core.durable.guard import Guard
from agl_core.errors import UserError
from agl_core.geometry import Pose
from agl_core.inference import ensemble as ensemble_module
from agl_core.inference.ensemble import average, ensemble
from agl_core.inference.predictor import Prediction

IDS = ["A_a", "A_b", "B_c"]


def write_member(folder: Path, seed: int, unit: str = "cm") -> None:
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for number, image in enumerate(IDS):
        write_agl(folder / f"{image}_AGL.tif", rng.integers(0, 65535, (20 + number, 31)).astype(np.uint16), unit)
        write_vflow(folder / f"{image}_VFLOW.json", Pose(rng.uniform(0, 3), rng.uniform(0, 6)), unit)


@pytest.fixture
def config(tmp_path: Path) -> EnsembleConfig:
    """Three members of three images."""
    members = [tmp_path / name for name in ("one", "two", "three")]
    for seed, member in enumerate(members):
        write_member(member, seed)
    return EnsembleConfig(members=",".join(map(str, members)), out=str(tmp_path / "out"))


def content(folder: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name != "about.json"}


def test_heights_and_scales_are_averaged_and_directions_by_their_unit_vectors(config: EnsembleConfig, capsys) -> None:
    assert ensemble(config) == 3
    for image in IDS:
        members = [Path(member) for member in config.members.split(",")]
        heights = [read_agl(member / f"{image}_AGL.tif", "cm").astype(float) for member in members]
        poses = [read_vflow(member / f"{image}_VFLOW.json", "cm") for member in members]
        found = read_vflow(Path(config.out) / f"{image}_VFLOW.json", "cm")
        np.testing.assert_array_equal(
            read_agl(Path(config.out) / f"{image}_AGL.tif", "cm"), np.rint(np.mean(heights, axis=0))
        )
        assert found.scale == pytest.approx(np.mean([pose.scale for pose in poses]))
        x, y = (sum(f(pose.angle) for pose in poses) for f in (math.sin, math.cos))
        assert math.remainder(found.angle - math.atan2(x, y), math.tau) == pytest.approx(0, abs=1e-12)
    assert capsys.readouterr().out.startswith("3 images averaged over 3 members")


def test_angles_on_both_sides_of_a_whole_turn_do_not_meet_on_the_other_side() -> None:
    flat = np.zeros((2, 2), np.uint16)
    pose = average([Prediction(flat, Pose(1.0, 0.1)), Prediction(flat, Pose(3.0, math.tau - 0.3))]).pose
    assert pose.scale == pytest.approx(2.0)
    assert pose.angle == pytest.approx(math.tau - 0.1)


def test_heights_that_do_not_fit_into_sixteen_bits_together_are_averaged_exactly() -> None:
    high = [Prediction(np.full((3, 3), value, np.uint16), Pose(1.0, 1.0)) for value in (65534, 65534, 65531)]
    np.testing.assert_array_equal(average(high).agl_cm, 65533)


def test_the_order_of_the_members_changes_no_bit(config: EnsembleConfig, tmp_path: Path) -> None:
    found = []
    for number, order in enumerate(itertools.permutations(config.members.split(","))):
        out = tmp_path / f"out{number}"
        ensemble(EnsembleConfig(members=",".join(order), out=str(out)))
        found.append(content(out))
    assert len(found) == 6
    assert all(other == found[0] for other in found)


def test_members_in_metres_give_metres(tmp_path: Path) -> None:
    for number, name in enumerate(("one", "two")):
        write_member(tmp_path / name, number, "m")
    ensemble(EnsembleConfig(members=f"{tmp_path / 'one'},{tmp_path / 'two'}", out=str(tmp_path / "out"), unit="m"))
    with rasterio.open(tmp_path / "out" / "A_a_AGL.tif") as raster:
        assert raster.dtypes == ("float32",)
    scales = [read_vflow(tmp_path / name / "A_a_VFLOW.json", "m").scale for name in ("one", "two")]
    assert read_vflow(tmp_path / "out" / "A_a_VFLOW.json", "m").scale == pytest.approx(np.mean(scales))


def test_everything_that_is_wrong_is_listed_at_once_and_nothing_is_written(
    config: EnsembleConfig, tmp_path: Path
) -> None:
    (tmp_path / "one" / "A_a_AGL.tif").unlink()
    (tmp_path / "two" / "A_b_VFLOW.json").write_text("{}")
    write_agl(tmp_path / "three" / "A_b_AGL.tif", np.zeros((5, 6), np.uint16), "cm")
    write_agl(tmp_path / "three" / "B_c_AGL.tif", np.zeros((22, 31), np.uint16), "m")
    with pytest.raises(UserError) as refusal:
        ensemble(config)
    head, *lines = str(refusal.value).splitlines()
    assert head.endswith("4 problems")
    for line, words in zip(
        lines,
        [
            ["one/A_a_AGL.tif does not exist"],
            ["two/A_b_VFLOW.json", "'scale'"],
            ["A_b_AGL.tif differ in size", "21 x 31 in", "5 x 6 in", "three"],
            ["three/B_c_AGL.tif holds float32", "--unit m"],
        ],
        strict=True,
    ):
        assert all(word in line for word in words), line
    assert not (tmp_path / "out").exists()


def test_a_member_with_holes_is_named_and_the_other_images_are_written(config: EnsembleConfig, tmp_path: Path) -> None:
    holes = np.zeros((21, 31), np.uint16)
    holes[3, :4] = 65535
    write_agl(tmp_path / "two" / "A_b_AGL.tif", holes, "cm")
    with pytest.raises(UserError, match=r"two/A_b_AGL.tif has 4 holes"):
        ensemble(config)
    assert sorted(content(config.out)) == [f"{i}_{k}" for i in ("A_a", "B_c") for k in ("AGL.tif", "VFLOW.json")]


def test_a_signal_ends_it_between_two_images_and_the_next_call_goes_on(
    config: EnsembleConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, averaged = Guard.off(), []
    monkeypatch.setattr(ensemble_module, "cores", lambda: 1)

    def warned(predictions: list[Prediction]) -> Prediction:
        averaged.append(1)
        guard._received.append((signal.SIGUSR2, 0.0))
        return average(predictions)

    monkeypatch.setattr(ensemble_module, "average", warned)
    with pytest.raises(InterruptedRunError) as left:
        ensemble(config, guard)
    assert str(left.value) == "interrupted by USR2; 1 of 3 images are averaged"
    first = content(config.out)
    assert len(first) == 2
    assert ensemble(config) == 3
    assert len(averaged) == 3
    monkeypatch.undo()
    ensemble(EnsembleConfig(members=config.members, out=str(tmp_path / "whole")))
    assert first.items() < content(config.out).items()
    assert content(config.out) == content(tmp_path / "whole")


def test_only_what_a_member_has_predicted_anew_is_averaged_again(
    config: EnsembleConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble(config)
    write_vflow(tmp_path / "two" / "A_b_VFLOW.json", Pose(9.0, 1.0), "cm")
    again = []
    monkeypatch.setattr(ensemble_module, "average", lambda members: again.append(1) or average(members))
    assert ensemble(config) == 3
    assert len(again) == 1
    config.members = ",".join(config.members.split(",")[:2])  # other members: all
    ensemble(config)
    assert len(again) == 4


@pytest.mark.parametrize(
    ("members", "out", "words"),
    [
        ("one", "out", "two or more"),
        ("", "out", "two or more"),
        ("one,one/../one", "out", "given twice"),
        ("one,nowhere", "out", "nowhere is not a folder"),
        ("one,two", "two", "is a member itself"),
        ("empty,bare", "out", "no predictions"),
    ],
)
def test_members_that_make_no_ensemble_are_refused_in_one_sentence(
    config: EnsembleConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: str, out: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "bare"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=words) as refusal:
        ensemble(EnsembleConfig(members=members, out=out))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_the_same_members_in_another_order_keep_what_is_there(
    config: EnsembleConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble(config)
    monkeypatch.setattr(ensemble_module, "average", lambda _: pytest.fail("nothing has changed"))
    config.members = ",".join(reversed(config.members.split(",")))
    assert ensemble(config) == 3
