"""Axes: from values to pixels, and the ticks that a person would choose."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_TIME_STEPS = (
    1, 2, 5, 10, 20, 30, _MINUTE, 2 * _MINUTE, 5 * _MINUTE, 10 * _MINUTE, 20 * _MINUTE, 30 * _MINUTE, _HOUR, 2 * _HOUR,
    3 * _HOUR, 6 * _HOUR, 12 * _HOUR, _DAY, 2 * _DAY, 3 * _DAY, 7 * _DAY, 14 * _DAY, 28 * _DAY, 56 * _DAY,
    112 * _DAY, 365 * _DAY, 3650 * _DAY,
)  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` on pixels from `begin` to `end`; `log`: by powers of ten (both are above 0)."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value; what lies outside is drawn at the border."""
        value = min(max(value, self.low), self.high)
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        share = (value - low) / (high - low)
        return self.begin + share * (self.end - self.begin)


def linear(low: float, high: float, begin: float, end: float, most: int = 6) -> tuple[Scale, list[float]]:
    """A scale that begins and ends at ticks, and these."""
    if not high - low > 1e-12 * max(abs(low), abs(high)) + 1e-100:
        margin = abs(high) * 0.1 + 1e-9 if abs(high) > 1e-9 else 1.0
        low, high = low - margin, high + margin
    step = step_of(high - low, most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Scale(first * step, last * step, begin, end), [_clean(n * step, step) for n in range(first, last + 1)]


def within(low: float, high: float, begin: float, end: float, most: int = 8) -> tuple[Scale, list[float]]:
    """A scale of exactly these ends, and the ticks inside it."""
    if not high - low > 1e-12 * abs(low) + 1e-100:
        high = low + max(1.0, abs(low))
    step = step_of(high - low, most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Scale(low, high, begin, end), [_clean(n * step, step) for n in range(first, last + 1)]


def logarithmic(low: float, high: float, begin: float, end: float) -> tuple[Scale, list[float]]:
    """A scale of powers of ten that holds all values, which are above 0, and its ticks: 1, 2, 5 times powers where
    there are few of these."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    if last - first > 3:
        every = math.ceil((last - first) / 6)
        return Scale(10.0**first, 10.0**last, begin, end, True), [10.0**n for n in range(first, last + 1, every)]
    marks = [times * 10.0**n for n in range(first, last + 1) for times in (1, 2, 5)]
    bottom = max((mark for mark in marks if mark <= low * (1 + 1e-9)), default=10.0**first)
    top = min((mark for mark in marks if mark >= high * (1 - 1e-9)), default=10.0**last)
    top = top if top > bottom else 10 * bottom
    return Scale(bottom, top, begin, end, True), [mark for mark in marks if bottom <= mark <= top * (1 + 1e-9)]


def moments(low: float, high: float, begin: float, end: float, most: int = 7) -> tuple[Scale, list[tuple[float, str]]]:
    """A scale of times (seconds since 1970), its ticks at round times (UTC) with their texts."""
    high = max(high, low + 1)
    step = next((step for step in _TIME_STEPS if (high - low) / step <= most), _TIME_STEPS[-1])
    first = math.ceil(low / step) * step
    ticks: list[tuple[float, str]] = []
    before = ""
    for value in range(first, math.floor(high) + 1, step):
        moment = _moment(value)
        day = f"{moment.day} {moment:%b}"
        clock = f"{moment:%H:%M:%S}" if step < _MINUTE else f"{moment:%H:%M}"
        text = day if step >= _DAY or (moment.hour == moment.minute == moment.second == 0) else clock
        ticks.append((float(value), text if text == day or day == before or before else f"{day}, {clock}"))
        before = day
    return Scale(low, high, begin, end), ticks


def step_of(extent: float, most: int) -> float:
    """The smallest of 1, 2, 5 times a power of ten of which at most `most` go into `extent`."""
    power = 10.0 ** math.floor(math.log10(extent / most))
    return next(times * power for times in (1, 2, 5, 10) if times * power * most >= extent * (1 - 1e-9))


def told(value: float, ticks: Sequence[float] = ()) -> str:
    """A tick's number: as many digits as its neighbours take; thousands with k, large and small ones by powers."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-4:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e") if not ticks else f"{value:.2g}"
    if abs(value) >= 10000 and value % 1000 == 0:
        return f"{value / 1000:g}k"
    return f"{value:.6g}"


def _clean(value: float, step: float) -> float:
    """Without what adding steps leaves behind the digits of the step."""
    return round(value, max(0, 2 - math.floor(math.log10(step))))


def _moment(seconds: float) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)


def utc(seconds: float, form: str = "%Y-%m-%d %H:%M") -> str:
    """A moment in words, UTC; what lies outside of the calendar is a number."""
    try:
        return _moment(seconds).strftime(form)
    except (OverflowError, ValueError):
        return f"{seconds:g} s"
