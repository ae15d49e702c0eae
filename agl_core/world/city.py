"""A place of a city: its streets and, between them, its blocks."""

import math

import numpy as np

from agl_core.world.blocks import Block, fill_block
from agl_core.world.buildings import RIGHT_ANGLE
from agl_core.world.plot import Plot
from agl_core.world.scene import LANE, LAWN, WATER, Scene
from agl_core.world.style import Style, neighbourhood

STEEPEST_LEAN = 0.92
"""Largest cotangent of the elevation for which a scene's margin suffices (47 degrees)."""

GSD_SPREAD = 0.05
"""How far a tile's pixel may be from its city's nominal one, as a share of it."""

SHIFT = 8.0
"""How far the middles of a place's views may be from the scene's middle, metres along x and y."""


def side_of(style: Style, size: int) -> float:
    """Return the side in metres of a scene that fills a tile of `size` pixels under every view of a world.

    The margin holds whatever leans in from outside: the highest roof at the flattest view.
    """
    return size * style.gsd * (1 + GSD_SPREAD) + 2 * (style.tallest * STEEPEST_LEAN + SHIFT) + 4.0


def build_place(style: Style, side: float, rng: np.random.Generator) -> Scene:
    """Lay out the streets of one place, fill its blocks, and return the scene, a square of `side` metres."""
    scene = Scene(side, round(0.4 * style.gsd, 3))
    style = neighbourhood(style, rng)
    turn = style.skew + float(rng.normal(0, 0.12)) + RIGHT_ANGLE * int(rng.integers(4))
    plot = Plot(scene, turn, rng)
    reach = 0.5 * scene.side * (abs(math.cos(turn)) + abs(math.sin(turn)))
    rows = _cuts(style.depth, style.street, reach, rng)
    columns = _cuts(style.length, style.street, reach, rng)
    river = int(rng.integers(1, max(len(rows) - 1, 2))) if rng.random() < style.river else -1
    for number, (low, high) in enumerate(rows):
        _street(plot, style, low - 0.5 * style.street, reach)
        if number == river:
            middle, half = 0.5 * (low + high), 0.5 * (high - low)
            plot.patch(0.0, middle, reach, half, LAWN)
            plot.patch(0.0, middle, reach, half - 9.0, WATER, wobble=6.0)
            continue
        if style.kind != "downtown":
            # Only downtown do the cross streets run through.
            columns = _cuts(style.length, style.street, reach, rng)
        for left, right in columns:
            block = Block(0.5 * (left + right), 0.5 * (low + high), 0.5 * (right - left), 0.5 * (high - low))
            if not plot.outside(block.u, block.v, math.hypot(block.a, block.b) + style.street):
                _cross_street(plot, style, left - 0.5 * style.street, low, high)
                fill_block(plot, style, block)
    plot.finish()
    return scene


def _cuts(
    sides: tuple[float, float], street: float, reach: float, rng: np.random.Generator
) -> list[tuple[float, float]]:
    """Cut the line from -reach to reach into blocks of sides drawn from a range, with streets between them."""
    cuts = []
    start = -reach - float(rng.uniform(0, sides[1]))
    while start < reach:
        end = start + float(rng.uniform(*sides))
        cuts.append((start, end))
        start = end + street
    return cuts


def _street(plot: Plot, style: Style, v: float, reach: float) -> None:
    """Mark a street along u and put cars on it."""
    for step in range(int(2 * reach / 9)):
        plot.patch(-reach + 9 * step, v, 1.6, 0.16, LANE)
    _traffic(plot, style, -reach, reach, v, along_u=True)
    if style.street > 13:
        for lane in (-0.25, 0.25):
            for step in range(int(2 * reach / 6)):
                plot.patch(-reach + 6 * step, v + lane * style.street, 0.8, 0.14, LANE)


def _cross_street(plot: Plot, style: Style, u: float, low: float, high: float) -> None:
    """Mark a street along v from one street to the next, with crosswalks, and put cars on it."""
    for step in range(1, int((high - low) / 9)):
        plot.patch(u, low + 9 * step, 0.16, 1.6, LANE)
    if style.kind != "suburb":
        for end in (low + 2.0, high - 2.0):
            for stripe in range(int(style.street / 1.3)):
                plot.patch(u - 0.5 * style.street + 0.8 + 1.3 * stripe, end, 0.3, 1.4, LANE)
    _traffic(plot, style, low + 6, high - 6, u, along_u=False)


def _traffic(plot: Plot, style: Style, start: float, end: float, across: float, along_u: bool) -> None:
    rng = plot.rng
    turn = 0.0 if along_u else RIGHT_ANGLE
    moving, parked = {"suburb": (0.03, 0.06), "quarter": (0.05, 0.15), "downtown": (0.08, 0.12)}[style.kind]
    half = 0.5 * style.street
    for offset, chance, pace in (
        (-half + 1.2, parked, 6.0),
        (half - 1.2, parked, 6.0),
        (-0.45 * half, moving, 8.0),
        (0.45 * half, moving, 8.0),
    ):
        for step in range(int((end - start) / pace)):
            if rng.random() < chance:
                along = start + pace * step + float(rng.uniform(0, 0.8))
                plot.car(*((along, across + offset) if along_u else (across + offset, along)), turn=turn)
