"""How a configuration class says what its keys are."""

from collections.abc import Iterator
from dataclasses import Field, field, fields
from typing import Any

CODECS = ("auto", "zstd", "raw")
TTA = ("none", "flips", "d4", "scales", "all")
"""Test-time augmentation."""
NOTIFICATIONS = ("start", "stage", "interruption", "stall", "give-up", "score", "end")
"""Of which the owner of a run may want to be told."""
CHECKS = ("quick", "none")
CHECKED = (
    "what the verb doctor checks before a submission: quick, what takes a few seconds, and what fails is not "
    "submitted; none (--cluster slurm)"
)
WEIGHTS_CACHE = "~/.cache/agl/encoders"


def option(
    default: Any,
    help: str,
    choices: tuple[str, ...] = (),
    identity: bool = True,
    required: bool = False,
    positional: str = "",
) -> Any:
    """A configuration field: its default, its documentation, its valid values.

    `identity` says whether another value makes it another run: keys that only choose where and how fast something
    runs are not part of a run's identity. `required` keys have no sensible default; the command line asks for them.
    `positional` keys also take words without a key: one, or several, which are joined with commas.
    """
    metadata = {
        "help": help, "choices": choices, "identity": identity, "required": required, "positional": positional,
    }  # fmt: skip
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def options(config: type[Any] | object) -> Iterator["Field[Any]"]:
    """The fields of a configuration class, in the order in which `--help` shows them."""
    yield from fields(config)  # type: ignore[arg-type]
