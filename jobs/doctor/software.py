"""Python, torch, the weights and the store, as seen from this machine."""

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from agl_core.config import TrainConfig
from agl_core.errors import UserError
from agl_core.files import expanded
from jobs.cluster import ClusterConfig
from jobs.doctor.asking import run
from jobs.snapshot import ROOT

WEIGHTS_SUFFIX = ".imagenet.safetensors"
"""As in `agl_core.model.encodercache`, which loads torch."""
LOOK_PATIENCE = 90.0  # seconds: torch alone takes five from a slow disk, and a network a few more


@dataclass(frozen=True)
class Torch:
    """An installed torch. cuda: version that it is built with, None: for CPUs only; architectures: that it carries code
    for, such as sm_70, None where it was not loaded to look; gpus: names of those of this machine; parameters: numbers
    in the state of the network, by encoder; unknown: why there is no such encoder."""

    version: str = ""
    cuda: str | None = None
    architectures: tuple[str, ...] | None = None
    gpus: tuple[str, ...] = ()
    nccl: str = ""
    parameters: Mapping[str, int] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StoreFacts:
    """A prepared store. problem: why it cannot be read; strange: tiles that only one of store and data set has, None
    where that was not looked at."""

    exists: bool = False
    sealed: bool = False
    problem: str = ""
    tiles: int = 0
    bytes: int = 0
    strange: int | None = None


def python_of(cluster: ClusterConfig) -> str:
    """The interpreter of the ranks."""
    return cluster.python or sys.executable


def python_paths(cluster: ClusterConfig) -> list[Path]:
    """What compute nodes must see of it: the interpreter, what it is a link to, and the folders of its packages."""
    if cluster.python:
        found = shutil.which(cluster.python)
        return [Path(found or cluster.python)]
    packages = importlib.util.find_spec("torch")
    places = [Path(sys.executable), Path(os.path.realpath(sys.executable)), Path(sys.prefix)]
    return list(dict.fromkeys([*places, *([Path(packages.origin).parent] if packages and packages.origin else [])]))


def quick_torch() -> Torch | None:
    """What torch's own files say about it, without loading it; None if there is none."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    text = (Path(found.origin).parent / "version.py").read_text(encoding="utf-8", errors="replace")
    cuda = re.search(r"^cuda\b[^=\n]*=\s*(.+)$", text, re.MULTILINE)
    return Torch(importlib.metadata.version("torch"), _literal(cuda[1]) if cuda else None)


def whole_torch(cluster: ClusterConfig, encoders: list[str], config: TrainConfig | None) -> Torch | None:
    """What the ranks' torch says about itself when it is loaded; None if that fails."""
    model = json.dumps(asdict(config.model) if config is not None else {})
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    answer = run(
        [python_of(cluster), "-m", "agl_core.training.selfcheck", model, *encoders], LOOK_PATIENCE, environment
    )  # fmt: skip
    if answer is None or answer.code != 0:
        return None
    try:
        said = json.loads(answer.out.splitlines()[-1])
        return Torch(
            said["version"], said["cuda"], tuple(said["architectures"]), tuple(said["gpus"]), said["nccl"],
            said["parameters"], said["unknown"],
        )  # fmt: skip
    except (ValueError, KeyError, IndexError, TypeError):
        return None


def weights_of(config: TrainConfig) -> Path | None:
    """The file of ImageNet weights that the run starts from; None if it needs none."""
    if config.encoder_weights != "imagenet" or not any(each.start == "encoder" for each in config.stages.values()):
        return None
    try:
        return expanded(config.weights_cache, "--weights-cache") / f"{config.encoder}{WEIGHTS_SUFFIX}"
    except UserError:
        return Path(config.weights_cache) / f"{config.encoder}{WEIGHTS_SUFFIX}"


def store_facts(store: Path, data: Path | None, whole: bool) -> StoreFacts:
    """What there is of a store; `whole`: also compare its tiles with those of the data set."""
    if not store.exists():
        return StoreFacts()
    from agl_core.data.store.layout import read_meta, shared_mapping

    try:
        if not (store / "data.mdb").is_file():
            return StoreFacts(exists=True, problem="" if store.is_dir() else f"{store} is no folder")
        mapping = shared_mapping(store)
        meta = read_meta(store, mapping.environment)
        size = (store / "data.mdb").stat().st_size
        sealed = meta is not None and meta["sealed"] is not None
        entries = meta["sealed"]["entries"] if meta is not None and sealed else []
        strange = _strange({str(entry["id"]) for entry in entries}, data) if whole and sealed and data else None
    except UserError as error:
        return StoreFacts(exists=True, problem=str(error))
    return StoreFacts(True, sealed, "", len(entries), size, strange)


def questions(
    cluster: ClusterConfig, configs: tuple[TrainConfig, ...], outside: Mapping[str, str], quick: bool
) -> dict[str, Callable[[], Any]]:
    """What is asked about the software, by name."""
    config = configs[0] if configs else None
    encoders = list(dict.fromkeys(each.encoder for each in configs))
    own = cluster.executor != "slurm" or not (cluster.wrapper or cluster.python)
    asked: dict[str, Callable[[], Any]] = {"driver": _driver}
    if quick:
        if own:
            asked["torch"] = quick_torch
    elif not cluster.wrapper:
        asked["torch"] = lambda: whole_torch(cluster, encoders, config)
    if config is not None and config.store:
        data = Path(config.data) if config.data else None
        asked["store"] = lambda: store_facts(Path(config.store), data, not quick)
    return asked


def _strange(tiles: set[str], data: Path) -> int:
    from agl_core.data.catalog import read_catalog

    return len(tiles.symmetric_difference(record.id for record in read_catalog(data, "train")))


def _driver() -> str:
    """Version of NVIDIA's driver, empty where there is none here."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", text)
    return found[1] if found else ""


def _literal(text: str) -> str | None:
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return None
    return str(value) if value is not None else None
