"""What a forward pass takes is counted, windows follow from it, and running out of memory is not the end."""

from pathlib import Path

import numpy as np
import pytest
import torch

from agl_core.config import ModelConfig
from agl_core.errors import UserError
from agl_core.inference import memory, plan
from agl_core.inference.memory import TooLargeError, device_memory, fitting_window, measured_need
from agl_core.inference.predictor import Predictor
from agl_core.model.network import GeoposeNet, Output
from tests.inference.fakes import HeavySideNet, PointwiseNet

CPU = torch.device("cpu")
HIGH = {"default": 200.0}
MIB = 2**20


def photo(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_tensors_are_counted_while_they_live():
    def forward(side):
        first = torch.zeros(side, side)
        second = first + 1
        first += second  # in place, and views, take nothing
        third = second[1:].T.reshape(-1)
        del first, second
        return torch.cat([third, third])

    need = measured_need(forward, (64, 128))
    assert need.per_pixel == pytest.approx(12, abs=0.2)  # two at first, and then third and twice as much
    assert need.elements_per_pixel == pytest.approx(2, abs=0.1)
    again = measured_need(forward, (64, 128))
    assert again == need


def test_what_does_not_grow_with_the_image_is_told_apart():
    def forward(side):
        constant = torch.zeros(1000, 1000)
        return constant, torch.zeros(side, side)

    need = measured_need(forward, (64, 128))
    assert (need.fixed, need.per_pixel) == (4e6, 4)
    assert need.bytes(100, 100) == memory.COPIES * (4e6 + 4e4)


def test_the_need_of_a_network_is_that_of_its_layers_and_the_same_at_any_size():
    """The last block of the decoder works on 16 and 32 channels at the image's size: 4 bytes each at the very least."""
    network = GeoposeNet("resnet18", ["A"], ModelConfig()).eval()

    def forward(side):
        with torch.inference_mode():
            network(torch.zeros(1, 3, side, side, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), torch.ones(1))

    small, large = (measured_need(forward, sides) for sides in ((64, 128), (128, 256)))
    assert small.per_pixel == pytest.approx(large.per_pixel, rel=0.02)
    assert 4 * (16 + 32) <= large.per_pixel <= 4 * 200


@pytest.mark.parametrize(
    ("size", "room", "most_pixels", "window"),
    [
        ((1000, 1000), 1e6, 2**26, 0),
        ((1000, 1001), 1e6, 2**26, 768),
        ((100, 10000), 1e6, 2**26, 0),
        ((100, 10001), 1e6, 2**26, 2048),
        ((20000, 20000), 1e12, 2**26, 2048),
        ((3000, 3000), 1e12, 3000 * 3000 // 2, 2048),
        ((2048, 2048), 1e12, 2048 * 2048 // 2, 1024),
        ((600, 600), 1e12, 600 * 600 // 2, 384),
        ((3000, 3000), 10, 2**26, 256),
        ((200, 200), 10, 2**26, 0),
    ],
)
def test_the_largest_window_that_fits_is_taken_and_none_where_the_image_does(size, room, most_pixels, window):
    assert fitting_window(*size, lambda height, width: height * width <= room, most_pixels) == window


def test_memory_is_what_is_built_in_or_allowed_and_shared(tmp_path: Path):
    built_in = device_memory(CPU, system=tmp_path)
    assert built_in > 2**28
    assert device_memory(CPU, 3, tmp_path) == built_in // 3
    for name, text in {
        "proc/self/cgroup": "0::/jobs/one\n",
        "sys/fs/cgroup/jobs/one/memory.max": "200000000\n",
        "sys/fs/cgroup/jobs/one/memory.current": "150000000\n",  # what is free now plays no part
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert device_memory(CPU, 2, tmp_path) == 100_000_000


class Greedy(HeavySideNet):
    """Takes so much memory per pixel, and runs out of it above so many pixels."""

    def __init__(self, most=None, error=None, taken=4, **options):
        super().__init__(**options)
        self.most, self.taken, self.asked = most, taken, []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def forward(self, image, city, gsd):
        self.asked.append(tuple(image.shape[2:]))
        agl, pose = super().forward(image, city, gsd)
        if self.most is not None and image.shape[2] * image.shape[3] > self.most:
            raise self.error
        held = torch.zeros(self.taken // 4, *image.shape[2:])
        return Output(agl + held[0], pose)


def machine_of(monkeypatch, mebibytes):
    """A machine of twice as many: one process is given what it would have beside another."""
    monkeypatch.setattr(plan, "device_memory", lambda device, processes: 2 * mebibytes * MIB // processes)


@pytest.mark.parametrize(
    ("mebibytes", "processes", "window"), [(4000, 1, 0), (400, 1, 768), (400, 2, 768), (2000, 16, 512), (100, 1, 384)]
)
def test_windows_follow_from_the_network_the_image_and_the_machine(monkeypatch, mebibytes, processes, window):
    machine_of(monkeypatch, mebibytes)
    first, second = (Predictor(Greedy(taken=200), HIGH, None, processes=processes) for _ in range(2))
    first.predict(photo(64, 64), "A", 0.5)  # what came before plays no part
    assert first.window_of(1024, 1024) == second.window_of(1024, 1024) == window
    assert first.window_of(512, 512) == 0
    assert len(first.notes) == (1 if window else 0)
    if window:
        assert f"images of 1024 x 1024 pixels are predicted in windows of {window}: as a whole" in first.notes[0]
    first.window_of(1024, 1024)
    assert len(first.notes) <= 1


def test_one_that_goes_on_elsewhere_chooses_the_windows_of_who_began(monkeypatch):
    machine_of(monkeypatch, 400)
    began = Predictor(Greedy(taken=200), HIGH, None)
    machine_of(monkeypatch, 4000)
    larger = Predictor(Greedy(taken=200), HIGH, None)
    larger.use_memory(began.memory)
    assert larger.window_of(1024, 1024) == began.window_of(1024, 1024) == 768
    machine_of(monkeypatch, 100)
    smaller = Predictor(Greedy(taken=200), HIGH, None)
    smaller.use_memory(began.memory)
    assert smaller.window_of(1024, 1024) == 384


@pytest.mark.parametrize(
    ("height", "width", "spread", "window"),
    [
        (40000, 40000, False, 2048),
        (40000, 80000, False, 1536),
        (80000, 40000, False, 2048),
        (40000, 80000, True, 768),
        (1000, 100000, False, 2048),
        (40000, 9_000_000, False, 256),
    ],
)
def test_rows_of_windows_of_a_wide_image_stay_small(monkeypatch, height, width, spread, window):
    machine_of(monkeypatch, 64000)
    networks = [Greedy(taken=200), Greedy(taken=200)]
    assert Predictor(networks, HIGH, None, spread=spread).window_of(height, width) == window
    assert Predictor(networks, HIGH, 2048, spread=spread).window_of(height, width) == 2048


def test_magnified_views_take_more(monkeypatch):
    machine_of(monkeypatch, 900)
    assert Predictor(Greedy(taken=200), HIGH, None, tta="d4").window_of(1024, 1024) == 0
    assert Predictor(Greedy(taken=200), HIGH, None, tta="scales").window_of(1024, 1024) == 768


def test_a_network_that_was_given_a_window_or_whole_images_is_not_measured(monkeypatch):
    machine_of(monkeypatch, 1)
    for window in (0, 256):
        network = Greedy()
        predictor = Predictor(network, HIGH, window, 64)
        assert predictor.window_of(4000, 4000) == window
        assert not network.asked
        assert predictor.notes == []


@pytest.mark.parametrize(
    "error", [None, RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
              MemoryError()], ids=["cuda", "cpu", "python"],
)  # fmt: skip
def test_windows_become_smaller_until_the_memory_suffices(error):
    rgb, network = photo(600, 650), Greedy(most=400 * 400, error=error)
    predictor = Predictor(network, HIGH, None)
    prediction = predictor.predict(rgb, "A", 0.5)
    assert network.asked[2:4] == [(608, 672), (384, 384)]  # after two to measure
    assert predictor.notes == [
        "cpu has too little memory for 600 x 650 pixels at once: from here on it is given windows of 384"
    ]
    expected = Predictor(HeavySideNet(), HIGH, 384, 192).predict(rgb, "A", 0.5)
    np.testing.assert_array_equal(prediction.agl_cm, expected.agl_cm)
    assert prediction.pose == expected.pose
    network.asked.clear()
    predictor.predict(rgb, "A", 0.5)
    assert network.asked[0] == (384, 384)  # what was too large once is not tried again
    predictor.predict(photo(300, 300), "A", 0.5)
    assert network.asked[-1] == (320, 320)  # what is small is not cut up
    assert len(predictor.notes) == 1


def test_a_scene_begins_anew_in_smaller_windows():
    network = Greedy()
    rgb, strips = photo(1100, 600), []

    class Source:
        height, width = 1100, 600

        def read(self, top, left, height, width):
            if len(network.asked) == 2 and network.most is None:
                network.most = 300 * 300
            return rgb[top : top + height, left : left + width]

    predictor = Predictor(network, HIGH, None)
    predictor._plan._most_pixels = 512 * 512
    pose = predictor.predict_scene(Source(), "A", 0.5, lambda top, agl_cm, _: strips.append((top, agl_cm)))
    begun = [number for number, (top, _) in enumerate(strips) if top == 0]
    expected = Predictor(HeavySideNet(), HIGH, 256, 128).predict(rgb, "A", 0.5)
    np.testing.assert_array_equal(np.concatenate([agl for _, agl in strips[begun[-1] :]]), expected.agl_cm)
    assert pose == expected.pose


def test_where_nothing_helps_it_is_said_what_to_do():
    with pytest.raises(TooLargeError, match=r"for 256 x 256 pixels at once: use a device with more memory, or fewer "):
        Predictor(Greedy(most=200 * 200), HIGH, None).predict(photo(600, 600), "A", 0.5)
    with pytest.raises(TooLargeError, match=r"for the networks and 128 x 128 pixels: use another, or fewer "):
        Predictor(Greedy(most=10), HIGH, None).predict(photo(600, 600), "A", 0.5)
    with pytest.raises(TooLargeError, match=r"for 600 x 600 pixels at once: leave --window out, or give a smaller one"):
        Predictor(Greedy(most=10), HIGH, 0).predict(photo(600, 600), "A", 0.5)
    with pytest.raises(TooLargeError, match=r"for 128 x 100 pixels at once: leave --window out, or give a smaller one"):
        Predictor(Greedy(most=10), HIGH, 128, 64).predict(photo(600, 100), "A", 0.5)
    assert issubclass(TooLargeError, UserError)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="sizes differ"):
        Predictor(Greedy(most=10, error=RuntimeError("sizes differ")), HIGH, None).predict(photo(64, 64), "A", 0.5)


def test_measuring_leaves_a_network_as_it_is():
    network = PointwiseNet()
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    Predictor(network, HIGH, None).window_of(600, 600)
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
