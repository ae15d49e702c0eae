"""The benchmarks: the arithmetic of a comparison, that contenders do the same work, that every script runs."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import reading, training
from benchmarks.harness import Arguments, Comparison, arguments, compare, report, turns

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem not in ("__init__", "harness"))


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
    assert written["machine"].keys() == {"cores", "cpu", "python", "torch"}


def test_a_result_that_could_not_be_written_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        arguments("", ["--json", str(tmp_path / "absent" / "out.json")])
    assert "does not exist: create it first" in capsys.readouterr().err
    assert arguments("", ["--quick"]) == (True, None)


def test_all_layouts_give_the_same_crop(tmp_path: Path) -> None:
    rgb, agl = reading.synthetic_tile(300)
    metres = np.where(agl == 65535, np.nan, agl / 100)
    with reading.readers(tmp_path, 300) as layouts:
        assert len(layouts) == 3
        for name, read in layouts.items():
            for y, x in ((0, 0), (236, 101)):  # the first touches what is unknown, the second two sub-tiles
                own_rgb, own_agl = read(y, x, 64)
                expected = metres if name == "pickled tile" else agl
                np.testing.assert_array_equal(own_rgb, rgb[y : y + 64, x : x + 64])
                np.testing.assert_allclose(own_agl, expected[y : y + 64, x : x + 64], rtol=1e-6)
                assert own_rgb.flags.c_contiguous
                assert own_agl.flags.c_contiguous


def test_both_training_loops_compute_the_same_weights() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    case = training.QUICK
    batches, (bare, own) = training.synthetic_batches(case), training.networks(case)
    before = own.agl_head.weight.clone()
    bare_step = training.bare_loop(bare, batches, case.stage())
    own_step = training.project_step(own, batches, case.stage())
    bare_step()
    own_step()
    torch.set_num_threads(threads)
    assert not torch.equal(before, own.agl_head.weight)
    for (name, one), (_, other) in zip(bare.named_parameters(), own.named_parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6), name


def run_script(script: str, way: str, folder: Path) -> dict[str, Any]:
    """Run a benchmark as a user does, in `folder`; the JSON that it left."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)  # a file must find the project by itself
    command = [str(ROOT / "benchmarks" / f"{script}.py")]
    if way == "module":
        environment["PYTHONPATH"] = str(ROOT)  # stands for running it in the checkout
        command = ["-m", f"benchmarks.{script}"]
    done = subprocess.run(
        [sys.executable, *command, "--quick", "--json", "out.json"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "ratio" in done.stdout
    assert [path.name for path in folder.iterdir()] == ["out.json"]
    result = json.loads((folder / "out.json").read_text())
    assert isinstance(result, dict)
    return result


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("way", ["file", "module"])
def test_every_script_runs_and_leaves_its_ratios(script: str, way: str, tmp_path: Path) -> None:
    result = run_script(script, way, tmp_path)
    rounds = result["settings"]["rounds"]
    assert result["quick"]
    assert result["ratios"].keys() == result["contenders"].keys()
    assert len(result["ratios"]) >= 2
    for name, ratios in result["ratios"].items():
        assert len(ratios["rounds"]) == len(result["contenders"][name]) == rounds
        assert 0 < ratios["lowest"] <= ratios["median"] <= ratios["highest"]
    assert set(result["ratios"][result["baseline"]]["rounds"]) == {1.0}


def test_the_readme_has_a_line_for_every_script() -> None:
    table = [line for line in (ROOT / "benchmarks" / "README.md").read_text().splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in table] == [f"{script}.py" for script in SCRIPTS]
