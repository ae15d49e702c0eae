"""The verb `export`: each of its four kinds, and what has no meaning for them."""

import json
from pathlib import Path

import pytest

from agl_core.config import ExportConfig
from agl_core.errors import UserError
from agl_core.export.export import export
from tests.export.scene import PLACE, UTM, ground_box, write_image


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"what": "pictures"}, "unknown export 'pictures'"),
        ({"what": "points"}, "give their folder with --predictions"),
        ({"what": "footprints"}, "give their folder with --predictions"),
        ({"what": "footprints", "predictions": "x", "every": 2}, "every is given, but has no meaning for footprints"),
        ({"what": "points", "predictions": "x", "polygons": "p"}, "leave --polygons out"),
        ({"what": "weights", "run": "x", "predictions": "p"}, "leave --predictions out"),
        ({"what": "points", "predictions": "x", "format": "onnx"}, "choose one of laz, las, ply"),
        ({"what": "model", "run": "x", "format": "las"}, "choose one of onnx, pt2"),
        ({"what": "footprints", "predictions": "x", "format": "laz"}, "leave --format out"),
        ({"what": "points", "predictions": "nowhere"}, "nowhere is not a folder"),
        ({"what": "footprints", "predictions": "x"}, "give a file of polygons with --polygons"),
        ({"what": "model"}, "give the name of a run with --run"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_sentence(tmp_path, given, told):
    with pytest.raises(UserError, match=told) as refused:
        export(ExportConfig(out=str(tmp_path / "out"), **given))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_each_kind_is_written_to_its_folder(tmp_path, asked):
    write_image(tmp_path / "in", "A_1", crs=UTM, transform=PLACE)
    shape = {"type": "Polygon", "coordinates": [ground_box()]}
    system = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    feature = {"type": "Feature", "properties": {}, "geometry": shape}
    polygons = tmp_path / "houses.geojson"
    polygons.write_text(json.dumps({"type": "FeatureCollection", "crs": system, "features": [feature]}))
    predictions, out = str(tmp_path / "in"), str(tmp_path / "out")
    export(ExportConfig(what="points", predictions=predictions, out=out, format="ply"))
    export(ExportConfig(what="footprints", predictions=predictions, polygons=str(polygons), out=out))
    export(asked("weights", out=f"{out}/weights"))
    names = sorted(str(path.relative_to(out)) for path in Path(out).rglob("*") if path.is_file())
    weights = ["README.md", "config.yaml", "model.safetensors", "score.json"]
    assert names == ["A_1.ply", "houses_AGL.geojson", *(f"weights/{name}" for name in weights)]
