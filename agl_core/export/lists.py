"""Names in a sentence."""

from collections.abc import Sequence

_MOST = 20


def told(names: Sequence[str]) -> str:
    """The names, the first twenty of them, with commas between."""
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more
