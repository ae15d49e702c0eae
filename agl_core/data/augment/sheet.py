"""`python launch.py augment`: one tile of a data set under each augmentation, for looking at.

The arrows are drawn from what training would be told of the result: its heights, and pose by the label rules. The rings
are drawn from the labels of the original and the motion of the image. Where both agree, the labels still fit.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agl_core.config import AugmentConfig, AugmentSheetConfig
from agl_core.data.augment.geometric import Geometry, draw_geometry, transform
from agl_core.data.augment.photometric import KINDS, PHOTOMETRIC
from agl_core.data.augment.symmetry import draw_symmetry
from agl_core.data.catalog import TileRecord, read_catalog
from agl_core.data.prepare.decode import decode
from agl_core.data.seeding import SampleStreams, sample_generator
from agl_core.data.tiles import UNKNOWN, read_agl
from agl_core.errors import UserError
from agl_core.files import whole_file, writable_folder
from agl_core.geometry import FLIP_HORIZONTAL, FLIP_VERTICAL, IDENTITY, ROT90, TRANSPOSE, Pose, direction
from agl_core.opencv import cv2
from agl_core.reporting.pictures.sheet import Arrow, Panel, Section, contact_sheet, heights_picture, image_picture

CANDIDATES = 16
"""Tiles, and places of the crop, of which the one with the most to see is taken."""

TOGETHER = 3
"""Draws of all geometric operations together that are shown."""

ALONE = 2
"""Number of the sample that the operations alone are drawn for: with the default seed, each goes rather far."""

ARROWS = 14
"""Most arrows in a picture."""

LEAST_METRES, LEAST_PIXELS = 3.0, 6.0
"""Height of a surface, and length of its arrow, from which on it gets one."""

SYMMETRIES = {
    "rot90": ROT90[1], "flip_horizontal": FLIP_HORIZONTAL, "flip_vertical": FLIP_VERTICAL, "transpose": TRANSPOSE,
}  # fmt: skip


@dataclass(frozen=True)
class Tile:
    """One tile as its files have it. pose: None for a nadir image; highest: the highest known height, metres."""

    record: TileRecord
    rgb: NDArray[np.uint8]
    agl: NDArray[np.uint16]
    pose: Pose | None
    highest: float


@dataclass(frozen=True)
class Surface:
    """The top of a wall that is seen down to its foot: (x, y) of both in the tile, and metres above ground."""

    top: tuple[float, float]
    foot: tuple[float, float]
    metres: float


def augment(config: AugmentSheetConfig) -> None:
    """Draw the sheet, and print one line that says what was written."""
    out = Path(config.out)
    if out.suffix.lower() != ".png":
        raise UserError(f"the sheet is a PNG file, but --out is {out}: give a name that ends in .png")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: give the name of a PNG file in it")
    tile = _chosen(config)
    writable_folder(out.parent, "--out")
    sheet = draw_sheet(tile, config.crop, config.seed)
    encoded = cv2.imencode(".png", sheet[..., ::-1])[1]
    with whole_file(out) as aside:
        aside.write_bytes(encoded.tobytes())
    print(f"{out}: tile {tile.record.id} under each augmentation, {sheet.shape[1]} x {sheet.shape[0]} pixels")


def _chosen(config: AugmentSheetConfig) -> Tile:
    records = read_catalog(Path(config.data), "train")
    if config.tile:
        named = [record for record in records if record.id == config.tile]
        if not named:
            some = ", ".join(record.id for record in records[:5])
            raise UserError(f"{config.data} has no tile {config.tile!r}: give one of {some}, ... with --tile")
        return _read(named[0], config.unit)
    oblique = [record for record in records if record.vflow] or records
    spread = [oblique[number * len(oblique) // CANDIDATES] for number in range(CANDIDATES)]
    tallest = max(dict.fromkeys(spread), key=lambda record: _highest(_heights(record, config.unit)))
    return _read(tallest, config.unit)


def _heights(record: TileRecord, unit: str) -> NDArray[np.uint16]:
    assert record.agl is not None, "tiles of the split train have heights"
    return read_agl(record.agl, unit)


def _read(record: TileRecord, unit: str) -> Tile:
    entry, rgb, agl, _ = decode(record, unit)
    pose = Pose(entry.scale, entry.angle) if entry.scale is not None and entry.angle is not None else None
    return Tile(record, rgb, agl, pose, entry.highest)


def _highest(agl: NDArray[np.uint16]) -> float:
    return float(agl[agl != UNKNOWN].max(initial=0)) / 100


def _metres(agl: NDArray[np.uint16]) -> NDArray[np.float64]:
    return np.where(agl == UNKNOWN, np.nan, agl / 100.0)


def draw_sheet(tile: Tile, crop: int, seed: int) -> NDArray[np.uint8]:
    """The sheet of `tile`, a function of its pixels, `crop` (pixels; at most the tile's shorter side) and `seed`."""
    size = min(crop, *tile.agl.shape)
    surfaces = [] if tile.pose is None else visible_walls(tile.agl, tile.pose)
    left, top = _place(tile, size, seed, surfaces)
    centre = left + 0.5 * (size - 1), top + 0.5 * (size - 1)
    surfaces = _apart(surfaces, centre, size)
    crops = {
        name: (geometry, *transform(tile.rgb, tile.agl, tile.pose, geometry, size, centre))
        for name, geometry in _geometries(tile, seed).items()
    }
    most = _round_number(max(_highest(agl) for _, _, agl in crops.values()))
    geometric = []
    for name, (geometry, rgb, agl) in crops.items():
        arrows = [] if tile.pose is None else _arrows(tile, geometry, agl, size, centre, surfaces)
        pictures = [image_picture(rgb, arrows), heights_picture(_metres(agl), most, arrows)]
        geometric.append(Panel(pictures, _geometric_caption(name, tile, geometry, agl, arrows)))
    original = np.ascontiguousarray(tile.rgb[top : top + size, left : left + size])
    nadir = "" if tile.pose else "; without a pose: no arrows, and surfaces cannot be moved"
    return contact_sheet(
        f"Augmentations of {tile.record.id}",
        f"{tile.record.city}, crop of {size} x {size} pixels at x {left}, y {top} of {tile.agl.shape[1]} x "
        f"{tile.agl.shape[0]}, seed {seed}{nadir}",
        most,
        [
            Section("Geometric: labels change with the image", geometric, 3),
            Section("Photometric: the image alone changes", _photometric(original, seed), 6),
        ],
    )


def visible_walls(agl: NDArray[np.uint16], pose: Pose) -> list[Surface]:
    """Tops of walls down which one can see, the longest arrow first: the ground lies at the arrow's end, and half way
    to it about half the height."""
    metres = _metres(agl)
    dx, dy = (float(part) for part in direction(pose.angle))
    rows, columns = np.nonzero(metres >= max(LEAST_METRES, LEAST_PIXELS / max(pose.scale, 1e-9)))
    high = metres[rows, columns]
    order = np.argsort(-high, kind="stable")
    rows, columns, high = rows[order], columns[order], high[order]

    def seen(share: float) -> NDArray[np.float64]:
        y, x = (np.rint(at + share * high * pose.scale * by).astype(int) for at, by in ((rows, dy), (columns, dx)))
        inside = (y >= 0) & (y < agl.shape[0]) & (x >= 0) & (x < agl.shape[1])
        values = np.full(len(high), np.nan)
        values[inside] = metres[y[inside], x[inside]]
        return values / high

    walls = (np.abs(seen(0.5) - 0.5) < 0.2) & (seen(1.0) < 0.15)
    reach = high * pose.scale
    return [
        Surface((float(x), float(y)), (float(x + length * dx), float(y + length * dy)), float(height))
        for x, y, height, length in zip(columns[walls], rows[walls], high[walls], reach[walls], strict=True)
    ]


def _place(tile: Tile, size: int, seed: int, surfaces: list[Surface]) -> tuple[int, int]:
    """(x, y) of the drawn crop with the most walls in it, or, where there are none, of the first one drawn."""
    generator = sample_generator(seed, 0, 0, 0)
    height, width = tile.agl.shape
    room = np.array([width - size, height - size])
    border = np.minimum(room // 2, size // 4)  # for what comes into view when the image is made smaller
    places = generator.integers(border, room - border, (CANDIDATES, 2), endpoint=True)
    tops = np.array([surface.top for surface in surfaces]).reshape(-1, 2)
    reach = np.array([surface.metres for surface in surfaces])
    inside = [np.all((tops > place + 0.1 * size) & (tops < place + 0.9 * size), axis=1) for place in places]
    x, y = places[int(np.argmax([reach[each].sum() for each in inside]))]
    return int(x), int(y)


def _apart(surfaces: list[Surface], centre: tuple[float, float], size: int) -> list[Surface]:
    """Some of the walls about the crop, not too close to each other."""
    chosen: list[Surface] = []
    for surface in surfaces:
        if len(chosen) == ARROWS:
            break
        near = max(abs(place - middle) for place, middle in zip(surface.top, centre, strict=True)) < 0.55 * size
        if near and all(math.dist(surface.top, other.top) > size / 9 for other in chosen):
            chosen.append(surface)
    return chosen


def _geometries(tile: Tile, seed: int) -> dict[str, Geometry]:
    """What each panel shows: the original, each operation alone, and all together."""
    panels = {"original": Geometry()} | {name: Geometry(symmetry=op) for name, op in SYMMETRIES.items()}
    moving = [] if tile.pose is None else ["stretch", "view"]
    streams = SampleStreams(seed, 0, 0, ALONE)
    for name in [*moving, "rotate", "zoom"]:
        panels[name] = draw_geometry(AugmentConfig(**{name: 1.0}), streams, tile.pose, tile.highest)
    every = AugmentConfig(stretch=1, view=1, rotate=1, zoom=1)
    halves = AugmentConfig(rot90=0.5, flip_horizontal=0.5, flip_vertical=0.5, transpose=0.5)
    for number in range(1, TOGETHER + 1):
        geometry = draw_geometry(every, SampleStreams(seed, 0, 0, ALONE + number), tile.pose, tile.highest)
        symmetry = draw_symmetry(halves, sample_generator(seed, 0, 0, number))
        panels[f"all together, {number}"] = replace(geometry, symmetry=symmetry)
    return panels


def _arrows(
    tile: Tile,
    geometry: Geometry,
    agl: NDArray[np.uint16],
    size: int,
    centre: tuple[float, float],
    surfaces: list[Surface],
) -> list[Arrow]:
    """An arrow for each surface that is in the result and not hidden there."""
    assert tile.pose is not None
    pose, _ = geometry.labels(tile.pose, tile.record.gsd)
    step = pose.scale * np.array(direction(pose.angle))
    linear, motion, middle = geometry.linear(), np.array(geometry.motion(tile.pose)), 0.5 * (size - 1)
    arrows = []
    for surface in surfaces:
        top = linear @ (np.array(surface.top) + surface.metres * motion - centre) + middle
        foot = linear @ (np.array(surface.foot) - centre) + middle
        x, y = (round(value) for value in top)
        around = _metres(agl[max(0, y - 1) : max(0, y + 2), max(0, x - 1) : max(0, x + 2)])
        if not (0 <= x < size and 0 <= y < size) or np.all(np.isnan(around)):
            continue
        expected = geometry.stretch * surface.metres
        metres = float(around.flat[np.nanargmin(np.abs(around - expected))])  # it is there to within a pixel
        if metres > 1.15 * expected + 1:  # something taller stands before it
            continue
        arrows.append(Arrow(tuple(top), tuple(top + metres * step), tuple(foot)))
    return arrows


def _geometric_caption(
    name: str, tile: Tile, geometry: Geometry, agl: NDArray[np.uint16], arrows: list[Arrow]
) -> list[str]:
    drawn = []
    if geometry.symmetry != IDENTITY and name not in SYMMETRIES:
        op = geometry.symmetry
        parts = {"transpose": op.transposed, "flip x": op.flipped_horizontal, "flip y": op.flipped_vertical}
        drawn.append(" + ".join(part for part, done in parts.items() if done))
    if geometry.stretch != 1:
        drawn.append(f"heights x {geometry.stretch:.2f}")
    if geometry.turns_view:
        drawn.append(f"view {math.degrees(geometry.angle_by):+.0f} deg, scale x {geometry.scale_by:.2f}")
    if geometry.turn:
        drawn.append(f"rotated {math.degrees(geometry.turn):+.0f} deg")
    if geometry.zoom != 1:
        drawn.append(f"zoom x {geometry.zoom:.2f}")
    lines = [f"{name}: {', '.join(drawn)}" if drawn else name]
    if tile.pose is None:
        lines.append(f"gsd {tile.record.gsd / geometry.zoom:.3f} m")
    else:
        pose, gsd = geometry.labels(tile.pose, tile.record.gsd)
        lines.append(f"scale {pose.scale:.3f} px/m, angle {math.degrees(pose.angle):.0f} deg, gsd {gsd:.3f} m")
    last = f"highest {_highest(agl):.1f} m, {np.mean(agl == UNKNOWN):.1%} unknown"
    if arrows:
        miss = sorted(math.dist(arrow.end, arrow.mark) for arrow in arrows)
        last += f"; arrows miss by {miss[len(miss) // 2]:.1f} px (median)"
    return [*lines, last]


def _photometric(rgb: NDArray[np.uint8], seed: int) -> list[Panel]:
    panels = [Panel([image_picture(rgb)], ["original", _light(rgb)])]
    for name, kinds in KINDS.items():
        for number, (kind, operation) in enumerate(kinds.items()):
            changed = operation(rgb, SampleStreams(seed, 0, 0, number)(name))
            panels.append(Panel([image_picture(changed)], [f"{name}: {kind}" if kind else name, _light(changed)]))
    mixed, used = rgb, []
    streams = SampleStreams(seed, 0, 0, 1)
    for name, operation in PHOTOMETRIC.items():
        generator = streams(name)
        if generator.random() < 0.5:
            mixed = operation(mixed, generator)
            used.append(name)
    panels.append(Panel([image_picture(mixed)], ["several, each by chance 1/2", ", ".join(used)]))
    return panels


def _light(rgb: NDArray[np.uint8]) -> str:
    return f"mean {rgb.mean():.0f}, spread {rgb.std():.0f} of 255"


def _round_number(metres: float) -> float:
    """As many metres or a few more, with two digits of which the last is even, so that the legend reads well."""
    unit = 10.0 ** math.floor(math.log10(max(metres, 1.0)))
    return max(1.0, math.ceil(metres / unit * 5) / 5 * unit)
