"""The verb `predict`: a run's weights and a split's images become files that `evaluate` accepts."""

import json
import os
import signal
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from rasterio.crs import CRS

from agl_core.config import EvaluateConfig, PredictConfig
from agl_core.data.georeference import Georeference
from agl_core.data.tiles import read_agl, read_rgb, read_vflow, write_agl, write_rgb, write_vflow
from agl_core.durable.exits import InterruptedRunError
from agl_core.durable.guard import Guard
from agl_core.errors import UserError
from agl_core.geometry import Pose
from agl_core.inference import pipeline
from agl_core.inference import predict as predict_module
from agl_core.inference.folder import read_folder
from agl_core.inference.predict import find_weights, max_agl, predict, trained_precision, trained_tta
from agl_core.inference.predictor import Predictor
from agl_core.inference.source import RasterSource
from agl_core.scoring.evaluate import evaluate
from agl_core.scoring.score import ImageResult, score
from agl_core.scoring.sums import image_sums
from tests.data.test_georeference import rpcs
from tests.inference.fakes import AnswerNet, PointwiseNet, SurroundingsNet

IDS = ["A_c", "A_a", "B_b"]


def write_run(runs, name="first", stages=("pretrain", "finetune"), weights=("pretrain/best", "pretrain/last")):
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("stages:\n" + "".join(f"  {stage}: {{crop: 64}}\n" for stage in stages))
    for file in weights:
        path = folder / "weights" / f"{file}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file)


@pytest.fixture
def config(tmp_path):
    """A run and a data set of three test images of different sizes, with truth."""
    rng = np.random.default_rng(0)
    write_run(tmp_path / "runs")
    data = tmp_path / "data"
    for folder in ("test", "test_truth"):
        (data / folder).mkdir(parents=True)
    for i, image in enumerate(IDS):
        rgb = rng.integers(0, 250, (40 + i, 70, 3)).astype(np.uint8)
        write_rgb(data / "test" / f"{image}_RGB.tif", rgb)
        truth = rgb[..., 0].astype(np.uint16) * 10
        truth[:3] = 65535
        write_agl(data / "test_truth" / f"{image}_AGL.tif", truth, "cm")
        write_vflow(data / "test_truth" / f"{image}_VFLOW.json", Pose(0.7, 1.0), "cm")
    (data / "geopose_test.csv").write_text("id,rgb\n" + "".join(f"{image},{image}_RGB.tif\n" for image in IDS))
    (data / "metadata.csv").write_text("id,city,gsd\n" + "".join(f"{image},{image[0]},0.5\n" for image in IDS))
    return PredictConfig(run="first", runs=str(tmp_path / "runs"), data=str(data), out=str(tmp_path / "out"))


@pytest.fixture
def load(monkeypatch):
    """Lets `predict` load the given model instead of weights; returns the paths it was asked for."""
    asked = []

    def use(model, metadata=None):
        def load_members(members):
            asked.extend(member.path for member in members)
            known = metadata if metadata is not None else {"config": {"max_agl": {"default": 200.0}}}
            return [model] * len(members), [known] * len(members)

        monkeypatch.setattr(predict_module, "load_members", load_members)
        return asked

    return use


def written(config):
    return sorted(path.name for path in Path(config.out).iterdir() if path.name != "about.json")


def test_every_image_of_the_split_becomes_two_files(config, load, capsys):
    asked = load(PointwiseNet())
    predict(config)
    assert written(config) == sorted(f"{image}_{kind}" for image in IDS for kind in ("AGL.tif", "VFLOW.json"))
    out, data = Path(config.out), Path(config.data)
    for image in IDS:
        rgb = read_rgb(data / "test" / f"{image}_RGB.tif")
        np.testing.assert_array_equal(read_agl(out / f"{image}_AGL.tif", "cm"), np.rint(rgb.mean(2) * 10))
        assert read_vflow(out / f"{image}_VFLOW.json", "cm").scale == pytest.approx(0.5)
    assert [path.parent.name for path in asked] == ["pretrain"]
    assert json.loads((out / "about.json").read_text())["by"].startswith("first, pretrain/best")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("3 images")
    assert "first, pretrain/best (finetune has none yet)" in last
    assert last.endswith(config.out)


def test_the_score_from_disk_is_the_score_in_memory(config, load, tmp_path):
    model = SurroundingsNet()
    load(model)
    predict(config)
    truth = tmp_path / "data" / "test_truth"
    from_disk = evaluate(EvaluateConfig(predictions=config.out, truth=str(truth)))
    predictor = Predictor(model, {"default": 200.0})
    results = []
    for image in IDS:
        prediction = predictor.predict(read_rgb(tmp_path / "data" / "test" / f"{image}_RGB.tif"), image[0], 0.5)
        sums = image_sums(read_agl(truth / f"{image}_AGL.tif", "cm"), prediction.agl_cm)
        true = read_vflow(truth / f"{image}_VFLOW.json", "cm")
        results.append(ImageResult(image, image[0], sums, true, prediction.pose))
    assert score(results).score == pytest.approx(from_disk.score, abs=1e-12)


def test_windows_threads_and_metres_are_options(config, load, tmp_path):
    threads = []

    class CountingNet(PointwiseNet):
        def forward(self, image, city, gsd):
            threads.append(torch.get_num_threads())
            return super().forward(image, city, gsd)

    model = CountingNet()
    load(model)
    before = torch.get_num_threads()
    config.window, config.overlap, config.unit, config.threads = 64, 32, "m", before + 1
    predict(config)
    assert {shape for shape, *_ in model.seen} == {(64, 64)}
    assert set(threads) == {before + 1}
    rgb = read_rgb(tmp_path / "data" / "test" / "A_a_RGB.tif")
    np.testing.assert_array_equal(read_agl(tmp_path / "out" / "A_a_AGL.tif", "m"), np.rint(rgb.mean(2) * 10))
    assert torch.get_num_threads() == before


def test_heights_end_where_the_weights_say(config, load, tmp_path):
    load(AnswerNet(150.0), {"config": {"max_agl": {"default": 90.0, "B": 40.0}}})
    predict(config)
    highest = {image: read_agl(tmp_path / "out" / f"{image}_AGL.tif", "cm").max() for image in IDS}
    assert highest == {"A_a": 9000, "A_c": 9000, "B_b": 4000}
    assert max_agl({})["default"] == 200.0


@pytest.mark.parametrize(
    ("given", "trained", "used"),
    [
        ("auto", {"precision": "bfloat16"}, torch.bfloat16),
        ("auto", {"precision": "auto"}, torch.float32),
        ("auto", {"precision": "float16"}, torch.float32),  # which a CPU has not
        ("auto", {}, torch.float32),
        ("float32", {"precision": "bfloat16"}, torch.float32),
    ],
)
def test_the_precision_is_that_of_the_training_run_unless_another_is_asked_for(
    config, load, monkeypatch, given, trained, used
):
    seen = []

    class LinearNet(PointwiseNet):
        def forward(self, image, city, gsd):
            seen.append(torch.nn.functional.linear(torch.ones(1, 2), torch.ones(1, 2)).dtype)
            return super().forward(image, city, gsd)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    load(LinearNet(), {"config": trained})
    config.precision = given
    predict(config)
    assert set(seen) == {used}


def test_a_gpu_predicts_in_the_float16_of_training():
    assert trained_precision({"config": {"precision": "float16"}}, torch.device("cuda")) == "float16"


@pytest.mark.parametrize(
    ("given", "trained", "passes"),
    [("auto", {"tta": "d4"}, 8), ("auto", {"tta": "none"}, 1), ("auto", {}, 1), ("none", {"tta": "d4"}, 1),
     ("d4", {}, 8)],
)  # fmt: skip
def test_the_test_time_augmentation_is_that_of_the_training_run_unless_another_is_asked_for(
    config, load, given, trained, passes
):
    model = PointwiseNet()
    load(model, {"config": trained})
    config.tta = given
    predict(config)
    assert len(model.seen) == passes * len(IDS)
    assert trained_tta({}) == "none"  # of a file without its configuration


def test_each_member_has_the_test_time_augmentation_of_its_own_training(config, monkeypatch):
    models = [PointwiseNet(), PointwiseNet()]
    metadata = [{"config": {"tta": "flips"}}, {"config": {"tta": "none"}}]
    monkeypatch.setattr(predict_module, "load_members", lambda members: (models, metadata))
    config.weights = "pretrain/best,pretrain/last"
    predict(config)
    assert [len(model.seen) for model in models] == [4 * len(IDS), len(IDS)]
    assert json.loads((Path(config.out) / "about.json").read_text())["settings"]["tta"] == ["flips", "none"]


@pytest.mark.parametrize("key", ["max_agl", "height_factor"])
def test_keys_for_a_city_of_neither_weights_nor_images_are_refused(config, load, key):
    load(PointwiseNet(cities=("A", "B", "C")))
    setattr(config, key, {"A": 1.0, "C": 1.0, "default": 1.0})
    predict(config)
    setattr(config, key, {"A": 1.0, "AA": 1.0})
    with pytest.raises(UserError, match=rf"^{key}.AA is given, but .* no?.*city 'AA': give it for one of A, B, C, or"):
        predict(config)
    load(PointwiseNet(cities=("X",), use_city=False), {"config": {"max_agl": {"default": 9.0, "OLD": 9.0}}})
    setattr(config, key, {"B": 1.0, "X": 1.0})  # a city of the images, and one of the weights
    predict(config)


def test_predictions_of_another_test_time_augmentation_are_not_kept(config, load):
    model = PointwiseNet()
    load(model)
    for tta, passes in (("none", 1), ("auto", 0), ("d4", 8), ("d4", 0), ("none", 1)):
        model.seen.clear()
        config.tta = tta
        predict(config)
        assert len(model.seen) == passes * len(IDS), tta


def test_a_weights_file_needs_no_run(config, load, tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_text("")
    asked = load(PointwiseNet())
    config.run, config.runs, config.weights = "", "nowhere", str(path)
    predict(config)
    assert asked == [path]
    assert len(written(config)) == 2 * len(IDS)


def test_a_city_that_the_model_does_not_know_is_refused_before_any_work(config, load, tmp_path):
    model = PointwiseNet(cities=("A",))
    load(model)
    with pytest.raises(UserError, match="does not know city 'B'"):
        predict(config)
    assert model.seen == []
    assert not (tmp_path / "out").exists()


def test_an_image_that_cannot_be_read_is_named_and_its_earlier_prediction_is_void(config, load, tmp_path):
    load(PointwiseNet())
    predict(config)
    (tmp_path / "data" / "test" / "A_c_RGB.tif").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"A_c_RGB.tif cannot be read"):
        predict(config)
    names = written(config)
    assert "A_a_VFLOW.json" in names
    assert "A_c_VFLOW.json" not in names
    with pytest.raises(UserError, match=r"A_c_VFLOW.json does not exist"):
        evaluate(EvaluateConfig(predictions=config.out, truth=str(tmp_path / "data" / "test_truth")))


def test_all_images_that_cannot_be_read_are_named_when_the_others_are_predicted(config, load, tmp_path):
    load(PointwiseNet())
    for name in ("A_a", "A_c"):
        (tmp_path / "data" / "test" / f"{name}_RGB.tif").write_bytes(b"broken")
    for _ in range(2):
        with pytest.raises(UserError, match=r"(?s)2 images cannot be predicted.*A_a_RGB.tif.*A_c_RGB.tif"):
            predict(config)
        done = {name.removesuffix("_VFLOW.json") for name in written(config) if name.endswith("_VFLOW.json")}
        assert done == set(IDS) - {"A_a", "A_c"}


def test_an_answer_that_is_not_a_number_names_the_image(config, load, tmp_path):
    load(AnswerNet(float("nan")))
    with pytest.raises(UserError, match=r"image A_a: .*not finite"):
        predict(config)
    assert written(config) == []


def test_a_folder_that_cannot_be_written_to_is_refused_before_any_image(config, load, tmp_path):
    model = PointwiseNet()
    load(model)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="--out"):
        predict(config)
    assert model.seen == []


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"threads": 0}, "threads is 0"),
        ({"unit": "km"}, "choose one of auto, cm, m"),
        ({"split": "val"}, "choose one of test, train"),
        ({"window": 50}, "multiple of 32"),
        ({"precision": "int8"}, "choose one of auto, float32"),
        ({"tta": "d8"}, "choose one of auto, none, flips, d4"),
        ({"data": "nowhere"}, "nowhere"),
    ],
)
def test_a_wrong_option_is_refused_with_nothing_written(config, load, tmp_path, change, answer):
    load(PointwiseNet())
    for key, value in change.items():
        setattr(config, key, value)
    with pytest.raises(UserError, match=answer):
        predict(config)
    assert not (tmp_path / "out").exists()


def test_best_and_last_are_those_of_the_last_stage_that_has_them(tmp_path):
    write_run(tmp_path, weights=["pretrain/best", "finetune/last"])
    write_run(tmp_path, "done", weights=["pretrain/best", "finetune/best"])
    assert find_weights(tmp_path, "first", "best").path.read_text() == "pretrain/best"
    assert find_weights(tmp_path, "first", "last").path.read_text() == "finetune/last"
    assert find_weights(tmp_path, "done", "best").path.read_text() == "finetune/best"
    assert "yet" not in find_weights(tmp_path, "done", "best").name
    assert find_weights(tmp_path, "done", "pretrain/best").path.read_text() == "pretrain/best"


def test_the_average_is_that_of_the_last_stage_that_has_one(tmp_path):
    write_run(tmp_path, weights=["pretrain/last-ema", "pretrain/last", "finetune/last"])
    found = find_weights(tmp_path, "first", "last-ema")
    assert found.path.read_text() == "pretrain/last-ema"
    assert found.name == "first, pretrain/last-ema (finetune has none)"
    assert find_weights(tmp_path, "first", "pretrain/last-ema").path == found.path
    with pytest.raises(UserError, match=r"no weights 'finetune/last-ema' yet: it has .*pretrain/last-ema"):
        find_weights(tmp_path, "first", "finetune/last-ema")


def test_stages_count_in_the_order_of_the_configuration(tmp_path):
    write_run(tmp_path, stages=("z", "a"), weights=["a/best", "z/best"])
    assert find_weights(tmp_path, "first", "best").path.read_text() == "a/best"


def test_a_path_is_used_as_it_is_without_a_run(tmp_path):
    path = tmp_path / "mine.safetensors"
    with pytest.raises(UserError, match=r"mine.safetensors do not exist"):
        find_weights(tmp_path, "", str(path))
    path.write_text("")
    assert find_weights(tmp_path, "", str(path)).path == path


@pytest.mark.parametrize(
    ("run", "weights", "answer"),
    [
        ("second", "best", "no run 'second' in .*: it has first, other"),
        ("", "best", "it has first, other"),
        ("first", "newest", "choose one of best, last, last-ema"),
        ("first", "warmup/best", "choose one of pretrain, finetune"),
        ("first", "finetune/best", "no weights 'finetune/best' yet: it has weights/pretrain/best.safetensors"),
        ("other", "best", "it has none"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(tmp_path, run, weights, answer):
    write_run(tmp_path)
    write_run(tmp_path, "other", weights=[])
    with pytest.raises(UserError, match=answer):
        find_weights(tmp_path, run, weights)


@pytest.mark.parametrize("content", ["stages: [", "seed: 1", "- a list"])
def test_a_damaged_configuration_of_a_run_is_named(tmp_path, content):
    write_run(tmp_path)
    (tmp_path / "first" / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"config.yaml"):
        find_weights(tmp_path, "first", "best")


class WarnedNet(PointwiseNet):
    """A signal comes while the `at`-th image is being predicted."""

    def __init__(self, at):
        super().__init__()
        self.at, self.guard = at, Guard.off()

    def forward(self, image, city, gsd):
        answer = super().forward(image, city, gsd)
        if len(self.seen) == self.at:
            self.guard._received.append((signal.SIGTERM, 0.0))
        return answer


def interrupted(config, load, at=1):
    """Predict until a signal comes during the `at`-th image."""
    model = WarnedNet(at)
    load(model)
    with pytest.raises(InterruptedRunError) as left:
        predict(config, model.guard)
    return left.value


def content(config):
    return {name: (Path(config.out) / name).read_bytes() for name in written(config)}


def test_a_signal_ends_it_between_two_images_and_says_how_many_are_done(config, load):
    left = interrupted(config, load, at=2)
    assert left.signal == "TERM"
    assert str(left) == "interrupted by TERM; 2 of 3 images are predicted"
    assert len(written(config)) == 4  # in pairs: each image is whole


def test_an_interrupted_prediction_continues_and_ends_as_an_undisturbed_one(config, load, capsys):
    interrupted(config, load)
    first = content(config)
    model = PointwiseNet()
    load(model)
    assert predict(config) == 3
    assert len(model.seen) == 2
    assert "3 images" in capsys.readouterr().out
    assert first.items() < content(config).items()
    whole = replace(config, out=f"{config.out}2")
    load(PointwiseNet())
    predict(whole)
    assert content(config) == content(whole)


def test_a_signal_during_the_last_image_comes_too_late(config, load):
    model = WarnedNet(3)
    load(model)
    assert predict(config, model.guard) == 3


def other_weights(config):
    path = Path(config.runs) / "first" / "weights" / "pretrain" / "best.safetensors"
    path.write_text("trained on")
    return config


def other_gsd(config):
    path = Path(config.data) / "metadata.csv"
    path.write_text(path.read_text().replace("0.5", "0.4"))
    return config


OTHERS = {
    "weights": other_weights,
    "unit": lambda config: replace(config, unit="m"),
    "window": lambda config: replace(config, window=64, overlap=32),
    "precision": lambda config: replace(config, precision="bfloat16"),
    "gsd": other_gsd,
    "about.json is torn": lambda config: (Path(config.out) / "about.json").write_text("{") and config,
}


@pytest.mark.parametrize("change", OTHERS)
def test_predictions_made_in_another_way_are_all_made_again(config, load, change):
    interrupted(config, load)
    model = PointwiseNet()
    load(model)
    predict(OTHERS[change](config))
    assert {round(gsd[0], 3) for *_, gsd in model.seen} == {0.4 if change == "gsd" else 0.5}
    assert len(model.seen) == (6 if change == "window" else 3)


def test_predictions_whose_about_json_is_gone_are_not_replaced(config, load):
    interrupted(config, load)
    (Path(config.out) / "about.json").unlink()
    before = content(config)
    with pytest.raises(UserError, match="is there already"):
        predict(config)
    assert content(config) == before


def test_the_truth_is_not_replaced_by_predictions(config, load, tmp_path):
    load(PointwiseNet())
    truth = Path(config.data) / "test_truth"
    before = {path.name: path.read_bytes() for path in truth.iterdir()}
    with pytest.raises(UserError, match=r"test_truth/A_\w_\w+.\w+ is there already, .* --out") as refused:
        predict(replace(config, out=str(truth)))
    assert "\n" not in str(refused.value)
    assert {path.name: path.read_bytes() for path in truth.iterdir()} == before


def test_only_an_image_that_has_changed_is_predicted_again(config, load):
    load(PointwiseNet())
    predict(config)
    before = content(config)
    path = Path(config.data) / "test" / "A_c_RGB.tif"
    write_rgb(path, 255 - read_rgb(path))
    model = PointwiseNet()
    load(model)
    predict(config)
    assert len(model.seen) == 1
    assert {name for name, data in content(config).items() if before[name] != data} == {"A_c_AGL.tif"}


def test_a_prediction_of_which_half_is_gone_is_made_again(config, load):
    load(PointwiseNet())
    predict(config)
    (Path(config.out) / "A_a_AGL.tif").unlink()
    (Path(config.out) / "B_b_VFLOW.json").unlink()
    model = PointwiseNet()
    load(model)
    predict(config)
    assert len(model.seen) == 2
    assert len(written(config)) == 6


def test_windows_are_chosen_for_the_memory_of_the_machine_that_began(config, load, monkeypatch):
    load(AnswerNet(5.0))
    predict(config)
    first = json.loads((Path(config.out) / "about.json").read_text())["memory"]
    seen = []
    monkeypatch.setattr("agl_core.inference.plan.device_memory", lambda device, processes: 10 * first)
    monkeypatch.setattr(Predictor, "use_memory", lambda self, memory: seen.append((self.memory, memory)))
    predict(config)
    assert seen == [(10 * first, first)]
    assert json.loads((Path(config.out) / "about.json").read_text())["memory"] == first
    predict(replace(config, window=0))
    assert len(seen) == 1


def test_predictions_of_images_that_are_not_asked_for_now_stay_and_are_still_known(config, load):
    load(PointwiseNet())
    predict(config)
    table = Path(config.data) / "geopose_test.csv"
    whole = table.read_text()
    table.write_text("\n".join(whole.splitlines()[:2]) + "\n")
    model = PointwiseNet()
    load(model)
    assert predict(config) == 1
    table.write_text(whole)
    assert predict(config) == 3
    assert model.seen == []


# ---- single images


def write_image(path, rgb, place=None, bands=None, **options):
    """A GeoTIFF of its own; `bands` beside the three."""
    every = np.concatenate([rgb.transpose(2, 0, 1), *([bands[None]] if bands is not None else [])])
    options |= place.profile() if place is not None else {}
    with rasterio.open(
        path, "w", driver="GTiff", height=rgb.shape[0], width=rgb.shape[1], count=len(every), dtype="uint8", **options
    ) as file:
        file.write(every)
    return path


@pytest.fixture
def rgb():
    return np.random.default_rng(1).integers(0, 250, (150, 130, 3)).astype(np.uint8)


def single(config, path, **options):
    return replace(config, data="", images=str(path), **options)


PLACES = {
    "map": Georeference(CRS.from_epsg(32617), Affine(0.5, 0, 4e5, 0, -0.5, 3e6)),
    "camera": Georeference(rpcs=rpcs(0.5)),
}


@pytest.mark.parametrize("format", ["tif", "cog"])
@pytest.mark.parametrize("where", PLACES)
def test_a_single_image_keeps_its_place_on_earth(config, load, tmp_path, rgb, where, format):
    model = PointwiseNet()
    load(model)
    place = PLACES[where]
    path = write_image(tmp_path / "x.tif", rgb, place)
    assert predict(single(config, path, city="A", format=format)) == 1
    assert written(config) == ["x_AGL.tif", "x_VFLOW.json"]
    with rasterio.open(tmp_path / "out" / "x_AGL.tif") as file:
        np.testing.assert_array_equal(file.read(1), (np.rint(rgb.mean(2) * 10) / 100).astype(np.float32))
        assert file.crs == place.crs
        if where == "map":
            assert file.transform == place.transform
        else:
            assert file.rpcs.long_off == pytest.approx(place.rpcs.long_off, rel=1e-12)
            assert file.rpcs.line_num_coeff == place.rpcs.line_num_coeff
    assert model.seen[0][2] == [pytest.approx(0.5, rel=1e-3)]  # the gsd is that of the georeference
    (image,) = read_folder(tmp_path / "out")
    assert (image.rgb, image.city, image.unit) == (path, "A", "m")
    assert image.gsd == pytest.approx(0.5, rel=1e-3)
    np.testing.assert_array_equal(image.read_rgb(), rgb)


@pytest.mark.parametrize("unit", ["m", "cm"])
def test_heights_are_unknown_where_a_single_image_shows_nothing(config, load, tmp_path, rgb, unit):
    load(PointwiseNet())
    alpha = np.full(rgb.shape[:2], 255, np.uint8)
    alpha[:9, 3:7] = 0
    write_image(tmp_path / "x.tif", rgb, bands=alpha, alpha="yes")
    predict(single(config, tmp_path / "x.tif", city="A", gsd=0.5, unit=unit))
    agl_cm = read_agl(tmp_path / "out" / "x_AGL.tif", unit)
    np.testing.assert_array_equal(agl_cm == 65535, alpha == 0)
    with rasterio.open(tmp_path / "out" / "x_AGL.tif") as file:
        corner = file.read(1)[0, 3]
        assert np.isnan(corner) if unit == "m" else corner == 65535
        assert file.read_masks(1)[0, 3] == 0


def test_every_pixel_of_a_data_set_is_predicted_whatever_its_files_say_of_nodata(config, load):
    load(PointwiseNet())
    path = Path(config.data) / "test" / "A_a_RGB.tif"
    rgb = read_rgb(path)
    rgb[:5] = 0
    write_image(path, rgb, nodata=0)
    predict(config)
    assert read_agl(Path(config.out) / "A_a_AGL.tif", "cm").max() < 65535


@pytest.mark.parametrize("spread", [False, True])
def test_a_scene_that_is_read_in_windows_is_predicted_as_one_in_memory(
    config, load, tmp_path, rgb, monkeypatch, spread
):
    load(SurroundingsNet())
    write_image(tmp_path / "x.tif", rgb, PLACES["map"], nodata=7)
    options = {"city": "A", "window": 64, "overlap": 32, "tta": "d4", "uncertainty": spread}
    predict(single(config, tmp_path / "x.tif", **options))
    whole = config.out
    config.out = f"{whole}-scene"
    monkeypatch.setattr(pipeline, "LARGE", 0)
    monkeypatch.setattr(pipeline, "SCENE", 0)
    monkeypatch.setattr(RasterSource, "read", bounded(RasterSource.read))
    predict(single(config, tmp_path / "x.tif", **options))
    assert sorted(os.listdir(whole)) == sorted(os.listdir(config.out))
    for kind in ["AGL", "SPREAD"] if spread else ["AGL"]:
        one, other = (read_agl(Path(out) / f"x_{kind}.tif", "m") for out in (whole, config.out))
        np.testing.assert_array_equal(one, other)
    assert (Path(whole) / "x_VFLOW.json").read_bytes() == (Path(config.out) / "x_VFLOW.json").read_bytes()
    with rasterio.open(Path(config.out) / "x_AGL.tif") as file:
        assert (file.crs, file.transform) == (PLACES["map"].crs, PLACES["map"].transform)
        assert file.block_shapes == [(512, 512)]
        assert np.isnan(file.nodata)


def bounded(read):
    def read_a_window(self, top, left, height, width):
        assert height <= 64 and width <= 64  # noqa: PT018
        return read(self, top, left, height, width)

    return read_a_window


def test_a_large_image_is_predicted_on_its_own_and_like_the_others(config, load, monkeypatch):
    load(PointwiseNet())
    predict(config)
    before = content(config)
    config.out = f"{config.out}-large"
    monkeypatch.setattr(pipeline, "LARGE", 41 * 70)
    predict(config)
    assert content(config) == before


def test_spread_quick_look_and_archive_are_written_when_asked_for(config, load, tmp_path):
    load(PointwiseNet())
    config = replace(config, tta="flips", uncertainty=True, quicklook=True, archive=str(tmp_path / "s.tar.gz"))
    predict(config)
    kinds = ("AGL.tif", "LOOK.png", "SPREAD.tif", "VFLOW.json")
    assert written(config) == sorted(f"{image}_{kind}" for image in IDS for kind in kinds)
    with tarfile.open(tmp_path / "s.tar.gz") as tar:
        assert tar.getnames() == sorted(f"{image}_{kind}" for image in IDS for kind in ("AGL.tif", "VFLOW.json"))
    (Path(config.out) / "A_c_LOOK.png").unlink()
    before = written(config)
    predict(config)
    assert set(written(config)) - set(before) == {"A_c_LOOK.png"}


def test_several_members_predict_together(config, monkeypatch, tmp_path):
    paths = [tmp_path / f"{name}.safetensors" for name in "xy"]
    for path in paths:
        path.write_text(path.name)
    models = [AnswerNet(10.0), AnswerNet(40.0)]
    known = [{"config": {"max_agl": {"default": 200.0}}}] * 2
    monkeypatch.setattr(predict_module, "load_members", lambda members: (models, known))
    config = replace(config, run="", weights=",".join(map(str, paths)), member_weights="2,1", uncertainty=True)
    predict(config)
    assert np.unique(read_agl(tmp_path / "out" / "A_a_AGL.tif", "cm")).tolist() == [2000]
    assert np.unique(read_agl(tmp_path / "out" / "A_a_SPREAD.tif", "cm")).tolist() == [1414]
    settings = json.loads((tmp_path / "out" / "about.json").read_text())["settings"]
    assert settings["member_weights"] == [2.0, 1.0]
    assert len(set(settings["weights"])) == 2
    predict(replace(config, member_weights="1,2"))  # other settings: all are made again
    assert np.unique(read_agl(tmp_path / "out" / "A_a_AGL.tif", "cm")).tolist() == [3000]


def test_corrections_are_part_of_the_settings(config, load, tmp_path):
    load(AnswerNet(10.0))
    predict(replace(config, height_factor={"A": 1.5, "default": 1.0}, max_agl={"default": 12.0}))
    heights = {image: read_agl(tmp_path / "out" / f"{image}_AGL.tif", "cm").max() for image in IDS}
    assert heights == {"A_a": 1200, "A_c": 1200, "B_b": 1000}
    predict(config)
    assert read_agl(tmp_path / "out" / "A_a_AGL.tif", "cm").max() == 1000


def test_the_only_city_of_a_model_need_not_be_told(config, load, tmp_path, rgb):
    path = write_image(tmp_path / "x.tif", rgb)
    for number, model in enumerate((PointwiseNet(cities=("Z",)), PointwiseNet(use_city=False))):
        load(model)
        assert predict(replace(single(config, path, gsd=0.5), out=f"{config.out}{number}")) == 1


def test_a_gsd_that_does_not_count_is_remarked(config, load, tmp_path, rgb, capsys):
    load(PointwiseNet())
    path = write_image(tmp_path / "x.tif", rgb, PLACES["map"])
    predict(single(config, path, city="A", gsd=0.8))
    told = capsys.readouterr().err
    assert "x: gsd is 0.5" in told
    assert "m by its georeference, which counts before --gsd 0.8" in told


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gsd": 0.5}, "--city"),
        ({"city": "A"}, "--gsd"),
        ({"city": "Z", "gsd": 0.5}, "does not know city 'Z'"),
        ({"city": "A", "gsd": 0.5, "archive": "s.zip"}, r"\.tar\.gz"),
        ({"city": "A", "gsd": 0.5, "format": "png"}, "choose one of tif, cog"),
        ({"city": "A", "gsd": 0.5, "uncertainty": True}, "spread"),
    ],
)
def test_what_is_missing_for_a_single_image_is_said_in_one_sentence(config, load, tmp_path, rgb, options, words):
    model = PointwiseNet()
    load(model)
    with pytest.raises(UserError, match=words) as refused:
        predict(single(config, write_image(tmp_path / "x.tif", rgb), **options))
    assert "\n" not in str(refused.value)
    assert model.seen == []
    assert not (tmp_path / "out").exists()
