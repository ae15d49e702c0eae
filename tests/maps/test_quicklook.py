"""The verb `quicklook`: a picture of each image."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio

from agl_core.config import QuicklookConfig
from agl_core.data.tiles import write_agl, write_rgb, write_vflow
from agl_core.errors import UserError
from agl_core.geometry import Pose
from agl_core.maps.quicklook import quicklook
from agl_core.reporting.pictures.look import look

POSE = Pose(1.3, 2.2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("A_1", "A_2"):
        agl = np.zeros((80, 120), np.uint16)
        agl[20:50, 30:60] = 1500
        write_agl(tmp_path / f"{name}_AGL.tif", agl, "cm")
        write_vflow(tmp_path / f"{name}_VFLOW.json", POSE, "cm")
        write_rgb(tmp_path / f"{name}_RGB.tif", np.full((80, 120, 3), 90, np.uint8))
    return tmp_path


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read().transpose(1, 2, 0)


def config(folder: Path, **values: object) -> QuicklookConfig:
    return replace(QuicklookConfig(predictions=str(folder), width=240), **values)  # type: ignore[arg-type]


def test_every_image_is_drawn_beside_its_heights(folder: Path) -> None:
    assert quicklook(config(folder)) == 2
    agl = np.zeros((80, 120), np.uint16)
    agl[20:50, 30:60] = 1500
    drawn = look(np.full((80, 120, 3), 90, np.uint8), agl, POSE, None, "A_2", 240)
    assert np.array_equal(read(folder / "A_2_LOOK.png"), drawn)
    assert not list(folder.glob(".*"))


def test_only_those_that_are_asked_for_and_where(folder: Path) -> None:
    assert quicklook(config(folder, ids="A_2", out=str(folder / "new"))) == 1
    assert [path.name for path in (folder / "new").iterdir()] == ["A_2_LOOK.png"]


def test_without_its_image_and_with_an_uncertainty_it_is_drawn_too(folder: Path) -> None:
    quicklook(config(folder, ids="A_1"))
    both = read(folder / "A_1_LOOK.png").shape
    write_agl(folder / "A_1_SPREAD.tif", np.full((80, 120), 40, np.uint16), "cm")
    quicklook(config(folder, ids="A_1"))
    three = read(folder / "A_1_LOOK.png").shape
    assert three[0] * three[1] > 1.3 * both[0] * both[1]
    (folder / "A_1_RGB.tif").unlink()
    (folder / "A_1_SPREAD.tif").unlink()
    quicklook(config(folder, ids="A_1"))
    one = read(folder / "A_1_LOOK.png").shape
    assert one[0] * one[1] < 0.8 * both[0] * both[1]


def test_a_large_image_is_made_smaller(folder: Path) -> None:
    agl = np.zeros((900, 1300), np.uint16)
    agl[200:500, 300:600] = 1500
    write_agl(folder / "A_1_AGL.tif", agl, "cm")
    write_rgb(folder / "A_1_RGB.tif", np.full((900, 1300, 3), 90, np.uint8))
    quicklook(config(folder, ids="A_1", width=100))
    assert max(read(folder / "A_1_LOOK.png").shape) < 420


def test_all_problems_are_told_at_once(folder: Path) -> None:
    with pytest.raises(UserError, match=r"has no A_7, A_8: give ids .* as A_1"):
        quicklook(config(folder, ids="A_1,A_7,A_8"))
    write_rgb(folder / "A_1_RGB.tif", np.zeros((81, 120, 3), np.uint8))
    (folder / "A_2_VFLOW.json").write_text("[]")
    with pytest.raises(UserError) as refused:
        quicklook(config(folder))
    assert "2 problems" in str(refused.value)
    assert "81 x 120" in str(refused.value)
    assert not list(folder.glob("*.png"))
