"""The report of a run is made of its folder alone: configuration, events, history and score."""

from dataclasses import replace
from pathlib import Path

import pytest

from agl_core.config import ReportConfig, StageConfig, TrainConfig
from agl_core.errors import UserError
from agl_core.files import write_json
from agl_core.reporting.events import EventLog
from jobs.history import History
from jobs.reports import config_digest, read_report, report
from jobs.runs import Run, create, run_of


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of two stages that was interrupted in the first."""
    stages = {"a": StageConfig(), "b": StageConfig(start="a/last")}
    config = TrainConfig(run="first", runs=str(tmp_path), data="/data|set", stages=stages)
    found = run_of(config)
    create(found, config)
    log = EventLog(found.events, "a")
    log.write("start", step=0, steps=20, epochs=4, world_size=1, device="cpu", precision="float32")
    log.write("validation", step=5, epoch=1, score=0.5, cities={"X": {"score": 0.5}})
    log.close()
    history = History(found.history)
    history.begin("a", "17", step=0)
    history.end("a", "17", step=12, end="interrupted", why="preempted", deed="requeue", text="step 12 is saved")
    history.begin("a", "17", restart=1, step=12)
    return found


def test_every_start_is_told_with_its_end_and_the_report_s_own_is_not(run: Run) -> None:
    History(run.history).begin("report", "18")
    first, second = read_report(run).starts
    assert (first.job, first.id, first.step, first.end) == ("a", "17", 12, "interrupted, preempted")
    assert first.text == "step 12 is saved"
    assert second.end.startswith("no end was written down")


def test_the_page_of_a_run_that_is_not_finished_says_how_far_it_is(run: Run, capsys) -> None:
    report(ReportConfig(run="first", runs=str(run.path.parent)))
    assert capsys.readouterr().out == f"{run.report_file}\n"
    page = run.report_file.read_text()
    assert "| a | not finished | 5 of 20 | 1 of 4 | 0.5000 at step 5 | 1 |" in page
    assert "| b | not begun |" in page
    assert "| data | /data\\|set |" in page
    assert "## Score" not in page


@pytest.mark.parametrize("content", ['{"score": ', "[]"])
def test_a_score_that_cannot_be_read_is_left_out(run: Run, content: str) -> None:
    run.score_file.write_text(content)
    assert read_report(run).score is None
    write_json(run.score_file, {"score": 0.5, "cities": {}})
    assert read_report(run).score == {"score": 0.5, "cities": {}}


def test_a_run_that_is_not_there_is_answered_with_those_that_are(run: Run) -> None:
    with pytest.raises(UserError, match=r"there is no run 'second' in .*: it has first"):
        report(ReportConfig(run="second", runs=str(run.path.parent)))


def test_the_digest_stands_for_what_makes_a_run_another_one(run: Run) -> None:
    config = run.config()
    own = config_digest(config)
    assert config_digest(replace(config, data="/elsewhere", workers=7, until="train")) == own
    assert config_digest(replace(config, seed=1)) != own
    assert config_digest(replace(config, stages=dict(reversed(config.stages.items())))) != own
