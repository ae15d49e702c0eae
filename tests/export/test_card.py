"""Weights to hand on: the same tensors, and a card that tells the truth about them."""

import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf

from agl_core.config import TrainConfig
from agl_core.data.store import StoreEntry, StoreWriter
from agl_core.errors import UserError
from agl_core.export.card import PLACES, export_weights
from agl_core.model.weights import load_weights, read_header, save_weights
from tests.export.conftest import ENCODER, VALIDATION
from tests.export.scene import colours, write_raster


def best(run):
    return run / "weights" / "train" / "best.safetensors"


def text(config):
    export_weights(config)
    return (Path(config.out) / "README.md").read_text()


def scored(run, path, score=0.5):
    """A run whose test images have been predicted with the weights in `path`, and scored."""
    (run / "predictions").mkdir(exist_ok=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (run / "predictions" / "about.json").write_text(json.dumps({"settings": {"weights": [digest]}, "images": {}}))
    city = {"agl_r2": 0.4, "vflow_r2": None, "score": score, "images": 12}
    (run / "score.json").write_text(json.dumps({"score": score, "cities": {"ARG": city}}))


def tensors(path):
    """The bytes of all tensors and where each begins."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    assert size % 8 == 0
    return {key: header[key] for key in header if key != "__metadata__"}, content[8 + size :]


def test_the_weights_are_the_same_tensors_beside_configuration_score_and_card(run, asked, capsys):
    config = asked("weights")
    written = export_weights(config)
    out = Path(config.out)
    assert sorted(written) == sorted(out.iterdir())
    assert sorted(path.name for path in written) == ["README.md", "config.yaml", "model.safetensors", "score.json"]
    assert tensors(out / "model.safetensors") == tensors(best(run))
    assert json.loads((out / "score.json").read_text()) == {"validation": VALIDATION}
    assert "weights of first with their card" in capsys.readouterr().out


def test_the_configuration_is_that_of_the_training_without_the_places_of_its_machine(asked, tmp_path):
    config = asked("weights")
    export_weights(config)
    told = (Path(config.out) / "config.yaml").read_text()
    assert "secret" not in told
    assert str(tmp_path) not in told
    shared = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), yaml.safe_load(told)))
    assert (shared.encoder, shared.fold, shared.folds) == (ENCODER, 2, 5)
    assert shared.max_agl == {"ARG": 100.0, "default": 200.0}


def test_the_header_of_the_weights_tells_all_but_the_places_of_the_machine_that_trained(run, asked, tmp_path):
    config = asked("weights")
    export_weights(config)
    path = Path(config.out) / "model.safetensors"
    assert str(tmp_path).encode() not in path.read_bytes()
    (network, metadata), (own_network, own) = read_header(path), read_header(best(run))
    left = {key: value for key, value in own["config"].items() if key not in PLACES}
    assert len(left) == len(own["config"]) - len(PLACES)
    assert (network, metadata) == (own_network, {**own, "config": left})
    first = path.read_bytes()
    export_weights(asked("weights", run="", weights=str(path)))  # in its own place
    assert path.read_bytes() == first


def test_the_card_tells_network_data_and_score(run, asked):
    config = asked("weights")
    card = text(config)
    digest = hashlib.sha256((Path(config.out) / "model.safetensors").read_bytes()).hexdigest()
    for told in (
        f"| encoder | `{ENCODER}` |",
        "| decoder | unet, channels 16-16-8-8-8 |",
        "| conditioned on | city and gsd |",
        "| cities | ARG, JAX |",
        "| weights | stage train, step 700 |",
        f"| sha256 | `{digest}` |",
        "the data set `autumn`, fold 2 of 5 (by city) held out",
        "41 images to train on, 9 to validate on.",
        "| JAX | 3 | 0.7500 | 0.5000 | 0.6250 |",
        "| all | | | | 0.6250 |",
        "100 m (ARG), 200 m (default)",
        "`p + AGL * scale * (sin(angle), cos(angle))`",
        "None is stated yet",
        "those of ImageNet",
    ):
        assert told in card, told
    assert "On the data set's test images" not in card


def test_what_is_not_known_is_said_to_be_unknown(asked, network, tmp_path):
    bare = tmp_path / "bare.safetensors"
    save_weights(bare, network, {})
    config = asked("weights", run="", weights=str(bare))
    card = text(config)
    assert "# bare:" in card
    assert "do not say from what data" in card
    assert "None is known" in card
    assert "does not say at which step" in card
    assert sorted(path.name for path in Path(config.out).iterdir()) == ["README.md", "config.yaml", "model.safetensors"]


def test_the_test_score_is_there_only_if_it_is_of_these_weights(run, asked, capsys):
    scored(run, best(run))
    config = asked("weights")
    assert "| ARG | 12 | 0.4000 | no truth | 0.5000 |" in text(config)
    assert json.loads((Path(config.out) / "score.json").read_text())["test"]["score"] == 0.5
    capsys.readouterr()
    last = asked("weights", weights="last")
    assert "On the data set's test images" not in text(last)
    assert "score.json is left out: it is of predictions with other weights" in capsys.readouterr().out
    assert not (Path(config.out) / "score.json").exists()  # last weights have no score of their own


def test_what_the_store_has_of_each_city_is_told(run, asked, network, tmp_path):
    store = tmp_path / "secret" / "autumn" / "store"
    with StoreWriter(store) as writer:
        for number, city in enumerate(["ARG", "JAX", "JAX"]):
            agl = np.full((64, 64), 1000 * number, np.uint16)
            entry = StoreEntry(f"{city}_{number}", city, 0.3 + number / 10, 64, 64, 1.0, 0.0, None)
            writer.write(entry, colours((64, 64)), agl)
        writer.seal()
    card = text(asked("weights"))
    assert "| ARG | 1 | 0.3 | 0.0 |" in card
    assert "| JAX | 2 | 0.4 - 0.5 | 20.0 |" in card
    assert "gsd=0.3" in card


def test_a_store_of_other_cities_is_not_what_the_weights_have_learnt_from(run, asked, tmp_path, tiny_store):
    place = tmp_path / "secret" / "autumn"
    place.mkdir(parents=True)
    (place / "store").symlink_to(tiny_store)
    assert "images, training and validation" not in text(asked("weights"))


def test_the_lines_of_the_card_that_load_it_work(asked, monkeypatch, capsys):
    config = asked("weights")
    card = text(config)
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(config.out)
    write_raster(Path("image.tif"), colours((64, 96)).transpose(2, 0, 1), photometric="rgb")
    found = {}
    exec(code, found)
    assert found["prediction"].agl.shape == (64, 96)
    assert capsys.readouterr().out.count(" ") >= 2


def test_the_command_of_the_card_has_options_that_exist(asked):
    from agl_core.config import PredictConfig
    from agl_core.config.option import options

    (line,) = re.findall(r"python launch.py predict (.*)", text(asked("weights")))
    known = {field.name for field in options(PredictConfig)}
    assert {word.removeprefix("--") for word in line.split() if word.startswith("--")} <= known
    assert "--city ARG" in line


def test_weights_that_are_exported_again_take_the_place_of_the_others(asked):
    config = asked("weights")
    first = text(config)
    assert text(config) == first
    assert text(asked("weights", weights="last")) != first


@pytest.mark.parametrize("name", ["README.md", "config.yaml", "score.json"])
def test_files_of_something_else_are_not_overwritten(asked, name):
    config = asked("weights")
    Path(config.out).mkdir()
    (Path(config.out) / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name} is not of exported weights"):
        export_weights(config)
    assert os.listdir(config.out) == [name]
    assert (Path(config.out) / name).read_text() == "mine"


def test_the_folder_of_a_run_is_no_place_for_an_export(run, asked):
    before = (run / "config.yaml").read_text()
    with pytest.raises(UserError, match="choose another folder"):
        export_weights(asked("weights", out=str(run)))
    assert (run / "config.yaml").read_text() == before


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"run": ""}, "give the name of a run with --run"),
        ({"run": "second"}, "there is no run 'second'"),
        ({"weights": "last-ema"}, "has no weights 'last-ema'"),
        ({"run": "", "weights": "none.safetensors"}, "do not exist"),
    ],
)
def test_weights_that_are_not_there_are_refused(asked, changes, told):
    with pytest.raises(UserError, match=told):
        export_weights(asked("weights", **changes))


def test_damaged_weights_are_not_handed_on(run, asked):
    best(run).write_bytes(best(run).read_bytes()[:-1000])
    config = asked("weights")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        export_weights(config)
    assert not Path(config.out).exists()


def test_what_is_exported_can_be_loaded(asked, network):
    config = asked("weights")
    export_weights(config)
    model, metadata = load_weights(Path(config.out) / "model.safetensors")
    assert metadata["step"] == 700
    assert all((model.state_dict()[name] == value).all() for name, value in network.state_dict().items())
