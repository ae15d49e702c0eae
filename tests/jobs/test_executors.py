"""Jobs on this machine: who does them, and what their history says."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agl_core.config import StageConfig, TrainConfig
from agl_core.durable.exits import InterruptedRunError
from agl_core.durable.lease import LeaseLostError
from agl_core.errors import UserError
from agl_core.files import write_text
from jobs import executors, progress
from jobs.cluster import ClusterConfig, load_cluster
from jobs.executors import describe, enter, execute
from jobs.failure import JobError, JobInterruptedError
from jobs.history import Entry, History, incarnations
from jobs.pipeline import ENSEMBLE, EVALUATE, KINDS, PREDICT, PREPARE, REPORT, STAGE, JobSpec
from jobs.runs import Run
from jobs.settings import to_yaml
from jobs.stages import Place, StageJob
from jobs.work import SharedJob

DEBUG = replace(load_cluster("debug"), post_mortem=False)
LOCAL, SLURM = load_cluster("local"), load_cluster("slurm")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "runs" / "first")
    run.path.mkdir(parents=True)
    write_text(run.config_file, to_yaml(TrainConfig(stages={"pretrain": StageConfig()})))
    return run


class Work:
    """What was done, by whom; how each job ends (True: done, and asked to leave meanwhile)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.here: list[tuple[str, str]] = []
        self.ranks: list[str] = []
        self.ends: dict[str, BaseException | bool] = {}
        monkeypatch.setattr(executors, "carry_out", self.carry_out)
        monkeypatch.setattr(executors, "run_ranks", self.run_ranks)

    def carry_out(self, run_dir: Path, name: str, kind: str, place: Place, **options: Any) -> bool:
        assert (place, options) == (Place(0, 1, 0, None), {"keyboard": True})
        self.here.append((name, kind))
        return self._end(name, run_dir)

    def run_ranks(
        self, call: StageJob | SharedJob, folder: Path, cluster: ClusterConfig, grace: float, apart: bool = False
    ) -> bool:
        assert not folder.exists()
        assert grace == TrainConfig().checkpoint.grace
        assert apart == isinstance(call, SharedJob)  # those of a stage notice by themselves that one has died
        name = call.name if isinstance(call, SharedJob) else call.stage
        self.ranks.append(name)
        return self._end(name, call.run_dir)

    def _end(self, name: str, run_dir: Path) -> bool:
        (Run(run_dir).checkpoints(name) / "step_00000040").mkdir(parents=True)
        end = self.ends.get(name, False)
        if isinstance(end, BaseException):
            raise end
        return end


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    return Work(monkeypatch)


def told(run: Run) -> list[Entry]:
    return [
        {
            name: value
            for name, value in entry.items()
            if name not in ("time", "host", "id", "pid", "restart", "attempt")
        }
        for entry in History(run.history).entries()
    ]


def specs(run: Run, *kinds: str) -> list[JobSpec]:
    return [JobSpec(run, "pretrain" if kind == STAGE else kind, kind) for kind in kinds]


@pytest.mark.parametrize(
    ("cluster", "in_ranks"),
    [(DEBUG, []), (LOCAL, ["pretrain", "predict"]), (replace(LOCAL, processes=1), ["pretrain"])],
    ids=["debug", "local", "one process"],
)
def test_stages_have_processes_of_their_own_and_so_has_predicting_where_there_are_several(
    run: Run, work: Work, cluster: ClusterConfig, in_ranks: list[str]
) -> None:
    jobs = specs(run, *KINDS)
    execute(jobs, cluster)
    assert work.ranks == in_ranks
    assert work.here == [(job.name, job.kind) for job in jobs if job.name not in in_ranks]


@pytest.mark.parametrize("cluster", [DEBUG, LOCAL], ids=["debug", "local"])
def test_the_history_has_the_beginning_and_the_end_of_every_job(run: Run, work: Work, cluster: ClusterConfig) -> None:
    execute(specs(run, STAGE, REPORT), cluster)
    end = {"end": "done", "why": "", "deed": "done", "text": "", "traceback": ""}
    assert told(run) == [
        {"kind": "begin", "job": "pretrain", "step": 0},
        {"kind": "end", "job": "pretrain", "step": 40, **end},
        {"kind": "begin", "job": "report", "step": None},
        {"kind": "end", "job": "report", "step": None, **end},
    ]
    assert {entry["id"] for entry in History(run.history).entries()} == {f"pid {os.getpid()}"}
    assert all(found.end is not None for found in incarnations(History(run.history).entries()))


# How the job in this process ends; what the launcher hears; end, deed and text in the history.
HERE: list[tuple[BaseException, type[BaseException], tuple[str, str, str]]] = [
    (UserError("the store is gone"), UserError, ("refused", "give up", "the store is gone")),
    (
        InterruptedRunError("TERM", 40),
        JobInterruptedError,
        ("interrupted", "leave", "interrupted by TERM; step 40 is saved"),
    ),
    (KeyboardInterrupt(), KeyboardInterrupt, ("interrupted", "leave", "interrupted by the keyboard")),
    (RuntimeError("out of memory"), RuntimeError, ("crashed", "give up", "out of memory")),
]


@pytest.mark.parametrize(("error", "heard", "entry"), HERE, ids=[type(case[0]).__name__ for case in HERE])
def test_how_a_job_in_this_process_ended_is_in_the_history_and_those_after_it_are_not_begun(
    run: Run, work: Work, error: BaseException, heard: type[BaseException], entry: tuple[str, str, str]
) -> None:
    work.ends["pretrain"] = error
    with pytest.raises(heard):
        execute(specs(run, STAGE, REPORT), DEBUG)
    begin, end = told(run)
    assert (begin["kind"], end["kind"]) == ("begin", "end")
    assert (end["end"], end["deed"], end["text"]) == entry
    assert ("Traceback" in end["traceback"]) == (end["end"] == "crashed")
    assert end["step"] == 40
    assert work.here == [("pretrain", STAGE)]


IN_RANKS: list[tuple[BaseException, tuple[str, str]]] = [
    (UserError("the store is gone"), ("refused", "give up")),
    (JobInterruptedError("interrupted by TERM; step 40 is saved"), ("interrupted", "leave")),
    (JobError("rank 1 was killed by SIGKILL"), ("crashed", "give up")),
]


@pytest.mark.parametrize(("error", "entry"), IN_RANKS, ids=[type(case[0]).__name__ for case in IN_RANKS])
def test_how_a_job_with_ranks_ended_is_in_the_history(
    run: Run, work: Work, error: BaseException, entry: tuple[str, str]
) -> None:
    work.ends["pretrain"] = error
    with pytest.raises(type(error)):
        execute(specs(run, STAGE, REPORT), LOCAL)
    end = told(run)[-1]
    assert (end["end"], end["deed"], end["text"], end["traceback"]) == (*entry, str(error), "")
    assert work.here == []


def test_who_pressed_the_keyboard_is_told_apart_from_a_scheduler(run: Run, work: Work) -> None:
    for signal, by_keyboard in (("INT", True), ("TERM", False)):
        work.ends["predict"] = InterruptedRunError(signal, None, "3 of 9 images are there")
        with pytest.raises(JobInterruptedError, match=r"3 of 9 images are there") as interruption:
            execute(specs(run, PREDICT), DEBUG)
        assert interruption.value.by_keyboard == by_keyboard
        (run.checkpoints("predict") / "step_00000040").rmdir()


def test_a_run_that_another_process_took_over_has_failed_here(run: Run, work: Work) -> None:
    work.ends["pretrain"] = LeaseLostError("another process continues the run")
    with pytest.raises(JobError, match="another process continues"):
        execute(specs(run, STAGE), DEBUG)
    assert told(run)[-1]["end"] == "taken over"


@pytest.mark.parametrize("cluster", [DEBUG, LOCAL], ids=["debug", "local"])
def test_a_signal_at_the_end_of_a_job_ends_the_chain_but_not_after_the_last(
    run: Run, work: Work, cluster: ClusterConfig
) -> None:
    work.ends["pretrain"] = True
    with pytest.raises(JobInterruptedError, match="at the end of first/pretrain"):
        execute(specs(run, STAGE, REPORT), cluster)
    assert told(run)[-1]["end"] == "done"
    assert work.here in ([], [("pretrain", STAGE)])
    (run.checkpoints("pretrain") / "step_00000040").rmdir()
    execute(specs(run, STAGE), cluster)


@pytest.mark.parametrize("cluster", [DEBUG, LOCAL, SLURM], ids=["debug", "local", "slurm"])
def test_every_run_keeps_the_cluster_that_it_was_last_started_on(
    run: Run, work: Work, monkeypatch: pytest.MonkeyPatch, cluster: ClusterConfig
) -> None:
    monkeypatch.setattr(executors, "submit", lambda jobs, cluster: None)
    other = Run(run.path.with_name("both"))
    other.path.mkdir()
    changed = replace(cluster, threads=3, environment={"NOTE": "it's 5"})
    execute([JobSpec(run, "report", REPORT), JobSpec(other, "ensemble", ENSEMBLE)], changed)
    assert load_cluster(str(run.cluster_file)) == load_cluster(str(other.cluster_file)) == changed


def test_for_slurm_nothing_is_done_here(run: Run, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted: list[Any] = []
    monkeypatch.setattr(executors, "submit", lambda jobs, cluster: submitted.append((jobs, cluster)))
    jobs = specs(run, PREPARE, STAGE)
    execute(jobs, SLURM)
    assert submitted == [(jobs, SLURM)]
    assert (work.here, work.ranks, told(run)) == ([], [], [])


def test_what_would_be_done_here_is_a_line_for_each_job(run: Run) -> None:
    jobs = [JobSpec(run, "pretrain", STAGE), JobSpec(run, "evaluate", EVALUATE, ("first/pretrain",))]
    shown = describe(jobs, replace(LOCAL, processes=3, gpus_per_node=0), threads=1, workers=2)
    assert shown.splitlines() == [
        "1. first/pretrain: in 3 processes here, on the CPU; per process 1 thread, 2 data loading processes",
        "2. first/evaluate: in this process; after first/pretrain",
    ]


def test_the_scripts_of_slurm_are_shown_with_the_names_of_those_they_come_after(run: Run) -> None:
    jobs = [JobSpec(run, "pretrain", STAGE), JobSpec(run, "report", REPORT, ("first/pretrain",))]
    shown = describe(jobs, SLURM, 1, 0)
    assert shown.count("#!/bin/bash") == 2
    assert "# ---- first/pretrain: submitted with sbatch, starts at once\n" in shown
    assert "# ---- first/report: submitted with sbatch, starts after first/pretrain succeeded\n" in shown
    assert "#SBATCH --dependency=afterok:ID_OF_FIRST_PRETRAIN\n" in shown
    assert not run.code.exists()


def test_debug_has_the_environment_of_its_jobs_and_slurm_only_where_weights_are_kept(monkeypatch) -> None:
    for name in ("HF_HOME", "NOTE"):
        monkeypatch.setenv(name, "unchanged")
    given = {"HF_HOME": "/cache", "NOTE": "changed"}
    enter(replace(SLURM, environment=given))
    assert (os.environ["HF_HOME"], os.environ["NOTE"]) == ("/cache", "unchanged")
    enter(replace(DEBUG, environment=given))
    assert os.environ["NOTE"] == "changed"


def test_a_chain_that_cannot_be_listed_keeps_no_job_from_its_start(
    run: Run, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(progress, "chain_files", away)
    execute([JobSpec(run, "pretrain", STAGE)], DEBUG)
    assert [entry["kind"] for entry in History(run.history).entries()] == ["begin", "end"]
