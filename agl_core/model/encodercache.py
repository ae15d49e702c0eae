"""The project's own cache of ImageNet weights: a safetensors file of each encoder, with a checksum.

Compute nodes have no network, and training must start from the same numbers wherever it starts. So the weights are
fetched once (`agl_core.model.imagenet`) and kept as the state of the encoder that `build_encoder` makes, beside where
they come from. Whoever reads them never reaches for the network.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import xxhash
from safetensors import safe_open
from segmentation_models_pytorch import encoders as smp_encoders
from torch import Tensor

from agl_core.config.option import WEIGHTS_CACHE
from agl_core.errors import UserError
from agl_core.files import expanded, whole_file
from agl_core.model.tensors import save_tensors

FORMAT = "agl-encoder-1"
SUFFIX = ".imagenet.safetensors"
ELSEWHERE = "use --encoder-weights none or the path of a safetensors file of the encoder"


@dataclass(frozen=True)
class Source:
    """Where the libraries have an encoder's ImageNet weights: a repository of the Hugging Face hub, or for a few of
    timm's an address elsewhere."""

    repo: str = ""
    revision: str = ""
    """The commit that the library asks for; empty: the newest."""
    url: str = ""

    def __str__(self) -> str:
        return self.url or "@".join(filter(None, (self.repo, self.revision)))


def source_of(name: str) -> Source:
    """Where the ImageNet weights of the encoder `name`, which must exist, come from.

    Raises:
        UserError: there are none.
    """
    if name.startswith("tu-"):
        config = timm.models.get_pretrained_cfg(name[3:])
        if config is None or not config.has_weights:
            raise UserError(f"timm has no ImageNet weights for {name!r}: {ELSEWHERE}")
        repo, _, revision = (config.hf_hub_id or "").partition("@")
        return Source(repo, revision) if repo else Source(url=str(config.url))
    pretrained = smp_encoders.encoders[name]["pretrained_settings"]
    if "imagenet" not in pretrained:
        raise UserError(f"encoder {name!r} has no ImageNet weights: {ELSEWHERE}")
    return Source(pretrained["imagenet"]["repo_id"], pretrained["imagenet"]["revision"])


def cache_file(name: str, cache: str = WEIGHTS_CACHE) -> Path:
    """Where in the cache the ImageNet weights of the encoder `name` belong."""
    return expanded(cache, "--weights-cache") / f"{name}{SUFFIX}"


def cached(name: str, cache: str = WEIGHTS_CACHE) -> Path | None:
    """The file of the encoder's ImageNet weights, which may be damaged; None if the cache has none."""
    path = cache_file(name, cache)
    return path if path.is_file() else None


def load(name: str, cache: str = WEIGHTS_CACHE) -> dict[str, Tensor]:
    """The ImageNet state of the encoder `name` from the cache, verified; never touches the network.

    Raises:
        UserError: there are no such weights, or the cache does not have them, or has others, or damaged ones.
    """
    source = source_of(name)
    path = cached(name, cache)
    try:
        if path is None:
            raise UserError(f"the ImageNet weights of {name!r} are not in {cache_file(name, cache).parent}")
        return read(path, name, source)
    except UserError as error:
        raise UserError(f"{error}: {advice(name, cache)}") from error


def advice(name: str, cache: str) -> str:
    """What a user can do who has no weights of the encoder `name`."""
    where = "" if cache == WEIGHTS_CACHE else f" --weights-cache {cache}"
    return (
        f"give `python launch.py weights --encoder {name}{where}` on a machine with network that has the same folder, "
        f"or {ELSEWHERE}"
    )


def read(path: Path, name: str, source: Source) -> dict[str, Tensor]:
    """The state of a file of the cache, verified: of this encoder, from this source, with the right checksum.

    Raises:
        UserError: what is wrong with it; not what can be done about it.
    """
    header, state = _read(path)
    if header.get("encoder") != name or header.get("source") != str(source):
        raise UserError(
            f"{path} has the weights of {header.get('encoder')!r} from {header.get('source')}, but the libraries "
            f"that are installed here take those of {name!r} from {source}"
        )
    if header.get("checksum") != checksum(state):
        raise UserError(f"{path} is damaged (its checksum is wrong)")
    return state


def read_header(path: Path) -> dict[str, str]:
    """What a file of the cache says about itself: format, encoder, source, commit, versions, checksum.

    Raises:
        UserError: it is damaged, or not of this project.
    """
    return _read(path, header_only=True)[0]


def save(name: str, state: Mapping[str, Tensor], commit: str, cache: str = WEIGHTS_CACHE) -> Path:
    """Write an encoder's state into the cache, whole or not at all, and read back; returns the file.

    commit: of the source's repository, as far as it is known. Processes that write the same at once do no harm.
    """
    path = cache_file(name, cache)
    header = {
        "format": FORMAT,
        "encoder": name,
        "source": str(source_of(name)),
        "commit": commit,
        "timm": timm.__version__,
        "segmentation-models-pytorch": smp_version(),
        "checksum": checksum(state),
    }
    with whole_file(path) as aside:
        save_tensors(aside, dict(state), header)
        _, written = _read(aside)
        if checksum(written) != header["checksum"]:
            raise OSError(f"{path} was written and reads back as something else")
    return path


def checksum(state: Mapping[str, Tensor]) -> str:
    """XXH3 (128 bits) of names, types, shapes and bytes of all tensors, in the order of their names."""
    hashed = xxhash.xxh3_128()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        hashed.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return f"xxh3-128:{hashed.hexdigest()}"


def smp_version() -> str:
    """Version of segmentation-models-pytorch."""
    import segmentation_models_pytorch

    return str(segmentation_models_pytorch.__version__)


def _read(path: Path, header_only: bool = False) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
            names = [] if header_only else list(file.keys())
            state = {name: file.get_tensor(name) for name in names}
    except Exception as error:  # safetensors raises its own SafetensorError, which is not public on every version
        raise UserError(f"{path} is not a readable safetensors file ({error})") from error
    if header.get("format") != FORMAT:
        raise UserError(f"{path} is not of this project's cache (no format {FORMAT!r})")
    return header, state
