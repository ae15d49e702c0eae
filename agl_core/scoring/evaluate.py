"""The official score of predictions on disk."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from agl_core.config import EvaluateConfig
from agl_core.data.catalog import read_metadata
from agl_core.data.tiles import UNITS, read_agl, read_vflow
from agl_core.errors import UserError, valid_choice
from agl_core.files import writable_folder, write_json
from agl_core.geometry import Pose
from agl_core.machine import cores
from agl_core.reporting.progress import Progress
from agl_core.scoring.score import CityScore, ImageResult, Score, best_constant, score
from agl_core.scoring.sums import image_sums

_AGL, _VFLOW = "_AGL.tif", "_VFLOW.json"
_MOST_LISTED = 20
_HIGHEST_SCALE = 1e6  # px/m; a view one degree above the horizon at one centimetre per pixel has 6e3

Read = TypeVar("Read")


def evaluate(config: EvaluateConfig) -> Score:
    """Score the files in `config.predictions` against those in `config.truth`, and print a table.

    The images are the truth folder's `*_AGL.tif`; other predictions are not looked at. With `config.json` the score
    is also written there, whole or not at all: `score`, `cities` and `best_constant`.

    Raises:
        UserError: with every problem in one message, when a prediction is missing, cannot be read, has holes, another
            size than the truth or no pose, or an image has no city; nothing is scored or written then.
    """
    valid_choice("unit", config.unit, list(UNITS))
    predictions, truth = _folder(config.predictions, "--predictions"), _folder(config.truth, "--truth")
    ids = sorted(path.name.removesuffix(_AGL) for path in truth.glob(f"*{_AGL}"))
    if not ids:
        raise UserError(f"{truth} has no *{_AGL} files: give the folder of the truth with --truth")
    json_path = _json_path(config.json)
    cities, note = _cities(config.metadata, truth)

    def judge(image: str) -> ImageResult | list[str]:
        return _judge(image, cities(image), predictions, truth, config.unit)

    # Decoding is most of the work and leaves the interpreter's lock alone.
    threads = min(8, cores())
    with ThreadPoolExecutor(threads) as pool, Progress("evaluate", total=len(ids), unit="images") as progress:
        results, problems = [], []
        for judged in pool.map(judge, ids):
            if isinstance(judged, ImageResult):
                results.append(judged)
            else:
                problems += judged
            progress.advance()
    if problems:
        raise UserError(_listed(f"{predictions} cannot be scored against {truth}:", problems))

    reached, constant = score(results), best_constant(results)
    if json_path is not None:
        writable_folder(json_path.parent, "--json")
        write_json(json_path, {**reached.as_json(), "best_constant": constant.as_json()})
    # A log file has no width of its own; the table must not be folded into it at 80 columns.
    console = Console()
    console = console if console.is_terminal else Console(width=140)
    console.print(score_table(reached, constant, note))
    return reached


def score_table(reached: Score, constant: Score, note: str = "") -> Table:
    """A row per city and one for all of them, with the best constant prediction's score beside."""
    table = Table(box=SIMPLE_HEAD, caption=note or None, caption_justify="left")
    table.add_column("city")
    for name in (
        "images",
        "R2 heights",
        "R2 flow",
        "score",
        "best constant",
        "median angle error",
        "median scale error",
    ):
        table.add_column(name, justify="right")
    for name, city in reached.cities.items():
        table.add_row(name, *_cells(city, constant.cities[name]))
    table.add_section()
    images = sum(city.images for city in reached.cities.values())
    table.add_row("all", str(images), "", "", f"{reached.score:.4f}", f"{constant.score:.4f}", "", "", style="bold")
    return table


def _cells(city: CityScore, constant: CityScore) -> list[str]:
    return [
        str(city.images),
        f"{city.agl_r2:.4f}",
        "no truth" if city.vflow_r2 is None else f"{city.vflow_r2:.4f}",
        f"{city.score:.4f}",
        f"{constant.score:.4f}",
        "" if city.angle_error is None else f"{city.angle_error:.1f} deg",
        "" if city.scale_error is None else f"{city.scale_error:.4f} px/m",
    ]


def _folder(path: str, option: str) -> Path:
    if not path or not Path(path).is_dir():
        raise UserError(f"{path or '(nothing)'} is not a folder: give an existing one with {option}")
    return Path(path)


def _json_path(path: str) -> Path | None:
    """Where to write the score; that it can be is made sure in the nearest folder that exists, without a trace."""
    if not path:
        return None
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder: give the name of a file with --json")
    writable_folder(next(folder for folder in Path(path).absolute().parents if folder.exists()), "--json")
    return Path(path)


def _cities(metadata: str, truth: Path) -> tuple[Callable[[str], str | None], str]:
    """A function from image id to city (None: not listed), and a remark on where the cities come from."""
    path = Path(metadata) if metadata else _found([truth / "metadata.csv", truth.absolute().parent / "metadata.csv"])
    if path is None:
        note = "no metadata.csv found: cities are the beginnings of the ids, up to the first '_'"
        return (lambda image: image.partition("_")[0]), note
    cities = {image: about.city for image, about in read_metadata(path).items()}
    return cities.get, ""


def _found(paths: Iterable[Path]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _judge(image: str, city: str | None, predictions: Path, truth: Path, unit: str) -> ImageResult | list[str]:
    """The result of one image, or everything that is wrong with it."""
    problems: list[str] = []

    def read(function: Callable[[Path, str], Read], path: Path) -> Read | None:
        try:
            return function(path, unit)
        except UserError as error:
            problems.append(str(error))
            return None

    true_agl = read(read_agl, truth / f"{image}{_AGL}")
    agl = read(read_agl, predictions / f"{image}{_AGL}")
    pose = read(_read_pose, predictions / f"{image}{_VFLOW}")
    true_pose_path = truth / f"{image}{_VFLOW}"
    true_pose = read(_read_pose, true_pose_path) if true_pose_path.exists() else None
    sums = None
    if true_agl is not None and agl is not None:
        try:
            sums = image_sums(true_agl, agl)
        except UserError as error:
            problems.append(f"{predictions / f'{image}{_AGL}'}: {error}")
    if city is None:
        problems.append(f"{image} has no city in the metadata")
    if city is None or sums is None or pose is None or problems:
        return problems
    return ImageResult(image, city, sums, true_pose, pose)


def _read_pose(path: Path, unit: str) -> Pose:
    pose = read_vflow(path, unit)
    if pose.scale > _HIGHEST_SCALE:
        raise UserError(f"{path} has a scale of {pose.scale:g} pixels per metre, which no view has")
    return pose


def _listed(head: str, problems: list[str]) -> str:
    shown = problems[:_MOST_LISTED]
    if len(problems) > len(shown):
        shown = [*shown, f"and {len(problems) - len(shown)} more"]
    return "\n".join([f"{head} {len(problems)} problem{'s' * (len(problems) > 1)}", *(f"  - {line}" for line in shown)])
