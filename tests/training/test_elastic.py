"""A run that goes on with other numbers of processes and workers: the same samples in the same global batches."""

import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from agl_core.durable.chain import StepEntry, first_difference, read_chains
from agl_core.durable.exits import INTERRUPTED
from agl_core.files import read_json
from tests.training.incarnations import Life, Strike, assert_same_result, config, live

STEPS = 6


def lives(store: Path, run_dir: Path, sizes: Sequence[tuple[int, int]]) -> list[Life]:
    """A run that does two steps with each of `sizes`, (processes, workers), and the rest with the last one."""
    found = []
    for number, (processes, workers) in enumerate(sizes, 1):
        leave = Strike("compute", 2, rank=processes - 1, signal=signal.SIGTERM)
        settings = config(store, STEPS, every="100 steps", workers=workers)
        found.append(live(settings, run_dir, *[leave] * (number < len(sizes)), world_size=processes))
    return found


def steps(run_dir: Path) -> list[StepEntry]:
    return [entry for chain in read_chains(run_dir, "first") for entry in chain if isinstance(entry, StepEntry)]


@pytest.fixture(scope="module")
def alone(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("alone")
    (life,) = lives(tiny_store, run_dir, [(1, 0)])
    assert life.codes == [0]
    return run_dir


@pytest.mark.parametrize("sizes", [[(3, 0), (1, 2), (2, 1)], [(2, 2), (3, 1), (1, 0)]], ids=str)
def test_a_run_on_changing_numbers_of_processes_and_workers_sees_the_same_samples(
    tiny_store: Path, tmp_path: Path, alone: Path, sizes: list[tuple[int, int]]
) -> None:
    found = lives(tiny_store, tmp_path, sizes)
    for number, (life, (processes, _)) in enumerate(zip(found, sizes, strict=True)):
        last = number == len(sizes) - 1
        assert life.codes == [0 if last else INTERRUPTED] * processes, life.logs
        assert life.begun == [2 * number] * processes
        assert life.left == []
    (whole,) = read_chains(alone, "first")
    difference = first_difference(read_chains(tmp_path, "first"), whole, losses=False)
    assert difference is None, str(difference)
    # The same pixels too: as long as weights differ in their last bits only, so do the losses.
    for one, other in zip(steps(alone), steps(tmp_path), strict=True):
        assert [float.fromhex(loss) for loss in other.losses] == pytest.approx(
            [float.fromhex(loss) for loss in one.losses], rel=1e-2
        )
    done, undisturbed = (read_json(path / "stages" / "first.json") for path in (tmp_path, alone))
    assert done["finished"]
    assert done["steps"] == undisturbed["steps"] == STEPS
    assert done["score"] == pytest.approx(undisturbed["score"], rel=1e-2)


def test_at_one_number_of_processes_that_of_workers_changes_no_bit(tiny_store: Path, tmp_path: Path) -> None:
    (life,) = lives(tiny_store, tmp_path / "whole", [(3, 0)])
    assert life.codes == [0, 0, 0], life.logs
    *_, life = lives(tiny_store, tmp_path / "parts", [(3, 2), (3, 0), (3, 1)])
    assert life.codes == [0, 0, 0], life.logs
    assert life.begun == [4, 4, 4]
    assert_same_result(tmp_path / "parts", tmp_path / "whole")
