"""Handing jobs to a Slurm whose sbatch is a shell script."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from agl_core.errors import UserError
from agl_core.files import read_json
from jobs import snapshot, submission
from jobs.cluster import ClusterConfig, load_cluster
from jobs.pipeline import ENSEMBLE, PREDICT, PREPARE, STAGE, JobSpec
from jobs.runs import Run
from jobs.sbatch import parameters, sbatch_text
from jobs.settings import to_yaml
from jobs.snapshot import ROOT, snapshot_path, sources
from jobs.submission import submit
from jobs.submitted import SubmittedJob

SBATCH = """#!/bin/bash
cd {folder}
if [ -e refuse ] && grep -q "job-name=$(cat refuse)$" "$1"; then echo 'sbatch: error: Invalid account' >&2; exit 1; fi
n=$((101 + $(ls *.sh 2>/dev/null | wc -l))); cp "$1" $n.sh; env > $n.env
if [ -e mute ] && grep -q "job-name=$(cat mute)$" "$1"; then exit 1; fi
echo "Submitted batch job $n"
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
        "squeue": f"#!/bin/bash\ncat {folder}/queue 2>/dev/null\n",
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
    assert load_cluster(str(tmp_path / "cluster.yaml"), resolve=False) == CLUSTER


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


def cancelled(slurm: Path) -> set[str]:
    lines = [set(line.split()) - {"--state=PENDING"} for line in (slurm / "cancelled").read_text().splitlines()]
    return set.union(*lines)


def test_a_refused_job_takes_back_all_before_it(slurm: Path, jobs: list[JobSpec]) -> None:
    (slurm / "refuse").write_text("b-pretrain")
    with pytest.raises(UserError) as refusal:
        submit(jobs, CLUSTER)
    assert "sbatch refused the job 'b/pretrain'" in str(refusal.value)
    assert "Invalid account" in str(refusal.value)
    assert cancelled(slurm) == {"101", "102", "103"}
    assert sorted(dependencies(slurm)) == [101, 102, 103]


def test_a_refused_first_job_cancels_nothing(slurm: Path, jobs: list[JobSpec]) -> None:
    (slurm / "refuse").write_text("a-prepare")
    with pytest.raises(UserError, match="'a/prepare'"):
        submit(jobs, CLUSTER)
    assert not (slurm / "cancelled").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_submission_takes_back_all_jobs_and_says_so(
    slurm: Path, jobs: list[JobSpec], monkeypatch: pytest.MonkeyPatch, capsys, error: type[BaseException]
) -> None:
    def stop(run: Run, ids: dict[str, str]) -> None:
        if "predict" in ids:
            raise error("now")

    monkeypatch.setattr(submission, "remember", stop)
    with pytest.raises(error, match="now"):
        submit(jobs, CLUSTER)
    assert cancelled(slurm) == {"101", "102", "103"}
    assert capsys.readouterr().err == "jobs 101, 102, 103: taken back\n"


def test_a_failure_after_sbatch_has_said_the_id_takes_that_job_back_too(
    slurm: Path, jobs: list[JobSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("submitit.core.core.PicklingExecutor._write_job_id", stop)
    with pytest.raises(KeyboardInterrupt):
        submit(jobs, CLUSTER)
    assert cancelled(slurm) == {"101"}


def test_a_job_whose_id_was_never_heard_is_looked_for_in_the_queue(slurm: Path, jobs: list[JobSpec]) -> None:
    (slurm / "mute").write_text("a-pretrain")
    (slurm / "queue").write_text(f"102|{jobs[1].run.path}\n7|/somebody/else/a\n")
    with pytest.raises(UserError, match="'a/pretrain'"):
        submit(jobs, CLUSTER)
    assert cancelled(slurm) == {"101", "102"}


def test_jobs_that_cannot_be_taken_back_are_named(slurm: Path, jobs: list[JobSpec], capsys) -> None:
    (slurm / "refuse").write_text("a-predict")
    (slurm / "scancel").write_text("#!/bin/bash\necho 'scancel: error: away' >&2; exit 1\n")
    with pytest.raises(UserError):
        submit(jobs, CLUSTER)
    told = capsys.readouterr().err
    assert "jobs 101, 102: could not be taken back (scancel: error: away), give `scancel 101 102`" in told


OUTSIDE = {
    "SLURM_CONF": "/etc/here.conf",
    "SLURM_JOB_ID": "7",
    "SLURM_RESTART_COUNT": "3",
    "SUBMITIT_EXECUTOR": "local",
    "SUBMITIT_PREEMPT_SIGNAL": "USR1",
    "SBATCH_EXPORT": "NONE",
    "SBATCH_TIMELIMIT": "1",
    "SBATCH_ACCOUNT": "mine",
    "SBATCH_PARTITION": "mine",
    "SBATCH_RESERVATION": "mine",
    "SRUN_CPUS_PER_TASK": "1",
}


def test_nothing_of_another_job_or_of_the_user_s_other_jobs_comes_in(
    slurm: Path, jobs: list[JobSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in OUTSIDE.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    submit(jobs[:1], CLUSTER)
    found = dict(line.split("=", 1) for line in (slurm / "101.env").read_text().splitlines() if "=" in line)
    # The partition is the cluster configuration's.
    assert sorted(set(OUTSIDE) & set(found)) == ["SBATCH_ACCOUNT", "SBATCH_RESERVATION", "SLURM_CONF"]
    assert found["PATH"] == before["PATH"]
    assert dict(os.environ) == before


def test_a_choice_of_the_cluster_configuration_goes_over_the_user_s_environment(jobs: list[JobSpec]) -> None:
    def kept(cluster: ClusterConfig) -> list[str]:
        return submission.kept(cluster, parameters(cluster, jobs[0], Path("/code")))

    every = ["SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_QOS", "SBATCH_CONSTRAINT", "SBATCH_RESERVATION"]
    assert kept(load_cluster("slurm")) == every
    assert kept(replace(load_cluster("slurm"), cpu_partition="cpu")) == [every[0], *every[2:]]
    chosen = replace(CLUSTER, account="a", qos="q", constraint="c", sbatch={"reservation": "r"})
    assert kept(chosen) == []


def test_a_run_directory_that_slurm_would_expand_is_refused_before_anything_is_submitted(
    slurm: Path, jobs: list[JobSpec], tmp_path: Path
) -> None:
    odd = JobSpec(Run(tmp_path / "100%" / "c"), "pretrain", STAGE)
    with pytest.raises(UserError, match="has a '%', which Slurm replaces"):
        submit([*jobs, odd], CLUSTER)
    assert dependencies(slurm) == {}
