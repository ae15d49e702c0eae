"""Handing jobs to a Slurm whose sbatch is a shell script."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from agl_core.errors import UserError
from agl_core.files import read_json
from jobs import snapshot
from jobs.cluster import load_cluster
from jobs.pipeline import ENSEMBLE, PREDICT, PREPARE, STAGE, JobSpec
from jobs.runs import Run
from jobs.sbatch import sbatch_text
from jobs.settings import to_yaml
from jobs.snapshot import ROOT, snapshot_path, sources
from jobs.submission import submit
from jobs.submitted import SubmittedJob

SBATCH = """#!/bin/bash
cd {folder}
if [ -e refuse ] && grep -q "job-name=$(cat refuse)$" "$1"; then echo 'sbatch: error: Invalid account' >&2; exit 1; fi
n=$((101 + $(ls *.sh 2>/dev/null | wc -l))); cp "$1" $n.sh; echo "Submitted batch job $n"
"""
CLUSTER = replace(
    load_cluster("slurm"), partition="gpu", environment={"NOTE": "it's 5"}, wrapper=["nice", "-n", "5"], time_hours=1.5
)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "slurm"
    folder.mkdir()
    scripts = {
        "sbatch": SBATCH.format(folder=folder),
        "scancel": f'#!/bin/bash\necho "$*" >> {folder}/cancelled\n',
        "srun": "#!/bin/bash\n",
    }
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(snapshot, "fsync_file", lambda path: None)  # it takes seconds, and no power is cut here
    return folder


@pytest.fixture
def jobs(tmp_path: Path) -> list[JobSpec]:
    """Two runs that share a store, and their ensemble."""
    a, b, both = (Run(tmp_path / "runs" / name) for name in ("a", "b", "both"))
    return [
        JobSpec(a, "prepare", PREPARE),
        JobSpec(a, "pretrain", STAGE, ("a/prepare",)),
        JobSpec(a, "predict", PREDICT, ("a/pretrain",)),
        JobSpec(b, "pretrain", STAGE, ("a/prepare",)),
        JobSpec(b, "predict", PREDICT, ("b/pretrain",)),
        JobSpec(both, "ensemble", ENSEMBLE, ("a/predict", "b/predict")),
    ]


def dependencies(slurm: Path) -> dict[int, str]:
    found = {}
    for path in slurm.glob("*.sh"):
        lines = [line for line in path.read_text().splitlines() if line.startswith("#SBATCH --dependency=")]
        found[int(path.stem)] = lines[0].partition("=")[2] if lines else ""
    return found


def test_every_job_waits_for_those_it_comes_after(slurm: Path, jobs: list[JobSpec], capsys) -> None:
    assert submit(jobs, CLUSTER) == {job.key: str(101 + number) for number, job in enumerate(jobs)}
    assert dependencies(slurm) == {
        101: "",
        102: "afterok:101",
        103: "afterok:102",
        104: "afterok:101",
        105: "afterok:104",
        106: "afterok:103:105",
    }
    shown = capsys.readouterr().out
    assert "a/prepare: job 101\n" in shown
    assert "both/ensemble: job 106 after 103, 105\n" in shown


def test_what_is_submitted_is_the_script_that_can_be_shown(slurm: Path, jobs: list[JobSpec]) -> None:
    submit(jobs, CLUSTER)
    ids = {job.key: str(101 + number) for number, job in enumerate(jobs)}
    for job in jobs:
        after = [ids[key] for key in job.after]
        expected = sbatch_text(CLUSTER, job, snapshot_path(job.run.code), after)
        assert (slurm / f"{ids[job.key]}.sh").read_text() == expected


def test_each_run_remembers_the_ids_of_its_own_jobs(slurm: Path, jobs: list[JobSpec]) -> None:
    submit(jobs, CLUSTER)
    runs = {job.run.name: job.run for job in jobs}
    assert {name: read_json(run.submitted) for name, run in runs.items()} == {
        "a": {"prepare": "101", "pretrain": "102", "predict": "103"},
        "b": {"pretrain": "104", "predict": "105"},
        "both": {"ensemble": "106"},
    }


def test_a_job_reads_back_the_cluster_with_all_that_the_command_line_changed(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(to_yaml(CLUSTER))
    assert load_cluster(str(tmp_path / "cluster.yaml")) == CLUSTER


def test_each_run_has_a_copy_of_the_code(slurm: Path, jobs: list[JobSpec]) -> None:
    submit(jobs, CLUSTER)
    for job in jobs:
        (copy,) = job.run.code.iterdir()
        assert all((copy / path).read_bytes() == (ROOT / path).read_bytes() for path in sources())


def test_what_is_submitted_holds_a_run_and_a_name_and_nothing_else(slurm: Path, jobs: list[JobSpec]) -> None:
    submit(jobs[:1], CLUSTER)
    with (jobs[0].run.jobs / "101_submitted.pkl").open("rb") as file:
        delayed = pickle.load(file)
    assert delayed.function == SubmittedJob(jobs[0].run.path, "prepare", PREPARE)
    assert (delayed.args, delayed.kwargs) == ((), {})


def test_a_refused_job_takes_back_all_before_it(slurm: Path, jobs: list[JobSpec]) -> None:
    (slurm / "refuse").write_text("b-pretrain")
    with pytest.raises(UserError) as refusal:
        submit(jobs, CLUSTER)
    assert "sbatch refused the job 'b/pretrain'" in str(refusal.value)
    assert "Invalid account" in str(refusal.value)
    cancelled = [set(line.split()) - {"--state=PENDING"} for line in (slurm / "cancelled").read_text().splitlines()]
    assert set.union(*cancelled) == {"101", "102", "103"}
    assert sorted(dependencies(slurm)) == [101, 102, 103]


def test_a_refused_first_job_cancels_nothing(slurm: Path, jobs: list[JobSpec]) -> None:
    (slurm / "refuse").write_text("a-prepare")
    with pytest.raises(UserError, match="'a/prepare'"):
        submit(jobs, CLUSTER)
    assert not (slurm / "cancelled").exists()
