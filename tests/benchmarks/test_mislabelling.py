"""The wrong labels of the study are the reference's two errors and nothing else."""

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from agl_core.config import AugmentConfig, StageConfig
from agl_core.data.sampling import make_sample
from agl_core.data.seeding import SampleStreams, sample_generator
from agl_core.data.store import Store, StoreEntry, StoreWriter
from agl_core.data.tiles import UNKNOWN
from agl_core.geometry import Pose
from benchmarks.augmentation_study import study
from benchmarks.mislabelling import wrong_labels

SIZE, SIDE, GSD, LIGHT = 128, 160, 0.5, 200
HEAVY = study(False).config(study(False).arms[3], 0, Path()).stages["pretrain"].augment

Sample = tuple[NDArray[np.uint8], NDArray[np.uint16], Pose, float]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A tile of one colour, with towers on a plain and a pond of unknown height."""
    path = tmp_path_factory.mktemp("store")
    rgb = np.full((SIDE, SIDE, 3), LIGHT, np.uint8)
    agl = np.random.default_rng(0).integers(0, 3, (8, 8)).repeat(20, 0).repeat(20, 1).astype(np.uint16) * 900
    agl[40:80, 60:100] = UNKNOWN
    with StoreWriter(path) as writer:
        writer.write(StoreEntry("tile", "OMA", GSD, SIDE, SIDE, scale=0.8, angle=0.7), rgb, agl)
        writer.seal()
    return Store(path)


def sample(store: Store, augment: AugmentConfig, index: int) -> Sample:
    image, agl = np.empty((3, SIZE, SIZE), np.uint8), np.empty((SIZE, SIZE), np.uint16)
    config = StageConfig(crop=SIZE, augment=augment)
    streams, place = SampleStreams(1, 0, 0, index), sample_generator(1, 0, 0, index)
    pose, gsd = make_sample(store, 0, config, streams, place, image, agl)
    assert pose is not None
    return image, agl, pose, gsd


def pairs(store: Store, augment: AugmentConfig, count: int = 60) -> list[tuple[Sample, Sample]]:
    right = [sample(store, augment, index) for index in range(count)]
    with wrong_labels():
        wrong = [sample(store, augment, index) for index in range(count)]
    return list(zip(right, wrong, strict=True))


def test_images_and_all_other_labels_are_the_same_pixel_for_pixel(store: Store) -> None:
    for (image, agl, pose, gsd), (wrong_image, wrong_agl, wrong_pose, wrong_gsd) in pairs(store, HEAVY):
        assert np.array_equal(image, wrong_image)
        assert (pose.angle, gsd) == (wrong_pose.angle, wrong_gsd)
        assert np.array_equal(agl[agl != UNKNOWN], wrong_agl[agl != UNKNOWN])
        assert set(wrong_agl[agl == UNKNOWN].tolist()) <= {0, UNKNOWN}


def test_the_scale_is_divided_by_the_zoom_where_it_must_be_multiplied(store: Store) -> None:
    zooms = []
    for (_, _, pose, gsd), (_, _, wrong, _) in pairs(store, HEAVY):
        zoom = GSD / gsd
        assert math.isclose(pose.scale, 0.8 * zoom)
        assert math.isclose(wrong.scale, 0.8 / zoom)
        zooms.append(zoom)
    assert min(zooms) < 0.8
    assert max(zooms) > 1.2
    assert 20 < zooms.count(1.0) < 40  # the chance is one half


def test_what_lies_outside_the_image_has_height_0_and_what_is_unknown_in_it_stays_unknown(store: Store) -> None:
    outside = unknown = 0
    for (image, agl, _, _), (_, wrong, _, _) in pairs(store, AugmentConfig(rot90=0.5, rotate=0.7, zoom=0.7)):
        black, whole = (image == 0).all(0), (image == LIGHT).all(0)
        assert (agl[black] == UNKNOWN).all()
        assert (wrong[black] == 0).all()
        assert (wrong[whole & (agl == UNKNOWN)] == UNKNOWN).all()
        outside, unknown = outside + int(black.sum()), unknown + int((whole & (agl == UNKNOWN)).sum())
    assert outside > 1000
    assert unknown > 1000


def test_samples_that_are_neither_turned_nor_zoomed_have_right_labels(store: Store) -> None:
    symmetries = AugmentConfig(rot90=1.0, flip_horizontal=0.5, transpose=0.5)
    for augment in (AugmentConfig(), symmetries, AugmentConfig(stretch=1.0, flip_vertical=0.5)):
        for (_, agl, *labels), (_, wrong_agl, *wrong_labels_) in pairs(store, augment, 10):
            assert labels == wrong_labels_
            assert np.array_equal(agl, wrong_agl)


def test_the_labels_are_right_again_afterwards(store: Store) -> None:
    zoomed = AugmentConfig(zoom=1.0)
    before = sample(store, zoomed, 0)[2]
    with wrong_labels():
        assert sample(store, zoomed, 0)[2] != before
    assert sample(store, zoomed, 0)[2] == before
