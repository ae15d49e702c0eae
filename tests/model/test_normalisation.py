"""Every encoder sees pixels as those that its ImageNet weights were trained with.

The expected numbers are those of the tables that segmentation-models-pytorch carried with it up to 0.4.0 (all RGB in
0..1); since then it fetches them with the weights, which tests do not.
"""

import pytest
import torch
from torch import nn

from agl_core.config import ModelConfig
from agl_core.model import network as network_module
from agl_core.model.encoders import encoder_names, normalisation, smp_encoders, timm
from agl_core.model.network import GeoposeNet

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALVES = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
DPN = (
    [0.48627450980392156, 0.4588235294117647, 0.40784313725490196],
    [0.23482446870963955, 0.23482446870963955, 0.23482446870963955],
)
STATISTICS = {
    **dict.fromkeys([f"densenet{size}" for size in (121, 161, 169, 201)], IMAGENET),
    **dict.fromkeys([f"dpn{size}" for size in ("68", "68b", "92", "98", "107", "131")], DPN),
    **dict.fromkeys([f"efficientnet-b{size}" for size in range(8)], IMAGENET),
    **dict.fromkeys(["inceptionresnetv2", "inceptionv4", "xception"], HALVES),
    **dict.fromkeys([f"mit_b{size}" for size in range(6)], IMAGENET),
    **dict.fromkeys(["mobilenet_v2", *(f"mobileone_s{size}" for size in range(5))], IMAGENET),
    **dict.fromkeys([f"resnet{size}" for size in (18, 34, 50, 101, 152)], IMAGENET),
    **dict.fromkeys(["resnext50_32x4d", *(f"resnext101_32x{size}d" for size in (4, 8, 16, 32, 48))], IMAGENET),
    **dict.fromkeys(["se_resnet50", "se_resnet101", "se_resnet152"], IMAGENET),
    **dict.fromkeys(["se_resnext50_32x4d", "se_resnext101_32x4d", "senet154"], IMAGENET),
    **dict.fromkeys(["timm-skresnet18", "timm-skresnet34", "timm-skresnext50_32x4d"], IMAGENET),
    **dict.fromkeys([f"timm-efficientnet-{size}" for size in (*(f"b{number}" for number in range(9)), "l2")], IMAGENET),
    **dict.fromkeys([f"timm-tf_efficientnet_lite{size}" for size in range(5)], HALVES),
    **dict.fromkeys([f"vgg{size}{norm}" for size in (11, 13, 16, 19) for norm in ("", "_bn")], IMAGENET),
}


def as_lists(name: str) -> tuple[list[float], list[float]]:
    mean, std = normalisation(name)
    return list(mean), list(std)


def test_every_encoder_of_the_library_has_the_statistics_of_its_own_weights() -> None:
    assert {name: as_lists(name) for name in encoder_names()} == STATISTICS


def test_every_encoder_of_timm_has_the_statistics_of_the_weights_that_its_name_stands_for() -> None:
    for name in timm.list_models(pretrained=True):
        own = smp_encoders.get_preprocessing_params(f"tu-{name}")
        assert as_lists(f"tu-{name}") == (own["mean"], own["std"]), name
        assert (own["input_space"], own["input_range"]) == ("RGB", [0, 1])
        assert len(own["mean"]) == len(own["std"]) == 3
    assert as_lists("tu-tf_efficientnetv2_l") == HALVES
    assert as_lists("tu-resnet18") == IMAGENET
    assert as_lists("tu-dpn68") == DPN


def test_timms_weights_of_a_tag_have_the_statistics_of_that_tag() -> None:
    assert as_lists("tu-tf_efficientnet_b0.ap_in1k") == HALVES
    assert as_lists("tu-tf_efficientnet_b0.ns_jft_in1k") == IMAGENET


class Recorder(nn.Module):
    """An encoder that remembers what it was shown."""

    out_channels = (3, 4, 4, 4, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(inside, 4, 1) for inside in (3, 4, 4, 4, 4)])
        self.shown = torch.zeros(0)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        self.shown = image.detach()
        features = [image]
        for layer in self.layers:
            features.append(layer(nn.functional.avg_pool2d(features[-1], 2)))
        return features


@pytest.mark.parametrize("encoder", ["dpn68", "timm-tf_efficientnet_lite0", "resnet18", "tu-tf_efficientnetv2_l"])
def test_the_encoder_is_shown_red_first_less_the_mean_by_the_deviation(
    monkeypatch: pytest.MonkeyPatch, encoder: str
) -> None:
    monkeypatch.setattr(network_module, "build_encoder", lambda *_: Recorder())
    model = GeoposeNet(encoder, ["AAA"], ModelConfig(decoder_channels=[4, 4, 4, 4, 4])).eval()
    colour = torch.tensor([255, 51, 0], dtype=torch.uint8)
    model(colour.view(1, 3, 1, 1).expand(1, 3, 64, 64), torch.tensor([0]), torch.tensor([0.5]))
    mean, std = map(torch.tensor, STATISTICS.get(encoder, HALVES))
    expected = (torch.tensor([1.0, 0.2, 0.0]) - mean) / std
    assert isinstance(model.encoder, Recorder)
    torch.testing.assert_close(model.encoder.shown[0, :, 5, 7], expected)
