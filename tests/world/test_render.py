"""The renderer is the ground truth of every geometric claim: it is checked against geometry done by hand."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agl_core.data.tiles import UNKNOWN
from agl_core.geometry import Pose, direction, flow, scale_from_elevation
from agl_core.world.city import build_place, side_of
from agl_core.world.render import Camera, Light, Sensor, render
from agl_core.world.scene import DOME, FLAT, GABLE, LAWN, PART, PATCH, TREE, WALLED, WATER, Scene
from agl_core.world.style import name_of, style_of

NOON = Light(azimuth=1.0, elevation=1.0)
Heights = NDArray[np.float64]


def solid(
    x: float, y: float, a: float, b: float, eave: float, roof: int = FLAT, pitch: float = 0.0
) -> NDArray[np.void]:
    record = np.zeros(1, PART)
    record["x"], record["y"], record["a"], record["b"], record["eave"] = x, y, a, b, eave
    record["cos"], record["roof"], record["pitch"], record["kind"] = 1.0, roof, pitch, WALLED
    record["floor"], record["bay"] = 3.0, 3.0
    for channel in "rgb":
        record[f"wall_{channel}"] = record[f"roof_{channel}"] = 0.5
    return record


def patch(x: float, y: float, a: float, b: float, material: int) -> NDArray[np.void]:
    record = np.zeros(1, PATCH)
    record["x"], record["y"], record["a"], record["b"], record["cos"], record["material"] = x, y, a, b, 1.0, material
    return record


def looking_at(scene: Scene, elevation: float, angle: float, gsd: float = 0.7, size: int = 41) -> Camera:
    pose = Pose(0.0 if elevation == 90 else scale_from_elevation(math.radians(elevation), gsd), angle)
    # A little off the middle, so that no pixel lies on the border of two cells, where rounding would decide.
    return Camera(pose, gsd, size, size, 0.5 * scene.side + 0.0137, 0.5 * scene.side - 0.0071)


def feet(camera: Camera) -> tuple[Heights, Heights]:
    """Where in the scene the ground point of every pixel lies, metres."""
    column, row = np.meshgrid(np.arange(camera.width, dtype=float), np.arange(camera.height, dtype=float))
    return (
        camera.x + (column - 0.5 * (camera.width - 1)) * camera.gsd,
        camera.y + (row - 0.5 * (camera.height - 1)) * camera.gsd,
    )


def first_met(surface: Callable[[Heights, Heights], Heights], camera: Camera, top: float) -> Heights:
    """The highest h at which the view ray is not above the surface, by trying every half centimetre."""
    x, y = feet(camera)
    dx, dy = (float(part) for part in direction(camera.pose.angle))
    lean = camera.pose.scale * camera.gsd
    met = np.full(x.shape, -1.0)
    for h in np.arange(top + 0.01, -0.005, -0.005):
        under = (met < 0) & (surface(x + h * lean * dx, y + h * lean * dy) >= h)
        met[under] = max(h, 0.0)
    return met


@pytest.fixture(scope="module", params=[0, 1, 2], ids=lambda city: style_of(city).kind)
def place(request: pytest.FixtureRequest) -> Scene:
    return build_place(style_of(request.param), 110.0, np.random.default_rng(8))


def test_seen_from_the_zenith_every_pixel_shows_the_height_beneath_it(place: Scene) -> None:
    camera = looking_at(place, 90, 0.3, size=101)
    _, agl = render(place, camera, NOON)
    truth = place.height_at(*feet(camera))
    known = agl != UNKNOWN
    assert known.mean() > 0.5
    assert truth.max() > 5
    np.testing.assert_allclose(agl[known] / 100, truth[known], atol=0.0051)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(angle=st.floats(0, 2 * math.pi), elevation=st.floats(50, 89), height=st.floats(0.5, 15))
def test_a_box_shows_its_roof_its_facades_and_hides_what_is_behind(
    angle: float, elevation: float, height: float
) -> None:
    scene = Scene(60.0, 0.25)
    scene.build(solid(29, 31, 6, 4, height))
    camera = looking_at(scene, elevation, angle)
    _, agl = render(scene, camera, NOON)

    # The ray through a pixel is inside the box's footprint for an interval of heights: it shows the top of it.
    lean = camera.pose.scale * camera.gsd
    low, high = np.zeros((41, 41)), np.full((41, 41), height)
    for foot, d, start, end in zip(feet(camera), direction(camera.pose.angle), (23.0, 27.0), (35.0, 35.0), strict=True):
        with np.errstate(all="ignore"):
            one, two = (start - foot) / (lean * d), (end - foot) / (lean * d)
        low, high = np.maximum(low, np.fmin(one, two)), np.minimum(high, np.fmax(one, two))
    expected = np.where(low < high, high, 0.0)
    grazes = np.abs(high - low) < 1e-9
    np.testing.assert_allclose(np.where(grazes, 0, agl / 100), np.where(grazes, 0, expected), atol=0.0051)


@pytest.mark.parametrize("angle", [0.0, 0.5 * math.pi, math.pi, 4.0])
def test_the_facade_that_is_seen_lies_on_the_side_to_which_the_ground_flows(angle: float) -> None:
    scene = Scene(60.0, 0.25)
    scene.build(solid(30, 30, 5, 5, 10))
    camera = looking_at(scene, 60, angle)
    _, agl = render(scene, camera, NOON)
    row, column = np.nonzero((agl > 0) & (agl < 1000))
    dx, dy = direction(angle)
    # Seen from above, the roof leans away from the ground point; between the two stands the facade.
    roof_row, roof_column = np.nonzero(agl == 1000)
    assert (column.mean() - roof_column.mean()) * dx + (row.mean() - roof_row.mean()) * dy > 2
    assert len(row) > 50


@pytest.mark.parametrize("angle", [0.4, 2.2, 5.1])
def test_in_a_city_the_walk_finds_what_trying_every_height_finds(place: Scene, angle: float) -> None:
    camera = looking_at(place, 56, angle, gsd=0.9, size=61)
    _, agl = render(place, camera, NOON)
    truth = first_met(place.height_at, camera, place.top)
    known = agl != UNKNOWN
    error = np.abs(agl[known] / 100 - truth[known])
    # Half a centimetre of rounding and one step of the trial; a corner that a ray only grazes may fall between steps.
    assert (error < 0.0111).mean() > 0.998
    assert (agl[known] > 100).mean() > 0.1


@pytest.mark.parametrize("angle", [1.3, 3.9])
def test_the_flow_of_every_pixel_lands_where_something_that_high_stands(place: Scene, angle: float) -> None:
    camera = looking_at(place, 58, angle, gsd=0.8, size=81)
    _, agl = render(place, camera, NOON)
    known = agl != UNKNOWN
    metres = np.where(known, agl / 100, 0.0)
    x, y = feet(camera)
    displaced = flow(metres, camera.pose)
    dx, dy = (float(part) for part in direction(angle))
    # Within a few centimetres: a facade is seen from its front, and a ray may graze a corner.
    land = np.max(
        [
            place.height_at(
                x + camera.gsd * displaced[..., 0] - behind * dx + aside * dy,
                y + camera.gsd * displaced[..., 1] - behind * dy - aside * dx,
            )
            for behind in (0.0, 0.02, 0.05)
            for aside in (-0.05, 0.0, 0.05)
        ],
        axis=0,
    )
    assert (land[known] >= metres[known] - 0.06).all()


@pytest.mark.parametrize("turn", [0.0, 0.5 * math.pi, 0.6])
def test_a_pitched_roof_is_a_plane_not_a_staircase(turn: float) -> None:
    scene = Scene(60.0, 0.5)
    house = solid(30, 30, 8, 5, 4.0, GABLE, 0.5)
    house["cos"], house["sin"] = math.cos(turn), math.sin(turn)
    scene.build(house)
    camera = looking_at(scene, 65, 0.4, gsd=0.11, size=101)
    _, agl = render(scene, camera, NOON)

    def gable(x: Heights, y: Heights) -> Heights:
        u = (x - 30) * math.cos(turn) + (y - 30) * math.sin(turn)
        v = (y - 30) * math.cos(turn) - (x - 30) * math.sin(turn)
        return np.where((np.abs(u) < 8) & (np.abs(v) < 5), 4.0 + 0.5 * (5 - np.abs(v)), 0.0)

    truth = first_met(gable, camera, 6.5)
    # Away from the edges, which are those of cells, and from the ridge, where a cell has one slope for two.
    (x, y), (dx, dy) = feet(camera), direction(0.4)
    lean = camera.pose.scale * camera.gsd
    x, y = x + truth * lean * dx - 30, y + truth * lean * dy - 30
    seen = (np.abs(x * math.cos(turn) + y * math.sin(turn)) < 7) & (truth > 4.4) & (truth < 6.2)
    assert seen.sum() > 1500
    np.testing.assert_allclose(agl[seen] / 100, truth[seen], atol=0.0111)


def test_water_has_no_height_but_what_stands_over_it_has() -> None:
    scene = Scene(60.0, 0.25)
    scene.paint(patch(30, 30, 20, 20, WATER))
    scene.build(solid(30, 30, 3, 3, 5, DOME, 2.0))
    camera = looking_at(scene, 70, 2.0, gsd=1.0, size=45)
    _, agl = render(scene, camera, NOON)
    x, y = feet(camera)
    wet = (np.abs(x - 30) < 20) & (np.abs(y - 30) < 20)
    assert (agl[~wet] == 0).all()
    assert set(np.unique(agl[wet] == UNKNOWN)) == {True, False}
    assert agl[wet & (agl != UNKNOWN)].max() > 500


def test_where_the_ray_comes_from_outside_the_scene_nothing_is_known_and_the_image_is_black() -> None:
    scene = Scene(30.0, 0.25)
    scene.build(solid(15, 15, 4, 4, 8))
    camera = replace(looking_at(scene, 60, 0.5 * math.pi, gsd=0.5), x=30.0)
    rgb, agl = render(scene, camera, NOON)
    outside = agl == UNKNOWN
    x, _ = feet(camera)
    top = 8 / math.tan(math.radians(60))
    assert outside[x > 30].all()
    assert outside[x + top > 30].all()
    assert not outside[x + top < 29.9].any()
    assert (rgb[outside] == 0).all()


@pytest.mark.parametrize("city", [0, 1, 2, 3, 4, 5])
def test_the_margin_of_a_place_holds_whatever_leans_into_its_tiles(city: int) -> None:
    style = style_of(city)
    scene = build_place(style, side_of(style, 64), np.random.default_rng(2))
    assert scene.top <= style.tallest + 0.01
    for angle in (0.0, 0.8, 3.0, 4.5):
        camera = replace(looking_at(scene, 54, angle, gsd=style.gsd * 1.05, size=64), x=0.5 * scene.side + 8.0)
        _, agl = render(scene, camera, NOON)
        for x, y in zip(*(part[agl == UNKNOWN] for part in feet(camera)), strict=True):
            assert scene.ground[scene.cell_of(x, y)] == WATER


def test_another_gsd_shows_the_same_metres(place: Scene) -> None:
    far = looking_at(place, 62, 2.5, gsd=0.8, size=61)
    near = Camera(Pose(2 * far.pose.scale, 2.5), 0.4, 121, 121, far.x, far.y)
    _, coarse = render(place, far, NOON)
    _, fine = render(place, near, NOON)
    differs = np.abs(coarse.astype(int) - fine[::2, ::2].astype(int)) > 1
    assert differs.mean() < 0.001


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_camera_rolled_by_quarter_turns_takes_the_picture_turned_counter_clockwise(
    place: Scene, quarters: int
) -> None:
    level = looking_at(place, 62, 2.5, size=61)
    by = quarters * math.pi / 2
    rolled = replace(level, pose=Pose(level.pose.scale, 2.5 + by), roll=by)
    pictures: tuple[tuple[NDArray[np.generic], ...], ...] = render(place, level, NOON), render(place, rolled, NOON)
    for upright, turned in zip(*pictures, strict=True):
        differs = np.abs(np.rot90(upright, quarters).astype(int) - turned) > 1
        assert differs.mean() < 0.001  # where a ray meets the corner of a cell, rounding decides
        assert np.ptp(upright) > 50


@pytest.mark.parametrize("roll", [0.3, 1.9, -2.4])
def test_a_rolled_camera_sees_along_the_same_rays(place: Scene, roll: float) -> None:
    level = replace(looking_at(place, 60, 2.5), height=41, width=61)
    rolled = replace(level, pose=Pose(level.pose.scale, 2.5 + roll), roll=roll)
    _, agl = render(place, rolled, NOON)
    seen = []
    for row, column in np.argwhere(agl >= 0)[::7]:
        # Counter-clockwise as seen: turned by `roll` about the middle, y down, a point to the right moves up.
        down, right = row - 20, column - 30
        x = level.x + (right * math.cos(roll) - down * math.sin(roll)) * level.gsd
        y = level.y + (right * math.sin(roll) + down * math.cos(roll)) * level.gsd
        _, one = render(place, replace(level, height=1, width=1, x=x, y=y), NOON)
        seen.append(abs(int(one[0, 0]) - int(agl[row, column])))
    assert np.mean(np.array(seen) <= 1) > 0.99


def test_the_sun_changes_the_colours_and_never_the_heights(place: Scene) -> None:
    camera = looking_at(place, 62, 2.5)
    first, agl = render(place, camera, NOON)
    other, same = render(place, camera, Light(azimuth=4.0, elevation=0.7, warmth=1.0, season=0.8, haze=0.1))
    np.testing.assert_array_equal(agl, same)
    assert np.abs(first.astype(int) - other).mean() > 5


@pytest.mark.parametrize("azimuth", [0.0, 1.0, 2.5, 4.4])
def test_the_shadow_falls_away_from_the_sun_as_far_as_its_elevation_says(azimuth: float) -> None:
    scene = Scene(80.0, 0.25)
    scene.build(solid(40, 40, 4, 4, 10))
    camera = looking_at(scene, 90, 0.0, gsd=0.5, size=81)
    rgb, agl = render(scene, camera, Light(azimuth, math.radians(45)))
    x, y = feet(camera)
    dx, dy = direction(azimuth)
    grey = rgb.mean(axis=-1)

    def in_shade(reach: float) -> NDArray[np.bool_]:
        steps = np.arange(0.0, 10.0, 0.02)[:, None, None]
        away = np.maximum(np.abs(x + steps * dx - 40), np.abs(y + steps * dy - 40))
        shaded: NDArray[np.bool_] = away.min(axis=0) < 4 + reach
        return shaded

    # A pixel beside the box also sees its roof.
    ground = (agl == 0) & (np.maximum(np.abs(x - 40), np.abs(y - 40)) > 4.6)
    shade, sunlit = ground & in_shade(-0.8), ground & ~in_shade(0.8)
    assert shade.sum() > 100
    assert grey[shade].max() < grey[sunlit].min()


def test_noise_is_a_function_of_the_sensors_seed(place: Scene) -> None:
    camera = looking_at(place, 62, 2.5)
    one, two, three = (render(place, camera, NOON, Sensor(0.5, 2.0, 1.0, seed))[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    difference = one.astype(int) - three
    assert 1.0 < difference.std() < 4.0


def test_a_place_is_a_function_of_its_generator() -> None:
    one, two, three = (build_place(style_of(1), 90.0, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.height, two.height)
    np.testing.assert_array_equal(one.ground, two.ground)
    assert (one.height != three.height).any()


def test_cities_differ_in_height_and_pixel_and_keep_their_name() -> None:
    def highest(city: int) -> float:
        """Of several places: each has buildings of its own usual height."""
        return max(build_place(style_of(city), 150.0, np.random.default_rng(seed)).top for seed in range(6))

    tops = [highest(city) for city in range(3)]
    assert tops[0] < 20 < tops[1] < 30 < tops[2]
    assert len({style_of(city).gsd for city in range(6)}) == 6
    names = [name_of(city) for city in range(980)]
    assert len(set(names)) == 980
    assert all(len(name) == 3 and name.isalpha() and name.isupper() for name in names)
    assert style_of(7) == style_of(7)


def test_trees_are_planted_only_where_nothing_else_stands() -> None:
    scene = build_place(style_of(0), 150.0, np.random.default_rng(4))
    trees = scene.parts[scene.parts["kind"] == TREE]
    assert len(trees) > 20
    assert all(scene.ground[scene.cell_of(tree["x"], tree["y"])] != WATER for tree in trees)
    owners = [scene.owner[scene.cell_of(tree["x"], tree["y"])] for tree in trees]
    assert all(scene.parts["kind"][owner] == TREE for owner in owners)
    assert (scene.ground == LAWN).any()
