"""The drawing of a contact sheet."""

import numpy as np
import pytest

from agl_core.reporting.pictures.sheet import (
    INK,
    MARGIN,
    RING,
    SIDE,
    WHITE,
    Arrow,
    Panel,
    Section,
    colours,
    contact_sheet,
    hatching,
    heights_picture,
    image_picture,
)


def has(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (picture == colour).all(axis=2)


@pytest.mark.parametrize("size", [(16, 16), (256, 256), (384, 384), (1000, 700), (3, 300)], ids=str)
def test_every_picture_is_brought_to_one_size(size: tuple[int, int]) -> None:
    expected = [max(1, round(length * SIDE / max(size))) for length in size]
    for picture in (image_picture(np.zeros((*size, 3), np.uint8)), heights_picture(np.zeros(size), 10.0)):
        assert picture.shape == (*expected, 3)
        assert picture.dtype == np.uint8


def test_colours_of_heights_get_brighter_and_end_at_the_most() -> None:
    bar = colours(np.linspace(0, 20, 64)[None], 20.0)[0].astype(float)
    light = bar @ (0.299, 0.587, 0.114)
    assert (np.diff(light) > 0).all(), "told apart without seeing colours"
    assert np.array_equal(colours(np.array([[20.0, 500.0]]), 20.0)[0, 0], colours(np.array([[500.0]]), 20.0)[0, 0])


def test_unknown_heights_are_hatched_and_no_height_looks_like_it() -> None:
    metres = np.full((96, 96), 4.0)
    metres[:48] = np.nan
    picture = heights_picture(metres, 8.0)
    assert np.array_equal(picture[: SIDE // 2], hatching(SIDE // 2, SIDE))
    assert (picture[SIDE // 2 :] == colours(np.array([[4.0]]), 8.0)).all()
    hatches = {tuple(pixel) for pixel in hatching(16, 16).reshape(-1, 3)}
    every = {tuple(pixel) for pixel in colours(np.linspace(0, 1, 256)[None], 1.0)[0]}
    assert len(hatches) == 2
    assert not hatches & every


def test_arrow_and_ring_lie_where_they_are_said_to_be() -> None:
    grey = np.full((96, 96, 3), 128, np.uint8)
    by = SIDE // 96
    picture = image_picture(grey, [Arrow((10, 40), (60, 40), (80, 70))])
    rows, columns = np.nonzero(has(picture, WHITE))
    assert (columns.min(), columns.max()) == pytest.approx((10.5 * by, 60.5 * by), abs=4)
    assert np.median(rows) == pytest.approx(40.5 * by, abs=1)
    rows, columns = np.nonzero(has(picture, RING))
    assert (rows.mean(), columns.mean()) == pytest.approx((70.5 * by, 80.5 * by), abs=1)
    assert np.array_equal(grey, np.full_like(grey, 128))


def test_the_sheet_holds_every_picture_as_it_is() -> None:
    pictures = [np.full((SIDE, SIDE, 3), 40 + 10 * number, np.uint8) for number in range(5)]
    panels = [Panel([picture], ["title", "more"]) for picture in pictures]
    sheet = contact_sheet("Title", "about", 30.0, [Section("First", panels, 2), Section("Second", [panels[0]], 4)])
    for number, times in enumerate([2, 1, 1, 1, 1]):
        assert has(sheet, (40 + 10 * number,) * 3).sum() == pytest.approx(times * SIDE**2, rel=0.01)
    border = np.ones(sheet.shape[:2], bool)
    border[MARGIN:-MARGIN, MARGIN:-MARGIN] = False
    assert (sheet[border] == 255).all()


def test_text_that_is_too_long_is_made_smaller_and_stays_inside() -> None:
    picture = np.full((SIDE, SIDE, 3), 200, np.uint8)
    widths = []
    for text in ("short", "long " * 40):
        sheet = contact_sheet("x", "x", 1.0, [Section("x", [Panel([picture], [text])], 1)])
        below = sheet[-MARGIN - 40 : -MARGIN]
        columns = np.nonzero((below < 200).any(axis=(0, 2)))[0]
        widths.append(columns.max() - columns.min())
        assert columns.max() < MARGIN + SIDE
    assert 0 < widths[0] < SIDE / 2 < widths[1]
    assert INK[0] < 50
