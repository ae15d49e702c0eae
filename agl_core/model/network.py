"""The geocentric-pose network: a U-Net whose bottleneck knows the city and the gsd, with a head for the pose."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn

from agl_core.config import ModelConfig
from agl_core.errors import UserError
from agl_core.model.encoders import build_encoder, normalisation

STRIDE = 32


class Output(NamedTuple):
    """What the network says about a batch.

    agl: (B, H, W) metres above ground; pose: (B, 3) scale (pixels per metre), sin and cos of the angle, where
    (sin, cos) need not be of length one.
    """

    agl: Tensor
    pose: Tensor


class GeoposeNet(nn.Module):
    """U-Net of the fourth-place solution, on any encoder.

    City (one-hot, in the order of `cities`) and gsd (metres) are concatenated to the stride-32 features. The AGL
    head is a 3 x 3 convolution on the decoder's output, the pose head a global average pool of the conditioned
    features, dropout and a linear layer. Both are linear at the end.
    """

    def __init__(
        self, encoder: str, cities: Sequence[str], config: ModelConfig | None = None, encoder_weights: str = "none"
    ) -> None:
        super().__init__()
        config = config if config is not None else ModelConfig()
        self.encoder_name = encoder
        self.cities = tuple(cities)
        self.config = config
        self.encoder = build_encoder(encoder, encoder_weights)
        channels = list(cast(Sequence[int], self.encoder.out_channels))
        self.condition = (len(self.cities) if config.use_city else 0) + (1 if config.use_gsd else 0)
        bottleneck = channels[-1] + self.condition
        self.decoder = UnetDecoder(
            encoder_channels=[*channels[:-1], bottleneck],
            decoder_channels=list(config.decoder_channels),
            n_blocks=len(config.decoder_channels),
        )
        self.agl_head = nn.Conv2d(config.decoder_channels[-1], 1, kernel_size=3, padding=1)
        self.pose_head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(config.pose_dropout), nn.Linear(bottleneck, 3)
        )
        _initialise(self.decoder, self.agl_head, self.pose_head)
        mean, std = normalisation(encoder)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)
        try:
            _freeze_unused(self)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"encoder {encoder!r} cannot take images of any size ({error}); choose a convolutional one"
            ) from error

    def forward(self, image: Tensor, city: Tensor, gsd: Tensor) -> Output:
        """Heights and pose of a batch of images.

        image: (B, 3, H, W) uint8, H and W multiples of 32; city: (B,) int64, positions in `cities`;
        gsd: (B,) float32, metres per pixel.
        """
        normalised = (image.to(cast(Tensor, self.std).dtype) - cast(Tensor, self.mean)) / cast(Tensor, self.std)
        if self.agl_head.weight.is_contiguous(memory_format=torch.channels_last):
            normalised = normalised.contiguous(memory_format=torch.channels_last)
        features = list(self.encoder(normalised))
        features[-1] = torch.cat([features[-1], *self._conditions(features[-1], city, gsd)], dim=1)
        decoded = self.decoder(features)
        # bfloat16 would round a height of 100 m to half a metre: the heads always answer in float32.
        with torch.autocast(image.device.type, enabled=False):
            return Output(self.agl_head(decoded.float())[:, 0], self.pose_head(features[-1].float()))

    def _conditions(self, features: Tensor, city: Tensor, gsd: Tensor) -> Iterator[Tensor]:
        height, width = features.shape[-2:]
        if self.config.use_city:
            one_hot = nn.functional.one_hot(city, len(self.cities)).to(features.dtype)
            yield one_hot[:, :, None, None].expand(-1, -1, height, width)
        if self.config.use_gsd:
            yield gsd.to(features.dtype)[:, None, None, None].expand(-1, 1, height, width)


def _initialise(*modules: nn.Module) -> None:
    """He initialisation of convolutions, zero biases; the pose head starts near zero."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            elif isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
            if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _freeze_unused(model: GeoposeNet) -> None:
    """Freeze the parameters that the outputs do not depend on.

    Some encoders carry layers of their classifier (`efficientnet-*`: `_conv_head`, `_bn1`). They never receive a
    gradient, and `DistributedDataParallel` refuses such parameters at its second step. They are found by walking
    the autograd graph of one small forward pass, so the rule holds for every encoder.
    """
    was_training = model.training
    model.eval()
    size = 2 * STRIDE
    out = model(torch.zeros(1, 3, size, size, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), torch.ones(1))
    used: set[int] = set()
    seen: set[object] = set()
    waiting = [out.agl.grad_fn, out.pose.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            used.add(id(node.variable))
        waiting.extend(parent for parent, _ in node.next_functions)
    for parameter in model.parameters():
        if id(parameter) not in used:
            parameter.requires_grad_(False)
    model.train(was_training)
