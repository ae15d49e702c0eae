"""The encoders that recipes name, each in one forward and backward pass at a small crop."""

import pytest
import torch

from agl_core.model.network import GeoposeNet
from tests.model.networks import CITIES, frozen, some_loss, without_finite_gradient

UNUSED = ["encoder._conv_head.weight", "encoder._bn1.weight", "encoder._bn1.bias"]
MILLIONS = {"efficientnet-b6": 44, "efficientnet-b7": 67, "senet154": 122, "tu-tf_efficientnetv2_l": 120}


@pytest.mark.parametrize("encoder", MILLIONS)
def test_every_parameter_that_is_trained_gets_a_finite_gradient_and_no_other_gets_any(encoder: str) -> None:
    torch.manual_seed(0)
    model = GeoposeNet(encoder, CITIES).train()
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == MILLIONS[encoder]
    image = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    output = model(image, torch.tensor([0, 1]), torch.tensor([0.3, 0.5]))
    assert output.agl.shape == (2, 64, 64)
    loss = some_loss(output)
    loss.backward()
    assert loss.isfinite()
    assert without_finite_gradient(model) == []
    assert frozen(model) == dict.fromkeys(UNUSED if encoder.startswith("efficientnet") else [])
