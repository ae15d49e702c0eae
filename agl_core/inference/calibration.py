"""Corrections of what is predicted, city by city: a factor of the heights, their highest, a line of the scales."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from agl_core.config import EnsembleConfig, PredictConfig
from agl_core.data.tiles import HIGHEST_CM
from agl_core.errors import UserError
from agl_core.files import read_json
from agl_core.geometry import Pose
from agl_core.inference.members import max_agl
from agl_core.scoring.calibration import FACTORS, FORMAT, IDENTITY, OFFSETS, SLOPES

DEFAULT = "default"
"""In tables by city: all cities that they do not name."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class Corrections:
    """What is done to joined heights and poses before they are written.

    max_agl: highest height by city, metres; height_factor: what heights are multiplied with before that, by city;
    scale_lines: (a, b) by city, for scale' = max(0, a + b * scale * gsd) / gsd. Each may have a `default` for the
    cities that it does not name; those that are in no table are left as they are.
    """

    max_agl: Mapping[str, float] = field(default_factory=dict)
    height_factor: Mapping[str, float] = field(default_factory=dict)
    scale_lines: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for city, highest in self.max_agl.items():
            if not 0 < highest < math.inf:
                raise UserError(f"max_agl.{city} is {highest:g}: give metres, a number above 0")
        for city, factor in self.height_factor.items():
            if not FACTORS[0] <= factor <= FACTORS[1]:
                raise UserError(
                    f"height_factor.{city} is {factor:g}: give a number from {FACTORS[0]:g} to {FACTORS[1]:g}"
                )
        for city, (offset, slope) in self.scale_lines.items():
            if not (OFFSETS[0] <= offset <= OFFSETS[1] and SLOPES[0] <= slope <= SLOPES[1]):
                raise UserError(
                    f"scale_line of {city} is [{offset:g}, {slope:g}]: give an offset from {OFFSETS[0]:g} to "
                    f"{OFFSETS[1]:g} and a slope from {SLOPES[0]:g} to {SLOPES[1]:g}"
                )

    @property
    def by_city(self) -> bool:
        """Whether one has to know the city of an image."""
        return any(table.keys() - {DEFAULT} for table in (self.max_agl, self.height_factor, self.scale_lines))

    @property
    def by_gsd(self) -> bool:
        """Whether one has to know the gsd of an image."""
        return any(line[0] != 0 for line in self.scale_lines.values())

    def heights(self, metres: NDArray[np.float64], city: str | None) -> NDArray[np.float64]:
        """The corrected heights, metres, as high as uint16 centimetres can say at most; of any shape."""
        highest = min(_of(self.max_agl, city, math.inf), HIGHEST_CM / 100)
        return _clipped(metres, _of(self.height_factor, city, 1.0), highest)

    def spread(self, metres: NDArray[np.float64], city: str | None) -> NDArray[np.float64]:
        """The standard deviation of heights that are multiplied with the city's factor, as high as can be kept."""
        return _clipped(metres, _of(self.height_factor, city, 1.0), HIGHEST_CM / 100)

    def pose(self, pose: Pose, city: str | None, gsd: float | None) -> Pose:
        """The corrected pose; `gsd`: metres per pixel, None where it is not known and not needed (see `by_gsd`)."""
        offset, slope = _of(self.scale_lines, city, IDENTITY)
        if (offset, slope) == IDENTITY:
            return pose
        if not offset:
            return Pose(slope * pose.scale, pose.angle)
        if gsd is None:
            raise ValueError("the gsd of an image whose scale is to be corrected is not known")
        return Pose(max(0.0, offset + slope * pose.scale * gsd) / gsd, pose.angle)

    def as_settings(self) -> dict[str, Any]:
        """JSON values that differ where other predictions come out; without the tables that are empty."""
        tables = {
            "max_agl": dict(sorted(self.max_agl.items())),
            "height_factor": dict(sorted(self.height_factor.items())),
            "scale_lines": {city: list(line) for city, line in sorted(self.scale_lines.items())},
        }
        return {name: table for name, table in tables.items() if table}


def corrections(config: PredictConfig | EnsembleConfig, metadata: Sequence[Mapping[str, Any]] = ()) -> Corrections:
    """What `config` asks for, and what the weights (their `metadata`) were trained with.

    Of heights of several weights the highest of a city counts. A calibration file comes next, and what is given as a
    key wins, city by city.

    Raises:
        UserError: a calibration file that is missing, damaged or has a number that cannot be right, or such a key.
    """
    file = read_calibration(Path(config.calibration)) if config.calibration else Corrections()
    return Corrections(
        {**_highest([max_agl(one) for one in metadata]), **config.max_agl},
        {**file.height_factor, **config.height_factor},
        file.scale_lines,
    )


def check_tables(config: PredictConfig, cities: Iterable[str]) -> None:
    """Raise a `UserError` if a key of `config` is for a city that is none of `cities`: it would change nothing.

    cities: those of the weights and of the images.
    """
    known = sorted(set(cities) - {""})
    for key, table in (("max_agl", config.max_agl), ("height_factor", config.height_factor)):
        if strange := sorted(table.keys() - {DEFAULT, *known}):
            raise UserError(
                f"{key}.{strange[0]} is given, but neither the weights nor the images have a city {strange[0]!r}: give "
                f"it for one of {', '.join(known)}, or {key}.{DEFAULT} for all that have no value of their own"
            )


def read_calibration(path: Path) -> Corrections:
    """What `evaluate --calibration` has written, every number checked.

    Raises:
        UserError: one sentence that says what is wrong with the file.
    """
    content = read_json(path)
    cities = content.get("cities") if isinstance(content, dict) and content.get("format") == FORMAT else None
    if not isinstance(cities, dict) or not all(isinstance(entry, dict) for entry in cities.values()):
        raise UserError(f"{path} is no calibration: give what evaluate has written with --calibration")
    factors, lines = {}, {}
    for city, entry in cities.items():
        factor, line = entry.get("height_factor", 1.0), entry.get("scale_line", list(IDENTITY))
        if not (_number(factor) and isinstance(line, list) and len(line) == 2 and all(map(_number, line))):
            raise UserError(
                f"{path}: height_factor of {city} must be a number and scale_line two numbers [a, b]; write it anew "
                "with evaluate --calibration"
            )
        factors[city], lines[city] = float(factor), (float(line[0]), float(line[1]))
    try:
        return Corrections({}, factors, lines)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _highest(tables: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The highest value of each city in tables that may have a default."""
    cities = sorted({city for table in tables for city in table})
    found = {city: [_of(table, city, None) for table in tables] for city in cities}
    # A city that one table has nothing about, not even a default, is as high as the others say.
    return {city: max(value for value in values if value is not None) for city, values in found.items()}


def _clipped(metres: NDArray[np.float64], factor: float, highest: float) -> NDArray[np.float64]:
    scaled = metres * factor
    return np.clip(scaled, 0.0, highest, out=scaled)


def _of(table: Mapping[str, Value], city: str | None, otherwise: Any) -> Any:
    return table.get(city, table.get(DEFAULT, otherwise)) if city is not None else table.get(DEFAULT, otherwise)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
