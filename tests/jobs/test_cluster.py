"""Cluster configurations: the project's own, what goes over them, and what does not go together."""

import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from agl_core.errors import UserError
from jobs.cluster import CLUSTERS, ClusterConfig, load_cluster
from jobs.settings import to_yaml


@pytest.mark.parametrize("path", sorted(CLUSTERS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_cluster_file_of_the_project_is_valid_by_name_and_by_path(path: Path) -> None:
    assert load_cluster(path.stem) == load_cluster(str(path))


def test_the_three_names_choose_the_three_executors() -> None:
    assert [load_cluster(name).executor for name in ("debug", "local", "slurm")] == ["debug", "local", "slurm"]


def test_the_slurm_example_is_one_node_with_four_gpus() -> None:
    cluster = load_cluster("slurm")
    assert (cluster.nodes, cluster.gpus_per_node, cluster.processes, cluster.world_size) == (1, 4, 4, 4)


def test_threads_are_as_configured_else_the_cores_of_a_process_else_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.cluster.cores", lambda: 12)
    assert ClusterConfig(processes=4).default_threads() == 3
    assert ClusterConfig(processes=20).default_threads() == 1
    assert ClusterConfig(processes=4, cpus_per_process=5).default_threads() == 5
    assert ClusterConfig(processes=4, cpus_per_process=5, threads=2).default_threads() == 2


def test_a_site_may_add_any_option_of_sbatch() -> None:
    overrides = {"sbatch.exclusive": "true", "sbatch.mail-type": "END", "sbatch.nice": "5"}
    assert load_cluster("slurm", overrides).sbatch == {"exclusive": True, "mail-type": "END", "nice": 5}


REFUSED = [
    ("debug", "executor=cloud", "unknown executor 'cloud': choose one of debug, local, slurm"),
    ("debug", "processes=2", "use executor local"),
    ("debug", "nodes=2", "nodes is 2"),
    ("debug", "threads=0", "threads is 0: must be 1 or more"),
    ("local", "processes=0", "processes is 0: must be 1 or more"),
    ("local", "workers=-1", "workers is -1: must be 0 or more"),
    ("local", "nodes=2", "executor local runs on this machine"),
    ("local", "time_hours=3", "time_hours is for executor slurm only"),
    ("local", "setup=[a]", "setup is for executor slurm only"),
    ("local", "gpus_per_node=1", "each process uses one GPU"),
    ("slurm", "processes=2", "processes is 2 but gpus_per_node is 4: each process uses one GPU"),
    ("slurm", "gpus_per_node=null", "executor slurm needs gpus_per_node"),
    ("slurm", "cpus_per_process=null", "executor slurm needs cpus_per_process"),
    ("slurm", "sbatch.mem=4GB", "use the key memory_gb, or set memory_gb to null"),
    ("slurm", "sbatch.mem_per_gpu=4GB", "use the key memory_gb, or set memory_gb to null"),
    ("slurm", "'partition=a\nb'", "partition is 'a\\nb': must be one line"),
    ("slurm", "'account=a\n'", "must be one line"),
    ("slurm", "'sbatch={comment: \"a\\nb\"}'", "name and value must be one line"),
    ("slurm", "'sbatch={\"a\\nb\": c}'", "name and value must be one line"),
    ("slurm", "time_hours=null", "executor slurm needs time_hours"),
    ("slurm", "time_hours=0", "time_hours is 0: must be greater than 0"),
    ("slurm", "memory_gb=inf", "memory_gb is inf"),
    ("slurm", "signal_seconds=0", "signal_seconds is 0"),
    ("slurm", "time_hours=0.05", "less than the time limit, 180 seconds"),
    ("slurm", "sbatch.partition=gpu", "sbatch.partition: use the key partition"),
    ("slurm", "sbatch.cpus_per_task=3", "sbatch.cpus_per_task: use the key cpus_per_process"),
    ("slurm", "sbatch.no-requeue=true", "sbatch.no-requeue: is set by this project"),
    ("slurm", "sbatch.exclusive=false", "true for a bare flag"),
    ("slurm", "sbatch.exclusive=[1]", "true for a bare flag"),
    ("slurm", "setup=module", "must be a list"),
    ("slurm", "partitions=gpu", "mean partition?"),
    ("local", "'environment={1A: b}'", "environment has a variable '1A'"),
    ("slurm", "'environment={\"A B\": c}'", "environment has a variable 'A B'"),
    ("local", "cpu_partition=cpu", "cpu_partition is for executor slurm only"),
    ("local", "wrapper=[nice]", "wrapper is for executor slurm only"),
    ("debug", "python=python3", "python is for executor slurm only"),
    ("debug", "network_interface=lo", "network_interface is for executor slurm only"),
    ("slurm", "'wrapper=[nice, \"\"]'", "no word of it may be empty"),
    ("slurm", "'wrapper=[nice, \" \"]'", "no word of it may be empty"),
    ("slurm", "wrapper=nice", "wrapper is 'nice': must be a list of texts"),
    ("slurm", "'wrapper=[nice, 5]'", "must be a list of texts"),
    ("slurm", "'network_interface=ib0 ib1'", "give the name of an interface"),
    ("slurm", "'network_interface=$(id)'", "give the name of an interface"),
    ("slurm", "post_mortem=perhaps", "must be true or false"),
    ("local", "stage_in=scratch", "stage_in is 'scratch': give a full path, which may begin with a $VARIABLE, or none"),
]


@pytest.mark.parametrize(("name", "override", "words"), REFUSED, ids=[f"{n} {o}" for n, o, _ in REFUSED])
def test_what_does_not_go_together_is_refused_with_the_clusters_name(name: str, override: str, words: str) -> None:
    key, _, text = shlex.split(override)[0].partition("=")
    with pytest.raises(UserError) as refusal:
        load_cluster(name, {key: text})
    assert words in str(refusal.value)
    assert f"cluster {name}: " in str(refusal.value)


def test_an_unknown_key_in_a_site_s_file_is_answered_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("executor: local\nproceses: 3\n")
    with pytest.raises(UserError) as refusal:
        load_cluster(str(path))
    assert str(path) in str(refusal.value)
    assert "mean processes?" in str(refusal.value)


@pytest.mark.parametrize("option", ["mem", "mem-per-cpu", "mem_per_gpu"])
def test_memory_may_be_asked_for_in_another_option(option: str) -> None:
    assert load_cluster("slurm", {"memory_gb": "null", f"sbatch.{option}": "4GB"}).sbatch == {option: "4GB"}


SETUP = ["export A=$HOME", r"export B=\${HOME}", "line 1\nline 2"]


def site_file(folder: Path, *setup: str) -> str:
    text = {"executor": "slurm", "gpus_per_node": 0, "cpus_per_process": 1, "time_hours": 1, "setup": list(setup)}
    (folder / "site.yaml").write_text(yaml.safe_dump(text))
    return str(folder / "site.yaml")


def test_a_cluster_with_variables_of_the_shell_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    cluster = load_cluster(site_file(tmp_path, *SETUP))
    assert cluster.setup == ["export A=$HOME", "export B=${HOME}", "line 1\nline 2"]
    (tmp_path / "cluster.yaml").write_text(to_yaml(cluster))
    assert load_cluster(str(tmp_path / "cluster.yaml"), resolve=False) == cluster


@pytest.mark.parametrize("line", ["a=${HOME}", "a=${HOME:-x}", "a=${"])
def test_a_variable_of_the_shell_that_looks_like_an_interpolation_is_answered_with_its_spelling(
    tmp_path: Path, line: str
) -> None:
    with pytest.raises(UserError, match=r"for a variable of the shell write \$NAME or \\\$\{NAME\}$"):
        load_cluster(site_file(tmp_path, line))


def test_what_could_not_be_kept_in_the_run_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be kept .*: put it into a script"):
        load_cluster(site_file(tmp_path, r"a=\${HOME:-$(pwd)}"))


def test_numbers_in_the_environment_of_a_site_are_taken_as_text(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("executor: local\nenvironment: {OMP_NUM_THREADS: 4}\n")
    assert load_cluster(str(path)).environment == {"OMP_NUM_THREADS": "4"}


@pytest.mark.parametrize("name", ["ib0", "eth0:1,bond-1.20", "hsn_0", ""])
def test_an_interface_may_have_any_usual_name(name: str) -> None:
    assert load_cluster("slurm", {"network_interface": name}).network_interface == name


@pytest.mark.parametrize("name", ["debug", "local", "slurm"])
def test_the_debugger_may_be_switched_off_everywhere(name: str) -> None:
    assert not load_cluster(name, {"post_mortem": "false"}).post_mortem


@pytest.mark.parametrize("folder", ["/dev/shm", "$TMPDIR", "$SLURM_TMPDIR/agl", "none", ""])
def test_the_store_may_be_copied_to_any_folder_of_the_nodes_by_full_path_or_variable(
    tmp_path: Path, folder: str
) -> None:
    for name in ("debug", "local", "slurm"):
        assert load_cluster(name).stage_in == ""
        cluster = load_cluster(name, {"stage_in": folder})
        assert cluster.stage_in == folder
        (tmp_path / "cluster.yaml").write_text(to_yaml(cluster))
        assert load_cluster(str(tmp_path / "cluster.yaml"), resolve=False) == cluster


def test_a_container_and_its_python_are_given_word_by_word() -> None:
    overrides = {"wrapper": "[apptainer, exec, --nv, image.sif]", "python": "/opt/bin/python3"}
    cluster = load_cluster("slurm", overrides)
    assert cluster.wrapper == ["apptainer", "exec", "--nv", "image.sif"]
    assert cluster.python == "/opt/bin/python3"


def test_every_key_has_a_sentence_of_its_own() -> None:
    sentences = [entry.metadata["help"] for entry in fields(ClusterConfig)]
    assert all(len(sentence) > 15 for sentence in sentences)
    assert len(set(sentences)) == len(sentences)
