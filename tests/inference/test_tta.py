"""Views of an image: what a network says of them is taken back without a trace."""

import math

import numpy as np
import pytest
import torch

from agl_core.config.option import TTA
from agl_core.geometry import D4
from agl_core.inference.predictor import Predictor
from agl_core.inference.tta import VIEWS, ZOOMS, Averaged, View
from agl_core.model.network import Output
from tests.inference.fakes import HeavySideNet, PointwiseNet

HIGH = {"default": 600.0}
EXACT = ("none", "flips", "d4")
COTANGENT = 0.4


class TrueNet(PointwiseNet):
    """A camera's answer: heights by colour, the scale by the gsd, the direction towards where it is bright."""

    def forward(self, image, city, gsd):
        agl, pose = super().forward(image, city, gsd)
        grey = image.double().sum(1)[0]
        height, width = grey.shape
        ys, xs = (2 * torch.arange(n, dtype=torch.float64) - (n - 1) for n in (height, width))
        pose[0, 0] = COTANGENT / float(gsd)
        pose[0, 1], pose[0, 2] = (grey.sum(0) * xs).sum() / grey.sum(), (grey.sum(1) * ys).sum() / grey.sum()
        return Output(agl, pose)


def photo(height, width, seed=0):
    slope = np.linspace(0.2, 1, height)[:, None] * np.linspace(0.5, 1, width)
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return (noise * slope[..., None]).astype(np.uint8)


def ramp(height, width):
    """Brighter by one from pixel to pixel, downwards twice as fast as to the right."""
    grey = 20 + 2 * np.arange(height)[:, None] + np.arange(width)
    return np.repeat(grey[..., None], 3, 2).astype(np.uint8)


def turn(first, second):
    return abs((first - second + math.pi) % (2 * math.pi) - math.pi)


def test_every_name_that_can_be_given_has_its_views():
    assert set(VIEWS) == set(TTA)
    assert [len(VIEWS[name]) for name in ("none", "flips", "d4", "scales", "all")] == [1, 4, 8, 3, 24]
    assert all(len(set(views)) == len(views) for views in VIEWS.values())
    assert all(views[0] == View() for views in VIEWS.values())
    assert [view.symmetry for view in VIEWS["d4"]] == list(D4)
    assert not any(view.symmetry.transposed for view in VIEWS["flips"])
    assert {view.zoom for view in VIEWS["all"]} == set(ZOOMS)


@pytest.mark.parametrize("tta", EXACT)
@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
@pytest.mark.parametrize("net", [TrueNet, HeavySideNet])
def test_a_network_whose_answer_turns_with_the_image_says_the_very_same_in_all_symmetries(tta, size, net):
    rgb = photo(*size)
    once = Predictor(net(), HIGH).predict(rgb, "A", 0.5)
    again = Predictor(net(), HIGH, tta=tta).predict(rgb, "A", 0.5)
    np.testing.assert_array_equal(again.agl_cm, once.agl_cm)
    assert again.pose == once.pose


@pytest.mark.parametrize("tta", ["scales", "all"])
@pytest.mark.parametrize("size", [(64, 64), (75, 41), (33, 34), (1, 1), (2, 3)])
def test_an_image_of_one_colour_has_the_very_same_heights_at_all_magnifications(tta, size):
    rgb = np.full((*size, 3), 123, np.uint8)
    prediction = Predictor(TrueNet(), HIGH, tta=tta).predict(rgb, "A", 0.5)
    assert (prediction.agl_cm == 1230).all()
    assert prediction.pose.scale == pytest.approx(COTANGENT / 0.5, rel=1e-6)


@pytest.mark.parametrize("tta", ["scales", "all"])
@pytest.mark.parametrize("size", [(64, 64), (75, 41), (65, 90)])
def test_a_slope_stays_where_it_is_at_all_magnifications(tta, size):
    """A pixel to the right is 10 cm, a shade of uint8 too; rounding it is at most half of that in two of three views,
    and where a view's last pixel is repeated beyond the border the slope is missing for a third of a pixel."""
    rgb = ramp(*size)
    once = Predictor(TrueNet(), HIGH).predict(rgb, "A", 0.5)
    views = Predictor(TrueNet(), HIGH, tta=tta).predict(rgb, "A", 0.5)
    difference = views.agl_cm.astype(int) - once.agl_cm
    assert np.abs(difference[1:-1, 1:-1]).max() <= 4
    assert abs(difference[1:-1, 1:-1].mean()) < 1
    assert np.abs(difference).max() <= 10
    assert views.pose.scale == pytest.approx(once.pose.scale, rel=1e-6)
    if size == (64, 64):  # padding turns the fake's direction, not the views
        assert turn(views.pose.angle, once.pose.angle) < 0.01


@pytest.mark.parametrize("zoom", ZOOMS)
def test_the_network_is_told_the_gsd_of_what_it_is_shown(zoom):
    model = PointwiseNet()
    Predictor(model, HIGH, tta="scales").predict(photo(128, 64), "B", 0.5)
    assert ((int(128 * zoom), math.ceil(2 * zoom) * 32), [1], [pytest.approx(0.5 / zoom)]) in [
        (shape, city, gsd) for shape, city, gsd in model.seen
    ]


@pytest.mark.parametrize("zoom", [0.75, 1.25])
def test_a_magnified_image_shows_each_thing_where_it_lies(zoom):
    """The centre of a bright square is where the magnification puts it, for sizes that it does not make whole."""
    rgb = np.zeros((61, 83, 3), np.uint8)
    rgb[20:30, 50:70] = 200
    shown = View(zoom=zoom).image(rgb)
    assert shown.shape == (math.ceil(61 * zoom / 32) * 32, math.ceil(83 * zoom / 32) * 32, 3)
    said = shown[..., 0].astype(np.float32)
    weights = said[: math.ceil(61 * zoom), : math.ceil(83 * zoom)].astype(float)  # beyond it is mirrored
    ys, xs = np.mgrid[: weights.shape[0], : weights.shape[1]] + 0.5
    assert (weights * ys).sum() / weights.sum() == pytest.approx(25 * zoom, abs=0.02)
    assert (weights * xs).sum() / weights.sum() == pytest.approx(60 * zoom, abs=0.02)
    back = View(zoom=zoom).heights(said, 61, 83)
    ys, xs = np.mgrid[:61, :83] + 0.5
    assert (back * ys).sum() / back.sum() == pytest.approx(25, abs=0.03)
    assert (back * xs).sum() / back.sum() == pytest.approx(60, abs=0.03)


def agrees(tta):
    """Whether a true network says in each view of `tta`, and in all together, what it says at once, as closely as the
    tests above ask for. In the mean alone some mistakes hide: of two opposite directions among eight, and of
    magnifications whose mean is 1."""
    return all(map(_agrees, [VIEWS[tta], *([view] for view in VIEWS[tta])]))


def _agrees(views):
    exact = all(view.exact for view in views)
    for rgb in (photo(64, 64) if exact else np.full((64, 64, 3), 123, np.uint8), ramp(64, 64)):
        image = torch.from_numpy(rgb).permute(2, 0, 1)[None]
        with torch.no_grad():
            agl, ((scale, dx, dy),) = TrueNet().eval()(image, torch.tensor([0]), torch.tensor([0.5]))
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(VIEWS, "these", tuple(views))
                said = Predictor(TrueNet(), HIGH, tta="these").predict(rgb, "A", 0.5)
        except ValueError:  # shapes that do not match
            return False
        closely = 0 if exact or rgb.std() == 0 else 6  # a view alone: 0.6 of a shade
        heights = np.abs(said.agl_cm - np.rint(agl[0].numpy() * 100))[1:-1, 1:-1].max() <= closely
        angle = rgb.std() == 0 or turn(said.pose.angle, math.atan2(dx, dy)) < 0.01
        if not (heights and angle and said.pose.scale == pytest.approx(float(scale), rel=1e-6)):
            return False
    return True


GSD, HEIGHTS, POSE, IMAGE = View.gsd, View.heights, View.pose, View.image

MISTAKES = {  # the part of a view, what is wrong about it, and where that cannot be seen
    "heights halved": ("heights", lambda view, *args: HEIGHTS(view, *args) / 2, ""),
    "heights not taken back": ("heights", lambda view, metres, *_: HEIGHTS(View(), metres[:64, :64], 64, 64), ""),
    "heights turned on": ("heights", lambda view, *args: HEIGHTS(View(view.symmetry.inverse(), view.zoom), *args),
                          "flips scales"),
    "heights magnified": ("heights", lambda view, *args: HEIGHTS(view, *args) * view.zoom, "flips d4"),
    "heights shifted": ("heights", lambda view, *args: np.roll(HEIGHTS(view, *args), 1, 1), ""),
    "scale halved": ("pose", lambda view, scale, *way: POSE(view, scale / 2, *way), ""),
    "scale not taken back": ("pose", lambda view, scale, *way: POSE(view, scale * view.zoom, *way), "flips d4"),
    "scale taken back twice": ("pose", lambda view, scale, *way: POSE(view, scale / view.zoom, *way), "flips d4"),
    "scale magnified": ("pose", lambda view, scale, *way: POSE(view, scale * view.zoom**2, *way), "flips d4"),
    "direction not taken back": ("pose", lambda view, *pose: POSE(View(zoom=view.zoom), *pose), "scales"),
    "direction turned on": ("pose", lambda view, *pose: POSE(View(view.symmetry.inverse(), view.zoom), *pose),
                            "flips scales"),
    "direction opposite": ("pose", lambda view, scale, dx, dy: POSE(view, scale, -dx, -dy), ""),
    "direction mirrored": ("pose", lambda view, scale, dx, dy: POSE(view, scale, -dx, dy), ""),
    "direction exchanged": ("pose", lambda view, scale, dx, dy: POSE(view, scale, dy, dx), ""),
    "gsd as it was": ("gsd", lambda view, gsd: gsd, "flips d4"),
    "gsd the wrong way": ("gsd", lambda view, gsd: gsd * view.zoom, "flips d4"),
    "image the wrong way": ("image", lambda view, rgb: IMAGE(View(view.symmetry, 1 / view.zoom), rgb), "flips d4"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_no_mistake_in_an_inverse_passes_for_rounding(mistake, monkeypatch):
    part, wrong, unseen = MISTAKES[mistake]
    told = {tta for tta in VIEWS if tta != "none" and tta not in unseen.split()}
    assert all(map(agrees, told))
    monkeypatch.setattr(View, part, wrong)
    assert not any(map(agrees, told))
    assert all(map(agrees, unseen.split()))


def test_means_and_standard_deviations_are_those_of_all_views():
    views = np.random.default_rng(0).normal(50, 3, (5, 20, 30)).astype(np.float32)
    averaged = Averaged(views[0], spread=True)
    for view in views[1:]:
        averaged.add(view)
    np.testing.assert_allclose(averaged.mean(), views.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(averaged.spread(), views.astype(np.float64).std(0), rtol=1e-9)
    np.testing.assert_array_equal(Averaged(views[0], spread=False).mean(), views[0])
    assert Averaged(views[0], spread=True).spread() is None


def test_views_that_agree_have_no_spread():
    prediction = Predictor(TrueNet(), HIGH, tta="d4", spread=True).predict(photo(64, 64), "A", 0.5)
    assert (prediction.spread_cm == 0).all()
    prediction = Predictor(HeavySideNet(drift=0.5), HIGH, tta="d4", spread=True).predict(photo(64, 64), "A", 0.5)
    assert prediction.spread_cm.max() > 100
