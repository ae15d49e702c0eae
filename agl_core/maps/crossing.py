"""Which surface stands at each pixel of the ground: where the line of view on which it is seen crosses the heights.

What compiled code calls stands in the same file, as numba compiles again what it has kept of a file only if that file
changes; so whoever changes a number in `walks` that this file takes from there must touch this file as well.
"""

import numpy as np
from numpy.typing import NDArray

from agl_core.compiled import machine_code
from agl_core.maps.walks import COLUMNS, GRAIN, JOINED, NOTHING, Walk

# A gap that is wider than `JOINED`, up to this, is of one surface if the next gap is about as wide: a roof that slopes
# away from the camera.
_STEEP, _ALIKE = 4.0, 1.5


@machine_code
def _height(heights: NDArray[np.float32], row: int, column: int, aside: float, joined: float) -> float:
    """Centimetres at `aside` of the way from a pixel to the next in its row; `NOTHING` where unknown.

    Interpolated if both differ by no more than `joined`, or else those of the nearer. Beside the image its outermost
    pixels go on, as a line that leaves it between two samples has to be followed up to the border: what is found
    further out does not count (`_inside`).
    """
    rows, columns = heights.shape
    row = min(max(row, 0), rows - 1)
    here = float(heights[row, min(max(column, 0), columns - 1)])
    there = float(heights[row, min(max(column + 1, 0), columns - 1)])
    if aside == 0.0:
        return here
    if abs(there - here) <= joined:
        return here + aside * (there - here)
    return here if aside < 0.5 else there


@machine_code
def _inside(place: int, more: float, size: int) -> bool:
    """Whether `more` than a row (column) lies in the image, whose outermost pixels reach half a pixel outside."""
    return -0.5 - place <= more <= size - 0.5 - place


@machine_code
def _change(shifts: NDArray[np.int64], asides: NDArray[np.float64], m: int) -> float:
    """Columns from sample m of a walk to the next."""
    return float(shifts[m + 2] - shifts[m + 1] + asides[m + 2] - asides[m + 1])


@machine_code
def _stands(
    heights: NDArray[np.float32],
    walk: Walk,
    y: int,
    x: int,
    m: int,
    shifts: NDArray[np.int64],
    asides: NDArray[np.float64],
    share: float,
) -> bool:
    """Whether the image has the place on the line from (y, x) that is so much of the way from sample m to the next."""
    rows, columns = heights.shape
    aside = asides[m + 1] + share * _change(shifts, asides, m)
    return _inside(y - walk.sign * m, -walk.sign * share, rows) and _inside(x + shifts[m + 1], aside, columns)


@machine_code
def _heights(
    heights: NDArray[np.float32],
    row: int,
    column: int,
    aside: float,
    joined: float,
    found: NDArray[np.float32],
    first: int,
) -> None:
    """As `_height`, of `COLUMNS` places side by side, into `found` from `first` on."""
    rows, columns = heights.shape
    row = min(max(row, 0), rows - 1)
    if column < 0 or column + COLUMNS >= columns:
        for k in range(COLUMNS):
            found[first + k] = _height(heights, row, column + k, aside, joined)
        return
    share, most = np.float32(aside), np.float32(joined)
    # Unsigned, these need not be looked at for whether they count from the end.
    line, start, to = np.uint64(row), np.uint64(column), np.uint64(first)
    if aside == 0.0:
        for k in range(COLUMNS):
            found[to + np.uint64(k)] = heights[line, start + np.uint64(k)]
    elif aside < 0.5:
        for k in range(COLUMNS):
            here, there = heights[line, start + np.uint64(k)], heights[line, start + np.uint64(k + 1)]
            more = there - here
            found[to + np.uint64(k)] = here + (share * more if abs(more) <= most else np.float32(0))
    else:
        for k in range(COLUMNS):
            here, there = heights[line, start + np.uint64(k)], heights[line, start + np.uint64(k + 1)]
            more = there - here
            found[to + np.uint64(k)] = here + share * more if abs(more) <= most else there


@machine_code
def _end(
    heights: NDArray[np.float32],
    walk: Walk,
    y: int,
    x: int,
    m: int,
    shifts: NDArray[np.int64],
    asides: NDArray[np.float64],
    near: float,
    far: float,
) -> float:
    """Which of samples m (`near`, centimetres) and m + 1 (`far`) of its walk, seemingly of two surfaces, stands at
    pixel (y, x): the share of the far one in it, or -1."""
    near_beyond, far_beyond = near * walk.per_cm - m * walk.step, far * walk.per_cm - (m + 1) * walk.step
    half, gap = 0.5 * walk.step, near_beyond - far_beyond
    both = near >= 0.0 and far >= 0.0
    steep = both and far_beyond <= 0.0 <= near_beyond and gap <= walk.step + _STEEP
    near_may, far_may = near >= 0.0 and abs(near_beyond) <= half, far >= 0.0 and abs(far_beyond) <= half
    # Not the samples, but the places where the line has their heights must be in the image.
    steep = steep and _stands(heights, walk, y, x, m, shifts, asides, near_beyond / gap)
    near_may = near_may and _stands(heights, walk, y, x, m, shifts, asides, near_beyond / walk.step)
    far_may = far_may and _stands(heights, walk, y, x, m, shifts, asides, 1.0 + far_beyond / walk.step)
    before = after = NOTHING
    if steep or (near_may and near_beyond < 0.0):
        before = _height(heights, y - walk.sign * (m - 1), x + shifts[m], asides[m], walk.joined)
    if steep or (far_may and far_beyond > 0.0):
        after = _height(heights, y - walk.sign * (m + 2), x + shifts[m + 3], asides[m + 3], walk.joined)
    if steep:
        # One surface after all, if it goes on like that on one side at least.
        drop = near - far
        if (before >= 0.0 and drop <= _ALIKE * (before - near)) or (after >= 0.0 and drop <= _ALIKE * (far - after)):
            return near_beyond / gap
    # The last pixel of a surface reaches half a pixel beyond its middle; one without neighbours does to both sides.
    share, apart = -1.0, (walk.step + JOINED) / max(walk.per_cm, 1e-30)
    if near_may and (near_beyond >= 0.0 or before < 0.0 or abs(before - near) > apart):
        share = 0.0
    far_ends = far_beyond <= 0.0 or after < 0.0 or abs(after - far) > apart
    if far_may and far_ends and (far > near or share < 0.0):
        share = 1.0
    return share


@machine_code
def _cross(
    samples: NDArray[np.float32],
    near_at: int,
    far_at: int,
    m: int,
    per_cm: float,
    step: float,
    places: NDArray[np.int32],
    shares: NDArray[np.float32],
    ends: NDArray[np.int32],
) -> tuple[int, int]:
    """Where a surface between samples m and m + 1 stands at a pixel at which nothing has been found yet, note m in
    `places` and the share of the far one in `shares`; where a surface may end there, set `ends`. Without branches.

    Returns how many have something now, and in how many a surface may end.
    """
    width, half, most, least = (
        np.float32(per_cm),
        np.float32(0.5 * step),
        np.float32(step + JOINED),
        np.float32(-JOINED),
    )
    near_way, far_way, steep = np.float32(m * step), np.float32((m + 1) * step), np.float32(step + _STEEP)
    near_first, far_first, here = np.uint64(near_at), np.uint64(far_at), np.int32(m)
    done, ending, zero, one = np.int32(0), np.int32(0), np.float32(0), np.float32(1)
    for n in range(COLUMNS):
        k = np.uint64(n)
        near, far = samples[near_first + k], samples[far_first + k]
        # By how much both stand beyond the pixel.
        near_beyond, far_beyond = near * width - near_way, far * width - far_way
        gap = near_beyond - far_beyond
        free = places[k] < 0
        surface = (near >= zero) & (far >= zero) & (gap >= least) & (gap <= most)
        crosses = ((near_beyond >= zero) | (far_beyond >= zero)) & ((near_beyond <= zero) | (far_beyond <= zero))
        # What a surface's last pixels may reach, and what may be a steep surface.
        may = (abs(near_beyond) <= half) | (abs(far_beyond) <= half) | (crosses & (gap >= zero) & (gap <= steep))
        claims = free & surface & crosses
        share = near_beyond / (gap if gap != zero else one)
        places[k] = here if claims else places[k]
        shares[k] = share if claims else shares[k]
        end = np.int32(1) if free & may & (not surface) else np.int32(0)
        ends[k] = end
        # Sums of int32 are int64, with which half as many would be added at once.
        ending = np.int32(ending + end)
        done = np.int32(done + (np.int32(1) if claims | (not free) else np.int32(0)))
    return int(done), int(ending)


@machine_code
def _withdraw(
    heights: NDArray[np.float32],
    walk: Walk,
    y: int,
    x: int,
    m: int,
    shifts: NDArray[np.int64],
    asides: NDArray[np.float64],
    places: NDArray[np.int32],
    shares: NDArray[np.float32],
) -> int:
    """Forget what has been found between samples m and m + 1 where the image is not; returns in how many places."""
    count = 0
    for k in range(COLUMNS):
        if places[k] == m and not _stands(heights, walk, y, x + k, m, shifts, asides, float(shares[k])):
            places[k], shares[k] = -1, 0.0
            count += 1
    return count


@machine_code
def _level(heights: NDArray[np.float32], row: int, column: int) -> bool:
    """Whether `COLUMNS` pixels side by side, all inside, have the height 0."""
    if row < 0 or row >= heights.shape[0] or column < 0 or column + COLUMNS > heights.shape[1]:
        return False
    raised, line, start = np.int32(0), np.uint64(row), np.uint64(column)
    for k in range(COLUMNS):
        other = heights[line, start + np.uint64(k)] != np.float32(0)
        raised = np.int32(raised + (np.int32(1) if other else np.int32(0)))
    return bool(raised == 0)


@machine_code
def find(
    heights: NDArray[np.float32],
    reached: NDArray[np.int32],
    walk: Walk,
    shifts: NDArray[np.int64],
    asides: NDArray[np.float64],
    top: int,
    left: int,
    places: NDArray[np.int32],
    shares: NDArray[np.float32],
) -> None:
    """Find what stands at every pixel of a part of the canvas, the first of which is (top, left) of the image.

    reached: `crests`; shifts, asides: `shifts_of`. places (h, w) get the sample that stands there, the tallest, or -1,
    and shares the share of the next sample in it; w is a multiple of `COLUMNS`.
    """
    rows, columns = heights.shape
    samples = np.empty(2 * COLUMNS, np.float32)  # of two neighbouring rows
    # Of as many pixels side by side: what has been found, and where a surface may end.
    found, parts = np.empty(COLUMNS, np.int32), np.empty(COLUMNS, np.float32)
    ends = np.empty(COLUMNS, np.int32)
    for i in range(places.shape[0]):
        y = i + top
        # From the last sample outside, as the first inside reaches half a pixel towards it.
        least = max(0, y - rows if walk.sign > 0 else -y - 1)
        last = min(len(shifts) - 4, y if walk.sign > 0 else rows - 1 - y)
        for start in range(0, places.shape[1], COLUMNS):
            x = start + left
            found[:] = -1
            parts[:] = 0
            done, beyond, held = 0, False, -1
            for m in range(last, least - 1, -1):
                row, column = y - walk.sign * m, x + shifts[m + 1]
                # Without this sample or the next being high enough, nothing between them stands here.
                inside = 0 <= row < rows and -COLUMNS <= column < columns
                here = inside and reached[row, (column + COLUMNS) // GRAIN] >= m
                between, beyond = here or beyond, here
                if not between:
                    continue
                if m == 0 and done == 0 and _level(heights, y, x):
                    found[:] = 0
                    break
                near_at = (m & 1) * COLUMNS
                far_at = COLUMNS - near_at
                far_row, far_column = row - walk.sign, x + shifts[m + 2]
                if held != m + 1:
                    _heights(heights, far_row, far_column, asides[m + 2], walk.joined, samples, far_at)
                _heights(heights, row, column, asides[m + 1], walk.joined, samples, near_at)
                held = m
                done, ending = _cross(samples, near_at, far_at, m, walk.per_cm, walk.step, found, parts, ends)
                crosses_row = min(row, far_row) < 0 or max(row, far_row) >= rows
                if crosses_row or min(column, far_column) < 0 or max(column, far_column) + COLUMNS >= columns:
                    done -= _withdraw(heights, walk, y, x, m, shifts, asides, found, parts)
                if ending:
                    for k in range(COLUMNS):
                        if ends[k]:
                            near, far = samples[near_at + k], samples[far_at + k]
                            share = _end(heights, walk, y, x + k, m, shifts, asides, near, far)
                            if share >= 0.0:
                                found[k], parts[k] = m, share
                                done += 1
                if done == COLUMNS:
                    break
            line, to = np.uint64(i), np.uint64(start)
            for n in range(COLUMNS):
                places[line, to + np.uint64(n)], shares[line, to + np.uint64(n)] = found[n], parts[n]
