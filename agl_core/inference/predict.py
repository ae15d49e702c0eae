"""The verb `predict`: a run's weights, a split's images, a folder of predictions."""

import hashlib
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from agl_core.config import PredictConfig, TrainConfig
from agl_core.data.catalog import TileRecord, read_catalog
from agl_core.data.tiles import UNITS, read_rgb
from agl_core.durable.exits import InterruptedRunError
from agl_core.durable.guard import Guard
from agl_core.errors import UserError, valid_choice
from agl_core.files import writable_folder
from agl_core.inference.predictor import SYMMETRIES, NotFiniteError, Prediction, Predictor, city_index
from agl_core.inference.writer import PredictionWriter
from agl_core.model.precision import DTYPES
from agl_core.model.weights import load_weights
from agl_core.reporting.progress import Progress

_READ_AHEAD = 2  # images per reading thread


@dataclass(frozen=True)
class Weights:
    """A weights file, and how to call it when talking to the user."""

    path: Path
    name: str


def predict(config: PredictConfig, guard: Guard | None = None) -> int:
    """Write `<id>_AGL.tif` and `<id>_VFLOW.json` to `config.out` for every image of a split; returns their number.

    What the folder holds already of the same weights, settings and images is kept, so that an interrupted call is
    continued by giving it again. `guard` is asked before every image whether to leave.

    Everything that can be wrong is checked before the first image is predicted, except the inside of the images.
    Where something fails later, every image is either complete or without its VFLOW file, also if the folder held
    predictions before.

    Raises:
        UserError: no such run, weights or data, a city that the model does not know, an image that cannot be read, a
            folder that cannot be written to, or weights that answer with NaN.
        InterruptedRunError: `guard` asked to leave; every image is whole or not there.
    """
    valid_choice("unit", config.unit, list(UNITS))
    valid_choice("split", config.split, ["test", "train"])
    valid_choice("precision", config.precision, ["auto", *DTYPES])
    valid_choice("tta", config.tta, ["auto", *SYMMETRIES])
    if config.threads is not None and config.threads < 1:
        raise UserError(f"threads is {config.threads}: give at least 1, or leave it out for all cores")
    weights = find_weights(Path(config.runs), config.run, config.weights)
    records = read_catalog(Path(config.data), config.split)
    model, metadata = load_weights(weights.path)
    for city in sorted({record.city for record in records}):
        city_index(model, city)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = config.precision if config.precision != "auto" else trained_precision(metadata, device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    tta = config.tta if config.tta != "auto" else trained_tta(metadata)
    predictor = Predictor(model, max_agl(metadata), config.window, config.overlap, precision, device, tta)
    writer = PredictionWriter(writable_folder(Path(config.out), "--out"), config.unit)
    settings = {
        "weights": _digest(weights.path),
        "unit": config.unit,
        "window": config.window,
        "overlap": config.overlap if config.window else 0,
        "precision": predictor.precision.name,
        **({"tta": tta} if tta != "none" else {}),  # so that predictions from before there was a choice are kept
    }
    kept = writer.keep(weights.name, settings, {record.id: _source(record) for record in records})
    with _cpu_threads(config.threads):
        _predict_all([record for record in records if record.id not in kept], len(kept), predictor, writer, guard)
    earlier = f", {len(kept)} of them before" if kept else ""
    print(
        f"{len(records)} images of {config.data} ({config.split}) predicted with {weights.name}{earlier} "
        f"-> {config.out}"
    )
    return len(records)


def find_weights(runs: Path, run: str, weights: str) -> Weights:
    """The file that `weights` means: best, last, last-ema (the average of the last ones), <stage>/best and so on,
    or a path ending in .safetensors.

    Without a stage it is the last stage of the run that has weights.
    """
    if weights.endswith(".safetensors"):
        if not Path(weights).is_file():
            raise UserError(f"weights {weights} do not exist: give an existing file with --weights")
        return Weights(Path(weights), weights)
    if not run or not (runs / run / "config.yaml").is_file():
        known = sorted(path.parent.name for path in runs.glob("*/config.yaml"))
        raise UserError(f"there is no run {run!r} in {runs}: it has {', '.join(known) or 'none'}")
    stages = _stages(runs / run / "config.yaml")
    stage, _, which = weights.rpartition("/")
    valid_choice("weights", which, ["best", "last", "last-ema"])
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


def max_agl(metadata: Mapping[str, Any]) -> dict[str, float]:
    """Highest height by city, metres, as the weights were trained with; the default of training where not recorded."""
    recorded = metadata.get("config", {}).get("max_agl")
    return dict(recorded) if recorded else TrainConfig().max_agl


def trained_precision(metadata: Mapping[str, Any], device: torch.device) -> str:
    """The precision that the training run was given; auto where it was given none or one that `device` has not."""
    recorded = str(metadata.get("config", {}).get("precision", "auto"))
    return "auto" if recorded == "float16" and device.type == "cpu" else recorded


def trained_tta(metadata: Mapping[str, Any]) -> str:
    """The test-time augmentation that the training run was given; none for weights from before there was a choice."""
    return str(metadata.get("config", {}).get("tta", "none"))


def _stages(path: Path) -> list[str]:
    try:
        config = OmegaConf.load(path)
    except (OSError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}): is it a run of this project?") from None
    stages = config.get("stages") if isinstance(config, DictConfig) else None
    if not stages:
        raise UserError(f"{path} has no stages: is it a run of this project?")
    return [str(stage) for stage in stages]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _source(record: TileRecord) -> list[Any]:
    """What the prediction of an image depends on, beside the weights and the settings."""
    try:
        state = record.rgb.stat()
    except FileNotFoundError:  # gone since the catalogue was read: reading it will say so
        return []
    return [record.rgb.name, state.st_size, state.st_mtime_ns, record.city, record.gsd]


def _predict_all(
    records: Sequence[TileRecord], done: int, predictor: Predictor, writer: PredictionWriter, guard: Guard | None
) -> None:
    """Predict `records`; `done` more are there already."""
    # Decoding JPEG 2000 takes longer than a forward pass on a GPU; on CPU the cores belong to the network.
    readers = 4 if predictor.device.type == "cuda" else 1
    with (
        Progress("predict", total=done + len(records), unit="images", start=done) as progress,
        ThreadPoolExecutor(1) as writing,
        closing(_read_ahead(records, readers)) as images,
    ):
        written: deque[Future[None]] = deque()
        for record, rgb in images:
            if guard is not None and guard.requested:
                break
            written.append(writing.submit(writer.write, record.id, _predict_one(predictor, record, rgb)))
            if len(written) > _READ_AHEAD:
                written.popleft().result()
                progress.advance()
        for future in written:
            future.result()
            progress.advance()
    if guard is not None and guard.requested and progress.done < progress.total:
        told = f"{progress.done} of {progress.total} images are predicted"
        raise InterruptedRunError(guard.signal or "a signal", None, told)


def _predict_one(predictor: Predictor, record: TileRecord, rgb: NDArray[np.uint8]) -> Prediction:
    try:
        return predictor.predict(rgb, record.city, record.gsd)
    except NotFiniteError as error:
        raise UserError(f"image {record.id}: {error}") from None


def _read_ahead(records: Sequence[TileRecord], threads: int) -> Generator[tuple[TileRecord, NDArray[np.uint8]]]:
    """The images in order, each decoded while those before it are in use; a bounded number is in memory."""
    pool = ThreadPoolExecutor(threads)
    try:
        waiting = iter(records)
        ahead = deque((record, pool.submit(read_rgb, record.rgb)) for record in islice(waiting, threads * _READ_AHEAD))
        while ahead:
            record, future = ahead.popleft()
            rgb = future.result()
            ahead.extend((following, pool.submit(read_rgb, following.rgb)) for following in islice(waiting, 1))
            yield record, rgb
    finally:  # who leaves early does not wait for images that nobody has begun to read
        pool.shutdown(cancel_futures=True)


@contextmanager
def _cpu_threads(threads: int | None) -> Iterator[None]:
    """Compute with that many CPU threads, and afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads if threads is not None else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
