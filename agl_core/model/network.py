"""The geocentric-pose network: an encoder and a decoder whose bottleneck knows the city and the gsd, and two heads."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from agl_core.config import ModelConfig
from agl_core.config.option import WEIGHTS_CACHE
from agl_core.errors import UserError
from agl_core.model.decoders import build_decoder
from agl_core.model.encoders import build_encoder, normalisation
from agl_core.model.heads import PriorPose, build_agl_head, build_pose_head

STRIDE = 32


class Output(NamedTuple):
    """What the network says about a batch.

    agl: (B, H, W) metres above ground; pose: (B, 3) scale (pixels per metre), sin and cos of the angle, where
    (sin, cos) need not be of length one.
    """

    agl: Tensor
    pose: Tensor


class GeoposeNet(nn.Module):
    """The network of the fourth-place solution, on any encoder; decoder and heads may be others than its own.

    City (one-hot, in the order of `cities`) and gsd (metres) are concatenated to the stride-32 features. The AGL head
    reads what the decoder makes of all features, the pose head the conditioned ones alone (`agl_core.model.decoders`,
    `agl_core.model.heads`).
    """

    def __init__(
        self,
        encoder: str,
        cities: Sequence[str],
        config: ModelConfig | None = None,
        encoder_weights: str = "none",
        weights_cache: str = WEIGHTS_CACHE,
    ) -> None:
        """encoder_weights, weights_cache: see `agl_core.model.encoders.build_encoder`.

        Raises:
            UserError: an unknown encoder, one that cannot be used here or whose weights are missing, or a `config`
                that its decoder cannot have.
        """
        super().__init__()
        config = config if config is not None else ModelConfig()
        self.encoder_name = encoder
        self.cities = tuple(cities)
        self.config = config
        self.gradient_checkpointing = False
        self.encoder = build_encoder(encoder, encoder_weights, weights_cache)
        channels = list(cast(Sequence[int], self.encoder.out_channels))
        self.condition = (len(self.cities) if config.use_city else 0) + (1 if config.use_gsd else 0)
        bottleneck = channels[-1] + self.condition
        self.decoder, decoded, self.decoder_stride = build_decoder([*channels[:-1], bottleneck], config)
        self.agl_head = build_agl_head(decoded, config)
        self.pose_head = build_pose_head(bottleneck, len(self.cities), config)
        _initialise(self.decoder, self.agl_head, self.pose_head)
        if isinstance(self.pose_head, PriorPose):
            self.pose_head.start_at_constants()
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
        if _is_channels_last(self.agl_head):
            normalised = normalised.contiguous(memory_format=torch.channels_last)
        features = list(self.encoder(normalised))
        features[-1] = torch.cat([features[-1], *self._conditions(features[-1], city, gsd)], dim=1)
        decoded = self.decoder(features)
        # bfloat16 would round a height of 100 m to half a metre: the heads always answer in float32.
        with torch.autocast(image.device.type, enabled=False):
            agl = self.agl_head(decoded.float(), gsd)
            return Output(self._enlarged(agl), self.pose_head(features[-1].float(), city, gsd))

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Compute the encoder's activations again in the backward pass instead of keeping them from the forward pass.

        Gradients are the same, bit for bit on CPU: random numbers are drawn again as they were. Batch norms see every
        batch twice, which is harmless to running statistics as `agl_core.training.batchnorm` keeps them.

        Raises:
            UserError: the encoder cannot do it.
        """
        if on and not self.has_gradient_checkpointing:
            raise UserError(
                f"encoder {self.encoder_name!r} has no gradient checkpointing: take one of timm that has it "
                "(tu-NAME, for instance tu-tf_efficientnetv2_l), or gradient_checkpointing=false"
            )
        if self.has_gradient_checkpointing:
            cast(Any, self.encoder).model.set_grad_checkpointing(on)
        self.gradient_checkpointing = on

    @property
    def has_gradient_checkpointing(self) -> bool:
        """Whether the encoder can compute its activations again: those of timm that are made for it."""
        # Not a switch of the encoder's own: `timm-efficientnet-*` of segmentation-models-pytorch have inherited one,
        # but not the code that looks at it.
        switch = getattr(getattr(self.encoder, "model", None), "set_grad_checkpointing", None)
        if switch is None:
            return False
        try:
            switch(True)
        except AssertionError:  # so timm says that a model has none
            return False
        switch(self.gradient_checkpointing)
        return True

    def _enlarged(self, agl: Tensor) -> Tensor:
        """(B, H, W) from the (B, H / stride, W / stride) of the decoder's stride. Heights are enlarged, not features,
        which are many times as many; corners are not aligned, so that pixels keep their places at any size."""
        if self.decoder_stride == 1:
            return agl
        return nn.functional.interpolate(
            agl[:, None], scale_factor=float(self.decoder_stride), mode="bilinear", align_corners=False
        )[:, 0]

    def _conditions(self, features: Tensor, city: Tensor, gsd: Tensor) -> Iterator[Tensor]:
        height, width = features.shape[-2:]
        if self.config.use_city:
            one_hot = nn.functional.one_hot(city, len(self.cities)).to(features.dtype)
            yield one_hot[:, :, None, None].expand(-1, -1, height, width)
        if self.config.use_gsd:
            yield gsd.to(features.dtype)[:, None, None, None].expand(-1, 1, height, width)


def _is_channels_last(module: nn.Module) -> bool:
    """The memory layout of the first convolution of `module`."""
    kernel = next(parameter for parameter in module.parameters() if parameter.ndim == 4)
    return kernel.is_contiguous(memory_format=torch.channels_last)


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
