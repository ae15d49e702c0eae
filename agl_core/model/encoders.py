"""Encoders: any of segmentation-models-pytorch, any of timm as `tu-NAME`, and where their weights come from."""

import difflib
import warnings
from pathlib import Path
from typing import cast

import timm
import torch
from safetensors.torch import load_file
from segmentation_models_pytorch import encoders as smp_encoders
from torch import nn

from agl_core.errors import UserError

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALVES = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
DPN = (124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3
OWN_STATISTICS = {"dpn": DPN, "inception": HALVES, "xception": HALVES, "timm-tf_efficientnet_lite": HALVES}
"""By the beginning of the name, what ImageNet weights of segmentation-models-pytorch were trained with where it is not
`IMAGENET`; all take RGB in 0..1. The library itself fetches its tables together with the weights, and a network that
is trained from elsewhere, or predicts without a connection, must see the same pixels."""
DEPTH = 5


def encoder_names() -> list[str]:
    """Every valid encoder name of segmentation-models-pytorch; timm's are these with `tu-` before their own."""
    return sorted(smp_encoders.encoders)


def check_encoder(name: str) -> None:
    """Raise a `UserError` with the nearest valid names if there is no encoder of this name."""
    if name.startswith("tu-"):
        known = [f"tu-{model}" for model in timm.list_models()]
        valid = timm.is_model(name[3:])
    else:
        known, valid = encoder_names(), name in smp_encoders.encoders
    if not valid:
        near = difflib.get_close_matches(name, known, n=5, cutoff=0.4) or encoder_names()[:5]
        raise UserError(
            f"unknown encoder {name!r}: choose one of {', '.join(near)}, ...; {len(encoder_names())} names of "
            "segmentation-models-pytorch and every timm model as tu-NAME are valid"
        )


def build_encoder(name: str, weights: str) -> nn.Module:
    """Build the encoder `name` for 3-band images, five levels down to stride 32.

    `weights` is `imagenet` (fetched from the Hugging Face hub or its cache), `none`, or the path of a safetensors
    file with the encoder's own state.

    Raises:
        UserError: unknown name, no ImageNet weights for it, no network, or a file that does not fit.
    """
    check_encoder(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            encoder = cast(nn.Module, smp_encoders.get_encoder(name, depth=DEPTH, weights=None))
    except (ValueError, RuntimeError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"encoder {name!r} has no {DEPTH} levels down to stride 32 ({error}); choose another one"
        ) from error
    if weights == "imagenet":
        encoder.load_state_dict(_imagenet_state(name))
    elif weights != "none":
        _load_file(encoder, name, Path(weights))
    return encoder


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation (RGB, 0..1) that the encoder's ImageNet weights were trained with; for timm's, those
    of the weights that its name stands for."""
    if name.startswith("tu-"):
        config = timm.models.get_pretrained_cfg(name[3:])
        return (tuple(config.mean), tuple(config.std)) if config is not None else IMAGENET
    return next((own for prefix, own in OWN_STATISTICS.items() if name.startswith(prefix)), IMAGENET)


def _imagenet_state(name: str) -> dict[str, torch.Tensor]:
    if name.startswith("tu-") and not timm.models.is_model_pretrained(name[3:]):
        raise UserError(f"timm has no ImageNet weights for {name!r}: use --encoder-weights none or a safetensors file")
    pretrained = None if name.startswith("tu-") else smp_encoders.encoders[name]["pretrained_settings"]
    if pretrained is not None and "imagenet" not in pretrained:
        raise UserError(f"encoder {name!r} has no ImageNet weights: use --encoder-weights none or a safetensors file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source = smp_encoders.get_encoder(name, depth=DEPTH, weights="imagenet")
    except Exception as error:  # the hub's client raises a different type for every way of being offline
        if not _is_download_failure(error):
            raise
        raise UserError(
            f"the ImageNet weights of {name!r} are not in the Hugging Face cache and could not be fetched "
            f"({type(error).__name__}); run once on a machine with network, or use --encoder-weights none or "
            "the path of a safetensors file of the encoder"
        ) from error
    return cast(dict[str, torch.Tensor], source.state_dict())


def _is_download_failure(error: BaseException) -> bool:
    clients = ("huggingface_hub", "requests", "httpx", "httpcore", "urllib3")
    return any(isinstance(link, OSError) or type(link).__module__.startswith(clients) for link in _causes(error))


def _causes(error: BaseException | None) -> list[BaseException]:
    links: list[BaseException] = []
    while error is not None and error not in links:
        links.append(error)
        error = error.__cause__ or error.__context__
    return links


def _load_file(encoder: nn.Module, name: str, path: Path) -> None:
    if not path.is_file():
        raise UserError(f"encoder weights {path} do not exist: give imagenet, none, or an existing safetensors file")
    try:
        state = load_file(path)
    except Exception as error:  # safetensors raises its own SafetensorError, which is not public on every version
        raise UserError(f"encoder weights {path} are not a readable safetensors file ({error})") from error
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"encoder weights {path} do not fit {name!r}: {first}") from error
