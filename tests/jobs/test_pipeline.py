"""What is left to do becomes jobs, each after those that it needs and that are still to be done."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from agl_core.config import StageConfig, TrainConfig
from agl_core.errors import UserError
from agl_core.files import write_json
from agl_core.validate import validate
from agl_core.validate.train import RESERVED
from jobs.cluster import ClusterConfig
from jobs.pipeline import (
    EVALUATE,
    KINDS,
    PREDICT,
    PREPARE,
    REPORT,
    STAGE,
    JobSpec,
    follow_ups,
    forget,
    plan_all,
    settle,
)
from jobs.runs import Run


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """Two stages on a data set with test images and their truth."""
    data = tmp_path / "data"
    (data / "test_truth").mkdir(parents=True)
    (data / "geopose_test.csv").touch()
    stages = {"a": StageConfig(), "b": StageConfig(start="a/last")}
    return TrainConfig(data=str(data), store=str(data / "store"), stages=stages)


def run(tmp_path: Path, name: str = "r", *finished: str) -> Run:
    """A run of which these jobs are done."""
    found = Run(tmp_path / "runs" / name)
    for job in finished:
        found.stage_record(job).parent.mkdir(parents=True, exist_ok=True)
        write_json(found.stage_record(job), {"finished": True})
    return found


def chain(jobs: list[JobSpec]) -> list[tuple[str, str]]:
    """Names of the jobs, each with what it comes after."""
    return [(job.key, " ".join(job.after)) for job in jobs]


def names(jobs: list[JobSpec]) -> list[str]:
    return [job.name for job in jobs]


def test_a_new_run_is_one_chain_from_the_store_to_the_report(tmp_path: Path, config: TrainConfig) -> None:
    jobs = plan_all([config], [run(tmp_path)], {config.store})
    assert chain(jobs) == [
        ("r/prepare", ""),
        ("r/a", "r/prepare"),
        ("r/b", "r/a"),
        ("r/predict", "r/b"),
        ("r/evaluate", "r/predict"),
        ("r/report", "r/evaluate"),
    ]
    assert [job.kind for job in jobs] == [PREPARE, STAGE, STAGE, PREDICT, EVALUATE, REPORT]
    assert chain(plan_all([config], [run(tmp_path)])) == [("r/a", ""), *chain(jobs)[2:]]


LEFT: list[tuple[str, str]] = [
    # done, left
    ("a", "prepare b predict evaluate report"),
    ("a b", "predict evaluate report"),
    ("a b predict", "evaluate report"),
    ("a b predict evaluate", "report"),
    ("a b predict evaluate report", ""),
    ("a b predict report", "evaluate report"),  # what follows something that is done again is done again
    ("a b evaluate report", "predict evaluate report"),
    ("a predict evaluate report", "prepare b predict evaluate report"),
    ("b predict evaluate report", "prepare a predict evaluate report"),
]


@pytest.mark.parametrize(("done", "left"), LEFT)
def test_what_is_done_is_left_out_and_what_follows_new_work_is_not(
    tmp_path: Path, config: TrainConfig, done: str, left: str
) -> None:
    jobs = plan_all([config], [run(tmp_path, "r", *done.split())], {config.store})
    assert names(jobs) == left.split()
    keys = [f"r/{name}" for name in names(jobs)]
    assert [job.after for job in jobs] == [(), *((key,) for key in keys[:-1])][: len(jobs)]


def test_only_what_the_data_set_has_something_for_follows_the_stages(tmp_path: Path, config: TrainConfig) -> None:
    assert follow_ups(config) == [PREDICT, EVALUATE, REPORT]
    assert follow_ups(replace(config, until="train")) == []
    assert follow_ups(replace(config, data="")) == [REPORT]
    Path(config.data, "test_truth").rmdir()
    assert follow_ups(config) == [PREDICT, REPORT]
    Path(config.data, "geopose_test.csv").unlink()
    Path(config.data, "test_truth").mkdir()
    assert follow_ups(config) == [REPORT]


def test_runs_that_share_a_store_wait_for_one_preparation_and_others_for_their_own(
    tmp_path: Path, config: TrainConfig
) -> None:
    configs = [config, replace(config, store="/other"), config, replace(config, store="/there")]
    runs = [run(tmp_path, name) for name in ("q", "r", "s", "t")]
    jobs = plan_all([replace(c, until="train") for c in configs], runs, {config.store, "/other"})
    assert chain(jobs) == [
        ("q/prepare", ""),
        ("q/a", "q/prepare"),
        ("q/b", "q/a"),
        ("r/prepare", ""),
        ("r/a", "r/prepare"),
        ("r/b", "r/a"),
        ("s/a", "q/prepare"),
        ("s/b", "s/a"),
        ("t/a", ""),
        ("t/b", "t/a"),
    ]


def test_a_run_with_nothing_left_to_train_does_not_prepare_the_store(tmp_path: Path, config: TrainConfig) -> None:
    runs = [run(tmp_path, "q", "a", "b"), run(tmp_path, "r")]
    jobs = plan_all([config, config], runs, {config.store})
    assert [job.key for job in jobs if job.kind == PREPARE] == ["r/prepare"]


ALL = ("a", "b", "predict", "evaluate", "report")


def test_the_ensemble_waits_for_all_predictions_that_are_made_now(tmp_path: Path, config: TrainConfig) -> None:
    runs = [run(tmp_path, "q"), run(tmp_path, "r", *ALL), run(tmp_path, "s", "a", "b")]
    jobs = plan_all([config] * 3, runs, ensemble=run(tmp_path, "e"))
    assert chain(jobs)[-3:] == [
        ("e/ensemble", "q/predict s/predict"),
        ("e/evaluate", "e/ensemble"),
        ("e/report", "e/evaluate"),
    ]


def test_an_ensemble_is_made_again_only_if_it_has_a_reason_to(tmp_path: Path, config: TrainConfig) -> None:
    done, runs = run(tmp_path, "e", "ensemble", "evaluate", "report"), [run(tmp_path, "q", *ALL)]
    assert plan_all([config], runs, ensemble=done) == []
    assert names(plan_all([config], runs, ensemble=done, renewed=True)) == ["ensemble", "evaluate", "report"]
    part = run(tmp_path, "f", "ensemble", "report")
    assert chain(plan_all([config], runs, ensemble=part)) == [("f/evaluate", ""), ("f/report", "f/evaluate")]
    begun = plan_all([config], [run(tmp_path, "r")], ensemble=done)
    assert names(begun)[-3:] == ["ensemble", "evaluate", "report"]


def test_without_predictions_there_is_no_ensemble(tmp_path: Path, config: TrainConfig) -> None:
    for other in (replace(config, until="train"), replace(config, data="")):
        jobs = plan_all([other], [run(tmp_path)], ensemble=run(tmp_path, "e"))
        assert not [job for job in jobs if job.run.name == "e"]


def test_whatever_is_done_every_job_comes_after_those_that_it_names(tmp_path: Path, config: TrainConfig) -> None:
    cases = 0
    for number in range(len(ALL) + 1):
        for done in combinations(ALL, number):
            cases += 1
            runs = [run(tmp_path, f"q{cases}", *done), run(tmp_path, f"r{cases}", *done[:1])]
            jobs = plan_all([config, config], runs, {config.store}, run(tmp_path, f"e{cases}"))
            known: set[str] = set()
            for job in jobs:
                assert set(job.after) <= known
                assert job.key not in known
                known.add(job.key)
    assert cases == 32


def test_records_of_what_is_done_again_are_removed_and_those_of_stages_stay(tmp_path: Path) -> None:
    found = run(tmp_path, "r", *ALL)
    forget([JobSpec(found, name, STAGE if name in ("a", "b") else name) for name in ("b", "predict", "report")])
    assert [name for name in ALL if found.finished(name)] == ["a", "b", "evaluate"]
    forget([JobSpec(run(tmp_path, "new"), "prepare", "prepare"), JobSpec(run(tmp_path, "new"), "report", "report")])


@pytest.mark.parametrize("name", RESERVED)
def test_a_stage_cannot_have_the_name_of_another_job(config: TrainConfig, name: str) -> None:
    with pytest.raises(UserError, match=f"stage name '{name}' .* call the stage something else") as refusal:
        validate(replace(config, stages={name: StageConfig()}))
    assert "\n" not in str(refusal.value)


def test_every_job_that_is_no_stage_has_a_reserved_name() -> None:
    assert set(RESERVED) == set(KINDS) - {STAGE}


@pytest.mark.parametrize(
    ("given", "of_cluster", "expected"),
    [
        ("", "", ""),
        ("", "$TMPDIR", "$TMPDIR"),
        ("none", "$TMPDIR", "none"),
        ("/scratch", "$TMPDIR", "/scratch"),
        ("$SCRATCH/x", "", "$SCRATCH/x"),
        ("scratch", "", str(Path.cwd() / "scratch")),
    ],
)
def test_the_folder_for_a_copy_of_the_store_is_the_runs_or_else_the_clusters_with_the_nodes_variables(
    tmp_path: Path,
    config: TrainConfig,
    monkeypatch: pytest.MonkeyPatch,
    given: str,
    of_cluster: str,
    expected: str,
) -> None:
    monkeypatch.setenv("TMPDIR", "/of/the/login/node")
    settled = settle(replace(config, stage_in=given), ClusterConfig(stage_in=of_cluster), run(tmp_path))
    assert settled.stage_in == expected
