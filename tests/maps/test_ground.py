"""What an oblique image shows is moved to where it stands, as a picture from straight above shows it."""

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agl_core.data.tiles import UNKNOWN
from agl_core.geometry import Pose, direction, scale_from_elevation
from agl_core.maps.ground import HEIGHTLESS, HIDDEN, OUTSIDE, SEEN, Canvas, Highest, full_canvas, rectified
from agl_core.maps.rectify import Part, bands
from agl_core.opencv import cv2
from agl_core.world.city import build_place
from agl_core.world.render import Camera, Light, render
from agl_core.world.scene import Scene
from agl_core.world.style import style_of

Heights = NDArray[np.uint16]
GSD = 0.5
VIEWS = [  # elevation in degrees, angle, rows, columns
    (60, 0.0, 180, 240),
    (58, 0.6, 180, 240),
    (62, math.pi / 2, 240, 180),
    (65, 2.2, 180, 240),
    (56, math.pi, 240, 180),
    (70, 4.0, 240, 180),
    (58, 5.5, 180, 240),
]


@cache
def place(city: int) -> Scene:
    return build_place(style_of(city), 260.0, np.random.default_rng(8))


@cache
def views(city: int, elevation: float, angle: float, height: int, width: int) -> tuple[Pose, Heights, Heights]:
    """The pose, the heights that the oblique image shows, and those that one from straight above shows."""
    scene, middle = place(city), 0.5 * place(city).side
    pose = Pose(scale_from_elevation(math.radians(elevation), GSD), angle)
    light = Light(1.0, 1.0)
    # A little off the middle, so that no pixel lies on the border of two cells, where rounding would decide.
    _, oblique = render(scene, Camera(pose, GSD, height, width, middle + 0.0137, middle - 0.0071), light)
    _, nadir = render(scene, Camera(Pose(0, angle), GSD, height, width, middle + 0.0137, middle - 0.0071), light)
    return pose, oblique, nadir


def agreement(found: Heights, nadir: Heights, tolerance: int = 2) -> float:
    """Within rounding: the share of the pixels known in both, and raised in one of them, whose height lies between the
    lowest and the highest that the nadir image has within one pixel, give or take `tolerance` centimetres."""
    window = np.ones((3, 3), np.uint8)
    lowest = cv2.erode(nadir, window).astype(int) - tolerance
    highest = cv2.dilate(np.where(nadir == UNKNOWN, 0, nadir).astype(np.uint16), window).astype(int) + tolerance
    raised = (found != UNKNOWN) & (nadir != UNKNOWN) & ((nadir > 20) | (found > 20))
    assert raised.mean() > 0.05
    return float(((found >= lowest) & (found <= highest))[raised].mean())


@pytest.mark.parametrize("city", [0, 1, 2])
@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_a_rectified_image_of_the_world_agrees_with_the_one_from_straight_above(
    city: int, view: tuple[float, float, int, int]
) -> None:
    pose, oblique, nadir = views(city, *view)
    found = rectified(None, oblique, pose)
    assert agreement(found.agl_cm, nadir) > 0.99
    both = (found.mask == SEEN) & (nadir != UNKNOWN)
    assert (np.abs(found.agl_cm.astype(int) - nadir)[both] <= 2).mean() > 0.89
    assert 0.7 < (found.mask == SEEN).mean() < 0.93


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_the_mask_says_what_the_oblique_image_shows_of_what_the_nadir_image_has(
    view: tuple[float, float, int, int],
) -> None:
    pose, oblique, nadir = views(1, *view)
    found = rectified(None, oblique, pose)
    # What stands at g with height h is seen at g - h * scale * d, if nothing taller hides it there.
    lean = np.where(nadir == UNKNOWN, 0, nadir) / 100 * pose.scale
    rows, columns = np.mgrid[: nadir.shape[0], : nadir.shape[1]].astype(float)
    y, x = np.rint(rows - lean * np.cos(pose.angle)), np.rint(columns - lean * np.sin(pose.angle))
    inside = (y >= 1) & (x >= 1) & (y < nadir.shape[0] - 1) & (x < nadir.shape[1] - 1)
    at = y[inside].astype(int), x[inside].astype(int)
    window = np.ones((3, 3), np.uint8)
    certain = cv2.dilate(oblique, window).astype(int)[at] - cv2.erode(oblique, window)[at] < 30
    shown = np.abs(oblique[at].astype(int) - nadir[inside]) < 30
    agrees = (found.mask[inside] == SEEN) == shown
    assert certain.mean() > 0.4
    assert agrees[certain].mean() > 0.985
    assert (~shown)[certain].mean() > 0.02


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_wrong_directions_swapped_axes_and_wrong_scales_would_be_noticed(
    view: tuple[float, float, int, int],
) -> None:
    pose, oblique, nadir = views(1, *view)
    assert agreement(rectified(None, oblique, Pose(pose.scale, pose.angle + math.pi)).agl_cm, nadir) < 0.8
    swapped = Pose(pose.scale, math.pi / 2 - pose.angle)
    if abs(math.sin(pose.angle) - math.cos(pose.angle)) > 0.5:
        assert agreement(rectified(None, oblique, swapped).agl_cm, nadir) < 0.85
    assert agreement(rectified(None, oblique, Pose(pose.scale * 0.8, pose.angle)).agl_cm, nadir) < 0.97


@settings(deadline=None, derandomize=True, max_examples=60)
@given(angle=st.floats(0, 2 * math.pi), scale=st.floats(0.2, 2.0), metres=st.floats(3.0, 20.0))
def test_a_single_raised_pixel_goes_where_it_stands_whatever_the_direction(
    angle: float, scale: float, metres: float
) -> None:
    agl = np.zeros((101, 121), np.uint16)
    cm = round(100 * metres)
    agl[50, 60] = cm
    found = rectified(None, agl, Pose(scale, angle))
    row, column = np.nonzero(found.agl_cm == cm)
    dx, dy = direction(angle)
    lean = cm / 100 * scale
    if lean > 4:  # less is a bump of the surface around it, not a thing by itself
        assert 1 <= len(row) <= 4
        assert np.abs(row - (50 + lean * dy)).max() <= 1.0
        assert np.abs(column - (60 + lean * dx)).max() <= 1.0
    # The ground that the pixel hid is hidden, all other ground is seen.
    assert (found.agl_cm == 0).sum() + len(row) >= agl.size - 3


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_of_two_surfaces_that_claim_the_same_ground_the_taller_has_it(view: tuple[float, float, int, int]) -> None:
    pose, oblique, _ = views(1, *view)
    agl = oblique.copy()
    agl[80:100, 90:115] = 3500  # higher than anything, and it hides nothing of what it is moved over
    found = rectified(None, agl, pose)
    dx, dy = (35 * pose.scale * float(part) for part in direction(pose.angle))
    rows, columns = np.mgrid[: agl.shape[0], : agl.shape[1]]
    stands = (np.abs(rows - 89.5 - dy) <= 9.5) & (np.abs(columns - 102 - dx) <= 12)
    assert stands.sum() > 300
    assert (found.agl_cm[stands] == 3500).all()
    near = (np.abs(rows - 89.5 - dy) <= 10.5) & (np.abs(columns - 102 - dx) <= 13)
    assert not (found.agl_cm[~near] == 3500).any()


@settings(deadline=None, derandomize=True, max_examples=40)
@given(angle=st.floats(0, 2 * math.pi), lean=st.floats(0, 30), height=st.integers(40, 90), width=st.integers(40, 90))
# The line leaves the image between two samples, before the upper one is half a column outside and after that.
@example(angle=0.875, lean=3.0, height=40, width=40)
@example(angle=0.875, lean=5.5, height=40, width=40)
def test_a_flat_roof_moves_as_a_whole_without_cracks_and_takes_its_colours_along(
    angle: float, lean: float, height: int, width: int
) -> None:
    agl = np.full((height, width), 1000, np.uint16)
    rows, columns = np.mgrid[:height, :width]
    rgb = np.stack([2 * rows, 2 * columns, np.full_like(rows, 7)], -1).astype(np.uint8)
    found = rectified(rgb, agl, Pose(lean / 10, angle))
    dx, dy = direction(angle)
    y, x = rows - lean * dy, columns - lean * dx  # where each pixel of the ground is seen
    margin = 1e-6
    inside = (y >= margin) & (x >= margin) & (y <= height - 1 - margin) & (x <= width - 1 - margin)
    assert (found.mask[inside] == SEEN).all()
    assert (found.agl_cm[inside] == 1000).all()
    assert found.rgb is not None
    expected = np.stack([2 * y, 2 * x, np.full_like(y, 7)], -1)
    assert np.abs(found.rgb[inside] - expected[inside]).max() <= 0.51 + 1e-3
    far = (y < -0.51) | (x < -0.51) | (y > height - 0.49) | (x > width - 0.49)
    assert (found.mask[far] == HIDDEN).all()
    assert (found.rgb[far] == 0).all()
    assert (found.agl_cm[far] == UNKNOWN).all()


@pytest.mark.parametrize("angle", np.linspace(0, 2 * math.pi, 17)[:-1] + 0.1)
@pytest.mark.parametrize("lean", [0.6, 3.0, 5.5, 17.3])
@pytest.mark.parametrize("size", [(40, 40), (33, 70), (2, 50), (50, 1)], ids=str)
def test_the_outermost_pixels_reach_half_a_pixel_outside_and_no_further(
    angle: float, lean: float, size: tuple[int, int]
) -> None:
    height, width = size
    agl = np.full(size, 1000, np.uint16)
    rows, columns = np.mgrid[:height, :width]
    rgb = np.stack([3 * rows, 3 * columns, np.full_like(rows, 7)], -1).astype(np.uint8)
    dx, dy = direction(angle)
    # All that stands on the canvas is the roof, with all four borders and corners.
    canvas = Canvas(round(lean * dy) - 4, round(lean * dx) - 4, height + 8, width + 8)
    found = rectified(rgb, agl, Pose(lean / 10, angle), canvas)
    rows, columns = np.mgrid[: canvas.height, : canvas.width]
    y, x = rows + canvas.top - lean * dy, columns + canvas.left - lean * dx
    outside = np.maximum.reduce([-y, -x, y - (height - 1), x - (width - 1)])
    assert (found.mask[outside < 0.5 - 1e-4] == SEEN).all()
    assert (found.mask[outside > 0.5 + 1e-4] != SEEN).all()
    seen = found.mask == SEEN
    assert (found.agl_cm[seen] == 1000).all()
    assert found.rgb is not None
    expected = np.stack([3 * y.clip(0, height - 1), 3 * x.clip(0, width - 1), np.full_like(y, 7)], -1)
    assert np.abs(found.rgb - expected)[seen].max() <= 0.5 + 1e-3


@pytest.mark.parametrize("angle", np.linspace(0, 2 * math.pi, 17)[:-1] + 0.1)
@pytest.mark.parametrize("slope", [(0.3, 0.2), (-0.4, 0.1), (0.1, -0.4), (-0.3, -0.3)])
def test_a_slope_is_interpolated_up_to_the_border(angle: float, slope: tuple[float, float]) -> None:
    size, scale, top = (40, 50), 1.2, 1500.0
    rows, columns = np.mgrid[: size[0], : size[1]].astype(float)
    per_pixel = np.array(slope) * 100 / scale  # centimetres, for as many pixels of leaning by row and by column
    agl = np.rint(top + per_pixel[0] * (rows - 20) + per_pixel[1] * (columns - 25)).astype(np.uint16)
    rgb = np.stack([4 * rows, 4 * columns, np.full_like(rows, 7)], -1).astype(np.uint8)
    found = rectified(rgb, agl, Pose(scale, angle))
    # What stands at g is seen at p with p + (lean + slope * (p - middle)) * (dy, dx) = g.
    dx, dy = direction(angle)
    towards, middle = np.array([dy, dx]), np.array([20, 25])
    ground = np.stack([rows, columns], -1) - middle - top / 100 * scale * towards
    y, x = np.moveaxis(ground @ np.linalg.inv(np.eye(2) + np.outer(towards, slope)).T + middle, -1, 0)
    inside = (y >= 0) & (x >= 0) & (y <= size[0] - 1) & (x <= size[1] - 1)
    assert inside.sum() > 300
    assert (found.mask[inside] == SEEN).all()
    assert found.rgb is not None
    expected = np.stack([4 * y, 4 * x, np.full_like(y, 7)], -1)
    assert np.abs(found.rgb[inside] - expected[inside]).max() < 0.8  # of which 0.5 is rounding
    expected_agl = top + per_pixel[0] * (y - 20) + per_pixel[1] * (x - 25)
    assert np.abs(found.agl_cm[inside] - expected_agl[inside]).max() < 7


@pytest.mark.parametrize("holes", [0.0, 0.2])
@pytest.mark.parametrize("most", [40, 300, 3000])
@pytest.mark.parametrize("angle", [0.0, math.pi / 4, 0.875, 2.0, 3 * math.pi / 4, 3.5, 4.4, 5.5])
def test_whatever_the_heights_nothing_is_taken_from_outside_of_the_image(angle: float, most: int, holes: float) -> None:
    generator = np.random.default_rng(most)
    agl = generator.integers(800, 800 + most, (45, 60)).astype(np.uint16)
    agl[generator.random(agl.shape) < holes] = UNKNOWN
    known = agl[agl != UNKNOWN]
    rgb = np.full((*agl.shape, 3), 9, np.uint8)
    pose = Pose(1.1, angle)
    canvas = full_canvas(Highest(*agl.shape).add(agl), pose)
    found = rectified(rgb, agl, pose, canvas)
    seen = found.mask == SEEN
    assert seen.mean() > 0.03
    heights = found.agl_cm[seen]
    assert known.min() <= heights.min()
    assert heights.max() <= known.max()
    assert found.rgb is not None
    assert (found.rgb[seen] == 9).all()
    dx, dy = direction(angle)
    rows, columns = np.nonzero(seen)
    y, x = (
        at - heights / 100 * pose.scale * part for at, part in ((rows + canvas.top, dy), (columns + canvas.left, dx))
    )
    outside = np.maximum.reduce([-y, -x, y - (agl.shape[0] - 1), x - (agl.shape[1] - 1)])
    assert outside.max() < 0.55


@pytest.mark.parametrize("angle", np.linspace(0, 2 * math.pi, 9) + 0.1)
def test_slopes_to_and_from_the_camera_have_no_cracks(angle: float) -> None:
    # 30 degrees up and down along the direction of view, seen from 60 degrees: half of it is steep as seen.
    rows, columns = np.mgrid[:120, :150].astype(float)
    dx, dy = direction(angle)
    along = (columns - 75) * dx + (rows - 60) * dy
    scale, slope = 0.577 / GSD, math.tan(math.radians(30)) * GSD
    # A roof whose ridge lies across: h = top - slope * |s| over the ground; seen at p = s - h * scale.
    top = 12.0
    ridge = -top * scale
    metres = np.where(
        along < ridge,
        (top + slope * (along)) / (1 - slope * scale),
        (top - slope * along) / (1 + slope * scale),
    )
    agl = np.rint(100 * np.clip(metres, 0, None)).astype(np.uint16)
    found = rectified(None, agl, Pose(scale, angle))
    truth = 100 * np.clip(top - slope * np.abs(along), 0, None)
    middle = np.s_[45:75, 55:95]
    assert (found.mask[middle] == SEEN).all()
    assert np.abs(found.agl_cm[middle] - truth[middle]).max() < 40
    assert np.quantile(np.abs(found.agl_cm[middle] - truth[middle]), 0.9) < 3


@pytest.mark.parametrize("angle", [0.0, math.pi / 2, math.pi, 3 * math.pi / 2])
@pytest.mark.parametrize("most", [60, 400, 3000])
def test_along_a_row_or_column_nothing_depends_on_what_is_beside_it(angle: float, most: int) -> None:
    agl = np.random.default_rng(most).integers(0, most, (70, 70)).astype(np.uint16)
    agl[:, 35:] //= 8
    agl[20:30, 25:60] = UNKNOWN
    pose = Pose(1.3, angle)
    across = abs(math.sin(angle)) > 0.5
    found = rectified(None, agl, pose)
    for n in range(70):
        line = np.s_[n : n + 1] if across else np.s_[:, n : n + 1]
        alone = rectified(None, agl[line], pose)
        assert np.array_equal(found.mask[line], alone.mask)
        assert np.abs(found.agl_cm[line].astype(int) - alone.agl_cm).max() <= 1


SYMMETRIES = {
    "left and right": (lambda a: a[:, ::-1], lambda angle: -angle),
    "top and bottom": (lambda a: a[::-1], lambda angle: math.pi - angle),
    "x and y": (lambda a: a.swapaxes(0, 1), lambda angle: math.pi / 2 - angle),
    "half a turn": (lambda a: a[::-1, ::-1], lambda angle: angle + math.pi),
}


@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("view", VIEWS[1:4], ids=str)
def test_what_is_mirrored_is_rectified_to_the_mirror_image(symmetry: str, view: tuple[float, float, int, int]) -> None:
    mirror, turn = SYMMETRIES[symmetry]
    pose, agl, _ = views(2, *view)
    found = rectified(None, agl, pose)
    other = rectified(None, np.ascontiguousarray(mirror(agl)), Pose(pose.scale, turn(pose.angle)))
    assert (mirror(found.mask) == other.mask).mean() > 0.999
    assert (np.abs(mirror(found.agl_cm).astype(int) - other.agl_cm) <= 1).mean() > 0.999


@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("angle", [*(math.pi / 4 * np.arange(1, 8, 2)), 0.3, 0.875, 2.5, 4.4])
def test_at_the_border_rows_and_columns_are_treated_alike(symmetry: str, angle: float) -> None:
    # Where the image leans by 45 degrees, its mirror image is walked along the other way.
    mirror, turn = SYMMETRIES[symmetry]
    _, heights, _ = views(2, *VIEWS[1])
    for agl in (np.full((30, 41), 1230, np.uint16), np.ascontiguousarray(heights[60:100, 90:130])):
        rgb = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 256, (*agl.shape, 3), np.uint8), (0, 0), 1.5)
        found = rectified(rgb, agl, Pose(0.9, angle))
        other = rectified(*(np.ascontiguousarray(mirror(a)) for a in (rgb, agl)), Pose(0.9, turn(angle)))
        assert np.array_equal(mirror(found.mask), other.mask)
        assert np.abs(mirror(found.agl_cm).astype(int) - other.agl_cm).max() <= 1
        assert found.rgb is not None
        assert other.rgb is not None
        assert np.abs(mirror(found.rgb).astype(int) - other.rgb).max() <= 1


def test_an_image_from_straight_above_stays_as_it_is_and_unknown_heights_stay_unknown() -> None:
    generator = np.random.default_rng(0)
    rgb = generator.integers(0, 256, (40, 70, 3), np.uint8)
    agl = generator.integers(0, 9000, (40, 70)).astype(np.uint16)
    agl[10:20, 30:50] = UNKNOWN
    found = rectified(rgb, agl, Pose(0, 2.0))
    known = agl != UNKNOWN
    assert np.array_equal(found.agl_cm, agl)
    assert np.array_equal(found.mask, np.where(known, SEEN, HEIGHTLESS))
    assert found.rgb is not None
    assert np.array_equal(found.rgb, np.where(known[..., None], rgb, 0))
    filled = rectified(rgb, agl, Pose(0, 2.0), fill=True)
    assert filled.rgb is not None
    assert np.array_equal(filled.rgb, rgb), "what has no height is shown where the image has it"
    assert np.array_equal(filled.agl_cm, agl)
    assert np.array_equal(filled.mask, found.mask)


def box(angle: float) -> tuple[Heights, Heights, Pose]:
    """The oblique image of a box on flat ground, the box as it stands, and the pose; its roof leans over 12 pixels."""
    ground = np.zeros((80, 100), np.uint16)
    ground[35:50, 40:60] = 1000
    dx, dy = (round(12 * float(part)) for part in direction(angle))
    seen = np.zeros_like(ground)
    for step in range(13):  # from the ground up, the walls and at last the roof
        moved = np.roll(ground, (-round(step * dy / 12), -round(step * dx / 12)), (0, 1))
        seen[moved > 0] = round(1000 * step / 12)
    return seen, ground, Pose(1.2, angle)


@pytest.mark.parametrize("angle", [0, math.pi / 2, math.pi, 3 * math.pi / 2])
def test_behind_a_box_the_ground_is_hidden_and_filled_from_the_ground_beside_it(angle: float) -> None:
    seen, ground, pose = box(angle)
    rgb = np.where((seen > 0)[..., None], np.uint8(200), np.uint8(50)).repeat(3, axis=-1)
    found = rectified(rgb, seen, pose)
    roof = ground > 0
    assert (found.agl_cm[roof] == 1000).all()
    assert (found.mask[roof] == SEEN).all()
    hidden = found.mask == HIDDEN
    # The roof hides as much as it leans over, seen across the direction of view: 15 rows high, 20 columns wide.
    expected = 12 * (20 if abs(math.cos(angle)) > 0.5 else 15)
    assert hidden.sum() == pytest.approx(expected, abs=25)
    assert (found.agl_cm[hidden] == UNKNOWN).all()
    assert found.rgb is not None
    assert (found.rgb[hidden] == 0).all()
    filled = rectified(rgb, seen, pose, fill=True)
    assert filled.rgb is not None
    assert (filled.agl_cm[hidden] == 0).all(), "not from the roof"
    assert (filled.rgb[hidden] == 50).all()
    assert np.array_equal(filled.mask, found.mask)
    assert np.array_equal(filled.agl_cm[~hidden], found.agl_cm[~hidden])


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_the_full_canvas_holds_everything_and_the_same_in_the_middle(view: tuple[float, float, int, int]) -> None:
    pose, agl, _ = views(0, *view)
    height, width = agl.shape
    canvas = full_canvas(Highest(height, width).add(agl), pose)
    whole, found = rectified(None, agl, pose, canvas), rectified(None, agl, pose)
    middle = np.s_[-canvas.top : height - canvas.top, -canvas.left : width - canvas.left]
    assert np.array_equal(whole.agl_cm[middle], found.agl_cm)
    assert np.array_equal(whole.mask[middle], found.mask)
    dx, dy = direction(pose.angle)
    rows, columns = np.mgrid[:height, :width]
    lean = agl / 100 * pose.scale
    y, x = np.rint(rows + lean * dy - canvas.top).astype(int), np.rint(columns + lean * dx - canvas.left).astype(int)
    assert (y.min(), x.min()) >= (0, 0)
    assert y.max() < canvas.height
    assert x.max() < canvas.width
    assert y.max() == canvas.height - 1 or y.min() == 0
    border = np.ones(whole.mask.shape, bool)
    border[middle] = False
    assert border.any()
    assert set(np.unique(whole.mask[border])) == {SEEN, OUTSIDE}
    # What stands outside of the image, by all pixels one by one, is there; a wall, which is a line, within a pixel.
    landed = np.zeros(whole.mask.shape, bool)
    landed[y, x] = True
    seen = cv2.dilate((whole.mask == SEEN).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    assert seen[landed & border].mean() > 0.95


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("view", VIEWS[:5], ids=str)
def test_bands_make_up_the_same_as_all_at_once(view: tuple[float, float, int, int], fill: bool) -> None:
    pose, agl, _ = views(1, *view)
    rgb = np.random.default_rng(1).integers(0, 256, (*agl.shape, 3), np.uint8)
    agl[20:40, 50:70] = UNKNOWN
    for canvas in (Canvas(0, 0, *agl.shape), full_canvas(Highest(*agl.shape).add(agl), pose)):
        whole = rectified(rgb, agl, pose, canvas, fill)
        leaning = math.ceil(int(agl[agl != UNKNOWN].max()) / 100 * pose.scale)
        part = Part(*agl.shape, pose, canvas, leaning, fill)
        parts = list(bands(part, lambda top, rows: (rgb[top : top + rows], agl[top : top + rows]), 32))
        assert len(parts) > 4
        for name in ("rgb", "agl_cm", "mask"):
            assert np.array_equal(np.concatenate([getattr(one, name) for one in parts]), getattr(whole, name)), name


def test_an_image_of_another_size_than_its_heights_is_a_defect_of_the_caller() -> None:
    with pytest.raises(ValueError, match="must be of one image"):
        rectified(np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4), np.uint16), Pose(1, 1))
