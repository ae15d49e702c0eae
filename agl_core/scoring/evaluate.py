"""The official score of predictions on disk, and where it is lost."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from agl_core.config import EvaluateConfig
from agl_core.data.tiles import UNITS
from agl_core.errors import UserError, valid_choice
from agl_core.files import read_json, writable_folder, write_json, write_text
from agl_core.machine import cores
from agl_core.reporting.progress import Progress
from agl_core.scoring.figures import Figures, figures
from agl_core.scoring.folders import Pairs, find_pairs
from agl_core.scoring.score import ImageResult, Score, best_constant, by_city, lost, score
from agl_core.scoring.tables import (
    ALL,
    Sheet,
    csv_text,
    error_sheet,
    height_sheet,
    score_sheet,
    what_if_sheet,
    worst_sheet,
)
from agl_core.scoring.whatif import what_if

_OUTPUTS = ("json", "csv", "markdown", "calibration")
_WORST = 10
_ABOUT, _ABOUT_FORMAT = "about.json", "geopose-predictions-2"  # what `agl_core.inference` leaves beside predictions


@dataclass(frozen=True)
class Evaluation:
    """All that is said of a folder of predictions. parts: errors of each city, and of `ALL`; images: the values of
    each, sorted by id; note: what must be known of the score."""

    score: Score
    constant: Score
    what_if: dict[str, Score]
    parts: dict[str, Figures]
    images: list[dict[str, Any]]
    note: str

    def sheets(self, details: bool) -> list[Sheet]:
        """The tables; `details`: errors by height and the images that cost most too."""
        sheets = [score_sheet(self.score, self.constant, self.note), what_if_sheet(self.what_if)]
        if details:
            worst = sorted(self.images, key=lambda image: (-image["lost"], image["id"]))[:_WORST]
            sheets += [error_sheet(self.parts), height_sheet(self.parts), worst_sheet(worst)]
        return sheets

    def as_json(self) -> dict[str, Any]:
        """Plain dicts and numbers: `score`, `cities`, `best_constant`, `all`, `what_if` and `images`."""
        reached = self.score.as_json()
        cities = {name: {**self.parts[name].as_json(), **city} for name, city in reached["cities"].items()}
        changed = {
            name: {"score": one.score, "cities": {city: value.score for city, value in one.cities.items()}}
            for name, one in self.what_if.items()
        }
        return {
            "score": self.score.score,
            "cities": cities,
            "best_constant": self.constant.as_json(),
            "all": self.parts[ALL].as_json(),
            "what_if": changed,
            "images": {image["id"]: {key: image[key] for key in image if key != "id"} for image in self.images},
        }

    def markdown(self) -> str:
        """All tables as a page."""
        return "\n\n".join(["# Score of predictions", *(sheet.markdown() for sheet in self.sheets(True))]) + "\n"


def evaluate(config: EvaluateConfig) -> Score:
    """Score the files in `config.predictions` against those in `config.truth`, and print tables.

    The images are the truth folder's `*_AGL.tif`, with `config.subset` those of them that are predicted; other
    predictions are not looked at. Every file that is written besides (`json`, `csv`, `markdown`, `calibration`) is
    whole or not there.

    Raises:
        UserError: with every problem in one message, when a prediction is missing, cannot be read, has holes, another
            size than the truth or no pose, or an image has no city; nothing is scored or written then.
    """
    valid_choice("unit", config.unit, ["auto", *UNITS])
    paths = _outputs(config)
    pairs = find_pairs(config)
    gsds = _gsds(pairs) if "calibration" in paths else {}
    results = judge_all(pairs)
    found = evaluated(results, config.above, pairs.note)
    for option, path in paths.items():
        writable_folder(path.parent, f"--{option}")
    if "calibration" in paths:
        from agl_core.scoring.calibration import calibrate

        corrections = calibrate(results, gsds)
        write_json(paths["calibration"], corrections)
    if "csv" in paths:
        write_text(paths["csv"], csv_text(found.images))
    if "markdown" in paths:
        write_text(paths["markdown"], found.markdown())
    if "json" in paths:
        write_json(paths["json"], found.as_json())
    _print(found.sheets(config.details))
    if "calibration" in paths:
        print(_told(corrections, paths["calibration"]))
    return found.score


def _told(corrections: dict[str, Any], path: Path) -> str:
    """What was found to correct, city by city."""
    lines = [f"corrections -> {path}"]
    for city, one in corrections["cities"].items():
        (offset, slope), factor = one["scale_line"], one["height_factor"]
        told = f"heights x {factor:.4g}, scale * gsd = {offset:.4g} + {slope:.4g} x"
        none = (factor, offset, slope) == (1.0, 0.0, 1.0)
        lines.append(f"  {city}: {'nothing, or nothing that is sure' if none else told} ({one['images']} images)")
    return "\n".join(lines)


def judge_all(pairs: Pairs) -> list[ImageResult]:
    """The results of all images, in their order; raises `UserError` with all that is wrong with them."""
    results: list[ImageResult] = []
    problems: list[str] = []
    # Decoding is most of the work and leaves the interpreter's lock alone.
    with (
        ThreadPoolExecutor(min(16, cores())) as pool,
        Progress("evaluate", total=len(pairs.ids), unit="images") as progress,
    ):
        for judged in pool.map(pairs.judge, pairs.ids):
            if isinstance(judged, ImageResult):
                results.append(judged)
            else:
                problems += judged
            progress.advance()
    if problems:
        raise UserError(_listed(pairs, problems))
    return results


def evaluated(results: Sequence[ImageResult], above: float, note: str = "") -> Evaluation:
    """Everything that the results say; `above`: the metres that they were measured with.

    Raises `UserError` as `score`.
    """
    scores = what_if(results)
    cities = by_city(results)
    parts = {name: figures(images, above) for name, images in cities.items()} | {ALL: figures(results, above)}
    shares = lost(results)
    ordered = sorted(results, key=lambda result: result.id)
    images = [image_values(result, shares[result.id], above) for result in ordered]
    return Evaluation(score(results), best_constant(results), scores, parts, images, note)


def image_values(result: ImageResult, share: float, above: float) -> dict[str, Any]:
    """Everything about one image, for a row of CSV. share: what it takes away from a perfect score."""
    own = score([result]).cities[result.city] if result.sums.known else None
    return {
        "id": result.id,
        "city": result.city,
        "known_pixels": result.sums.known,
        "lost": share,
        "score": own and own.score,
        "agl_r2": own and own.agl_r2,
        "vflow_r2": own and own.vflow_r2,
        "true_scale": result.truth and result.truth.scale,
        "scale": result.prediction.scale,
        "true_angle": result.truth and result.truth.angle,
        "angle": result.prediction.angle,
        **figures([result], above).as_json(),
    }


def _gsds(pairs: Pairs) -> dict[str, float]:
    """Metres per pixel by image: those of the metadata, or where there is none those that they were predicted with."""
    if pairs.gsds:
        return pairs.gsds
    path = pairs.predictions / _ABOUT
    about = read_json(path) if path.is_file() else None
    images = about.get("images") if isinstance(about, dict) and about.get("format") == _ABOUT_FORMAT else None
    entries = images.items() if isinstance(images, dict) else ()
    gsds = {image: entry.get("gsd") for image, entry in entries if isinstance(entry, dict)}
    known = {image: float(gsd) for image, gsd in gsds.items() if isinstance(gsd, int | float) and 0 < gsd < math.inf}
    if not known:
        raise UserError(
            f"neither a metadata.csv of {pairs.truth} nor {path} tells the gsd of the images, which --calibration "
            "needs: give --metadata"
        )
    return known


def _outputs(config: EvaluateConfig) -> dict[str, Path]:
    """The files to write, by option."""
    paths = {option: path for option in _OUTPUTS if (path := _output(getattr(config, option), f"--{option}"))}
    for option, path in paths.items():
        other = next(name for name, one in paths.items() if one.absolute() == path.absolute())
        if other != option:
            raise UserError(f"--{other} and --{option} both name {path}: give each a file of its own")
    return paths


def _output(path: str, option: str) -> Path | None:
    """Where to write; that it can be is made sure in the nearest folder that exists, without a trace."""
    if not path:
        return None
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder: give the name of a file with {option}")
    writable_folder(next(folder for folder in Path(path).absolute().parents if folder.exists()), option)
    return Path(path)


def _listed(pairs: Pairs, problems: Sequence[str]) -> str:
    count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
    head = f"{pairs.predictions} cannot be scored against {pairs.truth}: {count}"
    if any(not pairs.predicted(image) for image in pairs.ids):
        head += " (to score only the images that are predicted, give --subset)"
    return "\n".join([head, *(f"  - {line}" for line in problems)])


def _print(sheets: Sequence[Sheet]) -> None:
    # A log file has no width of its own; the tables must not be folded into it at 80 columns.
    console = Console()
    console = console if console.is_terminal else Console(width=140)
    for sheet in sheets:
        console.print(sheet.shown())
