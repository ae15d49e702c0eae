"""Machine code of the world's inner loops, kept on disk and renewed when any of its sources changes."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import CellType, FunctionType
from typing import Any, TypeVar, cast

from agl_core.compiled import machine_code

F = TypeVar("F", bound=Callable[..., Any])

SOURCES = ("scene.py", "surface.py", "walk.py", "render.py")
"""The modules whose compiled functions call each other."""


def sources_digest() -> str:
    """Return a digest of all sources that end up in the machine code."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()


_DIGEST = sources_digest()


def compiled(function: F) -> F:
    """Compile with numba, once per machine; typed as the plain function.

    numba renews what it keeps on disk when the function's own file changes, but not when a function that it calls
    changes in another file. It also tells functions apart by the values they close over: so each gets the digest
    of all sources as one more such value.
    """
    plain = cast(FunctionType, function)
    code = plain.__code__
    assert not code.co_freevars, "a compiled function closes over nothing"
    keyed = FunctionType(
        code.replace(co_freevars=("sources",)),
        plain.__globals__,
        plain.__name__,
        plain.__defaults__,
        (CellType(_DIGEST),),
    )
    keyed.__module__, keyed.__qualname__, keyed.__doc__ = plain.__module__, plain.__qualname__, plain.__doc__
    keyed.__annotations__ = plain.__annotations__
    return cast(F, machine_code(keyed))
