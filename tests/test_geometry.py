"""The algebra of GEOPOSE: every label rule is checked against what happens to points and pixels."""

import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agl_core import geometry as g
from agl_core.geometry import Pose

settings.register_profile("story", deadline=None, derandomize=True)
settings.load_profile("story")

Point = NDArray[np.float64]

angles = st.floats(0, 2 * math.pi, exclude_max=True)
poses = st.builds(Pose, st.floats(0.05, 4), angles)
heights = st.floats(0, 200)
points = st.tuples(st.floats(-500, 500), st.floats(-500, 500)).map(np.array)
gsds = st.floats(0.1, 2)
factors = st.floats(0.3, 3)
symmetries = st.sampled_from(g.D4)


def ground_of(point: Point, height: float, pose: Pose) -> Point:
    """Where a surface seen at `point` stands, straight from the definition of GEOPOSE."""
    return point + height * pose.scale * np.array([math.sin(pose.angle), math.cos(pose.angle)])


def rotated(point: Point, t: float) -> Point:
    """Counter-clockwise as seen, y pointing down: what is at the right goes up."""
    x, y = point
    return np.array([x * math.cos(t) + y * math.sin(t), -x * math.sin(t) + y * math.cos(t)])


def check_labels(
    moved: Callable[[Point], Point], labels: tuple[Pose, float], point: Point, height: float, pose: Pose
) -> None:
    """A surface and its ground, both moved by the operation, must be what the new labels say."""
    new_pose, _ = labels
    expected = moved(ground_of(point, height, pose))
    assert ground_of(moved(point), height, new_pose) == pytest.approx(expected, abs=1e-7)


def test_rotation_used_in_these_tests_takes_the_right_up_as_numpy_does() -> None:
    assert rotated(np.array([1.0, 0.0]), math.pi / 2) == pytest.approx([0, -1])
    assert np.rot90(np.array([[0, 0, 0], [0, 0, 1], [0, 0, 0]]))[0, 1] == 1


@given(points, heights, poses, gsds)
def test_crop_changes_no_label(point: Point, height: float, pose: Pose, gsd: float) -> None:
    check_labels(lambda p: p - [17, 5], g.crop(pose, gsd), point, height, pose)
    assert g.crop(pose, gsd)[1] == gsd


@given(points, heights, poses, gsds)
def test_flips_and_transpose_move_surface_and_ground_together(
    point: Point, height: float, pose: Pose, gsd: float
) -> None:
    check_labels(lambda p: p * [-1, 1] + [63, 0], g.flip_horizontal(pose, gsd), point, height, pose)
    check_labels(lambda p: p * [1, -1] + [0, 63], g.flip_vertical(pose, gsd), point, height, pose)
    check_labels(lambda p: p[::-1], g.transpose(pose, gsd), point, height, pose)
    assert {rule(pose, gsd)[1] for rule in (g.flip_horizontal, g.flip_vertical, g.transpose)} == {gsd}


@given(points, heights, poses, gsds, st.floats(-10, 10))
def test_rotation_moves_surface_and_ground_together(
    point: Point, height: float, pose: Pose, gsd: float, by: float
) -> None:
    check_labels(lambda p: rotated(p, by), g.rotate(pose, gsd, by), point, height, pose)
    assert g.rotate(pose, gsd, by)[1] == gsd


@given(points, heights, poses, gsds, st.integers(-5, 5))
def test_quarter_turns_are_rotations(point: Point, height: float, pose: Pose, gsd: float, k: int) -> None:
    check_labels(lambda p: rotated(p, k * math.pi / 2), g.rot90(pose, gsd, k), point, height, pose)


@given(points, heights, poses, gsds, factors)
def test_zoom_multiplies_scale_and_divides_gsd(point: Point, height: float, pose: Pose, gsd: float, by: float) -> None:
    labels = g.zoom(pose, gsd, by)
    check_labels(lambda p: p * by, labels, point, height, pose)
    ground_metres = gsd * height * pose.scale
    assert labels[1] * height * labels[0].scale == pytest.approx(ground_metres), "the same metres on the ground"


@given(st.floats(0.9, 1.5), gsds, factors)
def test_zoom_agrees_with_the_camera(elevation: float, gsd: float, by: float) -> None:
    pose, zoomed_gsd = g.zoom(Pose(g.scale_from_elevation(elevation, gsd), 1.0), gsd, by)
    assert pose.scale == pytest.approx(g.scale_from_elevation(elevation, zoomed_gsd))


def test_scale_is_the_cotangent_of_the_elevation_per_pixel() -> None:
    assert g.scale_from_elevation(math.radians(45), 0.5) == pytest.approx(2)
    assert g.scale_from_elevation(math.radians(60), 1.0) == pytest.approx(1 / math.sqrt(3))


@given(points, heights, poses, factors)
def test_stretched_heights_move_pixels_and_leave_the_ground(point: Point, height: float, pose: Pose, by: float) -> None:
    moved = point + g.stretch_flow(np.array(height), pose, by)
    new_pose, gsd = g.stretch(pose, 0.5, by)
    assert gsd == 0.5
    assert ground_of(moved, height * by, new_pose) == pytest.approx(ground_of(point, height, pose), abs=1e-7)


@given(points, heights, poses)
def test_flow_leads_from_the_surface_to_its_ground(point: Point, height: float, pose: Pose) -> None:
    assert point + g.flow(np.array(height), pose) == pytest.approx(ground_of(point, height, pose), abs=1e-9)


def test_angle_zero_points_down_the_image_and_grows_counter_clockwise() -> None:
    one = np.ones((1, 1))
    assert g.flow(one, Pose(2, 0))[0, 0] == pytest.approx([0, 2])
    assert g.flow(one, Pose(2, math.pi / 2))[0, 0] == pytest.approx([2, 0])


def test_flow_of_unknown_heights_is_unknown() -> None:
    result = g.flow(np.array([[1.0, np.nan]], np.float32), Pose(2, 1))
    assert result.shape == (1, 2, 2)
    assert result.dtype == np.float32
    assert np.isnan(result).tolist() == [[[False, False], [True, True]]]


@given(symmetries, st.integers(3, 6), st.integers(3, 6), st.data())
def test_pixels_and_pose_change_together_in_all_eight_symmetries(
    op: g.Symmetry, height: int, width: int, data: st.DataObject
) -> None:
    cells = st.tuples(st.integers(0, height - 1), st.integers(0, width - 1))
    surface, ground = data.draw(cells), data.draw(cells)
    if surface == ground:
        return
    image = np.zeros((height, width), np.uint16)
    image[surface], image[ground] = 1, 2
    dy, dx = ground[0] - surface[0], ground[1] - surface[1]
    pose = Pose(math.hypot(dx, dy), g.angle_from_direction(dx, dy))

    after = g.apply(image, op)
    (surface_y, surface_x), (ground_y, ground_x) = np.argwhere(after == 1)[0], np.argwhere(after == 2)[0]
    arrow = (ground_x - surface_x, ground_y - surface_y)
    assert g.flow(np.array(1.0), g.apply_pose(pose, op)) == pytest.approx(arrow, abs=1e-9)
    assert g.apply_direction(dx, dy, op) == arrow


@given(symmetries, symmetries, poses)
def test_chained_symmetries_are_one_symmetry(first: g.Symmetry, second: g.Symmetry, pose: Pose) -> None:
    image = np.arange(12).reshape(3, 4)
    both = first.then(second)
    assert both in g.D4
    assert np.array_equal(g.apply(g.apply(image, first), second), g.apply(image, both))
    chained, at_once = g.apply_pose(g.apply_pose(pose, first), second), g.apply_pose(pose, both)
    assert g.angle_difference(chained.angle, at_once.angle) == pytest.approx(0, abs=1e-9)


def test_the_eight_symmetries_are_the_dihedral_group() -> None:
    image = np.arange(12).reshape(3, 4)
    assert len({g.apply(image, op).tobytes() + bytes(g.apply(image, op).shape) for op in g.D4}) == 8
    for op in g.D4:
        assert {op.then(other) for other in g.D4} == set(g.D4)
        assert op.then(op.inverse()) == op.inverse().then(op) == g.IDENTITY
    turn, flip = g.ROT90[1], g.FLIP_HORIZONTAL
    assert turn.then(turn).then(turn).then(turn) == g.IDENTITY
    assert flip.then(turn).then(flip) == turn.inverse()


def test_array_operations_are_those_of_numpy() -> None:
    image = np.arange(24).reshape(2, 4, 3)
    for turns, op in enumerate(g.ROT90):
        assert np.array_equal(g.apply(image, op), np.rot90(image, turns))
    assert np.array_equal(g.apply(image, g.FLIP_HORIZONTAL), image[:, ::-1])
    assert np.array_equal(g.apply(image, g.FLIP_VERTICAL), image[::-1])
    assert np.array_equal(g.apply(image, g.TRANSPOSE), image.transpose(1, 0, 2))


@given(symmetries)
def test_channels_may_come_first_or_last_and_arrays_may_be_tensors(op: g.Symmetry) -> None:
    last = np.arange(24).reshape(2, 4, 3)
    first = np.ascontiguousarray(last.transpose(2, 0, 1))
    expected = g.apply(last, op)
    assert np.array_equal(g.apply(first, op, rows=-2).transpose(1, 2, 0), expected)
    assert np.array_equal(g.apply(torch.from_numpy(last), op).numpy(), expected)
    assert np.array_equal(g.apply(torch.from_numpy(first), op, rows=-2).numpy().transpose(1, 2, 0), expected)


@given(poses, symmetries)
def test_numpy_and_torch_agree(pose: Pose, op: g.Symmetry) -> None:
    agl = np.array([[0.0, 1.5], [np.nan, 200.0]])
    angle = np.array([-7.0, -1e-20, 0.0, 3.0, 6.3, pose.angle])
    tensor = torch.from_numpy(angle)
    dx, dy = g.direction(angle)
    for ours, theirs in (
        (g.flow(agl, pose), g.flow(torch.from_numpy(agl), pose)),
        (g.stretch_flow(agl, pose, 1.5), g.stretch_flow(torch.from_numpy(agl), pose, 1.5)),
        (dx, g.direction(tensor)[0]),
        (dy, g.direction(tensor)[1]),
        (g.angle_from_direction(dx, dy), g.angle_from_direction(*g.direction(tensor))),
        (g.wrap_angle(angle), g.wrap_angle(tensor)),
        (g.angle_difference(angle, angle[::-1]), g.angle_difference(tensor, tensor.flip(0))),
        (g.apply_direction(dx, dy, op)[0], g.apply_direction(*g.direction(tensor), op)[0]),
    ):
        assert isinstance(theirs, torch.Tensor)
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-12)


@given(angles, st.floats(0.01, 100))
def test_an_angle_survives_its_direction_of_any_length(angle: float, length: float) -> None:
    dx, dy = g.direction(angle)
    found = g.angle_from_direction(dx * length, dy * length)
    assert g.angle_difference(found, angle) == pytest.approx(0, abs=1e-7)


@given(st.floats(-1e6, 1e6))
@pytest.mark.parametrize("kind", [float, np.float32, np.float64, torch.tensor])
def test_wrapped_angles_are_in_the_half_open_turn(kind: Callable[[float], float], angle: float) -> None:
    wrapped = g.wrap_angle(kind(angle))
    assert 0 <= float(wrapped) < 2 * math.pi


@pytest.mark.parametrize("tiny", [-1e-300, -1e-20, -1e-17, -0.0])
def test_a_tiny_negative_angle_wraps_to_zero_not_to_a_whole_turn(tiny: float) -> None:
    assert Pose(1, tiny).angle == 0
    assert float(g.wrap_angle(torch.tensor(tiny, dtype=torch.float32))) == 0


@given(angles, st.floats(-math.pi, math.pi), st.integers(-3, 3))
def test_angle_difference_takes_the_shorter_way_round(angle: float, apart: float, turns: int) -> None:
    difference = g.angle_difference(angle, angle + apart + turns * 2 * math.pi)
    assert difference == pytest.approx(abs(apart), abs=1e-9)


@pytest.mark.parametrize(
    ("scale", "angle"), [(-0.1, 0.0), (math.nan, 0.0), (math.inf, 0.0), (1.0, math.nan), (1.0, math.inf)]
)
def test_impossible_poses_are_refused(scale: float, angle: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Pose(scale, angle)


def test_heights_cannot_be_stretched_to_nothing() -> None:
    with pytest.raises(ValueError, match="more than 0"):
        g.stretch(Pose(1, 1), 0.5, 0)


def test_geometry_does_not_load_torch() -> None:
    code = "import sys, agl_core.geometry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
