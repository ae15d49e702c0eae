"""A network that was built without initial weights is, once a state is loaded, the one that was built with them."""

import pytest
import torch
from torch import nn

from agl_core.config import ModelConfig
from agl_core.model.network import GeoposeNet
from agl_core.model.unfilled import unfilled

SMALL = ModelConfig(decoder_channels=[16, 16, 8, 8, 8])


def network(encoder: str) -> GeoposeNet:
    return GeoposeNet(encoder, ["AAA", "BBB"], SMALL)


@pytest.mark.parametrize("encoder", ["tu-resnet10t", "efficientnet-b0", "resnet18", "tu-convnext_atto", "densenet121"])
def test_with_its_state_it_is_the_same_network_and_nothing_was_drawn_for_it(encoder: str) -> None:
    torch.manual_seed(0)
    whole = network(encoder)
    before = torch.get_rng_state()
    with unfilled():
        built = network(encoder)
    assert torch.equal(torch.get_rng_state(), before)
    built.load_state_dict(whole.state_dict())
    for kind in ("named_parameters", "named_buffers"):  # buffers with those that are no part of the state
        for (name, one), (other_name, other) in zip(getattr(whole, kind)(), getattr(built, kind)(), strict=True):
            assert name == other_name
            assert torch.equal(one, other), name
            assert one.requires_grad == other.requires_grad, name


def test_afterwards_and_in_buffers_numbers_are_drawn_as_ever() -> None:
    with unfilled():
        buffer = torch.zeros(100).normal_()
        assert len(set(buffer.tolist())) > 50
        untouched = nn.Parameter(torch.zeros(100))
        nn.init.normal_(untouched)
        nn.init.zeros_(nn.Parameter(torch.ones(3)))
        assert not untouched.any()
    nn.init.normal_(untouched)
    assert untouched.all()
