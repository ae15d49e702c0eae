"""The built-in world: a data set in the challenge's files, rendered from procedural cities with exact truth."""

import math
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agl_core.config import WorldConfig
from agl_core.data.tiles import write_agl, write_rgb, write_vflow
from agl_core.errors import UserError
from agl_core.files import fsync_folder, read_json, writable_folder, write_json, write_text
from agl_core.geometry import Pose, scale_from_elevation
from agl_core.machine import cores
from agl_core.reporting.progress import Progress
from agl_core.world.city import GSD_SPREAD, SHIFT, build_place, side_of
from agl_core.world.plan import Tile, plan, random_source
from agl_core.world.render import Camera, Light, Sensor, render
from agl_core.world.style import Style, name_of, style_of

DONE, BEGUN = "world.json", "world.part.json"
"""The settings of a complete world, written last, and of one that is being rendered."""

ELEVATIONS = (48.0, 70.0)
"""Lowest and highest camera, degrees above the horizon. The challenge has 54 to 86; lower cameras show more of the
facades, from which an angle is read, and near the nadir nothing leans."""

SUNS = (42.0, 68.0)
"""Lowest and highest sun, degrees above the horizon."""

_VERSION = 3


@dataclass(frozen=True)
class _Place:
    """What one process renders at a time."""

    out: Path
    tiles: tuple[Tile, ...]
    seed: int
    size: int
    suffix: str
    unit: str


def render_world(config: WorldConfig) -> None:
    """Render a data set to `config.out`.

    Every place of a city is seen in `views` tiles, under another camera, sun and season each; a share of every city's
    places is held out for testing. The pixels depend on the seed and on the numbers of city, place and view alone: not
    on the number of processes, nor on how many tiles are asked for.

    After this returns, world.json says that the folder is complete. An interrupted world is continued; one that is
    there already is left as it is.

    Raises:
        UserError: for values that make no world, a folder that holds something else, or one that cannot be written.
    """
    tiles = plan(config)
    out = Path(config.out)
    settings = _settings(config)
    if _already_there(out, settings):
        return
    with _writing(out):
        write_json(out / BEGUN, settings)
        for folder in ("train", "test", "test_truth"):
            (out / folder).mkdir(exist_ok=True)
            for leftover in (out / folder).glob(".*.part*"):
                leftover.unlink()
        places = _places(config, out, tiles)
        rows = _render_places(places, config.workers, len(tiles))
        _write_tables(out, tiles, rows, config.format)
        os.replace(out / BEGUN, out / DONE)
        fsync_folder(out)


def _settings(config: WorldConfig) -> dict[str, Any]:
    keys = ("tiles", "size", "seed", "cities", "views", "test_share", "format", "unit")
    return {"version": _VERSION, **{key: getattr(config, key) for key in keys}}


def _already_there(out: Path, settings: dict[str, Any]) -> bool:
    """Whether the complete world is in `out`; refuses a folder that holds something else."""
    for name in (DONE, BEGUN):
        if (out / name).is_file():
            found = read_json(out / name)
            if found != settings:
                found = found if isinstance(found, dict) else {}
                other = ", ".join(
                    f"{key} {found.get(key)} instead of {value}"
                    for key, value in settings.items()
                    if found.get(key) != value
                )
                raise UserError(f"{out} holds another world ({other}): choose another folder with --out")
            if name == DONE:
                with Progress("world", total=settings["tiles"], start=settings["tiles"]) as progress:
                    progress.note(f"{out} holds this world already")
                return True
            return False
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and holds no world: choose another folder with --out")
    return False


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turn what goes wrong while writing to `out` into a sentence."""
    writable_folder(out, "--out")
    try:
        yield
    except BrokenProcessPool:
        raise UserError(
            "a rendering process was killed, perhaps for want of memory: start again with fewer --workers; "
            "finished tiles are kept"
        ) from None
    except OSError as error:
        raise UserError(f"{out} cannot be written to ({error.strerror}); choose another folder with --out") from None


def _places(config: WorldConfig, out: Path, tiles: list[Tile]) -> list[_Place]:
    grouped: dict[tuple[int, int], list[Tile]] = {}
    for tile in tiles:
        grouped.setdefault((tile.city, tile.place), []).append(tile)
    return [
        _Place(out, tuple(group), config.seed, config.size, config.format, config.unit) for group in grouped.values()
    ]


def _render_places(places: list[_Place], workers: int | None, tiles: int) -> dict[str, float]:
    """Render all places and return the gsd of every tile by id."""
    workers = min(workers or cores(), len(places))
    gsds: dict[str, float] = {}
    with Progress("world", total=tiles, unit="tiles") as progress:
        if workers == 1:
            for place in places:
                gsds |= _render_place(place)
                progress.advance(len(place.tiles))
            return gsds
        # Compiles once and leaves the machine code on disk for the processes.
        warm = build_place(style_of(0), 30.0, np.random.default_rng(0))
        render(warm, Camera(Pose(0.5, 0.0), 1.0, 4, 4, 15.0, 15.0), Light(0.0, 1.0))
        # Spawned, not forked: the parent may hold threads (torch, OpenCV) that do not survive a fork.
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            waiting = {pool.submit(_render_place, place): place for place in places}
            try:
                for future in as_completed(waiting):
                    gsds |= future.result()
                    progress.advance(len(waiting[future].tiles))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    return gsds


def _render_place(place: _Place) -> dict[str, float]:
    """Render the views of one place that are not there yet; return the gsd of each by id."""
    first = place.tiles[0]
    style = style_of(first.city)
    scene = None
    gsds = {}
    for tile in place.tiles:
        rng = np.random.Generator(np.random.Philox(random_source(place.seed, tile.city, tile.place, tile.view + 1)))
        middle = 0.5 * side_of(style, place.size)
        camera, light, sensor = draw_view(style, place.size, middle, rng)
        gsds[tile.id] = camera.gsd
        truth = place.out / ("train" if tile.split == "train" else "test_truth")
        rgb_path = place.out / tile.split / f"{tile.id}_RGB.{place.suffix}"
        # The image is written after its truth: where it is, all is.
        if rgb_path.exists():
            continue
        if scene is None:
            seed = random_source(place.seed, tile.city, tile.place, 0)
            scene = build_place(style, 2 * middle, np.random.Generator(np.random.Philox(seed)))
        rgb, agl = render(scene, camera, light, sensor)
        write_agl(truth / f"{tile.id}_AGL.tif", agl, place.unit)
        write_vflow(truth / f"{tile.id}_VFLOW.json", camera.pose, place.unit)
        write_rgb(rgb_path, rgb)
    return gsds


def draw_view(style: Style, size: int, middle: float, rng: np.random.Generator) -> tuple[Camera, Light, Sensor]:
    """Draw a camera, a light that has nothing to do with it, and a sensor for a tile of `size` pixels.

    `middle` is the middle of the scene, metres; the camera looks at it or a few metres beside.
    """
    gsd = round(style.gsd * float(rng.uniform(1 - GSD_SPREAD, 1 + GSD_SPREAD)), 4)
    elevation = math.radians(rng.uniform(*ELEVATIONS))
    pose = Pose(scale_from_elevation(elevation, gsd), float(rng.uniform(0, 2 * math.pi)))
    x, y = (middle + float(rng.uniform(-SHIFT, SHIFT)) for _ in range(2))
    camera = Camera(pose, gsd, size, size, x, y)
    light = Light(
        azimuth=float(rng.uniform(0, 2 * math.pi)),
        elevation=math.radians(rng.uniform(*SUNS)),
        warmth=float(rng.uniform(-1, 1)),
        season=float(rng.uniform(0, 0.6)) ** 2,
        haze=float(rng.uniform(0.01, 0.12)),
    )
    sensor = Sensor(
        blur=float(rng.uniform(0.35, 0.65)),
        noise=float(rng.uniform(1.0, 3.0)),
        exposure=float(rng.uniform(0.85, 1.12)),
        seed=int(rng.integers(1 << 62)),
    )
    return camera, light, sensor


def _write_tables(out: Path, tiles: list[Tile], gsds: dict[str, float], suffix: str) -> None:
    def table(name: str, header: str, rows: list[str]) -> None:
        write_text(out / name, "".join(f"{row}\n" for row in (header, *rows)))

    train = [tile.id for tile in tiles if tile.split == "train"]
    test = [tile.id for tile in tiles if tile.split == "test"]
    table(
        "geopose_train.csv",
        "id,agl,json,rgb",
        [f"{tile},{tile}_AGL.tif,{tile}_VFLOW.json,{tile}_RGB.{suffix}" for tile in train],
    )
    table("geopose_test.csv", "id,rgb", [f"{tile},{tile}_RGB.{suffix}" for tile in test])
    table(
        "metadata.csv",
        "id,city,gsd,place",
        [f"{tile.id},{name_of(tile.city)},{gsds[tile.id]},{tile.place_name}" for tile in tiles],
    )
