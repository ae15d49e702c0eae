"""What the command line is understood as, and what it answers when it is not."""

import shlex
from dataclasses import fields

import pytest

from agl_core.config import TrainConfig
from agl_core.errors import UserError
from jobs import keys
from jobs.cli import parse
from jobs.cluster import ClusterConfig
from jobs.verbs import TRAIN, VERBS

DEMO = "--recipe demo"


def value(config: object, dotted: str) -> object:
    for part in dotted.split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    return config


UNDERSTOOD = [
    # argv, key, value
    ("", "recipe", "kbrodt"),
    ("", "encoder", "efficientnet-b7"),
    (DEMO, "encoder", "tu-resnet10t"),  # the recipe is above the defaults
    (f"{DEMO} --encoder resnet18", "encoder", "resnet18"),  # the command line is above the recipe
    ("recipe=demo", "fold_by", "place"),
    (f"{DEMO} encoder=resnet18", "encoder", "resnet18"),
    (f"{DEMO} --seed 7", "seed", 7),
    (f"{DEMO} --seed=7", "seed", 7),
    (f"{DEMO} seed=7", "seed", 7),
    (f"{DEMO} --fold -1", "fold", -1),
    (f"{DEMO} seed=7 --run a folds=3", "run", "a"),  # options and keys in any order
    (f"{DEMO} seed=7 --run a folds=3", "folds", 3),
    (f"{DEMO} --run 007", "run", "007"),  # text stays as it was typed
    (f"{DEMO} --run 1e3", "run", "1e3"),
    (f"{DEMO} --dry-run", "dry_run", True),
    (f"{DEMO} dry_run=true", "dry_run", True),
    (f"{DEMO} --no-channels-last", "channels_last", False),
    (f"{DEMO} --channels-last", "channels_last", True),
    (f"{DEMO} channels_last=off", "channels_last", False),
    (DEMO, "workers", None),
    (f"{DEMO} workers=0", "workers", 0),
    (f"{DEMO} threads=null", "threads", None),
    (f"{DEMO} stages.train.optimizer.lr=3e-4", "stages.train.optimizer.lr", 3e-4),
    (f"{DEMO} stages.train.optimizer.lr=1", "stages.train.optimizer.lr", 1.0),
    (f"{DEMO} stages.train.length='7 steps'", "stages.train.length", "7 steps"),
    (f"{DEMO} stages.train.augment='{{rot90: 0.25}}'", "stages.train.augment.rot90", 0.25),
    (f"{DEMO} stages.train.augment='{{rot90: 0.25}}'", "stages.train.augment.flip_vertical", 0.5),
    (f"{DEMO} model.decoder_channels=[5,4,3,2,1]", "model.decoder_channels", [5, 4, 3, 2, 1]),
    (f"{DEMO} max_agl.OMA=150", "max_agl", {"default": 200.0, "ARG": 100.0, "OMA": 150.0}),
    (f"{DEMO} data=a=b", "data", "a=b"),
    ("world --out w --tiles 5", "tiles", 5),
    ("world out=w format=j2k", "format", "j2k"),
    ("world --out w", "workers", None),
    ("prepare --data d unit=m", "unit", "m"),
    ("predict --run r --data d --out o --window 512", "window", 512),
    ("predict --weights a/b.safetensors --data d --out o", "run", ""),
    ("evaluate --predictions p --truth t --json s.json", "json", "s.json"),
    ("status", "run", ""),
    ("status first", "run", "first"),
    ("status first --json second", "run", "first,second"),
    ("status first --json second", "json", True),
    ("status --run first", "run", "first"),
    ("status run=first,second", "run", "first,second"),
    ("status logs", "run", "logs"),  # a run may be named like a verb
    ("logs first --rank 3", "run", "first"),
    ("logs --rank 3 first", "rank", 3),
    ("logs first rank=3 --follow", "follow", True),
    ("logs --run first", "run", "first"),
    ("cancel run=first", "run", "first"),
    ("resume runs/first --cluster local", "run", "runs/first"),
    ("resume first --cluster local cluster.processes=1", "cluster", "local"),
]


@pytest.mark.parametrize(("argv", "key", "expected"), UNDERSTOOD)
def test_the_command_line_sets_the_key(argv: str, key: str, expected: object) -> None:
    found = value(parse(shlex.split(argv)).config, key)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("verb", [TRAIN, *VERBS.values()], ids=lambda verb: verb.name or "train")
def test_every_scalar_field_is_an_option_and_a_key_of_its_verb(verb) -> None:
    samples = {int: "160", float: "0.5", str: "x", "member_weights": "2,1", "archive": "x.tar", "window": "320"}
    required = {
        entry.name: entry.metadata["choices"][0] if entry.metadata["choices"] else "x"
        for entry in fields(verb.config)
        if entry.metadata["required"] and verb is not TRAIN
    }
    for key in keys.scalars(verb.config):
        if key.value_type is bool or key.name in ("recipe", "cluster", "fold"):
            continue
        text = key.choices[-1] if key.choices else samples.get(key.name, samples[key.value_type])
        given = dict(required) | {key.name: text} | ({"recipe": "demo"} if verb is TRAIN else {})
        if verb.name == "predict":  # either of them, and a data set tells cities and gsd itself
            given |= {"images": "x"} if key.name in ("images", "city", "gsd") else {"data": "x"}
        dashed = [word for name, text in given.items() for word in (f"--{name.replace('_', '-')}", text)]
        by_option = parse([*filter(None, [verb.name]), *dashed])
        by_key = parse([*filter(None, [verb.name]), *(f"{name}={text}" for name, text in given.items())])
        assert by_option == by_key
        assert str(value(by_option.config, key.name)) == text


def test_keys_of_the_cluster_go_over_those_of_its_file() -> None:
    request = parse(["--recipe", "demo", "--cluster", "local", "cluster.processes=1", "cluster.environment.A=b"])
    assert request.cluster.processes == 1
    assert request.cluster.environment == {"A": "b"}
    assert parse(["--recipe", "kbrodt", "--cluster", "local"]).cluster.processes == 2


def test_resume_takes_the_keys_of_the_cluster_for_that_of_the_run() -> None:
    request = parse(shlex.split("resume first cluster.processes=1 cluster.environment.A=b"))
    assert request.cluster_keys == {"processes": "1", "environment.A": "b"}
    assert parse(["resume", "first"]).cluster_keys == {}


USAGES = [
    ("world", "python launch.py world --out OUT [options] [key=value ...]"),
    ("status", "python launch.py status [RUN ...] [options]"),
    ("logs", "python launch.py logs RUN [options]"),
    ("resume", "python launch.py resume RUN [options] [cluster.key=value ...]"),
]


@pytest.mark.parametrize(("verb", "usage"), USAGES)
def test_the_first_line_of_the_help_is_how_a_verb_is_given(verb: str, usage: str) -> None:
    assert (parse([verb, "-h"]).help or "").splitlines()[0] == usage


REFUSED = [
    # argv, words of the answer
    ("--seed abc", ["seed", "'abc'", "a whole number"]),
    ("seed=1.5", ["seed", "'1.5'", "a whole number"]),
    ("stages.pretrain.optimizer.lr=fast", ["stages.pretrain.optimizer.lr", "'fast'", "a number"]),
    ("channels_last=maybe", ["channels_last", "'maybe'", "true or false"]),
    ("model.decoder_channels=3", ["model.decoder_channels", "3", "a list like"]),
    ("model.decoder_channels=[a]", ["model.decoder_channels", "a list like"]),
    ("model.decoder_channels=[1", ["model.decoder_channels=[1", "cannot be read"]),
    ("--data '${HOME}'", ["data is '${HOME}'", "cannot be part"]),
    ("model=3", ["model", "group of keys", "model.<key>=VALUE"]),
    ("--encodr resnet18", ["unknown option '--encodr'", "--encoder?", "python launch.py --help"]),
    ("--xyzzy", ["unknown option '--xyzzy'", "python launch.py --help"]),
    ("world --tile 3 --out x", ["unknown option '--tile'", "--tiles", "python launch.py world --help"]),
    ("encodr=resnet18", ["unknown key 'encodr'", "mean encoder?"]),
    ("lr=0.1", ["unknown key 'lr'", "stages.<stage>.optimizer.lr"]),
    ("stages.pretrain.optimiser.lr=1", ["unknown key", "stages.<stage>.optimizer.lr"]),
    ("seed.x=1", ["unknown key 'seed.x'"]),
    ("stages.warm.crop=64", ["unknown stage 'warm'", "pretrain, finetune"]),
    ("'stages={warm: {crop: 64}}'", ["unknown stage 'warm'", "pretrain, finetune"]),
    ("--recipe kbrot", ["unknown recipe 'kbrot'", "demo, kbrodt", "path"]),
    ("--recipe none/such.yaml", ["recipe none/such.yaml does not exist"]),
    ("--cluster slrm", ["unknown cluster 'slrm'", "debug, local, slurm", "path"]),
    ("cluster.gpus=2", ["cluster debug", "unknown key 'gpus'", "python launch.py --help"]),
    ("cluster.processes=2", ["cluster debug", "processes is 2", "executor local"]),
    ("--cluster local cluster.processes=5", ["5 processes", "4 micro-batches", "cluster.processes=4"]),
    ("--fold-by street", ["unknown fold_by 'street'", "city, place"]),
    ("--precision half", ["unknown precision 'half'", "auto, float32, float16, bfloat16"]),
    ("--seed 1 seed=2", ["seed is given twice", "seed=2"]),
    ("--seed 1 --seed 1", ["seed is given twice"]),
    ("seed=1 seed=1", ["seed is given twice"]),
    ("--seed", ["--seed", "expected one argument"]),
    ("--dry-run=yes", ["--dry-run"]),
    ("train --recipe demo", ["unknown verb 'train'", "world, prepare, recipe, weights, fit", "without a verb"]),
    ("--recipe demo predict", ["'predict' is a verb", "first"]),
    ("some/path", ["'some/path' is neither", "key=value"]),
    ("world", ["world needs --out", "example"]),
    ("logs", ["logs needs RUN (name of the run)", "example"]),
    ("resume --cluster local", ["resume needs RUN"]),
    ("logs first second", ["logs takes one run, not 2: first second"]),
    ("cancel first run=second", ["run is given twice"]),
    ("status first --run second", ["run is given twice"]),
    ("logs first --rnak 1", ["unknown option '--rnak'", "--rank?", "python launch.py logs --help"]),
    ("logs first rnak=1", ["unknown key 'rnak'", "mean rank?"]),
    ("logs first cluster.processes=1", ["unknown key 'cluster.processes'"]),
    ("resume first seed=1", ["unknown key 'seed'"]),
    ("predict --run r --data d", ["predict needs --out"]),
    ("predict --weights last --data d --out o", ["predict needs --run"]),
    ("predict --weights a.safetensors --data d", ["predict needs --out"]),
    ("'cluster.environment={a-b: c}'", ["cluster debug", "'a-b'", "letters, digits and _"]),
    ("world --out x --format png", ["unknown format 'png'", "tif, j2k"]),
    ("predict --run r --data d --out o --window 100", ["window is 100", "multiple of 32"]),
    ("predict --run r --data d --out o --window 128", ["overlap is 256", "window is 128", "at most 96"]),
    ("max_agl.ARG=900", ["max_agl.ARG is 900", "655.34"]),
]


@pytest.mark.parametrize(("argv", "words"), REFUSED, ids=[argv for argv, _ in REFUSED])
def test_a_mistake_is_answered_with_what_is_valid_in_one_sentence(argv: str, words: list[str]) -> None:
    with pytest.raises(UserError) as refusal:
        parse(shlex.split(argv))
    message = str(refusal.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("verb", [TRAIN, *VERBS.values()], ids=lambda verb: verb.name or "train")
def test_the_help_of_a_verb_shows_an_example_and_every_key_with_its_sentence(verb) -> None:
    text = parse([*filter(None, [verb.name]), "--help"]).help
    assert text is not None
    assert verb.example in text
    spoken = " ".join(text.split())
    for key in keys.walk(verb.config):
        option = f"--{key.name.replace('_', '-')} "
        assert option in text or f"--no-{option[2:]}" in text or f"  {key.name}\n" in text or f"  {key.name} " in text
        assert " ".join(key.help.split()) in spoken
        assert len(key.help) > 8


def test_every_example_in_the_help_is_understood() -> None:
    for verb in (TRAIN, *VERBS.values()):
        words = shlex.split(verb.example)
        assert words[:2] == ["python", "launch.py"]
        assert parse(words[2:]).verb == verb.name


def test_the_top_level_help_names_every_verb_recipe_cluster_and_cluster_key() -> None:
    text = parse(["-h"]).help
    assert text is not None
    for verb in VERBS.values():
        assert f"  {verb.name} " in text
        assert verb.summary in " ".join(text.split())
    assert "recipes: best, demo, kbrodt, small" in text
    assert "clusters: debug, local, slurm" in text
    for entry in fields(ClusterConfig):
        assert f"cluster.{entry.name}" in text


def test_every_field_of_every_configuration_has_a_sentence_of_its_own() -> None:
    for config in (*(verb.config for verb in (TRAIN, *VERBS.values())), ClusterConfig):
        sentences = [key.help for key in keys.walk(config)]
        assert len(set(sentences)) == len(sentences)


def test_the_first_command_of_the_readme_is_understood() -> None:
    request = parse(shlex.split("--cluster slurm --encoder efficientnet-b7 --dry-run"))
    assert isinstance(request.config, TrainConfig)
    assert request.config.dry_run
    assert request.cluster.executor == "slurm"
    assert list(request.config.stages) == ["pretrain", "finetune"]
