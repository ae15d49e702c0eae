"""A drawing board for one place: pieces of ground, solids and trees in the axes of its street grid."""

import math
from typing import Any

import numpy as np

from agl_core.world.scene import (
    CAR,
    CONE,
    DOME,
    FLAT,
    LAWN,
    MEADOW,
    PART,
    PATCH,
    PAVEMENT,
    PLAIN,
    PLAZA,
    SOIL,
    TREE,
    WALLED,
    WATER,
    Scene,
)
from agl_core.world.surface import Colour, linear

_PLANTABLE = (LAWN, MEADOW, SOIL, PAVEMENT, PLAZA)
_CAR_PAINTS = (
    linear(226, 226, 224),
    linear(196, 198, 200),
    linear(60, 62, 66),
    linear(34, 36, 40),
    linear(120, 124, 130),
    linear(150, 44, 40),
    linear(44, 70, 122),
)
_CAR_WEIGHTS = (0.28, 0.2, 0.14, 0.16, 0.12, 0.05, 0.05)
_LEAVES = (linear(72, 92, 50), linear(84, 102, 54), linear(64, 84, 52), linear(98, 108, 58))
_NEEDLES = linear(52, 74, 52)


class Plot:
    """Collects what a place consists of, in metres along street axes u, v with the origin in the scene's middle."""

    def __init__(self, scene: Scene, turn: float, rng: np.random.Generator) -> None:
        """`turn` is the angle of the street axes against those of the scene, radians."""
        self.scene, self.turn, self.rng = scene, turn, rng
        self._patches: list[tuple[Any, ...]] = []
        self._parts: list[tuple[Any, ...]] = []
        self._trees: list[tuple[Any, ...]] = []

    def _place(self, u: float, v: float, turn: float) -> tuple[float, float, float, float]:
        c, s = math.cos(self.turn), math.sin(self.turn)
        middle = 0.5 * self.scene.side
        total = self.turn + turn
        return middle + u * c - v * s, middle + u * s + v * c, math.cos(total), math.sin(total)

    def outside(self, u: float, v: float, reach: float) -> bool:
        """Whether everything within `reach` metres of u, v lies outside the scene."""
        x, y, _, _ = self._place(u, v, 0.0)
        return not (-reach < x < self.scene.side + reach and -reach < y < self.scene.side + reach)

    def patch(
        self,
        u: float,
        v: float,
        a: float,
        b: float,
        material: int,
        turn: float = 0.0,
        round: bool = False,
        wobble: float = 0.0,
    ) -> None:
        """Cover a rectangle or ellipse of half axes a, b with a material; later ones lie over earlier ones."""
        if a > 0 and b > 0 and not self.outside(u, v, math.hypot(a, b) + wobble):
            self._patches.append((*self._place(u, v, turn), a, b, wobble, round, material))

    def part(
        self,
        u: float,
        v: float,
        a: float,
        b: float,
        eave: float,
        wall: Colour,
        top: Colour,
        roof: int = FLAT,
        pitch: float = 0.0,
        kind: int = WALLED,
        turn: float = 0.0,
        round: bool = False,
        floor: float = 3.2,
        bay: float = 3.0,
    ) -> None:
        """Put up a solid, see `scene.PART`; where two overlap the taller one stands."""
        if not self.outside(u, v, math.hypot(a, b)):
            seed = int(self.rng.integers(1 << 30))
            place = self._place(u, v, turn)
            self._parts.append((*place, a, b, eave, pitch, floor, bay, *wall, *top, round, roof, kind, seed))

    def car(self, u: float, v: float, turn: float = 0.0) -> None:
        """Park a car."""
        paint = _CAR_PAINTS[int(self.rng.choice(len(_CAR_PAINTS), p=_CAR_WEIGHTS))]
        self.part(
            u, v, float(self.rng.uniform(2.0, 2.5)), 0.95, float(self.rng.uniform(1.4, 1.8)), paint, paint,
            kind=CAR, turn=turn,
        )  # fmt: skip

    def tree(self, u: float, v: float, radius: float, conifer: bool = False) -> None:
        """Plant a tree where nothing else stands; its height follows from its crown."""
        if self.outside(u, v, radius):
            return
        rng = self.rng
        seed, vigour = int(rng.integers(1 << 30)), float(rng.uniform(0.9, 1.1))
        leaf = _NEEDLES if conifer else _LEAVES[int(rng.integers(len(_LEAVES)))]
        shade = float(rng.uniform(0.85, 1.15))
        leaf = (leaf[0] * shade, leaf[1] * shade, leaf[2] * shade)
        height = vigour * (3.0 * radius + 3.0 if conifer else 1.7 * radius + 2.0)
        roof, base = (CONE, 0.2 * height) if conifer else (DOME, 0.45 * height)
        place = self._place(u, v, float(rng.uniform(0, 6.28)))
        stretch = float(rng.uniform(0.85, 1.0))
        self._trees.append(
            (*place, radius, radius * stretch, base, height - base, 3.0, 3.0, *leaf, *leaf, True, roof, TREE, seed)
        )

    def box_on_roof(self, u: float, v: float, a: float, b: float, eave: float, colour: Colour, turn: float) -> None:
        """Put a plain box (a lift's head, a cooling unit) on a roof; `eave` is its top above ground."""
        self.part(u, v, a, b, eave, colour, colour, kind=PLAIN, turn=turn)

    def finish(self) -> None:
        """Paint the ground, put up the solids that do not stand in water, plant the trees where there is room."""
        scene = self.scene
        scene.paint(np.array(self._patches, PATCH))
        dry = [part for part in self._parts if scene.ground[scene.cell_of(part[0], part[1])] != WATER]
        scene.build(np.array(dry, PART))
        rooted = []
        for tree in self._trees:
            spot = scene.cell_of(tree[0], tree[1])
            if scene.ground[spot] in _PLANTABLE and scene.owner[spot] < 0:
                rooted.append(tree)
        scene.build(np.array(rooted, PART))
