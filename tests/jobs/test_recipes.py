"""What is printed of a recipe is that recipe, with what differs and where it comes from."""

from pathlib import Path

import pytest

from agl_core.config import RECIPES, RecipeConfig, TrainConfig
from agl_core.errors import UserError
from jobs import recipes
from jobs.recipes import comments, compared, recipe, resolved, text
from jobs.settings import flat
from launch import main

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
SMALL = """# Mine.
seed: 7     # a lucky number
stages:
  first:
    loss: {agl: 3.0, scale: 50.0}  # both of them
  second: {}
"""


def written(folder: Path, content: str, name: str = "mine") -> str:
    path = folder / f"{name}.yaml"
    path.write_text(content)
    return str(path)


def values(config: TrainConfig) -> dict[tuple[str, ...], object]:
    return {path: value for path, value, _ in flat(config) if path != ("recipe",)}


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_printed_is_itself_a_recipe_that_comes_to_the_same(tmp_path: Path, name: str, everything: bool) -> None:
    again = resolved(written(tmp_path, text(name, everything=everything)))
    assert values(again) == values(resolved(name))
    assert list(again.stages) == list(resolved(name).stages)


@pytest.mark.parametrize("name", NAMES)
def test_all_keys_are_printed_and_without_all_only_those_that_differ(tmp_path: Path, name: str) -> None:
    every = comments_of_all(tmp_path, text(name, everything=True))
    assert set(every) == set(values(resolved(name)))
    differing = set(comments_of_all(tmp_path, text(name)))
    default = values(TrainConfig(stages={stage: type(s)() for stage, s in resolved(name).stages.items()}))
    assert differing == {path for path, value in values(resolved(name)).items() if default.get(path) != value}
    assert {path for path, said in every.items() if said.startswith("default ")} == differing


def comments_of_all(folder: Path, content: str) -> dict[tuple[str, ...], str]:
    """The keys of a recipe that was printed, with what stands behind them."""
    path = Path(written(folder, content, "printed"))
    said = comments(path)
    return {leaf: said.get(leaf, "") for leaf, _ in recipes._leaves(recipes.yaml.compose(path.read_text()), ())}


def test_a_value_is_followed_by_what_it_differs_from_and_its_source(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL)
    assert text(path).splitlines() == [
        f"# {path}: what differs from the defaults (--all: every key).",
        "seed: 7                                 # default 314159; a lucky number",
        "stages:",
        "  first:",
        "    loss:",
        "      agl: 3.0                          # default 2.0; both of them",
        "  second: {}",
    ]
    every = text(path, everything=True).splitlines()
    assert every[0] == f"# {path}: every key, and what differs from the defaults."
    assert "      scale: 50.0                       # both of them" in every
    assert "fold: 0" in every


def test_two_recipes_are_compared_stage_by_stage(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL)
    other = written(tmp_path, "stages:\n  third: {crop: 64}\n  first: {crop: 64}\nmax_agl: {XYZ: 5}\n", "other")
    assert text(path, other).splitlines() == [
        f"# {path}: what differs from {other} (--all: every key).",
        f"# {other} has no stage 'second', which is compared with the defaults.",
        f"# Only {other} has a stage 'third'.",
        f"seed: 7                                 # {other} 314159; a lucky number",
        "stages:",
        "  first:",
        f"    crop: 512                           # {other} 64",
        "    loss:",
        f"      agl: 3.0                          # {other} 2.0; both of them",
        "  second: {}",
    ]
    assert f"  XYZ: 5.0                              # not in {path}" in text(other, path).splitlines()
    same = written(tmp_path, SMALL, "same")
    assert text(path, same).splitlines() == [
        f"# {path}: what differs from {same} (--all: every key).", "stages:", "  first: {}", "  second: {}",
    ]  # fmt: skip


def test_the_stages_keep_their_order_though_of_some_nothing_differs(tmp_path: Path) -> None:
    stages = "".join(f"  {name}: {{{content}}}\n" for name, content in [("c", ""), ("a", "crop: 64"), ("b", "")])
    path = written(tmp_path, f"stages:\n{stages}")
    assert list(resolved(written(tmp_path, text(path), "again")).stages) == ["c", "a", "b"]


@pytest.mark.parametrize(
    "value", ["", "null", "1e3", "0x10", "12:30", "yes", "a: b # c", "'", '"', "x\\y", "{a}", "- a", "é", "~", " a "]
)
def test_a_text_of_any_kind_stays_that_text(tmp_path: Path, value: str) -> None:
    quoted = "'" + value.replace("'", "''") + "'"
    path = written(tmp_path, f"data: {quoted}\nstages: {{a: {{}}}}\n")
    assert resolved(path).data == value
    assert resolved(written(tmp_path, text(path, everything=True), "again")).data == value


def test_a_dollar_that_is_none_of_omegaconf_s_stays_one(tmp_path: Path) -> None:
    path = written(tmp_path, "stage_in: '\\${TMPDIR}/$USER'\nstages: {a: {}}\n")
    assert resolved(path).stage_in == "${TMPDIR}/$USER"
    assert resolved(written(tmp_path, text(path), "again")).stage_in == "${TMPDIR}/$USER"


def test_a_comment_belongs_to_the_values_of_its_line(tmp_path: Path) -> None:
    path = Path(
        written(
            tmp_path,
            "# of nothing\n"
            "data: 'a # b'   # quoted\n"
            "run: a#b\n"
            "model:          # of a group\n"
            "  decoder_channels:\n"
            "    - 1\n"
            "    - 2         # of a list\n"
            "  use_city: true\n"
            "stages:\n"
            "  # of nothing\n"
            "  a: {crop: 64, loss: {agl: 1.0}}  ## of two\n"
            "  b: {}         # of an empty one\n"
            "seed: 1         #of the last\n",
        )
    )
    assert comments(path) == {
        ("data",): "quoted",
        ("model", "decoder_channels"): "of a list",
        ("stages", "a", "crop"): "of two",
        ("stages", "a", "loss", "agl"): "of two",
        ("stages", "b"): "of an empty one",
        ("seed",): "of the last",
    }


def test_what_is_in_neither_configuration_is_not_compared() -> None:
    lines = compared(resolved("demo"), resolved("demo"), "demo", {})
    assert not any(line.differs for line in lines)
    assert {line.against for line in lines} == {"demo"}


def test_without_a_name_the_recipes_are_listed_with_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[: len(NAMES)]] == NAMES
    assert lines[NAMES.index("kbrodt")].startswith("kbrodt  The recipe of the reference: fourth place")
    assert "`python launch.py recipe best`" in lines[-1]


def test_the_verb_prints_by_name_by_path_and_beside_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["demo"], ["demo", "--all"], ["demo", "--diff", "kbrodt"], [written(tmp_path, SMALL)]):
        assert main(["recipe", *words]) == 0
        assert capsys.readouterr().out.startswith(f"# {words[0]}: ")


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (RecipeConfig(recipe="kbrod"), "unknown recipe 'kbrod': choose one of .*kbrodt"),
        (RecipeConfig(recipe="demo", diff="dmo"), "unknown recipe 'dmo': choose one of"),
        (RecipeConfig(recipe="no/such.yaml"), "no/such.yaml does not exist"),
        (RecipeConfig(diff="demo"), "recipe needs a name to show: give one of best, demo"),
        (RecipeConfig(all=True), "recipe needs a name to show"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_sentence(asked: RecipeConfig, answer: str) -> None:
    with pytest.raises(UserError, match=answer):
        recipe(asked)


def test_a_recipe_with_a_wrong_value_is_refused_and_not_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, "stages: {a: {crop: 50}}\n")
    assert main(["recipe", path]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "crop is 50: must be a positive multiple of 32" in said.err
