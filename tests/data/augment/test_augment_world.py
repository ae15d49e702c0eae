"""Augmenting a rendered tile equals rendering with the transformed camera, and the comparison would notice if not."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agl_core.data.augment import geometric, splat
from agl_core.data.augment.geometric import Geometry, transform
from agl_core.data.tiles import UNKNOWN
from agl_core.geometry import D4, FLIP_HORIZONTAL, IDENTITY, ROT90, TRANSPOSE, Pose, apply_pose
from tests.data.augment.world_proof import Mask, Picture, Proof
from tests.data.augment.world_scenes import SIDE, blocks, looking, place

GEOMETRIES = {
    "turned": Geometry(turn=0.5),
    "turned the other way": Geometry(turn=-2.2),
    "magnified": Geometry(zoom=1.3),
    "reduced": Geometry(zoom=0.7),
    "stretched": Geometry(stretch=1.4),
    "stretched twofold": Geometry(stretch=2.0),
    "seen from the left": Geometry(angle_by=0.5),
    "seen from the right": Geometry(angle_by=-0.3),
    "seen from above": Geometry(scale_by=0.7),
    "seen from below": Geometry(scale_by=1.3),
    "seen anew": Geometry(scale_by=0.8, angle_by=-0.5),
    "everything": Geometry(FLIP_HORIZONTAL, 0.7, 0.9, 1.3, 1.2, 0.4),
    "everything else": Geometry(ROT90[1], -1.7, 1.2, 1.6, 0.75, -0.5),
}
PLACES = {
    "blocks": lambda: looking_at(blocks(), 60, 2.5),
    "blocks from above": lambda: looking_at(blocks(), 72, 5.0),
    "suburb": lambda: looking_at(place(0, 3), 62, 0.8),
    "quarter": lambda: looking_at(place(1, 3), 58, 4.0),
    "downtown": lambda: looking_at(place(2, 3), 66, 1.6),
    "towers": lambda: looking_at(place(2, 5), 56, 3.6),
}


def looking_at(scene: Any, elevation: float, angle: float) -> Callable[..., Proof]:
    """Proofs about one tile."""
    return lambda *args, **named: Proof(scene, looking(scene, elevation, angle), *args, **named)


def small_holes(picture: Picture) -> Mask:
    """250 squares of 7 pixels all over the picture."""
    holes = np.zeros((SIDE, SIDE), bool)
    for row, column in np.random.default_rng(5).integers(0, SIDE - 7, (250, 2)):
        holes[row : row + 7, column : column + 7] = True
    return holes


def a_roof(picture: Picture) -> Mask:
    """The whole of the roof at 12 m in `blocks`, and whatever else is as high."""
    roof: Mask = np.abs(picture[1].astype(int) - 1200) < 3
    return roof


@pytest.mark.parametrize("tile", PLACES)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_an_augmented_tile_is_what_the_transformed_camera_sees(name: str, tile: str) -> None:
    geometry = GEOMETRIES[name]
    proof = PLACES[tile]()(geometry, transform)
    assert proof.failures() == []
    assert proof.figures["pixels level"] > 0.3
    uncovers = geometry.angle_by != 0 or geometry.scale_by < 1
    assert (proof.figures["pixels hidden"] > 0.0005) == uncovers


@pytest.mark.parametrize("symmetry", D4, ids=range(8))
@pytest.mark.parametrize("turn", [0.0, 0.9])
def test_every_symmetry_before_a_turn_is_what_the_camera_sees(symmetry: Any, turn: float) -> None:
    proof = PLACES["blocks"]()(Geometry(symmetry, turn), transform)
    assert proof.failures() == []


@pytest.mark.parametrize("holes", [small_holes, a_roof])
@pytest.mark.parametrize("tile", ["blocks", "towers"])
@pytest.mark.parametrize("name", ["turned", "stretched twofold", "seen anew", "everything"])
def test_what_has_no_height_gets_none_and_disturbs_nothing(
    name: str, tile: str, holes: Callable[[Picture], Mask]
) -> None:
    proof = PLACES[tile]()(GEOMETRIES[name], transform, without=holes)
    assert proof.failures() == []
    assert proof.figures["pixels without height"] > (0.05 if holes is small_holes or tile == "blocks" else -1)


@pytest.mark.parametrize("tile", ["blocks", "downtown"])
@pytest.mark.parametrize("name", ["reduced", "turned", "stretched", "seen anew", "everything"])
def test_what_lies_beyond_the_tile_is_unknown_and_black(name: str, tile: str) -> None:
    proof = PLACES[tile]()(GEOMETRIES[name], transform)
    proof.camera = replace(proof.camera, height=120, width=110)
    assert proof.failures() == []
    assert proof.figures["pixels outside"] > 0.1


def test_random_chains_hold_too() -> None:
    generator = np.random.default_rng(12)
    for number in range(12):
        geometry = Geometry(
            D4[generator.integers(8)],
            generator.uniform(-math.pi, math.pi),
            generator.uniform(0.8, 1.3),
            generator.uniform(1, 1.8),
            generator.uniform(0.7, 1.3),
            generator.uniform(-0.5, 0.5),
        )
        proof = looking_at(place(number % 3, number), generator.uniform(55, 75), generator.uniform(0, 6.28))
        assert proof(geometry, transform).failures() == [], geometry


@dataclass(frozen=True)
class Mutant:
    """A rule inverted: what is patched, or what is done to arguments and results, and where it must be noticed."""

    geometry: Geometry
    noticed: str
    patch: Callable[[pytest.MonkeyPatch], None] = lambda patch: None
    instead: Callable[[Geometry], Geometry] = lambda geometry: geometry
    posed: Callable[[Pose], Pose] = lambda pose: pose
    given: Callable[[NDArray[np.uint16]], NDArray[np.uint16]] = lambda agl: agl
    result: Callable[[Picture, Geometry], Picture] = lambda picture, geometry: picture
    shift: tuple[float, float] = (0.0, 0.0)
    without: Callable[[Picture], Mask] | None = None

    def transform(self, rgb: Any, agl: Any, pose: Any, geometry: Geometry, size: int, centre: Any) -> Picture:
        """`transform` with the rule inverted."""
        centre = centre[0] + self.shift[0], centre[1] + self.shift[1]
        made = transform(rgb, self.given(agl), self.posed(pose), self.instead(geometry), size, centre)
        return self.result(made, geometry)


def label(name: str, rule: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """Patch a rule that the labels come from."""
    return lambda patch: patch.setattr(geometric, name, rule)


def kernel(name: str, *changes: tuple[str, str]) -> Callable[[pytest.MonkeyPatch], None]:
    """Patch a compiled function with its own source, changed."""

    def patch_kernel(patch: pytest.MonkeyPatch) -> None:
        source = inspect.getsource(getattr(splat, name).py_func).partition("\n")[2]  # without the decorator
        for old, new in changes:
            assert source.count(old) == 1, old
            source = source.replace(old, new)
        names: dict[str, Any] = dict(vars(splat))
        exec(source, names)
        patch.setattr(splat, name, names[name])

    return patch_kernel


def method(name: str, rule: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """Patch a method of `Geometry`."""
    return lambda patch: patch.setattr(Geometry, name, rule)


def motion_backwards(geometry: Geometry, pose: Pose) -> tuple[float, float]:
    """Surfaces move to the wrong side."""
    x, y = MOTION(geometry, pose)
    return -x, -y


def labels_of_the_old_view(geometry: Geometry, pose: Pose, gsd: float) -> tuple[Pose, float]:
    """The view changes in the picture alone."""
    return LABELS(replace(geometry, scale_by=1.0, angle_by=0.0), pose, gsd)


def recoloured(change: Callable[[Any], Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """Colours are taken from elsewhere than heights."""
    plain = splat.colour_map
    return lambda patch: patch.setattr(splat, "colour_map", lambda shift, *rest: plain(change(shift), *rest))


def grounded(picture: Picture, geometry: Geometry) -> Picture:
    """What is unknown lies on the ground, as in the reference."""
    return picture[0], np.where(picture[1] == UNKNOWN, np.uint16(0), picture[1])


MOTION, LABELS = Geometry.motion, Geometry.labels
MUTANTS = {
    "zoom divides the scale": Mutant(
        GEOMETRIES["magnified"], "scale",
        label("zoom", lambda pose, gsd, by: (Pose(pose.scale / by, pose.angle), gsd / by)),
    ),
    "zoom multiplies the gsd": Mutant(
        GEOMETRIES["magnified"], "gsd",
        label("zoom", lambda pose, gsd, by: (Pose(pose.scale * by, pose.angle), gsd * by)),
    ),
    "zoom leaves the labels": Mutant(GEOMETRIES["reduced"], "flow", label("zoom", lambda pose, gsd, by: (pose, gsd))),
    "a rotation turns the angle clockwise": Mutant(
        GEOMETRIES["turned"], "flow", label("rotate", lambda pose, gsd, by: (Pose(pose.scale, pose.angle - by), gsd))
    ),
    "a flip leaves the angle": Mutant(
        Geometry(FLIP_HORIZONTAL, 0.4), "flow", label("apply_pose", lambda pose, symmetry: pose)
    ),
    "a transposition adds a quarter to the angle": Mutant(
        Geometry(TRANSPOSE, 0.4), "flow",
        label("apply_pose", lambda pose, symmetry: Pose(pose.scale, 0.5 * math.pi + pose.angle)),
    ),
    "a quarter turn changes the angle the other way": Mutant(
        Geometry(ROT90[1], 0.4), "flow",
        label("apply_pose", lambda pose, symmetry: apply_pose(pose, symmetry.inverse())),
    ),
    "the view changes in the picture alone": Mutant(
        GEOMETRIES["seen anew"], "flow", method("labels", labels_of_the_old_view)
    ),
    "the view changes in the labels alone": Mutant(
        GEOMETRIES["seen anew"], "flow", instead=lambda geometry: replace(geometry, scale_by=1.0, angle_by=0.0)
    ),
    "the view's angle changes the other way": Mutant(
        GEOMETRIES["seen from the right"], "flow",
        method("viewed", lambda geometry, pose: Pose(pose.scale * geometry.scale_by, pose.angle - geometry.angle_by)),
    ),
    "the view's scale is divided": Mutant(
        GEOMETRIES["seen from below"], "flow",
        method("viewed", lambda geometry, pose: Pose(pose.scale / geometry.scale_by, pose.angle + geometry.angle_by)),
    ),
    "the picture turns clockwise": Mutant(
        GEOMETRIES["turned"], "flow", instead=lambda geometry: replace(geometry, turn=-geometry.turn)
    ),
    "the picture is reduced": Mutant(
        GEOMETRIES["magnified"], "flow", instead=lambda geometry: replace(geometry, zoom=1 / geometry.zoom)
    ),
    "the picture is turned first and then flipped": Mutant(
        Geometry(FLIP_HORIZONTAL, 0.4), "flow", instead=lambda geometry: replace(geometry, turn=-geometry.turn)
    ),
    "a quarter turn goes the other way": Mutant(
        Geometry(ROT90[1]), "flow", instead=lambda geometry: replace(geometry, symmetry=geometry.symmetry.inverse())
    ),
    "surfaces move to the wrong side": Mutant(
        GEOMETRIES["stretched"], "heights within a pixel", method("motion", motion_backwards)
    ),
    "surfaces move against the pose": Mutant(
        GEOMETRIES["stretched"], "heights within a pixel",
        posed=lambda pose: Pose(pose.scale, pose.angle + math.pi),
    ),
    "surfaces move but heights stay": Mutant(
        GEOMETRIES["stretched"], "heights within a pixel",
        result=lambda picture, geometry: (picture[0], np.where(
            picture[1] == UNKNOWN, picture[1], (picture[1] / geometry.stretch).astype(np.uint16)
        )),
    ),
    "heights are stretched but surfaces stay": Mutant(
        GEOMETRIES["stretched"], "heights within a pixel",
        instead=lambda geometry: Geometry(turn=1e-9),
        result=lambda picture, geometry: (picture[0], np.where(
            picture[1] == UNKNOWN, picture[1], (picture[1] * geometry.stretch).astype(np.uint16)
        )),
    ),
    "the lowest wins": Mutant(
        GEOMETRIES["stretched twofold"], "heights within a pixel",
        kernel("move_surfaces", ("if height > seen[target, where]:",
                                 "if height < seen[target, where] or seen[target, where] == EMPTY:")),
    ),
    "the last wins": Mutant(
        GEOMETRIES["stretched twofold"], "heights within a pixel",
        kernel("move_surfaces", ("if height > seen[target, where]:", "if True:")),
    ),
    "what is seen from behind stays": Mutant(
        GEOMETRIES["seen anew"], "hidden and unknown",
        kernel("move_surfaces", ("if one and end <= begin:\n                continue", "one = True")),
    ),
    "colours move to the wrong side": Mutant(
        GEOMETRIES["stretched twofold"], "colours of roofs", recoloured(lambda shift: -shift)
    ),
    "colours stay": Mutant(
        GEOMETRIES["seen anew"], "colours of roofs", recoloured(lambda shift: 0 * shift)
    ),
    "corners are ground": Mutant(GEOMETRIES["seen anew"], "outside, unknown and black", result=grounded),
    "uncovered ground is ground": Mutant(GEOMETRIES["seen from above"], "hidden and unknown", result=grounded),
    "corners are not black": Mutant(
        GEOMETRIES["turned"], "outside, unknown and black",
        result=lambda picture, geometry: (np.maximum(picture[0], 1), picture[1]),
    ),
    "what is unknown before is ground": Mutant(
        GEOMETRIES["stretched"], "without height and unknown", without=small_holes,
        given=lambda agl: np.where(agl == UNKNOWN, np.uint16(0), agl),
    ),
    "what is unknown before is high": Mutant(
        GEOMETRIES["seen anew"], "heights that were in view", without=small_holes,
        given=lambda agl: np.where(agl == UNKNOWN, np.uint16(2000), agl),
    ),
    "edges are blurred": Mutant(
        GEOMETRIES["turned"], "heights of something", label("_step", lambda pose: math.inf)
    ),
    "everything is off by a pixel": Mutant(GEOMETRIES["turned"], "offset", shift=(0.0, 1.0)),
    "everything is off by half a pixel": Mutant(GEOMETRIES["reduced"], "offset", shift=(-0.5, -0.5)),
    "colours are off by half a pixel": Mutant(GEOMETRIES["seen anew"], "offset", recoloured(lambda shift: shift + 0.5)),

}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_rule_inverted_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = MUTANTS[name]
    proof = PLACES["blocks"]()(mutant.geometry, mutant.transform, without=mutant.without)
    if "corners" in name:
        proof.camera = replace(proof.camera, height=120, width=110)
    mutant.patch(monkeypatch)
    # Not taken when the class was made: the labels may be what is patched.
    proof.labels = lambda geometry, pose, gsd: geometry.labels(pose, gsd)
    failures = proof.failures()
    assert any(failure.startswith(mutant.noticed) for failure in failures), failures


def test_a_symmetry_alone_only_exchanges_pixels() -> None:
    generator = np.random.default_rng(0)
    rgb = generator.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    agl = generator.integers(0, 65536, (64, 64)).astype(np.uint16)
    image, heights = transform(rgb, agl, Pose(1.0, 0.3), Geometry(IDENTITY), 64, (31.5, 31.5))
    np.testing.assert_array_equal(image, rgb)
    np.testing.assert_array_equal(heights, agl)
