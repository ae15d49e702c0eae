import math

import pytest
import torch

from agl_core.config import LossConfig
from agl_core.model.losses import Target, geopose_loss
from agl_core.model.network import Output

NAN = math.nan


def test_the_loss_is_the_references_on_a_worked_example() -> None:
    output = Output(torch.tensor([[[1.0, 5.0]], [[2.0, 2.0]]]), torch.tensor([[1.0, 0.0, 1.0], [0.5, 1.0, 0.0]]))
    target = Target(
        torch.tensor([[[3.0, NAN]], [[2.0, 5.0]]]), torch.tensor([2.0, 0.5]), torch.tensor([0.0, -math.pi / 2])
    )
    loss = geopose_loss(output, target, LossConfig(2, 50, 50))
    assert float(loss.agl) == pytest.approx((4 + 0 + 9) / 3)
    assert float(loss.direction) == pytest.approx((0 + 0 + 4 + 0) / 4)
    assert float(loss.scale) == pytest.approx((1 + 0) / 2)
    assert float(loss.total) == pytest.approx(2 * 13 / 3 + 50 * 1 + 50 * 0.5)


def test_images_without_pose_are_left_out_of_the_pose_loss() -> None:
    output = Output(torch.zeros(2, 1, 1), torch.tensor([[9.0, 9.0, 9.0], [1.0, 0.0, 1.0]]))
    target = Target(torch.zeros(2, 1, 1), torch.tensor([NAN, 1.0]), torch.tensor([NAN, 0.0]))
    loss = geopose_loss(output, target, LossConfig())
    assert float(loss.direction) == 0
    assert float(loss.scale) == 0


def test_a_batch_of_unknowns_has_a_zero_loss_with_a_gradient_for_everything() -> None:
    agl, pose = torch.ones(2, 4, 4, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    unknown = Target(torch.full((2, 4, 4), NAN), torch.full((2,), NAN), torch.full((2,), NAN))
    total = geopose_loss(Output(agl, pose), unknown, LossConfig()).total
    total.backward()
    assert float(total.detach()) == 0
    for part in (agl, pose):
        assert part.grad is not None
        assert not part.grad.any()


def test_half_precision_outputs_are_compared_in_float32() -> None:
    output = Output(torch.full((1, 1, 1), 300.0, dtype=torch.float16), torch.ones(1, 3, dtype=torch.float16))
    target = Target(torch.zeros(1, 1, 1), torch.ones(1), torch.zeros(1))
    assert float(geopose_loss(output, target, LossConfig()).agl) == 90_000  # beyond float16
