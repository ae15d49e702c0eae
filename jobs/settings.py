"""Where a configuration's values come from: defaults, then the recipe, then the command line."""

import typing
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    GrammarParseError,
    InterpolationResolutionError,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
)

from agl_core.config import RECIPES, TrainConfig, options
from agl_core.errors import UserError
from jobs import keys

Config = TypeVar("Config")
Assignments = dict[str, str]  # what the user typed: dotted key to text

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
INTERPOLATION_ERRORS = (GrammarParseError, InterpolationResolutionError, UnsupportedInterpolationType)
NULL = ("null", "none", "~", "")
SPOKEN = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list[int]: "a list like [64, 32]",
}


def named_file(kind: str, name: str, folder: Path) -> Path:
    """The YAML file of a recipe or a cluster, given by its name in `folder` or by its path.

    Raises:
        UserError: there is none; the sentence lists the names that exist.
    """
    if Path(name).suffix in (".yaml", ".yml") or "/" in name:
        if not Path(name).is_file():
            raise UserError(f"{kind} {name} does not exist: give a name from {folder.name}/ or the path of a YAML file")
        return Path(name)
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise UserError(f"unknown {kind} {name!r}: choose one of {', '.join(known)}, or give the path of a YAML file")
    return folder / f"{name}.yaml"


def read_mapping(path: Path, resolve: bool = True) -> dict[str, Any]:
    """The content of a YAML file of keys, with OmegaConf's interpolations (`${...}`) filled in where `resolve` says so.

    Raises:
        UserError: the file cannot be read or is not a mapping.
    """
    try:
        content = OmegaConf.load(path)
        container = OmegaConf.to_container(content, resolve=resolve)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        hint = ""
        if isinstance(error, INTERPOLATION_ERRORS):
            hint = "; for a variable of the shell write $NAME or \\${NAME}"
        raise UserError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}{hint}") from None
    if not isinstance(content, DictConfig):
        raise UserError(f"{path} is not a mapping of keys to values")
    return typing.cast(dict[str, Any], container)


def apply_mapping(config: Config, mapping: Mapping[Any, Any], source: str) -> Config:
    """A copy of `config` with the values of a nested mapping, as YAML files have them, set in it.

    Raises:
        UserError: an unknown key or a value of the wrong type; the sentence names `source`.
    """
    config = deepcopy(config)
    try:
        for path, value in _leaves(type(config), mapping, ()):
            _assign(config, path, value)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return config


def apply_assignments(config: Config, assignments: Assignments, verb: str = "") -> Config:
    """A copy of `config` with what the user typed set in it.

    Stages cannot be made up on the command line: only those that the recipe has can be changed.

    Raises:
        UserError: an unknown key or stage, or a text that is no value of the key's type.
    """
    config = deepcopy(config)
    for dotted, text in assignments.items():
        path = tuple(dotted.split("."))
        _check_stage(config, path)
        key = keys.find(type(config), path, verb)
        if key is not None:
            _assign(config, path, _parse(key, text))
            continue
        mapping = _yaml(dotted, text)
        if not isinstance(mapping, dict):
            raise UserError(f"{dotted} is a group of keys, not a value: write {dotted}.<key>=VALUE")
        for inner, value in _leaves(type(config), mapping, path):
            _check_stage(config, inner)
            _assign(config, inner, value)
    return config


def train_config(assignments: Assignments) -> TrainConfig:
    """The configuration of a run: defaults, the recipe's values, the command line's, in rising precedence.

    Raises:
        UserError: see `apply_mapping` and `apply_assignments`.
    """
    config = TrainConfig()
    config.recipe = assignments.get("recipe", config.recipe)
    path = named_file("recipe", config.recipe, RECIPES)
    mapping = read_mapping(path)
    if "recipe" in mapping:
        raise UserError(f"{path}: a recipe cannot name a recipe; remove the key 'recipe'")
    return apply_assignments(apply_mapping(config, mapping, str(path)), assignments)


def load_train_config(path: Path) -> TrainConfig:
    """Read back what `to_yaml` wrote."""
    return apply_mapping(TrainConfig(), read_mapping(path, resolve=False), str(path))


def to_yaml(config: Any) -> str:
    """A configuration with all its values as YAML, in the order of its fields; tables in the order of their making."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


def flat(config: Any) -> Iterator[tuple[keys.Path, Any, bool]]:
    """Every value of a configuration: its path, the value, and whether it is part of a run's identity."""
    for entry in options(config):
        identity = bool(entry.metadata.get("identity", True))
        value = getattr(config, entry.name)
        if is_dataclass(value):
            for path, inner, inner_identity in flat(value):
                yield (entry.name, *path), inner, identity and inner_identity
        elif isinstance(value, dict):
            for name, member in value.items():
                if is_dataclass(member):
                    for path, inner, inner_identity in flat(member):
                        yield (entry.name, name, *path), inner, identity and inner_identity
                else:
                    yield (entry.name, name), member, identity
        else:
            yield (entry.name,), value, identity


def _leaves(config: type[Any], mapping: Mapping[Any, Any], prefix: keys.Path) -> Iterator[tuple[keys.Path, Any]]:
    for name, value in mapping.items():
        path = (*prefix, str(name))
        if keys.find(config, path) is not None:
            yield path, value
        elif value is None:
            yield path, {}
        elif isinstance(value, Mapping):
            yield path, {}
            yield from _leaves(config, value, path)
        else:
            raise UserError(f"{'.'.join(path)} is a group of keys, but its value is {value!r}")


def _check_stage(config: Any, path: keys.Path) -> None:
    if isinstance(config, TrainConfig) and path[0] == "stages" and len(path) > 1 and path[1] not in config.stages:
        raise UserError(
            f"unknown stage {path[1]!r} in {'.'.join(path)}: "
            f"the stages of recipe {config.recipe!r} are {', '.join(config.stages) or '(none)'}"
        )


def _assign(config: Any, path: keys.Path, value: Any) -> None:
    """Set the value at `path`, making the members of tables on the way; an empty mapping only makes the member."""
    key, node = keys.find(type(config), path), config
    table_type: Any = None
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(node, dict):
            if last and key is not None:
                node[part] = _convert(key, value)
                return
            node = node.setdefault(part, table_type())
        else:
            if last and key is not None:
                setattr(node, part, _convert(key, value))
                return
            kind = typing.get_type_hints(type(node))[part]
            table_type = typing.get_args(kind)[1] if typing.get_origin(kind) is dict else None
            node = getattr(node, part)


def _yaml(key: str, text: str) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=True)["value"]  # type: ignore[call-overload, index]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{key}={text} cannot be read: {' '.join(str(error).split())}") from None


def _parse(key: keys.Key, text: str) -> Any:
    """The value that a typed text means for the key; texts stay as they are typed (`run=007`)."""
    if key.optional and text.lower() in NULL:
        return None
    kind = key.value_type
    if kind is bool:
        if text.lower() in TRUE + FALSE:
            return text.lower() in TRUE
    elif kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    elif kind is str:
        if "${" in text:
            raise UserError(f"{key.name} is {text!r}: '${{' is an interpolation and cannot be part of a value")
        return text
    else:
        return _yaml(key.name, text)
    raise UserError(f"{key.name} is {text!r}: must be {SPOKEN[kind]}")


def _convert(key: keys.Key, value: Any) -> Any:
    """Check a value of YAML against the key's type; whole numbers are numbers and texts, nothing else is converted."""
    kind = key.value_type
    if value is None and key.optional:
        return None
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and type(value) is int:
        return str(value)
    if typing.get_origin(kind) is list:
        member = typing.get_args(kind)[0]
        if isinstance(value, list) and all(type(item) is member for item in value):
            return list(value)
    elif type(value) is kind:
        return value
    raise UserError(f"{key.name} is {value!r}: must be {SPOKEN.get(kind, 'a list of texts')}")
