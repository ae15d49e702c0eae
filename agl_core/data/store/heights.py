"""What the index of the store knows of the heights of a tile, exactly."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agl_core.data.store.layout import StoreEntry

# A block stays in the CPU's cache, and its sum of squares, at most 2^16 * 2^32, below 2^53: exact in float64, of which
# products are added up faster than of integers.
_BLOCK = 1 << 16


class Heights(NamedTuple):
    """Of the known pixels of a tile or a part of one; the fields are those of `StoreEntry` of the same names."""

    highest: float = 0.0
    """The highest, metres; 0 where none is known."""
    known: int = 0
    """Their number."""
    sum_cm: int = 0
    """Sum of their centimetres."""
    sum_cm2: int = 0
    """Sum of the squares of their centimetres."""

    def joined(self, other: "Heights") -> "Heights":
        """Those of two parts of one tile together."""
        sums = (a + b for a, b in zip(self[1:], other[1:], strict=True))
        return Heights(max(self.highest, other.highest), *sums)


def heights_of(agl_cm: NDArray[np.uint16]) -> Heights:
    """Look at (H, W) uint16 centimetres, 65535 where unknown; at most 2^31 pixels."""
    values = np.ascontiguousarray(agl_cm).reshape(-1)
    # Of one more than the height, which is 0 where it is unknown (65535 + 1): no mask is needed.
    most = known = total = squares = 0
    for start in range(0, values.size, _BLOCK):
        raised = values[start : start + _BLOCK] + np.uint16(1)
        exact = raised.astype(np.float64)
        most = max(most, int(raised.max()))
        known += int(np.count_nonzero(raised))
        total += int(exact.sum())
        squares += int(np.einsum("i,i->", exact, exact))  # not by BLAS, which would start threads of its own
    return Heights(max(most - 1, 0) / 100, known, total - known, squares - 2 * total + known)


def with_heights(entry: StoreEntry, agl_cm: NDArray[np.uint16]) -> StoreEntry:
    """The entry with everything filled in that `heights_of` says."""
    return replace(entry, **heights_of(agl_cm)._asdict())
