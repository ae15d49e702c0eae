"""Augmenting one crop of 512 on one thread: this project's chain against the reference's.

Tiles lie in memory on both sides, so that augmentation alone is timed, with the cut of what it needs: the reference
cuts 1024 pixels, augments these and cuts 512; `make_sample` takes what the drawn operations need and resamples once.
Both draw anew for every crop. Heights that nobody knows are made 0 here, since the reference does not stretch the
heights of a crop with a single unknown one.

- geometric, the recipe's chances, and every operation of the reference in every crop;
- each operation by itself, the photometric ones too; those, and the whole chain, of this project alone: the
  reference takes its photometric ones from a library (albumentations), and a copy would measure the copyist;
- the whole chain and reading, from a store in memory that is warm.
"""

import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numba
import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import NDArray

if not __package__:  # run as a file: Python then looks for modules in this folder, not in the one above
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agl_core.config import RECIPES, AugmentConfig, StageConfig
from agl_core.data.augment.photometric import KINDS
from agl_core.data.sampling import make_sample
from agl_core.data.seeding import SampleStreams, sample_generator
from agl_core.data.store import Store
from agl_core.data.tiles import UNKNOWN
from agl_core.geometry import Pose
from benchmarks.harness import Comparison, Contender, Table, arguments, at_least, at_most, compare, report
from benchmarks.layouts import write_store
from benchmarks.reference_way import EVERYTHING, Chances, cut, geometric, metres
from benchmarks.tiles import CONTENT, Tile, read_tiles, rendered

REFERENCE, OURS = "reference", "make_sample"
MOST_MS, LEAST_FASTER = 10.0, 5.0
GEOMETRIC = ("rot90", "flip_horizontal", "flip_vertical", "stretch", "rotate", "zoom")
"""The geometric operations of the reference."""

PLAIN = AugmentConfig()


@dataclass(frozen=True)
class Case:
    """crops of `crop` pixels from tiles of `size`, `each` of them in a turn."""

    size: int
    crop: int
    each: int
    rounds: int


QUICK = Case(size=512, crop=128, each=2, rounds=2)
FULL = Case(size=2048, crop=512, each=24, rounds=15)


class MemoryStore:
    """Stands for a `Store` whose tiles lie in memory, ready to be cut."""

    def __init__(self, tiles: Sequence[Tile]) -> None:
        self.entries = [tile.entry for tile in tiles]
        self._rgb = [tile.rgb for tile in tiles]
        self._planes = [np.ascontiguousarray(tile.rgb.transpose(2, 0, 1)) for tile in tiles]
        self._agl = [tile.agl for tile in tiles]

    def read_crop(self, index: int, y: int, x: int, height: int, width: int) -> tuple[Any, Any]:
        """As `Store.read_crop`."""
        part = np.s_[y : y + height, x : x + width]
        return np.ascontiguousarray(self._rgb[index][part]), np.ascontiguousarray(self._agl[index][part])

    def read_into(self, index: int, y: int, x: int, planes: NDArray[np.uint8], agl: NDArray[np.uint16]) -> None:
        """As `Store.read_into`."""
        part = np.s_[..., y : y + agl.shape[0], x : x + agl.shape[1]]
        planes[:], agl[:] = self._planes[index][part], self._agl[index][part]


def recipe() -> AugmentConfig:
    """The chances of the recipe `kbrodt`, first stage."""
    from omegaconf import OmegaConf

    given: Any = OmegaConf.to_container(OmegaConf.load(RECIPES / "kbrodt.yaml"))
    return AugmentConfig(**given["stages"]["pretrain"]["augment"])


def only(config: AugmentConfig, names: Sequence[str], chance: float | None = None) -> AugmentConfig:
    """`config` with these operations alone, with their chances or with `chance`."""
    chances = {name: getattr(config, name) for name in operations()}
    kept = {name: (chances[name] if chance is None else chance) if name in names else 0.0 for name in chances}
    return replace(config, **kept)


def operations() -> list[str]:
    """The names of all chances of `AugmentConfig`."""
    return [
        one.name for one in fields(AugmentConfig) if one.name in GEOMETRIC or one.name in (*KINDS, "transpose", "view")
    ]


def ours(store: Any, config: AugmentConfig, case: Case) -> Contender:
    """Each call makes `case.each` samples, other ones than before."""
    stage = StageConfig(crop=case.crop, augment=config)
    image = np.empty((3, case.crop, case.crop), np.uint8)
    agl = np.empty((case.crop, case.crop), np.uint16)
    epoch = 0

    def run() -> None:
        nonlocal epoch
        for index in range(case.each):
            streams, place = SampleStreams(0, 0, epoch, index), sample_generator(0, 0, epoch, index)
            make_sample(store, index % len(store.entries), stage, streams, place, image, agl)
        epoch += 1

    return run


def theirs(tiles: Sequence[Tile], chances: Chances, case: Case) -> Contender:
    """The reference's geometric chain on as many crops."""
    random = RandomState(0)
    held = [(tile.rgb, metres(tile.agl), Pose(tile.entry.scale or 0, tile.entry.angle or 0)) for tile in tiles]

    def run() -> None:
        for index in range(case.each):
            rgb, agl, pose = held[index % len(held)]
            geometric(cut(rgb, agl, pose, 0.5, 2 * case.crop, random), chances, random, case.crop)

    return run


def per_crop(contenders: Mapping[str, Contender], case: Case, baseline: str) -> Comparison:
    """Seconds per crop."""
    found = compare(contenders, case.rounds, baseline)
    return Comparison(baseline, {name: [one / case.each for one in seconds] for name, seconds in found.seconds.items()})


def operation_table(tiles: Sequence[Tile], case: Case) -> Table:
    """Each operation in every crop, and none, interleaved; the reference's where it has it."""
    store, base = MemoryStore(tiles), recipe()
    none = Chances(0, 0, 0, 0, 0)
    alone: dict[str, Contender] = {"none (the cut alone)": ours(store, only(base, ()), case)}
    alone |= {name: ours(store, only(base, [name], 1.0), case) for name in operations()}
    reference = {"none (the cut alone)": theirs(tiles, none, case)}
    for name, chance in (("rot90", "rot90"), ("flip_horizontal", "flip"), ("stretch", "stretch"), ("rotate", "rotate"),
                         ("zoom", "zoom")):  # fmt: skip
        reference[name] = theirs(tiles, replace(none, **{chance: 1.0}), case)
    contenders = alone | {f"reference: {name}": run for name, run in reference.items()}
    times = per_crop(contenders, replace(case, rounds=max(case.rounds // 3, 2)), next(iter(alone))).seconds
    rows = []
    for name in alone:
        other = f"{1000 * median(times[f'reference: {name}']):.2f}" if name in reference else ""
        rows.append([name, f"{1000 * median(times[name]):.2f}", other])
    note = "median ms per crop, the cut from the tile included; the reference cuts, augments and cuts again"
    return Table("each operation in every crop", ["operation", "ms", "reference, ms"], rows, note)


def kind_table(tiles: Sequence[Tile], case: Case) -> Table:
    """Each photometric operation, by its kinds, without any cut."""
    rgb = np.ascontiguousarray(tiles[0].rgb[: case.crop, : case.crop])
    runs: dict[str, Contender] = {}
    for name, kinds in KINDS.items():
        for kind, operation in kinds.items():
            runs[f"{name}: {kind}" if kind else name] = repeated(operation, rgb, case)
    times = per_crop(runs, replace(case, rounds=max(case.rounds // 3, 2)), next(iter(runs))).seconds
    rows = [[name, f"{1000 * median(seconds):.2f}"] for name, seconds in times.items()]
    return Table("photometric operations by themselves", ["operation", "ms"], rows, "median ms per crop")


def repeated(operation: Callable[..., Any], rgb: NDArray[np.uint8], case: Case) -> Contender:
    generator = np.random.default_rng(0)

    def run() -> None:
        for _ in range(case.each):
            operation(rgb, generator)

    return run


def whole_chain(tiles: Sequence[Tile], case: Case) -> Comparison:
    """This project's chain by its parts, and with reading."""
    store, base = MemoryStore(tiles), recipe()
    with tempfile.TemporaryDirectory(prefix="agl-augmenting-") as name:
        folder = Path(name)
        with (
            closing(Store(write_store(folder / "zstd", tiles, "zstd"))) as packed,
            closing(Store(write_store(folder / "raw", tiles, "raw"))) as raw,
        ):
            contenders = {
                "nothing": ours(store, only(base, ()), case),
                "geometric": ours(store, only(base, GEOMETRIC), case),
                "photometric": ours(store, only(base, tuple(KINDS)), case),
                "all": ours(store, base, case),
                "all, read from a store, raw": ours(raw, base, case),
                "all, read from a store, zstd": ours(packed, base, case),
            }
            return per_crop(contenders, case, "all")


def one_thread() -> None:
    cv2.setNumThreads(1)
    numba.set_num_threads(1)
    torch.set_num_threads(1)


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments("Augmenting one crop on one thread: this project's chain against the reference's.", argv)
    case = QUICK if options.quick else FULL
    one_thread()
    tiles = [tile._replace(agl=np.where(tile.agl == UNKNOWN, np.uint16(0), tile.agl))
             for tile in read_tiles(rendered(case.size))]  # fmt: skip
    store, base = MemoryStore(tiles), recipe()
    # The one that runs everything comes first: what has to be compiled is compiled then.
    worst = per_crop(
        {REFERENCE: theirs(tiles, EVERYTHING, case), OURS: ours(store, only(base, GEOMETRIC, 1.0), case)},
        case,
        REFERENCE,
    )
    usual = per_crop(
        {REFERENCE: theirs(tiles, Chances(), case), OURS: ours(store, only(base, GEOMETRIC), case)}, case, REFERENCE
    )
    chain = whole_chain(tiles, case)
    promises = []
    for name, comparison in (("the recipe's chances", usual), ("everything in every crop", worst)):
        slow = 1000 * median(comparison.seconds[OURS])
        promises.append(at_most(f"geometric chain, {name}", slow, MOST_MS, "ms per crop", 2))
        promises.append(
            at_least(
                f"geometric chain, {name}", comparison.faster(OURS).median, LEAST_FASTER, "x as fast as the reference"
            )
        )
    tables = [
        worst.as_table("geometric chain, every operation of the reference in every crop"),
        chain.as_table("this project's chain by its parts, the recipe's chances"),
        operation_table(tiles, case),
        kind_table(tiles, case),
    ]
    title = (
        f"geometric chain, the recipe's chances, per crop of {case.crop} x {case.crop} from tiles of {case.size} x "
        f"{case.size} in memory, one thread, {case.rounds} rounds of {case.each} crops"
    )
    highest = max(tile.entry.highest for tile in tiles)
    content = f"{CONTENT}; highest surface {highest:.0f} m, scales {_scales(tiles)} pixels per metre"
    settings = {**vars(case), "threads": 1, "content": content, "worst": worst.as_json(), "chain": chain.as_json()}
    report(usual, title, settings, options, tables, promises)


def _scales(tiles: Sequence[Tile]) -> str:
    scales = [tile.entry.scale for tile in tiles if tile.entry.scale is not None]
    return f"{min(scales, default=math.nan):.2f} to {max(scales, default=math.nan):.2f}"


if __name__ == "__main__":
    main()
