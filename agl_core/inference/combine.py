"""Several answers to one question become one: heights pixel by pixel, and poses; the same in whatever order they come.

Sums of floating-point numbers depend on their order. Here a pixel's values are sorted first, and the few numbers of a
pose are summed without rounding, so that each result is a function of the answers and their weights alone.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agl_core.compiled import machine_code
from agl_core.errors import UserError, valid_choice
from agl_core.geometry import Pose, angle_from_direction, direction

COMBINE = ("mean", "median")
"""How heights can be joined."""

_BLOCK = 2**16  # pixels worked on at a time: few enough to stay in the processor's cache
_HALF = 1e-9  # shares of the weight that differ by less are the same: 0.1 + 0.2 is as much as 0.3
_NO_DIRECTION = 1e-9  # length of a mean unit vector that is nothing but rounding


def combine_heights(
    heights: Sequence[NDArray[Any]],
    weights: Sequence[float] = (),
    how: str = "mean",
    spread: bool = False,
    threads: int = 1,
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Join the heights of several members, pixel by pixel.

    heights: arrays of one shape and of finite numbers, in any unit; weights: one for each, greater than 0, none: all
    alike; how: `mean`, or `median`: the height that half of the weight lies below, and where just half of it does, the
    middle between that one and the next. `threads` share the pixels, and change nothing else.

    Returns:
        The joined heights and, where `spread` is asked for, their standard deviation: the root of the weighted mean of
        the squared distances from the weighted mean. Both in the unit of `heights`; one member has the spread 0.
    """
    valid_choice("combine", how, list(COMBINE))
    parts = np.array(scaled_weights(weights, len(heights)))
    shape = heights[0].shape
    if any(other.shape != shape for other in heights):
        raise ValueError(f"heights are {', '.join(str(other.shape) for other in heights)}, expected one shape")
    joined = np.empty(shape)
    spreads = np.empty(shape if spread else 0)
    flat, flat_spreads = joined.reshape(-1), spreads.reshape(-1)
    sources = [np.ascontiguousarray(other).reshape(-1) for other in heights]

    def combine_block(start: int) -> None:
        inside = slice(start, start + _BLOCK)
        block = np.stack([source[inside] for source in sources]).astype(np.float64, copy=False)
        _compiled()(block, parts, how == "median", flat[inside], flat_spreads[inside])

    starts = range(0, flat.size, _BLOCK)
    if threads > 1 and len(starts) > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(combine_block, starts))
    else:
        for start in starts:
            combine_block(start)
    return joined, spreads if spread else None


def combine_poses(poses: Sequence[Pose], weights: Sequence[float] = ()) -> Pose:
    """The weighted mean of the scales, and the direction of the weighted mean of the unit vectors.

    Where the directions cancel, as two opposite ones do, there is no mean direction, and that of the member with the
    highest weight stands; of several such members that of the smallest angle.
    """
    parts = scaled_weights(weights, len(poses))
    total = math.fsum(parts)
    scale = math.fsum(part * pose.scale for part, pose in zip(parts, poses, strict=True)) / total
    steps = [direction(pose.angle) for pose in poses]
    dx, dy = (math.fsum(map(float.__mul__, parts, map(float, along))) for along in zip(*steps, strict=True))
    if math.hypot(dx, dy) <= _NO_DIRECTION * total:
        return Pose(scale, min(zip(parts, poses, strict=True), key=lambda item: (-item[0], item[1].angle))[1].angle)
    return Pose(scale, float(angle_from_direction(dx, dy)))


def scaled_weights(weights: Sequence[float], members: int) -> list[float]:
    """The weights of the members, scaled so that no sum of products overflows; exactly 1 each if they are alike.

    Whole numbers stay such, or halves, quarters, ... of such, so that sums of whole centimetres stay exact.

    Raises:
        UserError: their number is not that of the members, or one is not a finite number greater than 0.
    """
    if not members:
        raise ValueError("there is nothing to join")
    if weights and len(weights) != members:
        there = "is 1 member" if members == 1 else f"are {members} members"
        raise UserError(f"member_weights are {len(weights)} but there {there}: give a number for each, in their order")
    for weight in weights:
        if not 0 < weight < math.inf:
            raise UserError(f"a member's weight is {weight:g}: give numbers greater than 0 with --member-weights")
    if len(set(weights)) <= 1:
        return [1.0] * members
    exponent = math.frexp(max(weights))[1]
    return [math.ldexp(weight, 10 - exponent) for weight in weights]


def load_code() -> None:
    """Load and compile what `combine_heights` needs."""
    combine_heights([np.zeros(1), np.zeros(1)])


@cache
def _compiled() -> Callable[..., None]:
    # Here, since it takes a tenth of a second, which programs that combine nothing need not wait for.
    return machine_code(_combine_block)


def _combine_block(
    values: NDArray[np.float64],
    weights: NDArray[np.float64],
    median: bool,
    joined: NDArray[np.float64],
    spreads: NDArray[np.float64],
) -> None:
    """values: (members, pixels); weights: (members,); results: (pixels,), or (0,) for spreads that nobody wants."""
    members, pixels = values.shape
    value, weight = np.empty(members), np.empty(members)
    total = 0.0
    for part in np.sort(weights):
        total += part
    for pixel in range(pixels):
        for member in range(members):  # insertion sort by value, equal values by weight
            new, part = values[member, pixel] + 0.0, weights[member]  # + 0.0: there is one zero only
            place = member
            while place and (value[place - 1] > new or (value[place - 1] == new and weight[place - 1] > part)):
                value[place], weight[place] = value[place - 1], weight[place - 1]
                place -= 1
            value[place], weight[place] = new, part
        summed = 0.0
        for member in range(members):
            summed += weight[member] * value[member]
        mean = summed / total
        joined[pixel] = mean
        if spreads.size:
            squares = 0.0
            for member in range(members):
                squares += weight[member] * (value[member] - mean) ** 2
            spreads[pixel] = np.sqrt(squares / total)
        if median:
            below, middle = weight[0], 0
            while below < total * (0.5 - _HALF):
                middle += 1
                below += weight[middle]
            even = below <= total * (0.5 + _HALF) and middle + 1 < members
            joined[pixel] = 0.5 * (value[middle] + value[middle + 1]) if even else value[middle]
