"""The verb `predict`: weights of one run or of several, images, a folder of predictions."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rasterio
import torch

from agl_core.config import PredictConfig
from agl_core.config.option import TTA
from agl_core.durable.exits import InterruptedRunError
from agl_core.durable.guard import Guard
from agl_core.errors import UserError, valid_choice
from agl_core.files import writable_folder
from agl_core.inference.archive import check_name, pack
from agl_core.inference.calibration import check_tables, corrections
from agl_core.inference.images import Job, data_set_jobs, single_jobs
from agl_core.inference.members import (
    Member,
    Weights,
    check_cities,
    common_cities,
    find_members,
    find_weights,
    load_members,
    max_agl,
    named,
    trained_precision,
    trained_tta,
)
from agl_core.inference.pipeline import Pipeline
from agl_core.inference.predictor import Predictor
from agl_core.inference.rasters import FORMATS
from agl_core.inference.sharing import joined
from agl_core.inference.writer import PredictionWriter
from agl_core.model.precision import DTYPES, Precision
from agl_core.reporting.progress import Progress

__all__ = ["Weights", "find_weights", "max_agl", "predict", "trained_precision", "trained_tta"]

_GDAL_CACHE = 2**29  # bytes; GDAL's own choice, a twentieth of the memory, is much on large machines


@dataclass(frozen=True)
class Plan:
    """What is to be predicted, with what, and everything that the results depend on."""

    jobs: list[Job]
    notes: list[str]
    members: list[Member]
    predictor: Predictor
    unit: str
    settings: dict[str, Any]


def predict(
    config: PredictConfig,
    guard: Guard | None = None,
    *,
    rank: int = 0,
    ranks: int = 1,
    device: torch.device | None = None,
) -> int:
    """Write `<id>_AGL.tif` and `<id>_VFLOW.json` to `config.out` for every image; returns their number.

    What the folder holds already of the same weights, settings and images is kept, so that an interrupted call is
    continued by giving it again. Several calls with the same configuration, in processes of this machine and of others,
    share the images and return when all are there; `rank` of `ranks` says where this one begins, and that the first one
    reports and packs the archive. `guard` is asked before every image, and every window of a scene, whether to leave.
    device: the GPU if there is one, otherwise the CPU.

    Everything that can be wrong is checked before the first image is predicted, except the inside of the images.
    Where something fails later, every image is either complete or without its VFLOW file, also if the folder held
    predictions before.

    Raises:
        UserError: no such run, weights, data or images, a city that the model does not know, an image that cannot be
            read, a folder that cannot be written to or that others are filling with other predictions, or weights that
            answer with NaN.
        InterruptedRunError: `guard` asked to leave; every image is whole or not there.
    """
    _check(config)
    plan = _plan(config, device, ranks)
    what = f"{len(plan.jobs)} images of {config.images or f'{config.data} ({config.split})'}"
    out = writable_folder(Path(config.out), "--out")
    writer = PredictionWriter(out, plan.unit, config.format, config.uncertainty, config.quicklook)
    sources = {job.id: _source(job) for job in plan.jobs}

    def begin(alone: bool) -> tuple[set[str], bool]:
        # Windows are the same on another machine, as far as its memory goes, so that the heights are.
        memory = plan.predictor.memory if config.window is None else None
        kept = writer.keep(named(plan.members), plan.settings, sources, alone, memory)
        if isinstance(writer.memory, int):
            plan.predictor.use_memory(writer.memory)
        return kept, alone

    with rasterio.Env(GDAL_CACHEMAX=_GDAL_CACHE), _cpu_threads(config.threads), joined(out, begin) as (claims, begun):
        kept, alone = begun
        todo = [job for job in plan.jobs if job.id not in kept]
        first = rank * len(todo) // ranks
        total, start = len(plan.jobs), len(kept)
        with Progress("predict", total=total, unit="images", start=start, shown=rank == 0) as progress:
            for note in plan.notes:
                progress.note(note)
            Pipeline(plan.predictor, writer, claims, guard, progress, bool(config.images)).run(
                todo[first:] + todo[:first]
            )
        if rank == 0 and config.archive:
            pack(out, list(sources), Path(config.archive), lambda: _leave_unpacked(guard, total))
    if rank == 0:
        # Of several processes, another may have done some before this one began.
        earlier = f", {len(kept)} of them before" if kept and alone and ranks == 1 else ""
        print(f"{what} predicted with {named(plan.members)}{earlier} -> {config.out}")
    return len(plan.jobs)


def _check(config: PredictConfig) -> None:
    valid_choice("unit", config.unit, ["auto", "cm", "m"])
    valid_choice("split", config.split, ["test", "train", "held-out"])
    valid_choice("precision", config.precision, ["auto", *DTYPES])
    valid_choice("tta", config.tta, ["auto", *TTA])
    valid_choice("format", config.format, list(FORMATS))
    if config.threads is not None and config.threads < 1:
        raise UserError(f"threads is {config.threads}: give at least 1, or leave it out for all cores")
    if config.archive:
        check_name(Path(config.archive))


def _plan(config: PredictConfig, device: torch.device | None, ranks: int) -> Plan:
    members = find_members(Path(config.runs), config.run, config.weights, config.member_weights)
    models, metadata = load_members(members)
    notes: list[str] = []
    if config.images:
        jobs, notes = single_jobs(config, common_cities(models))
    else:
        jobs = data_set_jobs(config, metadata[0].get("config", {}))
    cities = {job.city for job in jobs}
    check_cities(members, models, cities)
    check_tables(config, cities.union(*(model.cities for model in models)))
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    given = config.precision
    precisions = [given if given != "auto" else trained_precision(one, device) for one in metadata]
    tta = [config.tta if config.tta != "auto" else trained_tta(one) for one in metadata]
    correct = corrections(config, metadata)
    unit = config.unit if config.unit != "auto" else "m" if config.images else "cm"
    weights = tuple(member.weight for member in members)
    predictor = Predictor(
        models,
        correct.max_agl,
        config.window,
        config.overlap,
        precisions,
        device,
        tta,
        member_weights=weights,
        combine=config.combine,
        at_once=config.members_at_once,
        height_factor=correct.height_factor,
        scale_lines=correct.scale_lines,
        spread=config.uncertainty,
        processes=ranks if device.type == "cpu" else 1,  # each has a GPU of its own, but the host's memory is shared
    )
    settings = {
        "weights": [_digest(member.path) for member in members],
        "member_weights": list(weights),
        "combine": config.combine,
        "unit": unit,
        "format": config.format,
        "spread": config.uncertainty,
        "masked": bool(config.images),
        "window": "auto" if config.window is None else config.window,
        "overlap": 0 if config.window == 0 else config.overlap,
        "precision": [Precision.choose(name, device).name for name in precisions],
        "tta": tta,
        "corrections": correct.as_settings(),
    }
    return Plan(jobs, notes, members, predictor, unit, settings)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _source(job: Job) -> dict[str, Any]:
    """What the prediction of an image depends on, beside the weights and the settings."""
    about = {"rgb": str(job.path.absolute()), "city": job.city, "gsd": job.gsd}
    try:
        state = job.path.stat()
    except FileNotFoundError:  # gone since it was found: reading it will say so
        return {**about, "size": -1, "mtime_ns": -1}
    return {**about, "size": state.st_size, "mtime_ns": state.st_mtime_ns}


def _leave_unpacked(guard: Guard | None, images: int) -> None:
    if guard is not None and guard.requested:
        told = f"all {images} images are predicted, but the archive is not written"
        raise InterruptedRunError(guard.signal or "a signal", None, told)


@contextmanager
def _cpu_threads(threads: int | None) -> Iterator[None]:
    """Compute with that many CPU threads, and afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads if threads is not None else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
