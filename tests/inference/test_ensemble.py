"""Several predictions of the same images become their average, or everything that is wrong with them is said."""

import itertools
import json
import math
import signal
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from agl_core.config import EnsembleConfig
from agl_core.data.georeference import Georeference, read_georeference
from agl_core.data.tiles import read_agl, read_vflow, write_agl, write_vflow
from agl_core.durable.exits import InterruptedRunError
from agl_core.durable.guard import Guard
from agl_core.errors import UserError
from agl_core.geometry import Pose
from agl_core.inference import ensemble as ensemble_module
from agl_core.inference.ensemble import Joining, average, ensemble
from agl_core.inference.predictor import Prediction
from agl_core.inference.rasters import write_heights
from agl_core.inference.sharing import joined
from tests.data.test_georeference import points

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

    def warned(*asked: Any) -> Prediction:
        averaged.append(1)
        guard._received.append((signal.SIGUSR2, 0.0))
        return average(*asked)

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
    monkeypatch.setattr(ensemble_module, "average", lambda *asked: again.append(1) or average(*asked))
    assert ensemble(config) == 3
    assert len(again) == 1
    config.members = ",".join(config.members.split(",")[:2])  # other members: all
    ensemble(config)
    assert len(again) == 4


def test_weights_median_and_spread_are_options(config: EnsembleConfig) -> None:
    config.member_weights, config.combine, config.uncertainty = "1,2,4", "median", True
    ensemble(config)
    members = [Path(member) for member in config.members.split(",")]
    for image in IDS:
        heights = [read_agl(member / f"{image}_AGL.tif", "cm") for member in members]
        poses = [read_vflow(member / f"{image}_VFLOW.json", "cm") for member in members]
        out = Path(config.out)
        # The last member weighs more than the others together.
        np.testing.assert_array_equal(read_agl(out / f"{image}_AGL.tif", "cm"), heights[2])
        found = read_vflow(out / f"{image}_VFLOW.json", "cm")
        assert found.scale == pytest.approx(sum(w * pose.scale for w, pose in zip((1, 2, 4), poses, strict=True)) / 7)
        mean = np.average(heights, axis=0, weights=(1, 2, 4))
        deviation = np.sqrt(np.average((np.array(heights) - mean) ** 2, axis=0, weights=(1, 2, 4)))
        np.testing.assert_allclose(read_agl(out / f"{image}_SPREAD.tif", "cm"), deviation, atol=0.5001)


def test_large_images_are_averaged_strip_by_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    heights = [rng.integers(0, 65535, (50, 30)).astype(np.uint16) for _ in range(3)]
    predictions = [Prediction(agl_cm, Pose(1.0, 1.0)) for agl_cm in heights]
    whole = average(predictions, Joining(spread=True))
    monkeypatch.setattr(ensemble_module, "_STRIP", 7 * 30)
    strips = average(predictions, Joining(spread=True))
    np.testing.assert_array_equal(strips.agl_cm, whole.agl_cm)
    np.testing.assert_array_equal(strips.spread_cm, whole.spread_cm)


def averaged_anew(config: EnsembleConfig, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many images another call averages."""
    again: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(ensemble_module, "average", lambda *asked: again.append(1) or average(*asked))
        ensemble(config)
    return len(again)


def test_other_weights_or_corrections_average_all_again_and_the_same_ones_none(
    config: EnsembleConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble(config)
    config.member_weights = "3,3,3"
    assert averaged_anew(config, monkeypatch) == 0  # all alike
    for key, value in (
        ("member_weights", "3,3,1"),
        ("combine", "median"),
        ("uncertainty", True),
        ("height_factor", {"default": 1.1}),
        ("max_agl", {"default": 100.0}),
    ):
        setattr(config, key, value)
        assert averaged_anew(config, monkeypatch) == 3, key
        assert averaged_anew(config, monkeypatch) == 0, key
    first, *others = config.members.split(",")
    config.members, config.member_weights = ",".join([*others, first]), "3,1,3"
    assert averaged_anew(config, monkeypatch) == 0  # the same in another order
    config.member_weights = "1,3,3"
    assert averaged_anew(config, monkeypatch) == 3


def with_cities(config: EnsembleConfig, tmp_path: Path, gsd: float = 0.5) -> None:
    rows = "".join(f"{image},{image[0]},{gsd}\n" for image in IDS)
    (tmp_path / "metadata.csv").write_text(f"id,city,gsd\n{rows}")


def test_heights_and_scales_are_corrected_by_city_and_then_clipped(config: EnsembleConfig, tmp_path: Path) -> None:
    with_cities(config, tmp_path)
    ensemble(config)
    plain = {image: read_agl(Path(config.out) / f"{image}_AGL.tif", "cm") for image in IDS}
    scales = {image: read_vflow(Path(config.out) / f"{image}_VFLOW.json", "cm").scale for image in IDS}
    cities = {"A": {"height_factor": 0.5, "scale_line": [0.1, 0.9]}, "B": {"height_factor": 0.25}}
    (tmp_path / "calibration.json").write_text(json.dumps({"format": "geopose-calibration-1", "cities": cities}))
    config.calibration = str(tmp_path / "calibration.json")
    config.height_factor, config.max_agl, config.uncertainty = {"B": 1.5}, {"default": 300.0, "A": 150.0}, True
    ensemble(config)
    for image, (factor, highest, line) in {
        "A_a": (0.5, 150, (0.1, 0.9)),
        "A_b": (0.5, 150, (0.1, 0.9)),
        "B_c": (1.5, 300, (0.0, 1.0)),
    }.items():
        found = read_agl(Path(config.out) / f"{image}_AGL.tif", "cm")
        # Before they are rounded the heights are means of three, up to a third of a centimetre beside these.
        np.testing.assert_allclose(found, np.minimum(plain[image] * factor, highest * 100), atol=0.5 + factor / 3)
        assert found.max() == highest * 100
        scale = read_vflow(Path(config.out) / f"{image}_VFLOW.json", "cm").scale
        assert scale == pytest.approx((line[0] + line[1] * scales[image] * 0.5) / 0.5)
        members = [read_agl(Path(member) / f"{image}_AGL.tif", "cm") for member in config.members.split(",")]
        spread = read_agl(Path(config.out) / f"{image}_SPREAD.tif", "cm")
        np.testing.assert_allclose(spread, factor * np.std(np.array(members, float), axis=0), atol=0.5001)


def test_cities_that_corrections_need_and_nobody_tells_are_refused_before_anything_is_written(
    config: EnsembleConfig, tmp_path: Path
) -> None:
    config.height_factor = {"A": 2.0}
    with pytest.raises(UserError, match=r"city of A_a, A_b, B_c is not known, .* metadata.csv") as refusal:
        ensemble(config)
    assert "\n" not in str(refusal.value)
    with_cities(config, tmp_path)
    (tmp_path / "two" / "metadata.csv").write_text("id,city,gsd\nA_a,A,0.5\nA_b,C,0.5\nB_c,B,0.5\n")
    with pytest.raises(UserError, match="do not agree in the city of A_b: A and C"):
        ensemble(config)
    assert not (tmp_path / "out").exists()


def test_what_corrects_all_cities_alike_needs_no_cities(config: EnsembleConfig) -> None:
    config.height_factor = {"default": 0.5}
    ensemble(config)
    assert read_agl(Path(config.out) / "A_a_AGL.tif", "cm").max() <= 32768


def test_what_no_member_knows_stays_unknown(config: EnsembleConfig, tmp_path: Path) -> None:
    for number, member in enumerate(config.members.split(",")):
        heights = np.full((21, 31), 1000 * (1 + number), np.uint16)
        heights[4, 5:8] = 65535
        write_agl(Path(member) / "A_b_AGL.tif", heights, "cm")
    config.uncertainty, config.height_factor = True, {"default": 0.5}
    ensemble(config)
    expected = np.full((21, 31), 1000)
    expected[4, 5:8] = 65535
    np.testing.assert_array_equal(read_agl(tmp_path / "out" / "A_b_AGL.tif", "cm"), expected)
    spread = read_agl(tmp_path / "out" / "A_b_SPREAD.tif", "cm")
    assert ((spread == 65535) == (expected == 65535)).all()


def test_a_georeference_goes_from_the_members_to_the_average(config: EnsembleConfig, tmp_path: Path) -> None:
    members = [Path(member) for member in config.members.split(",")]
    utm = CRS.from_epsg(32617)
    for place in (
        Georeference(utm, gcps=points()),
        Georeference(utm, Affine(0.5, 0, 440000, 0, -0.5, 3355000)),
    ):
        for member in members:
            write_heights(member / "A_a_AGL.tif", read_agl(member / "A_a_AGL.tif", "cm"), "cm", place)
        ensemble(config)
        assert read_georeference(tmp_path / "out" / "A_a_AGL.tif") == place
    write_heights(members[1] / "A_a_AGL.tif", read_agl(members[1] / "A_a_AGL.tif", "cm"), "cm", place.moved(1, 0))
    with pytest.raises(UserError, match=r"A_a_AGL.tif do not lie in the same place.*one with that in .*two"):
        ensemble(config)


def test_the_archive_holds_all_files_of_all_images(config: EnsembleConfig, tmp_path: Path) -> None:
    config.archive = str(tmp_path / "both.tar.gz")
    ensemble(config)
    with tarfile.open(config.archive) as archive:
        names = [member.name for member in archive]
        assert sorted(names) == sorted(f"{image}_{kind}" for image in IDS for kind in ("AGL.tif", "VFLOW.json"))
        packed = {name: archive.extractfile(name).read() for name in names}  # type: ignore[union-attr]
    assert packed == content(config.out)
    config.archive = str(tmp_path / "both.zip")
    with pytest.raises(UserError, match="zip"):
        ensemble(config)


def test_what_the_members_say_of_an_image_is_said_of_its_average(config: EnsembleConfig, tmp_path: Path) -> None:
    about = {"rgb": "/data/A_a_RGB.tif", "size": 5, "mtime_ns": 7, "city": "A", "gsd": 0.5}
    for member in config.members.split(","):
        text = {"format": "geopose-predictions-2", "settings": {}, "images": {"A_a": about, "A_b": about}}
        about = {**about, "city": "B"}
        (Path(member) / "about.json").write_text(json.dumps(text))
    ensemble(config)
    images = json.loads((tmp_path / "out" / "about.json").read_text())["images"]
    assert {key: images["A_a"][key] for key in ("rgb", "size", "gsd")} == {
        "rgb": "/data/A_a_RGB.tif", "size": 5, "gsd": 0.5,
    }  # fmt: skip
    assert "city" not in images["A_a"]  # of which the members do not say the same
    assert images["B_c"].keys() == {"members"}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("member_weights", "1,2", "2 numbers, but there are 3 members"),
        ("combine", "mode", "unknown combine 'mode'"),
        ("height_factor", {"A": 20.0}, "height_factor.A is 20"),
        ("calibration", "nowhere.json", "nowhere.json does not exist"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(
    config: EnsembleConfig, tmp_path: Path, key: str, value: Any, words: str
) -> None:
    setattr(config, key, value)
    with pytest.raises(UserError, match=words):
        ensemble(config)
    assert not (tmp_path / "out").exists()


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
    monkeypatch.setattr(ensemble_module, "average", lambda *_: pytest.fail("nothing has changed"))
    config.members = ",".join(reversed(config.members.split(",")))
    assert ensemble(config) == 3


def test_a_folder_that_others_write_to_is_refused_and_torn_files_are_removed(config: EnsembleConfig) -> None:
    ensemble(config)
    before = content(config.out)
    (Path(config.out) / ".A_a_AGL.0123abcd.part.tif").write_text("torn")
    with joined(Path(config.out), bool), pytest.raises(UserError, match=r"written to by another call: .*--out"):
        ensemble(config)
    ensemble(config)
    assert content(config.out) == before


def test_nobody_joins_a_folder_that_is_being_averaged_into(
    config: EnsembleConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look(*asked: Any) -> Prediction:
        with joined(Path(config.out), lambda alone: alone) as (_, alone):
            seen.append(alone)
        return average(*asked)

    monkeypatch.setattr(ensemble_module, "average", look)
    ensemble(config)
    assert seen == [False] * 3


def test_truth_is_not_replaced_by_averages(config: EnsembleConfig, tmp_path: Path) -> None:
    write_member(tmp_path / "truth", 9)
    before = content(tmp_path / "truth")
    config.out = str(tmp_path / "truth")
    with pytest.raises(UserError, match="is there already"):
        ensemble(config)
    assert content(tmp_path / "truth") == before
