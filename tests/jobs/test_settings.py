"""Where values come from: defaults, recipe, command line; and how they are written down."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agl_core.config import RECIPES, AugmentConfig, ModelConfig, OptimizerConfig, StageConfig, TrainConfig
from agl_core.errors import UserError
from agl_core.validate import validate
from jobs.settings import apply_mapping, load_train_config, to_yaml, train_config


def recipe(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_recipe_of_the_project_is_valid(name: str) -> None:
    validate(train_config({"recipe": name}))


def test_the_recipe_of_the_reference_has_its_two_stages() -> None:
    config = train_config({})
    pretrain, finetune = config.stages.values()
    assert (pretrain.length, finetune.length) == ("525 epochs", "1025 epochs")
    assert (pretrain.start, finetune.start) == ("encoder", "pretrain/best")
    assert finetune.augment == AugmentConfig()
    often = dict.fromkeys(("rot90", "flip_horizontal", "flip_vertical", "stretch", "zoom"), 0.5)
    often |= dict.fromkeys(("dropout", "blur", "brightness", "tone", "noise"), 0.5)
    seldom = dict.fromkeys(("fancy_pca", "fog", "shadow", "sun_flare"), 0.2)
    assert pretrain.augment == AugmentConfig(**often, **seldom, rotate=0.3)
    assert pretrain.optimizer == finetune.optimizer == OptimizerConfig(lr=1e-4, weight_decay=5e-4, clip=2.0)
    assert (config.folds, config.seed, config.fold_by) == (40, 314159, "city")


def test_a_recipe_given_by_its_path_may_refer_to_its_own_values(tmp_path: Path) -> None:
    text = "seed: 5\nfolds: ${seed}\nstages:\n  only: {crop: 64, optimizer: {lr: 1}}\n"
    config = train_config({"recipe": recipe(tmp_path, text)})
    assert config.folds == 5
    assert list(config.stages) == ["only"]
    assert config.stages["only"].crop == 64
    assert config.stages["only"].optimizer.lr == 1.0
    assert config.stages["only"].batch == StageConfig().batch


def test_a_stage_may_consist_of_its_name(tmp_path: Path) -> None:
    assert train_config({"recipe": recipe(tmp_path, "stages:\n  only:\n")}).stages == {"only": StageConfig()}


def test_the_stages_keep_the_order_of_the_recipe(tmp_path: Path) -> None:
    assert list(train_config({"recipe": recipe(tmp_path, "stages: {z: {}, a: {}, m: {}}")}).stages) == ["z", "a", "m"]


BAD_RECIPES = [
    ("sed: 5", ["unknown key 'sed'", "mean seed?"]),
    ("stages: {a: {optimizer: {rate: 1}}}", ["unknown key 'stages.a.optimizer.rate'"]),
    ("seed: five", ["seed is 'five'", "a whole number"]),
    ("seed: true", ["seed is True", "a whole number"]),
    ("seed: null", ["seed is None"]),
    ("folds: 2.0", ["folds is 2.0", "a whole number"]),
    ("channels_last: 1", ["channels_last is 1", "true or false"]),
    ("encoder: [a]", ["encoder is ['a']", "text"]),
    ("model: 3", ["model is a group of keys", "3"]),
    ("stages: [a, b]", ["stages is a group of keys"]),
    ("stages: {a: 3}", ["stages.a is a group of keys"]),
    ("model: {decoder_channels: [1, x]}", ["model.decoder_channels", "a list like"]),
    ("max_agl: {ARG: high}", ["max_agl.ARG is 'high'", "a number"]),
    ("recipe: demo", ["cannot name a recipe"]),
    ("- a\n- b", ["not a mapping"]),
    ("seed: [", ["cannot be read as YAML"]),
    ("seed: 1\nseed: 2", ["cannot be read as YAML", "duplicate"]),
    ("seed: ${nothing}", ["cannot be read as YAML", "nothing", r"write $NAME or \${NAME}"]),
]


@pytest.mark.parametrize(("text", "words"), BAD_RECIPES, ids=[text for text, _ in BAD_RECIPES])
def test_a_mistake_in_a_recipe_is_answered_with_its_file_and_key(tmp_path: Path, text: str, words: list[str]) -> None:
    path = recipe(tmp_path, text)
    with pytest.raises(UserError) as refusal:
        train_config({"recipe": path})
    message = str(refusal.value)
    assert "\n" not in message
    for word in (path, *words):
        assert word in message


def test_a_recipe_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        train_config({"recipe": f"{tmp_path}/"})


names = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FFF, exclude_characters="$\x7f\x85"), max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(
    names, names, st.integers(), st.none() | st.integers(), st.booleans(), numbers,
    st.lists(st.integers(), max_size=5), st.dictionaries(names, numbers, max_size=3),
    st.lists(st.text("abc_-", min_size=1), unique=True, max_size=3),
)  # fmt: skip
@settings(deadline=None, derandomize=True, max_examples=60)
def test_any_configuration_is_read_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, run, data, seed, workers, last, rate, channels, agl, stages
) -> None:
    config = TrainConfig(
        run=run, data=data, seed=seed, workers=workers, channels_last=last, max_agl=agl,
        model=ModelConfig(decoder_channels=channels),
        stages={name: StageConfig(length=data, optimizer=OptimizerConfig(lr=rate)) for name in stages},
    )  # fmt: skip
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    # A written configuration holds all its values, so the defaults of tables are not under it.
    back = load_train_config(path)
    assert back.max_agl == {**TrainConfig().max_agl, **agl}
    back.max_agl = agl
    assert back == config
    assert list(back.stages) == list(config.stages)


def test_a_mapping_does_not_change_the_configuration_it_is_applied_to() -> None:
    before = TrainConfig()
    apply_mapping(before, {"max_agl": {"X": 3.0}, "model": {"use_gsd": False}}, "test")
    assert before == TrainConfig()
