"""What Slurm's commands say, and what is made of their silence."""

import os
from pathlib import Path

import pytest

from jobs import scontrol
from tests.jobs import fake_slurm


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return fake_slurm.install(tmp_path / "slurm", monkeypatch)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


# As Slurm 22.05 prints it.
QUEUE = """\
CLUSTER: mini
2|PENDING|Dependency|10:00|N/A||wrap
4|PENDING|Resources|UNLIMITED|2026-11-23T18:17:00||wrap
1|RUNNING|None|1-00:04:58|2026-11-22T18:12:00|n[0-1]|a|b c
"""


def test_the_queue_is_read_with_names_that_hold_anything() -> None:
    two, four, one = scontrol.parse_queue(QUEUE)
    assert (two.id, two.state, two.reason, two.time_left, two.start) == ("2", "PENDING", "Dependency", 600.0, "")
    assert (four.time_left, four.start) == (None, "2026-11-23T18:17:00")
    assert (one.name, one.state, one.reason, one.nodes) == ("a|b c", "RUNNING", "", "n[0-1]")
    assert one.time_left == 86400 + 4 * 60 + 58


DURATIONS = [
    ("0:30", 30.0), ("10:00", 600.0), ("1:00:00", 3600.0), ("2-01:00:00", 176400.0), ("2-12", 216000.0),
    ("2-12:30", 217800.0), ("UNLIMITED", None), ("NOT_SET", None), ("INVALID", None), ("", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "seconds"), DURATIONS)
def test_a_time_limit_is_read(text: str, seconds: float | None) -> None:
    assert scontrol.parse_duration(text) == seconds


def test_the_queue_is_asked_once_and_without_the_filters_of_the_user(slurm: Path, monkeypatch) -> None:
    monkeypatch.setenv("SQUEUE_PARTITION", "urgent")
    (slurm / "queue").write_text(QUEUE)
    assert list(scontrol.queue(["1", "2", "9"]) or {}) == ["1", "2"]
    assert fake_slurm.asked(slurm) == ["squeue --noheader --jobs 1,2,9 --format %i|%T|%r|%L|%S|%N|%j"]


def test_no_question_is_asked_about_no_jobs(slurm: Path) -> None:
    assert scontrol.queue([]) == {}
    assert fake_slurm.asked(slurm) == []


def test_jobs_that_slurm_has_forgotten_are_not_in_the_queue(slurm: Path) -> None:
    (slurm / "forgotten").touch()
    assert scontrol.queue(["9"]) == {}


def test_a_silent_slurm_is_not_an_empty_queue(slurm: Path) -> None:
    fake_slurm.remove(slurm)
    assert scontrol.queue(["1"]) is None


@pytest.mark.usefixtures("nowhere")
def test_without_slurm_nothing_is_known() -> None:
    assert scontrol.queue(["1"]) is None
    assert scontrol.show_job("1") is None
    assert scontrol.cancel(["1"]) == "scancel does not answer"
    assert scontrol.requeue("1") == "scontrol does not answer"


def test_a_command_that_hangs_is_given_up(tmp_path: Path) -> None:
    assert scontrol.call(["sleep", "1000"], patience=0.05) is None


def test_a_command_is_out_of_reach_of_the_signals_to_its_group(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\nps -o pgid= -p $$\n")
    script.chmod(0o755)
    done = scontrol.call([str(script)])
    assert done is not None
    assert int(done.stdout) != os.getpgrp()


def test_a_job_is_shown(slurm: Path) -> None:
    (slurm / "job.17").write_text("JobId=17 JobState=RUNNING Reason=None Restarts=2 PreemptTime=None Requeue=1\n")
    facts = scontrol.show_job("17")
    assert facts is not None
    assert (facts.state, facts.restarts) == ("RUNNING", 2)
    assert scontrol.show_job("18") is None
    (slurm / "job.17").write_text("nothing of use\n")
    assert scontrol.show_job("17") is None


def test_jobs_that_wait_are_cancelled_before_those_that_run(slurm: Path) -> None:
    assert scontrol.cancel(["1", "2"]) is None
    assert fake_slurm.asked(slurm) == ["scancel --state=PENDING 1 2", "scancel 1 2"]


def test_a_cancelled_job_that_has_ended_already_is_no_failure(slurm: Path) -> None:
    (slurm / "refusal").write_text("scancel: error: Kill job error on job id 1: Invalid job id specified\n")
    assert scontrol.cancel(["1"]) is None
    (slurm / "refusal").write_text("scancel: error: Kill job error on job id 1: Access/permission\ndenied\n")
    assert scontrol.cancel(["1"]) == "scancel: error: Kill job error on job id 1: Access/permission denied"


def test_a_refused_requeue_is_told(slurm: Path) -> None:
    assert scontrol.requeue("1") is None
    (slurm / "refusal").write_text("Requested operation is presently disabled for job 1\n")
    assert scontrol.requeue("1") == "Requested operation is presently disabled for job 1"
