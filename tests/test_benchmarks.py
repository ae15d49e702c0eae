"""The benchmarks: the arithmetic of a comparison, that contenders do the same work, that every script runs."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from agl_core.data.catalog import read_catalog
from agl_core.data.store import StoreEntry
from agl_core.errors import UserError
from agl_core.geometry import Pose
from agl_core.reporting.events import read_events
from agl_core.training.fit_bench import Job
from agl_core.training.fit_device import Device
from benchmarks import device, footprint, reference_way, table, tiles, training
from benchmarks.harness import (
    Arguments,
    Comparison,
    Table,
    arguments,
    at_least,
    at_most,
    compare,
    machine,
    report,
    turns,
)
from benchmarks.layouts import REFERENCE, readers, write_store

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(
    path.stem
    for path in (ROOT / "benchmarks").glob("*.py")
    if "\ndef main(" in path.read_text()
    and path.stem != "table"  # which only prints what the others found
    and not path.stem.endswith("_study")  # which compare results, not times
)


class Stopwatch:
    """A clock that only contenders move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def contender(self, name: str, *durations: float) -> Callable[[], None]:
        """Takes the next of `durations` at each call."""
        waiting = iter(durations)

        def run() -> None:
            self.calls.append(name)
            self.now += next(waiting)

        return run


def test_each_round_is_divided_by_its_own_baseline_and_the_first_is_not_counted() -> None:
    clock = Stopwatch()
    # The second counted round is a slow one: theirs takes longest there, but not in proportion to ours.
    contenders = {"ours": clock.contender("ours", 99, 2, 4, 2), "theirs": clock.contender("theirs", 1, 8, 12, 5)}
    result = compare(contenders, 3, "ours", clock)
    assert result.seconds == {"ours": [2, 4, 2], "theirs": [8, 12, 5]}
    assert result.ratios("theirs") == [4, 3, 2.5]
    assert result.spread("theirs") == (3, 2.5, 4)
    assert result.spread("ours") == (1, 1, 1)


def test_every_round_begins_with_another_contender() -> None:
    clock = Stopwatch()
    compare({name: clock.contender(name, *[1] * 5) for name in "abc"}, 4, "a", clock)
    assert "".join(clock.calls) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert turns(["a", "b"], 3) == ["b", "a"]


def test_a_comparison_needs_a_round_and_its_baseline() -> None:
    for rounds, baseline in ((0, "a"), (1, "b")):
        with pytest.raises(ValueError, match="give 1 or more, and one of a"):
            compare({"a": lambda: None}, rounds, baseline)


def test_the_table_shows_median_times_and_the_spread_of_the_ratios() -> None:
    table = Comparison("ours", {"ours": [0.002, 0.004, 0.002], "theirs": [0.006, 0.016, 0.005]}).table().splitlines()
    assert [line.split() for line in table[1:3]] == [
        ["ours", "2.000", "1.000", "1.000", "1.000"],
        ["theirs", "6.000", "3.000", "2.500", "4.000"],
    ]


def test_a_report_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = Comparison("ours", {"ours": [1.0], "theirs": [3.0]})
    report(result, "a title", {"crop": 8}, Arguments(quick=True, json=tmp_path / "out.json"))
    assert capsys.readouterr().out.startswith("a title\ncontender")
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["ratios"]["theirs"] == {"median": 3.0, "lowest": 3.0, "highest": 3.0, "rounds": [3.0]}
    assert written["contenders"] == result.seconds
    assert written["settings"] == {"crop": 8}
    assert written["machine"] == machine()
    assert {"cores", "cpu", "memory_gib", "python", "torch", "lmdb"} <= written["machine"].keys()


def test_a_result_that_could_not_be_written_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        arguments("", ["--json", str(tmp_path / "absent" / "out.json")])
    assert "does not exist: create it first" in capsys.readouterr().err
    assert arguments("", ["--quick"]) == (True, None)


def synthetic(size: int, name: str = "AAA_tile") -> tiles.Tile:
    """A tile of noise with a band where nothing is known."""
    generator = np.random.default_rng(0)
    agl = generator.integers(0, 3000, (size, size)).astype(np.uint16)
    agl[:20] = 65535
    rgb = generator.integers(0, 255, (size, size, 3)).astype(np.uint8)
    return tiles.Tile(StoreEntry(name, "AAA", 0.5, size, size, 0.8, 1.0, highest=30.0), rgb, agl)


def test_all_layouts_give_the_same_crop(tmp_path: Path) -> None:
    tile = synthetic(600)
    with readers(tmp_path, tile) as layouts:
        assert len(layouts) == 6
        for name, read in layouts.items():
            for y, x in ((0, 0), (236, 101)):  # the first touches what is unknown, the second two sub-tiles
                rgb, agl = read(y, x, 64)
                expected = reference_way.metres(tile.agl) if name == REFERENCE else tile.agl
                np.testing.assert_array_equal(rgb, tile.rgb[y : y + 64, x : x + 64])
                np.testing.assert_array_equal(agl, expected[y : y + 64, x : x + 64])
                assert rgb.flags.c_contiguous
                assert agl.flags.c_contiguous


def test_the_stores_that_are_compared_are_read_with_and_without_offsets(tmp_path: Path) -> None:
    for offsets in (True, False):
        folder = write_store(tmp_path / str(offsets), [synthetic(300)], "zstd", offsets)
        assert (folder / "offsets.bin").is_file() == offsets


def test_the_reference_makes_the_batches_that_it_should(tmp_path: Path) -> None:
    tile = synthetic(100)
    path = reference_way.write(tmp_path / "lmdb", [tile])
    for careful in (False, True):
        dataset = reference_way.ReferenceDataset(path, [tile], 100, careful)
        (image, city, gsd), xydir, agl, mag, scale = next(iter(reference_way.loader(dataset, 2, 1, 0)))
        expected = (tile.rgb / 255 - reference_way.MEAN) / reference_way.DEVIATION
        assert (image.shape, image.dtype) == ((2, 3, 100, 100), torch.float32)
        np.testing.assert_allclose(image[1].permute(1, 2, 0), expected, atol=1e-5)
        np.testing.assert_array_equal(agl[0], reference_way.metres(tile.agl))
        np.testing.assert_allclose(mag, agl * 0.8, rtol=1e-6)
        np.testing.assert_allclose(xydir[0], [np.sin(1.0), np.cos(1.0)], rtol=1e-6)
        assert scale.tolist() == pytest.approx([0.8, 0.8])
        assert (city.shape, gsd.shape) == ((2, 1, 1, 1), (2, 1, 1, 1))


def test_what_the_reference_builds_is_what_it_reads(tmp_path: Path) -> None:
    data = tiles.rendered(tiles_size())
    held = reference_way.build(data, tmp_path / "lmdb")
    rendered = tiles.read_tiles(data)
    assert held == sum(7 * tile.agl.size for tile in rendered)
    with reference_way.open_reading(tmp_path / "lmdb") as environment:
        for tile in rendered:
            rgb, agl = reference_way.read_whole(environment, tile.entry.id)
            np.testing.assert_array_equal(rgb, tile.rgb)
            np.testing.assert_array_equal(agl, reference_way.metres(tile.agl))


def building() -> reference_way.Crop:
    """A red roof, 20 m high and 40 pixels wide, in the middle of grey, level ground; one pixel per metre, angle 0."""
    agl = np.zeros((160, 160), np.float32)
    rgb = np.full((160, 160, 3), 90, np.uint8)
    agl[60:100, 60:100], rgb[60:100, 60:100] = 20, (200, 40, 30)
    return reference_way.Crop(rgb, agl, agl.copy(), Pose(1.0, 0.0), 0.5)


def test_the_references_stretch_moves_a_roof_away_from_where_it_stands() -> None:
    crop = reference_way.stretched(building(), 1.5)
    # Angle 0: the roof stands on ground 20 pixels further down, and 30 once its height is 30. Where nothing has come,
    # the reference leaves what was there, the roof's lower edge.
    rows, columns = np.nonzero(crop.agl > 15)
    assert (rows.min(), columns.min()) == pytest.approx((50, 60), abs=2)
    assert (rows.max(), columns.max()) == pytest.approx((99, 99), abs=2)
    assert np.median(crop.agl[55:85, 65:95]) == pytest.approx(30)
    assert tuple(np.median(crop.rgb[55:85, 65:95], axis=(0, 1))) == (200, 40, 30)


def test_the_references_chain_keeps_shape_and_true_labels() -> None:
    random = np.random.RandomState(0)
    for _ in range(8):
        crop = reference_way.geometric(building(), reference_way.EVERYTHING, random, 80)
        assert (crop.rgb.shape, crop.agl.shape, crop.mag.shape) == ((80, 80, 3), (80, 80), (80, 80))
        assert crop.agl.flags.c_contiguous
        assert (crop.agl.dtype, crop.mag.dtype) == (np.float32, np.float32)
        known = np.isfinite(crop.agl)
        wrong = np.abs(crop.mag[known] - crop.agl[known] * crop.pose.scale) > 0.01
        assert wrong.mean() < 0.01  # it smooths mag before it stretches, and cuts the corners of roofs
        assert crop.pose.scale * crop.gsd == pytest.approx(0.5)  # zoom changes both


def test_the_reference_stretches_nothing_where_one_height_is_unknown() -> None:
    crop = building()
    crop.mag[0, 0] = crop.agl[0, 0] = np.nan
    only_stretch = reference_way.Chances(stretch=1.0, rot90=0, flip=0, rotate=0, zoom=0)
    same = reference_way.geometric(crop, only_stretch, np.random.RandomState(0), 160)
    np.testing.assert_array_equal(same.agl, crop.agl)
    other = reference_way.geometric(building(), only_stretch, np.random.RandomState(0), 160)
    assert other.agl.max() > 20


def tiles_size() -> int:
    return 512  # what the scripts render with --quick


def test_a_data_set_of_links_is_a_data_set(tmp_path: Path) -> None:
    source = tiles.rendered(tiles_size())
    data = tiles.linked(source, 7, tmp_path / "many")
    records, originals = read_catalog(data, "train"), read_catalog(source, "train")
    assert len(records) == 7
    assert {record.city for record in records} == {record.city for record in originals}
    assert {record.rgb.stat().st_ino for record in records} == {record.rgb.stat().st_ino for record in originals}


def test_rendered_tiles_have_the_same_pixels_in_both_formats() -> None:
    for one, other in zip(
        *(tiles.read_tiles(tiles.rendered(tiles_size(), kind)) for kind in ("tif", "j2k")), strict=True
    ):
        assert one.entry == other.entry
        np.testing.assert_array_equal(one.rgb, other.rgb)
        np.testing.assert_array_equal(one.agl, other.agl)


def test_rough_heights_are_unknown_where_they_were() -> None:
    tile = synthetic(100)
    noisy = tiles.rough(tile)
    assert (noisy.agl == 65535).sum() == (tile.agl == 65535).sum()
    assert np.abs(noisy.agl[20:].astype(int) - tile.agl[20:]).std() == pytest.approx(3, abs=1)


def test_the_watch_finds_what_a_child_of_a_child_takes() -> None:
    grandchild = "import time; kept = b'x' * 150_000_000; time.sleep(1)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    process = subprocess.Popen([sys.executable, "-c", child])
    with footprint.Watch(process.pid) as watch:
        process.wait()
    assert next(iter(watch.peaks)) == process.pid
    assert sum(150 < peak < 250 for peak in watch.peaks.values()) == 1


def test_reading_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3_000_000))

    def read_twice() -> None:
        handle = os.open(path, os.O_RDONLY)
        os.pread(handle, 1_000_000, 0)
        os.pread(handle, 500_000, 2_000_000)
        os.close(handle)

    asked = footprint.asked(read_twice)
    assert asked.calls == 2
    assert asked.call_mb == pytest.approx(1.5, abs=0.01)


def test_a_promise_holds_up_to_its_limit() -> None:
    assert at_most("x", 10.0, 10.0, "ms").held
    assert not at_most("x", 10.1, 10.0, "ms").held
    assert at_least("x", 4.0, 4.0, "x").held
    assert not at_least("x", 3.9, 4.0, "x").held


def test_the_page_of_results_has_machine_promises_and_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = Comparison("ours", {"ours": [1.0, 1.0], "theirs": [3.0, 4.0]})
    found = Table("one thing", ["what", "MB"], [["a | b", "3"]], "measured once")
    promises = [at_least("speed", 3.5, 4, "x as fast")]
    report(result, "a title", {}, Arguments(quick=True, json=tmp_path / "first.json"), [found], promises)
    capsys.readouterr()
    table.main([str(tmp_path / "first.json")])
    page = capsys.readouterr().out
    assert "## first" in page
    assert f"cores {machine()['cores']}" in page
    assert "A quick run" in page
    assert "| speed | at least 4 x as fast | 3.5 x as fast | NO |" in page
    assert "| theirs | 3500.000 | 3.500 (3.000 to 4.000) | 0.29 (0.25 to 0.33) |" in page
    assert "### One thing\n\n| what | MB |\n| --- | --- |\n| a \\| b | 3 |\n\nMeasured once." in page


def test_both_training_loops_compute_the_same_losses_with_everything_on(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    case = training.QUICK
    config = case.config(training.write_store(tmp_path / "store", case.tiles, case.crop + 32), ema=0.5)
    batches = training.the_same_batches(config, 1 + case.steps)
    bare = training.BareLoop(config, training.CITIES, iter(batches), case.steps)
    bare.step()
    with training.Trainer(config, tmp_path / "run", case.steps) as own:
        bare()
        own()
        assert threading.active_count() > 1
    torch.set_num_threads(threads)
    assert len(own.losses) == len(bare.losses) == 1 + case.steps
    assert training.difference(own.losses, bare.losses) < 1e-5
    assert bare.losses[0] != bare.losses[-1]
    # What the claim is about: events and TensorBoard at every step, a checkpoint in every round, the chain, the lease.
    events = read_events(tmp_path / "run" / "events.jsonl")
    kinds = [event["kind"] for event in events]
    assert kinds.count("step") == 1 + case.steps
    assert any(event["kind"] == "warning" for event in events) is False
    assert list((tmp_path / "run" / "checkpoints" / training.STAGE).glob("step*"))
    for name in ("chain", "tensorboard", "lease.json"):
        assert (tmp_path / "run" / name).exists(), name
    assert not [thread for thread in threading.enumerate() if thread.name in ("trainer", "feed", "checkpoint")]


def test_what_goes_wrong_in_the_trainers_thread_is_raised_where_it_is_stepped(tmp_path: Path) -> None:
    case = training.QUICK
    with pytest.raises(UserError), training.Trainer(case.config(tmp_path / "absent"), tmp_path / "run", case.steps):
        pass


def test_overhead_is_that_of_rounds_next_to_each_other() -> None:
    result = Comparison("bare", {"bare": [1.0, 1.0], "ours": [9.0, 9.0], "with": [2.0, 4.0], "theirs": [1.0, 5.0]})
    assert training.overhead(result, "with", "theirs") == pytest.approx(100 * ((2.0 + 0.8) / 2 - 1))


def test_the_device_has_all_ways_of_a_step_that_it_can_do_and_says_what_it_cannot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = Device("cpu", "a CPU", 16 * 10**9, 8 * 10**9)
    ways, left_out = device.variants(device.QUICK, cpu)
    assert [(way.name, way.precision) for way in ways] == [
        (device.BASELINE, "float32"),
        ("AdamW, not fused", "float32"),
        ("not channels_last", "float32"),
        ("bfloat16", "bfloat16"),
        ("gradient checkpointing", "float32"),
    ]
    assert [line.split(":")[0] for line in left_out] == ["apex", "float16"]
    jobs = {way.name: way.job(device.QUICK, cpu) for way in ways}
    assert jobs["AdamW, not fused"].config.stages[training.STAGE].optimizer.name == "adamw-plain"
    assert not jobs["not channels_last"].config.channels_last
    assert jobs["gradient checkpointing"].config.gradient_checkpointing
    monkeypatch.setattr(device, "missing", lambda _: "")
    assert "apex FusedAdam" in [way.name for way in device.variants(device.QUICK, cpu)[0]]
    smp = device.Case("resnet18", 64, 4, 1, 2, 2, 2)
    assert "gradient checkpointing: resnet18 has none" in device.variants(smp, cpu)[1]


def test_a_way_that_does_not_fit_beside_the_others_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bench:
        def __init__(self, job: Job, _: torch.device) -> None:
            self.precision = job.precision

        def steps(self, _: int) -> Callable[[], None]:
            if self.precision == "bfloat16":
                raise torch.OutOfMemoryError("CUDA out of memory")
            return lambda: None

    monkeypatch.setattr(device, "Bench", Bench)
    cpu = Device("cpu", "a CPU", 16 * 10**9, 8 * 10**9)
    ways = [device.Variant(device.BASELINE, "float32"), device.Variant("bfloat16", "bfloat16")]
    found, left_out = device.contenders(device.QUICK, cpu, ways)
    assert list(found) == [device.BASELINE]
    assert left_out == ["bfloat16: does not fit beside the others"]


def test_the_result_of_a_device_is_kept_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = {"device": "NVIDIA H100 80GB (SXM)", "gb": 85.0, "driver": "570.1", "cuda": "12.8"}
    comparison = Comparison("as it is", {"as it is": [1.0], "float32": [2.0]})
    report(comparison, "a step", {"rounds": 1, "about": about}, Arguments(quick=False, json=tmp_path / "found.json"))
    capsys.readouterr()
    result = json.loads((tmp_path / "found.json").read_text())
    files = device.record(result, tmp_path / "results")
    assert [path.name for path in files] == ["nvidia-h100-80gb-sxm.json", "nvidia-h100-80gb-sxm.md"]
    assert json.loads(files[0].read_text()) == result
    page = files[1].read_text()
    assert page.startswith(
        "# NVIDIA H100 80GB (SXM)\n\nDevice NVIDIA H100 80GB (SXM), gb 85.0, driver 570.1, cuda 12.8."
    )
    assert "| float32 | 2000.000 | 2.000 (2.000 to 2.000)" in page


def test_a_quick_run_is_not_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        device.main(["--quick", "--record"])
    assert "leave --quick away" in capsys.readouterr().err


@pytest.fixture(scope="session", autouse=True)
def _temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Rendered tiles are kept in the folder for temporary files: here that of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("tmp")
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        yield


def run(command: list[str], folder: Path) -> str:
    """Run a benchmark as a user does, in `folder`; what it has printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)  # a file must find the project by itself
    if command[0] == "-m":
        environment["PYTHONPATH"] = str(ROOT)  # stands for running it in the checkout
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_runs_and_leaves_its_ratios(script: str, tmp_path: Path) -> None:
    printed = run(["-m", f"benchmarks.{script}", "--quick", "--json", "out.json"], tmp_path)
    assert "ratio" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    result = json.loads((tmp_path / "out.json").read_text())
    rounds = result["settings"]["rounds"]
    assert result["quick"]
    assert result["ratios"].keys() == result["contenders"].keys()
    assert len(result["ratios"]) >= 2
    for name, ratios in result["ratios"].items():
        assert len(ratios["rounds"]) == len(result["contenders"][name]) == rounds
        assert 0 < ratios["lowest"] <= ratios["median"] <= ratios["highest"]
    assert set(result["ratios"][result["baseline"]]["rounds"]) == {1.0}
    for found in result["tables"]:
        assert found["rows"], found["title"]
        assert all(len(row) == len(found["columns"]) for row in found["rows"])


@pytest.mark.parametrize("script", [*SCRIPTS, "table"])
def test_every_script_can_be_run_as_a_file(script: str, tmp_path: Path) -> None:
    assert "usage" in run([str(ROOT / "benchmarks" / f"{script}.py"), "--help"], tmp_path)


def test_the_readme_has_a_line_for_every_script() -> None:
    table = [line for line in (ROOT / "benchmarks" / "README.md").read_text().splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in table] == [f"{script}.py" for script in SCRIPTS]
