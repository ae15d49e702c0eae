"""The verb `ensemble`: folders of predictions of the same images become one folder of their averages."""

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agl_core.config import EnsembleConfig
from agl_core.data.tiles import UNITS, UNKNOWN, agl_size, read_agl, read_vflow
from agl_core.durable.exits import InterruptedRunError
from agl_core.durable.guard import Guard
from agl_core.errors import UserError, valid_choice
from agl_core.files import writable_folder
from agl_core.geometry import Pose, angle_from_direction, direction
from agl_core.inference.predictor import Prediction
from agl_core.inference.writer import PredictionWriter
from agl_core.machine import cores
from agl_core.reporting.progress import Progress

_AGL, _VFLOW = "_AGL.tif", "_VFLOW.json"
_MOST_LISTED = 20


def ensemble(config: EnsembleConfig, guard: Guard | None = None) -> int:
    """Write the average of the members' predictions of every image to `config.out`; returns the number of images.

    The members must have predicted the same images. Averages that the folder holds already and whose predictions have
    not changed since are kept, so that an interrupted call is continued by giving it again; the result does not depend
    on the order of the members. `guard` is asked before every image whether to leave.

    Raises:
        UserError: with everything that is wrong in one message: files that are missing, damaged or of another unit,
            sizes that differ, before anything is written; heights with holes, when all other images are written.
        InterruptedRunError: `guard` asked to leave; every image is whole or not there.
    """
    valid_choice("unit", config.unit, list(UNITS))
    members, out = member_folders(config.members), Path(config.out)
    if out.resolve() in [member.resolve() for member in members]:
        raise UserError(f"{out} is a member itself: choose another folder with --out")
    ids = sorted({image for member in members for image in _images(member)})
    if not ids:
        raise UserError(f"there are no predictions (*{_AGL}) in {', '.join(map(str, members))}: give their folders")
    threads = min(8, cores())
    with ThreadPoolExecutor(threads) as pool:
        problems = [
            line for found in pool.map(lambda image: _survey(image, members, config.unit), ids) for line in found
        ]
    if problems:
        raise UserError(_listed(problems))
    writer = PredictionWriter(writable_folder(out, "--out"), config.unit)
    settings = {"members": len(members), "unit": config.unit}
    kept = writer.keep(f"{len(members)} members", settings, {image: _sources(image, members) for image in ids})

    def average_one(image: str) -> str | None:
        """What is wrong with the image; None if it is written, or if nothing more shall be."""
        if guard is not None and guard.requested:
            return None
        try:
            writer.write(image, average([_read(image, member, config.unit) for member in members]))
        except UserError as error:
            return str(error)
        done.append(image)
        return None

    done: list[str] = []
    todo = [image for image in ids if image not in kept]
    with (
        ThreadPoolExecutor(threads) as pool,
        Progress("ensemble", total=len(ids), unit="images", start=len(kept)) as progress,
    ):
        for problem in pool.map(average_one, todo):
            problems += [problem] if problem is not None else []
            progress.advance()
    if guard is not None and guard.requested and len(done) + len(problems) < len(todo):
        told = f"{len(kept) + len(done)} of {len(ids)} images are averaged"
        raise InterruptedRunError(guard.signal or "a signal", None, told)
    if problems:
        raise UserError(_listed(problems))
    earlier = f", {len(kept)} of them before" if kept else ""
    print(f"{len(ids)} images averaged over {len(members)} members{earlier} -> {config.out}")
    return len(ids)


def member_folders(text: str) -> list[Path]:
    """The folders in a list A,B,...

    Raises:
        UserError: fewer than two, one of them twice, or one that is no folder.
    """
    members = [Path(name.strip()) for name in text.split(",") if name.strip()]
    if len(members) < 2:
        raise UserError(f"members is {text!r}: give the folders of two or more predictions, --members A,B")
    for number, member in enumerate(members):
        if not member.is_dir():
            raise UserError(f"{member} is not a folder: give folders of predictions with --members")
        if member.resolve() in [other.resolve() for other in members[:number]]:
            raise UserError(f"{member} is given twice: give each member once with --members")
    return members


def average(predictions: Sequence[Prediction]) -> Prediction:
    """The mean of the heights, rounded to centimetres, the mean scale, and the direction of the mean unit vector.

    The same to the last bit in whatever order: sums of centimetres are whole numbers, which float64 holds exactly, and
    the others are rounded once.
    """
    total: NDArray[np.float64] = np.zeros(predictions[0].agl_cm.shape)
    for prediction in predictions:
        total += prediction.agl_cm
    poses = [prediction.pose for prediction in predictions]
    steps = [direction(pose.angle) for pose in poses]
    dx, dy = (math.fsum(parts) for parts in zip(*steps, strict=True))
    scale = math.fsum(pose.scale for pose in poses) / len(poses)
    agl_cm = np.rint(total / len(predictions)).astype(np.uint16)
    return Prediction(agl_cm, Pose(scale, float(angle_from_direction(dx, dy))))


def _images(folder: Path) -> Iterable[str]:
    """The ids of the images of which there is a prediction, or half of one."""
    for suffix in (_AGL, _VFLOW):
        yield from (path.name.removesuffix(suffix) for path in folder.glob(f"[!.]*{suffix}"))


def _survey(image: str, members: Sequence[Path], unit: str) -> list[str]:
    """What is wrong with the members' predictions of an image, as far as it shows without decoding them."""
    problems, sizes = [], {}
    for member in members:
        try:
            sizes[member] = agl_size(member / f"{image}{_AGL}", unit)
        except UserError as error:
            problems.append(str(error))
        try:
            read_vflow(member / f"{image}{_VFLOW}", unit)
        except UserError as error:
            problems.append(str(error))
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{height} x {width} in {member}" for member, (height, width) in sizes.items())
        problems.append(f"the members' {image}{_AGL} differ in size: {told}")
    return problems


def _read(image: str, member: Path, unit: str) -> Prediction:
    path = member / f"{image}{_AGL}"
    agl_cm = read_agl(path, unit)
    if holes := int(np.count_nonzero(agl_cm == UNKNOWN)):
        raise UserError(f"{path} has {holes} holes (pixels that are {UNKNOWN} or NaN)")
    return Prediction(agl_cm, read_vflow(member / f"{image}{_VFLOW}", unit))


def _sources(image: str, members: Sequence[Path]) -> list[list[int]]:
    """What the average of an image is made of, in no order of the members."""
    return sorted(
        [number for suffix in (_AGL, _VFLOW) for number in _state(member / f"{image}{suffix}")] for member in members
    )


def _state(path: Path) -> tuple[int, int]:
    try:
        state = path.stat()
    except FileNotFoundError:  # gone since the survey: reading it will say so
        return (-1, -1)
    return state.st_size, state.st_mtime_ns


def _listed(problems: list[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    more = [f"and {len(problems) - _MOST_LISTED} more"] if len(problems) > _MOST_LISTED else []
    lines = [f"  - {line}" for line in [*problems[:_MOST_LISTED], *more]]
    return "\n".join([f"the members cannot be averaged: {len(problems)} problems", *lines])
