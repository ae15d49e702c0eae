"""The default network is the reference's and stays what it was before decoders and heads could be chosen: the same
names, the same initial numbers from a seed, the same answers, bit for bit, so that old weights and runs go on."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agl_core.config import ModelConfig
from agl_core.model.decoders import UnetDecoder
from agl_core.model.encoders import build_encoder, normalisation
from agl_core.model.network import GeoposeNet
from tests.model.networks import BATCH

WIDTHS = [32, 32, 16, 8, 8]


class Reference(nn.Module):
    """The network as it was written first, for three cities and a gsd."""

    def __init__(self, encoder: str, widths: Sequence[int]) -> None:
        super().__init__()
        self.encoder: Any = build_encoder(encoder, "none")
        channels = list(self.encoder.out_channels)
        channels[-1] += 4
        self.decoder = UnetDecoder(encoder_channels=channels, decoder_channels=list(widths), n_blocks=5)
        self.agl_head = nn.Conv2d(widths[-1], 1, kernel_size=3, padding=1)
        self.pose_head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(channels[-1], 3)
        )
        for module in (self.decoder, self.agl_head, self.pose_head):
            for layer in module.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
                elif isinstance(layer, nn.Linear):
                    nn.init.xavier_uniform_(layer.weight)
                if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        mean, std = normalisation(encoder)
        self.mean, self.std = torch.tensor(mean).view(1, 3, 1, 1) * 255, torch.tensor(std).view(1, 3, 1, 1) * 255

    def forward(self, image: Tensor, city: Tensor, gsd: Tensor) -> tuple[Tensor, Tensor]:
        features = list(self.encoder((image.float() - self.mean) / self.std))
        known = torch.cat([nn.functional.one_hot(city, 3).float(), gsd[:, None]], dim=1)
        planes = known[:, :, None, None].expand(-1, -1, *features[-1].shape[-2:])
        features[-1] = torch.cat([features[-1], planes], dim=1)
        return self.agl_head(self.decoder(features))[:, 0], self.pose_head(features[-1])


@pytest.mark.parametrize("encoder", ["tu-resnet10t", "efficientnet-b0"])
def test_the_default_network_has_the_bits_that_it_always_had(encoder: str) -> None:
    torch.manual_seed(5)
    reference = Reference(encoder, WIDTHS)
    drawn = torch.get_rng_state()
    torch.manual_seed(5)
    model = GeoposeNet(encoder, ["AAA", "BBB", "CCC"], ModelConfig(decoder_channels=WIDTHS))
    assert torch.equal(torch.get_rng_state(), drawn)
    expected, found = reference.state_dict(), model.state_dict()
    assert list(found) == list(expected)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []

    def trained(network: nn.Module) -> list[Tensor]:
        torch.manual_seed(6)
        agl, pose = network.train()(*BATCH)
        (agl.square().mean() + pose.square().mean()).backward()
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        return [agl, pose, *gradients, *network.eval()(*BATCH)]

    pairs = list(zip(trained(reference), trained(model), strict=True))
    assert len(pairs) > 50
    assert all(torch.equal(one, other) for one, other in pairs)


def test_the_default_network_gives_the_numbers_that_it_always_gave() -> None:
    """Recorded from the network as it was; the tolerance is for other processors' sums."""
    torch.manual_seed(7)
    model = GeoposeNet("resnet18", ["AAA", "BBB", "CCC"]).eval()
    state = model.state_dict()
    output = model(BATCH[0], torch.tensor([0, 2]), BATCH[2])
    assert len(state) == 184
    assert float(state["decoder.blocks.0.conv1.0.weight"].double().abs().sum()) == pytest.approx(24083.490631, rel=1e-5)
    assert float(state["pose_head.3.weight"].double().abs().sum()) == pytest.approx(81.526328, rel=1e-5)
    assert float(output.agl.detach().double().sum()) == pytest.approx(-2168.749, rel=1e-3)
    assert output.pose[0].tolist() == pytest.approx([1.949338, -9.887632, -2.296530], rel=1e-3)
