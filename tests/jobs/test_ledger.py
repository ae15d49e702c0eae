"""When a job is given up."""

from pathlib import Path
from typing import Any

import pytest

from agl_core.config import RestartConfig
from jobs.history import History
from jobs.ledger import give_up

STEP = 120  # at which it crashes
SAVED = 100  # what is there to build on


class Life:
    """The starts of a job, one after the other, written as the conductor writes them."""

    def __init__(self, path: Path, id: str = "17") -> None:
        self.history, self.id, self.restart, self.attempt = History(path), id, 0, -1

    def start(self, saved: int | None = SAVED) -> "Life":
        self.attempt += 1
        self.history.begin("pretrain", self.id, self.restart, self.attempt, saved)
        return self

    def ends(self, end: str = "crashed", step: int | None = STEP) -> "Life":
        self.history.end("pretrain", self.id, self.restart, self.attempt, step, end=end, why="warned", deed="again")
        return self

    def requeued(self) -> "Life":
        self.restart, self.attempt = self.restart + 1, -1
        return self

    def submitted_again(self, id: str) -> "Life":
        self.id, self.restart, self.attempt = id, 0, -1
        return self

    def verdict(self, crashed: bool = True, step: int | None = STEP, saved: int | None = SAVED, **limits: Any) -> str:
        """What is said about the attempt that was started last and has just ended."""
        return (
            give_up(self.history.entries(), "pretrain", self.id, crashed, step, saved, RestartConfig(**{
                "crashes": 3, "inside": 10, "fruitless": 4, **limits
            }))
            or ""
        )  # fmt: skip


@pytest.fixture
def life(tmp_path: Path) -> Life:
    return Life(tmp_path / "history.jsonl")


def test_the_third_crash_at_the_same_step_is_the_last(life: Life) -> None:
    for _ in range(2):
        assert life.start().verdict() == ""
        life.ends()
    assert life.start().verdict() == "it has crashed 3 times in a row at step 120 (restart.crashes)"


def test_requeues_do_not_reset_the_count_of_crashes(life: Life) -> None:
    for _ in range(2):
        life.start().ends().requeued()
    assert "crashed 3 times" in life.start().verdict()


def test_a_crash_at_another_step_begins_anew(life: Life) -> None:
    for step in (118, 119):
        life.start(saved=step - 1).ends(step=step)
    assert life.start(saved=119).verdict(saved=119) == ""
    life.ends()
    assert life.start(saved=119).verdict(saved=119) == ""
    life.ends()
    assert "crashed 3 times" in life.start(saved=119).verdict(saved=119)


@pytest.mark.parametrize("end", ["interrupted", "taken over"])
def test_only_crashes_in_a_row_count_as_such(life: Life, end: str) -> None:
    life.start().ends().start().ends(end)
    assert life.start().verdict() == ""
    life.ends()
    assert life.start().verdict(fruitless=10) == ""


def test_a_start_that_was_killed_with_everything_is_no_crash(life: Life) -> None:
    life.start().ends().start().ends().start()
    assert life.start().verdict(fruitless=10) == ""


def test_an_interruption_is_no_crash(life: Life) -> None:
    life.start().ends().start().ends()
    assert life.start().verdict(crashed=False) == ""


def test_who_submits_again_has_all_tries_again(life: Life) -> None:
    life.start().ends().start().ends().submitted_again("18")
    for _ in range(2):
        assert life.start().verdict() == ""
        life.ends()
    assert "crashed 3 times" in life.start().verdict()


def test_a_job_without_steps_may_crash_as_often(life: Life) -> None:
    for _ in range(2):
        assert life.start(saved=None).verdict(step=None, saved=None) == ""
        life.ends(step=None)
    assert life.start(saved=None).verdict(step=None, saved=None) == "it has crashed 3 times in a row (restart.crashes)"


def test_the_limit_of_crashes_is_the_user_s(life: Life) -> None:
    assert "crashed 1 times" in life.start().verdict(crashes=1)
    assert life.verdict(crashes=2) == ""


def test_starts_that_bring_nothing_new_have_an_end_whatever_ended_them(life: Life) -> None:
    life.start().ends("interrupted").requeued()
    life.start().ends("crashed", step=101)
    life.start().requeued()  # killed with everything
    assert life.start().verdict(crashed=False, fruitless=5) == ""
    assert life.verdict(crashed=False) == "4 starts in a row have brought nothing new (restart.fruitless)"


def test_a_new_checkpoint_begins_the_count_of_fruitless_starts_anew(life: Life) -> None:
    for saved in (SAVED, SAVED, SAVED, SAVED + 1, SAVED + 1, SAVED + 1):
        life.start(saved).ends("interrupted")
    assert life.start(SAVED + 1).verdict(crashed=False, saved=SAVED + 2) == ""
    assert "4 starts in a row" in life.verdict(crashed=False, saved=SAVED + 1)


def test_interruptions_alone_never_end_a_run_that_comes_on(life: Life) -> None:
    for saved in range(100):
        assert life.start(saved).verdict(crashed=False, saved=saved + 1) == ""
        life.ends("interrupted").requeued()


def test_fruitless_starts_of_an_earlier_submission_do_not_count(life: Life) -> None:
    for _ in range(9):
        life.start().ends("interrupted")
    life.submitted_again("18")
    for _ in range(3):
        assert life.start().verdict(crashed=False) == ""
        life.ends("interrupted")
    assert "4 starts in a row" in life.start().verdict(crashed=False)


def test_the_other_jobs_of_the_run_do_not_count(life: Life) -> None:
    for attempt in range(9):
        life.history.begin("finetune", "17", 0, attempt, SAVED)
        life.history.end("finetune", "17", 0, attempt, STEP, end="crashed")
    assert life.start().verdict() == ""
