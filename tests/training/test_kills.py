"""Processes that are killed at any place of a run: it ends with the bits of an undisturbed one, and no step is lost."""

import signal
from pathlib import Path

import numpy as np
import pytest

from agl_core.durable.exits import PEER_LOST
from tests.training.incarnations import Strike, assert_same_result, checkpoints, config, half_written, live

KILLS_IN_A_ROW = 10
KILLED = -signal.SIGKILL
STEPS = 10
SELDOM = "100 steps"  # so that nothing is saved but by those who survive

# What is killed where, how often checkpoints are due, and the step from which the next incarnation continues.
# None: as far as the survivor has come, since a write in the background runs beside the next step.
KILLS: list[tuple[Strike, str, int | None]] = [
    (Strike("start", rank=0), SELDOM, 0),
    (Strike("ready", rank=1), SELDOM, 0),
    (Strike("compute", 3, rank=0), SELDOM, 2),
    (Strike("compute", 3, rank=1), SELDOM, 2),
    (Strike("chain", 3, rank=0), SELDOM, 3),
    (Strike("chain", 3, rank=1), SELDOM, 3),
    (Strike("commit", 3, rank=0), SELDOM, 3),
    (Strike("validation", rank=0), SELDOM, 2),
    (Strike("best", 2, rank=0), SELDOM, 4),
    (Strike("finish", rank=0), SELDOM, 4),
    (Strike("record", rank=0), SELDOM, 4),
    (Strike("snapshot", 2), "1 step", 2),
    (Strike("write", 3), "1 step", None),
    (Strike("publish", 2), "1 step", None),
    (Strike("retire", 2), "1 step", None),
    (Strike("validation", victims="all"), SELDOM, 0),
    (Strike("write", 1, victims="all"), "1 step", 0),
    (Strike("write", 3, victims="all"), "1 step", 1),
    (Strike("publish", 2, victims="all"), "1 step", 1),
    (Strike("retire", 2, victims="all"), "1 step", 2),
    (Strike("record", victims="all"), SELDOM, 4),
]


@pytest.fixture(scope="module")
def whole(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole")
    assert live(config(tiny_store), run_dir).codes == [0, 0]
    return run_dir


@pytest.fixture(scope="module")
def long(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("long")
    assert live(config(tiny_store, STEPS), run_dir).codes == [0, 0]
    return run_dir


@pytest.fixture(scope="module")
def three(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("three")
    assert live(config(tiny_store), run_dir, world_size=3).codes == [0, 0, 0]
    return run_dir


@pytest.mark.parametrize(("strike", "every", "step"), KILLS, ids=lambda value: str(value))
def test_a_kill_costs_no_bit_and_a_survivor_saves_what_it_holds(
    tiny_store: Path, tmp_path: Path, whole: Path, strike: Strike, every: str, step: int | None
) -> None:
    settings = config(tiny_store, every=every)
    life = live(settings, tmp_path, strike)
    assert life.struck == 1
    victims = {"self": [strike.rank], "other": [1 - strike.rank], "all": [0, 1]}[strike.victims]
    assert life.codes == [KILLED if rank in victims else PEER_LOST for rank in range(2)], life.logs
    assert life.left == []
    after = live(settings, tmp_path)
    assert after.codes == [0, 0], after.logs
    survivors = [rank for rank in range(2) if rank not in victims]
    expected = step if step is not None else life.reached[survivors[0]]
    assert after.begun == [expected, expected], life.logs
    assert [max(life.reached[rank], 0) for rank in survivors] == [expected] * len(survivors)
    assert_same_result(tmp_path, whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_ten_kills_anywhere_in_one_run_leave_no_trace_in_the_result(
    tiny_store: Path, tmp_path: Path, long: Path, workers: int
) -> None:
    settings = config(tiny_store, STEPS, workers=workers)
    generator = np.random.default_rng(workers)
    places = ["start", "ready", "compute", "chain", "commit", "validation", "snapshot", "write", "publish", "retire"]
    story: list[str] = []
    for kill in range(KILLS_IN_A_ROW):
        point = "record" if kill == KILLS_IN_A_ROW - 1 else str(generator.choice(places))
        strike = Strike(
            point,
            call=int(generator.integers(1, 3)) if point in ("compute", "chain", "commit", "write") else 1,
            rank=int(generator.integers(2)) if point in places[: places.index("snapshot")] else 0,
            victims=str(generator.choice(["self", "all"] if point == "record" else ["self", "other", "all"])),
        )
        life = live(settings, tmp_path, strike)
        story.append(f"from step {life.begun} to {life.reached}, {strike}: {life.codes}")
        assert life.struck == 1, story
        assert set(life.codes) <= {KILLED, PEER_LOST}, (story, life.logs)
        assert life.left == [], story
    after = live(settings, tmp_path)
    assert after.codes == [0, 0], (story, after.logs)
    assert after.begun == [STEPS, STEPS], story
    assert_same_result(tmp_path, long)


@pytest.mark.parametrize("rank", [0, 1])
def test_two_survivors_save_the_same_state_once(tiny_store: Path, tmp_path: Path, three: Path, rank: int) -> None:
    settings = config(tiny_store, every=SELDOM)
    life = live(settings, tmp_path, Strike("commit", rank=rank), world_size=3)
    assert sorted(life.codes) == [KILLED, PEER_LOST, PEER_LOST], life.logs
    assert checkpoints(tmp_path) == {1}
    assert half_written(tmp_path) == []
    after = live(settings, tmp_path, world_size=3)
    assert after.begun == [1, 1, 1]
    assert_same_result(tmp_path, three)
