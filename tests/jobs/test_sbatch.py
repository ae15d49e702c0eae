"""The text of the sbatch script and the words of srun, one by one."""

import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from submitit import SlurmExecutor

from jobs.cluster import ClusterConfig, load_cluster
from jobs.pipeline import ENSEMBLE, EVALUATE, KINDS, PREDICT, PREPARE, REPORT, STAGE, JobSpec
from jobs.runs import Run
from jobs.sbatch import batch_python, parameters, sbatch_text, srun_command

RUN = Run(Path("/scratch/runs/first"))
CODE = Path("/scratch/runs/first/code/0123456789ab")
TRAIN = JobSpec(RUN, "pretrain", STAGE, ("first/prepare",))


def job(kind: str) -> JobSpec:
    return TRAIN if kind == STAGE else JobSpec(RUN, kind, kind)


def flags(text: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH --")]
    return {name: "".join(shlex.split(value)) for name, _, value in (line.partition("=") for line in lines)}


def asked(cluster: ClusterConfig, kind: str, *after: str) -> dict[str, str]:
    """What a job of this kind asks of sbatch."""
    return flags(sbatch_text(cluster, job(kind), CODE, after))


def site(**values: object) -> ClusterConfig:
    return replace(load_cluster("slurm"), **values)


def test_a_stage_asks_for_what_the_cluster_configuration_says() -> None:
    cluster = site(
        nodes=2, partition="gpu", cpu_partition="cpu", account="me", qos="long", constraint="v100-32g", time_hours=1.51
    )
    assert asked(cluster, STAGE, "17") == {
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
        "chdir": "/scratch/runs/first",
        "dependency": "afterok:17",
        "kill-on-invalid-dep": "yes",
        "output": "/scratch/runs/first/jobs/%j_0_log.out",
        "error": "/scratch/runs/first/jobs/%j_0_log.err",
    }


# kind: nodes, tasks, cores of a task, memory, GPUs, partition
RESOURCES = {
    STAGE: ("2", "4", "8", "128GB", "4", "gpu"),
    PREPARE: ("1", "1", "32", "128GB", None, "cpu"),
    PREDICT: ("1", "4", "8", "128GB", "4", "gpu"),
    EVALUATE: ("1", "1", "8", "32GB", None, "cpu"),
    REPORT: ("1", "1", "8", "32GB", None, "cpu"),
    ENSEMBLE: ("1", "1", "8", "32GB", None, "cpu"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_job_has_its_share(kind: str) -> None:
    found = asked(site(nodes=2, partition="gpu", cpu_partition="cpu"), kind)
    names = ("nodes", "ntasks-per-node", "cpus-per-task", "mem", "gpus-per-node", "partition")
    assert tuple(found.get(name) for name in names) == RESOURCES[kind]
    assert {"requeue", "kill-on-invalid-dep"} & set(found) == {"requeue"}


@pytest.mark.parametrize("kind", KINDS)
def test_srun_starts_as_many_ranks_with_as_many_cores_as_the_job_has(kind: str) -> None:
    cluster = site(nodes=2)
    nodes, tasks, cores, *_ = RESOURCES[kind]
    words = srun_command(cluster, RUN, job(kind).name, kind, Path("/there"))
    assert f"--nodes={nodes}" in words
    assert f"--ntasks={int(nodes) * int(tasks)}" in words
    assert f"--cpus-per-task={cores}" in words


def test_jobs_without_gpu_are_where_the_others_are_unless_there_is_a_place_for_them() -> None:
    gpu, both = site(partition="gpu", constraint="v100"), site(partition="gpu", constraint="v100", cpu_partition="cpu")
    assert {kind: asked(gpu, kind)["partition"] for kind in KINDS} == dict.fromkeys(KINDS, "gpu")
    assert {asked(gpu, kind)["constraint"] for kind in KINDS} == {"v100"}
    # Nodes without GPUs do not have the feature that names a GPU.
    assert [kind for kind in KINDS if "constraint" in asked(both, kind)] == [STAGE, PREDICT]
    # A run on CPUs trains there too.
    assert asked(replace(both, gpus_per_node=0), STAGE)["partition"] == "cpu"


def test_empty_values_leave_the_choice_to_the_site() -> None:
    assert not {"partition", "account", "qos", "constraint"} & set(asked(site(), STAGE))


def test_a_site_s_own_options_are_added_and_a_gpu_option_takes_the_place_of_ours() -> None:
    cluster = site(sbatch={"gres": "gpu:v100:4", "exclusive": True})
    found = asked(cluster, STAGE)
    assert (found["gres"], found["exclusive"]) == ("gpu:v100:4", "")
    assert "gpus-per-node" not in found
    without = asked(cluster, PREPARE)
    assert without["exclusive"] == ""
    assert not {"gres", "gpus-per-node"} & set(without)


def test_a_run_on_cpus_asks_for_no_gpu() -> None:
    for kind in KINDS:
        assert "gpus-per-node" not in asked(site(gpus_per_node=0), kind)


def test_fractions_of_a_gigabyte_are_asked_for_in_megabytes() -> None:
    assert asked(site(memory_gb=1.5), STAGE)["mem"] == "1536MB"
    assert asked(site(memory_gb=1.5), EVALUATE)["mem"] == "384MB"


def test_without_a_size_the_memory_is_the_site_s_choice_or_asked_for_in_another_option() -> None:
    assert not [name for name in asked(site(memory_gb=None), STAGE) if name.startswith("mem")]
    per_gpu = site(memory_gb=None, sbatch={"mem-per-gpu": "32GB"})
    assert [kind for kind in KINDS if asked(per_gpu, kind).get("mem-per-gpu")] == [STAGE, PREDICT]
    assert asked(site(memory_gb=None, sbatch={"mem-per-cpu": "4GB"}), REPORT)["mem-per-cpu"] == "4GB"


def test_the_signal_is_the_one_that_is_understood_whatever_the_environment_says(monkeypatch) -> None:
    monkeypatch.setattr("submitit.slurm.slurm.SlurmJobEnvironment.USR_SIG", "USR1")
    assert asked(site(signal_seconds=7), STAGE)["signal"] == "USR2@7"


def test_a_job_after_several_waits_for_all_of_them() -> None:
    found = asked(site(), ENSEMBLE, "17", "18")
    assert (found["dependency"], found["kill-on-invalid-dep"]) == ("afterok:17:18", "yes")


# ---- srun


def test_the_words_of_srun() -> None:
    words = srun_command(site(), RUN, "pretrain", STAGE, Path("/scratch/runs/first/jobs/pretrain.17/0.3"))
    assert words == [
        "srun",
        "--nodes=1",
        "--ntasks=4",
        "--cpus-per-task=8",
        "--kill-on-bad-exit=1",
        "--export=ALL",
        "--chdir=/scratch/runs/first",
        "--output=/scratch/runs/first/jobs/pretrain.17/0.3/rank%t.log",
        "--open-mode=append",
        sys.executable,
        "-u",
        "-m",
        "jobs.rank",
        "/scratch/runs/first",
        "pretrain",
        "stage",
        "/scratch/runs/first/jobs/pretrain.17/0.3",
    ]


def test_the_ranks_run_in_the_site_s_container_and_the_conductor_outside() -> None:
    cluster = site(wrapper=["apptainer", "exec", "--nv", "image.sif"], python="/opt/bin/python3")
    words = srun_command(cluster, RUN, "pretrain", STAGE, Path("/there"))
    start = words.index("--open-mode=append") + 1
    assert words[start : start + 6] == ["apptainer", "exec", "--nv", "image.sif", "/opt/bin/python3", "-u"]
    text = sbatch_text(cluster, TRAIN, CODE)
    assert "apptainer" not in text
    assert "/opt/bin/python3" not in text


# ---- the lines of the script


def lines_of(cluster: ClusterConfig, kind: str = STAGE) -> list[str]:
    return sbatch_text(cluster, job(kind), CODE).splitlines()


def test_the_script_becomes_the_conductor_so_that_signals_reach_it() -> None:
    last = [line for line in lines_of(site()) if line and not line.startswith("#")][-1]
    assert shlex.split(last) == [
        *("exec", sys.executable, "-u", "-m", "submitit.core._submit", "/scratch/runs/first/jobs"),
    ]


def test_the_shell_is_deaf_from_its_first_line_until_python_listens() -> None:
    # The site's line asks the whole shell to leave, as Slurm does with a job that is preempted while it runs.
    lines = [line for line in lines_of(site(setup=["kill -TERM $$", "kill -USR2 $$"])) if not line.startswith("exec ")]
    listen = "import signal; print([signal.getsignal(s) is signal.SIG_IGN for s in (signal.SIGTERM, signal.SIGUSR2)])"
    script = "\n".join([*lines, shlex.join(["exec", sys.executable, "-c", listen])])
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[True, True]\n")
    assert next(line for line in lines if line and not line.startswith("#")) == "trap '' TERM USR2"


def test_setup_comes_before_the_environment_and_both_before_the_command() -> None:
    cluster = site(setup=["module load cuda/12.6"], environment={"NOTE": "it's $HOME; here"})
    lines = lines_of(cluster)
    order = ["module load cuda/12.6", "export NOTE='it'\"'\"'s $HOME; here'", "export SUBMITIT_EXECUTOR=slurm"]
    assert [line for line in lines if line in order] == order


INTERFACES = [
    (site(), "lo", None),
    (site(nodes=2), None, None),
    (site(nodes=2, network_interface="ib0,ib1"), "ib0,ib1", "ib0,ib1"),
    (site(network_interface="eth0"), "eth0", "eth0"),
    (site(network_interface="eth0", environment={"NCCL_SOCKET_IFNAME": "ib0"}), "eth0", "ib0"),
    (site(environment={"GLOO_SOCKET_IFNAME": "br0"}), "br0", None),
]


def environment_of(cluster: ClusterConfig, outside: dict[str, str], code: Path = CODE) -> dict[str, str]:
    """What the lines before the command leave in the environment."""
    lines = [line for line in sbatch_text(cluster, TRAIN, code).splitlines() if not line.startswith(("exec", "#"))]
    outside = {"PATH": os.environ["PATH"], **outside}
    done = subprocess.run(
        ["bash"], input="\n".join([*lines, "env -0"]), env=outside, capture_output=True, text=True, check=True
    )
    return dict(entry.split("=", 1) for entry in done.stdout.split("\0") if entry)


@pytest.mark.parametrize(("cluster", "gloo", "nccl"), INTERFACES, ids=range(len(INTERFACES)))
def test_the_network_interface_is_the_site_s_and_the_machine_s_own_on_one_node(
    cluster: ClusterConfig, gloo: str | None, nccl: str | None
) -> None:
    found = environment_of(cluster, {})
    assert (found.get("GLOO_SOCKET_IFNAME"), found.get("NCCL_SOCKET_IFNAME")) == (gloo, nccl)


def test_the_copy_of_the_code_comes_first_and_the_working_directory_not_at_all() -> None:
    found = environment_of(site(), {"PYTHONPATH": "/mine"}, Path("/scratch/it's mine/code"))
    assert found["PYTHONPATH"] == "/scratch/it's mine/code:/mine"
    assert found["PYTHONSAFEPATH"] == "1"
    assert environment_of(site(), {})["PYTHONPATH"] == str(CODE)


def test_what_the_environment_says_arrives_as_it_is_written() -> None:
    note = "a 'quoted' \"word\" $(false) `x` \\ *"
    assert environment_of(site(environment={"NOTE": note}), {})["NOTE"] == note


@pytest.mark.parametrize("kind", KINDS)
def test_the_script_is_one_that_bash_understands(kind: str) -> None:
    cluster = site(environment={"NOTE": "a 'quoted' \"word\" $(false)"}, network_interface="ib0")
    run = Run(Path("/scratch/with space/it's"))
    text = sbatch_text(cluster, JobSpec(run, kind, kind), run.code / "0123")
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_is_what_submitit_would_give_to_sbatch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(SlurmExecutor, "affinity", classmethod(lambda cls: 2))
    spec = JobSpec(Run(tmp_path / "with space"), kind, kind)
    executor = SlurmExecutor(spec.run.jobs, python=batch_python())
    executor.update_parameters(**parameters(site(), spec, CODE, ["17"]))
    text = executor._make_submission_file_text(executor._submitit_command_str, "uid")
    assert text == sbatch_text(site(), spec, CODE, ["17"])
