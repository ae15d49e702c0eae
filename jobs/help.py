"""The texts of `--help`, made from the configuration classes."""

import shutil
import textwrap
import typing
from typing import Any

from agl_core.config import RECIPES
from jobs import keys
from jobs.cluster import CLUSTERS, ClusterConfig
from jobs.deeds import CLUSTER_KEYS
from jobs.verbs import TRAIN, VERBS, Verb

INDENT = 28


def help_text(verb: Verb) -> str:
    """All that a user needs to know about a verb; for the verb-less command also the names of the verbs."""
    lines = [_usage(verb), "", *_wrap(verb.purpose), "", "example:", f"  {verb.example}", ""]
    if verb is TRAIN:
        lines += ["verbs (each has its own --help):"]
        lines += [line for other in VERBS.values() for line in _entry(other.name, other.summary)] + [""]
    lines += ["options (--some-key VALUE may also be written some_key=VALUE):"]
    for key in keys.scalars(verb.config):
        lines += _entry(f"{option_name(key)} {metavar(key)}".rstrip(), _explain(key))
    lines += _entry("-h, --help", "show this text and stop")
    names = {key.name for key in keys.scalars(verb.config)}
    grouped = [key for key in keys.walk(verb.config) if key.name not in names]
    if grouped:
        lines += ["", "keys (key=value only):"]
        lines += _keys(grouped)
    if verb is TRAIN or verb.name in CLUSTER_KEYS:
        lines += ["", "keys of the cluster configuration, over those of its file:"]
        lines += _keys([*keys.walk(ClusterConfig)], "cluster.")
    if verb is TRAIN:
        lines += ["", f"recipes: {_names(RECIPES)}", f"clusters: {_names(CLUSTERS)}"]
    return "\n".join(lines)


def _usage(verb: Verb) -> str:
    alone = positional_key(verb)
    if alone is not None:
        name = f"[{metavar(alone)} ...]" if alone.field.metadata["positional"] == "several" else metavar(alone)
        further = "[cluster.key=value ...]" if verb.name in CLUSTER_KEYS else ""
        return " ".join(part for part in ("python launch.py", verb.name, name, "[options]", further) if part)
    required = " ".join(f"{option_name(key)} {metavar(key)}" for key in _required(verb))
    return " ".join(part for part in ("python launch.py", verb.name, required, "[options] [key=value ...]") if part)


def positional_key(verb: Verb) -> keys.Key | None:
    """The key that words without a key are for, if the verb has one."""
    return next((key for key in keys.scalars(verb.config) if key.field.metadata["positional"]), None)


def option_name(key: keys.Key) -> str:
    """The key as an option; a flag that is on by default is shown as the option that turns it off."""
    prefix = "--no-" if key.value_type is bool and key.default else "--"
    return prefix + key.name.replace("_", "-")


def metavar(key: keys.Key) -> str:
    """What stands for the option's value; flags have none."""
    if key.value_type is bool:
        return ""
    return {int: "N", float: "X"}.get(key.value_type, key.name.upper())


def _required(verb: Verb) -> list[keys.Key]:
    return [key for key in keys.scalars(verb.config) if key.field.metadata["required"]]


def _keys(entries: list[keys.Key], prefix: str = "") -> list[str]:
    return [line for key in entries for line in _entry(f"{prefix}{key.name}", _explain(key))]


def _explain(key: keys.Key) -> str:
    notes = []
    if key.choices and not all(choice in key.help for choice in key.choices):
        notes.append(f"one of {', '.join(key.choices)}")
    if key.field.metadata["required"]:
        notes.append("required")
    elif not key.name.endswith(">") and key.default not in ("", None):
        notes.append(f"default {_spoken(key.default)}")
    return key.help + (f" [{'; '.join(notes)}]" if notes else "")


def _spoken(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _entry(name: str, text: str) -> list[str]:
    body = _wrap(text, INDENT)
    if len(name) + 4 > INDENT:
        return [f"  {name}", *body]
    return [f"  {name}".ljust(INDENT) + body[0][INDENT:], *body[1:]]


def _wrap(text: str, indent: int = 0) -> list[str]:
    width = min(shutil.get_terminal_size((110, 24)).columns, 120)
    return textwrap.wrap(
        text,
        max(width, INDENT + 30),
        initial_indent=" " * indent,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _names(folder: typing.Any) -> str:
    return ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
