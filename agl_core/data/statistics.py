"""Mean and variance of the heights of each city, of all its pixels together."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from agl_core.data.store import Store

_M = Fraction(1, 100)  # metres per centimetre


@dataclass(frozen=True)
class CityStatistics:
    """Of the known pixels of some tiles, pooled by city; arrays by position in `cities`, which are the store's.

    count: (C,) float64, how many there are, 0 where a city has none; mean: (C,) float64 metres and variance: (C,)
    float64 m^2, of the whole population (divided by the count), both 0 where the count is.
    """

    cities: tuple[str, ...]
    count: NDArray[np.float64]
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]

    @staticmethod
    def of(store: Store, tiles: Sequence[int]) -> "CityStatistics":
        """Of the tiles at these positions in the store; each counts as often as it is named.

        From the sums in the index, without reading any tile; of whole numbers and with one rounding at the end, so that
        neither the order of the tiles nor a great mean changes a bit.
        """
        sums = {city: [0, 0, 0] for city in store.cities}
        for entry in (store.entries[number] for number in tiles):
            known = sums[entry.city]
            for place, value in enumerate((entry.known, entry.sum_cm, entry.sum_cm2)):
                known[place] += value
        moments = [_moments(*sums[city]) for city in store.cities]
        count, mean, variance = (np.array(column, np.float64) for column in zip(*moments, strict=True))
        return CityStatistics(tuple(store.cities), count, mean, variance)


def _moments(known: int, sum_cm: int, sum_cm2: int) -> tuple[float, float, float]:
    if not known:
        return 0.0, 0.0, 0.0
    variance = Fraction(known * sum_cm2 - sum_cm**2, known**2) * _M**2
    return float(known), float(Fraction(sum_cm, known) * _M), float(variance)
