"""Images of any size in bounded memory: windows come and go, finished strips are given away."""

import math
import tracemalloc

import numpy as np
import pytest
import torch

from agl_core.config import ModelConfig
from agl_core.inference import scene
from agl_core.inference.predictor import Predictor
from agl_core.inference.scene import Box, Grid, read_ahead
from agl_core.model.network import GeoposeNet
from tests.inference.fakes import HeavySideNet, PointwiseNet, SurroundingsNet

HIGH = {"default": 200.0}


def photo(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


class Logged:
    """An image that remembers what was read of it."""

    def __init__(self, rgb):
        self.height, self.width = rgb.shape[:2]
        self.rgb, self.boxes = rgb, []

    def read(self, top, left, height, width):
        self.boxes.append(Box(top, left, height, width))
        return self.rgb[top : top + height, left : left + width].copy()


class Kept:
    """A sink."""

    def __init__(self, source):
        self.source, self.strips = source, []

    def __call__(self, top, agl_cm, spread_cm):
        self.strips.append((top, agl_cm, spread_cm, len(self.source.boxes)))


@pytest.mark.parametrize("size", [(150, 210), (64, 300), (300, 64), (65, 64), (20, 30), (257, 129)])
@pytest.mark.parametrize(("window", "overlap"), [(0, 0), (64, 0), (64, 32), (128, 96), (96, 32)])
def test_strips_are_to_the_last_bit_what_is_predicted_in_memory(size, window, overlap):
    rgb = photo(*size)
    networks = [SurroundingsNet(), HeavySideNet(0.3)]
    whole = Predictor(networks, HIGH, window, overlap, spread=True).predict(rgb, "A", 0.5)
    source = Logged(rgb)
    sink = Kept(source)
    pose = Predictor(networks, HIGH, window, overlap, spread=True).predict_scene(source, "A", 0.5, sink)
    tops, strips, spreads, _ = zip(*sink.strips, strict=True)
    assert list(tops) == [0, *np.cumsum([len(strip) for strip in strips])[:-1]]
    assert {strip.dtype for strip in (*strips, *spreads)} == {np.dtype(np.uint16)}
    np.testing.assert_array_equal(np.concatenate(strips), whole.agl_cm)
    np.testing.assert_array_equal(np.concatenate(spreads), whole.spread_cm)
    assert pose == whole.pose
    assert len(set(source.boxes)) == len(source.boxes)  # each window is read once
    assert source.boxes == sorted(source.boxes)


def test_strips_are_given_away_as_soon_as_no_window_can_change_them():
    source = Logged(photo(64 + 9 * 32, 128))
    sink = Kept(source)
    Predictor(PointwiseNet(), HIGH, 64, 32).predict_scene(source, "A", 0.5, sink)
    assert [len(strip) for _, strip, _, _ in sink.strips] == [*9 * [32], 64]
    # Three windows a row, and one is read ahead.
    assert all(seen <= 3 * (number + 1) + 1 for number, (*_, seen) in enumerate(sink.strips))


def test_memory_does_not_grow_with_the_height_of_the_image():
    """What is handed over belongs to the sink; the rest is one row of windows."""
    peaks = []
    for rows in (4, 40):

        class Grey:
            height, width = rows * 64, 256

            def read(self, top, left, height, width):
                return np.full((height, width, 3), 100, np.uint8)

        predictor = Predictor(PointwiseNet(), HIGH, 128, 64)
        for network in predictor.networks:
            network.model.seen = NoLog()
        tracemalloc.start()
        predictor.predict_scene(Grey(), "A", 0.5, lambda *_: None)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_high_strips_are_given_away_in_pieces(monkeypatch):
    source, pieces = Logged(photo(300, 128)), []
    for most in (scene._PIECE, 128 * 10):
        monkeypatch.setattr(scene, "_PIECE", most)
        sink = Kept(source)
        predictor = Predictor([PointwiseNet(), HeavySideNet(0.3)], HIGH, 128, 32, spread=True)
        predictor.predict_scene(source, "A", 0.5, sink)
        assert [top for top, *_ in sink.strips[1:]] == list(
            np.cumsum([len(strip) for _, strip, *_ in sink.strips])[:-1]
        )
        pieces.append(sink.strips)
    assert max(len(strip) for _, strip, *_ in pieces[1]) == 10 < max(len(strip) for _, strip, *_ in pieces[0])
    for part in (1, 2):
        np.testing.assert_array_equal(*(np.concatenate([piece[part] for piece in each]) for each in pieces))


class NoLog:
    def append(self, _):
        pass


def test_an_image_that_cannot_be_read_to_its_end_says_so_and_leaves_nobody_waiting():
    class Broken(Logged):
        def read(self, *box):
            if len(self.boxes) == 5:
                raise OSError("damaged")
            return super().read(*box)

    source = Broken(photo(300, 300))
    with pytest.raises(OSError, match="damaged"):
        Predictor(PointwiseNet(), HIGH, 64, 0).predict_scene(source, "A", 0.5, Kept(source))
    assert len(source.boxes) == 5


def test_a_sink_that_has_enough_ends_it():
    source = Logged(photo(300, 300))

    def sink(top, agl_cm, spread_cm):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Predictor(PointwiseNet(), HIGH, 64, 0).predict_scene(source, "A", 0.5, sink)
    assert len(source.boxes) <= 6


def test_the_next_window_is_read_while_one_is_in_use():
    source = Logged(photo(10, 40))
    boxes = [Box(0, left, 10, 10) for left in (0, 10, 20, 30)]
    for number, rgb in enumerate(read_ahead(source, boxes)):
        np.testing.assert_array_equal(rgb, source.rgb[:, 10 * number : 10 * number + 10])
    assert source.boxes == boxes


def test_a_grid_covers_the_image_and_a_single_window_is_all_of_it():
    assert Grid.lay(100, 70).rows == [[Box(0, 0, 100, 70)]]
    rows = Grid.lay(100, 70, 64, 32, 32).rows
    assert rows[0] == [Box(0, 0, 64, 64), Box(0, 32, 64, 38)]
    assert [row[0].top for row in rows] == [0, 32, 64]
    assert rows[-1][-1] == Box(64, 32, 36, 38)


@pytest.mark.parametrize(
    ("tta", "size", "window", "overlap"),
    [("none", (200, 250), 160, 128), ("d4", (200, 250), 160, 128), ("scales", (250, 330), 256, 128)],
)
def test_windows_of_a_real_network_meet_where_it_sees_what_the_whole_image_shows(tta, size, window, overlap):
    """Its cells are those of the whole image, so that only its windows' borders differ, and they do not count."""
    torch.manual_seed(0)
    model = GeoposeNet("tu-resnet10t", ["A"], ModelConfig(decoder_channels=[16, 8, 8, 8, 8]))
    with torch.no_grad():
        model.agl_head.bias.fill_(50.0)
        model.agl_head.weight *= 100
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 20, 20), size, mode="bicubic")
    rgb = (smooth[0].permute(1, 2, 0).clamp(0, 1) * 255).byte().numpy()
    whole = Predictor(model, HIGH, 0, tta=tta).predict(rgb, "A", 0.5).agl_cm.astype(int)
    windows = Predictor(model, HIGH, window, overlap, tta=tta).predict(rgb, "A", 0.5).agl_cm.astype(int)
    assert whole.std() > 200
    assert np.abs(windows - whole).mean() < 0.0003 * whole.std()


def test_the_pose_is_the_mean_over_all_windows():
    class Turning(PointwiseNet):
        def forward(self, image, city, gsd):
            agl, _ = super().forward(image, city, gsd)
            number = len(self.seen)
            angle = 0.1 * number
            return agl, torch.tensor([[float(number), number * math.sin(angle), number * math.cos(angle)]])

    source = Logged(photo(128, 192))
    pose = Predictor(Turning(), HIGH, 64, 0).predict_scene(source, "A", 0.5, Kept(source))
    assert pose.scale == pytest.approx(3.5)
    assert pose.angle == pytest.approx(0.35)
