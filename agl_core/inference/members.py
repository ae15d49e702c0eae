"""Which networks predict together: of one run or several, of stages, of folds, of weights files."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from agl_core.config import TrainConfig
from agl_core.errors import UserError, valid_choice
from agl_core.files import is_file

if TYPE_CHECKING:  # what only says which files there are need not wait for torch
    import torch
    from torch import nn

    from agl_core.model.network import GeoposeNet

KINDS = ("best", "last", "last-ema")
_FOREIGN = (".pt", ".pth", ".ckpt", ".bin", ".onnx", ".h5")  # what others keep weights in


@dataclass(frozen=True)
class Weights:
    """A weights file, and how to call it when talking to the user."""

    path: Path
    name: str


@dataclass(frozen=True)
class Member(Weights):
    """Weights that predict together with others, and how much their answer counts."""

    weight: float = 1.0


def find_members(runs: Path, run: str, weights: str = "best", member_weights: str = "") -> list[Member]:
    """The members that the options `--run`, `--weights` and `--member-weights` name, in the order in which the latter
    counts them.

    run: names of runs, A,B,..., where the name of an ensemble stands for its runs; weights: kinds (see `find_weights`)
    and paths of weights files, A,B,... Each run gives one member of each kind, run by run, and then come the files.

    Raises:
        UserError: nothing is named, no such run, stage or file, a run without such weights yet, the same file twice,
            another number of weights than of members, or one that is no number above 0.
    """
    runs = Path(runs)
    kinds: list[str] = []
    files: list[str] = []
    for name in [weights] if is_file(weights) else _names("weights", weights) or ["best"]:
        (files if name.endswith(".safetensors") else kinds).append(name)
    names = [name for given in _names("run", run) or [""] for name in _runs_of(runs, given)]
    found = [find_weights(runs, name, kind) for name in names for kind in kinds]
    found += [find_weights(runs, "", file) for file in files]
    for number, member in enumerate(found):
        if member.path.resolve() in [other.path.resolve() for other in found[:number]]:
            raise UserError(f"{member.path} is given twice: give each member once with --run and --weights")
    shares = parse_weights(member_weights, len(found))
    return [Member(member.path, member.name, share) for member, share in zip(found, shares, strict=True)]


def find_weights(runs: Path, run: str, weights: str) -> Weights:
    """The file that `weights` means: best, last, last-ema (the average of the last ones), <stage>/best and so on,
    or a path ending in .safetensors.

    Without a stage it is the last stage of the run that has weights.

    Raises:
        UserError: no such run, stage or file, or weights that the run does not have (yet).
    """
    if weights.endswith(".safetensors"):
        if not is_file(weights):
            raise UserError(f"weights {weights} do not exist: give an existing file with --weights")
        return Weights(Path(weights), weights)
    if Path(weights).suffix in _FOREIGN or (Path(weights).suffix and is_file(weights)):
        raise UserError(
            f"weights {weights}: only .safetensors files of this project can be loaded (see `export weights`)"
        )
    if not run or not is_file(runs / run / "config.yaml"):
        known = sorted(path.parent.name for path in runs.glob("*/config.yaml"))
        raise UserError(f"there is no run {run!r} in {runs}: it has {', '.join(known) or 'none'}")
    stages = _stages(runs / run / "config.yaml")
    stage, _, which = weights.rpartition("/")
    valid_choice("weights", which, list(KINDS))
    asked = [valid_choice("stage", stage, stages)] if stage else stages
    for name in reversed(asked):
        path = runs / run / "weights" / name / f"{which}.safetensors"
        if path.is_file():
            unfinished = asked[asked.index(name) + 1 :]
            # A stage that has its weights may be without an average for good.
            yet = "" if which == "last-ema" else " yet"
            remark = f" ({', '.join(unfinished)} has none{yet})" if unfinished else ""
            return Weights(path, f"{run}, {name}/{which}{remark}")
    have = sorted(str(path.relative_to(runs / run)) for path in (runs / run / "weights").glob("*/*.safetensors"))
    raise UserError(f"run {run!r} has no weights {weights!r} yet: it has {', '.join(have) or 'none'}")


def parse_weights(text: str, members: int) -> list[float]:
    """The numbers of `member_weights`, one for each member; 1 each where nothing is given.

    Raises:
        UserError: another number of them, or one that is no number above 0.
    """
    if not text.strip():
        return [1.0] * members
    parts = text.split(",")
    if len(parts) != members:
        raise UserError(
            f"member_weights is {text!r}, {len(parts)} number{'s' * (len(parts) > 1)}, but there "
            f"{'is 1 member' if members == 1 else f'are {members} members'}: give a number for each, in their order"
        )
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < float("inf") for number in numbers):
        raise UserError(f"member_weights is {text!r}: give a number greater than 0 for each member, such as 2,1,1")
    return numbers


def named(members: Sequence[Weights]) -> str:
    """What the members are called together."""
    if len(members) == 1:
        return members[0].name
    return f"{len(members)} members ({'; '.join(member.name for member in members)})"


def load_members(members: Sequence[Weights]) -> tuple[list["GeoposeNet"], list[dict[str, Any]]]:
    """The members' networks, in eval mode and in the host's memory, and their metadata.

    Raises:
        UserError: weights that are damaged, not of this project, or of a network that this version does not know.
    """
    import torch

    from agl_core.model.weights import load_weights, read_header

    for member in members:  # reading a header is quick; a wrong file is not found after all before it were read
        read_header(member.path)
    loaded = [load_weights(member.path) for member in members]
    for model, _ in loaded:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return [model for model, _ in loaded], [metadata for _, metadata in loaded]


def check_cities(members: Sequence[Weights], models: Sequence["nn.Module"], cities: Iterable[str]) -> None:
    """Raise a `UserError` that names the first member that does not know one of the cities, and those that it knows.

    Each member has a list of cities of its own; one that does not look at the city knows any.
    """
    from agl_core.inference.predictor import city_index

    wanted = sorted(set(cities))
    for member, model in zip(members, models, strict=True):
        for city in wanted:
            try:
                city_index(model, city)
            except UserError as error:
                raise UserError(str(error) if len(members) == 1 else f"{member.name}: {error}") from None


def common_cities(models: Iterable[Any]) -> list[str] | None:
    """The cities that all networks know which look at the city; None if none does.

    models: with the attributes `cities` and `config` of `GeoposeNet`.
    """
    looking = [model.cities for model in models if model.config.use_city]
    return [city for city in looking[0] if all(city in other for other in looking)] if looking else None


def max_agl(metadata: Mapping[str, Any]) -> dict[str, float]:
    """Highest height by city, metres, as the weights were trained with; the default of training where not recorded."""
    recorded = metadata.get("config", {}).get("max_agl")
    return dict(recorded) if recorded else TrainConfig().max_agl


def trained_precision(metadata: Mapping[str, Any], device: "torch.device") -> str:
    """The precision that the training run was given; auto where it was given none or one that `device` has not."""
    recorded = str(metadata.get("config", {}).get("precision", "auto"))
    return "auto" if recorded == "float16" and device.type == "cpu" else recorded


def trained_tta(metadata: Mapping[str, Any]) -> str:
    """The test-time augmentation that the training run was given; none for weights from before there was a choice."""
    return str(metadata.get("config", {}).get("tta", "none"))


def _names(option: str, text: str) -> list[str]:
    if not text.strip():
        return []
    names = [name.strip() for name in text.split(",")]
    if "" in names:
        raise UserError(f"{option} is {text!r}: write its values with one comma between two of them, such as A,B")
    return names


def _runs_of(runs: Path, name: str) -> list[str]:
    """The runs of an ensemble; a run is its own."""
    path = runs / name / "ensemble.yaml"
    if not name or is_file(runs / name / "config.yaml") or not is_file(path):
        return [name]
    members = _yaml(path, "runs")
    if not isinstance(members, ListConfig) or not members:
        raise UserError(f"{path} names no runs: is it an ensemble of this project?")
    return [str(member) for member in members]


def _stages(path: Path) -> list[str]:
    stages = _yaml(path, "stages")
    if not stages:
        raise UserError(f"{path} has no stages: is it a run of this project?")
    return [str(stage) for stage in stages]


def _yaml(path: Path, key: str) -> Any:
    """What a YAML file says under `key`; None if nothing."""
    try:
        content = OmegaConf.load(path)
    except (OSError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}): is it a run of this project?") from None
    return content.get(key) if isinstance(content, DictConfig) else None
