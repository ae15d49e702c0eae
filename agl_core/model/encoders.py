"""Encoders: any of segmentation-models-pytorch, any of timm as `tu-NAME`, and where their weights come from."""

import difflib
import warnings
from pathlib import Path
from typing import Any, cast

import timm
from safetensors.torch import load_file
from segmentation_models_pytorch import encoders as smp_encoders
from torch import nn

from agl_core.config.option import WEIGHTS_CACHE
from agl_core.errors import UserError
from agl_core.model.encodercache import load

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALVES = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
DPN = (124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3
OWN_STATISTICS = {"dpn": DPN, "inception": HALVES, "xception": HALVES, "timm-tf_efficientnet_lite": HALVES}
"""By the beginning of the name, what ImageNet weights of segmentation-models-pytorch were trained with where it is not
`IMAGENET`; all take RGB in 0..1. The library itself fetches its tables together with the weights, and a network that
is trained from elsewhere, or predicts without a connection, must see the same pixels."""
OWN_LAYERS: dict[str, dict[str, Any]] = {"tu-fbnetc_100": {"bn_eps": 1e-3}}
"""By timm's name without a tag, what timm builds differently for an encoder that gets ImageNet weights. The state does
not say it, and a network must be the same wherever its weights come from."""
DEPTH = 5


def encoder_names() -> list[str]:
    """Every valid encoder name of segmentation-models-pytorch; timm's are these with `tu-` before their own."""
    return sorted(smp_encoders.encoders)


def check_encoder(name: str) -> None:
    """Raise a `UserError` with the nearest valid names if there is no encoder of this name."""
    if name.startswith("tu-"):
        known = [f"tu-{model}" for model in timm.list_models(pretrained="." in name)]
        valid = timm.is_model(name[3:]) and ("." not in name or name in known)
    else:
        known, valid = encoder_names(), name in smp_encoders.encoders
    if not valid:
        near = difflib.get_close_matches(name, known, n=5, cutoff=0.4) or encoder_names()[:5]
        raise UserError(
            f"unknown encoder {name!r}: choose one of {', '.join(near)}, ...; {len(encoder_names())} names of "
            "segmentation-models-pytorch and every timm model as tu-NAME are valid"
        )


def build_encoder(name: str, weights: str, cache: str = WEIGHTS_CACHE) -> nn.Module:
    """Build the encoder `name` for 3-band images, five levels down to stride 32.

    `weights` is `imagenet` (from the folder `cache`, never from the network: see `agl_core.model.imagenet`), `none`,
    or the path of a safetensors file with the encoder's own state.

    Raises:
        UserError: unknown name, no ImageNet weights for it or none in the cache, or a file that does not fit.
    """
    check_encoder(name)
    state = load(name, cache) if weights == "imagenet" else None
    encoder = library_encoder(name)
    if state is not None:
        encoder.load_state_dict(state)
    elif weights != "none":
        _load_file(encoder, name, Path(weights))
    return encoder


def library_encoder(name: str, weights: str | None = None) -> nn.Module:
    """What segmentation-models-pytorch builds for an encoder's name; with `weights`, it fetches them.

    Raises:
        UserError: the encoder has other levels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            own = OWN_LAYERS.get(name.partition(".")[0], {})
            return cast(nn.Module, smp_encoders.get_encoder(name, depth=DEPTH, weights=weights, **own))
    except (ValueError, RuntimeError, TypeError, AttributeError, IndexError) as error:
        if weights is not None:
            raise
        raise UserError(
            f"encoder {name!r} has no {DEPTH} levels down to stride 32 ({error}); choose another one"
        ) from error


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation (RGB, 0..1) that the encoder's ImageNet weights were trained with; for timm's, those
    of the weights that its name stands for."""
    if name.startswith("tu-"):
        config = timm.models.get_pretrained_cfg(name[3:])
        return (tuple(config.mean), tuple(config.std)) if config is not None else IMAGENET
    return next((own for prefix, own in OWN_STATISTICS.items() if name.startswith(prefix)), IMAGENET)


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
