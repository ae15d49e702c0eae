"""The reference's loss: masked squared error of the heights plus squared errors of the pose."""

from typing import NamedTuple

import torch
from torch import Tensor

from agl_core.config import LossConfig
from agl_core.model.network import Output


class Target(NamedTuple):
    """Truth of a batch. agl: (B, H, W) metres, NaN where unknown; scale: (B,) pixels per metre and angle: (B,)
    radians, both NaN where the image has no vector flow."""

    agl: Tensor
    scale: Tensor
    angle: Tensor


class Losses(NamedTuple):
    """Scalars: the weighted sum and its three parts before weighting."""

    total: Tensor
    agl: Tensor
    direction: Tensor
    scale: Tensor


def geopose_loss(output: Output, target: Target, weights: LossConfig) -> Losses:
    """`agl * MSE(AGL, known pixels) + direction * MSE(sin, cos) + scale * MSE(scale in px/m)`.

    What is unknown is left out of its mean; a batch where nothing is known contributes exactly 0 to that part (and
    a zero gradient, so that every parameter still takes part in the backward pass). Computed in float32 whatever
    the precision of the forward pass.
    """
    agl, pose = output.agl.float(), output.pose.float()
    known_pixel = ~torch.isnan(target.agl)
    agl_loss = _masked_mean((agl - torch.nan_to_num(target.agl)).square(), known_pixel)
    known_pose = ~(torch.isnan(target.scale) | torch.isnan(target.angle))
    scale_loss = _masked_mean((pose[:, 0] - torch.nan_to_num(target.scale)).square(), known_pose)
    angle = torch.nan_to_num(target.angle)
    direction = torch.stack([angle.sin(), angle.cos()], dim=1)
    direction_loss = _masked_mean((pose[:, 1:] - direction).square().mean(dim=1), known_pose)
    total = weights.agl * agl_loss + weights.direction * direction_loss + weights.scale * scale_loss
    return Losses(total, agl_loss, direction_loss, scale_loss)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, torch.zeros_like(values)).sum() / mask.sum().clamp(min=1)
