"""The command line: `[verb] --some-key VALUE ... some_key=VALUE ...` to a configuration."""

import argparse
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from agl_core.config import PredictConfig, TrainConfig
from agl_core.errors import UserError
from agl_core.validate import validate
from jobs import keys
from jobs.cluster import ClusterConfig, load_cluster
from jobs.deeds import CLUSTER_KEYS
from jobs.help import help_text, metavar, option_name, positional_key
from jobs.many import read_several, runs_of
from jobs.settings import Assignments, apply_assignments
from jobs.verbs import TRAIN, VERBS, Verb


@dataclass(frozen=True)
class Request:
    """What the user asked for: a verb with its configuration, or its help text. cluster_keys: what verbs other
    than training set over a cluster configuration."""

    verb: str
    config: Any = None
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    cluster_keys: Assignments = field(default_factory=dict)
    help: str | None = None


def parse(argv: list[str]) -> Request:
    """Turn the words of the command line into a request.

    Raises:
        UserError: anything that cannot be understood; the sentence gives the valid words.
    """
    verb = VERBS.get(argv[0], TRAIN) if argv else TRAIN
    words = argv[1:] if verb is not TRAIN else argv
    if any(word in ("-h", "--help") for word in words):
        return Request(verb.name, help=help_text(verb))
    assignments = _assignments(verb, words)
    if verb is TRAIN:
        return _train(assignments)
    cluster_keys = _cluster_keys(assignments) if verb.name in CLUSTER_KEYS else {}
    config = apply_assignments(verb.config(), assignments, verb.name)
    _check_required(verb, config)
    validate(config)
    return Request(verb.name, config, cluster_keys=cluster_keys)


def _cluster_keys(assignments: Assignments) -> Assignments:
    """Take the keys of the cluster configuration out of `assignments` and return them, without their prefix."""
    names = [name for name in assignments if name.startswith("cluster.")]
    return {name.removeprefix("cluster."): assignments.pop(name) for name in names}


def _train(assignments: Assignments) -> Request:
    overrides = _cluster_keys(assignments)
    asked = read_several(assignments)
    configs = runs_of(asked)
    for config in configs:
        validate(config)
    cluster = load_cluster(configs[0].cluster, overrides)
    for config in configs:
        check_processes(config, cluster)
    return Request("", asked, cluster)


def _assignments(verb: Verb, words: list[str]) -> Assignments:
    parser = _Parser(verb)
    given, rest = parser.parse_known_intermixed_args(words)
    found: Assignments = {}
    positional, words_alone = positional_key(verb), []

    def add(name: str, text: str, spelling: str) -> None:
        if name in found:
            raise UserError(f"{name} is given twice, the second time as {spelling}: give it once")
        found[name] = text

    for name, texts in sorted(vars(given).items()):
        for text in texts or [] if name != "bare" else []:
            add(name, text, f"--{name.replace('_', '-')}")
    for word in sorted([*rest, *given.bare], key=lambda word: not word.startswith("-")):  # a stray value comes second
        if word.startswith("-"):
            raise UserError(keys.unknown("option", word.split("=")[0], parser.names(), verb.name))
        name, equals, text = word.partition("=")
        if equals:
            add(name, text, word)
        elif positional is None:
            raise UserError(_stray(verb, word))
        else:
            words_alone.append(word)
    if positional is not None and words_alone:
        if positional.field.metadata["positional"] == "one" and len(words_alone) > 1:
            raise UserError(f"{verb.name} takes one {positional.name}, not {len(words_alone)}: {' '.join(words_alone)}")
        add(positional.name, ",".join(words_alone), " ".join(words_alone))
    return found


def _stray(verb: Verb, word: str) -> str:
    if word in VERBS:
        return f"{word!r} is a verb and must come first: python launch.py {word} ..."
    if verb is TRAIN and re.fullmatch(r"[a-z]+", word):
        return f"unknown verb {word!r}: choose one of {', '.join(VERBS)}; without a verb, launch.py trains"
    help_command = f"python launch.py {verb.name} --help".replace("  ", " ")
    return f"{word!r} is neither an option (--key VALUE) nor key=value: `{help_command}` lists all"


def _check_required(verb: Verb, config: Any) -> None:
    for key in keys.scalars(verb.config):
        if key.name == "run" and isinstance(config, PredictConfig) and Path(config.weights).suffix:
            continue  # a weights file says everything
        if key.field.metadata["required"] and getattr(config, key.name) == "":
            what = metavar(key) if key.field.metadata["positional"] else option_name(key)
            raise UserError(f"{verb.name} needs {what} ({key.help}), for example: {verb.example}")


def check_processes(config: TrainConfig, cluster: ClusterConfig) -> None:
    """Raise a `UserError` if a stage's step has fewer micro-batches than the cluster has processes."""
    for name, stage in config.stages.items():
        count = stage.batch // stage.micro_batch
        if cluster.world_size > count:
            raise UserError(
                f"cluster {config.cluster} has {cluster.world_size} processes, but a step of stage {name!r} has only "
                f"{count} micro-batches (batch {stage.batch}, micro_batch {stage.micro_batch}): use fewer processes "
                f"(cluster.processes={count}) or a smaller stages.{name}.micro_batch"
            )


class _Parser(argparse.ArgumentParser):
    """argparse with its words taken as they are and its errors as sentences."""

    def __init__(self, verb: Verb) -> None:
        super().__init__(prog="launch.py", add_help=False, allow_abbrev=False)
        self._verb = verb
        for key in keys.scalars(verb.config):
            option = f"--{key.name.replace('_', '-')}"
            if key.value_type is bool:
                self.add_argument(option, dest=key.name, action="append_const", const="true")
                self.add_argument(f"--no-{option[2:]}", dest=key.name, action="append_const", const="false")
            else:
                self.add_argument(option, dest=key.name, action="append")
        self.add_argument("bare", nargs="*")

    def names(self) -> list[str]:
        """Every option as it is written."""
        return [name for action in self._actions for name in action.option_strings]

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found wrong, such as an option without its value."""
        help_command = f"python launch.py {self._verb.name} --help".replace("  ", " ")
        raise UserError(f"{message.removeprefix('argument ')}; `{help_command}` explains every option")
