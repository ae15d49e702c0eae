"""Where pixels lie on Earth survives reading, moving and writing."""

import math

import attr
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


def test_control_points_at_the_same_places_are_equal():
    one, same = (Georeference(UTM, gcps=points(), shape=(side, 60)) for side in (40, 50))
    assert one == same
    assert hash(one) == hash(same)
    assert one not in (Georeference(UTM, gcps=points(0.7)), Georeference(UTM, gcps=points()[:3]), Georeference(UTM))
    assert Georeference(rpcs=rpcs()) == Georeference(rpcs=rpcs()) != Georeference(rpcs=rpcs(0.7))


def degrees(metres, latitude):
    return math.degrees(metres / 6371000), math.degrees(metres / 6371000 / math.cos(math.radians(latitude)))


def test_the_gsd_is_metres_per_pixel_whatever_the_coordinates_are():
    there = 435000, 3355000
    assert Georeference(UTM, TRANSFORM).gsd() == pytest.approx(0.5, rel=1e-3)
    assert Georeference(UTM, Affine(0.2, 0, there[0], 0, -0.8, there[1])).gsd() == pytest.approx(0.4, rel=1e-3)
    assert Georeference(UTM, Affine(0.3, 0.4, there[0], 0.4, -0.3, there[1])).gsd() == pytest.approx(0.5, rel=1e-3)
    feet = Georeference(CRS.from_epsg(2992), Affine(1, 0, 1312335.958, 0, -1, 1400000))
    assert feet.gsd() == pytest.approx(0.3048, rel=1e-3)
    north, east = degrees(0.5, 60)
    geographic = Affine(east, 0, 10, 0, -north, 60)
    for code in (4326, 4269):
        assert Georeference(CRS.from_epsg(code), geographic).gsd() == pytest.approx(0.5, rel=0.005)


@pytest.mark.parametrize(("latitude", "longitude"), [(0, 10), (45, 10), (-60, 179.99999), (70, -180.0)])
def test_the_gsd_is_measured_on_the_ground_where_coordinates_are_stretched(latitude, longitude):
    x = math.radians(longitude) * 6378137
    y = math.log(math.tan(math.pi / 4 + math.radians(latitude) / 2)) * 6378137
    mercator = Georeference(CRS.from_epsg(3857), Affine(0.5, 0, x, 0, -0.5, y))
    # The coordinates are those of a sphere: on the ellipsoid both axes are a little shorter at the equator.
    assert mercator.gsd() == pytest.approx(0.5 * math.cos(math.radians(latitude)), rel=4e-3)
    middle = Georeference(CRS.from_epsg(3857), Affine(0.5, 0, x - 500, 0, -0.5, y + 500), shape=(2000, 2000))
    assert middle.gsd() == pytest.approx(mercator.gsd(), rel=1e-6)
    polar = Georeference(CRS.from_epsg(3031), Affine(0.5, 0, 0, 0, -0.5, 0))  # at the pole itself
    assert polar.gsd() == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize(
    "wrong",
    [
        Georeference(CRS.from_epsg(4326), Affine(1e-5, 0, 10, 0, -1e-5, 95)),
        Georeference(CRS.from_epsg(4326), Affine(1, 0, 10, 0, -1, 45)),
        Georeference(UTM, Affine(1001, 0, 435000, 0, -1001, 3355000)),
        Georeference(UTM, Affine(9e-4, 0, 435000, 0, -9e-4, 3355000)),
        Georeference(UTM, Affine(math.nan, 0, 435000, 0, -1, 3355000)),
        Georeference(UTM, Affine(0.5, 0, 1e30, 0, -0.5, 1e30)),
        Georeference(rpcs=attr.evolve(rpcs(), line_den_coeff=[0.0] * 20, samp_den_coeff=[0.0] * 20)),
        Georeference(rpcs=attr.evolve(rpcs(), line_den_coeff=[math.nan] * 20)),
        Georeference(rpcs=attr.evolve(rpcs(), lat_off=math.inf)),
    ],
    ids=["north of the pole", "degrees", "km", "mm", "nan", "nowhere", "zero", "nan polynomial", "infinite"],
)
def test_what_cannot_be_true_is_no_gsd(wrong):
    assert wrong.gsd() is None


def test_the_gsd_of_degrees_is_that_of_the_middle_of_the_image():
    transform = Affine(1e-3, 0, 10, 0, -1e-3, 60)
    low = Georeference(CRS.from_epsg(4326), transform, shape=(40000, 10)).gsd()  # the middle lies at 40 degrees
    high = Georeference(CRS.from_epsg(4326), transform).gsd()
    assert (low / high) ** 2 == pytest.approx(math.cos(math.radians(40)) / math.cos(math.radians(60)), rel=0.02)


def test_the_gsd_follows_from_a_camera_or_from_control_points():
    assert Georeference(rpcs=rpcs(0.4)).gsd() == pytest.approx(0.4, rel=1e-3)
    assert Georeference(UTM, gcps=points(0.7)).gsd() == pytest.approx(0.7, rel=1e-3)
    assert Georeference(UTM, gcps=points(0.7)[:2]).gsd() is None


def test_without_units_there_is_no_gsd():
    assert Georeference().gsd() is None
    assert Georeference(transform=TRANSFORM).gsd() is None
    engineering = (
        'ENGCRS["plan",EDATUM["site"],CS[Cartesian,2],AXIS["(E)",east],AXIS["(N)",north],LENGTHUNIT["metre",1]]'
    )
    assert Georeference(CRS.from_wkt(engineering), TRANSFORM).gsd() is None


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
    for name in ("a.tif", f"{300 * 'a'}.tif"):
        with pytest.raises(UserError, match=r"a\.tif does not exist"):
            read_georeference(tmp_path / name)
    (tmp_path / "b.tif").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"b\.tif cannot be read as an image"):
        read_georeference(tmp_path / "b.tif")
    path = write(tmp_path / "c.tif", Georeference())
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(UserError, match=r"c\.tif cannot be read"), opened(path) as raster:
        raster.read()
