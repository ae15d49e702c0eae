"""Buildings: houses, blocks of flats and towers, each a few solids on a plot."""

import math
from dataclasses import dataclass

from agl_core.world.plot import Plot
from agl_core.world.scene import FLAT, GABLE, GLAZED, HIP, SHED
from agl_core.world.surface import Colour, linear

# Walls and roofs as seen from above in the sun, 0..255; one palette per kind of city. Roofs are in the order of the
# heights that they prefer: as in real cities, what covers a building says something about how high it is.
WALLS: tuple[tuple[Colour, ...], ...] = (
    (linear(238, 220, 170), linear(232, 204, 150), linear(226, 190, 150), linear(240, 228, 190)),
    (linear(240, 216, 158), linear(232, 196, 132), linear(224, 176, 128), linear(242, 226, 184)),
    (linear(236, 212, 160), linear(226, 188, 130), linear(218, 170, 124), linear(240, 226, 188)),
)
PITCHED: tuple[tuple[Colour, ...], ...] = (
    (linear(92, 92, 98), linear(106, 96, 92), linear(120, 106, 100), linear(140, 90, 78), linear(146, 82, 66)),
    (linear(104, 104, 108), linear(116, 136, 130), linear(146, 78, 64), linear(158, 84, 64), linear(166, 94, 74)),
    (linear(92, 94, 102), linear(106, 104, 106), linear(124, 120, 122), linear(112, 130, 126), linear(140, 84, 72)),
)
LEVEL: tuple[tuple[Colour, ...], ...] = (
    (linear(140, 141, 144), linear(176, 177, 178), linear(200, 201, 202)),
    (linear(124, 125, 128), linear(150, 150, 152), linear(170, 171, 172), linear(192, 193, 194)),
    (linear(116, 117, 121), linear(148, 149, 152), linear(162, 163, 166), linear(180, 181, 183), linear(206, 207, 209)),
)
GLASS: tuple[Colour, ...] = (linear(130, 190, 214), linear(110, 178, 196), linear(150, 200, 216), linear(110, 160, 200))
RIGHT_ANGLE = 0.5 * math.pi
MACHINE = linear(190, 192, 192)


@dataclass(frozen=True)
class Footprint:
    """A rectangle on a plot: middle u, v, half axes a, b (m), and its turn against the street axes (radians)."""

    u: float
    v: float
    a: float
    b: float
    turn: float = 0.0

    def shifted(self, along: float, across: float, a: float, b: float) -> "Footprint":
        """Return a rectangle of half axes a, b whose middle is moved by (along, across) in this one's axes."""
        c, s = math.cos(self.turn), math.sin(self.turn)
        return Footprint(self.u + along * c - across * s, self.v + along * s + across * c, a, b, self.turn)


def _pick(plot: Plot, colours: tuple[Colour, ...]) -> Colour:
    return _shaded(plot, colours[int(plot.rng.integers(len(colours)))])


def _roof(plot: Plot, colours: tuple[Colour, ...], rank: float) -> Colour:
    """Draw a roof for a building whose height has `rank` 0 (lowest) to 1 (highest), most often the one it prefers."""
    preferred = int(len(colours) * (rank + float(plot.rng.normal(0, 0.12))))
    return _shaded(plot, colours[min(max(preferred, 0), len(colours) - 1)])


def _shaded(plot: Plot, colour: Colour) -> Colour:
    shade = float(plot.rng.uniform(0.9, 1.1))
    return colour[0] * shade, colour[1] * shade, colour[2] * shade


def _level_roof(plot: Plot, palette: int, eave: float) -> Colour:
    return _roof(plot, LEVEL[palette], (eave - 6.0) / 28.0)


def house(plot: Plot, place: Footprint, low: float, high: float, palette: int) -> None:
    """Put up a house of one or two storeys with a gabled or hipped roof, often with a wing."""
    rng = plot.rng
    wall = _pick(plot, WALLS[palette])
    storeys = 1 if rng.random() < 0.55 else 2
    eave = low if storeys == 1 else high
    eave *= float(rng.uniform(0.92, 1.08))
    top = _roof(plot, PITCHED[palette], (eave - 5.0) / 6.0)
    roof = GABLE if rng.random() < 0.5 else HIP
    pitch = float(rng.uniform(0.4, 0.75))
    if rng.random() < 0.06:
        roof, pitch, top = FLAT, 0.0, _level_roof(plot, palette, eave)
    plot.part(place.u, place.v, place.a, place.b, eave, wall, top, roof, pitch, turn=place.turn, floor=2.9, bay=2.6)
    side = 1.0 if rng.random() < 0.5 else -1.0
    shape = rng.random()
    if shape < 0.45:
        # A wing across: its ridge stands at right angles to the house's, which makes the plan an L or a T.
        b = 0.5 * place.a * float(rng.uniform(0.55, 0.8))
        wing = place.shifted(
            side * (place.a - b) * float(rng.choice((0.5, 1.0))), place.b, place.b * float(rng.uniform(0.7, 1.0)), b
        )
        plot.part(
            wing.u, wing.v, wing.a, wing.b, eave * 0.97, wall, top, roof, pitch,
            turn=wing.turn + RIGHT_ANGLE, floor=2.9, bay=2.6,
        )  # fmt: skip
    elif shape < 0.75:
        garage = place.shifted(side * (place.a + 2.6), 0.2 * place.b, 2.7, place.b * 0.75)
        kind, rise = (SHED, 0.12) if rng.random() < 0.5 else (roof, pitch * 0.8)
        plot.part(garage.u, garage.v, garage.a, garage.b, 2.5, wall, top, kind, rise, turn=garage.turn, bay=2.6)
    if roof != FLAT and rng.random() < 0.5:
        chimney = place.shifted(-side * place.a * 0.4, 0.25 * place.b, 0.45, 0.45)
        plot.box_on_roof(chimney.u, chimney.v, 0.45, 0.45, eave + pitch * place.b + 0.7, wall, chimney.turn)


def flats(plot: Plot, place: Footprint, eave: float, palette: int, level: float = 0.5) -> None:
    """Put up a block of flats with walls of `eave` metres; its roof is flat with probability `level`."""
    rng = plot.rng
    wall = _pick(plot, WALLS[palette])
    bay = float(rng.uniform(2.6, 3.6))
    if rng.random() >= level:
        pitch = float(rng.uniform(0.35, 0.7))
        roof = GABLE if rng.random() < 0.6 else HIP
        top = _roof(plot, PITCHED[palette], (eave - 8.0) / 14.0)
        # The ridge runs along the longer side.
        if place.a >= place.b:
            plot.part(place.u, place.v, place.a, place.b, eave, wall, top, roof, pitch, turn=place.turn, bay=bay)
        else:
            turn = place.turn + RIGHT_ANGLE
            plot.part(place.u, place.v, place.b, place.a, eave, wall, top, roof, pitch, turn=turn, bay=bay)
        return
    top = _level_roof(plot, palette, eave)
    plot.part(place.u, place.v, place.a, place.b, eave, wall, top, turn=place.turn, bay=bay)
    if eave > 12.0 and min(place.a, place.b) > 5.0 and rng.random() < 0.35:
        # A storey set back.
        plot.part(place.u, place.v, place.a - 2.2, place.b - 2.2, eave + 3.2, wall, top, turn=place.turn, bay=bay)
        eave += 3.2
    machines(plot, place, eave)


def machines(plot: Plot, place: Footprint, eave: float) -> None:
    """Scatter lift heads and cooling units over a flat roof."""
    rng = plot.rng
    room_a, room_b = place.a - 3.5, place.b - 3.5
    if room_a <= 0.5 or room_b <= 0.5:
        return
    for _ in range(int(rng.integers(1, 5))):
        a, b = float(rng.uniform(0.9, 2.2)), float(rng.uniform(0.9, 2.0))
        spot = place.shifted(float(rng.uniform(-room_a, room_a)), float(rng.uniform(-room_b, room_b)), a, b)
        colour = MACHINE if rng.random() < 0.6 else linear(128, 128, 128)
        plot.box_on_roof(spot.u, spot.v, a, b, eave + float(rng.uniform(1.2, 2.8)), colour, spot.turn)


def tower(plot: Plot, place: Footprint, eave: float, palette: int) -> None:
    """Put up an office building or tower of `eave` metres: a box, a box on a podium, steps, or a drum."""
    rng = plot.rng
    glazed = rng.random() < 0.2 + 0.006 * eave
    kind = GLAZED if glazed else 0
    wall = _pick(plot, GLASS if glazed else WALLS[palette])
    top = _level_roof(plot, palette, eave)
    bay = float(rng.uniform(2.4, 4.0))
    floor = float(rng.uniform(3.4, 4.0))
    form = rng.random()
    if form < 0.45 or eave < 16.0:
        plot.part(place.u, place.v, place.a, place.b, eave, wall, top, kind=kind, turn=place.turn, floor=floor, bay=bay)
        machines(plot, place, eave)
        return
    podium = float(rng.uniform(0.15, 0.35)) * eave
    base = _pick(plot, WALLS[palette])
    plot.part(place.u, place.v, place.a, place.b, podium, base, top, turn=place.turn, floor=floor, bay=bay)
    a, b = place.a * float(rng.uniform(0.55, 0.8)), place.b * float(rng.uniform(0.55, 0.8))
    body = place.shifted(float(rng.uniform(-1, 1)) * (place.a - a), float(rng.uniform(-1, 1)) * (place.b - b), a, b)
    if form < 0.58:
        radius = min(a, b)
        plot.part(body.u, body.v, radius, radius, eave, wall, top, kind=kind, round=True, floor=floor, bay=bay)
        return
    plot.part(body.u, body.v, a, b, eave, wall, top, kind=kind, turn=body.turn, floor=floor, bay=bay)
    if form < 0.8 and min(a, b) > 7.0:
        crown = body.shifted(0.0, 0.0, 0.68 * a, 0.68 * b)
        plot.part(
            crown.u, crown.v, crown.a, crown.b, eave * 1.18, wall, top, kind=kind, turn=body.turn, floor=floor, bay=bay
        )
        eave *= 1.18
        body = crown
    machines(plot, body, eave)
