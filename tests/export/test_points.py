"""Point clouds: every known pixel over the ground on which it stands."""

from pathlib import Path

import laspy
import numpy as np
import pytest
from affine import Affine
from laspy.vlrs.known import WktCoordinateSystemVlr
from rasterio.crs import CRS

from agl_core.config import ExportConfig
from agl_core.errors import UserError
from agl_core.export import points as points_module
from agl_core.export import strips as strips_module
from agl_core.export.cloudfiles import grid_step
from agl_core.export.points import export_points
from tests.export.scene import BLOCK, PLACE, TALL, UTM, block_scene, colours, exact_pose, write_image

DEGREES = Affine(5e-6, 0, 15.0, 0, -5e-6, 45.0)
FEET = CRS.from_epsg(2992)  # Oregon, international feet


def asked(folder, **changes):
    return ExportConfig(what="points", predictions=str(folder / "in"), out=str(folder / "out"), **changes)


def read_ply(path):
    content = path.read_bytes()
    header, _, body = content.partition(b"end_header\n")
    lines = header.decode().splitlines()
    count = next(int(line.split()[-1]) for line in lines if line.startswith("element vertex"))
    kinds = {"double": "<f8", "uchar": "u1"}
    dtype = [(line.split()[2], kinds[line.split()[1]]) for line in lines if line.startswith("property")]
    table = np.frombuffer(body, dtype)
    assert len(table) == count
    return np.stack([table[n] for n in "xyz"], 1), np.stack([table[n] for n in ("red", "green", "blue")], 1), lines


def read(path):
    """(N, 3) coordinates and (N, 3) 8-bit colours."""
    if path.suffix == ".ply":
        return read_ply(path)[:2]
    cloud = laspy.read(path)
    wide = np.stack([cloud.red, cloud.green, cloud.blue], 1)
    assert (wide % 257 == 0).all()
    return cloud.xyz, (wide // 257).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["laz", "las", "ply"])
def test_a_roof_lies_over_its_footprint_in_the_colours_in_which_it_is_seen(tmp_path, suffix, capsys):
    write_image(tmp_path / "in", "A_1", crs=UTM, transform=PLACE)
    (path,) = export_points(asked(tmp_path, format=suffix))
    assert path == tmp_path / "out" / f"A_1.{suffix}"
    xyz, rgb = read(path)
    roof = np.abs(xyz[:, 2] - TALL) < 0.001
    top, left, bottom, right = BLOCK
    (x0, y0), (x1, y1) = PLACE * (left + 0.5, top + 0.5), PLACE * (right - 0.5, bottom - 0.5)
    np.testing.assert_allclose(xyz[roof, :2].min(0), (x0, y1), atol=0.011)
    np.testing.assert_allclose(xyz[roof, :2].max(0), (x1, y0), atol=0.011)
    assert roof.sum() == (bottom - top) * (right - left)
    agl = block_scene()
    np.testing.assert_array_equal(rgb[roof], colours()[agl == TALL * 100])
    np.testing.assert_array_equal(rgb, colours()[agl != 65535])
    assert f"{len(xyz)} points of 1 images" in capsys.readouterr().out


def test_all_formats_hold_the_same_points(tmp_path):
    write_image(tmp_path / "in", "A_1", crs=UTM, transform=PLACE)
    exact = read(export_points(asked(tmp_path, format="ply"))[0])
    for suffix in ("laz", "las"):
        rounded = read(export_points(asked(tmp_path, format=suffix))[0])
        np.testing.assert_allclose(rounded[0], exact[0], atol=0.0051)
        np.testing.assert_array_equal(rounded[1], exact[1])


@pytest.mark.parametrize(("crs", "place"), [(UTM, PLACE), (FEET, PLACE), (CRS.from_epsg(4326), DEGREES)])
def test_the_coordinate_system_is_in_the_file(tmp_path, crs, place, capsys):
    write_image(tmp_path / "in", "A_1", crs=crs, transform=place)
    cloud = laspy.read(export_points(asked(tmp_path))[0])
    (text,) = [vlr.string for vlr in cloud.header.vlrs if isinstance(vlr, WktCoordinateSystemVlr)]
    assert CRS.from_wkt(text).to_epsg() == crs.to_epsg()
    assert cloud.header.global_encoding.wkt
    assert cloud.header.point_format.id == 7
    lines = read_ply(export_points(asked(tmp_path, format="ply"))[0])[2]
    assert any(f'AUTHORITY["EPSG","{crs.to_epsg()}"]]' in line for line in lines)
    unit = {UTM: "metre", FEET: "foot"}.get(crs, "degrees")
    assert f"{unit} of EPSG:{crs.to_epsg()}; z: metres" in capsys.readouterr().out


def test_degrees_are_kept_to_the_centimetre(tmp_path):
    write_image(tmp_path / "in", "A_1", crs=CRS.from_epsg(4326), transform=DEGREES)
    exact = read(export_points(asked(tmp_path, format="ply"))[0])[0]
    rounded = read(export_points(asked(tmp_path))[0])[0]
    assert np.abs(rounded - exact)[:, :2].max() < 0.011 / 111_000
    assert np.ptp(rounded[:, 0]) > 100 * 5e-6


@pytest.mark.parametrize(("pixel", "step"), [(0.3, 0.01), (2.0, 0.01), (0.05, 0.001), (3e-6, 1e-7)])
def test_coordinates_are_counted_in_steps_much_smaller_than_a_pixel(pixel, step):
    assert grid_step(pixel) == pytest.approx(step)


def test_without_a_georeference_x_and_y_are_metres_from_the_corner(tmp_path, capsys):
    agl = np.zeros((64, 80), np.uint16)
    write_image(tmp_path / "in", "A_1", agl, gsd=0.25)
    cloud = laspy.read(export_points(asked(tmp_path))[0])
    assert [vlr for vlr in cloud.header.vlrs if isinstance(vlr, WktCoordinateSystemVlr)] == []
    xyz = read(tmp_path / "out" / "A_1.laz")[0]
    np.testing.assert_allclose(xyz[:, :2].min(0), (0.125, -63.5 * 0.25), atol=0.0051)
    np.testing.assert_allclose(xyz[:, :2].max(0), (79.5 * 0.25, -0.125), atol=0.0051)
    assert "metres from the upper left corner, y upwards" in capsys.readouterr().out


@pytest.mark.parametrize("unit", ["cm", "m"])
def test_unknown_pixels_leave_no_points_in_either_unit(tmp_path, unit):
    agl = block_scene()
    write_image(tmp_path / "in", "A_1", agl, unit=unit, crs=UTM, transform=PLACE)
    xyz = read(export_points(asked(tmp_path))[0])[0]
    np.testing.assert_array_equal(np.rint(xyz[:, 2] * 100), agl[agl != 65535])


def test_heights_below_the_ground_are_on_it_and_the_files_own_nodata_is_unknown(tmp_path):
    agl = np.full((64, 64), -9999, np.float32)
    agl[:2] = 3
    agl[2:4] = -0.5
    write_image(tmp_path / "in", "A_1", agl, gsd=1, nodata=-9999)
    (tmp_path / "in" / "A_1_VFLOW.json").write_text('{"scale": 0, "angle": 0}')
    xyz = read(export_points(asked(tmp_path))[0])[0]
    assert sorted(xyz[:, 2]) == [0.0] * 128 + [3.0] * 128


def test_every_third_pixel_in_both_directions(tmp_path, monkeypatch):
    monkeypatch.setattr(strips_module, "PIXELS", 0)  # not what decides
    rgb = colours()
    write_image(tmp_path / "in", "A_1", np.zeros(rgb.shape[:2], np.uint16), rgb=rgb, crs=UTM, transform=PLACE)
    xyz, found = read(export_points(asked(tmp_path, every=3))[0])
    np.testing.assert_array_equal(found, rgb[::3, ::3].reshape(-1, 3))
    np.testing.assert_allclose(xyz[1, 0] - xyz[0, 0], 1.5, atol=0.011)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("pixels", [1, 7 * 160, 50 * 160 + 3])
def test_the_points_do_not_depend_on_how_many_rows_are_read_at_a_time(tmp_path, monkeypatch, every, pixels):
    write_image(tmp_path / "in", "A_1", crs=UTM, transform=PLACE)
    whole = export_points(asked(tmp_path, every=every))[0].read_bytes()
    monkeypatch.setattr(points_module, "strips", lambda image: strips_module.strips(image, pixels))
    assert export_points(asked(tmp_path, every=every))[0].read_bytes() == whole


def test_a_turned_image_is_turned_on_the_ground(tmp_path):
    place = PLACE * Affine.rotation(30)
    write_image(tmp_path / "in", "A_1", crs=UTM, transform=place)
    xyz = read(export_points(asked(tmp_path, format="ply"))[0])[0]
    columns, rows = ~place * xyz[np.abs(xyz[:, 2] - TALL) < 0.001, :2].T
    top, left, bottom, right = BLOCK
    np.testing.assert_allclose((rows.min(), columns.min()), (top + 0.5, left + 0.5), atol=1e-3)
    np.testing.assert_allclose((rows.max(), columns.max()), (bottom - 0.5, right - 0.5), atol=1e-3)


def test_an_image_without_any_height_becomes_an_empty_cloud(tmp_path):
    write_image(tmp_path / "in", "A_1", np.full((64, 64), 65535, np.uint16), gsd=1)
    for suffix in ("laz", "ply"):
        assert len(read(export_points(asked(tmp_path, format=suffix))[0])[0]) == 0


def test_everything_that_is_missing_is_told_at_once_and_nothing_is_written(tmp_path):
    folder = tmp_path / "in"
    write_image(folder, "A_1", gsd=0.5)
    write_image(folder, "A_2", rgb=False, gsd=0.5)
    write_image(folder, "A_3", rgb=False, gsd=0.5)
    write_image(folder, "A_4", rgb=colours((64, 64)), gsd=0.5)
    with pytest.raises(UserError) as refused:
        export_points(asked(tmp_path))
    lines = str(refused.value).splitlines()
    assert lines[0].endswith("2 problems")
    assert "A_2, A_3" in lines[1]
    assert "--images" in lines[1]
    assert "120 x 160 pixels" in lines[2]
    assert "64 x 64" in lines[2]
    assert not (tmp_path / "out").exists()


def test_images_of_which_nobody_knows_how_large_a_pixel_is_are_named_in_one_sentence(tmp_path):
    for image in ("A_1", "A_2", "A_3"):
        write_image(tmp_path / "in", image, **({"crs": UTM, "transform": PLACE} if image == "A_2" else {}))
    with pytest.raises(
        UserError, match=r"^A_1, A_3 in .* have neither a georeference nor a gsd.*metadata\.csv"
    ) as refused:
        export_points(asked(tmp_path))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("changes", "told"), [({"every": 0}, "every is 0"), ({"images": "nowhere"}, "--images")])
def test_values_without_meaning_are_refused(tmp_path, changes, told):
    write_image(tmp_path / "in", "A_1", gsd=0.5)
    with pytest.raises(UserError, match=told):
        export_points(asked(tmp_path, **changes))


@pytest.mark.parametrize("suffix", ["laz", "las", "ply"])
def test_a_file_that_is_interrupted_leaves_the_one_before_it(tmp_path, monkeypatch, suffix):
    write_image(tmp_path / "in", "A_1", gsd=0.5)
    config = asked(tmp_path, format=suffix)
    before = export_points(config)[0].read_bytes()

    def broken(image):
        yield next(strips_module.strips(image, 1000))
        raise OSError("the disk is gone")

    monkeypatch.setattr(points_module, "strips", broken)
    with pytest.raises(OSError, match="gone"):
        export_points(config)
    assert [path.name for path in Path(config.out).iterdir()] == [f"A_1.{suffix}"]
    assert (tmp_path / "out" / f"A_1.{suffix}").read_bytes() == before


def test_the_points_of_a_pose_are_those_of_the_formula():
    from agl_core.data.georeference import Georeference
    from agl_core.export.points import points_of
    from agl_core.export.strips import Strip

    pose = exact_pose()
    agl = np.full((4, 5), 65535, np.uint16)
    agl[2, 3] = 800
    place = Georeference(transform=Affine.identity())
    points = points_of(Strip(10, agl, np.zeros((4, 5, 3), np.uint8)), pose, place)
    x = 3.5 + 8 * pose.scale * np.sin(pose.angle)
    y = 12.5 + 8 * pose.scale * np.cos(pose.angle)
    np.testing.assert_allclose(points.xyz, [[x, y, 8.0]])
