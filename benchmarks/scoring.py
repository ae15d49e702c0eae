"""Scoring predictions of 2048 x 2048: this project's way against a straightforward one in numpy.

The straightforward way, `official_way.straightforward`, is what the official score says, line by line: two passes,
float32, one thread. `careful` is the same written to be fast. Both read the files with the same library as ours.

- whole: from the files to the score. `evaluate` is the verb, with all its tables, figures and what-ifs, in as many
  threads as there are cores; once more on one core.
- arithmetic: from uint16 centimetres in memory, with one thread: the five sums of the score; and one pass for all
  errors (by height, absolute, end-point), against numpy with the same figures.
"""

import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
from numpy.typing import NDArray

if not __package__:  # run as a file: Python then looks for modules in this folder, not in the one above
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agl_core.config import EvaluateConfig
from agl_core.data.tiles import HIGHEST_CM, UNKNOWN, read_vflow, write_agl, write_vflow
from agl_core.geometry import Pose
from agl_core.scoring.errors import height_edges, measure
from agl_core.scoring.evaluate import evaluate
from agl_core.scoring.score import ImageResult, score
from agl_core.scoring.sums import image_sums
from benchmarks.harness import Comparison, Contender, arguments, at_least, compare, report
from benchmarks.official_way import Pair, careful, official_score, straightforward
from benchmarks.tiles import CONTENT, Tile, read_tiles, rendered

STRAIGHTFORWARD, CAREFUL, OURS, ONE_CORE = "straightforward", "careful numpy", "evaluate", "evaluate, one core"
FIVE_SUMS, ALL_ERRORS, ALL_CAREFUL, ONE_PASS = (
    "five sums", "straightforward, all errors", "careful numpy, all errors", "one pass, all errors",
)  # fmt: skip
WHOLE, ARITHMETIC = 5.0, 15.0
"""Times as fast, at least."""


@dataclass(frozen=True)
class Case:
    """size: pixels of a side; images: to score; rounds: of both comparisons."""

    size: int
    images: int
    rounds: int


QUICK = Case(size=512, images=3, rounds=2)
FULL = Case(size=2048, images=24, rounds=7)


def read_plainly(path: Path) -> NDArray[np.uint16]:
    with rasterio.open(path) as raster:
        heights: NDArray[np.uint16] = raster.read(1)
    return heights


def prediction(tile: Tile, seed: int) -> tuple[NDArray[np.uint16], Pose]:
    """Heights like a network's, without edges and off by a metre over tens of pixels; and a pose nearly right."""
    generator = np.random.default_rng(seed)
    known = np.where(tile.agl == UNKNOWN, 0, tile.agl).astype(np.float32)
    noise = cv2.GaussianBlur(generator.normal(0, 1, known.shape).astype(np.float32), (0, 0), 8)
    found: Any = cv2.GaussianBlur(known, (0, 0), 2) + noise * np.float32(100 / noise.std())
    true = Pose(tile.entry.scale or 0, tile.entry.angle or 0)
    pose = Pose(true.scale * generator.uniform(0.9, 1.1), true.angle + generator.normal(0, 0.2))
    return np.clip(np.rint(found), 0, HIGHEST_CM).astype(np.uint16), pose


def write_folders(out: Path, tiles: Sequence[Tile], data: Path, count: int) -> None:
    """`count` images with truth and prediction below `out`, the contents of `tiles` in turn under other names."""
    rows = ["id,city,gsd"]
    for folder in ("truth", "predicted"):
        (out / folder).mkdir(parents=True)
    for number in range(count):
        tile, first = tiles[number % len(tiles)], number < len(tiles)
        name = f"{tile.entry.id}_{number:03d}"
        rows.append(f"{name},{tile.entry.city},{tile.entry.gsd}")
        for suffix in ("_AGL.tif", "_VFLOW.json"):
            (out / "truth" / f"{name}{suffix}").symlink_to(data / "train" / f"{tile.entry.id}{suffix}")
            if not first:
                original = out / "predicted" / f"{tile.entry.id}_{number % len(tiles):03d}{suffix}"
                (out / "predicted" / f"{name}{suffix}").symlink_to(original)
        if first:
            heights, pose = prediction(tile, number)
            write_agl(out / "predicted" / f"{name}_AGL.tif", heights, "cm")
            write_vflow(out / "predicted" / f"{name}_VFLOW.json", pose, "cm")
    (out / "metadata.csv").write_text("\n".join(rows) + "\n")


def on_disk(folder: Path) -> list[Pair]:
    """The images of `write_folders`, read anew whenever they are asked for."""
    cities = dict(line.split(",")[:2] for line in (folder / "metadata.csv").read_text().splitlines()[1:])

    def reader(kind: str, image: str) -> Callable[[], NDArray[np.uint16]]:
        return lambda: read_plainly(folder / kind / f"{image}_AGL.tif")

    def pose(kind: str, image: str) -> Pose:
        return read_vflow(folder / kind / f"{image}_VFLOW.json", "cm")

    return [
        Pair(city, reader("truth", name), reader("predicted", name), pose("truth", name), pose("predicted", name))
        for name, city in cities.items()
    ]


def in_memory(pairs: Iterable[Pair]) -> list[Pair]:
    """The same images, read once."""

    def held(heights: NDArray[np.uint16]) -> Callable[[], NDArray[np.uint16]]:
        return lambda: heights

    return [pair._replace(truth=held(pair.truth()), predicted=held(pair.predicted())) for pair in pairs]


def from_sums(pairs: Sequence[Pair]) -> float:
    """The score by the five sums."""
    results = [
        ImageResult(str(number), pair.city, image_sums(pair.truth(), pair.predicted()), pair.true, pair.pose)
        for number, pair in enumerate(pairs)
    ]
    return score(results).score


def from_one_pass(pairs: Sequence[Pair]) -> float:
    """The same, with all other errors found in the same pass."""
    edges, results = height_edges(2), []
    for number, pair in enumerate(pairs):
        found = measure(pair.truth(), pair.predicted(), edges, pair.true, pair.pose)
        results.append(ImageResult(str(number), pair.city, found.sums, pair.true, pair.pose, found.errors))
    return score(results).score


def verb(folder: Path) -> float:
    """What a user starts, without its words."""
    config = EvaluateConfig(
        predictions=str(folder / "predicted"), truth=str(folder / "truth"), json=str(folder / "score.json")
    )
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        return evaluate(config).score


@contextmanager
def one_core() -> Iterator[None]:
    """This process on one core, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def contenders(ways: dict[str, Callable[[], float]]) -> dict[str, Contender]:
    """What finds the score as something to be timed; they must agree, as far as float32 goes."""
    expected = next(iter(ways.values()))()

    def contender(way: Callable[[], float]) -> Contender:
        def run() -> None:
            found = way()
            if abs(found - expected) > 1e-3:
                raise SystemExit(f"two ways find the scores {expected} and {found}: that is no comparison")

        return run

    return {name: contender(way) for name, way in ways.items()}


def whole(folder: Path, case: Case) -> Comparison:
    """Seconds from the files to the score of all images."""

    def on_one_core() -> float:
        with one_core():
            return verb(folder)

    pairs = on_disk(folder)
    ways = {
        STRAIGHTFORWARD: lambda: official_score(straightforward, pairs),
        CAREFUL: lambda: official_score(careful, pairs),
        OURS: lambda: verb(folder),
        ONE_CORE: on_one_core,
    }
    return compare(contenders(ways), case.rounds, STRAIGHTFORWARD)


def arithmetic(folder: Path, case: Case, distinct: int) -> Comparison:
    """Seconds from heights in memory to the score of the first `distinct` images."""
    pairs = in_memory(on_disk(folder)[:distinct])
    ways = {
        STRAIGHTFORWARD: lambda: official_score(straightforward, pairs),
        CAREFUL: lambda: official_score(careful, pairs),
        FIVE_SUMS: lambda: from_sums(pairs),
        ALL_ERRORS: lambda: official_score(straightforward, pairs, errors=True),
        ALL_CAREFUL: lambda: official_score(careful, pairs, errors=True),
        ONE_PASS: lambda: from_one_pass(pairs),
    }
    return compare(contenders(ways), case.rounds, STRAIGHTFORWARD)


def times_as_fast(comparison: Comparison, name: str, than: str) -> float:
    """Median over the rounds."""
    return Comparison(than, comparison.seconds).faster(name).median


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments("Scoring: this project's way against a straightforward one in numpy.", argv)
    case = QUICK if options.quick else FULL
    data = rendered(case.size)
    tiles = read_tiles(data)
    with tempfile.TemporaryDirectory(prefix="agl-scoring-") as name:
        write_folders(Path(name), tiles, data, case.images)
        through = whole(Path(name), case)
        sums = arithmetic(Path(name), case, len(tiles))
    held = [
        at_least("whole scoring, from the files", times_as_fast(through, OURS, STRAIGHTFORWARD), WHOLE, "x as fast"),
        at_least("arithmetic of the score", times_as_fast(sums, FIVE_SUMS, STRAIGHTFORWARD), ARITHMETIC, "x as fast"),
        at_least("arithmetic of all errors", times_as_fast(sums, ONE_PASS, ALL_ERRORS), ARITHMETIC, "x as fast"),
    ]
    size = f"{case.size} x {case.size}"
    title = f"from the files to the score, {case.images} images of {size}, {case.rounds} rounds"
    tables = [sums.as_table(f"arithmetic alone, one thread, {len(tiles)} images of {size} in memory")]
    settings = {**vars(case), "content": CONTENT, "arithmetic": sums.as_json()}
    report(through, title, settings, options, tables, held)


if __name__ == "__main__":
    main()
