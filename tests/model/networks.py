"""Small networks, a batch for them, and what tests ask of their gradients."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from agl_core.config import ModelConfig
from agl_core.model.network import GeoposeNet, Output

CITIES = ["AAA", "BBB"]
SMALL = ModelConfig(decoder_channels=[16, 64, 8, 8, 8], pose_dropout=0.0)
ARCHITECTURES = [("unet", "none"), ("unet", "scse"), ("unetplusplus", "none"), ("unetplusplus", "scse")]
ARCHITECTURES += [("manet", "none"), ("fpn", "none")]
"""Every decoder with every attention that it has."""
HEADS = [(agl, scale) for agl in ("linear", "gsd") for scale in ("direct", "prior")]
BATCH = (
    torch.randint(0, 255, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    torch.tensor([0, 1]),
    torch.tensor([0.3, 0.5]),
)


def small(
    decoder: str = "unet",
    attention: str = "none",
    heads: tuple[str, str] = ("linear", "direct"),
    encoder: str = "tu-lcnet_035",
) -> GeoposeNet:
    """A small network in eval mode; the same numbers at every call."""
    torch.manual_seed(0)
    agl_head, scale_head = heads
    config = replace(SMALL, decoder=decoder, attention=attention, agl_head=agl_head, scale_head=scale_head)
    return GeoposeNet(encoder, CITIES, config).eval()


def some_loss(output: Output) -> Tensor:
    """A loss that depends on every number of the output."""
    return output.agl.square().mean() + output.pose.square().mean()


def without_finite_gradient(model: nn.Module) -> list[str]:
    """The trainable parameters that a backward pass has not reached, or with something that is no number."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.isfinite().all())
    ]


def frozen(model: nn.Module) -> dict[str, Tensor | None]:
    """The gradients of the parameters that are not trained, by name."""
    return {name: parameter.grad for name, parameter in model.named_parameters() if not parameter.requires_grad}
