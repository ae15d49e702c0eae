"""Configuration keys as a tree: their dotted names, types, documentation, and the nearest to a misspelt one."""

import difflib
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, is_dataclass
from types import NoneType, UnionType
from typing import Any

from agl_core.config import options
from agl_core.errors import UserError

Path = tuple[str, ...]  # a dotted key in parts: ("stages", "pretrain", "crop"); city names may hold dots themselves


@dataclass(frozen=True)
class Key:
    """One value that can be set: `name` is dotted, `<...>` in it stands for any name."""

    name: str
    type: Any
    field: "Field[Any]"

    @property
    def help(self) -> str:
        """The field's sentence."""
        return str(self.field.metadata["help"])

    @property
    def default(self) -> Any:
        """The field's default value; None for the members of a table, which have no defaults of their own."""
        if self.name.endswith(">"):
            return None
        factory = self.field.default_factory
        return self.field.default if factory is MISSING else factory()

    @property
    def choices(self) -> tuple[str, ...]:
        """The valid values, where they are few."""
        return tuple(self.field.metadata.get("choices", ()))

    @property
    def optional(self) -> bool:
        """Whether the value may be null."""
        return NoneType in typing.get_args(self.type)

    @property
    def value_type(self) -> Any:
        """The type without its null."""
        if isinstance(self.type, UnionType):
            return next(kind for kind in typing.get_args(self.type) if kind is not NoneType)
        return self.type


def _hints(config: Any) -> dict[str, Any]:
    return typing.get_type_hints(config)


def placeholder(field_name: str) -> str:
    """What the help writes for the names in a table: `stages.<stage>`, `max_agl.<city>`."""
    return {"stages": "<stage>", "max_agl": "<city>", "height_factor": "<city>"}.get(field_name, "<name>")


def walk(config: type[Any], prefix: str = "") -> Iterator[Key]:
    """Every key below the configuration class, in the order of `--help`."""
    for entry in options(config):
        kind, name = _hints(config)[entry.name], f"{prefix}{entry.name}"
        if is_dataclass(kind):
            yield from walk(typing.cast(type[Any], kind), f"{name}.")
        elif typing.get_origin(kind) is dict:
            member = typing.get_args(kind)[1]
            name = f"{name}.{placeholder(entry.name)}"
            if is_dataclass(member):
                yield from walk(typing.cast(type[Any], member), f"{name}.")
            else:
                yield Key(name, member, entry)
        else:
            yield Key(name, kind, entry)


def scalars(config: type[Any]) -> list[Key]:
    """The keys that are also options: not in a group, and neither lists nor tables."""
    return [key for key in walk(config) if "." not in key.name and typing.get_origin(key.value_type) is None]


def find(config: type[Any], path: Path, verb: str = "") -> Key | None:
    """The key at `path`; None where `path` names a group or table, whose value is a mapping of keys.

    Raises:
        UserError: there is no such key; the sentence names the nearest ones.
    """
    kind: Any = config
    for depth, part in enumerate(path):
        if is_dataclass(kind):
            entry = next((entry for entry in options(kind) if entry.name == part), None)
            if entry is None:
                raise UserError(unknown("key", ".".join(path), [key.name for key in walk(config)], verb))
            kind = _hints(typing.cast(type[Any], kind))[part]
        elif typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        else:
            raise UserError(unknown("key", ".".join(path), [key.name for key in walk(config)], verb))
        if depth == len(path) - 1 and not is_dataclass(kind) and typing.get_origin(kind) is not dict:
            return Key(".".join(path), kind, entry)  # type: ignore[arg-type]
    return None


def unknown(kind: str, given: str, names: list[str], verb: str = "") -> str:
    """The sentence about an unknown key or option, with the nearest names and where to find all."""
    last = given.rsplit(".", 1)[-1]
    by_last = {name.rsplit(".", 1)[-1]: name for name in reversed(names)}
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.7) or [
        by_last[match] for match in difflib.get_close_matches(last, list(by_last), n=1, cutoff=0.7)
    ]
    help_command = " ".join(["python launch.py", *([verb] if verb else []), "--help"])
    return f"unknown {kind} {given!r}: " + (f"did you mean {near[0]}? " if near else "") + f"`{help_command}` lists all"
