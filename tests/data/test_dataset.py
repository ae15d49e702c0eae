import gc
import random
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from agl_core.config import AugmentConfig, StageConfig
from agl_core.data.batch import ALIGNMENT, Batch, Packed, Refusal, parts_of, places_of, unpack
from agl_core.data.dataset import CropDataset, batches
from agl_core.data.order import Order, SampleKey
from agl_core.data.store import Store
from agl_core.geometry import Pose

STAGE = StageConfig(
    crop=64,
    batch=6,
    micro_batch=2,
    augment=AugmentConfig(rot90=1, flip_horizontal=0.5, flip_vertical=0.5, transpose=0.5),
)


def dataset(store: Path, stage: StageConfig = STAGE, rank: int = 0) -> CropDataset:
    opened = Store(store)
    return CropDataset(opened, range(len(opened.entries)), stage, seed=11, stage=0, rank=rank)


class Sample(NamedTuple):
    """One crop as the trainer gets it. rgb: (S, S, 3) uint8; agl: (S, S) uint16."""

    rgb: np.ndarray
    agl: np.ndarray
    pose: Pose | None


def micro_batch(crops: CropDataset, keys: list[SampleKey]) -> Batch:
    packed = crops.__getitems__(keys)
    assert isinstance(packed, Packed)
    return unpack(packed.buffer, len(keys), crops.config.crop)


def sample_of(crops: CropDataset, key: SampleKey) -> Sample:
    batch = micro_batch(crops, [key])
    scale, angle = float(batch.scale[0]), float(batch.angle[0])
    pose = None if np.isnan(scale) else Pose(scale, angle)
    return Sample(batch.image[0].permute(1, 2, 0).numpy(), batch.agl[0].numpy(), pose)


def position(store: Path, tile: str) -> int:
    return [entry.id for entry in Store(store).entries].index(tile)


def stream(store: Path, start: int, stop: int, rank: int = 0, world_size: int = 1, workers: int = 0) -> list[Batch]:
    crops = dataset(store, rank=rank)
    return list(batches(crops, Order(11, 0, len(crops), STAGE.batch), start, stop, rank, world_size, workers))


def same(first: Batch, second: Batch) -> bool:
    return all(
        a.dtype == b.dtype and torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_pixels_do_not_depend_on_the_number_of_workers(tiny_store: Path, workers: int) -> None:
    alone, read_ahead = stream(tiny_store, 0, 3), stream(tiny_store, 0, 3, workers=workers)
    assert len(alone) == 9
    assert all(map(same, alone, read_ahead))


@pytest.mark.parametrize("world_size", [2, 3])
def test_pixels_do_not_depend_on_the_number_of_processes(tiny_store: Path, world_size: int) -> None:
    alone = stream(tiny_store, 0, 3)
    shares = [iter(stream(tiny_store, 0, 3, rank, world_size)) for rank in range(world_size)]
    together = [next(shares[number % 3 % world_size]) for number in range(9)]
    assert all(map(same, alone, together))


def test_pixels_do_not_depend_on_where_a_run_is_resumed(tiny_store: Path) -> None:
    whole = stream(tiny_store, 0, 5)
    for start in range(5):
        assert all(map(same, stream(tiny_store, start, 5), whole[3 * start :]))


def test_another_epoch_is_another_crop_of_the_same_tile(tiny_store: Path) -> None:
    crops = dataset(tiny_store)
    assert not np.array_equal(sample_of(crops, SampleKey(0, 0)).rgb, sample_of(crops, SampleKey(1, 0)).rgb)


def test_without_augmentation_a_crop_is_a_piece_of_its_tile(tiny_store: Path) -> None:
    crops = dataset(tiny_store, StageConfig(crop=64, batch=2, micro_batch=2))
    store, wide = Store(tiny_store), position(tiny_store, "AAA_01")
    rgb, agl = store.read_tile(wide)
    sample = sample_of(crops, SampleKey(0, wide))
    places = [
        (y, x)
        for y in range(80 - 63)
        for x in range(130 - 63)
        if np.array_equal(rgb[y : y + 64, x : x + 64], sample.rgb)
    ]
    assert len(places) == 1
    (y, x), entry = places[0], store.entries[wide]
    assert np.array_equal(agl[y : y + 64, x : x + 64], sample.agl)
    assert entry.scale is not None
    assert entry.angle is not None
    assert sample.pose is not None
    assert sample.pose.scale == pytest.approx(entry.scale)
    assert sample.pose.angle == pytest.approx(entry.angle)


def test_a_tile_smaller_than_the_crop_is_padded_with_unknown_heights(tiny_store: Path) -> None:
    small = position(tiny_store, "BBB_02")  # 60 x 64
    sample = sample_of(dataset(tiny_store, StageConfig(crop=96, batch=2, micro_batch=2)), SampleKey(0, small))
    assert sample.rgb.shape == (96, 96, 3)
    assert (sample.agl[60:] == 65535).all()
    assert (sample.agl[:, 64:] == 65535).all()
    assert (sample.agl[5:60, :64] != 65535).all()
    assert not sample.rgb[60:].any()


def test_image_heights_and_angle_turn_together(tiny_store: Path) -> None:
    """Marks an arrow in the pixels along the flow and follows it through every augmentation."""
    store = Store(tiny_store)
    turned = CropDataset(store, [0], StageConfig(crop=96, augment=STAGE.augment), seed=1, stage=0)
    plain = CropDataset(store, [0], StageConfig(crop=96), seed=1, stage=0)
    kinds = set()
    original = sample_of(plain, SampleKey(0, 0))
    assert original.pose is not None
    for epoch in range(60):
        sample = sample_of(turned, SampleKey(epoch, 0))
        assert sample.pose is not None
        start, end = (find(original.agl, sample.agl, point) for point in ((40, 40), (50, 40)))
        # the step (0, 10) in the original image, y down, is angle 0; its image under the symmetry tells the turn
        moved = np.arctan2(end[1] - start[1], end[0] - start[0])
        right = find(original.agl, sample.agl, (40, 50))
        mirrored = (end[1] - start[1]) * (right[0] - start[0]) > (end[0] - start[0]) * (right[1] - start[1])
        expected = moved - original.pose.angle if mirrored else moved + original.pose.angle
        assert np.cos(sample.pose.angle - expected) == pytest.approx(1)
        assert sample.pose.scale == original.pose.scale
        kinds.add((round(float(moved), 2), bool(mirrored)))
    assert len(kinds) == 8


def find(original: np.ndarray, turned: np.ndarray, point: tuple[int, int]) -> tuple[int, int]:
    """Where the 3 x 3 neighbourhood of `point`, as a multiset of heights, went."""
    y, x = point
    wanted = np.sort(original[y - 1 : y + 2, x - 1 : x + 2].ravel())
    candidates = np.argwhere(turned == original[y, x])
    for row, column in candidates:
        if np.array_equal(np.sort(turned[row - 1 : row + 2, column - 1 : column + 2].ravel()), wanted):
            return int(row), int(column)
    raise AssertionError("the neighbourhood is gone")


def test_a_tile_without_vector_flow_has_no_pose(tiny_store: Path) -> None:
    crops = dataset(tiny_store)
    nadir, oblique = (position(tiny_store, tile) for tile in ("BBB_04", "AAA_05"))
    batch = micro_batch(crops, [SampleKey(0, nadir), SampleKey(0, oblique)])
    assert batch.scale.isnan().tolist() == [True, False]
    assert batch.angle.isnan().tolist() == [True, False]
    assert batch.image.shape == (2, 3, 64, 64)
    assert batch.agl.dtype == torch.uint16
    assert batch.sample.tolist() == [nadir, oblique]


def test_the_global_generators_of_this_process_are_left_alone(tiny_store: Path) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    expected = float(torch.rand(1)), float(np.random.random()), random.random()
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    stream(tiny_store, 0, 2)
    stream(tiny_store, 0, 2, workers=1)
    assert (float(torch.rand(1)), float(np.random.random()), random.random()) == expected


@pytest.mark.parametrize(("count", "size"), [(1, 32), (3, 33), (8, 64)])
def test_the_parts_of_a_batch_lie_in_one_buffer_and_do_not_touch(count: int, size: int) -> None:
    end = places_of(count, size)[-1]
    buffer = torch.zeros(end, dtype=torch.uint8)
    batch = unpack(buffer, count, size)
    assert [(part.dtype, tuple(part.shape)) for part in batch] == parts_of(count, size)
    for number, part in enumerate(batch):
        assert part.data_ptr() % 8 == buffer.data_ptr() % 8
        part.view(torch.uint8).fill_(number + 1)
    assert all((part.view(torch.uint8) == number + 1).all() for number, part in enumerate(batch))
    assert int((buffer > 0).sum()) == sum(part.numel() * part.element_size() for part in batch) > end - 8 * ALIGNMENT


def test_a_worker_writes_its_crops_where_the_trainer_reads_them(
    tiny_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise every batch would be copied once more in the worker."""
    real = CropDataset.__getitems__

    def marked(crops: CropDataset, keys: list[SampleKey]) -> Packed | Refusal:
        packed = real(crops, keys)
        assert isinstance(packed, Packed)
        packed.buffer[-2] = packed.buffer.is_shared()  # padding
        return packed

    monkeypatch.setattr(CropDataset, "__getitems__", marked)
    for workers in (0, 1):
        batch = stream(tiny_store, 0, 1, workers=workers)[0]
        flat = torch.empty(0, dtype=torch.uint8).set_(batch.image.untyped_storage())  # type: ignore[call-overload]
        assert int(flat[-2]) == workers
        assert all(part.untyped_storage().data_ptr() == flat.data_ptr() for part in batch)


def test_a_worker_holds_no_more_the_more_it_has_read(tiny_store: Path) -> None:
    crops = dataset(tiny_store, StageConfig(crop=32, batch=8, micro_batch=8, augment=STAGE.augment))

    def read(epochs: range) -> int:
        for epoch in epochs:
            micro_batch(crops, [SampleKey(epoch, sample) for sample in range(13)])
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        begun = read(range(5))
        assert read(range(5, 45)) < begun + 20_000
    finally:
        tracemalloc.stop()
