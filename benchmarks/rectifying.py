"""Moving an image and its heights to the ground they stand on, on one thread: `rectified` against a loop over pixels.

The loop is the way of the reference: every pixel of the image is rounded to where it stands, and the tallest of those
that land on a pixel stays. It leaves cracks, which `rectified` does not. Both take whole tiles in memory.
"""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

if not __package__:  # run as a file: Python then looks for modules in this folder, not in the one above
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agl_core.data.tiles import UNKNOWN
from agl_core.geometry import Pose
from agl_core.maps.ground import HIDDEN, SEEN, Highest, full_canvas, rectified
from benchmarks.harness import Comparison, Contender, Table, arguments, at_least, compare, report
from benchmarks.tiles import CONTENT, Tile, read_tiles, rendered

LOOP, OURS = "loop over pixels", "rectified"
LEAST_FASTER = 50.0
TIMES = 10


@dataclass(frozen=True)
class Case:
    """Tiles of `size`, of which both move the first `part` rows and columns; `large`: of the tiles of the table."""

    size: int
    part: int
    large: int
    rounds: int


QUICK = Case(size=512, part=128, large=512, rounds=2)
FULL = Case(size=2048, part=512, large=2048, rounds=7)


def loop(
    rgb: NDArray[np.uint8], metres: NDArray[np.float32], pose: Pose
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The way of the reference; metres (H, W), NaN where unknown, as is what comes out.

    Written as one writes such a loop, without anything that is needlessly slow: with `np.isnan`, of one number at a
    time, all of it would take a fifth longer.
    """
    height, width = metres.shape
    moved = np.zeros_like(rgb)
    heights = np.full((height, width), np.nan, np.float32)
    dx, dy = pose.scale * math.sin(pose.angle), pose.scale * math.cos(pose.angle)
    for y in range(height):
        for x in range(width):
            agl = metres[y, x]
            if math.isnan(agl):
                continue
            row, column = round(y + agl * dy), round(x + agl * dx)
            if 0 <= row < height and 0 <= column < width and not heights[row, column] >= agl:
                heights[row, column] = agl
                moved[row, column] = rgb[y, x]
    return moved, heights


def tiles_and_poses(size: int, part: int) -> list[tuple[Tile, NDArray[np.float32], Pose]]:
    """The first rows and columns of tiles, their metres, and their poses."""
    found = []
    for tile in read_tiles(rendered(size)):
        rgb, agl = np.ascontiguousarray(tile.rgb[:part, :part]), np.ascontiguousarray(tile.agl[:part, :part])
        metres = np.where(agl == UNKNOWN, np.float32(np.nan), agl / np.float32(100)).astype(np.float32)
        found.append((tile._replace(rgb=rgb, agl=agl), metres, Pose(tile.entry.scale or 0, tile.entry.angle or 0)))
    return found


def contenders(case: Case) -> dict[str, Contender]:
    """Both move the same parts of all tiles."""
    held = tiles_and_poses(case.size, case.part)

    def theirs() -> None:
        for tile, metres, pose in held:
            loop(tile.rgb, metres, pose)

    def ours() -> None:
        for _ in range(TIMES):  # once would be over too soon to be timed well
            for tile, _, pose in held:
                rectified(tile.rgb, tile.agl, pose)

    return {LOOP: theirs, OURS: ours}


def ways(case: Case) -> Comparison:
    """Whole tiles, by what is asked for."""
    held = tiles_and_poses(case.large, case.large)

    def moving(with_rgb: bool, fill: bool, full: bool) -> Contender:
        def run() -> None:
            for tile, _, pose in held:
                canvas = full_canvas(Highest(*tile.agl.shape).add(tile.agl), pose) if full else None
                rectified(tile.rgb if with_rgb else None, tile.agl, pose, canvas, fill)

        return run

    runs = {
        "heights alone": moving(with_rgb=False, fill=False, full=False),
        "image and heights": moving(with_rgb=True, fill=False, full=False),
        "the same, full canvas": moving(with_rgb=True, fill=False, full=True),
        "the same, holes filled": moving(with_rgb=True, fill=True, full=False),
    }
    found = compare(runs, max(case.rounds // 2, 2), "image and heights")
    each = {name: [one / len(held) for one in seconds] for name, seconds in found.seconds.items()}
    return Comparison(found.baseline, each)


def outcome(case: Case) -> Table:
    """What both find on the same ground."""
    rows = []
    for tile, metres, pose in tiles_and_poses(case.size, case.part):
        found = rectified(tile.rgb, tile.agl, pose)
        _, heights = loop(tile.rgb, metres, pose)
        empty = np.isnan(heights)
        lean = int(tile.agl[tile.agl != UNKNOWN].max(initial=0)) / 100 * pose.scale
        seen = found.mask == SEEN
        shares = [f"{part.mean():.1%}" for part in (seen, found.mask == HIDDEN, empty & seen)]
        rows.append([tile.entry.city, f"{lean:.0f} px", *shares])
    note = "cracks: seen, but the loop has put nothing there"
    return Table("what is found", ["city", "leans over", "seen", "hidden", "cracks of the loop"], rows, note)


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments("Moving image and heights to the ground: this project's way against a loop over pixels.", argv)
    case = QUICK if options.quick else FULL
    found = compare(contenders(case), case.rounds, LOOP, time.thread_time)
    found.seconds[OURS] = [seconds / TIMES for seconds in found.seconds[OURS]]
    comparison = Comparison(LOOP, found.seconds)
    pixels = 3 * case.part**2
    promises = [at_least("image and heights", comparison.faster(OURS).median, LEAST_FASTER, "x as fast as the loop", 0)]
    each = {name: f"{1e9 * median(seconds) / pixels:.0f} ns" for name, seconds in comparison.seconds.items()}
    tables = [
        Table("per pixel", list(each), [list(each.values())]),
        ways(case).as_table(f"one tile of {case.large} x {case.large}"),
        outcome(case),
    ]
    title = (
        f"image and heights of 3 tiles moved to the ground, {case.part} x {case.part} pixels of each, one thread, "
        "its processor time, "
        f"{case.rounds} rounds"
    )
    settings: dict[str, Any] = {**vars(case), "threads": 1, "content": CONTENT}
    report(comparison, title, settings, options, tables, promises)


if __name__ == "__main__":
    main()
