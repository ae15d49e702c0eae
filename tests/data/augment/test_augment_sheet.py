"""`launch.py augment`: a tile under each operation, with arrows that end where the labels say."""

import math
from pathlib import Path

import numpy as np
import pytest

import launch
from agl_core.config import AugmentSheetConfig
from agl_core.data.augment import sheet as augment_sheet
from agl_core.data.augment.geometric import Geometry
from agl_core.data.augment.sheet import augment, visible_walls
from agl_core.data.tiles import UNKNOWN, write_agl, write_rgb, write_vflow
from agl_core.errors import UserError
from agl_core.geometry import Pose, direction
from agl_core.opencv import cv2
from agl_core.reporting.pictures.sheet import Panel, Section

POSE = Pose(1.2, 2.1)


def block(size: int = 160, metres: float = 15.0, pose: Pose = POSE) -> np.ndarray:
    """(size, size) uint16 centimetres: one block with its walls, seen obliquely, and a corner that nobody knows."""
    agl = np.zeros((size, size), np.uint16)
    ground = np.zeros((size, size), np.uint8)
    ground[60:100, 50:110] = 1
    for level in np.arange(0, metres + 0.01, 0.2):  # from the ground up: what is higher hides what lies below
        x, y = (-float(part) * level * pose.scale for part in direction(pose.angle))
        moved = cv2.warpAffine(ground, np.array([[1, 0, x], [0, 1, y]]), (size, size), flags=cv2.INTER_NEAREST)
        agl[moved > 0] = round(100 * level)
    agl[:10, :10] = UNKNOWN
    return agl


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two tiles of one city: JAX_a of 160 pixels with a block, JAX_b lower, smaller and seen from above."""
    train = tmp_path / "data" / "train"
    train.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, size, metres in (("JAX_a", 160, 15.0), ("JAX_b", 130, 4.0)):
        write_rgb(train / f"{name}_RGB.tif", generator.integers(60, 200, (size, size, 3), dtype=np.uint8))
        write_agl(train / f"{name}_AGL.tif", block(size, metres), "cm")
    write_vflow(train / "JAX_a_VFLOW.json", POSE, "cm")
    rows = [
        "id,agl,json,rgb",
        "JAX_a,JAX_a_AGL.tif,JAX_a_VFLOW.json,JAX_a_RGB.tif",
        "JAX_b,JAX_b_AGL.tif,,JAX_b_RGB.tif",
    ]
    (tmp_path / "data" / "geopose_train.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "data" / "metadata.csv").write_text("id,city,gsd\nJAX_a,JAX,0.5\nJAX_b,JAX,0.5\n")
    return tmp_path / "data"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Section]:
    """What the sheet is asked to show."""
    seen: list[Section] = []
    real = augment_sheet.contact_sheet

    def spy(title: str, about: str, most: float, sections: list[Section]) -> np.ndarray:
        seen.extend(sections)
        return real(title, about, most, sections)

    monkeypatch.setattr(augment_sheet, "contact_sheet", spy)
    return seen


def panels(drawn: list[Section]) -> dict[str, Panel]:
    return {panel.lines[0].split(":")[0]: panel for panel in drawn[0].panels}


def miss(panel: Panel) -> float:
    """Pixels by which the arrows of a panel miss their rings."""
    return float(panel.lines[-1].partition("arrows miss by ")[2].split()[0])


def test_the_command_writes_one_png_and_says_so(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = data.parent / "new" / "sheet.png"
    assert launch.main(["augment", "--data", str(data), "--out", str(out), "--crop", "96"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{out}: tile JAX_a under each augmentation, ")
    assert said.count("\n") == 1
    sheet = cv2.imread(str(out))
    assert f"{sheet.shape[1]} x {sheet.shape[0]} pixels" in said
    assert [path.name for path in out.parent.iterdir()] == ["sheet.png"]


def test_the_same_seed_draws_the_same_sheet_and_another_another(data: Path) -> None:
    written = []
    for seed in (0, 0, 1):
        out = data / f"{len(written)}.png"
        augment(AugmentSheetConfig(data=str(data), out=str(out), crop=64, seed=seed))
        written.append(out.read_bytes())
    assert written[0] == written[1] != written[2]


def test_every_operation_is_shown_and_the_labels_fit(data: Path, drawn: list[Section]) -> None:
    augment(AugmentSheetConfig(data=str(data), out=str(data / "s.png"), crop=128, seed=3))
    shown = panels(drawn)
    geometric = "original rot90 flip_horizontal flip_vertical transpose stretch view rotate zoom"
    assert list(shown)[:9] == geometric.split()
    assert list(shown)[9:] == ["all together, 1", "all together, 2", "all together, 3"]
    for name, panel in shown.items():
        assert len(panel.pictures) == 2
        assert "arrows miss by" in panel.lines[-1], name
        assert miss(panel) <= 1.0, name
    photometric = {panel.lines[0].split(":")[0] for panel in drawn[1].panels}
    families = "dropout blur brightness tone noise fancy_pca fog shadow sun_flare"
    assert photometric >= {"original", *families.split()}
    assert sum(panel.lines[0].startswith("blur:") for panel in drawn[1].panels) == 5


def test_a_label_rule_that_is_inverted_can_be_seen(
    data: Path, drawn: list[Section], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Geometry.labels

    def inverted(self: Geometry, pose: Pose, gsd: float) -> tuple[Pose, float]:
        pose, gsd = real(self, pose, gsd)
        return Pose(pose.scale / self.zoom**2, pose.angle - 2 * self.turn), gsd

    monkeypatch.setattr(Geometry, "labels", inverted)
    augment(AugmentSheetConfig(data=str(data), out=str(data / "s.png"), crop=128, seed=3))
    shown = panels(drawn)
    assert miss(shown["rotate"]) > 3
    assert miss(shown["zoom"]) > 3
    assert miss(shown["flip_vertical"]) < 1


def test_captions_say_what_the_labels_have_become(data: Path, drawn: list[Section]) -> None:
    augment(AugmentSheetConfig(data=str(data), out=str(data / "s.png"), crop=128))
    shown = panels(drawn)
    assert shown["original"].lines[1] == "scale 1.200 px/m, angle 120 deg, gsd 0.500 m"
    assert shown["rot90"].lines[1] == "scale 1.200 px/m, angle 210 deg, gsd 0.500 m"
    zoom = float(shown["zoom"].lines[0].rpartition(" ")[2])
    assert shown["zoom"].lines[1].startswith(f"scale {1.2 * zoom:.2f}"[:-1])
    assert float(shown["zoom"].lines[1].split()[-2]) == pytest.approx(0.5 / zoom, rel=0.01)
    stretch = float(shown["stretch"].lines[0].rpartition(" ")[2])
    assert shown["stretch"].lines[2].startswith(f"highest {15 * stretch:.1f}"[:-1])


def test_a_tile_without_a_pose_has_no_arrows_and_is_not_moved(data: Path, drawn: list[Section]) -> None:
    augment(AugmentSheetConfig(data=str(data), out=str(data / "s.png"), tile="JAX_b"))
    shown = panels(drawn)
    assert not {"stretch", "view"} & set(shown)
    assert all("arrows" not in panel.lines[-1] for panel in shown.values())
    assert shown["original"].lines[1] == "gsd 0.500 m"


def test_a_crop_larger_than_the_tile_is_the_tile(data: Path, drawn: list[Section]) -> None:
    augment(AugmentSheetConfig(data=str(data), out=str(data / "s.png"), crop=4000))
    assert panels(drawn)["original"].lines[-1].startswith("highest 15.0 m, 0.4% unknown")


def test_walls_are_found_where_one_sees_down_to_their_feet() -> None:
    agl = block()
    walls = visible_walls(agl, POSE)
    assert walls
    assert max(wall.metres for wall in walls) == 15.0
    for wall in walls:
        assert math.dist(wall.top, wall.foot) == pytest.approx(wall.metres * POSE.scale)
        x, y = (round(place) for place in wall.foot)
        assert agl[y, x] < 0.15 * 100 * wall.metres
    assert not visible_walls(agl, Pose(POSE.scale, POSE.angle + math.pi)), "not with the arrows the wrong way round"
    assert not visible_walls(agl, Pose(0.0, 0.0))


WRONG = [
    ({"tile": "JAX_x"}, "has no tile 'JAX_x': give one of JAX_a, JAX_b"),
    ({"out": "sheet.jpg"}, "the sheet is a PNG file, but --out is sheet.jpg: give a name that ends in .png"),
    ({"out": "folder.png"}, "is a folder: give the name of a PNG file in it"),
    ({"unit": "m"}, "holds uint16, but with unit 'm' an AGL is float32"),
    ({"data": "nowhere"}, "there is no data set at nowhere"),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG, ids=lambda value: str(value)[:30])
def test_what_cannot_be_drawn_is_refused_in_one_sentence(
    data: Path, words: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data)
    (data / "folder.png").mkdir()
    config = AugmentSheetConfig(**({"data": str(data), "out": "s.png"} | words))
    with pytest.raises(UserError, match=sentence) as refusal:
        augment(config)
    assert "\n" not in str(refusal.value)
    assert not [path for path in data.glob("*.png") if path.is_file()]


def test_a_disk_that_fills_up_leaves_the_earlier_sheet(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = data / "s.png"
    out.write_bytes(b"earlier")

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        augment(AugmentSheetConfig(data=str(data), out=str(out), crop=64))
    assert out.read_bytes() == b"earlier"
    assert [path.name for path in data.glob("*.png")] == ["s.png"]
