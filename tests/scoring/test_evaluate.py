"""Predictions on disk are scored as they are, or refused with everything that is wrong with them."""

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agl_core.config import EvaluateConfig
from agl_core.data.tiles import read_agl, read_vflow, write_agl, write_vflow
from agl_core.errors import UserError
from agl_core.files import read_json
from agl_core.geometry import Pose
from agl_core.inference.folder import FORMAT
from agl_core.scoring import evaluate as evaluating
from agl_core.scoring import folders
from agl_core.scoring.evaluate import evaluate
from tests.scoring.test_score import random_image
from tests.scoring.two_pass import official_score


def write_pair(folder, image, agl_cm, pose, unit="cm"):
    folder.mkdir(exist_ok=True, parents=True)
    write_agl(folder / f"{image}_AGL.tif", agl_cm, unit)
    if pose is not None:
        write_vflow(folder / f"{image}_VFLOW.json", pose, unit)


def write_images(folder, images, unit="cm"):
    """`images`: id -> (truth, predicted, true pose, predicted pose). Returns the configuration that scores them."""
    for image, (truth, predicted, true, pose) in images.items():
        write_pair(folder / "test_truth", image, truth, true, unit)
        write_pair(folder / "predicted", image, predicted, pose, unit)
    (folder / "metadata.csv").write_text("id,city,gsd\n" + "".join(f"{name},{name[:2]},0.5\n" for name in images))
    return EvaluateConfig(
        predictions=str(folder / "predicted"),
        truth=str(folder / "test_truth"),
        unit=unit,
        json=str(folder / "out" / "score.json"),
    )


@pytest.fixture
def images():
    rng = np.random.default_rng(7)
    return {f"{city}x{i}": random_image(rng, size=(20 + 3 * i, 31)) for city in ("AA", "BB") for i in range(3)}


def test_metres_may_be_scored_against_centimetres(tmp_path, images):
    same = evaluate(write_images(tmp_path / "same", images, "cm"))
    config = write_images(tmp_path / "both", images, "cm")
    for name in {path.name.removesuffix("_AGL.tif") for path in (tmp_path / "both" / "predicted").glob("*_AGL.tif")}:
        folder = tmp_path / "both" / "predicted"
        agl_cm, pose = read_agl(folder / f"{name}_AGL.tif", "cm"), read_vflow(folder / f"{name}_VFLOW.json", "cm")
        write_pair(folder, name, agl_cm, pose, "m")
    assert evaluate(replace(config, unit="auto")).score == pytest.approx(same.score, abs=1e-12)
    with pytest.raises(UserError, match="give --unit m"):
        evaluate(config)


@pytest.mark.parametrize("unit", ["cm", "m"])
def test_the_score_on_disk_is_the_official_one_in_either_unit(tmp_path, images, unit):
    config = write_images(tmp_path, images, unit)
    reached = evaluate(config)
    expected = official_score(
        {city: [image for name, image in images.items() if name.startswith(city)] for city in ("AA", "BB")}
    )
    assert reached.score == pytest.approx(expected, abs=1e-9)
    written = json.loads((tmp_path / "out" / "score.json").read_text())
    assert written["score"] == reached.score
    assert written["cities"]["AA"]["vflow_r2"] == reached.cities["AA"].vflow_r2
    assert written["best_constant"]["cities"]["AA"]["agl_r2"] == pytest.approx(0, abs=1e-6)


def test_the_table_has_a_row_per_city_with_the_best_constant_beside(tmp_path, images, capsys):
    reached = evaluate(write_images(tmp_path, images))
    lines = capsys.readouterr().out.splitlines()
    assert any("best constant" in line and "median scale error" in line for line in lines)  # not folded in a log
    row = next(line.split() for line in lines if line.strip().startswith("BB"))
    city = reached.cities["BB"]
    assert row[1:5] == ["3", f"{city.agl_r2:.4f}", f"{city.vflow_r2:.4f}", f"{city.score:.4f}"]
    assert row[6:8] == [f"{city.angle_error:.1f}", "deg"]
    assert any(line.split()[:3] == ["all", "6", f"{reached.score:.4f}"] for line in lines)


def test_everything_that_is_wrong_is_listed_at_once_and_nothing_is_written(tmp_path, images, capsys):
    config = write_images(tmp_path, images)
    predicted = tmp_path / "predicted"
    names = sorted(images)
    (predicted / f"{names[0]}_AGL.tif").unlink()
    (predicted / f"{names[1]}_AGL.tif").write_bytes(b"not an image")
    holes = images[names[2]][1].copy()
    holes[0, :3] = 65535
    write_pair(predicted, names[2], holes, None)
    write_pair(predicted, names[3], images[names[3]][1][:-1], None)
    (predicted / f"{names[4]}_VFLOW.json").unlink()
    (predicted / f"{names[5]}_VFLOW.json").write_text('{"scale": NaN, "angle": 1}')
    with pytest.raises(UserError) as refused:
        evaluate(config)
    head, *listed = str(refused.value).splitlines()
    assert "6 problems" in head
    for line, (name, wrong) in zip(
        listed,
        zip(names, ["not exist", "cannot be read", "3 holes", "19 x 31", "not exist", "scale"], strict=True),
        strict=True,
    ):
        assert name in line
        assert wrong in line
    assert not (tmp_path / "out").exists()
    assert "R2" not in capsys.readouterr().out


def test_the_folders_of_the_json_are_made_when_there_is_something_to_write(tmp_path, images):
    config = write_images(tmp_path, images)
    config.json = str(tmp_path / "new" / "deep" / "score.json")
    before = sorted(tmp_path.rglob("*"))
    reached = evaluate(config)
    assert json.loads((tmp_path / "new" / "deep" / "score.json").read_text())["score"] == reached.score
    made = [tmp_path / "new", tmp_path / "new" / "deep", tmp_path / "new" / "deep" / "score.json"]
    assert sorted(tmp_path.rglob("*")) == sorted([*before, *made])


def test_a_nan_in_metres_is_a_hole(tmp_path, images):
    config = write_images(tmp_path, images, "m")
    name = sorted(images)[0]
    holes = images[name][1].copy()
    holes[1, 1] = 65535
    write_pair(tmp_path / "predicted", name, holes, None, "m")  # written as NaN
    with pytest.raises(UserError, match=f"{name}.* 1 holes"):
        evaluate(config)


def test_every_problem_of_many_is_listed_and_an_image_that_is_not_predicted_once(tmp_path):
    rng = np.random.default_rng(0)
    images = {f"AAx{i:02d}": random_image(rng, size=(4, 4)) for i in range(30)}
    config = write_images(tmp_path, images)
    for image in images:
        (tmp_path / "predicted" / f"{image}_VFLOW.json").unlink()
    with pytest.raises(UserError) as refused:
        evaluate(config)
    assert "--subset" not in str(refused.value)
    (tmp_path / "predicted" / "AAx07_AGL.tif").unlink()
    with pytest.raises(UserError) as refused:
        evaluate(config)
    head, *lines = str(refused.value).splitlines()
    assert "30 problems (to score only the images that are predicted, give --subset)" in head
    assert all(image in line for image, line in zip(images, lines, strict=True))
    assert "AAx07 is not predicted" in lines[7]


def test_damage_inside_a_file_is_listed_on_one_side_and_on_both_at_once(tmp_path, images):
    config = write_images(tmp_path, images)
    name = sorted(images)[0]
    damaged = []
    for folder in ("test_truth", "predicted"):
        path = tmp_path / folder / f"{name}_AGL.tif"
        whole = path.read_bytes()
        path.write_bytes(whole[:200] + bytes(len(whole) - 200))  # the header is good, the pixels are not
        damaged.append(f"{folder}/{name}_AGL.tif cannot be read")
        with pytest.raises(UserError, match=f" {len(damaged)} problem") as refused:
            evaluate(config)
        assert all(problem in str(refused.value) for problem in damaged)


def test_a_scale_that_no_view_has_is_refused_instead_of_overflowing(tmp_path, images):
    config = write_images(tmp_path, images)
    name = sorted(images)[0]
    (tmp_path / "predicted" / f"{name}_VFLOW.json").write_text('{"scale": 1e300, "angle": 1}')
    with pytest.raises(UserError, match=f"{name}.*pixels per metre"):
        evaluate(config)


def test_truth_without_vflow_is_scored_by_its_heights(tmp_path, images, capsys):
    config = write_images(tmp_path, images)
    for path in (tmp_path / "test_truth").glob("AA*.json"):
        path.unlink()
    reached = evaluate(config)
    assert reached.cities["AA"].vflow_r2 is None
    assert reached.cities["BB"].vflow_r2 is not None
    assert json.loads((tmp_path / "out" / "score.json").read_text())["cities"]["AA"]["vflow_r2"] is None
    assert "no truth" in capsys.readouterr().out


def test_predictions_of_other_images_are_not_looked_at(tmp_path, images):
    config = write_images(tmp_path, images)
    before = evaluate(config)
    (tmp_path / "predicted" / "AAother_AGL.tif").write_bytes(b"of another split")
    assert evaluate(config) == before


def test_the_metadata_beside_the_truth_or_named_takes_precedence(tmp_path, images):
    config = write_images(tmp_path, images)
    rows = "".join(f"{name},all of them,1\n" for name in images)
    (tmp_path / "test_truth" / "metadata.csv").write_text("id,city,gsd\n" + rows)
    assert list(evaluate(config).cities) == ["all of them"]
    config.metadata = str(tmp_path / "metadata.csv")
    assert list(evaluate(config).cities) == ["AA", "BB"]


def test_without_metadata_the_city_is_the_beginning_of_the_id_and_the_table_says_so(tmp_path, capsys):
    rng = np.random.default_rng(1)
    config = write_images(tmp_path, {"OMA_abc": random_image(rng), "JAX_x_y": random_image(rng)})
    (tmp_path / "metadata.csv").unlink()
    assert list(evaluate(config).cities) == ["JAX", "OMA"]
    assert "no metadata.csv found" in capsys.readouterr().out


def test_an_image_that_the_metadata_does_not_list_is_refused(tmp_path, images):
    config = write_images(tmp_path, images)
    (tmp_path / "metadata.csv").write_text("id,city,gsd\nAAx0,AA,0.5\n")
    with pytest.raises(UserError, match=r"5 problems(.|\n)*AAx1 has no city"):
        evaluate(config)


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"predictions": "nowhere"}, "nowhere is not a folder.*--predictions"),
        ({"truth": ""}, "--truth"),
        ({"unit": "km"}, "choose one of auto, cm, m"),
        ({"metadata": "no.csv"}, "no.csv does not exist"),
    ],
)
def test_a_wrong_option_is_answered_by_one_sentence(tmp_path, images, change, answer):
    config = write_images(tmp_path, images)
    for key, value in change.items():
        setattr(config, key, value)
    with pytest.raises(UserError, match=answer) as refused:
        evaluate(config)
    assert "\n" not in str(refused.value)


def test_an_empty_truth_and_a_table_without_columns_are_refused(tmp_path, images):
    config = write_images(tmp_path, images)
    (tmp_path / "metadata.csv").write_text("image;town\n")
    with pytest.raises(UserError, match="has no column id, city, gsd"):
        evaluate(config)
    shutil.rmtree(tmp_path / "test_truth")
    (tmp_path / "test_truth").mkdir()
    with pytest.raises(UserError, match=r"no \*_AGL.tif files"):
        evaluate(config)


def test_a_place_where_the_json_cannot_be_written_is_refused_before_any_image_is_read(tmp_path, images):
    config = write_images(tmp_path, images)
    for path in (tmp_path / "predicted").iterdir():
        path.write_bytes(b"broken")  # which would be answered first if it had been read
    (tmp_path / "file").write_text("")
    for json_path, answer in (
        ("file/score.json", "--json"),
        ("file/new/score.json", "--json"),
        ("predicted", "is a folder"),
    ):
        config.json = str(tmp_path / json_path)
        with pytest.raises(UserError, match=answer) as refused:
            evaluate(config)
        assert "\n" not in str(refused.value)


def test_angles_and_scales_survive_the_disk(tmp_path):
    rng = np.random.default_rng(9)
    truth, predicted, _, _ = random_image(rng)
    reached = evaluate(
        write_images(tmp_path, {"AAx": (truth, predicted, Pose(1.5, 0.5), Pose(1.25, 0.5 + math.radians(30)))})
    )
    assert reached.cities["AA"].angle_error == pytest.approx(30)
    assert reached.cities["AA"].scale_error == pytest.approx(0.25)


def all_outputs(config, folder):
    config.details = True
    for option, name in (("json", "s.json"), ("csv", "s.csv"), ("markdown", "s.md"), ("calibration", "c.json")):
        setattr(config, option, str(folder / name))
    return config


def test_the_what_if_table_stands_below_the_score(tmp_path, images, capsys):
    config = write_images(tmp_path, images)
    evaluate(config)
    lines = capsys.readouterr().out.splitlines()
    head = next(i for i, line in enumerate(lines) if "true angle" in line)
    assert lines[head].split("  ")
    assert any("best constant" in line for line in lines[:head])
    changed = json.loads((tmp_path / "out" / "score.json").read_text())["what_if"]
    row = next(line.split() for line in lines[head:] if line.strip().startswith("all"))
    assert row[1:] == [f"{one['score']:.4f}" for one in changed.values()]
    assert not any("true height " in line or "RMSE" in line for line in lines)  # these are details


def test_the_details_are_printed_when_they_are_asked_for(tmp_path, images, capsys):
    config = write_images(tmp_path, images)
    config.details = True
    evaluate(config)
    printed = capsys.readouterr().out
    content = read_json(config.json)
    heads = ["true height", "RMSE BB", "MAE from 2 m on", "end-point mean", "own score"]
    assert [head for head in heads if head in printed] == heads
    errors = next(line for line in printed.splitlines() if line.split()[:1] == ["BB"] and " px " in line)
    assert f"{content['cities']['BB']['rmse']:.2f} m" in errors
    assert f"{content['cities']['BB']['end_point_rms']:.2f} px" in errors
    worst = max(content["images"], key=lambda image: content["images"][image]["lost"])
    listed = [line.split()[0] for line in printed.splitlines() if line.split()[:1] and line.split()[0] in images]
    assert listed[0] == worst
    assert sorted(listed) == sorted(images)


def test_json_csv_and_markdown_say_the_same(tmp_path, images):
    config = all_outputs(write_images(tmp_path, images), tmp_path / "new")
    reached = evaluate(config)
    content = json.loads((tmp_path / "new" / "s.json").read_text())
    for city in "AA", "BB":
        of_images = [one for one in content["images"].values() if one["city"] == city]
        pixels = sum(one["known_pixels"] for one in of_images)
        assert content["cities"][city]["known_pixels"] == pixels
        mae = sum(one["mae"] * one["known_pixels"] for one in of_images) / pixels
        assert content["cities"][city]["mae"] == pytest.approx(mae, rel=1e-12)
        assert content["cities"][city]["score"] == reached.cities[city].score
    assert sum(one["lost"] for one in content["images"].values()) == pytest.approx(1 - content["score"])
    with (tmp_path / "new" / "s.csv").open(newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert list(rows) == sorted(images)
    for image, row in rows.items():
        one = content["images"][image]
        for name in ("score", "agl_r2", "rmse", "end_point_error", "angle_error", "true_scale", "lost"):
            assert float(row[name]) == one[name]
        assert float(row["above_mae"]) == one["above"]["mae"]
        assert int(row["pixels_5_10"]) == one["by_height"][3]["pixels"] > 0
        assert row["rmse_100_up"] == ""
        assert row["scale"] == repr(one["scale"])
    page = (tmp_path / "new" / "s.md").read_text()
    assert f"| all | 6 |  |  | {reached.score:.4f} |" in page
    assert f"| {content['what_if']['true pose']['cities']['AA']:.4f} |" in page
    assert page.count("\n## ") == 5


def test_an_image_is_scored_by_itself_as_the_official_script_would(tmp_path, images):
    config = write_images(tmp_path, images)
    evaluate(config)
    for image, one in read_json(config.json)["images"].items():
        assert one["score"] == pytest.approx(official_score({"A": [images[image]]}), abs=1e-9)


def test_an_image_without_any_known_height_has_no_figures_and_no_loss(tmp_path, images):
    name = sorted(images)[0]
    images[name] = (np.full_like(images[name][0], 65535), *images[name][1:])
    config = all_outputs(write_images(tmp_path, images), tmp_path)
    evaluate(config)
    one = read_json(config.json)["images"][name]
    assert (one["lost"], one["score"], one["rmse"], one["end_point_rms"]) == (0, None, None, None)


@pytest.mark.parametrize("subset", [False, True])
def test_predictions_that_about_json_does_not_list_are_not_scored_with_the_others(tmp_path, images, subset):
    config = write_images(tmp_path, images)
    config.subset = subset
    about = {"format": FORMAT, "settings": {}, "images": {"AAx0": {}, "BBx0": {}}}
    (Path(config.predictions) / "about.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"predictions of AAx1, AAx2, BBx1, BBx2, which its about.json does not list"):
        evaluate(config)


def test_with_subset_only_what_is_predicted_is_scored_and_the_table_says_so(tmp_path, images, capsys):
    config = write_images(tmp_path, images)
    config.subset = True
    for name in ("AAx1", "BBx0", "BBx2"):
        for suffix in ("AGL.tif", "VFLOW.json"):
            (tmp_path / "predicted" / f"{name}_{suffix}").unlink()
    reached = evaluate(config)
    assert (reached.cities["AA"].images, reached.cities["BB"].images) == (2, 1)
    assert "3 of the 6 images that have a truth" in capsys.readouterr().out
    (tmp_path / "predicted" / "AAx0_AGL.tif").unlink()  # half a prediction is no reason to leave it out
    with pytest.raises(UserError, match=r"AAx0_AGL\.tif does not exist"):
        evaluate(config)
    config.predictions = str(tmp_path / "out")
    with pytest.raises(UserError, match="predicts none of the 6 images"):
        evaluate(config)


def test_what_stands_above_the_ground_is_chosen(tmp_path, images):
    config = write_images(tmp_path, images)
    evaluate(config)
    two = read_json(config.json)["all"]["above"]
    config.above = 7.5
    evaluate(config)
    higher = read_json(config.json)["all"]["above"]
    truth = np.concatenate([image[0][image[0] != 65535] for image in images.values()])
    assert (two["from"], two["pixels"]) == (2, np.count_nonzero(truth >= 200))
    assert (higher["from"], higher["pixels"]) == (7.5, np.count_nonzero(truth >= 750))


def test_the_files_do_not_depend_on_strips_or_threads(tmp_path, images, monkeypatch):
    found = []
    for number, (strip, threads) in enumerate(((2**22, 1), (100, 4), (1, 2))):
        monkeypatch.setattr(folders, "_STRIP", strip)
        monkeypatch.setattr(evaluating, "cores", lambda count=threads: count)
        config = all_outputs(write_images(tmp_path, images, "m"), tmp_path / str(number))
        evaluate(config)
        found.append({path.name: path.read_bytes() for path in (tmp_path / str(number)).iterdir()})
    assert len(found[0]) == 4
    assert found[0] == found[1] == found[2]


def test_a_calibration_is_written_from_the_gsds_of_the_metadata(tmp_path, images):
    config = write_images(tmp_path, images)
    config.calibration = str(tmp_path / "new" / "c.json")
    evaluate(config)
    assert sorted(json.loads((tmp_path / "new" / "c.json").read_text())["cities"]) == ["AA", "BB"]
    (tmp_path / "metadata.csv").unlink()
    with pytest.raises(UserError, match=r"neither a metadata.csv .* nor .*about.json tells .*--calibration needs"):
        evaluate(config)


def test_without_metadata_a_calibration_takes_the_gsds_that_were_predicted_with(tmp_path, images):
    config = write_images(tmp_path, images)
    rows = (tmp_path / "metadata.csv").read_text().splitlines()[1:]
    gsds = {row.split(",")[0]: 0.5 + 0.01 * number for number, row in enumerate(rows)}
    told = "".join(f"{image},{image.partition('_')[0]},{gsd}\n" for image, gsd in gsds.items())
    (tmp_path / "metadata.csv").write_text("id,city,gsd\n" + told)
    config.calibration = str(tmp_path / "c.json")
    evaluate(config)
    with_metadata = (tmp_path / "c.json").read_text()
    (tmp_path / "metadata.csv").unlink()
    about = {"format": FORMAT, "settings": {}}
    about["images"] = {image: {"gsd": gsd} for image, gsd in gsds.items()}
    (Path(config.predictions) / "about.json").write_text(json.dumps(about))
    evaluate(config)
    assert (tmp_path / "c.json").read_text() == with_metadata
    for gsd in (None, "wide", -1.0):
        about["images"] = {image: {"gsd": gsd} for image in gsds}
        (Path(config.predictions) / "about.json").write_text(json.dumps(about))
        with pytest.raises(UserError, match="--calibration needs"):
            evaluate(config)


def test_two_outputs_of_one_name_are_refused_and_so_is_a_place_that_cannot_be_written_to(tmp_path, images):
    config = write_images(tmp_path, images)
    config.csv = config.json
    with pytest.raises(UserError, match="--json and --csv both name"):
        evaluate(config)
    (tmp_path / "file").write_text("")
    for option in ("csv", "markdown", "calibration"):
        config = write_images(tmp_path, images)
        setattr(config, option, str(tmp_path / "file" / "x"))
        with pytest.raises(UserError, match=f"--{option}"):
            evaluate(config)
    assert not (tmp_path / "out").exists()
