"""Studies: what their arms have in common, that they go on after a kill, and what is made of their results."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from agl_core.config import AugmentConfig, TrainConfig
from agl_core.errors import UserError
from agl_core.geometry import Pose
from agl_core.reporting.events import read_events
from agl_core.scoring.score import ImageResult
from agl_core.scoring.sums import ImageSums
from benchmarks import augmentation_study, loss_study
from benchmarks import study as engine
from benchmarks.mislabelling import wrong_labels
from benchmarks.study import Arm, Job, Study, figures, run_job, run_study
from benchmarks.study_figure import figure, points
from benchmarks.study_page import differences_table, figures_table, put_section, values, write_page
from jobs.settings import train_config

ROOT = Path(__file__).parent.parent.parent
SVG = "{http://www.w3.org/2000/svg}"
STUDIES: list[Callable[[bool], Study]] = [augmentation_study.study, loss_study.study]


def configs(study: Study) -> dict[str, TrainConfig]:
    return {arm.name: study.config(arm, 3, Path("out")) for arm in study.arms}


@pytest.mark.parametrize("make", STUDIES)
def test_the_arms_of_a_seed_differ_in_nothing_but_what_is_studied(make: Callable[[bool], Study]) -> None:
    same = []
    for config in configs(make(False)).values():
        plain = {name: replace(stage, augment=None, loss=None) for name, stage in config.stages.items()}  # type: ignore[arg-type]
        same.append(asdict(replace(config, stages=plain)))
    assert all(other == same[0] for other in same)
    assert (same[0]["seed"], same[0]["threads"], same[0]["precision"]) == (3, 1, "float32")


def test_the_heavy_arms_have_the_augmentation_of_the_reference_recipe() -> None:
    heavy = train_config({"recipe": "kbrodt"}).stages["pretrain"].augment
    found = {
        name: config.stages["pretrain"].augment for name, config in configs(augmentation_study.study(False)).items()
    }
    assert found == {
        "none": AugmentConfig(),
        "symmetries": train_config({"recipe": "demo"}).stages["train"].augment,
        "right": heavy,
        "wrong": heavy,
    }
    assert heavy.zoom
    assert heavy.rotate
    assert [arm.name for arm in augmentation_study.arms() if arm.inside is wrong_labels] == ["wrong"]


def test_every_arm_goes_on_from_its_last_weights_without_augmentation() -> None:
    for config in configs(augmentation_study.study(False)).values():
        assert list(config.stages) == ["pretrain", "finetune"]
        assert config.stages["finetune"].start == "pretrain/last"
        assert config.stages["finetune"].augment == AugmentConfig()


def test_the_losses_differ_and_the_average_is_scored_beside_the_raw_weights() -> None:
    study = loss_study.study(False)
    losses = [config.stages["train"].loss for config in configs(study).values()]
    assert [loss.agl_kind for loss in losses] == ["mse", "huber", "r2"]
    assert study.weights == ("last", "last-ema")
    assert all(config.stages["train"].ema for config in configs(study).values())


def quick(study: Study, *names: str) -> Study:
    return replace(study, arms=tuple(arm for arm in study.arms if arm.name in names))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of a tiny study."""
    out = tmp_path_factory.mktemp("study")
    engine._make_data(augmentation_study.study(True), out)
    return out


def copied(made: Path, out: Path) -> Path:
    """A folder with the same data."""
    out.mkdir()
    for name in ("world", "unseen"):
        (out / name).symlink_to(made / name)
    return out


def test_a_run_that_is_killed_between_two_steps_goes_on_to_the_same_result(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, parent = augmentation_study.study(True), os.getppid()
    whole, killed = (Job(study, copied(made, tmp_path / name), study.arms[3], 0) for name in ("whole", "killed"))
    run_job(whole, parent)

    calls: list[int] = []

    def gone() -> int:
        calls.append(0)
        return parent if len(calls) < 5 else 1  # after the first step of the second stage

    with monkeypatch.context() as patch:
        patch.setattr(os, "getppid", gone)
        with pytest.raises(SystemExit, match="ended"):
            run_job(killed, parent)
    assert not killed.result.exists()
    assert 0 < killed.steps_done() < killed.steps
    run_job(killed, parent)
    assert killed.result.read_bytes() == whole.result.read_bytes()
    starts = [event["stage"] for event in read_events(killed.run_dir / "events.jsonl") if event["kind"] == "start"]
    assert starts == ["pretrain", "finetune", "finetune"]
    assert killed.steps_done() == killed.steps == 6


def test_the_result_has_both_stages_all_figures_and_the_curve(made: Path, tmp_path: Path) -> None:
    study = augmentation_study.study(True)
    job = Job(study, copied(made, tmp_path / "out"), study.arms[0], 1)
    run_job(job, os.getppid())
    result = json.loads(job.result.read_text())
    assert (result["arm"], result["seed"], result["tiles"]) == ("none", 1, 4)
    assert result["stages"] == {"pretrain": 4, "finetune": 2}
    for stage in ("pretrain", "finetune"):
        found = result["figures"][stage]["last"]
        assert list(found) == ["score", "agl_r2", "vflow_r2", "angle_error", "scale_error", "agl_rmse"]
        assert math.isclose(found["score"], (found["agl_r2"] + found["vflow_r2"]) / 2)
    assert result["figures"]["pretrain"] != result["figures"]["finetune"]
    assert [step for step, _ in points(result)] == [1, 2, 3, 4, 5, 6]


def test_the_average_of_the_weights_is_scored_by_itself(made: Path, tmp_path: Path) -> None:
    study = loss_study.study(True)
    job = Job(study, copied(made, tmp_path / "out"), study.arms[2], 0)
    run_job(job, os.getppid())
    found = json.loads(job.result.read_text())["figures"]["train"]
    assert list(found) == ["last", "last-ema"]
    assert found["last"] != found["last-ema"]


def test_places_that_are_scored_are_in_no_fold(made: Path) -> None:
    tables = [(made / name / "geopose_train.csv").read_text().splitlines()[1:] for name in ("world", "unseen")]
    places = dict(line.split(",")[::3] for line in (made / "world" / "metadata.csv").read_text().splitlines()[1:])
    trained, unseen = ({places[row.split(",")[0]] for row in table} for table in tables)
    assert trained
    assert unseen
    assert not trained & unseen


def test_all_arms_of_a_seed_are_run_before_the_next_seed_and_finished_ones_are_left_out(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, asked = copied(made, tmp_path / "out"), []

    def instead(jobs: list[Job], todo: list[Job], processes: int) -> None:
        asked.append([job.name for job in todo])
        for job in todo:
            job.result.parent.mkdir(exist_ok=True)
            job.result.write_text(json.dumps({"name": job.name}))

    monkeypatch.setattr(engine, "_run_all", instead)
    study = quick(augmentation_study.study(True), "none", "wrong")
    assert [result["name"] for result in run_study(study, out, 1, 2)] == ["none-0", "wrong-0"]
    assert [result["name"] for result in run_study(study, out, 2, 2)] == ["none-0", "wrong-0", "none-1", "wrong-1"]
    assert asked == [["none-0", "wrong-0"], ["none-1", "wrong-1"]]


def test_a_folder_of_other_settings_is_refused(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_run_all", lambda *_: None)
    out, study = copied(made, tmp_path / "out"), augmentation_study.study(True)
    engine._claim(study, out)
    other = replace(study, arms=(Arm("none", "another", {"encoder": "resnet18"}), *study.arms[1:]))
    with pytest.raises(UserError, match="study of other settings: choose another folder with --out"):
        run_study(other, out, 1, 1)


def test_figures_are_medians_over_tiles_and_means_over_cities() -> None:
    # Two tiles of 4 pixels: heights 0, 0, 200, 200 cm, the second city's predicted 100 cm too high everywhere.
    exact, off = ImageSums(4, 400, 80_000, 80_000, 80_000), ImageSums(4, 400, 80_000, 200_000, 120_000)
    truth = Pose(2.0, 0.1)
    found = figures([
        ImageResult("a", "AAA", exact, truth, Pose(2.0, 0.1)),
        ImageResult("b", "BBB", off, truth, Pose(3.0, 2 * math.pi - 0.1)),
    ])  # fmt: skip
    assert math.isclose(found["agl_rmse"], math.sqrt(4 / 8))
    assert math.isclose(found["agl_r2"], (1 + 0) / 2, abs_tol=1e-3)
    assert math.isclose(found["angle_error"], math.degrees(0.1))  # the median of 0 and 0.2
    assert math.isclose(found["scale_error"], 0.25)  # the median of 0 and a half
    assert math.isclose(found["score"], (found["agl_r2"] + found["vflow_r2"]) / 2)


def results(study: Study, seeds: int = 2) -> list[dict[str, Any]]:
    """Made up: the score is arm / 10 + seed / 100 + stage / 1000."""
    made_up = []
    for seed in range(seeds):
        for number, arm in enumerate(study.arms):
            scored = {
                stage: {"last": dict.fromkeys(figures_names(), number / 10 + seed / 100 + place / 1000)}
                for place, stage in enumerate(("pretrain", "finetune"))
            }
            curve = {"pretrain": [[2, 0.1], [4, 0.2 + seed / 10]], "finetune": [[1, 0.3], [2, 0.35]]}
            about = {"arm": arm.name, "seed": seed, "stages": {"pretrain": 4, "finetune": 2}, "tiles": 4}
            made_up.append({**about, "figures": scored, "curve": curve})
    return made_up


def figures_names() -> list[str]:
    return ["score", "agl_r2", "vflow_r2", "angle_error", "scale_error", "agl_rmse"]


def test_tables_show_mean_and_spread_and_differences_within_a_seed() -> None:
    study = augmentation_study.study(True)
    found = results(study)
    assert values(found, "right", "finetune", "last", "score") == pytest.approx({0: 0.201, 1: 0.211})
    table = figures_table(study, found, "finetune")
    assert table.rows[2][:2] == ["heavy, right labels", "0.206 (0.201 to 0.211)"]
    assert table.rows[2][5] == "20.6 (20.1 to 21.1)"  # per cent
    apart = differences_table(study, found, "pretrain")
    row = next(row for row in apart.rows if row[0] == "heavy, wrong labels - no augmentation")
    assert row[1:3] == ["+0.300, +0.300", "+0.300"]


def test_an_arm_with_fewer_seeds_is_compared_on_those_that_it_has() -> None:
    study = augmentation_study.study(True)
    found = [result for result in results(study) if result["arm"] != "symmetries" or result["seed"] == 0]
    table = figures_table(study, found, "finetune")
    assert [row[0] for row in table.rows if "one seed" in row[0]] == ["exact symmetries (one seed)"]
    apart = differences_table(study, found, "pretrain")
    row = next(row for row in apart.rows if row[0] == "exact symmetries - no augmentation")
    assert row[1:3] == ["+0.100", "+0.100"]


def test_an_arm_runs_no_more_seeds_than_it_is_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def run_all(jobs: Sequence[engine.Job], *_: Any) -> None:
        for job in jobs:
            asked.append(job.name)
            job.result.parent.mkdir(exist_ok=True)
            job.result.write_text("{}")

    monkeypatch.setattr(engine, "_make_data", lambda *_: None)
    monkeypatch.setattr(engine, "_run_all", run_all)
    run_study(augmentation_study.study(True), tmp_path, 2, 1)
    assert asked == ["none-0", "symmetries-0", "right-0", "wrong-0", "none-1", "right-1", "wrong-1"]


def test_the_page_keeps_what_was_written_by_hand(tmp_path: Path) -> None:
    study, page = augmentation_study.study(True), tmp_path / "page.md"
    write_page(page, study, results(study))
    first = page.read_text()
    page.write_text(first.replace("# Augmentation study", "# By hand") + "\nConclusion.\n")
    by_hand = page.read_text()
    write_page(page, study, results(study))
    assert page.read_text() == by_hand
    write_page(page, study, results(study, seeds=3))
    text = page.read_text()
    assert text.startswith("# By hand")
    assert text.endswith("Conclusion.\n")
    assert "mean of 3 seeds" in text
    assert "mean of 2 seeds" not in text
    assert (tmp_path / "augmentation-study.svg").is_file()


def test_sections_of_two_studies_stand_beside_each_other_and_a_torn_one_is_refused() -> None:
    text = put_section(put_section("# Head\n", "one", "first"), "two", "second")
    again = put_section(text, "one", "third")
    assert "first" not in again
    assert again.index("third") < again.index("second")
    with pytest.raises(UserError, match="without"):
        put_section(text.replace("<!-- one: to here -->", ""), "one", "third")


def test_the_figure_has_a_line_for_each_run_and_arm_and_a_dot_for_each_score() -> None:
    study = augmentation_study.study(True)
    tree = ElementTree.fromstring(figure(study, results(study)))
    lines = tree.findall(f"{SVG}polyline")
    assert len(lines) == 4 * (2 + 1)
    assert len({line.get("stroke") for line in lines}) == 4
    assert len(tree.findall(f"{SVG}circle")) == 4 * 2 * 2
    words = [element.text for element in tree.iter(f"{SVG}text")]
    assert {arm.title for arm in study.arms} <= set(words)
    # The mean of the seeds at the end of the first stage, 0.25, lies between their 0.2 and 0.3.
    heights = [float(str(line.get("points")).split()[1].split(",")[1]) for line in lines[:3]]
    assert heights[2] == pytest.approx((heights[0] + heights[1]) / 2, abs=0.1)


def run(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_the_script_runs_a_quick_study_to_its_page(tmp_path: Path) -> None:
    command = ["-m", "benchmarks.augmentation_study", "--quick", "--seeds", "1", "--out", "out", "--page", "page.md"]
    printed = run(command, tmp_path)
    assert "4 of 4 runs, 24 of 24 steps" in printed
    assert "heavy, wrong labels - heavy, right labels" in printed
    assert "Learning curves" in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize("script", ["augmentation_study", "loss_study"])
def test_studies_can_be_run_as_files(script: str, tmp_path: Path) -> None:
    assert "usage" in run([str(ROOT / "benchmarks" / f"{script}.py"), "--help"], tmp_path)


def test_bad_values_are_refused_before_anything_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, words in ((["--seeds", "0"], "--seeds is 0"), (["--page", "no/page.md"], "does not exist")):
        with pytest.raises(SystemExit):
            loss_study.main(["--out", str(tmp_path / "out"), *more])
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
