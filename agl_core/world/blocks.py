"""What stands in a block between streets: gardens with houses, flats around a yard, offices, a park, a car park."""

import math
from dataclasses import dataclass

from agl_core.world.buildings import RIGHT_ANGLE, Footprint, flats, house, tower
from agl_core.world.plot import Plot
from agl_core.world.scene import (
    COURT,
    DRIVE,
    GRAVEL,
    LANE,
    LAWN,
    LOT,
    MEADOW,
    PAVEMENT,
    PLAZA,
    POOL,
    SOIL,
    WATER,
)
from agl_core.world.style import Style


@dataclass(frozen=True)
class Block:
    """A rectangle between streets: middle u, v and half axes a, b to the kerb, metres."""

    u: float
    v: float
    a: float
    b: float


def fill_block(plot: Plot, style: Style, block: Block) -> None:
    """Put into a block what its city's style wants there."""
    rng = plot.rng
    walk = 1.6 if style.kind == "suburb" else 2.8
    plot.patch(block.u, block.v, block.a, block.b, PAVEMENT)
    inner = Block(block.u, block.v, block.a - walk, block.b - walk)
    chance = rng.random()
    if chance < style.green:
        _park(plot, inner, style)
    elif chance < style.green + style.lots:
        _car_park(plot, inner)
    elif style.kind == "suburb":
        if rng.random() < 0.1:
            _hall(plot, inner, style)
        else:
            _gardens(plot, inner, style)
    elif style.kind == "quarter":
        if rng.random() < 0.3:
            _slabs(plot, inner, style)
        else:
            _yard(plot, inner, style)
    else:
        _offices(plot, inner, style)
    _street_trees(plot, block, style, walk)


def _street_trees(plot: Plot, block: Block, style: Style, walk: float) -> None:
    rng = plot.rng
    chance = 0.3 * style.trees if style.kind == "suburb" else 0.5 * style.trees
    inset = 0.6 * walk
    for across in (-1.0, 1.0):
        for step in range(int(2 * block.a / 9)):
            if rng.random() < chance:
                plot.tree(
                    block.u - block.a + 5 + 9 * step + float(rng.uniform(-1, 1)),
                    block.v + across * (block.b - inset),
                    float(rng.uniform(1.8, 3.2)),
                )
        for step in range(int(2 * block.b / 9)):
            if rng.random() < chance:
                plot.tree(
                    block.u + across * (block.a - inset),
                    block.v - block.b + 5 + 9 * step + float(rng.uniform(-1, 1)),
                    float(rng.uniform(1.8, 3.2)),
                )


def _grove(plot: Plot, area: Block, count: float, small: float = 1.6, large: float = 4.6) -> None:
    rng = plot.rng
    for _ in range(int(rng.poisson(max(count, 0.0)))):
        plot.tree(
            area.u + float(rng.uniform(-1, 1)) * area.a,
            area.v + float(rng.uniform(-1, 1)) * area.b,
            float(rng.uniform(small, large)),
            conifer=bool(rng.random() < 0.18),
        )


def _park(plot: Plot, area: Block, style: Style) -> None:
    rng = plot.rng
    plot.patch(area.u, area.v, area.a, area.b, LAWN if rng.random() < 0.75 else MEADOW)
    slant = math.atan2(area.b, area.a)
    length = math.hypot(area.a, area.b) - 2
    for turn in (slant, -slant) if rng.random() < 0.5 else (slant,):
        plot.patch(area.u, area.v, length, 1.1, GRAVEL, turn=turn)
    if rng.random() < 0.4:
        plot.patch(
            area.u, area.v, area.a * float(rng.uniform(0.35, 0.6)), area.b * float(rng.uniform(0.35, 0.6)), WATER,
            round=True, wobble=3.0,
        )  # fmt: skip
    elif rng.random() < 0.5:
        u = area.u + float(rng.uniform(-0.3, 0.3)) * area.a
        plot.patch(u, area.v, 18.5, 9.5, LANE)
        plot.patch(u, area.v, 18.2, 9.2, COURT)
        plot.patch(u, area.v, 12.2, 5.7, LANE)
        plot.patch(u, area.v, 11.8, 5.3, COURT)
        plot.patch(u, area.v, 0.25, 5.5, LANE)
    else:
        plot.patch(area.u, area.v, 9.0, 9.0, GRAVEL, round=True)
    _grove(plot, area, style.trees * area.a * area.b / 55)


def _car_park(plot: Plot, area: Block) -> None:
    rng = plot.rng
    plot.patch(area.u, area.v, area.a, area.b, LOT)
    busy = float(rng.uniform(0.15, 0.5))
    v = area.v - area.b + 4.5
    while v < area.v + area.b - 3.5:
        u = area.u - area.a + 3.0
        while u < area.u + area.a - 3.0:
            plot.patch(u, v, 0.16, 2.5, LANE)
            if rng.random() < busy:
                plot.car(u + 1.35, v + float(rng.uniform(-0.3, 0.3)), turn=RIGHT_ANGLE)
            u += 2.7
        v += 8.6
    for _ in range(4):
        u, w = area.u + float(rng.uniform(-0.9, 0.9)) * area.a, area.v + float(rng.choice((-1, 1))) * (area.b - 1.0)
        plot.patch(u, w, 2.2, 1.0, LAWN)
        plot.tree(u, w, float(rng.uniform(1.6, 2.4)))


def _gardens(plot: Plot, area: Block, style: Style) -> None:
    rng = plot.rng
    plot.patch(area.u, area.v, area.a, area.b, LAWN)
    count = max(1, round(2 * area.a / float(rng.uniform(17, 22))))
    lot = area.a / count
    setback = float(rng.uniform(4.5, 7.0))
    usual = _height(plot, style, 1.0)
    for row in (-1.0, 1.0):
        for number in range(count):
            u = area.u - area.a + lot * (2 * number + 1)
            if rng.random() < 0.05:
                _grove(plot, Block(u, area.v + row * 0.5 * area.b, lot, 0.5 * area.b), 4 * style.trees)
                continue
            _garden(plot, style, u, area.v + row * area.b, row, lot, area.b, setback, usual)
        # Hedges and trees where the gardens meet at the back.
    for number in range(int(area.a / 3)):
        if rng.random() < 0.45 * style.trees:
            plot.tree(
                area.u - area.a + 6 * number + float(rng.uniform(-2, 2)),
                area.v + float(rng.uniform(-2.5, 2.5)),
                float(rng.uniform(1.8, 4.0)),
                conifer=bool(rng.random() < 0.2),
            )


def _garden(
    plot: Plot, style: Style, u: float, kerb: float, row: float, lot: float, depth: float, setback: float, usual: float
) -> None:
    """One lot with a house of about `usual` metres. `kerb` is where it meets the pavement, the garden lies at
    kerb - row * ..., `lot` is its half width."""
    rng = plot.rng
    if rng.random() < 0.3:
        plot.patch(u, kerb - row * 0.5 * depth, lot, 0.5 * depth, MEADOW)
    a = min(float(rng.uniform(5.8, 8.0)), lot - 1.5)
    b = float(rng.uniform(4.4, 5.8))
    middle = kerb - row * (setback + b + float(rng.uniform(0, 2)))
    side = 1.0 if rng.random() < 0.5 else -1.0
    place = Footprint(u + float(rng.uniform(-0.8, 0.8)), middle, a, b, float(rng.normal(0, 0.035)))
    drive = u + side * (lot - 1.8)
    plot.patch(drive, 0.5 * (kerb + middle), 1.5, 0.5 * abs(kerb - middle), DRIVE)
    plot.patch(u, 0.5 * (kerb + middle), 0.5, 0.5 * abs(kerb - middle), PAVEMENT)
    if rng.random() < 0.5:
        plot.car(drive, middle + row * (b + 3.0), turn=RIGHT_ANGLE)
    house(plot, place, 0.93 * usual, 1.07 * usual, style.roofs)
    yard = middle - row * (b + 4.5)
    if rng.random() < 0.12:
        plot.patch(u + side * 2, yard, 3.6, 2.2, PLAZA)
        plot.patch(u + side * 2, yard, 2.8, 1.5, POOL)
    elif rng.random() < 0.35:
        plot.patch(place.u, yard + row * 2.5, 2.6, 1.8, PLAZA)
    if rng.random() < 0.15:
        plot.patch(u - side * (lot - 3), yard, 1.8, 1.4, SOIL)
    _grove(plot, Block(u, kerb - row * 0.5 * depth, lot, 0.5 * depth), 2.4 * style.trees, 1.3, 3.8)


def _hall(plot: Plot, area: Block, style: Style) -> None:
    """A school or a shop: low, large, flat, with cars in front."""
    rng = plot.rng
    _car_park(plot, Block(area.u, area.v - 0.55 * area.b, area.a, 0.45 * area.b))
    plot.patch(area.u, area.v + 0.45 * area.b, area.a, 0.55 * area.b, LAWN)
    a, b = 0.8 * area.a, 0.36 * area.b
    place = Footprint(area.u, area.v + 0.42 * area.b, a, b)
    flats(plot, place, float(rng.uniform(5.0, 8.5)), style.roofs, level=1.0)
    if rng.random() < 0.5:
        flats(plot, place.shifted(-0.6 * a, -0.9 * b, 0.3 * a, 0.5 * b), float(rng.uniform(4.0, 6.0)), style.roofs, 1.0)
    _grove(plot, Block(area.u, area.v + 0.9 * area.b, area.a, 0.1 * area.b), 6 * style.trees)


def _height(plot: Plot, style: Style, skew: float) -> float:
    """Draw the walls' height of a building; the larger `skew`, the rarer are high ones."""
    return float(style.low + (style.high - style.low) * plot.rng.random() ** skew)


def _yard(plot: Plot, area: Block, style: Style) -> None:
    """Flats along the four sides of a block around a yard."""
    rng = plot.rng
    plot.patch(area.u, area.v, area.a, area.b, LAWN if rng.random() < 0.6 else PLAZA)
    depth = 0.5 * float(rng.uniform(10.5, 14.0))
    usual = _height(plot, style, 1.6)
    level = float(rng.choice((0.15, 0.85)))
    for turn in range(4):
        half, reach = (area.a, area.b) if turn % 2 == 0 else (area.b, area.a)
        # Two sides take the corners, the others fit between them.
        start, end = (-half, half) if turn % 2 == 0 else (-half + 2 * depth + 0.02, half - 2 * depth - 0.02)
        sign = 1.0 if turn < 2 else -1.0
        while end - start > 9.0:
            width = min(float(rng.uniform(13, 27)), end - start)
            if end - start - width < 9.0:
                width = end - start
            middle, across = start + 0.5 * width, sign * (reach - depth)
            u, v = (middle, across) if turn % 2 == 0 else (across, middle)
            a, b = (0.5 * width, depth) if turn % 2 == 0 else (depth, 0.5 * width)
            if rng.random() < 0.88:
                eave = min(max(usual * float(rng.uniform(0.92, 1.09)), style.low * 0.8), style.high)
                flats(plot, Footprint(area.u + u, area.v + v, a, b), eave, style.roofs, level)
            else:
                plot.patch(area.u + u, area.v + v, a, b, LAWN)
                _grove(plot, Block(area.u + u, area.v + v, a, b), 3 * style.trees)
            start += width
    court = Block(area.u, area.v, max(area.a - 2 * depth - 2, 1), max(area.b - 2 * depth - 2, 1))
    if rng.random() < 0.4 and min(court.a, court.b) > 8:
        flats(plot, Footprint(court.u, court.v, 0.5 * court.a, 0.3 * court.b), float(rng.uniform(4, 9)), style.roofs)
    if rng.random() < 0.5:
        plot.patch(court.u, court.v, 0.4 * court.a, 0.3 * court.b, GRAVEL)
    _grove(plot, court, style.trees * court.a * court.b / 40)


def _slabs(plot: Plot, area: Block, style: Style) -> None:
    """Slabs of flats in rows on a lawn, turned against the street."""
    rng = plot.rng
    plot.patch(area.u, area.v, area.a, area.b, LAWN)
    eave = _height(plot, style, 1.0)
    turn = float(rng.choice((0.0, 0.0, 0.3, -0.35)))
    gap = 13.0 + 0.8 * eave + 4.0
    count = max(1, int(2 * area.b / gap))
    length = (area.a - 3.0) * (0.85 if turn else 1.0)
    for number in range(count):
        v = area.v - area.b + 2 * area.b * (number + 0.5) / count
        place = Footprint(area.u, v, length, min(6.5, 0.5 * area.b), turn)
        level = 0.8
        flats(plot, place, eave * float(rng.uniform(0.93, 1.07)), style.roofs, level)
        if not turn and rng.random() < 0.5:
            wing = place.shifted(length - 6.0, 9.0, 6.0, 6.0)
            flats(plot, wing, eave * 0.6, style.roofs, level=1.0)
    plot.patch(area.u, area.v + area.b - 1.5, area.a, 1.0, PAVEMENT)
    _grove(plot, area, style.trees * area.a * area.b / 70)


def _offices(plot: Plot, area: Block, style: Style) -> None:
    """Two to six lots with offices and towers, now and then a square or a car park."""
    rng = plot.rng
    plot.patch(area.u, area.v, area.a, area.b, PLAZA)
    columns, rows = max(1, round(area.a / 17)), max(1, round(area.b / 17))
    usual = _height(plot, style, 1.3)
    for column in range(columns):
        for row in range(rows):
            a, b = area.a / columns, area.b / rows
            lot = Block(area.u - area.a + a * (2 * column + 1), area.v - area.b + b * (2 * row + 1), a, b)
            chance = rng.random()
            if chance < 0.04:
                _car_park(plot, lot)
            elif chance < 0.1:
                plot.patch(lot.u, lot.v, 0.7 * a, 0.7 * b, LAWN, round=bool(rng.random() < 0.5))
                _grove(plot, lot, 0.02 * a * b * (1 + style.trees))
            else:
                inset = float(rng.uniform(0.4, 3.0))
                turn = float(rng.choice((0.0, 0.0, 0.0, 0.0, 0.4)))
                shrink = 0.72 if turn else 1.0
                place = Footprint(lot.u, lot.v, shrink * (a - inset), shrink * (b - inset), turn)
                eave = min(max(usual * float(rng.uniform(0.9, 1.12)), style.low), style.high)
                if eave < 22 and rng.random() < 0.5:
                    flats(plot, place, eave, style.roofs, level=0.75)
                else:
                    tower(plot, place, eave, style.roofs)
