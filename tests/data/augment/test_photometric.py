"""Photometric augmentation: what each operation does to the colours, and where its numbers come from."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from agl_core.config import AugmentConfig
from agl_core.data.augment import blur, colour, noise, weather
from agl_core.data.augment.photometric import HOLE, HOLES, KINDS, PHOTOMETRIC, holes_of, photometric
from agl_core.data.seeding import OPERATIONS, SampleStreams
from agl_core.opencv import cv2

Image = NDArray[np.uint8]
ALL = AugmentConfig(**dict.fromkeys(PHOTOMETRIC, 1.0))
EACH = {f"{name} {kind}".strip(): operation for name, kinds in KINDS.items() for kind, operation in kinds.items()}
SIZES = [(1, 1), (1, 9), (7, 1), (2, 3), (31, 33), (40, 5), (130, 97)]


def generator(number: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(number))


def scene(height: int = 128, width: int = 160, seed: int = 0) -> Image:
    """Smooth patches of several colours, neither black nor white."""
    small = np.random.default_rng(seed).integers(40, 216, (9, 9, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def plain(level: int, side: int = 512) -> Image:
    return np.full((side, side, 3), level, np.uint8)


def ramp() -> Image:
    """All levels, in all bands alike."""
    return np.ascontiguousarray(np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (4, 256, 3)))


# What holds for every operation


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_size_goes_in_and_comes_out_as_contiguous_bytes(name: str, size: tuple[int, int]) -> None:
    for number in range(4):
        rgb = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        result = EACH[name](rgb, generator(number))
        assert (result.shape, result.dtype) == (rgb.shape, np.uint8)
        assert result.flags.c_contiguous


@pytest.mark.parametrize("name", EACH)
def test_the_input_is_never_changed(name: str) -> None:
    rgb = scene()
    before = rgb.copy()
    result = EACH[name](rgb, generator(3))
    assert np.array_equal(rgb, before)
    assert not np.shares_memory(result, rgb)
    assert not np.array_equal(result, rgb), "it does something"


@pytest.mark.parametrize("name", EACH)
def test_the_result_is_a_function_of_image_and_generator_alone(name: str) -> None:
    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        first = EACH[name](scene(600, 500), generator(5))
        cv2.setNumThreads(4)
        np.random.seed(99)
        cv2.setRNGSeed(99)
        second = EACH[name](scene(600, 500), generator(5))
    finally:
        cv2.setNumThreads(threads)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, EACH[name](scene(600, 500), generator(6)))


# The chain


def test_the_operations_are_those_with_streams_and_chances_in_the_recipes_order() -> None:
    assert tuple(PHOTOMETRIC) == OPERATIONS[4:]
    assert all(getattr(AugmentConfig(), name) == 0.0 for name in PHOTOMETRIC)


def test_without_chances_the_image_is_left_as_it_is_and_no_stream_is_opened() -> None:
    rgb = scene()

    def no_streams(operation: str) -> np.random.Generator:
        raise AssertionError(f"the stream of {operation} was opened")

    assert photometric(rgb, AugmentConfig(), no_streams) is rgb  # type: ignore[arg-type]


def test_the_chain_is_its_operations_in_order_each_with_its_own_stream() -> None:
    streams = SampleStreams(7, 1, 2, 3)
    expected = scene()
    for name, operation in PHOTOMETRIC.items():
        own = streams(name)
        own.random()
        expected = operation(expected, own)
    rgb = scene()
    assert np.array_equal(photometric(rgb, ALL, streams), expected)
    assert np.array_equal(rgb, scene())


def test_the_same_sample_has_the_same_bits_and_another_has_others() -> None:
    results = [photometric(scene(), ALL, SampleStreams(7, 1, 2, index)) for index in (3, 3, 4)]
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_the_chance_of_one_does_not_move_what_another_draws(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, float] = {}
    for other in PHOTOMETRIC:

        def spy(rgb: Image, own: np.random.Generator, other: str = other) -> Image:
            drawn[other] = own.random()
            return rgb

        monkeypatch.setitem(PHOTOMETRIC, other, spy)
    photometric(scene(), ALL, SampleStreams(1, 0, 0, 0))
    full = dict(drawn)
    drawn.clear()
    photometric(scene(), replace(ALL, **{name: 0.0}), SampleStreams(1, 0, 0, 0))
    assert drawn == {other: value for other, value in full.items() if other != name}
    assert len(set(full.values())) == len(PHOTOMETRIC), "no two share a stream"


@pytest.mark.parametrize("chance", [0.2, 0.5])
def test_an_operation_is_used_as_often_as_its_chance_says(chance: float) -> None:
    config, rgb = AugmentConfig(shadow=chance), scene(8, 8)
    used = sum(photometric(rgb, config, SampleStreams(0, 0, 0, index)) is not rgb for index in range(2000))
    assert used / 2000 == pytest.approx(chance, abs=0.04)


# Each of them


def test_dropout_cuts_eight_black_squares() -> None:
    white = plain(255)
    for number in range(5):
        holes = (PHOTOMETRIC["dropout"](white, generator(number)) == 0).all(axis=2)
        assert set(np.unique(PHOTOMETRIC["dropout"](white, generator(number)))) == {0, 255}
        count, _, about, _ = cv2.connectedComponentsWithStats(holes.astype(np.uint8), connectivity=4)
        alone = [row for row in about[1:] if row[cv2.CC_STAT_AREA] == HOLE**2]
        assert all(row[cv2.CC_STAT_WIDTH] == HOLE and row[cv2.CC_STAT_HEIGHT] == HOLE for row in alone)
        assert holes.sum() <= HOLES * HOLE**2
        if count - 1 == HOLES:  # none touches another
            assert len(alone) == HOLES
            return
    raise AssertionError("eight squares never lay apart")


def test_holes_may_lie_anywhere_and_leave_most_of_a_small_crop() -> None:
    ever = np.zeros((96, 96), bool)
    for number in range(400):
        holes = (PHOTOMETRIC["dropout"](plain(9, 96), generator(number)) == 0).all(axis=2)
        assert holes.mean() <= 1 / 8
        ever |= holes
    assert ever[8:-8, 8:-8].all()
    assert all(side.any() for side in (ever[0], ever[-1], ever[:, 0], ever[:, -1]))
    assert (holes_of(512, 512), holes_of(128, 128), holes_of(3, 3)) == (8, 2, 1)


@pytest.mark.parametrize("kind", blur.BLURS)
def test_blurs_remove_detail_and_keep_the_mean(kind: str) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    for number in range(10):
        blurred = blur.BLURS[kind](rgb, generator(number))
        assert blurred.mean() == pytest.approx(rgb.mean(), abs=1.5)
        assert blurred.std() < 0.75 * rgb.std()


@pytest.mark.parametrize("kind", ["box", "gaussian", "motion"])
def test_blurs_do_not_move_the_image_against_its_heights(kind: str) -> None:
    point = np.zeros((31, 31, 3), np.uint8)
    point[15, 15] = 255
    y, x = np.indices((31, 31))
    for number in range(30):
        blurred = blur.BLURS[kind](point, generator(number))[..., 0].astype(float)
        assert np.sum(x * blurred) / blurred.sum() == pytest.approx(15, abs=1e-9)
        assert np.sum(y * blurred) / blurred.sum() == pytest.approx(15, abs=1e-9)


def test_motion_blur_is_a_line_in_every_direction() -> None:
    point = np.zeros((31, 31, 3), np.uint8)
    point[15, 15] = 255
    shapes, lengths = set(), set()
    for number in range(60):
        rows, columns = np.nonzero(blur.motion(point, generator(number))[..., 0])
        lengths.add(len(rows))
        assert len(rows) == max(np.ptp(rows), np.ptp(columns)) + 1
        shapes.add((int(np.ptp(rows)), int(np.ptp(columns)), bool(columns[0] < columns[-1])))
    assert lengths == {3, 5, 7}
    assert len(shapes) > 8


def test_glass_scatters_evenly_and_not_far() -> None:
    y, x = np.indices((200, 200))
    position = np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8)
    moved = blur.glass(position, generator()).astype(int)[20:-20, 20:-20] - position[20:-20, 20:-20]
    assert abs(moved[..., :2].mean()) < 0.1
    assert 2 < np.abs(moved[..., :2]).max() <= blur.GLASS_REACH
    assert moved[..., 0].std() == pytest.approx(moved[..., 1].std(), rel=0.05)


@pytest.mark.parametrize("curve", [colour.brightness, colour.gamma, colour.tone_curve])
def test_curves_never_fall_and_treat_all_bands_alike(curve: blur.Operation) -> None:
    for number in range(50):
        result = curve(ramp(), generator(number))[0].astype(int)
        assert (np.diff(result[:, 0]) >= 0).all()
        assert (result == result[:, :1]).all()


def test_brightness_stays_within_its_limits() -> None:
    lifts, gains = [], []
    for number in range(300):
        low, high = (int(colour.brightness(plain(level, 1), generator(number))[0, 0, 0]) for level in (100, 150))
        gains.append((high - low) / 50)
        lifts.append(low - 100 * gains[-1])
    assert min(gains) == pytest.approx(0.8, abs=0.03)
    assert max(gains) == pytest.approx(1.2, abs=0.03)
    assert min(lifts) == pytest.approx(-51, abs=4)
    assert max(lifts) == pytest.approx(51, abs=4)


def test_gamma_and_tone_curve_keep_black_and_white() -> None:
    for number in range(50):
        for curve in (colour.gamma, colour.tone_curve):
            result = curve(ramp(), generator(number))[0, :, 0]
            assert (result[0], result[255]) == (0, 255)
    at = ramp()[0, :, 0].astype(int)
    curves = np.array([colour.tone_curve(ramp(), generator(number))[0, :, 0] for number in range(200)])
    assert np.abs(curves.mean(axis=0) - at)[[64, 128, 192]] == pytest.approx((6, 0, 6), abs=2)
    assert (curves.mean(axis=0) - at)[64] < 0 < (curves.mean(axis=0) - at)[192], "more contrast in the middle"
    assert np.abs(curves - at).max() > 20
    exponent = generator(1).uniform(*colour.GAMMA)
    expected = 255 * (100 / 255) ** exponent
    assert colour.gamma(plain(100, 1), generator(1))[0, 0, 0] == pytest.approx(expected, abs=0.51)


def test_jitter_leaves_grey_grey_and_turns_the_hue() -> None:
    rgb = scene()
    hues = []
    for number in range(100):
        grey = colour.jitter(ramp(), generator(number)).astype(int)
        assert np.ptp(grey, axis=2).max() <= 1
        red = colour.jitter(np.full((1, 1, 3), (150, 100, 100), np.uint8), generator(number))
        hues.append(int(cv2.cvtColor(red, cv2.COLOR_RGB2HSV)[0, 0, 0]) * 2)
        assert 0.6 * rgb.std() < colour.jitter(rgb, generator(number)).std() < 1.6 * rgb.std()
    # 72 degrees of (I, Q) are up to 90 of the hexagon that is the hue of HSV
    turns = (np.array(hues) + 180) % 360 - 180
    assert -95 <= turns.min() < -40
    assert 40 < turns.max() <= 95


def test_jitter_without_a_change_is_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(colour, "JITTER", 0.0)
    monkeypatch.setattr(colour, "JITTER_HUE", 0.0)
    assert np.abs(colour.jitter(scene(), generator()).astype(int) - scene()).max() <= 1


def test_contrast_in_jitter_keeps_the_mean_grey(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(colour, "JITTER_HUE", 0.0)
    rgb = scene()
    before = float(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).mean())
    for number in range(20):
        light = 1 + generator(number).uniform(-0.2, 0.2, 3)[0]
        after = float(cv2.cvtColor(colour.jitter(rgb, generator(number)), cv2.COLOR_RGB2GRAY).mean())
        assert after == pytest.approx(min(light * before, 255), rel=0.03)


def test_the_table_of_noise_is_normal() -> None:
    table = noise.normal_table().astype(float)
    assert table.std() == pytest.approx(1)
    assert np.array_equal(table, -table[::-1])
    assert np.mean(table**4) == pytest.approx(3, rel=0.01)
    assert np.mean(np.abs(table) < 1) == pytest.approx(0.6827, abs=1e-3)
    assert 4 < table.max() < 4.5


@pytest.mark.parametrize("number", range(5))
def test_gaussian_noise_has_the_variance_it_draws(number: int) -> None:
    own = generator(number)
    variance = own.uniform(*noise.VARIANCE)
    left = noise.gaussian(plain(128), generator(number)).astype(float) - 128
    assert left.var() == pytest.approx(variance + 1 / 12, rel=0.01)
    assert left.mean() == pytest.approx(0, abs=0.05)
    assert np.mean(left**4) / left.var() ** 2 == pytest.approx(3, abs=0.1)
    bands = np.corrcoef(left.reshape(-1, 3).T) - np.eye(3)
    assert np.abs(bands).max() < 0.01, "bands are independent"
    assert abs(np.corrcoef(left[:, 1:, 0].ravel(), left[:, :-1, 0].ravel())[0, 1]) < 0.01, "and pixels"


def test_noise_at_the_ends_of_the_scale_is_clipped_and_does_not_wrap() -> None:
    for operation in noise.NOISES.values():
        assert operation(plain(255), generator()).min() > 180
        assert operation(plain(0), generator()).max() < 75


@pytest.mark.parametrize("number", range(5))
def test_a_cameras_noise_grows_with_the_light_and_is_coarse_in_colour(number: int) -> None:
    own = generator(number)
    grey_spread, colour_spread = own.uniform(*noise.GREY_SPREAD), own.uniform(*noise.COLOUR_SPREAD)
    left = noise.camera(plain(128), generator(number)).astype(float) - 128
    grey, hue = left.mean(axis=2), left[..., 0] - left[..., 1]
    rounding = 1 / 12 + 1 / 36  # of the grey, and of the three bands' colours
    assert grey.var() == pytest.approx(grey_spread**2 + rounding, rel=0.05)
    assert left.var() == pytest.approx(grey_spread**2 + colour_spread**2 + 1 / 6, rel=0.05)
    assert np.array_equal(hue[::2, ::2], hue[1::2, 1::2])
    dark = noise.camera(plain(32), generator(number)).astype(float) - 32
    assert dark.mean(axis=2).var() == pytest.approx(grey_spread**2 / 4 + rounding, rel=0.05)


def test_fancy_pca_shifts_all_colours_alike_along_the_axes() -> None:
    base = np.random.default_rng(0).normal(0, 1, (200, 200, 1))
    rgb = np.clip(128 + 30 * base * (1.0, 0.8, 0.6), 20, 235).astype(np.uint8)  # one axis and almost nothing else
    spread, axes = colour.colour_axes(rgb)
    main = np.array([1.0, 0.8, 0.6]) / np.linalg.norm([1.0, 0.8, 0.6])
    assert axes[:, 2] == pytest.approx(main, abs=0.02)
    assert spread[2] == pytest.approx(30 * np.linalg.norm([1.0, 0.8, 0.6]), rel=0.05)
    lengths = []
    for number in range(300):
        moved = colour.fancy_pca(rgb, generator(number)).astype(int) - rgb
        shift = moved.mean(axis=(0, 1))
        assert np.ptp(moved, axis=(0, 1)).max() <= 1, "one shift, but for rounding"
        assert np.linalg.norm(shift - main * (shift @ main)) < 1.0
        lengths.append(float(shift @ main))
    assert np.std(lengths) == pytest.approx(colour.PCA_SPREAD * spread[2], rel=0.15)


def test_fog_lightens_and_lowers_the_contrast() -> None:
    rgb = scene(256, 256)
    for number in range(20):
        foggy = weather.fog(rgb, generator(number)).astype(int)
        assert (foggy >= rgb).all()
        assert foggy.mean() > rgb.mean() + 2
        blocks = [image.reshape(8, 32, 8, 32, 3).std(axis=(1, 3)).mean() for image in (rgb, foggy)]
        assert blocks[1] < 0.97 * blocks[0]
    white = weather.fog(plain(255, 64), generator())
    assert (white == 255).all()


def test_the_thickest_fog_leaves_half_of_the_light() -> None:
    darkest = min(255 - int(weather.fog(plain(0, 128), generator(number)).max()) for number in range(60))
    assert 127 <= darkest < 160


def test_shadows_darken_by_half_where_they_fall_and_nothing_elsewhere() -> None:
    rgb = scene(256, 256)
    halved, shares = np.rint(rgb * weather.SHADOW_LIGHT), []
    for number in range(60):
        shaded = weather.shadow(rgb, generator(number))
        inside = (shaded != rgb).any(axis=2)
        assert np.array_equal(shaded[inside], halved[inside])
        shares.append(inside.mean())
    assert 0.02 < np.mean(shares) < 0.4
    assert max(shares) < 0.9


def test_a_flare_is_white_at_the_sun_and_never_darkens_by_more_than_its_reflections() -> None:
    rgb = plain(100, 256)
    for number in range(20):
        sun = generator(number).uniform(0.0, 1.0, 2) * 256
        flared = weather.sun_flare(rgb, generator(number)).astype(int)
        x, y = (min(int(place), 255) for place in sun)
        assert flared[y, x].min() > 200
        distance = np.hypot(*(np.indices((256, 256))[::-1] - sun[:, None, None]))
        light = (flared - rgb).mean(axis=2)
        rings = [light[(distance >= low) & (distance < low + 40)].mean() for low in (0, 40, 80, 120)]
        assert all(near > far for near, far in pairwise(rings))
        assert (flared - rgb).min() >= -weather.FLARE_CIRCLE_OPACITY[1] * weather.FLARE_CIRCLES[1] * 50
