"""Moving what an oblique image shows to the ground that it stands on.

A surface of height h seen at pixel p stands at p + h * scale * (sin angle, cos angle). The other way round, what
stands at a pixel g of the ground is seen somewhere on the line from g against that direction: t pixels away if it is
t / scale metres high. So for every g the line is walked from its far end, the tallest first, and where the heights
along it cross t, there is the surface that stands at g. This leaves no cracks, however the image leans.

The line is cut where it crosses the rows of pixels (or columns, if it is nearer to them). Heights between two
neighbouring pixels are interpolated if both belong to one surface, and are those of the nearer pixel otherwise. Across
a gap between two surfaces, what stands there has not been seen.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agl_core.compiled import machine_code
from agl_core.data.tiles import UNKNOWN
from agl_core.geometry import Pose, direction
from agl_core.opencv import cv2

SEEN, HIDDEN, OUTSIDE, HEIGHTLESS = range(4)
"""The values of a mask."""

MASK_MEANS = {
    SEEN: "seen: image and height are of what stands here",
    HIDDEN: "hidden: nobody has seen what stands here, something taller was in front of it",
    OUTSIDE: "outside: what stands here lies outside of the image",
    HEIGHTLESS: "without height: nothing known stands here, and what the image shows here has no height",
}

# A gap between neighbours that is at most so much wider on the ground than in the image, pixels, is one surface...
_JOINED = 1.0
# ...and so is one that is wider, up to this, if the next gap is about as wide: a roof that slopes away from the camera.
_STEEP, _ALIKE = 4.0, 1.5

_ROWS, _COLUMNS = 4, 32  # of the blocks of which the highest surface is known
_NOTHING = -1e9  # centimetres that stand for an unknown height


class Rectified(NamedTuple):
    """A piece of ground, as seen from above.

    rgb: (h, w, 3) uint8, black where nothing is known, None without an image; agl_cm: (h, w) uint16, 65535 unknown;
    mask: (h, w) uint8, see `MASK_MEANS`.
    """

    rgb: NDArray[np.uint8] | None
    agl_cm: NDArray[np.uint16]
    mask: NDArray[np.uint8]


class Canvas(NamedTuple):
    """A piece of ground: its first pixel, as a pixel of the image (maybe outside of it), and its size."""

    top: int
    left: int
    height: int
    width: int


class Walk(NamedTuple):
    """How the line from a pixel goes on, from one row to the next.

    per_cm: pixels that a centimetre of height leans over; sign: rows up; lean: columns to the left; step: pixels.
    """

    per_cm: float
    sign: int
    lean: float
    step: float


def reach(highest_cm: int, pose: Pose) -> int:
    """Pixels that a surface of that height leans over, rounded up."""
    return math.ceil(highest_cm / 100 * pose.scale)


class Highest:
    """The highest surface of every row and of every column of heights, which may come in strips; centimetres."""

    def __init__(self, height: int, width: int) -> None:
        self.rows, self.columns = np.zeros(height, np.uint16), np.zeros(width, np.uint16)

    def add(self, agl_cm: NDArray[np.uint16], top: int = 0) -> "Highest":
        """Look at (n, W) heights from row `top` on."""
        known = np.where(agl_cm == UNKNOWN, np.uint16(0), agl_cm)
        self.rows[top : top + len(known)] = known.max(axis=1)
        np.maximum(self.columns, known.max(axis=0), out=self.columns)
        return self

    @property
    def highest(self) -> int:
        """Of all, centimetres."""
        return int(self.rows.max(initial=0))


def full_canvas(highest: Highest, pose: Pose) -> Canvas:
    """The smallest canvas that holds the image and everything that stands outside of it."""
    # Only the highest of a row (column) decides how far the row (column) goes.
    dx, dy = (float(part) for part in direction(pose.angle))
    top, bottom = _reached(highest.rows, dy * pose.scale / 100)
    left, right = _reached(highest.columns, dx * pose.scale / 100)
    return Canvas(top, left, bottom - top, right - left)


def _reached(highest: NDArray[np.uint16], per_cm: float) -> tuple[int, int]:
    places = np.arange(len(highest)) + highest * per_cm
    return min(0, math.floor(places.min() + 0.5)), max(len(highest), math.floor(places.max() + 0.5) + 1)


def rectified(
    rgb: NDArray[np.uint8] | None,
    agl_cm: NDArray[np.uint16],
    pose: Pose,
    canvas: Canvas | None = None,
    fill: bool = False,
    leaning: int | None = None,
) -> Rectified:
    """The ground under an image: everything where it stands, the tallest over what it stands above.

    Args:
        rgb: (H, W, 3) the image; None moves the heights alone.
        agl_cm: (H, W) heights, centimetres, 65535 where unknown: what has no height cannot be moved.
        pose: scale in pixels per metre, angle.
        canvas: the piece of ground; by default the pixels of the image.
        fill: give what is hidden the height and the colour of the ground beside it, and what has no height the colour
            that the image shows there; the mask stays as it is.
        leaning: pixels that anything leans over, `reach`, where these arrays are part of a larger image.
    """
    height, width = agl_cm.shape
    if rgb is not None and rgb.shape != (height, width, 3):
        raise ValueError(f"RGB is {rgb.shape}, heights are {agl_cm.shape}: they must be of one image")
    canvas = canvas or Canvas(0, 0, height, width)
    dx, dy = (float(part) for part in direction(pose.angle))
    turned = abs(dx) > abs(dy)
    heights = np.where(agl_cm == UNKNOWN, np.float32(_NOTHING), agl_cm).astype(np.float32, copy=False)
    colours = np.zeros((0, 0, 3), np.uint8) if rgb is None else np.ascontiguousarray(rgb)
    top, left, rows, columns = canvas
    if turned:  # so that the walk always goes from row to row
        heights, colours = _transposed(heights), _transposed(colours)
        dx, dy, top, left, rows, columns = dy, dx, left, top, columns, rows
    agl: NDArray[Any] = np.full((rows, columns), UNKNOWN, np.uint16)
    mask: NDArray[Any] = np.empty((rows, columns), np.uint8)
    moved: NDArray[Any] = np.zeros((rows, columns, 3) if rgb is not None else (0, 0, 3), np.uint8)
    walk = Walk(pose.scale / 100, 1 if dy > 0 else -1, dx / abs(dy), 1 / abs(dy))
    _stand(heights, colours, _peaks(heights), walk, top, left, agl, moved, mask)
    if turned:
        agl, mask, moved = _transposed(agl), _transposed(mask), _transposed(moved)
    if fill:
        if leaning is None:
            leaning = reach(Highest(height, width).add(agl_cm).highest, pose)
        _fill(agl, moved, mask, fill_reach(leaning))
        if rgb is not None:
            _show(rgb, canvas, moved, mask)
    return Rectified(None if rgb is None else moved, agl, mask)


def _transposed(values: NDArray[Any]) -> NDArray[Any]:
    """A contiguous copy with the first two axes swapped."""
    return np.asarray(cv2.transpose(values)) if values.size else values


def fill_reach(leaning: int) -> int:
    """Pixels within which the ground beside a hidden place is looked for, where things lean over by `leaning`."""
    return 2 * leaning + 16


def _show(rgb: NDArray[np.uint8], canvas: Canvas, moved: NDArray[np.uint8], mask: NDArray[np.uint8]) -> None:
    """Give what has no height the image's colour in its place, as if it lay on the ground (it is water, mostly)."""
    top, left = max(0, canvas.top), max(0, canvas.left)
    bottom = min(rgb.shape[0], canvas.top + canvas.height)
    right = min(rgb.shape[1], canvas.left + canvas.width)
    if bottom <= top or right <= left:
        return
    here = np.s_[top - canvas.top : bottom - canvas.top, left - canvas.left : right - canvas.left]
    without = mask[here] == HEIGHTLESS
    moved[here][without] = rgb[top:bottom, left:right][without]


@machine_code
def _peaks(heights: NDArray[np.float32]) -> NDArray[np.float32]:
    """The highest of every block and of the pixels around it, centimetres; `_NOTHING` where all is unknown."""
    rows, columns = heights.shape
    found = np.full(((rows + _ROWS - 1) // _ROWS, (columns + _COLUMNS - 1) // _COLUMNS), _NOTHING, np.float32)
    for i in range(found.shape[0]):
        for j in range(found.shape[1]):
            highest = np.float32(_NOTHING)
            for row in range(max(0, i * _ROWS - 1), min(rows, (i + 1) * _ROWS + 1)):
                for column in range(max(0, j * _COLUMNS - 1), min(columns, (j + 1) * _COLUMNS + 1)):
                    highest = max(highest, heights[row, column])
            found[i, j] = highest
    return found


@machine_code
def _height(heights: NDArray[np.float32], row: int, column: int, aside: float, joined: float) -> float:
    """Centimetres at `aside` of the way from a pixel to the next in its row; `_NOTHING` where unknown or outside.

    Interpolated if both differ by no more than `joined`, or else those of the nearer.
    """
    rows, columns = heights.shape
    if row < 0 or row >= rows:
        return _NOTHING
    here = float(heights[row, column]) if 0 <= column < columns else _NOTHING
    there = float(heights[row, column + 1]) if -1 <= column < columns - 1 else _NOTHING
    if aside == 0.0:
        return here
    if abs(there - here) <= joined:
        return here + aside * (there - here)
    return here if aside < 0.5 else there


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
    """As `_height`, of `_COLUMNS` places side by side, into `found` from `first` on."""
    rows, columns = heights.shape
    if row < 0 or row >= rows or column < 0 or column + _COLUMNS >= columns:
        for k in range(_COLUMNS):
            found[first + k] = _height(heights, row, column + k, aside, joined)
        return
    share, most = np.float32(aside), np.float32(joined)
    # Unsigned, these need not be looked at for whether they count from the end.
    line, start, to = np.uint64(row), np.uint64(column), np.uint64(first)
    if aside == 0.0:
        for k in range(_COLUMNS):
            found[to + np.uint64(k)] = heights[line, start + np.uint64(k)]
    elif aside < 0.5:
        for k in range(_COLUMNS):
            here, there = heights[line, start + np.uint64(k)], heights[line, start + np.uint64(k + 1)]
            more = there - here
            found[to + np.uint64(k)] = here + (share * more if abs(more) <= most else np.float32(0))
    else:
        for k in range(_COLUMNS):
            here, there = heights[line, start + np.uint64(k)], heights[line, start + np.uint64(k + 1)]
            more = there - here
            found[to + np.uint64(k)] = here + share * more if abs(more) <= most else there


@machine_code
def _weight(heights: NDArray[np.float32], row: int, column: int, aside: float, joined: float) -> float:
    """The weight of the second of the two pixels whose heights `_height` takes."""
    if aside == 0.0:
        return 0.0
    columns = heights.shape[1]
    here = float(heights[row, column]) if 0 <= column < columns else _NOTHING
    there = float(heights[row, column + 1]) if -1 <= column < columns - 1 else _NOTHING
    if abs(there - here) <= joined:
        return aside
    return 0.0 if aside < 0.5 else 1.0


@machine_code
def _place(
    heights: NDArray[np.float32],
    colours: NDArray[np.uint8],
    walk: Walk,
    y: int,
    x: int,
    places: NDArray[np.int32],
    shares: NDArray[np.float32],
    shifts: NDArray[np.int64],
    asides: NDArray[np.float64],
    joined: float,
    agl: NDArray[np.uint16],
    moved: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    i: int,
    first: int,
) -> None:
    """Give the pixels from (i, first) on, (y, x) of the image, what has been found to stand there."""
    rows, columns = heights.shape
    coloured = colours.shape[0] > 0
    for k in range(min(_COLUMNS, mask.shape[1] - first)):
        j, m, share = first + k, np.int64(places[k]), shares[k]
        if m < 0:
            if 0 <= y < rows and 0 <= x + k < columns:
                mask[i, j] = HEIGHTLESS if heights[y, x + k] < 0.0 else HIDDEN
            else:
                mask[i, j] = OUTSIDE
            continue
        mask[i, j] = SEEN
        row, column, aside = y - walk.sign * m, x + k + shifts[m + 1], asides[m + 1]
        if share == 0.0 and aside == 0.0:
            agl[i, j] = np.uint16(heights[row, column])
            if coloured:
                for band in range(3):
                    moved[i, j, band] = colours[row, column, band]
            continue
        far_row, far_column = row - walk.sign, x + k + shifts[m + 2]
        weight = far_weight = 0.0
        if share < 1.0:
            weight = _weight(heights, int(row), int(column), aside, joined)
        if share > 0.0:
            far_weight = _weight(heights, int(far_row), int(far_column), asides[m + 2], joined)
        # Pixels without weight may lie outside of the image.
        if share == 0.0:
            far_row, far_column, far_weight = row, column, weight
        elif share == 1.0:
            row, column, weight = far_row, far_column, far_weight
        one = column if weight < 1.0 else column + 1
        two = column + 1 if weight > 0.0 else column
        far_one = far_column if far_weight < 1.0 else far_column + 1
        far_two = far_column + 1 if far_weight > 0.0 else far_column
        w, far_w, rest = np.float32(weight), np.float32(far_weight), np.float32(1.0) - share
        by_one, by_two = rest * (np.float32(1.0) - w), rest * w
        by_far_one, by_far_two = share * (np.float32(1.0) - far_w), share * far_w
        total = by_one * heights[row, one] + by_two * heights[row, two]
        total += by_far_one * heights[far_row, far_one] + by_far_two * heights[far_row, far_two]
        agl[i, j] = np.uint16(total + np.float32(0.5))
        if not coloured:
            continue
        for band in range(3):
            total = by_one * np.float32(colours[row, one, band]) + by_two * np.float32(colours[row, two, band])
            total += by_far_one * np.float32(colours[far_row, far_one, band])
            total += by_far_two * np.float32(colours[far_row, far_two, band])
            moved[i, j, band] = np.uint8(total + np.float32(0.5))


@machine_code
def _shifts(walk: Walk, most: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Whole columns and the rest of them that sample m of a walk lies aside, at m + 1, for m from -1 to most + 2."""
    shifts, asides = np.empty(most + 4, np.int64), np.empty(most + 4, np.float64)
    for m in range(-1, most + 3):
        # Rounded, as a sine that ought to be zero is not quite.
        shift = np.rint(-m * walk.lean * 2**20) / 2**20
        shifts[m + 1] = int(np.floor(shift))
        asides[m + 1] = shift - np.floor(shift)
    return shifts, asides


@machine_code
def _stretches(
    peaks: NDArray[np.float32],
    rows: int,
    walk: Walk,
    y: int,
    start: int,
    end: int,
    shifts: NDArray[np.int64],
    stretches: NDArray[np.int64],
) -> int:
    """The stretches of the walks from columns `start` to `end` of row y on which anything is high enough to stand
    there: `stretches` (N, 2) gets their first and last samples, the farthest stretch first; returns their number."""
    most = len(shifts) - 4
    least = max(0, y - rows + 1 if walk.sign > 0 else -y)
    last = min(most, y if walk.sign > 0 else rows - 1 - y)
    if last < least:
        return 0
    count = 0
    block = (y - walk.sign * last) // _ROWS
    while True:
        if walk.sign > 0:
            near, far = y - (block * _ROWS + _ROWS - 1), y - block * _ROWS
        else:
            near, far = block * _ROWS - y, block * _ROWS + _ROWS - 1 - y
        near, far = max(near, least), min(far, last)
        if near > far:
            return count
        one, other = shifts[near + 1], shifts[far + 2]
        first_block, last_block = (start + min(one, other)) // _COLUMNS, (end + max(one, other)) // _COLUMNS
        peak = np.float32(_NOTHING)
        for across in range(max(first_block, 0), min(last_block, peaks.shape[1] - 1) + 1):
            peak = max(peak, peaks[block, across])
        # Half a pixel beyond a surface's last one still belongs to it.
        reached = int(peak * walk.per_cm / walk.step + 0.501)
        if peak >= 0.0 and reached >= near:
            stretches[count, 0] = near
            stretches[count, 1] = min(far, reached)
            count += 1
        block += walk.sign


@machine_code
def _end(
    heights: NDArray[np.float32],
    walk: Walk,
    y: int,
    x: int,
    m: int,
    shifts: NDArray[np.int64],
    asides: NDArray[np.float64],
    joined: float,
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
    before = after = _NOTHING
    if steep or (near_may and near_beyond < 0.0):
        before = _height(heights, y - walk.sign * (m - 1), x + shifts[m], asides[m], joined)
    if steep or (far_may and far_beyond > 0.0):
        after = _height(heights, y - walk.sign * (m + 2), x + shifts[m + 3], asides[m + 3], joined)
    if steep:
        # One surface after all, if it goes on like that on one side at least.
        drop = near - far
        if (before >= 0.0 and drop <= _ALIKE * (before - near)) or (after >= 0.0 and drop <= _ALIKE * (far - after)):
            return near_beyond / gap
    # The last pixel of a surface reaches half a pixel beyond its middle; one without neighbours does to both sides.
    share, apart = -1.0, (walk.step + _JOINED) / max(walk.per_cm, 1e-30)
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
        np.float32(step + _JOINED),
        np.float32(-_JOINED),
    )
    near_way, far_way, steep = np.float32(m * step), np.float32((m + 1) * step), np.float32(step + _STEEP)
    near_first, far_first, here = np.uint64(near_at), np.uint64(far_at), np.int32(m)
    done, ending, zero, one = np.int32(0), np.int32(0), np.float32(0), np.float32(1)
    for n in range(_COLUMNS):
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
        ending += end
        done += np.int32(1) if places[k] >= 0 else np.int32(0)
    return int(done), int(ending)


@machine_code
def _stand(
    heights: NDArray[np.float32],
    colours: NDArray[np.uint8],
    peaks: NDArray[np.float32],
    walk: Walk,
    top: int,
    left: int,
    agl: NDArray[np.uint16],
    moved: NDArray[np.uint8],
    mask: NDArray[np.uint8],
) -> None:
    """Find what stands at every pixel of the canvas, the first pixel of which is (top, left) of the image."""
    rows = heights.shape[0]
    joined = _JOINED / max(walk.per_cm, 1e-30)
    shifts, asides = _shifts(walk, int(max(0.0, peaks.max()) * walk.per_cm / walk.step) + 1)
    stretches = np.empty((len(shifts) // _ROWS + 3, 2), np.int64)
    samples = np.empty(2 * _COLUMNS, np.float32)  # of two neighbouring rows
    # Of as many pixels side by side: the sample and the share of the next one that stand there.
    places, shares = np.empty(_COLUMNS, np.int32), np.empty(_COLUMNS, np.float32)
    ends = np.empty(_COLUMNS, np.int32)
    for i in range(mask.shape[0]):
        y = i + top
        for start in range(0, mask.shape[1], _COLUMNS):
            x = start + left
            places[:] = -1
            done = 0
            for stretch in range(_stretches(peaks, rows, walk, y, x, x + _COLUMNS, shifts, stretches)):
                m = stretches[stretch, 1]
                row, near_at = y - walk.sign * m, (m & 1) * _COLUMNS
                far_at = _COLUMNS - near_at
                _heights(heights, row - walk.sign, x + shifts[m + 2], asides[m + 2], joined, samples, far_at)
                while m >= stretches[stretch, 0] and done < _COLUMNS:
                    row = y - walk.sign * m
                    _heights(heights, row, x + shifts[m + 1], asides[m + 1], joined, samples, near_at)
                    done, ending = _cross(samples, near_at, far_at, m, walk.per_cm, walk.step, places, shares, ends)
                    if ending:
                        for k in range(_COLUMNS):
                            if ends[k]:
                                share = _end(
                                    heights, walk, y, x + k, m, shifts, asides, joined, samples[near_at + k],
                                    samples[far_at + k],
                                )  # fmt: skip
                                if share >= 0.0:
                                    places[k], shares[k] = m, share
                                    done += 1
                    near_at, far_at = far_at, near_at
                    m -= 1
            _place(
                heights, colours, walk, y, x, places, shares, shifts, asides, joined, agl, moved, mask, i, start
            )  # fmt: skip


@machine_code
def _fill(agl: NDArray[np.uint16], moved: NDArray[np.uint8], mask: NDArray[np.uint8], most: int) -> None:
    """Give hidden pixels the height and colour of the nearest seen ones in eight directions that are as low as the
    lowest of these, within a metre; what has none within `most` pixels stays unknown."""
    rows, columns = mask.shape
    coloured = moved.shape[0] > 0
    for i in range(rows):
        for j in range(columns):
            if mask[i, j] != HIDDEN:
                continue
            lowest = np.int64(UNKNOWN)
            for turn in range(2):
                nearest, at_row, at_column = 1e30, -1, -1
                for di in range(-1, 2):
                    for dj in range(-1, 2):
                        if di == 0 and dj == 0:
                            continue
                        y, x, steps = i + di, j + dj, 1
                        while 0 <= y < rows and 0 <= x < columns and steps <= most and mask[y, x] != SEEN:
                            y, x, steps = y + di, x + dj, steps + 1
                        if not (0 <= y < rows and 0 <= x < columns and steps <= most):
                            continue
                        height = np.int64(agl[y, x])
                        if turn == 0:
                            lowest = min(lowest, height)
                        elif height <= lowest + 100:
                            way = steps * np.sqrt(float(di * di + dj * dj))
                            if way < nearest:
                                nearest, at_row, at_column = way, y, x
            if at_row >= 0:
                agl[i, j] = agl[at_row, at_column]
                if coloured:
                    for band in range(3):
                        moved[i, j, band] = moved[at_row, at_column, band]
