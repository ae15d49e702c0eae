"""A sample is the crop that the whole tile would give, from no more of the store than it needs."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agl_core.config import AugmentConfig, StageConfig
from agl_core.data import sampling
from agl_core.data.augment import splat
from agl_core.data.augment.geometric import Geometry, draw_geometry, transform
from agl_core.data.sampling import make_sample
from agl_core.data.seeding import SampleStreams, sample_generator
from agl_core.data.store import Store, StoreEntry, StoreWriter
from agl_core.data.tiles import UNKNOWN
from agl_core.geometry import D4, IDENTITY, Pose, apply, apply_pose

SIZE = 64
SHAPES = {"large": (600, 700), "small": (40, 90), "unposed": (600, 600)}

EVERYTHING = AugmentConfig(
    rot90=1, flip_horizontal=0.5, flip_vertical=0.5, transpose=0.5, stretch=1, view=1, rotate=1, zoom=1
)  # fmt: skip


def scene(height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    generator = np.random.default_rng([height, width])
    blocks = generator.integers(0, 2500, (height // 20 + 1, width // 20 + 1))
    agl = np.where(blocks > 1200, blocks, 0).repeat(20, 0).repeat(20, 1)[:height, :width].astype(np.uint16)
    rgb = (agl[..., None] // 15 + generator.integers(0, 60, (height, width, 3))).astype(np.uint8)
    agl[:10, :10] = UNKNOWN
    return rgb, agl


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("store")
    with StoreWriter(path) as writer:
        for name, (height, width) in SHAPES.items():
            posed = {} if name == "unposed" else {"scale": 0.8, "angle": 0.7}
            writer.write(StoreEntry(name, "OMA", 0.4, height, width, **posed), *scene(height, width))
        writer.seal()
    return Store(path)


def sample(
    store: Store, tile: str, augment: AugmentConfig, index: int = 0, size: int = SIZE
) -> tuple[NDArray[np.uint8], NDArray[np.uint16], Pose | None, float]:
    number = [entry.id for entry in store.entries].index(tile)
    image, agl = np.empty((3, size, size), np.uint8), np.empty((size, size), np.uint16)
    config = StageConfig(crop=size, augment=augment)
    pose, gsd = make_sample(
        store, number, config, SampleStreams(1, 0, 0, index), sample_generator(1, 0, 0, index), image, agl
    )
    return image, agl, pose, gsd


def test_without_augmentation_a_sample_is_a_part_of_the_tile(store: Store) -> None:
    rgb, heights = scene(*SHAPES["large"])
    image, agl, pose, gsd = sample(store, "large", AugmentConfig())
    found = [
        (y, x) for y in range(600 - SIZE + 1) for x in range(700 - SIZE + 1)
        if rgb[y, x, 0] == image[0, 0, 0] and np.array_equal(rgb[y : y + SIZE, x : x + SIZE, 1], image[1])
    ]  # fmt: skip
    assert len(found) == 1
    cut = np.s_[found[0][0] : found[0][0] + SIZE, found[0][1] : found[0][1] + SIZE]
    assert np.array_equal(rgb[cut].transpose(2, 0, 1), image)
    assert np.array_equal(heights[cut], agl)
    assert pose == Pose(0.8, 0.7)
    assert gsd == 0.4


def test_symmetries_exchange_pixels_and_turn_the_pose(store: Store) -> None:
    plain, plain_agl, pose, _ = sample(store, "large", AugmentConfig(), index=3)
    assert pose is not None
    chances = AugmentConfig(rot90=1, flip_horizontal=0.5, flip_vertical=0.5, transpose=0.5)
    image, agl, turned, gsd = sample(store, "large", chances, index=3)
    fitting = [op for op in D4 if np.array_equal(apply(plain, op, rows=1), image)]
    assert len(fitting) == 1
    assert fitting[0] != IDENTITY
    assert np.array_equal(apply(plain_agl, fitting[0]), agl)
    assert turned == apply_pose(pose, fitting[0])
    assert gsd == 0.4


@pytest.mark.parametrize("index", range(8))
@pytest.mark.parametrize("tile", ["large", "small"])
def test_what_is_read_is_enough(store: Store, tile: str, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same crop comes out of the whole tile."""
    made: list[Any] = []

    def spy(rgb: Any, agl: Any, pose: Any, geometry: Geometry, size: int, centre: Any) -> Any:
        made.append((geometry, centre))
        return transform(rgb, agl, pose, geometry, size, centre)

    read: list[tuple[int, int]] = []
    plain = Store.read_crop

    def reading(self: Store, number: int, y: int, x: int, height: int, width: int) -> Any:
        read.append((y, x))
        return plain(self, number, y, x, height, width)

    monkeypatch.setattr(sampling, "transform", spy)
    monkeypatch.setattr(Store, "read_crop", reading)
    image, agl, pose, gsd = sample(store, tile, EVERYTHING, index)
    (geometry, (x, y)), (top, left) = made[0], read[0]
    rgb, heights = scene(*SHAPES[tile])
    centre = (x + left, y + top)
    whole_rgb, whole_agl = transform(rgb, heights, Pose(0.8, 0.7), geometry, SIZE, centre)
    assert np.array_equal(whole_agl, agl)
    assert np.abs(whole_rgb.astype(int) - image.transpose(1, 2, 0)).max() <= 1  # coordinates are rounded to 1/32 pixel
    assert (pose, gsd) == geometry.labels(Pose(0.8, 0.7), 0.4)


def test_no_more_is_read_than_the_crop_is_made_of(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    plain = Store.read_crop

    def reading(self: Store, number: int, y: int, x: int, height: int, width: int) -> Any:
        sizes.append((height, width))
        return plain(self, number, y, x, height, width)

    monkeypatch.setattr(Store, "read_crop", reading)
    for index in range(20):
        sample(store, "large", AugmentConfig(zoom=1, zoom_least=1.5, zoom_most=2.0), index)
        sample(store, "large", AugmentConfig(stretch=1, stretch_most=1.2), index)
    zoomed, stretched = sizes[::2], sizes[1::2]
    assert max(map(max, zoomed)) <= SIZE / 1.5 + 14
    assert max(map(max, stretched)) <= SIZE + 0.2 * 0.8 * 25 + 14


def test_a_crop_lies_inside_a_tile_that_has_room_for_it(store: Store) -> None:
    for index in range(20):
        _, agl, _, _ = sample(store, "unposed", AugmentConfig(rotate=1, zoom=1), index)
        corner = agl == UNKNOWN
        assert corner.sum() <= 1.5 * (10 / 0.7) ** 2  # the unknown corner of the scene, magnified


def test_tiles_smaller_than_the_crop_are_surrounded_by_the_unknown(store: Store) -> None:
    for augment in (AugmentConfig(), AugmentConfig(rotate=1), AugmentConfig(stretch=1)):
        image, agl, _, _ = sample(store, "small", augment)
        unknown = agl == UNKNOWN
        assert 0.2 < unknown.mean() < 0.8
        assert not image[:, unknown].all(axis=0).all()


def test_tiles_without_a_pose_are_turned_and_zoomed_but_nothing_in_them_moves(store: Store) -> None:
    pose = None
    for index in range(5):
        drawn = draw_geometry(EVERYTHING, SampleStreams(1, 0, 0, index), None, 30.0)
        assert not drawn.moves
        assert drawn.turn != 0
        _, _, pose, gsd = sample(store, "unposed", EVERYTHING, index)
        assert pose is None
        assert gsd == pytest.approx(0.4 / drawn.zoom)


def test_another_chance_of_one_operation_does_not_change_what_the_others_draw() -> None:
    streams, pose = SampleStreams(1, 2, 3, 4), Pose(1.0, 0.0)
    everything = draw_geometry(EVERYTHING, streams, pose, 30.0)
    without = draw_geometry(replace(EVERYTHING, view=0, rotate=0.999), streams, pose, 30.0)
    assert everything.turns_view
    assert not without.turns_view
    assert without == replace(everything, scale_by=1.0, angle_by=0.0)


def test_heights_are_never_stretched_beyond_the_limit() -> None:
    pose = Pose(1.0, 0.0)
    config = AugmentConfig(stretch=1)
    drawn = [draw_geometry(config, SampleStreams(1, 0, 0, i), pose, 150.0).stretch for i in range(200)]
    assert max(drawn) <= 200 / 150
    assert max(drawn) > 1.3
    assert min(drawn) < 1.05
    assert all(draw_geometry(config, SampleStreams(1, 0, 0, i), pose, 250.0).stretch == 1 for i in range(20))
    low = [draw_geometry(config, SampleStreams(1, 0, 0, i), pose, 10.0).stretch for i in range(200)]
    assert 1.9 < max(low) <= 2


def test_the_recipes_chances_are_the_shares_of_the_samples() -> None:
    config = AugmentConfig(stretch=0.5, rotate=0.3, zoom=0.5, view=0.1)
    drawn = [draw_geometry(config, SampleStreams(5, 0, 0, i), Pose(1.0, 0.0), 30.0) for i in range(2000)]
    for expected, share in (
        (0.5, np.mean([g.stretch != 1 for g in drawn])), (0.3, np.mean([g.turn != 0 for g in drawn])),
        (0.5, np.mean([g.zoom != 1 for g in drawn])), (0.1, np.mean([g.turns_view for g in drawn])),
    ):  # fmt: skip
        assert abs(share - expected) < 0.05
    assert 0.7 <= min(g.zoom for g in drawn) < 0.72
    assert 1.28 < max(g.zoom for g in drawn) <= 1.3


def test_the_same_sample_is_the_same_bits_and_another_epoch_is_another(store: Store) -> None:
    config = replace(EVERYTHING, noise=1.0, blur=1.0, fog=1.0)
    first, again, other = (sample(store, "large", config, index) for index in (2, 2, 7))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_heights_do_not_change_when_only_colours_do(store: Store) -> None:
    names = ("dropout", "blur", "brightness", "tone", "noise", "fancy_pca", "fog", "shadow", "sun_flare")
    plain = sample(store, "large", AugmentConfig(), 1)
    painted = sample(store, "large", AugmentConfig(**dict.fromkeys(names, 1.0)), 1)
    assert np.array_equal(plain[1], painted[1])
    assert plain[2:] == painted[2:]
    assert not np.array_equal(plain[0], painted[0])


def test_surfaces_cannot_move_without_a_pose() -> None:
    rgb, agl = scene(80, 80)
    with pytest.raises(ValueError, match="without a pose"):
        transform(rgb, agl, None, Geometry(stretch=1.5), 32, (40, 40))


def test_a_store_on_disk_knows_the_highest_height_of_each_tile(store: Store, tmp_path: Path) -> None:
    for entry in store.entries:
        heights = scene(*SHAPES[entry.id])[1]
        assert entry.highest == heights[heights != UNKNOWN].max() / 100


def test_one_wrong_height_does_not_have_all_of_the_tile_read(monkeypatch: pytest.MonkeyPatch) -> None:
    pose, geometry = Pose(6.0, 0.7), Geometry(scale_by=3.0)
    extent = geometry.extent(SIZE, pose, 655.0)
    assert max(map(abs, extent)) <= 1.5 * SIZE
    rgb, agl = scene(400, 400)
    agl[200, 200] = 65000
    shapes: list[tuple[int, ...]] = []
    plain = splat.sample_heights

    def spy(*arguments: Any) -> None:
        shapes.append(arguments[-1].shape)
        plain(*arguments)

    monkeypatch.setattr(splat, "sample_heights", spy)
    transform(rgb, agl, pose, geometry, SIZE, (200, 200))
    assert max(shapes[0]) <= 2 * SIZE + 6


def test_no_height_is_stretched_beyond_what_a_file_can_hold() -> None:
    config = AugmentConfig(stretch=1, stretch_highest=10000)
    drawn = [draw_geometry(config, SampleStreams(1, 0, 0, i), Pose(1.0, 0.0), 600.0).stretch for i in range(50)]
    assert 1.05 < max(drawn) <= 655.34 / 600


LOADED = """
import sys
import numpy as np
from agl_core.config import AugmentConfig, StageConfig
from agl_core.data.dataset import CropDataset
from agl_core.data.order import SampleKey
from agl_core.data.store import Store
from agl_core.data.augment import splat
from agl_core.data.store.unfilter import unfilter

names = ("stretch", "view", "rotate", "zoom", "dropout", "blur", "brightness", "tone", "noise", "fancy_pca", "fog")
augment = AugmentConfig(**dict.fromkeys((*names, "shadow", "sun_flare"), 0.7))
store = Store(sys.argv[1])
dataset = CropDataset(store, range(len(store)), StageConfig(crop=64, augment=augment), 1, 0)
dataset.load_code()
compiled = [unfilter, splat.sample_heights, splat.move_surfaces, splat.fill_holes, splat.colour_map]
before, signatures = set(sys.modules), [len(function.signatures) for function in compiled]
for epoch in range(10):
    dataset.__getitems__([SampleKey(epoch, number) for number in range(len(store))])
print(sorted(name for name in set(sys.modules) - before if "." not in name or name.startswith("agl_core")))
print([len(function.signatures) for function in compiled] == signatures)
"""


def test_all_code_is_loaded_and_compiled_before_processes_are_forked(store: Store) -> None:
    """What a forked process imports or compiles may wait for a lock that nobody holds any more."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, str(store.path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "[]\nTrue\n", done.stdout + done.stderr
