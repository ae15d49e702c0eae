"""Inner loops as machine code."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


def machine_code(function: F) -> F:
    """Compile with numba, once per machine, for one thread; typed as the plain function.

    What is compiled is kept beside the source or in the user's cache folder. Where neither can be written to, as on
    compute nodes that see both read-only, or what is kept there is damaged, each process compiles for itself, in about
    a second.
    """
    import numba

    try:
        compiled: Any = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError as error:
        if "cache" not in str(error):
            raise
        return cast(F, numba.njit(nogil=True)(function))
    compiled._cache = _Kept(compiled._cache)
    return cast(F, compiled)


class _Kept:
    """numba's files of what it has compiled, of which nothing that goes wrong ends the program: a full disk, a quota,
    a file that was cut off."""

    def __init__(self, files: Any) -> None:
        self._files = files

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)

    def load_overload(self, *arguments: Any) -> Any:
        """What is kept for a signature; None if there is nothing that can be read."""
        try:
            return self._files.load_overload(*arguments)
        except Exception:  # whatever comes of reading a damaged file
            with suppress(Exception):
                self._files.flush()  # or it would be found damaged for ever
            return None

    def save_overload(self, *arguments: Any) -> None:
        """Keep what was compiled, if that is possible."""
        with suppress(Exception):
            self._files.save_overload(*arguments)
