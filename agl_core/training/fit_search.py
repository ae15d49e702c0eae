"""The largest micro-batch that fits, found in few tries: pure searches that are told what each try has found."""

from collections.abc import Callable

STRETCH = 4  # times the largest micro-batch so far, up to which a line through two points is believed


class TooFewCropsError(Exception):
    """A micro-batch of one crop is too small for the network's batch norm: begin with two."""


def largest_by_trying(fits: Callable[[int], bool], most: int, least: int = 1) -> int:
    """The largest micro-batch from `least` to `most` that fits, 0 if none does: doubling, then bisection.

    For memory that may be run out of, which a GPU's may: a try that does not fit costs nothing but its time.
    """
    low, high = 0, min(least, most)
    while fits(high):
        low = high
        if low == most:
            return most
        high = min(2 * high, most)
    while high - low > 1 and low:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def largest_by_line(peak: Callable[[int], int | None], limit: int, most: int, least: int = 1) -> int:
    """The largest micro-batch from `least` to `most` that fits `limit` bytes, 0 if none does.

    For memory that must not be run out of: nothing is tried that a straight line through the two largest tries before
    says does not fit, nor anything more than `STRETCH` times as large. The answer has been tried.

    Args:
        peak: tries a micro-batch; the most bytes that it took, or None if it came to the end of the memory.
        limit: bytes.
        most: largest micro-batch to try.
        least: smallest micro-batch to try.
    """
    known: list[tuple[int, int]] = []
    low, high, number = 0, most + 1, min(least, most)
    while low < number < high:
        found = peak(number)
        if found is None or found > limit:
            high = number
        else:
            low = number
            known.append((number, found))
        number = _next(known, limit, high, most)
    return low


def _next(known: list[tuple[int, int]], limit: int, high: int, most: int) -> int:
    """What to try after `known`, of which the last is the largest that fits; `high` does not. 0 or no more than the
    last of them if there is nothing left to try."""
    if not known:
        return 0
    low, taken = known[-1]
    if len(known) == 1:
        return min(2 * low, high - 1)
    earlier, before = known[-2]
    slope = max((taken - before) / (low - earlier), 1.0)
    middle = (low + high) // 2 if high <= most else most
    return min(low + int((limit - taken) / slope), STRETCH * low, middle)
