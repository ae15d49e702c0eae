"""Heads: heights from what the decoder has made, and the pose from the conditioned bottleneck."""

from typing import cast

import torch
from torch import Tensor, nn

from agl_core.config import ModelConfig
from agl_core.errors import valid_choice

TYPICAL_COTANGENT = 0.4
"""Of the elevation angle, 68 degrees; the challenge's images are seen from 54 (0.73) to 86 degrees (0.07)."""


class LinearHead(nn.Conv2d):
    """The reference's: one 3 x 3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 1, kernel_size=3, padding=1)

    def forward(self, decoded: Tensor, gsd: Tensor) -> Tensor:  # type: ignore[override]
        """(B, h, w) metres from (B, c, h, w); the gsd plays no part."""
        return super().forward(decoded)[:, 0]


class GsdHead(nn.Module):
    """Two 3 x 3 convolutions, the first of which sees the gsd as one more channel, whether the bottleneck does or not.

    How high something is follows from its size on the ground, which is its size in pixels times the gsd. The hidden
    layer lets the gsd decide which features count, where a single convolution could only add a constant to all heights.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(channels + 1, channels, kernel_size=3, padding=1)
        self.output = nn.Conv2d(channels, 1, kernel_size=3, padding=1)

    def forward(self, decoded: Tensor, gsd: Tensor) -> Tensor:
        """(B, h, w) metres from (B, c, h, w) and (B,) metres per pixel."""
        height, width = decoded.shape[-2:]
        plane = gsd.to(decoded.dtype)[:, None, None, None].expand(-1, 1, height, width)
        hidden = nn.functional.relu(self.hidden(torch.cat([decoded, plane], dim=1)))
        return cast(Tensor, self.output(hidden))[:, 0]


class DirectPose(nn.Sequential):
    """The reference's: global average pool, dropout and a linear layer to scale (pixels per metre), sin and cos."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels, 3))

    def forward(self, features: Tensor, city: Tensor, gsd: Tensor) -> Tensor:  # type: ignore[override]
        """(B, 3) from (B, c, h, w); city and gsd play no part but what they have in the features."""
        return cast(Tensor, super().forward(features))  # type: ignore[no-untyped-call]


class PriorPose(DirectPose):
    """Like the direct one, but for the scale: it is (constant of the city + output) / gsd.

    scale = cot(elevation) / gsd, so what is left to learn is the cotangent of the elevation, which is a property of
    the satellite's orbits over a city and has one meaning at any gsd. It starts as that of a typical elevation.
    """

    def __init__(self, channels: int, dropout: float, constants: int) -> None:
        super().__init__(channels, dropout)
        self.cotangent = nn.Parameter(torch.full((constants,), TYPICAL_COTANGENT))

    def start_at_constants(self) -> None:
        """Make the output that corrects the constants 0 for every image, so that every scale starts positive."""
        with torch.no_grad():
            cast(nn.Linear, self[-1]).weight[0] = 0

    def forward(self, features: Tensor, city: Tensor, gsd: Tensor) -> Tensor:  # type: ignore[override]
        """(B, 3) from (B, c, h, w), (B,) positions of the cities and (B,) metres per pixel."""
        pose = super().forward(features, city, gsd)
        constants: Tensor = self.cotangent
        if len(constants) > 1:
            # A product, not an index: the sum over equal cities in its gradient has one order on every device.
            constants = nn.functional.one_hot(city, len(constants)).to(constants.dtype) @ constants
        scale = (constants + pose[:, 0]) / gsd.to(pose.dtype)
        return torch.cat([scale[:, None], pose[:, 1:]], dim=1)


def build_agl_head(channels: int, config: ModelConfig) -> LinearHead | GsdHead:
    """The head `config.agl_head` on `channels` channels of the decoder."""
    valid_choice("model.agl_head", config.agl_head, ["linear", "gsd"])
    return LinearHead(channels) if config.agl_head == "linear" else GsdHead(channels)


def build_pose_head(channels: int, cities: int, config: ModelConfig) -> DirectPose:
    """The head `config.scale_head` on `channels` channels of the conditioned bottleneck; where the network does not
    look at the city, there is one constant for all."""
    valid_choice("model.scale_head", config.scale_head, ["direct", "prior"])
    if config.scale_head == "direct":
        return DirectPose(channels, config.pose_dropout)
    return PriorPose(channels, config.pose_dropout, cities if config.use_city else 1)
