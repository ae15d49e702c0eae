"""The codecs: what is encoded comes back to the bit, whole and in parts, or is refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from agl_core.data.store.codec import (
    BLOCK,
    CODECS,
    SUBTILE,
    Crop,
    Part,
    decode_into,
    encode_tile,
    filtered_agl,
    filtered_rgb,
    sound,
    subtiles,
)

Image = tuple[NDArray[np.uint8], NDArray[np.uint16]]


def noise(height: int, width: int, seed: int = 0) -> Image:
    generator = np.random.default_rng([seed, height, width])
    rgb = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return rgb, generator.integers(0, 65536, (height, width)).astype(np.uint16)


def smooth(height: int, width: int) -> Image:
    """A slope with a wall and a hole."""
    y, x = np.mgrid[:height, :width]
    agl = (y * 5 + x * 3 + 2000 * (x > width // 2)).astype(np.uint16)
    agl[: height // 4, : width // 3] = 65535
    light = (40 + (x + y) // 8 % 100)[..., None] + np.array([0, 5, 9])
    return light.astype(np.uint8), agl


def decoded(codec: str, values: list[bytes], height: int, width: int) -> Image:
    planes, agl = np.full((3, height, width), 99, np.uint8), np.full((height, width), 99, np.uint16)
    for (row, column, rows, columns), value in zip(subtiles(height, width), values, strict=True):
        high, wide = rows.stop - rows.start, columns.stop - columns.start
        part = Part(row, column, high, wide, 0, 0, high, wide, rows.start, columns.start)
        decode_into(codec, value, part, Crop(planes, agl))
    return planes.transpose(1, 2, 0), agl


def assert_comes_back(codec: str, image: Image) -> None:
    rgb, agl = decoded(codec, encode_tile(codec, *image), *image[1].shape)
    assert np.array_equal(rgb, image[0])
    assert np.array_equal(agl, image[1])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 2), (128, 128), (129, 127), (256, 257), (400, 513)])
def test_tiles_of_all_sizes_come_back(codec: str, shape: tuple[int, int]) -> None:
    assert_comes_back(codec, noise(*shape))
    assert_comes_back(codec, smooth(*shape))


@pytest.mark.parametrize("codec", CODECS)
@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.data())
def test_any_tile_comes_back(codec: str, data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    extreme = st.sampled_from([0, 1, 127, 128, 255, 256, 32767, 32768, 65534, 65535])
    agl = data.draw(arrays.arrays(np.uint16, (height, width), elements=extreme))
    rgb = data.draw(arrays.arrays(np.uint8, (height, width, 3), elements=st.sampled_from([0, 1, 127, 128, 254, 255])))
    assert_comes_back(codec, (rgb, agl))


@pytest.mark.parametrize("codec", CODECS)
@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.data())
def test_any_part_of_a_sub_tile_is_that_part_and_touches_nothing_else(codec: str, data: st.DataObject) -> None:
    height, width = data.draw(st.sampled_from([(256, 256), (200, 130), (1, 129)]))
    image = noise(height, width)
    (value,) = encode_tile(codec, *image)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    rows, columns = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    to_row, to_column = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9))
    planes = np.full((3, to_row + rows + 2, to_column + columns + 3), 77, np.uint8)
    agl = np.full(planes.shape[1:], 77, np.uint16)
    decode_into(codec, value, Part(0, 0, height, width, top, left, rows, columns, to_row, to_column), Crop(planes, agl))
    expected, expected_agl = np.full_like(planes, 77), np.full_like(agl, 77)
    there, part = np.s_[to_row : to_row + rows, to_column : to_column + columns], np.s_[top : top + rows, left:]
    expected[(slice(None), *there)] = image[0][part].transpose(2, 0, 1)[..., :columns]
    expected_agl[there] = image[1][part][:, :columns]
    assert np.array_equal(planes, expected)
    assert np.array_equal(agl, expected_agl)


def test_values_do_not_depend_on_how_the_arrays_lie_in_memory() -> None:
    rgb, agl = noise(300, 270)
    turned = np.asfortranarray(rgb), np.asfortranarray(agl)
    for codec in CODECS:
        assert encode_tile(codec, rgb, agl) == encode_tile(codec, *turned)


def test_sub_tiles_come_row_by_row_and_cover_the_tile_once() -> None:
    seen = np.zeros((SUBTILE * 2 + 1, SUBTILE + 3), int)
    places = []
    for row, column, rows, columns in subtiles(*seen.shape):
        places.append((row, column))
        seen[rows, columns] += 1
    assert (seen == 1).all()
    assert places == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]


def test_the_filter_is_that_of_its_description() -> None:
    agl = np.array([[100, 101, 99], [100, 65535, 0]], np.uint16)
    # First row to the left: 100, 1, -2; then to the row above: 0, 65434 = -102, -99.
    low = filtered_agl(agl)
    assert (low[0].astype(int) + 256 * low[1].astype(int)).tolist() == [[200, 2, 3], [0, 203, 197]]
    planes = np.array([[[10], [13]], [[4], [2]], [[3], [255]]], np.uint8)
    assert filtered_rgb(planes).tolist() == [[[6], [5]], [[4], [254]], [[255], [254]]]


def test_each_block_can_be_decoded_without_the_others() -> None:
    one, two = noise(BLOCK + 1, BLOCK + 1), noise(BLOCK + 1, BLOCK + 1, seed=1)
    for last in (one, two):
        last[0][BLOCK:, BLOCK:], last[1][BLOCK:, BLOCK:] = 5, 6
    for filtered in (
        [filtered_agl(agl) for _, agl in (one, two)],
        [filtered_rgb(rgb.transpose(2, 0, 1)) for rgb, _ in (one, two)],
    ):
        assert np.array_equal(filtered[0][:, BLOCK:, BLOCK:], filtered[1][:, BLOCK:, BLOCK:])


def test_zstd_makes_what_is_smooth_small_and_what_is_not_hardly_larger() -> None:
    size = 5 * 512 * 512
    assert sum(map(len, encode_tile("zstd", *smooth(512, 512)))) < size / 10
    assert sum(map(len, encode_tile("zstd", *noise(512, 512)))) < size * 1.01
    assert sum(map(len, encode_tile("raw", *noise(512, 512)))) == size + 4 * 8


@pytest.mark.parametrize("codec", CODECS)
def test_every_flipped_bit_is_found(codec: str) -> None:
    (value,) = encode_tile(codec, *smooth(5, 4))
    assert sound(value)
    for bit in range(8 * len(value)):
        bad = bytearray(value)
        bad[bit // 8] ^= 1 << bit % 8
        assert not sound(bad)
        with pytest.raises(ValueError, match="checksum is wrong"):
            decode_into(codec, bad, Part(0, 0, 5, 4, 0, 0, 5, 4, 0, 0), empty_crop())
    for length in range(len(value)):
        assert not sound(value[:length])


def empty_crop() -> Crop:
    return Crop(np.empty((3, 256, 256), np.uint8), np.empty((256, 256), np.uint16))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", [(5, 5), (4, 4), (200, 4), (4, 200)])
def test_a_sound_value_of_another_size_is_refused(codec: str, shape: tuple[int, int]) -> None:
    (value,) = encode_tile(codec, *smooth(5, 4))
    with pytest.raises(ValueError, match="another size"):
        decode_into(codec, value, Part(0, 0, *shape, 0, 0, *shape, 0, 0), empty_crop())


def test_a_sound_value_of_another_codec_is_refused() -> None:
    values = {codec: encode_tile(codec, *smooth(5, 4))[0] for codec in CODECS}
    for codec, other in (("raw", "zstd"), ("zstd", "raw")):
        with pytest.raises(ValueError, match="another size"):
            decode_into(codec, values[other], Part(0, 0, 5, 4, 0, 0, 5, 4, 0, 0), empty_crop())


def test_arrays_that_are_not_one_tile_are_refused() -> None:
    rgb, agl = smooth(5, 4)
    for wrong in ((rgb[:4], agl), (rgb.astype(np.int16), agl), (rgb, agl.astype(np.int32)), (rgb[..., :2], agl)):
        with pytest.raises(ValueError, match="are not one tile"):
            encode_tile("raw", *wrong)  # type: ignore[arg-type]


def test_frames_know_their_size() -> None:
    rgb, agl = smooth(5, 4)
    (value,) = encode_tile("zstd", rgb, agl)
    lengths = np.frombuffer(value, "<u4", 2, 8).tolist()
    first, second = value[16 : 16 + lengths[0]], value[16 + lengths[0] :]
    assert [zstandard.frame_content_size(frame) for frame in (first, second)] == [40, 60]


def test_raw_is_read_without_waiting_for_the_compiler(tmp_path: Path) -> None:
    code = """if True:
        import sys, numpy as np
        from agl_core.data.store import Store, StoreEntry, StoreWriter
        with StoreWriter(sys.argv[1], sys.argv[2]) as writer:
            writer.write(StoreEntry("A_a", "A", 1.0, 3, 3), np.zeros((3, 3, 3), np.uint8), np.zeros((3, 3), np.uint16))
            writer.seal()
        Store(sys.argv[1]).read_into(0, 0, 0, np.empty((3, 3, 3), np.uint8), np.empty((3, 3), np.uint16))
        print([name for name in ("numba", "torch", "cv2") if name in sys.modules])
    """
    for codec, imported in (("raw", "[]"), ("zstd", "['numba']")):
        command = [sys.executable, "-c", code, str(tmp_path / codec), codec]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == imported
