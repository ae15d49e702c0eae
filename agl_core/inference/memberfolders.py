"""Several folders of predictions of the same images: what is wrong with them, and what they have in common."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agl_core.data.georeference import Georeference, read_georeference
from agl_core.data.tiles import UNKNOWN, agl_size, read_agl, read_vflow
from agl_core.errors import UserError
from agl_core.inference.calibration import Corrections
from agl_core.inference.folder import AGL, VFLOW, read_about, read_folder
from agl_core.inference.predictor import Prediction

_MOST_LISTED = 20


@dataclass(frozen=True)
class Place:
    """Where an image was taken and how large its pixels are, as far as that is known and needed."""

    city: str | None = None
    gsd: float | None = None


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


def images_of(folder: Path) -> Iterable[str]:
    """The ids of the images of which there is a prediction, or half of one."""
    for suffix in (AGL, VFLOW):
        yield from (path.name.removesuffix(suffix) for path in folder.glob(f"[!.]*{suffix}"))


def survey(image: str, members: Sequence[Path], unit: str) -> tuple[list[str], int]:
    """What is wrong with the members' predictions of an image, as far as it shows without decoding them; its pixels."""
    problems, sizes = [], {}
    for member in members:
        try:
            sizes[member] = agl_size(member / f"{image}{AGL}", unit)
        except UserError as error:
            problems.append(str(error))
        try:
            read_vflow(member / f"{image}{VFLOW}", unit)
        except UserError as error:
            problems.append(str(error))
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{height} x {width} in {member}" for member, (height, width) in sizes.items())
        problems.append(f"the members' {image}{AGL} differ in size: {told}")
    return problems, max((height * width for height, width in sizes.values()), default=0)


def places_of(ids: Sequence[str], members: Sequence[Path], unit: str, correct: Corrections) -> dict[str, Place]:
    """Of all images what the corrections depend on, as the members' folders know it; {} if they depend on nothing.

    Raises:
        UserError: images of which no member knows it, or of which members do not say the same.
    """
    if not (correct.by_city or correct.by_gsd):
        return {}
    folders = [{image.id: image for image in read_folder(member, unit=unit, option="--members")} for member in members]
    places, problems = {}, []
    for key, needed in (("city", correct.by_city), ("gsd", correct.by_gsd)):
        said = {image: {getattr(folder[image], key) for folder in folders} - {None} for image in ids}
        if without := [image for image in ids if needed and not said[image]]:
            more = f" and {len(without) - 5} more" if len(without) > 5 else ""
            problems.append(
                f"the {key} of {', '.join(without[:5])}{more} is not known, on which the corrections depend: put a "
                "metadata.csv (id, city, gsd) into a member's folder or above it"
            )
        for image in ids:
            if needed and len(said[image]) > 1:
                problems.append(f"the members do not agree in the {key} of {image}: {_told(said[image])}")
        places[key] = {image: min(values) if needed and values else None for image, values in said.items()}
    if problems:
        raise UserError(listed(problems))
    return {image: Place(places["city"][image], places["gsd"][image]) for image in ids}


def sources_of(
    ids: Sequence[str], members: Sequence[Path], weights: Sequence[float], places: Mapping[str, Place]
) -> dict[str, dict[str, Any]]:
    """What the average of each image is made of, in no order of the members, and what they know of the image."""
    known = [read_about(member).get("images", {}) for member in members]
    sources = {}
    for image in ids:
        files = [
            [weight, *(number for kind in (AGL, VFLOW) for number in _state(member / f"{image}{kind}"))]
            for member, weight in zip(members, weights, strict=True)
        ]
        told = [about[image] for about in known if isinstance(about.get(image), dict)]
        common = {
            key: told[0][key]
            for key in ("rgb", "size", "mtime_ns", "city", "gsd")
            if told and all(key in other and other[key] == told[0][key] for other in told)
        }
        needed = {key: value for key, value in vars(places.get(image, Place())).items() if value is not None}
        sources[image] = {**common, **needed, "members": sorted(files)}
    return sources


def read_prediction(image: str, member: Path, unit: str) -> Prediction:
    """A member's heights, 65535 where unknown, and its pose; raises `UserError` as `read_agl` and `read_vflow`."""
    return Prediction(read_agl(member / f"{image}{AGL}", unit), read_vflow(member / f"{image}{VFLOW}", unit))


def common_holes(image: str, members: Sequence[Path], predictions: Sequence[Prediction]) -> NDArray[np.bool_] | None:
    """(H, W) where nothing is known, which all members must say; None if everything is."""
    if all(prediction.agl_cm.max(initial=0) < UNKNOWN for prediction in predictions):
        return None
    holes = [prediction.agl_cm == UNKNOWN for prediction in predictions]
    common: NDArray[np.bool_] = np.logical_and.reduce(holes)
    for member, own in zip(members, holes, strict=True):
        if count := int(np.count_nonzero(own & ~common)):
            raise UserError(
                f"{member / f'{image}{AGL}'} has {count} holes (pixels that are {UNKNOWN} or NaN) that not all members "
                "have"
            )
    return common


def common_georeference(image: str, members: Sequence[Path]) -> Georeference | None:
    """Where the heights of all members lie; None if they do not say it.

    Raises:
        UserError: they lie in different places.
    """
    found = [read_georeference(member / f"{image}{AGL}") for member in members]
    for member, other in zip(members, found, strict=True):
        if other != found[0]:
            raise UserError(
                f"the members' {image}{AGL} do not lie in the same place by their georeferences: compare that in "
                f"{members[0]} with that in {member}"
            )
    return found[0] if found[0].profile() else None


def listed(problems: list[str]) -> str:
    """All problems in one message."""
    if len(problems) == 1:
        return problems[0]
    more = [f"and {len(problems) - _MOST_LISTED} more"] if len(problems) > _MOST_LISTED else []
    lines = [f"  - {line}" for line in [*problems[:_MOST_LISTED], *more]]
    return "\n".join([f"the members cannot be averaged: {len(problems)} problems", *lines])


def _told(values: Iterable[Any]) -> str:
    return " and ".join(str(value) for value in sorted(values))


def _state(path: Path) -> tuple[int, int]:
    try:
        state = path.stat()
    except FileNotFoundError:  # gone since the survey: reading it will say so
        return (-1, -1)
    return state.st_size, state.st_mtime_ns
