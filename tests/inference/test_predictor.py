"""One image in, heights and pose of the same image out, whatever its size."""

import math

import numpy as np
import pytest
import torch

from agl_core.config import ModelConfig
from agl_core.errors import UserError
from agl_core.geometry import D4, apply
from agl_core.inference.predictor import NotFiniteError, Predictor
from agl_core.model.network import GeoposeNet
from tests.inference.fakes import AnswerNet, HeavySideNet, PointwiseNet, SurroundingsNet

HIGH = {"default": 200.0, "B": 10.0}


def photo(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def expected_cm(rgb):
    return np.rint(rgb.astype(np.float64).mean(2) * 10)


@pytest.mark.parametrize("size", [(64, 64), (33, 95), (1, 1), (5, 200), (100, 32)])
def test_an_image_of_any_size_keeps_its_pixels_where_they_are(size):
    rgb = photo(*size)
    model = PointwiseNet()
    prediction = Predictor(model, HIGH).predict(rgb, "A", 0.5)
    assert prediction.agl_cm.dtype == np.uint16
    np.testing.assert_array_equal(prediction.agl_cm, expected_cm(rgb))
    assert model.seen == [(tuple(-(-side // 32) * 32 for side in size), [0], [0.5])]


@pytest.mark.parametrize("size", [(150, 210), (64, 64), (20, 300), (65, 64), (1, 1)])
@pytest.mark.parametrize(("window", "overlap"), [(64, 16), (64, 0), (96, 64), (64, 32), (1024, 128)])
def test_windows_and_the_whole_image_agree_for_a_model_that_looks_at_single_pixels(size, window, overlap):
    rgb = photo(*size)
    whole = Predictor(PointwiseNet(), HIGH).predict(rgb, "A", 0.5)
    windows = Predictor(PointwiseNet(), HIGH, window, overlap).predict(rgb, "A", 0.5)
    np.testing.assert_array_equal(windows.agl_cm, whole.agl_cm)
    assert windows.pose.scale == pytest.approx(whole.pose.scale)
    assert windows.pose.angle == pytest.approx(whole.pose.angle)


def test_windows_see_no_more_than_they_must_and_blend_without_seams():
    rgb = np.full((160, 224, 3), 200, np.uint8)
    model = SurroundingsNet()
    blended = Predictor(model, HIGH, 64, 32).predict(rgb, "A", 0.5).agl_cm
    assert {shape for shape, *_ in model.seen} == {(64, 64)}
    # Each window is wrong along its edges (the dark beyond it), where its weight is small.
    inner = blended[2:-2, 2:-2].astype(int)
    assert 0 <= 2000 - inner.min() < 100
    pasted = Predictor(model, HIGH, 64, 0).predict(rgb, "A", 0.5).agl_cm[2:-2, 2:-2].astype(int)
    assert 2000 - pasted.min() > 500


def test_the_pose_of_windows_is_the_mean_scale_and_the_direction_of_the_mean_unit_vector():
    class TurningNet(PointwiseNet):
        """Two windows: scale 1 along x with a long vector, scale 2 along y with a short one."""

        def forward(self, image, city, gsd):
            agl, _ = super().forward(image, city, gsd)
            pose = [1.0, 100.0, 0.0] if len(self.seen) == 1 else [2.0, 0.0, 0.01]
            return agl, torch.tensor([pose])

    pose = Predictor(TurningNet(), HIGH, 64, 0).predict(photo(64, 100), "A", 0.5).pose
    assert pose.scale == pytest.approx(1.5)
    assert pose.angle == pytest.approx(math.pi / 4)


def test_what_was_predicted_before_changes_nothing():
    rgb, other = photo(70, 90), photo(90, 70, seed=1)
    predictor = Predictor(SurroundingsNet(), HIGH, 64, 16)
    first = predictor.predict(rgb, "A", 0.5)
    predictor.predict(other, "B", 0.3)
    again = predictor.predict(rgb, "A", 0.5)
    np.testing.assert_array_equal(first.agl_cm, again.agl_cm)
    assert first.pose == again.pose


@pytest.mark.filterwarnings("error")
def test_a_read_only_view_is_predicted_like_a_copy_and_left_as_it_is():
    rgb = photo(64, 64)
    frozen = np.frombuffer(rgb.tobytes(), np.uint8).reshape(rgb.shape)
    for image in (frozen, frozen[:, ::-1]):
        np.testing.assert_array_equal(Predictor(PointwiseNet(), HIGH).predict(image, "A", 1).agl_cm, expected_cm(image))


@pytest.mark.parametrize(
    ("height", "city", "cm"),
    [(-3.0, "A", 0), (12.344, "A", 1234), (12.346, "A", 1235), (500.0, "A", 20000), (12.0, "B", 1000)],
)
def test_heights_are_clipped_to_their_city_and_rounded_to_centimetres(height, city, cm):
    assert (Predictor(AnswerNet(height), HIGH).predict(photo(8, 8), city, 0.5).agl_cm == cm).all()


def test_no_height_is_ever_written_as_unknown():
    predictor = Predictor(AnswerNet(1e9), {"default": 1e9})
    assert (predictor.predict(photo(8, 8), "A", 0.5).agl_cm == 65534).all()


@pytest.mark.parametrize(
    ("raw", "scale", "angle"),
    [
        ((0.5, 0.6, 0.8), 0.5, math.atan2(0.6, 0.8)),
        ((-0.5, 0.0, -3.0), 0.0, math.pi),
        ((1.0, -0.1, 0.1), 1.0, 1.75 * math.pi),
        ((1.0, 0.0, 0.0), 1.0, 0.0),
    ],
)
def test_the_pose_has_no_negative_scale_and_an_angle_within_one_turn(raw, scale, angle):
    pose = Predictor(PointwiseNet(pose=raw), HIGH).predict(photo(8, 8), "A", 0.5).pose
    assert pose.scale == pytest.approx(scale)
    assert pose.angle == pytest.approx(angle)


def test_the_city_reaches_the_model_by_its_place_in_the_list():
    model = PointwiseNet(cities=("X", "Y", "Z"))
    Predictor(model, HIGH).predict(photo(8, 8), "Z", 0.25)
    assert model.seen[-1][1:] == ([2], [0.25])


def test_an_unknown_city_is_refused_unless_the_model_does_not_look_at_it():
    with pytest.raises(UserError, match="does not know city 'C': it was trained on A, B"):
        Predictor(PointwiseNet(), HIGH).predict(photo(8, 8), "C", 0.5)
    model = PointwiseNet(use_city=False)
    Predictor(model, HIGH).predict(photo(8, 8), "C", 0.5)
    assert model.seen[-1][1] == [0]


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("window", [0, 32])
def test_an_answer_that_is_not_finite_is_an_error_and_never_a_zero(broken, window):
    with pytest.raises(NotFiniteError, match="not finite"):
        Predictor(AnswerNet(broken), HIGH, window, 0).predict(photo(40, 40), "A", 0.5)
    with pytest.raises(NotFiniteError, match="not finite"):
        Predictor(PointwiseNet(pose=(1.0, broken, 0.0)), HIGH, window, 0).predict(photo(40, 40), "A", 0.5)


def test_dropout_is_off_while_predicting_and_every_module_gets_its_mode_back():
    rgb = photo(32, 32)
    model = PointwiseNet()
    model.train()
    model.dropout.eval()  # a module frozen on its own stays frozen
    predictor = Predictor(model, HIGH)
    predictor.predict(rgb, "A", 0.5)
    assert model.training
    assert not model.dropout.training
    model.dropout.train()
    np.testing.assert_array_equal(predictor.predict(rgb, "A", 0.5).agl_cm, expected_cm(rgb))
    assert model.dropout.training
    with pytest.raises(NotFiniteError):
        Predictor(AnswerNet(math.nan).train(), HIGH).predict(rgb, "A", 0.5)
    assert model.training


def test_the_precision_is_that_of_the_device_unless_named():
    assert Predictor(PointwiseNet(), HIGH).precision.name == "float32"

    class LinearNet(PointwiseNet):
        def forward(self, image, city, gsd):
            self.dtype = torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype
            return super().forward(image, city, gsd)

    model = LinearNet()
    Predictor(model, HIGH, precision="bfloat16").predict(photo(8, 8), "A", 0.5)
    assert model.dtype == torch.bfloat16
    with pytest.raises(UserError, match="float16 needs a GPU"):
        Predictor(model, HIGH, precision="float16")


@pytest.mark.parametrize(("window", "overlap"), [(48, 0), (-32, 0), (16, 0), (64, 64), (64, 33), (64, -1), (None, -1)])
def test_windows_that_cannot_be_are_refused(window, overlap):
    with pytest.raises(UserError, match="give"):
        Predictor(PointwiseNet(), HIGH, window, overlap)


def test_a_city_without_a_highest_height_is_refused_with_the_key_to_add():
    with pytest.raises(UserError, match=r"max_agl.default"):
        Predictor(PointwiseNet(), {"B": 10.0}).predict(photo(8, 8), "A", 0.5)


def test_what_is_not_an_rgb_image_is_a_defect_of_the_caller():
    for wrong in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((0, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"expected \(H, W, 3\) uint8"):
            Predictor(PointwiseNet(), HIGH).predict(wrong, "A", 0.5)


def test_the_real_network_predicts_an_odd_size_whole_and_in_windows():
    torch.manual_seed(0)
    model = GeoposeNet("tu-resnet10t", ["A", "B"], ModelConfig(decoder_channels=[16, 8, 8, 8, 8]))
    for window in (0, 64):
        prediction = Predictor(model, HIGH, window, 16).predict(photo(75, 101), "B", 0.5)
        assert prediction.agl_cm.shape == (75, 101)
        assert prediction.agl_cm.max() <= 1000


def lopsided(height, width):
    """A photo that is brighter towards one corner, and nowhere symmetric."""
    slope = np.linspace(0.2, 1, height)[:, None] * np.linspace(0.5, 1, width)
    return (photo(height, width) * slope[..., None]).astype(np.uint8)


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (160, 64)])
@pytest.mark.parametrize(("window", "overlap"), [(0, 0), (64, 32), (32, 0)])
def test_a_network_whose_answer_turns_with_the_image_says_the_very_same_in_all_eight_symmetries(size, window, overlap):
    rgb = lopsided(*size)
    once = Predictor(HeavySideNet(), HIGH, window, overlap).predict(rgb, "A", 0.5)
    averaged = Predictor(HeavySideNet(), HIGH, window, overlap, tta="d4").predict(rgb, "A", 0.5)
    np.testing.assert_array_equal(averaged.agl_cm, once.agl_cm)
    assert averaged.pose == once.pose


def undone(heights, pose, turns, mirrored):
    """Heights and pose of an image from those after `turns` quarter turns and then perhaps a mirror, by numpy."""
    angle = -pose.angle if mirrored else pose.angle
    return np.rot90(heights[:, ::-1] if mirrored else heights, -turns), angle - turns * math.pi / 2


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (160, 64)])
def test_eight_answers_are_each_taken_back_and_averaged_as_heights_scales_and_unit_vectors(size):
    rgb, model = lopsided(*size), HeavySideNet(drift=0.25)
    heights, scales, angles = [], [], []
    for turns in range(4):
        for mirrored in (False, True):
            seen = np.rot90(rgb, turns)
            answer = Predictor(model, HIGH).predict(seen[:, ::-1] if mirrored else seen, "A", 0.5)
            metres, angle = undone(answer.agl_cm / 100, answer.pose, turns, mirrored)
            heights.append(metres)
            scales.append(answer.pose.scale)
            angles.append(angle)
    assert np.std(scales) > 1e-3  # they do not agree, so that taking just one of them would be seen
    assert np.abs(heights[0] - np.mean(heights, 0)).max() > 1
    averaged = Predictor(model, HIGH, tta="d4").predict(rgb, "A", 0.5)
    np.testing.assert_allclose(averaged.agl_cm / 100, np.mean(heights, 0), atol=0.0101)
    assert averaged.pose.scale == pytest.approx(np.mean(scales))
    expected = math.atan2(np.mean(np.sin(angles)), np.mean(np.cos(angles))) % (2 * math.pi)
    assert averaged.pose.angle == pytest.approx(expected)


def test_the_symmetries_are_tried_in_a_fixed_order_with_the_same_city_and_gsd_and_nothing_is_left_to_chance():
    rgb, model = photo(70, 30), HeavySideNet(drift=0.25)
    predictor = Predictor(model, HIGH, 64, 16, tta="d4")
    first, again = (predictor.predict(rgb, "B", 0.3) for _ in range(2))
    np.testing.assert_array_equal(first.agl_cm, again.agl_cm)
    assert first.pose == again.pose
    shapes, cities, gsds = zip(*model.seen, strict=True)
    upright, lying = (64, 32), (32, 64)  # windows of 64 x 30, two of them, padded
    assert shapes == 4 * (2 * (upright, lying, upright, lying))
    assert set(map(tuple, cities)) == {(1,)}
    assert len(set(map(tuple, gsds))) == 1


def test_one_answer_of_the_eight_that_is_not_finite_is_an_error():
    class BreakingNet(PointwiseNet):
        def forward(self, image, city, gsd):
            agl, pose = super().forward(image, city, gsd)
            return agl, pose * math.nan if len(self.seen) == 8 else pose

    with pytest.raises(NotFiniteError, match="not finite"):
        Predictor(BreakingNet(), HIGH, tta="d4").predict(photo(8, 8), "A", 0.5)


def test_an_unknown_test_time_augmentation_is_refused():
    with pytest.raises(UserError, match="unknown tta 'd8': choose one of none, flips, d4, scales, all"):
        Predictor(PointwiseNet(), HIGH, tta="d8")


def test_one_network_and_whole_images_are_just_what_it_says_in_its_own_precision():
    torch.manual_seed(0)
    model = GeoposeNet("tu-resnet10t", ["A", "B"], ModelConfig(decoder_channels=[16, 8, 8, 8, 8]))
    rgb = photo(64, 96)
    said = {}
    with torch.inference_mode():
        model.eval()
        for op in D4:
            turned = torch.from_numpy(apply(rgb, op).copy())[None].permute(0, 3, 1, 2)
            said[op] = model(turned, torch.tensor([1]), torch.tensor([0.5]))
    agl, pose = said[D4[0]]
    prediction = Predictor(model, HIGH).predict(rgb, "B", 0.5)
    np.testing.assert_array_equal(
        prediction.agl_cm, np.rint(np.clip(agl[0].numpy(), 0.0, 10.0) * 100).astype(np.uint16)
    )
    scale, dx, dy = pose[0].tolist()
    assert prediction.pose.scale == max(scale, 0)
    assert prediction.pose.angle == pytest.approx(math.atan2(dx, dy) % (2 * math.pi))
    assert prediction.spread_cm is None
    total = np.zeros((64, 96))
    for op, (agl, _) in said.items():
        total += apply(agl[0].numpy(), op.inverse())
    prediction = Predictor(model, HIGH, tta="d4").predict(rgb, "B", 0.5)
    np.testing.assert_array_equal(prediction.agl_cm, np.rint(np.clip(total / 8, 0.0, 10.0) * 100).astype(np.uint16))


def members():
    """Three networks that know their cities in different orders, with other heights and poses."""
    return [
        AnswerNet(10.0, pose=(0.5, 0.0, 1.0)),
        AnswerNet(20.0, pose=(0.8, 3.0, 0.0), cities=("B", "C", "A")),
        AnswerNet(60.0, pose=(0.2, 0.0, 0.1), use_city=False),
    ]


def test_members_are_joined_before_they_are_clipped_and_rounded():
    rgb = photo(40, 70)
    prediction = Predictor(members(), {"default": 25.0}).predict(rgb, "A", 0.5)
    assert (prediction.agl_cm == 2500).all()  # of 30, not of 10, 20 and 25
    prediction = Predictor(members(), HIGH).predict(rgb, "A", 0.5)
    assert (prediction.agl_cm == 3000).all()
    assert prediction.pose.scale == pytest.approx(0.5)
    assert prediction.pose.angle == pytest.approx(math.atan2(1, 2))
    assert (Predictor(members(), HIGH, combine="median").predict(rgb, "A", 0.5).agl_cm == 2000).all()
    prediction = Predictor(members(), HIGH, member_weights=[2, 1, 1]).predict(rgb, "A", 0.5)
    assert (prediction.agl_cm == 2500).all()
    assert prediction.pose.angle == pytest.approx(math.atan2(1, 3))


def test_members_find_the_city_in_their_own_lists():
    networks = members()
    Predictor(networks, HIGH).predict(photo(8, 8), "A", 0.25)
    assert [network.seen for network in networks] == [[((32, 32), [city], [0.25])] for city in (0, 2, 0)]
    with pytest.raises(UserError, match="does not know city 'C'"):
        Predictor(networks, HIGH).predict(photo(8, 8), "C", 0.25)


@pytest.mark.parametrize("at_once", ["auto", "all", "one"])
@pytest.mark.parametrize("window", [0, 64])
def test_members_that_take_turns_say_the_same_in_whatever_order(at_once, window):
    rgb = photo(150, 90)
    networks = [HeavySideNet(drift) for drift in (0.0, 0.5, 2.0)]
    options = {"member_weights": [3, 1, 2], "combine": "median", "spread": True}
    expected = Predictor(networks, HIGH, window, 32, **options).predict(rgb, "A", 0.5)
    options |= {"member_weights": [2, 3, 1], "at_once": at_once}
    turned = [networks[2], networks[0], networks[1]]
    prediction = Predictor(turned, HIGH, window, 32, **options).predict(rgb, "A", 0.5)
    np.testing.assert_array_equal(prediction.agl_cm, expected.agl_cm)
    np.testing.assert_array_equal(prediction.spread_cm, expected.spread_cm)
    assert prediction.pose == expected.pose


def test_a_member_comes_to_the_device_once_for_each_row_of_windows_when_they_take_turns():
    log = []

    class Moving(PointwiseNet):
        def to(self, device):
            log.append((self.name, str(device)))
            return self

        def forward(self, image, city, gsd):
            log.append(self.name)
            return super().forward(image, city, gsd)

    networks = [Moving(), Moving()]
    networks[0].name, networks[1].name = "first", "second"
    predictor = Predictor(networks, HIGH, 64, 0, device="cpu", at_once="one")
    log.clear()
    predictor.predict(photo(128, 128), "A", 0.5)
    row = [entry for name in ("first", "second") for entry in ((name, "cpu"), name, name, (name, "cpu"))]
    assert log == 2 * row


def test_each_member_has_its_own_views_and_precision():
    networks = [HeavySideNet(), HeavySideNet()]
    predictor = Predictor(networks, HIGH, tta=["d4", "none"], precision=["bfloat16", "float32"])
    predictor.predict(photo(32, 32), "A", 0.5)
    assert [len(network.seen) for network in networks] == [8, 1]
    assert [network.precision.name for network in predictor.networks] == ["bfloat16", "float32"]
    assert predictor.precision.name == "bfloat16"
    with pytest.raises(ValueError, match="3 names for 2 members"):
        Predictor(networks, HIGH, tta=["d4", "none", "none"])


def test_the_spread_is_the_standard_deviation_of_the_members_or_of_a_single_ones_views():
    rgb = photo(40, 70)
    prediction = Predictor(members(), {"default": 25.0}, spread=True).predict(rgb, "A", 0.5)
    assert prediction.spread_cm.dtype == np.uint16
    assert (prediction.spread_cm == round(100 * np.std([10, 20, 60]))).all()  # not of what is clipped
    rgb = photo(64, 96)
    heights = [
        apply(Predictor(HeavySideNet(0.25), HIGH).predict(apply(rgb, op), "A", 0.5).agl_cm, op.inverse()) for op in D4
    ]
    for window in (0, 128):
        prediction = Predictor(HeavySideNet(0.25), HIGH, window, 0, tta="d4", spread=True).predict(rgb, "A", 0.5)
        np.testing.assert_allclose(prediction.spread_cm, np.std(heights, 0), atol=1.1)
    with pytest.raises(UserError, match="has no spread: predict with several, or with --tta d4"):
        Predictor(PointwiseNet(), HIGH, spread=True)


def test_heights_and_spread_are_multiplied_by_the_citys_factor_before_they_are_clipped():
    options = {"height_factor": {"A": 1.5, "default": 0.5}, "spread": True}
    for city, cm in (("A", 4500), ("B", 1500)):
        prediction = Predictor(members(), {"default": 200.0}, **options).predict(photo(8, 8), city, 0.5)
        assert (prediction.agl_cm == cm).all()
        assert (prediction.spread_cm == round(cm / 30 * np.std([10, 20, 60]))).all()
    assert (Predictor(members(), {"default": 40.0}, **options).predict(photo(8, 8), "A", 0.5).agl_cm == 4000).all()
    only = Predictor(members(), HIGH, height_factor={"A": 1.5})
    assert (only.predict(photo(8, 8), "B", 0.5).agl_cm == 1000).all()  # the highest of B


def test_the_scale_is_corrected_by_the_citys_line_of_scale_times_gsd():
    model, lines = PointwiseNet(pose=(0.8, 0.6, 0.8)), {"A": (0.1, 1.5), "default": (-1.0, 1.0)}
    predictor = Predictor(model, HIGH, scale_lines=lines)
    pose = predictor.predict(photo(8, 8), "A", 0.25).pose
    assert pose.scale == pytest.approx((0.1 + 1.5 * 0.8 * 0.25) / 0.25)
    assert pose.angle == pytest.approx(math.atan2(0.6, 0.8))
    assert predictor.predict(photo(8, 8), "B", 0.25).pose.scale == 0  # never negative
    assert Predictor(model, HIGH, scale_lines={"A": (0.0, 2.0)}).predict(photo(8, 8), "B", 0.25).pose.scale == (
        pytest.approx(0.8)
    )


def test_what_members_cannot_be_told_is_refused():
    for wrong, message in (
        ({"combine": "mode"}, "unknown combine 'mode'"),
        ({"at_once": "two"}, "unknown members_at_once 'two'"),
        ({"member_weights": [1, 2]}, "2.* but there are 3 members"),
        ({"tta": "d8"}, "unknown tta 'd8'"),
    ):
        with pytest.raises(UserError, match=message):
            Predictor(members(), HIGH, **wrong)
