"""The verb `recipe`: what a recipe comes to, and what of it differs from the defaults or from another recipe.

What is printed is a recipe itself, with all keys or with those that differ: YAML with a comment behind each value that
says what it differs from and, in the words of the recipe's file, where it comes from.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf

from agl_core.config import RECIPES, RecipeConfig, StageConfig, TrainConfig
from agl_core.errors import UserError
from agl_core.validate import validate
from jobs.keys import Path as KeyPath
from jobs.settings import flat, named_file, train_config

DEFAULT = "default"
COLUMN = 40  # where comments begin, behind values that are not longer
NOTHING = object()  # the value of a key that what is compared with does not have


@dataclass(frozen=True)
class Line:
    """A key of a recipe: its value; that of `against`, "default" or another recipe, with which it is compared
    (`NOTHING` where that has no such key); and what the recipe's file says of it."""

    path: KeyPath
    value: Any
    against: str
    other: Any
    source: str

    @property
    def differs(self) -> bool:
        """Whether the two values are different ones."""
        return self.other is NOTHING or self.other != self.value


def recipe(config: RecipeConfig) -> None:
    """Print a recipe, or what differs from another one; without a name, list the recipes.

    Raises:
        UserError: there is no such recipe, or it has a key or a value that is wrong.
    """
    if not config.recipe:
        if config.diff or config.all:
            raise UserError(f"recipe needs a name to show: give one of {', '.join(path.stem for path in recipes())}")
        print(listing())
        return
    print(text(config.recipe, config.diff, config.all))


def recipes() -> list[Path]:
    """The files of the recipes that have a name, in order."""
    return sorted(RECIPES.glob("*.yaml"))


def listing() -> str:
    """Every recipe and the first line of its file, which says what it is."""
    files = recipes()
    width = max(len(path.stem) for path in files)
    lines = [f"{path.stem:{width}}  {path.read_text().splitlines()[0].removeprefix('#').strip()}" for path in files]
    return "\n".join([*lines, "", f"`python launch.py recipe {files[0].stem}` shows what it sets."])


def text(name: str, diff: str = "", everything: bool = False) -> str:
    """The recipe `name` as YAML: the keys that differ from the defaults, or from the recipe `diff`, or all.

    Without `diff` it is a recipe that comes to the same as `name`.

    Raises:
        UserError: see `recipe`.
    """
    mine = resolved(name)
    other = resolved(diff) if diff else TrainConfig()
    lines = compared(mine, other, diff or DEFAULT, comments(named_file("recipe", name, RECIPES)))
    shown = [line for line in lines if everything or line.differs]
    what = f"what differs from {diff or 'the defaults'}"
    head = [f"# {name}: {f'every key, and {what}' if everything else f'{what} (--all: every key)'}."]
    for stage in mine.stages if diff else []:
        if stage not in other.stages:
            head.append(f"# {diff} has no stage {stage!r}, which is compared with the defaults.")
    head += [f"# Only {diff} has a stage {stage!r}." for stage in other.stages if stage not in mine.stages]
    return "\n".join([*head, *rendered(shown, list(mine.stages))])


def resolved(name: str) -> TrainConfig:
    """The checked configuration of a run of the recipe `name`, with nothing else given."""
    config = train_config({"recipe": name})
    validate(config)
    return config


def compared(config: TrainConfig, other: TrainConfig, name: str, sources: Mapping[KeyPath, str]) -> list[Line]:
    """Every key of `config` that a recipe may have, in order, compared with `other`, which is called `name`.

    A stage that `other` does not have is compared with the default values.
    """
    missing = {stage: StageConfig() for stage in config.stages if stage not in other.stages}
    others = {path: (name, value) for path, value, _ in flat(other)}
    others |= {path: (DEFAULT, value) for path, value, _ in flat(TrainConfig(stages=missing)) if path[0] == "stages"}
    return [
        Line(path, value, *others.get(path, (name, NOTHING)), sources.get(path, ""))
        for path, value, _ in flat(config)
        if path != ("recipe",)  # a recipe cannot name a recipe
    ]


def rendered(lines: Sequence[Line], stages: Sequence[str]) -> Iterator[str]:
    """Lines of YAML, in groups; `stages` are named, in this order, though nothing of them is shown."""
    open_groups: KeyPath = ()
    missing = list(stages)
    for line in lines:
        groups = line.path[:-1]
        if groups[:1] == ("stages",):
            while missing and missing[0] != groups[1] and groups[1] in missing:
                yield from _headers(("stages", missing[0]), open_groups, empty=True)
                open_groups = ("stages", missing.pop(0))
            missing = [stage for stage in missing if stage != groups[1]]
        yield from _headers(groups, open_groups)
        open_groups = groups
        yield _line(line)
    for stage in missing:
        yield from _headers(("stages", stage), open_groups, empty=True)
        open_groups = ("stages", stage)


def comments(path: Path) -> dict[KeyPath, str]:
    """What the comment on the line of each value of a YAML file says, without its #, by the value's path."""
    content = path.read_text()
    ends: dict[int, int] = {}  # where the last token of a line ends
    for token in yaml.scan(content, Loader=yaml.SafeLoader):
        if token.end_mark.index > token.start_mark.index:  # not the end of a block, which takes no room
            ends[token.end_mark.line] = max(ends.get(token.end_mark.line, 0), token.end_mark.column)
    texts = content.splitlines()
    found = {}
    for leaf, line in _leaves(yaml.compose(content, Loader=yaml.SafeLoader), ()):
        rest = texts[line][ends.get(line, 0) :].strip()
        if rest.startswith("#"):
            found[leaf] = rest.lstrip("#").strip()
    return found


def _leaves(node: Any, path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
    """The paths of the values of a YAML document and the lines on which they end; a list is a value, and so is {}."""
    if isinstance(node, yaml.MappingNode) and node.value:
        for key, value in node.value:
            yield from _leaves(value, (*path, str(key.value)))
    elif node is not None:
        yield path, _last_line(node)


def _last_line(node: Any) -> int:
    """The line on which a value ends; for the parser a list of lines ends where the next key begins."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        return _last_line(node.value[-1])
    return int(node.start_mark.line if getattr(node, "style", None) in ("|", ">") else node.end_mark.line)


def _headers(groups: KeyPath, before: KeyPath, empty: bool = False) -> Iterator[str]:
    """The lines that open `groups` where `before` are open; `empty` if the last one stays without keys."""
    shared = 0
    while shared < min(len(groups), len(before)) and groups[shared] == before[shared]:
        shared += 1
    for depth in range(shared, len(groups)):
        last = empty and depth == len(groups) - 1
        yield f"{'  ' * depth}{groups[depth]}:{' {}' if last else ''}"


def _line(line: Line) -> str:
    value = f"{'  ' * (len(line.path) - 1)}{_yaml(line.path[-1])}: {_yaml(line.value)}"
    told = ""
    if line.differs:
        told = f"not in {line.against}" if line.other is NOTHING else f"{line.against} {_yaml(line.other)}"
    comment = "; ".join(part for part in (told, line.source) if part)
    return f"{value:{COLUMN - 2}}  # {comment}" if comment else value


def _yaml(value: Any) -> str:
    """A value on one line, such that a recipe with it has the same value."""
    written = _dump(value)
    if isinstance(value, str):
        escaped = value.replace("${", "\\${")  # or it would be filled in
        written = _dump(escaped)
        if OmegaConf.to_container(OmegaConf.create(f"value: {written}"), resolve=True) != {"value": value}:
            written = _dump(escaped, "'")  # it would be read as something else than text
    return written


def _dump(value: Any, style: str | None = None) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, default_style=style, width=2**20, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
