"""ImageNet weights from where the libraries have them: the one place that reaches for the network."""

import errno
import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import torch
from huggingface_hub import constants, get_session, try_to_load_from_cache
from huggingface_hub.utils.tqdm import disable_progress_bars
from safetensors import SafetensorError
from torch import Tensor

from agl_core.errors import UserError
from agl_core.model.encodercache import Source, source_of
from agl_core.model.encoders import library_encoder

PATIENCE = 5.0
"""Seconds to wait for the server's first answer. The hub's client tries for up to three quarters of a minute before it
says that there is no network."""
CLIENTS = ("huggingface_hub", "requests", "httpx", "httpcore", "urllib3", "urllib")
MENDABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)  # of this machine's disk


def fetch(name: str) -> tuple[dict[str, Tensor], str]:
    """The state of the encoder `name` with its ImageNet weights, as the libraries load them, and the commit of the
    repository that they are from (empty where that is not known).

    What the Hugging Face cache has is taken without a look at the network. Random numbers stay as they are.

    Raises:
        UserError: there are no ImageNet weights, or they cannot be fetched, or the file holds more than tensors.
        OSError: the disk is full or may not be written.
    """
    source = source_of(name)
    try:
        with torch.random.fork_rng(devices=[]), _data_only():
            state = _from_disk(name, source)
            if state is None:
                _check_network(name, source)
                if not sys.stderr.isatty():
                    disable_progress_bars()
                state = _load(name)
    except Exception as error:  # the hub's client raises a different type for every way of being offline
        links = _causes(error)
        if any(isinstance(link, pickle.UnpicklingError) for link in links):
            raise _failure(name, source, "the file holds more than tensors and is not read") from error
        if any(isinstance(link, SafetensorError) for link in links):
            raise _failure(name, source, f"{_found(source) or 'the file'} is damaged, remove it: {error}") from error
        if not _is_download_failure(error) or (isinstance(error, OSError) and error.errno in MENDABLE):
            raise
        raise _failure(name, source, _first_line(error)) from error
    return state, _commit(source)


def _load(name: str) -> dict[str, Tensor]:
    return dict(library_encoder(name, weights="imagenet").state_dict())


def _from_disk(name: str, source: Source) -> dict[str, Tensor] | None:
    """What was fetched before, by whomever; None if that is not all there."""
    if not _stored(source):
        return None
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True  # the environment was read at the import
    try:
        return _load(name)
    except Exception as error:
        if not _is_download_failure(error):
            raise
        return None
    finally:
        constants.HF_HUB_OFFLINE = before


def _stored(source: Source) -> bool:
    if source.url:
        return (Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(source.url).path).name).is_file()
    return _found(source) is not None


def _found(source: Source) -> Path | None:
    """The file of the weights in the Hugging Face cache."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        found = try_to_load_from_cache(source.repo, name, revision=source.revision or None)
        if isinstance(found, str):
            return Path(found)
    return None


def _commit(source: Source) -> str:
    """The commit is the name of a folder of the Hugging Face cache: .../snapshots/<commit>/model.safetensors."""
    found = None if source.url else _found(source)
    return found.parent.name if found is not None else ""


def _check_network(name: str, source: Source) -> None:
    address = urlsplit(source.url or constants.ENDPOINT)
    why = _no_answer(f"{address.scheme}://{address.netloc}")
    if why:
        raise _failure(name, source, why)


@cache
def _no_answer(server: str) -> str:
    """Why a server does not answer within `PATIENCE`; empty if it does. Asked once for all encoders."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(server, timeout=PATIENCE)
    except Exception as error:
        if not _is_download_failure(error):
            raise
        return f"{server} does not answer: {_first_line(error)}"
    return ""


@contextmanager
def _data_only() -> Iterator[None]:
    """Have torch read tensors only, whatever its caller asks for: some of timm's weights are pickle files, which could
    otherwise run any code."""
    names = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ[names[0]] = "1"
    try:
        yield
    finally:
        del os.environ[names[0]]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _failure(name: str, source: Source, why: str) -> UserError:
    return UserError(f"the ImageNet weights of {name!r} could not be fetched from {source} ({why})")


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _is_download_failure(error: BaseException) -> bool:
    return any(isinstance(link, OSError) or type(link).__module__.startswith(CLIENTS) for link in _causes(error))


def _causes(error: BaseException | None) -> list[BaseException]:
    links: list[BaseException] = []
    while error is not None and error not in links:
        links.append(error)
        error = error.__cause__ or error.__context__
    return links
