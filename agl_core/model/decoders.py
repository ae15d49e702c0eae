"""Decoders: from the levels of an encoder back to the resolution of the image, or to a quarter of it."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

from segmentation_models_pytorch.base.modules import Attention, SCSEModule
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.manet.decoder import MAnetDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder
from torch import nn

from agl_core.config import ModelConfig
from agl_core.errors import UserError, valid_choice

NAMES = ("unet", "unetplusplus", "manet", "fpn")
GROUPS = 32  # of the group norms in which the library's FPN joins its levels
REDUCTION = 16  # of channels in the library's squeeze and excitation


class Decoder(NamedTuple):
    """A decoder and what it answers with.

    module: takes the six levels of an encoder, (B, c_k, H / 2^k, W / 2^k), the image itself first, and returns
    (B, channels, H / stride, W / stride); H and W are multiples of 32.
    """

    module: nn.Module
    channels: int
    stride: int


def build_decoder(encoder_channels: Sequence[int], config: ModelConfig) -> Decoder:
    """The decoder that `config` names, for levels of `encoder_channels` channels, the image first.

    All are those of segmentation-models-pytorch with its defaults (FPN: dropout of 0.2 on what it joins).

    Raises:
        UserError: no such decoder, attention that it does not have, or widths that it cannot have.
    """
    valid_choice("model.decoder", config.decoder, list(NAMES))
    levels, widths = list(encoder_channels), list(config.decoder_channels)
    if config.decoder == "fpn":
        return _fpn(levels, config)
    if config.decoder == "manet":
        _no_attention(config)
        return Decoder(MAnetDecoder(levels, widths, n_blocks=len(widths)), widths[-1], stride=1)
    kind = UnetDecoder if config.decoder == "unet" else UnetPlusPlusDecoder
    attention = None if config.attention == "none" else config.attention
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
        module = kind(levels, widths, n_blocks=len(widths), attention_type=attention)
    _widen_narrow_attention(module)
    return Decoder(module, widths[-1], stride=1)


def _fpn(levels: list[int], config: ModelConfig) -> Decoder:
    """The feature pyramid: all levels from stride 4 on, each brought to stride 4, added up."""
    _no_attention(config)
    pyramid, joined = config.decoder_channels[:2]
    if joined % GROUPS or joined < 2 * GROUPS:  # with one channel a group an image of 32 pixels has nothing to average
        raise UserError(
            f"model.decoder_channels is {config.decoder_channels}: fpn normalises what it joins in {GROUPS} groups of "
            f"two or more channels, so give a multiple of {GROUPS}, at least {2 * GROUPS}, as the second number"
        )
    module = FPNDecoder(levels, len(levels) - 1, pyramid_channels=pyramid, segmentation_channels=joined)
    return Decoder(module, joined, stride=4)


def _no_attention(config: ModelConfig) -> None:
    if config.attention != "none":
        raise UserError(
            f"model.attention is {config.attention}, which the decoder {config.decoder} does not have: give none, or "
            "model.decoder=unet"
        )


def _widen_narrow_attention(decoder: nn.Module) -> None:
    """Leave at least one channel in every squeeze: with fewer than 16 to begin with the library leaves none, and its
    excitation would be the same number for every image."""
    for layer in decoder.modules():
        if isinstance(layer, Attention) and isinstance(layer.attention, SCSEModule):
            channels = layer.attention.cSE[1].in_channels
            if channels < REDUCTION:
                layer.attention = SCSEModule(channels, reduction=channels)
