"""Where pixels lie on Earth survives reading, moving and writing."""

import math

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.rpc import RPC

from agl_core.data.georeference import Georeference, opened, read_georeference
from agl_core.errors import UserError

UTM = CRS.from_epsg(32617)
TRANSFORM = Affine(0.5, 0, 435000, 0, -0.5, 3355000)


def rpcs(pixel=0.5, latitude=30.0):
    """A camera that looks straight down on pixels of that size."""
    north = 1024 * pixel / 110852.0  # metres of a degree of latitude at 30 degrees
    east = 1024 * pixel / 96486.0
    return RPC(
        height_off=20.0, height_scale=500.0, lat_off=latitude, lat_scale=north, long_off=-81.6, long_scale=east,
        line_off=1023.0, line_scale=1024.0, samp_off=1023.0, samp_scale=1024.0,
        line_num_coeff=[0, 0, -1, *[0] * 17], line_den_coeff=[1, *[0] * 19],
        samp_num_coeff=[0, 1, *[0] * 18], samp_den_coeff=[1, *[0] * 19], err_bias=-1.0, err_rand=-1.0,
    )  # fmt: skip


def points(pixel=0.5):
    corners = [(0, 0), (0, 100), (80, 0), (80, 100)]
    return tuple(
        GroundControlPoint(r, c, 435000 + c * pixel, 3355000 - r * pixel, 0.0, str(i), "")
        for i, (r, c) in enumerate(corners)
    )


def write(path, georeference):
    with rasterio.open(
        path, "w", driver="GTiff", height=40, width=60, count=1, dtype="uint8", **georeference.profile()
    ) as file:
        file.write(np.zeros((1, 40, 60), np.uint8))
    return path


@pytest.mark.parametrize(
    "georeference",
    [
        Georeference(),
        Georeference(UTM, TRANSFORM),
        Georeference(UTM, Affine(0.4, 0.3, 435000, 0.3, -0.4, 3355000)),
        Georeference(CRS.from_epsg(2992), TRANSFORM, rpcs()),
        Georeference(rpcs=rpcs()),
        Georeference(transform=TRANSFORM),
    ],
    ids=["nothing", "projected", "turned", "feet and RPCs", "RPCs", "no CRS"],
)
def test_what_is_written_is_read_back(tmp_path, georeference):
    read = read_georeference(write(tmp_path / "a.tif", georeference))
    assert (read.crs, read.transform, read.gcps) == (georeference.crs, georeference.transform, None)
    assert (read.rpcs is None) == (georeference.rpcs is None)
    for name, value in (georeference.rpcs.to_dict() if georeference.rpcs is not None else {}).items():
        assert getattr(read.rpcs, name) == pytest.approx(value, rel=1e-12), name
    assert read.known == (georeference.crs is not None)
    assert read.shape == (40, 60)


def test_control_points_are_read_back_with_their_coordinate_system(tmp_path):
    read = read_georeference(write(tmp_path / "a.tif", Georeference(UTM, gcps=points())))
    assert (read.crs, read.transform, read.known) == (UTM, None, False)
    assert [(p.row, p.col, p.x, p.y) for p in read.gcps] == [(p.row, p.col, p.x, p.y) for p in points()]


def degrees(metres, latitude):
    return math.degrees(metres / 6371000), math.degrees(metres / 6371000 / math.cos(math.radians(latitude)))


def test_the_gsd_is_metres_per_pixel_whatever_the_coordinates_are():
    assert Georeference(UTM, TRANSFORM).gsd() == pytest.approx(0.5)
    assert Georeference(UTM, Affine(0.2, 0, 0, 0, -0.8, 0)).gsd() == pytest.approx(0.4)
    assert Georeference(UTM, Affine(0.3, 0.4, 0, 0.4, -0.3, 0)).gsd() == pytest.approx(0.5)  # turned
    assert Georeference(CRS.from_epsg(2992), Affine(1, 0, 0, 0, -1, 0)).gsd() == pytest.approx(0.3048)
    north, east = degrees(0.5, 60)
    geographic = Affine(east, 0, 10, 0, -north, 60)
    for code in (4326, 4269):
        assert Georeference(CRS.from_epsg(code), geographic).gsd() == pytest.approx(0.5, rel=0.005)


def test_the_gsd_of_degrees_is_that_of_the_middle_of_the_image():
    transform = Affine(1e-3, 0, 10, 0, -1e-3, 60)
    low = Georeference(CRS.from_epsg(4326), transform, shape=(40000, 10)).gsd()  # the middle lies at 40 degrees
    high = Georeference(CRS.from_epsg(4326), transform).gsd()
    assert (low / high) ** 2 == pytest.approx(math.cos(math.radians(40)) / math.cos(math.radians(60)), rel=0.02)


def test_the_gsd_follows_from_a_camera_or_from_control_points():
    assert Georeference(rpcs=rpcs(0.4)).gsd() == pytest.approx(0.4, rel=1e-3)
    assert Georeference(UTM, gcps=points(0.7)).gsd() == pytest.approx(0.7)
    assert Georeference(UTM, gcps=points(0.7)[:2]).gsd() is None


def test_without_units_there_is_no_gsd():
    assert Georeference().gsd() is None
    assert Georeference(transform=TRANSFORM).gsd() is None
    engineering = (
        'ENGCRS["plan",EDATUM["site"],CS[Cartesian,2],AXIS["(E)",east],AXIS["(N)",north],LENGTHUNIT["metre",1]]'
    )
    assert Georeference(CRS.from_wkt(engineering), TRANSFORM).gsd() in (None, pytest.approx(0.5))


def test_world_coordinates_are_those_of_the_centres_of_pixels():
    x, y = Georeference(UTM, TRANSFORM).world(np.array([0, 1, 10.5]), np.array([0, 3, 2]))
    np.testing.assert_allclose(x, [435000.25, 435000.75, 435005.5])
    np.testing.assert_allclose(y, [3354999.75, 3354998.25, 3354998.75])
    with pytest.raises(UserError, match="does not say where it lies"):
        Georeference(rpcs=rpcs()).world(0, 0)


def test_a_moved_canvas_keeps_every_pixel_where_it_is():
    whole = Georeference(UTM, TRANSFORM, rpcs(), points())
    moved = whole.moved(-7, 12)  # the canvas begins 7 rows above the image and 12 columns right of its first
    np.testing.assert_allclose(moved.world(0, 7), whole.world(12, 0))
    assert (moved.rpcs.line_off, moved.rpcs.samp_off) == (1030.0, 1011.0)
    assert moved.rpcs.lat_off == whole.rpcs.lat_off
    assert [(p.row, p.col, p.x, p.id) for p in moved.gcps] == [(p.row + 7, p.col - 12, p.x, p.id) for p in points()]


def test_a_world_file_beside_the_image_is_found(tmp_path):
    path = write(tmp_path / "a.tif", Georeference())
    (tmp_path / "a.tfw").write_text("0.5\n0\n0\n-0.5\n435000.25\n3354999.75\n")
    assert read_georeference(path).transform == TRANSFORM


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(UserError, match=r"a\.tif does not exist"):
        read_georeference(tmp_path / "a.tif")
    (tmp_path / "b.tif").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"b\.tif cannot be read as an image"):
        read_georeference(tmp_path / "b.tif")
    path = write(tmp_path / "c.tif", Georeference())
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(UserError, match=r"c\.tif cannot be read"), opened(path) as raster:
        raster.read()
