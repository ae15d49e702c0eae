"""The CSV files of a data set, good and bad."""

from pathlib import Path

import pytest

from agl_core.data.catalog import TileMetadata, TileRecord, cities, read_catalog, read_metadata
from agl_core.errors import UserError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three tiles for training, one of them a nadir image, and one for testing; the images are empty files."""
    (tmp_path / "geopose_train.csv").write_text(
        "id,agl,json,rgb\n"
        "OMA_c,OMA_c_AGL.tif,OMA_c_VFLOW.json,OMA_c_RGB.j2k\n"
        "ARG_a,ARG_a_AGL.tif,ARG_a_VFLOW.json,ARG_a_RGB.tif\n"
        "ARG_b,ARG_b_AGL.tif,,ARG_b_RGB.tif\n"
    )
    (tmp_path / "geopose_test.csv").write_text("id,rgb\nJAX_d,JAX_d_RGB.tif\n")
    (tmp_path / "metadata.csv").write_text("id,city,gsd\nARG_a,ARG,0.3\nARG_b,ARG,0.31\nOMA_c,OMA,0.5\nJAX_d,JAX,1\n")
    for folder, names in {
        "train": "OMA_c_AGL.tif OMA_c_VFLOW.json OMA_c_RGB.j2k ARG_a_AGL.tif ARG_a_VFLOW.json ARG_a_RGB.tif "
        "ARG_b_AGL.tif ARG_b_RGB.tif",
        "test": "JAX_d_RGB.tif",
    }.items():
        (tmp_path / folder).mkdir()
        for name in names.split():
            (tmp_path / folder / name).touch()
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_tiles_come_sorted_with_their_files_city_and_gsd(data: Path) -> None:
    train = data / "train"
    assert read_catalog(data, "train") == [
        TileRecord(
            "ARG_a", "ARG", 0.3, train / "ARG_a_RGB.tif", train / "ARG_a_AGL.tif", train / "ARG_a_VFLOW.json", None
        ),
        TileRecord("ARG_b", "ARG", 0.31, train / "ARG_b_RGB.tif", train / "ARG_b_AGL.tif", None, None),
        TileRecord(
            "OMA_c", "OMA", 0.5, train / "OMA_c_RGB.j2k", train / "OMA_c_AGL.tif", train / "OMA_c_VFLOW.json", None
        ),
    ]


def test_test_tiles_have_an_image_only(data: Path) -> None:
    image = data / "test" / "JAX_d_RGB.tif"
    (data / "geopose_test.csv").write_text("id,agl,json,rgb\nJAX_d,JAX_d_AGL.tif,JAX_d_VFLOW.json,JAX_d_RGB.tif\n")
    assert read_catalog(data, "test") == [TileRecord("JAX_d", "JAX", 1.0, image, None, None, None)]


def test_cities_come_from_the_data(data: Path) -> None:
    assert cities(read_catalog(data, "train")) == ["ARG", "OMA"]


def test_images_without_any_vflow_need_no_column_for_it(data: Path) -> None:
    (data / "geopose_train.csv").write_text("id,agl,rgb\nARG_a,ARG_a_AGL.tif,ARG_a_RGB.tif\n")
    assert [record.vflow for record in read_catalog(data, "train")] == [None]


def test_places_are_read_where_there_is_a_column(data: Path) -> None:
    (data / "metadata.csv").write_text("id,city,gsd,place\nARG_a,ARG,0.3,north\nARG_b,ARG,0.31,\nOMA_c,OMA,0.5,south\n")
    assert [record.place for record in read_catalog(data, "train")] == ["north", None, "south"]


def test_byte_order_marks_blanks_and_windows_lines_are_read_over(data: Path) -> None:
    text = "\ufeffid, city ,gsd\r\n ARG_a ,ARG , 0.3\r\nARG_b,ARG,0.31\r\nOMA_c,OMA,0.5\r\n"
    (data / "metadata.csv").write_bytes(text.encode())
    assert read_metadata(data / "metadata.csv")["ARG_a"] == TileMetadata("ARG", 0.3, None)
    assert len(read_catalog(data, "train")) == 3


def test_all_missing_files_are_listed_at_once(data: Path) -> None:
    (data / "train" / "ARG_a_AGL.tif").unlink()
    (data / "train" / "OMA_c_VFLOW.json").unlink()
    with pytest.raises(UserError, match=r"^2 file\(s\).* do not exist in .*train: ARG_a_AGL.tif, OMA_c_VFLOW.json;"):
        read_catalog(data, "train")


def test_many_missing_files_are_counted_and_ten_are_named(data: Path) -> None:
    for file in (data / "train").iterdir():
        file.unlink()
    names = [f"ARG_{number:02d}" for number in range(30)]
    (data / "geopose_train.csv").write_text("id,agl,rgb\n" + "".join(f"{n},{n}_A,{n}_R\n" for n in names))
    (data / "metadata.csv").write_text("id,city,gsd\n" + "".join(f"{name},ARG,1\n" for name in names))
    with pytest.raises(UserError, match=r"^60 file\(s\).*ARG_04_R, ARG_04_A and 50 more; copy them"):
        read_catalog(data, "train")


def test_a_listed_file_may_lie_deeper(data: Path) -> None:
    (data / "train" / "deep").mkdir()
    (data / "train" / "ARG_b_RGB.tif").rename(data / "train" / "deep" / "ARG_b_RGB.tif")
    edit(data / "geopose_train.csv", "ARG_b_RGB.tif", "deep/ARG_b_RGB.tif")
    assert read_catalog(data, "train")[1].rgb == data / "train" / "deep" / "ARG_b_RGB.tif"


@pytest.mark.parametrize(
    ("file", "old", "new", "sentence"),
    [
        ("geopose_train.csv", "id,agl,json,rgb", "id,AGL,json,rgb", "geopose_train.csv has no column agl: .*id, agl"),
        ("metadata.csv", "id,city,gsd", "id,town,px", "metadata.csv has no column city, gsd"),
        ("geopose_train.csv", "ARG_b,", "ARG_a,", "line 4: id ARG_a is listed twice"),
        ("metadata.csv", "OMA_c,OMA,0.5\n", "OMA_c,OMA,0.5\nOMA_c,OMA,0.5\n", "line 5: id OMA_c is listed twice"),
        ("metadata.csv", "OMA_c,OMA,0.5\n", "", "metadata.csv has no row for OMA_c of .*geopose_train.csv"),
        ("metadata.csv", "0.31", "0", "gsd of ARG_b is '0': give metres per pixel"),
        ("metadata.csv", "0.31", "-0.3", "gsd of ARG_b is '-0.3'"),
        ("metadata.csv", "0.31", "inf", "gsd of ARG_b is 'inf'"),
        ("metadata.csv", "0.31", "nan", "gsd of ARG_b is 'nan'"),
        ("metadata.csv", "0.31", "0.31m", "gsd of ARG_b is '0.31m'"),
        ("metadata.csv", "ARG_b,ARG,", "ARG_b,,", "line 3: city is empty"),
        ("geopose_train.csv", "ARG_b_AGL.tif", " ", "line 4: agl is empty"),
        ("geopose_train.csv", "ARG_b_RGB.tif", "ARG_b_RGB.tif,more", "line 4: more fields than the 4 columns"),
        ("geopose_train.csv", "ARG_b,", ".b,", "line 4: id '.b' cannot be part of a file name"),
        ("geopose_train.csv", "ARG_b,", "ARG/b,", "line 4: id 'ARG/b' cannot be part of a file name"),
        ("geopose_train.csv", "ARG_b,", f"{'b' * 201},", "line 4: id 'b*' cannot be part of a file name"),
        ("geopose_train.csv", "id,agl,json,rgb", '"id,agl', "geopose_train.csv cannot be read as CSV"),
    ],
)
def test_bad_tables_are_answered_with_one_sentence(data: Path, file: str, old: str, new: str, sentence: str) -> None:
    edit(data / file, old, new)
    with pytest.raises(UserError, match=sentence) as caught:
        read_catalog(data, "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["geopose_train.csv", "metadata.csv"])
def test_missing_empty_and_foreign_tables_are_named(data: Path, file: str) -> None:
    (data / file).write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(UserError, match=f"{file} cannot be read as CSV"):
        read_catalog(data, "train")
    (data / file).write_text("")
    with pytest.raises(UserError, match=f"{file} has no column id"):
        read_catalog(data, "train")
    (data / file).unlink()
    with pytest.raises(UserError, match=f"{file} does not exist: a data set needs it, with the columns id"):
        read_catalog(data, "train")


def test_a_table_without_tiles_is_refused(data: Path) -> None:
    (data / "geopose_test.csv").write_text("id,rgb\n")
    with pytest.raises(UserError, match=r"geopose_test\.csv lists no tiles"):
        read_catalog(data, "test")


def test_a_missing_data_set_and_an_unknown_split_are_refused(data: Path) -> None:
    with pytest.raises(UserError, match=r"no data set at .*nowhere: give the folder .* with --data"):
        read_catalog(data / "nowhere", "train")
    with pytest.raises(UserError, match="split 'val': choose one of train, test"):
        read_catalog(data, "val")
