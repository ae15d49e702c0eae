"""The losses: the reference's to the bit, the score's, and calm where nothing is known."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agl_core.config import LossConfig
from agl_core.data.statistics import CityStatistics
from agl_core.data.tiles import UNKNOWN
from agl_core.geometry import Pose
from agl_core.model.losses import LEAST_SHARE, LEAST_VARIANCE, PARTS, GeoposeLoss, Losses, Target, city_weights
from agl_core.model.network import Output
from agl_core.scoring.score import ImageResult, score
from agl_core.scoring.sums import image_sums

NAN = math.nan
KINDS = [
    LossConfig(agl_kind=agl, direction_kind=direction, magnitude=magnitude)
    for agl, direction, magnitude in itertools.product(("mse", "huber", "r2"), ("mse", "cosine"), (0.0, 3.0))
]


def name_of(config: LossConfig) -> str:
    return f"{config.agl_kind}-{config.direction_kind}-{config.magnitude:g}"


def statistics(count: list[float], variance: list[float]) -> CityStatistics:
    cities = tuple("ABCDE"[: len(count)])
    return CityStatistics(cities, np.array(count), np.zeros(len(count)), np.array(variance))


TWO = statistics([300, 100], [9, 25])


def batch_of(generator: torch.Generator, images: int = 4, size: int = 5) -> tuple[Output, Target, Tensor]:
    """With unknown pixels, a crop of which nothing is known, and an image without pose."""
    agl, scale, angle = (torch.rand(shape, generator=generator) for shape in ((images, size, size), images, images))
    truth = torch.where(torch.rand((images, size, size), generator=generator) < 0.3, NAN, 60 * agl)
    truth[0], scale[1], angle[1] = NAN, NAN, NAN
    output = Output(
        (30 * torch.randn((images, size, size), generator=generator)).requires_grad_(),
        torch.randn((images, 3), generator=generator).requires_grad_(),
    )
    return output, Target(truth, scale, 6.3 * angle), torch.arange(images) % 2


def grad_of(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, torch.zeros_like(values)).sum() / mask.sum().clamp(min=1)


def reference_loss(output: Output, target: Target, agl: float, direction: float, scale: float) -> list[Tensor]:
    """The loss of the first versions, word for word in its arithmetic."""
    metres, pose = output.agl.float(), output.pose.float()
    agl_loss = mean_where((metres - torch.nan_to_num(target.agl)).square(), ~torch.isnan(target.agl))
    known = ~(torch.isnan(target.scale) | torch.isnan(target.angle))
    scale_loss = mean_where((pose[:, 0] - torch.nan_to_num(target.scale)).square(), known)
    angle = torch.nan_to_num(target.angle)
    true = torch.stack([angle.sin(), angle.cos()], dim=1)
    direction_loss = mean_where((pose[:, 1:] - true).square().mean(dim=1), known)
    total = agl * agl_loss + direction * direction_loss + scale * scale_loss
    return [total, agl_loss, direction_loss, scale_loss]


@pytest.mark.parametrize("weights", [(2.0, 50.0, 50.0), (1.0, 0.3, 7.0), (0.0, 1.0, 0.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_default_is_the_references_loss_to_the_bit_and_so_is_its_gradient(
    weights: tuple[float, float, float], dtype: torch.dtype
) -> None:
    for seed in range(20):
        output, target, city = batch_of(torch.Generator().manual_seed(seed))
        leaves = [part.detach().to(dtype).requires_grad_() for part in output]
        others = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        loss = GeoposeLoss(LossConfig(weights[0], direction=weights[1], scale=weights[2]))(
            Output(*leaves), target, city
        )
        expected = reference_loss(Output(*others), target, *weights)
        assert [float(part.detach()) for part in loss] == [*(float(part.detach()) for part in expected), 0.0]
        loss.total.backward()  # type: ignore[no-untyped-call]
        expected[0].backward()  # type: ignore[no-untyped-call]
        for one, other in zip(leaves, others, strict=True):
            assert torch.equal(grad_of(one), grad_of(other))


def test_the_default_is_right_on_a_worked_example() -> None:
    output = Output(torch.tensor([[[1.0, 5.0]], [[2.0, 2.0]]]), torch.tensor([[1.0, 0.0, 1.0], [0.5, 1.0, 0.0]]))
    target = Target(
        torch.tensor([[[3.0, NAN]], [[2.0, 5.0]]]), torch.tensor([2.0, 0.5]), torch.tensor([0.0, -math.pi / 2])
    )
    loss = GeoposeLoss(LossConfig(2, direction=50, scale=50))(output, target)
    assert float(loss.agl) == pytest.approx((4 + 0 + 9) / 3)
    assert float(loss.direction) == pytest.approx((0 + 0 + 4 + 0) / 4)
    assert float(loss.scale) == pytest.approx((1 + 0) / 2)
    assert float(loss.total) == pytest.approx(2 * 13 / 3 + 50 * 1 + 50 * 0.5)
    assert Losses._fields == PARTS


def test_huber_is_squared_up_to_delta_and_linear_beyond() -> None:
    output = Output(torch.tensor([[[1.0, -1.5, 10.0, -20.0, 9.0]]]), torch.ones(1, 3))
    target = Target(torch.tensor([[[0.0, 0.0, 0.0, 0.0, NAN]]]), torch.ones(1), torch.ones(1))
    loss = GeoposeLoss(LossConfig(agl_kind="huber", huber_delta=2.0))(output, target)
    assert float(loss.agl) == pytest.approx((0.5 + 1.125 + 2 * (10 - 1) + 2 * (20 - 1)) / 4)


def test_cosine_sees_the_angle_and_not_the_length() -> None:
    angle = torch.tensor([0.3, 2.0, -1.0, 5.0])
    off = torch.tensor([0.0, math.pi / 2, math.pi, math.pi / 3])
    loss = GeoposeLoss(LossConfig(direction_kind="cosine"))
    for length in (0.02, 1.0, 300.0):
        predicted = length * torch.stack([(angle + off).sin(), (angle + off).cos()], dim=1)
        output = Output(torch.zeros(4, 1, 1), torch.cat([torch.ones(4, 1), predicted], dim=1))
        found = loss(output, Target(torch.zeros(4, 1, 1), torch.ones(4), angle))
        assert float(found.direction) == pytest.approx((0 + 1 + 2 + 0.5) / 4, abs=1e-6)


@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-8, 1e-3])
def test_cosine_of_an_answer_without_length_has_a_finite_gradient_that_gives_it_one(length: float) -> None:
    pose = torch.tensor([[1.0, length, 0.0]], requires_grad=True)
    target = Target(torch.zeros(1, 1, 1), torch.ones(1), torch.zeros(1))  # true: sin 0, cos 1
    loss = GeoposeLoss(LossConfig(0, direction=1, scale=0, direction_kind="cosine"))
    found = loss(Output(torch.zeros(1, 1, 1), pose), target)
    assert float(found.direction.detach()) == pytest.approx(1)
    found.total.backward()
    assert grad_of(pose).isfinite().all()
    assert float(grad_of(pose)[0, 2]) == pytest.approx(-100)


def test_magnitude_compares_the_length_of_the_flow_where_height_and_pose_are_known() -> None:
    output = Output(torch.tensor([[[10.0, 3.0]], [[7.0, 7.0]]]), torch.tensor([[2.0, 0.0, 1.0], [9.0, 0.0, 1.0]]))
    target = Target(torch.tensor([[[8.0, NAN]], [[5.0, 5.0]]]), torch.tensor([1.5, NAN]), torch.tensor([0.0, NAN]))
    plain = GeoposeLoss(LossConfig())(output, target)
    loss = GeoposeLoss(LossConfig(magnitude=0.5))(output, target)
    assert float(loss.magnitude) == (10 * 2 - 8 * 1.5) ** 2
    assert float(loss.total) == float(plain.total) + 0.5 * 64
    assert loss[1:4] == plain[1:4]
    assert float(plain.magnitude) == 0


def test_magnitude_without_weight_is_not_computed() -> None:
    pose = torch.full((1, 3), NAN, requires_grad=True)  # would make it NaN
    target = Target(torch.ones(1, 1, 1), torch.full((1,), NAN), torch.full((1,), NAN))
    loss = GeoposeLoss(LossConfig())(Output(torch.ones(1, 1, 1), pose), target)
    assert float(loss.magnitude) == 0
    assert not loss.magnitude.requires_grad


@pytest.mark.parametrize("config", KINDS, ids=name_of)
def test_a_batch_of_unknowns_has_a_zero_loss_with_a_gradient_for_everything(config: LossConfig) -> None:
    agl, pose = torch.ones(2, 4, 4, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    unknown = Target(torch.full((2, 4, 4), NAN), torch.full((2,), NAN), torch.full((2,), NAN))
    loss = GeoposeLoss(config, TWO)(Output(agl, pose), unknown, torch.tensor([0, 1]))
    loss.total.backward()
    assert [float(part.detach()) for part in loss] == [0.0] * 5
    for part in (agl, pose):
        assert not grad_of(part).any()


@pytest.mark.parametrize("config", KINDS, ids=name_of)
def test_what_is_unknown_changes_no_loss_and_gets_no_gradient(config: LossConfig) -> None:
    output, target, city = batch_of(torch.Generator().manual_seed(1))
    loss = GeoposeLoss(config, TWO)(output, target, city)
    loss.total.backward()
    unknown = torch.isnan(target.agl)
    assert not grad_of(output.agl)[unknown].any()
    assert not grad_of(output.pose)[1].any()
    assert grad_of(output.agl)[~unknown].all()
    others = Output(torch.where(unknown, -1e4, output.agl.detach()), output.pose.detach().clone())
    others.pose[1] = 77
    assert [float(part) for part in GeoposeLoss(config, TWO)(others, target, city)] == [float(p.detach()) for p in loss]


@pytest.mark.parametrize("config", KINDS, ids=name_of)
def test_gradients_are_those_of_the_losses(config: LossConfig) -> None:
    output, target, city = batch_of(torch.Generator().manual_seed(2))
    loss = GeoposeLoss(config, TWO).double()
    double = Target(*(part.double() for part in target))
    leaves = [part.detach().double().requires_grad_() for part in output]
    assert torch.autograd.gradcheck(lambda agl, pose: tuple(loss(Output(agl, pose), double, city)[:4]), leaves)


@pytest.mark.parametrize("config", KINDS, ids=name_of)
def test_half_precision_outputs_are_compared_in_float32(config: LossConfig) -> None:
    output = Output(torch.full((1, 1, 1), 300.0, dtype=torch.float16), torch.full((1, 3), 7.0, dtype=torch.float16))
    target = Target(torch.full((1, 1, 1), 0.1), torch.ones(1), torch.zeros(1))
    loss = GeoposeLoss(config, TWO)
    found = loss(output, target, torch.zeros(1, dtype=torch.int64))
    single = loss(Output(output.agl.float(), output.pose.float()), target, torch.zeros(1, dtype=torch.int64))
    assert all(part.dtype == torch.float32 for part in found)
    assert found == single
    if config.agl_kind == "mse":
        assert float(found.agl) == pytest.approx(299.9**2)  # beyond float16


# r2


def pooled(truth: dict[str, list[np.ndarray[Any, Any]]]) -> CityStatistics:
    cities = sorted(truth)
    known = [np.concatenate([image[image != UNKNOWN] for image in truth[city]]) / 100 for city in cities]
    count, mean, variance = ([f(each) for each in known] for f in (len, np.mean, np.var))
    return CityStatistics(tuple(cities), np.array(count, float), np.array(mean), np.array(variance))


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 3))
def test_r2_over_an_epoch_is_one_minus_the_mean_of_the_scores_r2(seed: int, images: list[int], batch: int) -> None:
    """Whatever cities meet in its batches: each image has as many known pixels, each batch as many images."""
    generator = np.random.default_rng(seed)
    batch = batch if sum(images) % batch == 0 else 1
    truth: dict[str, list[np.ndarray[Any, Any]]] = {}
    results, samples = [], []
    for place, (city, number) in enumerate(zip("ABCD", images, strict=False)):
        for image in range(number):
            heights = generator.integers(0, 1000 * (place + 1), (6, 7)).astype(np.uint16)
            error = generator.integers(-300, 300, heights.shape) + 50 * place
            predicted = np.clip(heights.astype(np.int64) + error, 0, UNKNOWN - 1).astype(np.uint16)
            heights.flat[generator.permutation(heights.size)[:9]] = UNKNOWN
            truth.setdefault(city, []).append(heights)
            results.append(ImageResult(f"{city}{image}", city, image_sums(heights, predicted), None, Pose(1.0, 0.0)))
            samples.append((heights, predicted, place))
    loss = GeoposeLoss(LossConfig(agl_kind="r2"), pooled(truth))
    losses = []
    order = generator.permutation(len(samples))
    for chosen in order.reshape(-1, batch):
        heights, predicted, places = zip(*(samples[number] for number in chosen), strict=True)
        centimetres = torch.tensor(np.stack(heights).astype(np.float32))
        target = Target(
            torch.where(centimetres == UNKNOWN, NAN, centimetres / 100), torch.ones(batch), torch.ones(batch)
        )
        output = Output(torch.tensor(np.stack(predicted).astype(np.float32)) / 100, torch.ones(batch, 3))
        losses.append(float(loss(output, target, torch.tensor(places)).agl))
    assert np.mean(losses) == pytest.approx(1 - score(results).score, rel=1e-5)


def test_r2_of_a_city_does_not_depend_on_the_others_in_the_batch() -> None:
    loss = GeoposeLoss(LossConfig(agl_kind="r2"), TWO)
    output = Output(torch.full((2, 1, 1), 3.0), torch.ones(2, 3))
    for one, other in ((0, 0), (0, 1), (1, 1)):
        target = Target(torch.tensor([[[1.0]], [[NAN]]]), torch.ones(2), torch.ones(2))
        found = float(loss(output, target, torch.tensor([one, other])).agl)
        assert found == pytest.approx(4 / (2 * [0.75, 0.25][one] * [9, 25][one]))


def test_a_city_without_known_pixels_to_train_on_has_no_weight_and_is_not_counted() -> None:
    assert city_weights(statistics([0, 300, 0, 100], [0, 9, 0, 25])) == [
        0.0,
        *city_weights(TWO)[:1],
        0.0,
        *city_weights(TWO)[1:],
    ]
    assert city_weights(statistics([0, 0], [0, 0])) == [0.0, 0.0]
    loss = GeoposeLoss(LossConfig(agl_kind="r2"), statistics([0, 300], [0, 9]))
    target = Target(torch.ones(1, 1, 1), torch.ones(1), torch.ones(1))
    assert float(loss(Output(torch.zeros(1, 1, 1), torch.ones(1, 3)), target, torch.tensor([0])).agl) == 0


def test_a_flat_city_and_one_of_few_pixels_have_a_weight_with_a_limit() -> None:
    flat = city_weights(statistics([100, 100], [0, 9]))
    assert flat == [pytest.approx(1 / LEAST_VARIANCE), pytest.approx(1 / 9)]
    few = city_weights(statistics([1, 10**9], [9, 9]))
    assert few[0] == pytest.approx(1 / (LEAST_SHARE * 9))
    assert few[1] == pytest.approx(1 / 18)


def test_r2_asks_for_what_it_needs() -> None:
    with pytest.raises(ValueError, match="needs the statistics of the cities"):
        GeoposeLoss(LossConfig(agl_kind="r2"))
    output, target, _ = batch_of(torch.Generator())
    with pytest.raises(ValueError, match="needs the cities of the batch"):
        GeoposeLoss(LossConfig(agl_kind="r2"), TWO)(output, target)


@pytest.mark.parametrize("config", [LossConfig(agl_kind="l1"), LossConfig(direction_kind="l1")])
def test_a_kind_that_there_is_not_is_refused(config: LossConfig) -> None:
    with pytest.raises(ValueError, match="l1"):
        GeoposeLoss(config, TWO)


def test_the_loss_moves_to_a_device_and_has_nothing_to_save() -> None:
    loss = GeoposeLoss(LossConfig(agl_kind="r2"), TWO)
    assert loss.to(torch.device("meta")).weights.device.type == "meta"
    assert not loss.state_dict()
    assert not list(loss.parameters())
