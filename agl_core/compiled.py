"""Inner loops as machine code."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


def machine_code(function: F) -> F:
    """Compile with numba, once per machine, for one thread; typed as the plain function.

    What is compiled is kept beside the source or in the user's cache folder. Where neither can be written to, as on
    compute nodes that see both read-only, each process compiles for itself, in about a second.
    """
    import numba

    try:
        return cast(F, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError as error:
        if "cache" not in str(error):
            raise
        return cast(F, numba.njit(nogil=True)(function))
