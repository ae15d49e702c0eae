"""Where weights come from: what their file, and the run that they are of, know of their training and their score."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agl_core.config import ExportConfig
from agl_core.data.store import Store, StoreEntry
from agl_core.errors import UserError
from agl_core.files import read_json
from agl_core.inference.members import find_weights, max_agl
from agl_core.model.network import GeoposeNet
from agl_core.model.weights import load_weights
from agl_core.reporting.events import read_events


@dataclass(frozen=True)
class CityData:
    """The images of one city from which weights have learnt; gsd: lowest and highest, metres; highest: metres."""

    images: int
    gsd: tuple[float, float]
    highest: float


@dataclass(frozen=True)
class Origin:
    """Weights and all that is known of them; what is not known is empty or None.

    metadata: of their file; config: of their training; tiles: of the stage that made them, to train and to validate on;
    cities: of the store that they were trained from; validation, test: scores, as `agl_core.scoring.score` writes them;
    remarks: what had to be left out, and why.
    """

    name: str
    path: Path
    digest: str
    model: GeoposeNet
    metadata: dict[str, Any]
    config: dict[str, Any]
    tiles: tuple[int, int] | None
    cities: dict[str, CityData]
    validation: dict[str, Any] | None
    test: dict[str, Any] | None
    remarks: tuple[str, ...] = ()

    @property
    def max_agl(self) -> dict[str, float]:
        """Highest height by city, metres, to which predictions are clipped."""
        return max_agl(self.metadata)


def read_origin(config: ExportConfig) -> Origin:
    """The weights that `config.run` and `config.weights` name, loaded, and what is known of them.

    Raises:
        UserError: no such run or weights, or weights that cannot be used.
    """
    if not config.run and not config.weights.endswith(".safetensors"):
        raise UserError("nothing to export: give the name of a run with --run, or a .safetensors file with --weights")
    found = find_weights(Path(config.runs), config.run, config.weights)
    model, metadata = load_weights(found.path)
    with found.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    run = None if config.weights.endswith(".safetensors") else Path(config.runs) / config.run
    recorded = metadata.get("config")
    trained: dict[str, Any] = recorded if isinstance(recorded, dict) else {}
    test, remark = _test_score(run, digest) if run is not None else (None, "")
    return Origin(
        name=found.path.stem if run is None else run.name,
        path=found.path,
        digest=digest,
        model=model,
        metadata=metadata,
        config=trained,
        tiles=_tiles(run, str(metadata.get("stage", ""))) if run is not None else None,
        cities=_cities(trained, model.cities),
        validation=_score(metadata.get("score")),
        test=test,
        remarks=(remark,) if remark else (),
    )


def _test_score(run: Path, digest: str) -> tuple[dict[str, Any] | None, str]:
    """score.json of a run if it is of the weights with this digest, otherwise why it is left out."""
    if not (run / "score.json").is_file():
        return None, ""
    try:
        about = read_json(run / "predictions" / "about.json")
        score = _score(read_json(run / "score.json"))
    except UserError as error:
        return None, f"score.json is left out: {error}"
    if digest not in json.dumps(about):
        return None, "score.json is left out: it is of predictions with other weights of the run"
    return score, ""


def _score(found: Any) -> dict[str, Any] | None:
    whole = isinstance(found, Mapping) and isinstance(found.get("cities"), Mapping) and "score" in found
    return dict(found) if whole else None


def _tiles(run: Path, stage: str) -> tuple[int, int] | None:
    starts = [event for event in read_events(run / "events.jsonl") if event["kind"] == "start"]
    for event in reversed(starts):
        if event.get("stage") == stage and "tiles" in event:
            return int(event["tiles"]), int(event.get("validation_tiles", 0))
    return None


def _cities(config: Mapping[str, Any], cities: tuple[str, ...]) -> dict[str, CityData]:
    """Of the store that the weights were trained from, if it is still where it was and of the same cities."""
    where = config.get("store") or (str(Path(config["data"]) / "store") if config.get("data") else "")
    if not where or not (Path(where) / "data.mdb").is_file():
        return {}
    try:
        store = Store(Path(where))
    except UserError:
        return {}
    try:
        entries = list(store.entries)
    finally:
        store.close()
    of_city: dict[str, list[StoreEntry]] = {city: [] for city in cities}
    for entry in entries:
        of_city.setdefault(entry.city, []).append(entry)
    if not all(of_city.values()) or len(of_city) != len(cities):
        return {}
    return {city: _city(found) for city, found in of_city.items()}


def _city(entries: list[StoreEntry]) -> CityData:
    gsds = [entry.gsd for entry in entries]
    return CityData(len(entries), (min(gsds), max(gsds)), max(entry.highest for entry in entries))
