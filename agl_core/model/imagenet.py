"""`python launch.py weights`: fetch encoders' ImageNet weights into the cache, list what it has, verify it."""

import time
from collections.abc import Callable
from pathlib import Path

from agl_core.config import WeightsConfig
from agl_core.config.option import WEIGHTS_CACHE
from agl_core.errors import UserError
from agl_core.files import expanded, writable_folder
from agl_core.model.encodercache import (
    SUFFIX,
    advice,
    cache_file,
    cached,
    load,
    read,
    read_header,
    save,
    source_of,
)
from agl_core.model.encoders import check_encoder

__all__ = ["cached", "load", "obtain", "weights"]


def weights(config: WeightsConfig) -> None:
    """Fetch what of the asked-for encoders the cache does not have; without any, list what it has; with `check`, verify
    it and fetch nothing.

    Raises:
        UserError: some cannot be fetched, or are missing or damaged; said after all others were done.
    """
    folder = expanded(config.weights_cache, "--weights-cache")
    asked = list(dict.fromkeys(name.strip() for name in config.encoder.split(","))) if config.encoder else []
    if not asked and not config.check:
        _list(folder)
        return
    do = _check if config.check else _fetch
    _for_each(asked or _in(folder), lambda name: do(name, config.weights_cache), "right" if config.check else "fetched")
    if not asked and not _in(folder):
        print(f"{folder} has no weights")


def obtain(name: str, cache: str = WEIGHTS_CACHE) -> Path:
    """The file of the encoder's ImageNet weights in the cache, fetched if they are not there or not as they should be.

    Says on standard output what it fetches and how long that took.

    Raises:
        UserError: unknown encoder, no ImageNet weights for it, no network, or a folder that cannot be written to.
    """
    check_encoder(name)
    source = source_of(name)
    path = cached(name, cache)
    if path is not None:
        try:
            read(path, name, source)
            return path
        except UserError as error:
            print(f"{error}; it is fetched again", flush=True)
    # Only here: a run that finds its weights does without whatever speaks to the network.
    from agl_core.model.hub import fetch

    writable_folder(cache_file(name, cache).parent, "--weights-cache")
    print(f"fetching the ImageNet weights of {name} from {source}", flush=True)
    began = time.monotonic()
    try:
        state, commit = fetch(name)
    except UserError as error:
        raise UserError(f"{error}: {advice(name, cache)}") from error
    path = save(name, state, commit, cache)
    print(f"{name}: fetched {_size(path)} in {time.monotonic() - began:.1f} s into {path}", flush=True)
    return path


def _fetch(name: str, cache: str) -> None:
    check_encoder(name)
    before = _identity(cached(name, cache))
    path = obtain(name, cache)
    if _identity(path) == before:
        print(f"{name}: already there, {_size(path)}, {path}", flush=True)


def _identity(path: Path | None) -> int | None:
    """What changes when a file is replaced."""
    return path.stat().st_ino if path is not None else None


def _check(name: str, cache: str) -> None:
    check_encoder(name)
    path = cached(name, cache)
    if path is None:
        raise UserError(f"{cache_file(name, cache)} is missing: {advice(name, cache)}")
    load(name, cache)
    print(f"{name}: right, {_size(path)}, {path}", flush=True)


def _for_each(names: list[str], do: Callable[[str], None], wanted: str) -> None:
    failed: list[str] = []
    for name in names:
        try:
            do(name)
        except UserError as error:
            if len(names) == 1:
                raise
            print(f"{name}: not {wanted}: {error}", flush=True)
            failed.append(name)
    if failed:
        raise UserError(f"{len(failed)} of {len(names)} encoders' weights are not {wanted}: {', '.join(failed)}")


def _list(folder: Path) -> None:
    rows = [("encoder", "MB", "from", "file")]
    for name in _in(folder):
        path = folder / f"{name}{SUFFIX}"
        try:
            header = read_header(path)
            source, commit = header.get("source", ""), header.get("commit", "")
            origin = source if not commit or source.endswith(commit) else f"{source}@{commit}"
        except UserError:
            origin = "damaged: fetch it again"
        rows.append((name, f"{path.stat().st_size / 1e6:.1f}", origin, str(path)))
    if len(rows) == 1:
        print(f"{folder} has no weights; to fetch some: python launch.py weights --encoder NAME,...")
        return
    wide = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, size, origin, file in rows:
        print(f"{name:{wide[0]}}  {size:>{wide[1]}}  {origin:{wide[2]}}  {file}")


def _in(folder: Path) -> list[str]:
    """The encoders that the cache has a file of."""
    return sorted(path.name.removesuffix(SUFFIX) for path in folder.glob(f"*{SUFFIX}"))


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
