"""Processes that are warned at any place of a run: all leave together with the same step saved, and none is lost."""

import signal
from pathlib import Path

import pytest

from agl_core.durable.exits import INTERRUPTED
from agl_core.durable.lease import read_lease
from tests.training.incarnations import (
    KEYBOARD,
    Life,
    Strike,
    assert_same_result,
    checkpoints,
    config,
    events,
    half_written,
    live,
)

SELDOM = "100 steps"  # so that nothing is saved but because of a signal, or with the best score
TERM, USR2, INT, KILL = signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGKILL


@pytest.fixture(scope="module")
def whole(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole")
    assert live(config(tiny_store), run_dir).codes == [0, 0]
    return run_dir


def assert_left_in_order(run_dir: Path, life: Life, name: str) -> int:
    """All ranks left with the code of an interruption, at one step, which is saved, and only once; that step."""
    assert life.struck > 0
    assert life.codes == [INTERRUPTED] * len(life.codes), life.logs
    assert life.left == []
    (step,) = set(life.reached)
    interruption = events(run_dir, "interruption")[-1]
    assert (interruption["step"], interruption["saved"]) == (step, step or None)
    assert interruption["signal"] == name
    lease = read_lease(run_dir)
    assert lease is not None
    assert lease.step == step
    assert lease.released is not None
    saved = [event["step"] for event in events(run_dir, "checkpoint")]
    assert len(saved) == len(set(saved))  # of all lives, none of which lost a step
    assert step == 0 or (max(saved) == step and max(checkpoints(run_dir)) == step)
    assert half_written(run_dir) == []
    return step


@pytest.mark.parametrize("number", [USR2, TERM], ids=["USR2", "TERM"])
@pytest.mark.parametrize("point", ["start", "compute", "validation", "write", "finish"])
def test_a_warning_to_any_process_makes_all_save_the_same_step_and_leave(
    tiny_store: Path, tmp_path: Path, whole: Path, point: str, number: int
) -> None:
    settings = config(tiny_store, every="1 step" if point == "write" else SELDOM, workers=1)
    # A single one is enough, whoever gets it; and no number of them is too much.
    one = Strike(point, rank=0 if point == "finish" else 1, signal=number)
    # At these points a peer may be further on already, where the warning would change nothing.
    further_on = point in ("validation", "finish")
    if point == "write" or number == TERM:
        one = Strike(point, victims="self" if further_on else "other", signal=number)
    all_of_them = Strike(point, victims="everything", signal=number, times=2)
    step = 0
    for strike in (one, all_of_them):
        life = live(settings, tmp_path, strike)
        assert life.begun == [step, step], f"steps were lost before {strike}\n{life.logs}"
        step = assert_left_in_order(tmp_path, life, signal.Signals(number).name.removeprefix("SIG"))
        assert point != "validation" or events(tmp_path, "validation") == []  # it was broken off
    after = live(settings, tmp_path)
    assert after.codes == [0, 0], after.logs
    assert after.begun == [step, step]
    assert_same_result(tmp_path, whole)


def test_signals_that_come_while_the_state_is_saved_because_of_one_change_nothing(
    tiny_store: Path, tmp_path: Path, whole: Path
) -> None:
    first = Strike("compute", rank=1, signal=USR2)
    again = Strike("write", 1, victims="everything", signal=TERM, times=2)
    life = live(config(tiny_store, every=SELDOM), tmp_path, first, again)
    assert life.struck == 2
    assert assert_left_in_order(tmp_path, life, "USR2") == 1
    assert live(config(tiny_store, every=SELDOM), tmp_path).begun == [1, 1]
    assert_same_result(tmp_path, whole)


def test_without_the_time_to_save_the_last_good_checkpoint_stands(
    tiny_store: Path, tmp_path: Path, whole: Path
) -> None:
    settings = config(tiny_store, every=SELDOM)
    # The best score of step 2 is saved; that write is over when step 4 is validated. Then the kill comes at once.
    life = live(settings, tmp_path, Strike("validation", 3, signal=TERM), grace=0.0)
    assert life.codes == [INTERRUPTED, INTERRUPTED]
    assert life.reached == [4, 4]
    interruption = events(tmp_path, "interruption")[-1]
    assert (interruption["step"], interruption["saved"]) == (4, 2)
    assert checkpoints(tmp_path) == {2}
    assert half_written(tmp_path) == []
    assert live(settings, tmp_path).begun == [2, 2]
    assert_same_result(tmp_path, whole)


def test_a_kill_in_the_midst_of_the_save_leaves_the_last_good_checkpoint(
    tiny_store: Path, tmp_path: Path, whole: Path
) -> None:
    settings = config(tiny_store, every=SELDOM)
    strikes = (Strike("compute", signal=TERM), Strike("write", 2, victims="all", signal=KILL))
    life = live(settings, tmp_path, *strikes)
    assert life.codes == [-KILL, -KILL]
    assert checkpoints(tmp_path) == set()
    life = live(settings, tmp_path, Strike("compute", signal=TERM))
    assert life.begun == [0, 0]
    life = live(settings, tmp_path, *strikes)
    assert life.codes == [-KILL, -KILL]
    assert checkpoints(tmp_path) == {1}
    assert live(settings, tmp_path).begun == [1, 1]
    assert_same_result(tmp_path, whole)


def test_one_press_of_ctrl_c_saves_and_a_second_one_waits_for_nothing(tiny_store: Path, tmp_path: Path) -> None:
    settings = config(tiny_store, every=SELDOM)
    assert live(settings, tmp_path / "whole", world_size=1).codes == [0]
    once = live(settings, tmp_path / "run", Strike("compute", signal=INT), world_size=1, keyboard=True)
    assert assert_left_in_order(tmp_path / "run", once, "INT") == 1
    twice = live(settings, tmp_path / "run", Strike("compute", signal=INT, times=2), world_size=1, keyboard=True)
    assert twice.codes == [KEYBOARD]
    assert twice.begun == twice.reached == [1]
    rest = live(settings, tmp_path / "run", world_size=1)
    assert rest.begun == [1]
    assert_same_result(tmp_path / "run", tmp_path / "whole")
