"""The text of the sbatch script, word by word."""

import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from submitit import SlurmExecutor

from jobs.cluster import ClusterConfig, load_cluster
from jobs.pipeline import JobSpec
from jobs.sbatch import parameters, sbatch_text

PREPARE = JobSpec("prepare", trains=False)
TRAIN = JobSpec("pretrain", "prepare")


def flags(text: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH --")]
    return {name: "".join(shlex.split(value)) for name, _, value in (line.partition("=") for line in lines)}


def site(**values: object) -> ClusterConfig:
    return replace(load_cluster("slurm"), **values)


def test_a_stage_asks_for_what_the_cluster_configuration_says(tmp_path: Path) -> None:
    cluster = site(nodes=2, partition="gpu", account="me", qos="long", constraint="v100-32g", time_hours=1.51)
    found = flags(sbatch_text(cluster, TRAIN, "first", tmp_path, "17"))
    assert found == {
        "job-name": "first-pretrain",
        "nodes": "2",
        "ntasks-per-node": "4",
        "gpus-per-node": "4",
        "cpus-per-task": "8",
        "mem": "128GB",
        "time": "91",
        "signal": "USR2@180",
        "partition": "gpu",
        "account": "me",
        "qos": "long",
        "constraint": "v100-32g",
        "requeue": "",
        "open-mode": "append",
        "dependency": "afterok:17",
        "kill-on-invalid-dep": "yes",
        "output": f"{tmp_path}/%j_0_log.out",
        "error": f"{tmp_path}/%j_0_log.err",
        "wckey": "submitit",
    }


def test_the_store_is_prepared_by_one_process_with_the_cores_of_all_and_no_gpu(tmp_path: Path) -> None:
    found = flags(sbatch_text(site(nodes=2), PREPARE, "first", tmp_path))
    assert (found["nodes"], found["ntasks-per-node"], found["cpus-per-task"]) == ("1", "1", "32")
    assert "gpus-per-node" not in found
    assert "dependency" not in found


def test_empty_values_leave_the_choice_to_the_site(tmp_path: Path) -> None:
    found = flags(sbatch_text(site(), TRAIN, "first", tmp_path))
    assert not {"partition", "account", "qos", "constraint"} & set(found)


def test_a_site_s_own_options_are_added_and_a_gpu_option_takes_the_place_of_ours(tmp_path: Path) -> None:
    found = flags(sbatch_text(site(sbatch={"gres": "gpu:v100:4", "exclusive": True}), TRAIN, "first", tmp_path))
    assert found["gres"] == "gpu:v100:4"
    assert found["exclusive"] == ""
    assert "gpus-per-node" not in found


def test_a_run_on_cpus_asks_for_no_gpu(tmp_path: Path) -> None:
    assert "gpus-per-node" not in flags(sbatch_text(site(gpus_per_node=0), TRAIN, "first", tmp_path))


def test_fractions_of_a_gigabyte_are_asked_for_in_megabytes(tmp_path: Path) -> None:
    assert flags(sbatch_text(site(memory_gb=1.5), TRAIN, "first", tmp_path))["mem"] == "1536MB"


def test_srun_ends_all_ranks_with_the_first_and_gives_each_its_cores(tmp_path: Path) -> None:
    (line,) = [line for line in sbatch_text(site(), TRAIN, "first", tmp_path).splitlines() if line.startswith("srun")]
    words = shlex.split(line)
    assert "--kill-on-bad-exit=1" in words
    assert "--cpus-per-task=8" in words
    assert words[-4:] == ["-u", "-m", "submitit.core._submit", str(tmp_path)]


def test_setup_comes_before_the_environment_and_both_before_the_command(tmp_path: Path) -> None:
    cluster = site(setup=["module load cuda/12.6"], environment={"NOTE": "it's $HOME; here"})
    lines = sbatch_text(cluster, TRAIN, "first", tmp_path).splitlines()
    order = ["module load cuda/12.6", "export NOTE='it'\"'\"'s $HOME; here'", "export SUBMITIT_EXECUTOR=slurm"]
    assert [line for line in lines if line in order] == order


def test_the_script_is_one_that_bash_understands(tmp_path: Path) -> None:
    cluster = site(environment={"NOTE": "a 'quoted' \"word\" $(false)"})
    text = sbatch_text(cluster, TRAIN, "first", tmp_path / "with space")
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


@pytest.mark.parametrize("job", [PREPARE, TRAIN], ids=lambda job: job.name)
def test_the_text_is_what_submitit_would_give_to_sbatch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: JobSpec
) -> None:
    monkeypatch.setattr(SlurmExecutor, "affinity", classmethod(lambda cls: 2))
    executor = SlurmExecutor(tmp_path)
    executor.update_parameters(**parameters(site(), job, "first", "17"))
    text = executor._make_submission_file_text(executor._submitit_command_str, "uid")
    assert text == sbatch_text(site(), job, "first", tmp_path, "17")
