"""Heights of footprints: what stands on polygons that lie on the ground."""

import json
import math
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform

from agl_core.config import ExportConfig
from agl_core.errors import UserError
from agl_core.export import polygons
from agl_core.export.footprints import export_footprints
from tests.export.scene import BLOCK, HEIGHT, PLACE, TALL, UTM, WIDTH, block_scene, exact_pose, ground_box, write_image

UNSEEN = dict.fromkeys(("mean", "median", "p90", "max"))


def geojson(path, geometries, crs="urn:ogc:def:crs:EPSG::32633", properties=None, ids=None):
    features = [
        {"type": "Feature", "properties": (properties or [{}] * len(geometries))[i], "geometry": geometry}
        | ({"id": ids[i]} if ids else {})
        for i, geometry in enumerate(geometries)
    ]
    system = {"crs": {"type": "name", "properties": {"name": crs}}} if crs else {}
    path.write_text(json.dumps({"type": "FeatureCollection", **system, "features": features}))
    return path


def polygon(*rings):
    return {"type": "Polygon", "coordinates": [list(ring) for ring in rings]}


def measured(folder, polygons, **changes):
    config = ExportConfig(
        what="footprints", predictions=str(folder / "in"), polygons=str(polygons), out=str(folder / "out"), **changes
    )
    return json.loads(export_footprints(config).read_text())["features"]


def heights(feature):
    return {key.removeprefix("agl_"): value for key, value in feature["properties"].items() if key.startswith("agl_")}


@pytest.fixture
def scene(tmp_path):
    write_image(tmp_path / "in", "A_1", crs=UTM, transform=PLACE)
    return tmp_path


def test_a_block_is_as_high_as_it_is_where_it_stands_and_not_where_it_is_seen(scene, capsys):
    dx, dy = (round(part) for part in exact_moves())
    top, left, bottom, right = BLOCK
    beside = (top - dy, left - dx, bottom - dy, left)  # there the image shows the roof
    assert (block_scene()[beside[0] : beside[2], beside[1] : beside[3]] == TALL * 100).all()
    file = geojson(scene / "p.geojson", [polygon(ground_box()), polygon(ground_box(beside))])
    block, beside = measured(scene, file)
    pixels = (bottom - top) * (right - left)
    assert heights(block) == {
        "image": "A_1", "pixels": pixels, "seen": 1.0, "mean": TALL, "median": TALL, "p90": TALL, "max": TALL
    }  # fmt: skip
    assert heights(beside)["pixels"] == 0  # what stands there is hidden behind the block
    assert "heights of 1 of 2 polygons (1 hidden or of unknown height) from 1 images" in capsys.readouterr().out


def exact_moves():
    pose = exact_pose()
    return TALL * pose.scale * np.sin(pose.angle), TALL * pose.scale * np.cos(pose.angle)


def test_the_statistics_are_those_of_the_pixels(tmp_path):
    agl = np.arange(100 * 100, dtype=np.uint16).reshape(100, 100) % 997
    agl[0, :7] = 65535
    write_image(tmp_path / "in", "A_1", agl, pose=exact_pose(tall=1e9), crs=UTM, transform=PLACE)
    (tmp_path / "in" / "A_1_VFLOW.json").write_text('{"scale": 0, "angle": 0}')
    file = geojson(tmp_path / "p.geojson", [polygon(ground_box((0, 2, 40, 60)))])
    values = agl[:40, 2:60]
    values = values[values != 65535] / 100
    (found,) = measured(tmp_path, file)
    assert heights(found)["pixels"] == len(values) == 40 * 58 - 5
    assert heights(found)["seen"] == pytest.approx(len(values) / (40 * 58), abs=5e-5)
    for name, value in (
        ("mean", values.mean()),
        ("median", np.median(values)),
        ("p90", np.percentile(values, 90)),
        ("max", values.max()),
    ):
        assert heights(found)[name] == pytest.approx(value, abs=6e-4)


def test_holes_are_left_out_and_all_parts_of_a_multipolygon_count(scene):
    top, left, bottom, right = BLOCK
    around = ground_box((top - 10, left - 10, bottom + 10, right + 10))
    ring = polygon(around, ground_box())
    far = ground_box((100, 120, 110, 140))
    both = {"type": "MultiPolygon", "coordinates": [[ground_box()], [far]]}
    ring, both = measured(scene, geojson(scene / "p.geojson", [ring, both]))
    assert heights(ring)["max"] == 0.0
    assert ring["geometry"]["type"] == "Polygon"
    assert len(ring["geometry"]["coordinates"]) == 2
    block, ground = (bottom - top) * (right - left), 10 * 20
    assert heights(both)["pixels"] == block + ground
    assert heights(both)["mean"] == pytest.approx(TALL * block / (block + ground), abs=1e-3)


@pytest.mark.parametrize("epsg", [4326, 3857, 2992])
def test_polygons_of_another_coordinate_system_find_their_place(scene, epsg):
    corners = np.array(ground_box((*(BLOCK[i] + (1, 1, -1, -1)[i] for i in range(4)),)))
    x, y = transform(UTM, CRS.from_epsg(epsg), *corners.T)
    box = polygon(list(zip(x, y, strict=True)))
    file = geojson(scene / "p.geojson", [box], crs=f"urn:ogc:def:crs:EPSG::{epsg}")
    if epsg == 4326:
        geojson(file, [box], crs="")
    (found,) = measured(scene, file)
    assert (heights(found)["seen"], heights(found)["mean"]) == (1.0, TALL)


def test_the_result_is_in_longitude_and_latitude_with_outer_rings_counter_clockwise(scene):
    for ring in (ground_box(), ground_box()[::-1]):
        (found,) = measured(scene, geojson(scene / "p.geojson", [polygon(ring)]))
        points = np.array(found["geometry"]["coordinates"][0])
        x, y = transform(UTM, CRS.from_epsg(4326), *np.array(ring).T)
        np.testing.assert_allclose(sorted(points.tolist()), sorted(zip(x, y, strict=True)), rtol=0, atol=1e-9)
        assert shapely.is_ccw(shapely.linearrings(points))
    content = json.loads((scene / "out" / "p_AGL.geojson").read_text())
    assert "crs" not in content
    assert content["type"] == "FeatureCollection"


def test_coordinates_that_are_longitudes_and_latitudes_already_stay_the_same_numbers(scene):
    x, y = transform(UTM, CRS.from_epsg(4326), *np.array(ground_box()).T)
    ring = [[a, b, 7.5] for a, b in zip(x, y, strict=True)]
    (found,) = measured(scene, geojson(scene / "p.geojson", [polygon(ring)], crs=""))
    assert sorted(found["geometry"]["coordinates"][0]) == sorted(ring)


def test_all_properties_are_kept(scene):
    own = {
        "name": "Haus Süd", "storeys": 4, "osm": 9_007_199_254, "area": 12.5, "listed": True, "tags": {"roof": "flat"},
        "parts": [1, 2], "built": "1999-12-31", "seen": "2020-01-02T03:04:05Z", "none": None,
    }  # fmt: skip
    nothing = dict.fromkeys(own)
    file = geojson(
        scene / "p.geojson", [polygon(ground_box()), polygon(ground_box())], properties=[own, nothing], ids=[7, 9]
    )
    first, second = measured(scene, file)
    assert {key: value for key, value in first["properties"].items() if not key.startswith("agl_")} == own
    assert isinstance(first["properties"]["storeys"], int)
    assert first["properties"]["listed"] is True
    assert {key: value for key, value in second["properties"].items() if not key.startswith("agl_")} == nothing
    assert (first["id"], second["id"]) == (7, 9)


def test_the_third_coordinate_is_kept_when_the_others_change(scene):
    box = polygon([[*point, 7.25] for point in ground_box()])
    file = geojson(scene / "p.geojson", [box, polygon(ground_box())])
    first, second = measured(scene, file)
    assert [point[2:] for point in first["geometry"]["coordinates"][0]] == [[7.25]] * 5
    assert [point[2:] for point in second["geometry"]["coordinates"][0]] == [[]] * 5
    assert heights(first) == heights(second)


@pytest.mark.parametrize("name", ["p.gpkg", "p.shp", "p.fgb"])
def test_other_formats_are_read(scene, name):
    box = shapely.to_wkb(np.array([shapely.Polygon(ground_box())], object))
    columns = [np.array(["a"], object), np.array([3], np.int32)]
    pyogrio.raw.write(scene / name, box, columns, ["name", "n"], crs="EPSG:32633", geometry_type="Polygon")
    (found,) = measured(scene, scene / name)
    assert heights(found)["mean"] == TALL
    assert (found["properties"]["name"], found["properties"]["n"]) == ("a", 3)


def test_of_several_layers_one_is_named_as_in_qgis(scene):
    box = shapely.to_wkb(np.array([shapely.Polygon(ground_box())], object))
    for layer in ("houses", "lots"):
        pyogrio.raw.write(
            scene / "p.gpkg", box, [np.array([layer], object)], ["name"], layer=layer, crs="EPSG:32633",
            geometry_type="Polygon", append=layer == "lots",
        )  # fmt: skip
    with pytest.raises(UserError, match=r"2 layers with polygons: .*p.gpkg\|layername=houses"):
        measured(scene, scene / "p.gpkg")
    (found,) = measured(scene, f"{scene / 'p.gpkg'}|layername=lots")
    assert found["properties"]["name"] == "lots"
    with pytest.raises(UserError, match="no layer 'sheds': it has houses, lots"):
        measured(scene, f"{scene / 'p.gpkg'}|layername=sheds")


def test_of_several_images_the_one_that_sees_most_of_a_polygon_is_used(scene):
    worse = block_scene(tall=TALL)
    worse[worse == 1200] = 65535
    worse[0, 0] = 500
    agl = np.full((HEIGHT, WIDTH), 800, np.uint16)
    write_image(scene / "in", "A_0", worse, crs=UTM, transform=PLACE)
    write_image(scene / "in", "A_2", agl, crs=UTM, transform=PLACE, gsd=0.5)
    (scene / "in" / "A_2_VFLOW.json").write_text('{"scale": 0, "angle": 0}')
    # A_1 and A_2 see all of it, the first of them is taken; A_0 sees nothing.
    (found,) = measured(scene, geojson(scene / "p.geojson", [polygon(ground_box())]))
    assert (heights(found)["image"], heights(found)["mean"]) == ("A_1", TALL)
    half = block_scene()
    half[:, : half.shape[1] // 3] = 65535
    write_image(scene / "in", "A_1", half, crs=UTM, transform=PLACE)
    (found,) = measured(scene, geojson(scene / "p.geojson", [polygon(ground_box())]))
    assert (heights(found)["image"], heights(found)["mean"]) == ("A_2", 8.0)


def test_images_of_different_coordinate_systems_work_together(scene):
    there = CRS.from_epsg(3857)
    left, right, top, bottom = 1_700_000, 1_700_080, 5_600_060, 5_600_000
    place = Affine((right - left) / WIDTH, 0, left, 0, (bottom - top) / HEIGHT, top)
    write_image(scene / "in", "B_1", crs=there, transform=place)
    corners = np.array(ground_box(place=place))
    x, y = transform(there, UTM, *corners.T)
    file = geojson(scene / "p.geojson", [polygon(ground_box()), polygon(list(zip(x, y, strict=True)))])
    first, second = measured(scene, file)
    assert (heights(first)["image"], heights(second)["image"]) == ("A_1", "B_1")
    assert heights(second)["median"] == TALL


def test_what_lies_outside_is_empty_and_counted_and_what_is_unknown_is_not_seen(scene, capsys):
    agl = block_scene()
    agl[-20:, -20:] = 65535
    write_image(scene / "in", "A_1", agl, crs=UTM, transform=PLACE)
    outside = polygon(ground_box((500, 500, 510, 510)))
    unknown = polygon(ground_box((HEIGHT - 15, WIDTH - 15, HEIGHT - 5, WIDTH - 5)))
    point = {"type": "Point", "coordinates": ground_box()[0]}
    shapes = [polygon(ground_box()), outside, unknown, point, None]
    found = measured(scene, geojson(scene / "p.geojson", shapes))
    assert heights(found[1]) == {**UNSEEN, "image": None, "pixels": None, "seen": None}
    assert heights(found[2]) == {**UNSEEN, "image": "A_1", "pixels": 0, "seen": 0.0}
    assert heights(found[3]) == heights(found[1])
    assert found[3]["geometry"]["type"] == "Point"
    assert found[4]["geometry"] is None
    told = capsys.readouterr().out
    assert "heights of 1 of 3 polygons (1 hidden or of unknown height, 1 outside all images, 2 further features" in told


def test_a_polygon_that_is_only_partly_in_the_image_is_only_partly_seen(tmp_path):
    agl = np.full((100, 100), 300, np.uint16)
    write_image(tmp_path / "in", "A_1", agl, crs=UTM, transform=PLACE)
    (tmp_path / "in" / "A_1_VFLOW.json").write_text('{"scale": 0, "angle": 0}')
    (found,) = measured(tmp_path, geojson(tmp_path / "p.geojson", [polygon(ground_box((-20, -60, 20, 20)))]))
    assert heights(found)["pixels"] == 20 * 20
    assert heights(found)["seen"] == pytest.approx(20 * 20 / (40 * 80), abs=1e-4)


def test_what_leans_out_of_the_image_is_found_beside_it(tmp_path):
    """A roof is seen at the image's edge and stands outside."""
    agl = np.zeros((60, 60), np.uint16)
    agl[20:40, :10] = 1000
    write_image(tmp_path / "in", "A_1", agl, crs=UTM, transform=PLACE)
    (tmp_path / "in" / "A_1_VFLOW.json").write_text('{"scale": 0.02, "angle": 4.71238898}')  # 20 pixels to the left
    beside, nothing = (22, -18, 38, -12), (2, -18, 8, -12)
    shapes = [polygon(ground_box(beside)), polygon(ground_box(nothing))]
    found, outside = measured(tmp_path, geojson(tmp_path / "p.geojson", shapes))
    assert (heights(found)["seen"], heights(found)["mean"]) == (1.0, 10.0)
    assert heights(outside)["image"] is None


def test_one_that_contains_no_centre_of_a_pixel_has_what_it_touches(scene):
    top, left, _, _ = BLOCK
    tiny = (top + 5.1, left + 5.1, top + 5.3, left + 5.3)
    (found,) = measured(scene, geojson(scene / "p.geojson", [polygon(ground_box(tiny))]))
    assert heights(found) == {"image": "A_1", "pixels": 1, "seen": 1.0, **dict.fromkeys(UNSEEN, TALL)}


def test_an_outline_that_crosses_itself_counts_as_its_two_halves(scene):
    a, b, c, d, _ = ground_box()
    (found,) = measured(scene, geojson(scene / "p.geojson", [polygon([a, c, b, d, a])]))
    top, left, bottom, right = BLOCK
    assert heights(found)["mean"] == TALL
    assert heights(found)["pixels"] == pytest.approx((bottom - top) * (right - left) / 2, rel=0.1)
    assert len(found["geometry"]["coordinates"][0]) == 5
    # Partly outside of the image too.
    a, b, c, d, _ = ground_box((10, -20, 30, 20))
    (found,) = measured(scene, geojson(scene / "p.geojson", [polygon([a, c, b, d, a])]))
    assert heights(found)["seen"] == pytest.approx(0.5, abs=0.05)


def test_a_turned_image_in_metres(tmp_path):
    place = PLACE * Affine.rotation(-25)
    write_image(tmp_path / "in", "A_1", crs=UTM, transform=place, unit="m")
    (found,) = measured(tmp_path, geojson(tmp_path / "p.geojson", [polygon(ground_box(place=place))]))
    assert heights(found)["mean"] == pytest.approx(TALL)
    assert heights(found)["seen"] == 1.0


def test_images_that_lie_nowhere_are_all_named(scene):
    for image in ("A_2", "A_3"):
        write_image(scene / "in", image)
    with pytest.raises(UserError) as refused:
        measured(scene, geojson(scene / "p.geojson", [polygon(ground_box())]))
    assert str(refused.value).startswith("A_2, A_3 in ")
    assert "\n" not in str(refused.value)
    assert not (scene / "out").exists()


def test_files_that_are_of_no_use_are_refused_in_one_sentence(scene):
    (scene / "broken.geojson").write_text('{"type": "FeatureColl')
    geojson(scene / "points.geojson", [{"type": "Point", "coordinates": [1, 2]}])
    geojson(scene / "empty.geojson", [])
    box = shapely.to_wkb(np.array([shapely.Polygon(ground_box())], object))
    with pytest.warns(UserWarning, match="crs"):
        pyogrio.raw.write(scene / "bare.shp", box, [], [], geometry_type="Polygon")
    for name, told in (
        ("broken.geojson", "cannot be read as polygons"),
        ("points.geojson", "has no polygons among its 1 features"),
        ("empty.geojson", "no "),
        ("bare.shp", "does not say in which coordinate system"),
        ("missing.geojson", "does not exist"),
    ):
        with pytest.raises(UserError, match=told) as refused:
            measured(scene, scene / name)
        assert "\n" not in str(refused.value)
    assert not (scene / "out").exists()


def test_coordinates_far_from_where_a_system_holds_do_no_harm(scene):
    world = polygon([[-180, -90], [180, -90], [180, 90], [-180, 90], [-180, -90]])
    x, y = transform(UTM, CRS.from_epsg(4326), *np.array(ground_box()).T)
    found = measured(scene, geojson(scene / "p.geojson", [world, polygon(list(zip(x, y, strict=True)))], crs=""))
    assert heights(found[1])["mean"] == TALL
    assert Path(scene / "out" / "p_AGL.geojson").is_file()


@pytest.mark.parametrize("place", [(15.0, -123.0), (52.0, 190.0), (1e30, 1e30)])
def test_a_polygon_where_there_is_no_place_is_outside_and_does_not_stop_the_others(scene, capsys, place):
    x, y = transform(UTM, CRS.from_epsg(4326), *np.array(ground_box()).T)
    good = polygon(list(zip(x, y, strict=True)))
    bad = polygon([[place[0] + dx, place[1] + dy] for dx, dy in ((0, 0), (0.1, 0), (0.1, 0.1), (0, 0))])
    found = measured(scene, geojson(scene / "p.geojson", [bad, good, bad, None, good], crs=""))
    assert [heights(one)["mean"] for one in found] == [None, TALL, None, None, TALL]
    assert "heights of 2 of 4 polygons (2 outside all images" in capsys.readouterr().out


def test_a_geometry_that_longitudes_and_latitudes_cannot_say_is_null(scene):
    far = [[1e30, 1e30], [2e30, 1e30], [2e30, 2e30], [1e30, 1e30]]
    found = measured(scene, geojson(scene / "p.geojson", [polygon(far), polygon(ground_box())]))
    assert [one["geometry"] is None for one in found] == [True, False]
    assert found[1]["properties"]["agl_mean"] == TALL


def test_numbers_that_json_has_not_are_null_deep_in_a_property_too(scene):
    file = geojson(scene / "p.geojson", [polygon(ground_box())], properties=[{"a": {"b": [1.5, math.nan]}}])
    assert measured(scene, file)[0]["properties"]["a"] == {"b": [1.5, None]}
    assert polygons._value('{"a": [1e999, 2]}', "OFTString", "OFSTJSON") == {"a": [None, 2]}  # as in a GeoPackage
