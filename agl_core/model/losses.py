"""The loss: an error of the heights, of the angle's direction, of the scale and, if wanted, of the flow's length.

What is unknown is left out of its mean. A batch where nothing is known of a part contributes exactly 0 to it, with a
zero gradient, so that every parameter still takes part in the backward pass.
"""

from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import huber_loss

from agl_core.config import LossConfig
from agl_core.data.statistics import CityStatistics
from agl_core.model.network import Output

PARTS = ("total", "agl", "direction", "scale", "magnitude")
"""The losses that there are, in their order everywhere."""

LEAST_VARIANCE = 1.0
"""m^2, r2: a city whose heights vary less is weighted as if they varied so much. The R2 of a city of one height has no
meaning, and a weight without limit would leave nothing of the other cities."""

LEAST_SHARE = 0.01
"""r2: a city with less than this part of an even share of the known pixels is weighted as if it had so much: one crop
in a thousand must not be worth as much as all the others together."""

SHORTEST = 0.01
"""cosine: the length of (sin, cos) below which an answer counts as if it were so long, with the gradient of a straight
line: at length 0, where there is no angle, that is finite and leads out of it."""


class Target(NamedTuple):
    """Truth of a batch. agl: (B, H, W) metres, NaN where unknown; scale: (B,) pixels per metre and angle: (B,)
    radians, both NaN where the image has no vector flow."""

    agl: Tensor
    scale: Tensor
    angle: Tensor


class Losses(NamedTuple):
    """Scalars, as `PARTS` names them: the weighted sum, and its parts before weighting."""

    total: Tensor
    agl: Tensor
    direction: Tensor
    scale: Tensor
    magnitude: Tensor
    """0 if it has no weight: it is not computed then."""


class GeoposeLoss(nn.Module):
    """The weighted sum of the parts, each a mean over what is known of a batch:

        agl        over pixels, of the error e of the height, metres: mse e^2; huber e^2 / 2 up to |e| = delta, and
                   delta (|e| - delta / 2) beyond, as torch's huber_loss; r2 e^2 times the city's `city_weights`
        direction  over images, p the predicted and t the true (sin, cos): mse |p - t|^2 / 2; cosine 1 - p t / |p|
        scale      over images, of the squared error in px/m
        magnitude  over pixels of images with a pose, of the squared error of height times scale, in pixels

    The defaults are the reference's. Computed in float32 whatever the precision of the forward pass (float64 in
    float64).
    """

    def __init__(self, config: LossConfig, statistics: CityStatistics | None = None) -> None:
        """`statistics` are those of the tiles to train on; only r2 needs them.

        Raises:
            ValueError: when it needs them and they are not given, or an option has a value that there is not.
        """
        super().__init__()
        if config.agl_kind not in ("mse", "huber", "r2") or config.direction_kind not in ("mse", "cosine"):
            raise ValueError(f"there is no loss of the heights {config.agl_kind} or direction {config.direction_kind}")
        self.config = config
        weights = None
        if config.agl_kind == "r2":
            if statistics is None:
                raise ValueError("the loss r2 needs the statistics of the cities")
            weights = torch.tensor(city_weights(statistics), dtype=torch.float32)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, output: Output, target: Target, city: Tensor | None = None) -> Losses:
        """The losses of a batch. city: (B,) int64, positions in the cities of the statistics; only r2 needs them."""
        config = self.config
        agl, pose = _precise(output.agl), _precise(output.pose)
        known_pixel = ~torch.isnan(target.agl)
        true_agl = torch.nan_to_num(target.agl)
        agl_loss = _masked_mean(self._agl_errors(agl, true_agl, city), known_pixel)
        known_pose = ~(torch.isnan(target.scale) | torch.isnan(target.angle))
        true_scale = torch.nan_to_num(target.scale)
        scale_loss = _masked_mean((pose[:, 0] - true_scale).square(), known_pose)
        angle = torch.nan_to_num(target.angle)
        direction = torch.stack([angle.sin(), angle.cos()], dim=1)
        direction_loss = _masked_mean(self._direction_errors(pose[:, 1:], direction), known_pose)
        total = config.agl * agl_loss + config.direction * direction_loss + config.scale * scale_loss
        if not config.magnitude:
            return Losses(total, agl_loss, direction_loss, scale_loss, total.new_zeros(()))
        lengths = agl * pose[:, 0, None, None], true_agl * true_scale[:, None, None]
        magnitude_loss = _masked_mean((lengths[0] - lengths[1]).square(), known_pixel & known_pose[:, None, None])
        total = total + config.magnitude * magnitude_loss
        return Losses(total, agl_loss, direction_loss, scale_loss, magnitude_loss)

    def _agl_errors(self, agl: Tensor, truth: Tensor, city: Tensor | None) -> Tensor:
        """Of each pixel, (B, H, W)."""
        if self.config.agl_kind == "huber":
            return huber_loss(agl, truth, reduction="none", delta=self.config.huber_delta)
        squared = (agl - truth).square()
        if self.config.agl_kind == "mse":
            return squared
        if city is None:
            raise ValueError("the loss r2 needs the cities of the batch")
        return squared * cast(Tensor, self.weights)[city][:, None, None]

    def _direction_errors(self, predicted: Tensor, truth: Tensor) -> Tensor:
        """Of each image, (B,), from (B, 2) sines and cosines."""
        if self.config.direction_kind == "mse":
            return (predicted - truth).square().mean(dim=1)
        length = predicted.square().sum(dim=1).clamp(min=SHORTEST**2).sqrt()
        return 1 - (predicted * truth).sum(dim=1) / length


def city_weights(statistics: CityStatistics) -> list[float]:
    """What makes a mean over pixels a mean over cities of 1 - R2: 1 / (cities * share of the known pixels * variance).

    Summed over the known pixels of all tiles, the weighted squared errors divided by the number of pixels are the mean
    over the cities of SSE / SST, so the mean over the batches of an epoch is too, as far as they have as many known
    pixels each. What a batch is divided by does not depend on which cities are in it: that of a single city that is
    left out contributes nothing, and that of the others stays what it was.

    A city without known pixels has weight 0 and does not count; see `LEAST_VARIANCE` and `LEAST_SHARE` for others that
    have too little of something.
    """
    cities = int(np.count_nonzero(statistics.count))
    share = np.maximum(statistics.count / max(statistics.count.sum(), 1), LEAST_SHARE / max(cities, 1))
    weights = 1 / (max(cities, 1) * share * np.maximum(statistics.variance, LEAST_VARIANCE))
    return [float(weight) for weight in np.where(statistics.count > 0, weights, 0.0)]


def _precise(values: Tensor) -> Tensor:
    """float64 as it is, all others as float32: beyond 65504 there is no float16, and bfloat16 has three digits."""
    return values if values.dtype == torch.float64 else values.float()


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, torch.zeros_like(values)).sum() / mask.sum().clamp(min=1)
