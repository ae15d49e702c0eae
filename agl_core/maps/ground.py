"""Moving what an oblique image shows to the ground that it stands on.

A surface of height h seen at pixel p stands at p + h * scale * (sin angle, cos angle). The other way round, what
stands at a pixel g of the ground is seen somewhere on the line from g against that direction: t pixels away if it is
t / scale metres high. So for every g the line is walked from its far end, the tallest first, and where the heights
along it cross t, there is the surface that stands at g. This leaves no cracks, however the image leans.

The line is cut where it crosses the rows of pixels (or columns, if it is nearer to them). Heights between two
neighbouring pixels are interpolated if both belong to one surface, and are those of the nearer pixel otherwise. Across
a gap between two surfaces, what stands there has not been seen; nor has what the line would show more than half a pixel
outside of the middles of the image's outermost pixels.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from agl_core.data.tiles import UNKNOWN
from agl_core.geometry import Pose, direction
from agl_core.maps.canvas import (
    HEIGHTLESS,
    HIDDEN,
    MASK_MEANS,
    OUTSIDE,
    SEEN,
    Canvas,
    Highest,
    Rectified,
    full_canvas,
    reach,
)
from agl_core.maps.crossing import find
from agl_core.maps.holes import fill_hidden, fill_reach, show_heightless
from agl_core.maps.placing import put
from agl_core.maps.walks import COLUMNS, NOTHING, Walk, crests, shifts_of, walk_of
from agl_core.opencv import cv2

__all__ = [
    "HEIGHTLESS",
    "HIDDEN",
    "MASK_MEANS",
    "OUTSIDE",
    "SEEN",
    "Canvas",
    "Highest",
    "Rectified",
    "fill_reach",
    "full_canvas",
    "reach",
    "rectified",
]

_STRIP = 2**15  # pixels for which what has been found is held until it is put in its place


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
    if abs(dx) > abs(dy):  # so that the walk always goes from row to row
        turned = None if rgb is None else _transposed(rgb)
        place = Canvas(canvas.left, canvas.top, canvas.width, canvas.height)
        found = _stand(turned, _transposed(agl_cm), walk_of(pose.scale, dy, dx), place)
        moved = None if found.rgb is None else _transposed(found.rgb)
        found = Rectified(moved, _transposed(found.agl_cm), _transposed(found.mask))
    else:
        found = _stand(rgb, agl_cm, walk_of(pose.scale, dx, dy), canvas)
    if fill:
        if leaning is None:
            leaning = reach(Highest(height, width).add(agl_cm).highest, pose)
        fill_hidden(found.agl_cm, _or_none(found.rgb), found.mask, fill_reach(leaning))
        if rgb is not None and found.rgb is not None:
            show_heightless(rgb, canvas, found.rgb, found.mask)
    return found


def _stand(rgb: NDArray[np.uint8] | None, agl_cm: NDArray[np.uint16], walk: Walk, canvas: Canvas) -> Rectified:
    """What stands on the canvas, found and put in its place strip by strip."""
    agl_cm = np.ascontiguousarray(agl_cm)
    reached = crests(agl_cm, walk)
    heights = np.where(agl_cm == UNKNOWN, np.float32(NOTHING), agl_cm).astype(np.float32, copy=False)
    shifts, asides = shifts_of(walk, max(0, int(reached.max(initial=0))))
    top, left, rows, columns = canvas
    agl = np.full((rows, columns), UNKNOWN, np.uint16)
    mask = np.empty((rows, columns), np.uint8)
    moved = None if rgb is None else np.zeros((rows, columns, 3), np.uint8)
    colours = _flat(None if rgb is None else np.ascontiguousarray(rgb))
    padded = -(-columns // COLUMNS) * COLUMNS
    strip = max(1, _STRIP // max(1, padded))
    places, shares = np.empty((strip, padded), np.int32), np.empty((strip, padded), np.float32)
    for first in range(0, rows, strip):
        here = slice(first, min(first + strip, rows))
        some = slice(0, here.stop - first)
        out = agl[here], _flat(moved)[here], mask[here]
        find(heights, reached, walk, shifts, asides, top + first, left, places[some], shares[some])
        put(heights, colours, walk, shifts, asides, top + first, left, places[some], shares[some], *out)
    return Rectified(moved, agl, mask)


def _transposed(values: NDArray[Any]) -> NDArray[Any]:
    """A contiguous copy with the first two axes swapped."""
    return np.asarray(cv2.transpose(values)) if values.size else values.swapaxes(0, 1)


def _or_none(colours: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """What stands for no image in compiled code."""
    return np.zeros((0, 0, 3), np.uint8) if colours is None else colours


def _flat(colours: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """The bands beside each other: (H, 3 W)."""
    colours = _or_none(colours)
    return colours.reshape(len(colours), 3 * colours.shape[1])
