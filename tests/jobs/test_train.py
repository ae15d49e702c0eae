"""From a request to trained stages: what is planned, refused, shown, run and submitted."""

import os
import signal
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from submitit.core.job_environment import SignalHandler
from submitit.core.utils import DelayedSubmission, JobPaths

from agl_core.config import StageConfig, TrainConfig
from agl_core.data.store import StoreEntry, StoreWriter
from agl_core.errors import UserError
from agl_core.files import read_json, write_json
from agl_core.training import trainer
from agl_core.training.parallel import Parallel
from jobs.cluster import load_cluster
from jobs.executors import enter, submit_chain
from jobs.lock import hold
from jobs.pipeline import JobSpec, plan
from jobs.runs import Run, run_of
from jobs.sbatch import sbatch_text
from jobs.settings import to_yaml
from jobs.stages import PrepareJob, StageJob, tcp_meeting
from jobs.train import train

DEBUG, LOCAL, SLURM = load_cluster("debug"), load_cluster("local"), load_cluster("slurm")


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """Two stages on a data set that has a store of two tiles."""
    data = tmp_path / "data"
    with StoreWriter(data / "store") as writer:
        for name in "tu":
            entry = StoreEntry(id=name, city="X", gsd=0.5, height=32, width=32, scale=1.0, angle=0.0, place=None)
            writer.write(entry, np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint16))
        writer.seal()
    stages = {"a": StageConfig(), "b": StageConfig(start="a/last")}
    return TrainConfig(
        run="first", runs=str(tmp_path / "runs"), data=str(data), encoder="resnet18", encoder_weights="none",
        recipe="demo", folds=2, stages=stages,
    )  # fmt: skip


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, TrainConfig, Parallel]]:
    """What the trainer was asked for; a stage that has its turn is finished, and stage 'c' fails."""
    calls: list[tuple[str, TrainConfig, Parallel]] = []

    def train_stage(config: TrainConfig, stage: str, run_dir: Path, parallel: Parallel, **_: object) -> None:
        calls.append((stage, config, parallel))
        if stage == "c":
            raise RuntimeError("out of memory")
        record = Run(run_dir).stage_record(stage)
        record.parent.mkdir(exist_ok=True)
        write_json(record, {"finished": True})

    monkeypatch.setattr(trainer, "train_stage", train_stage)
    return calls


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cluster of shell scripts: sbatch numbers the jobs from 101 and keeps their scripts; job 'b' is refused where
    a file `refuse` exists; squeue lists what the file `queue` holds of the jobs that it is asked for."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    scripts = {
        "sbatch": f"""
            cd {folder}
            if [ -e refuse ] && grep -q 'job-name=first-b' "$1"; then echo 'Invalid account' >&2; exit 1; fi
            n=$((101 + $(ls *.sh 2>/dev/null | wc -l))); cp "$1" $n.sh; echo "Submitted batch job $n" """,
        "srun": "true",
        "squeue": f"""
            test -e {folder}/queue || exit 1
            echo "$3" | tr , '\\n' | grep -x -F -f {folder}/queue || true""",
        "scancel": f"echo $* >> {folder}/cancelled",
    }
    for name, body in scripts.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def finish(run: Run, *stages: str) -> None:
    for stage in stages:
        run.stage_record(stage).parent.mkdir(parents=True, exist_ok=True)
        write_json(run.stage_record(stage), {"finished": True})


A, B = JobSpec("a"), JobSpec("b", "a")
PREPARE, A_AFTER = JobSpec("prepare", trains=False), JobSpec("a", "prepare")
PLANS: list[tuple[list[str], bool, list[JobSpec]]] = [
    ([], False, [A, B]),
    ([], True, [PREPARE, A_AFTER, B]),
    (["a"], False, [JobSpec("b")]),
    (["a"], True, [PREPARE, JobSpec("b", "prepare")]),
    (["a", "b"], False, []),
    (["a", "b"], True, []),
]


@pytest.mark.parametrize(("finished", "store_missing", "chain"), PLANS)
def test_the_chain_is_what_is_left_to_do_in_order(
    tmp_path: Path, config: TrainConfig, finished: list[str], store_missing: bool, chain: list[JobSpec]
) -> None:
    run = Run(tmp_path / "runs" / "first")
    finish(run, *finished)
    assert plan(config, run, store_missing) == chain


def test_debug_trains_the_stages_in_this_process_one_after_the_other(config: TrainConfig, trained) -> None:
    train(config, DEBUG)
    assert [stage for stage, _, _ in trained] == ["a", "b"]
    for _, seen, parallel in trained:
        assert (parallel.rank, parallel.world_size) == (0, 1)
        assert seen.store == f"{config.data}/store"
        assert seen.workers == 0
        assert seen.threads == DEBUG.default_threads()


def test_a_finished_run_has_nothing_to_do(config: TrainConfig, trained, capsys) -> None:
    train(config, DEBUG)
    trained.clear()
    capsys.readouterr()
    train(config, DEBUG)
    assert trained == []
    assert "nothing to do: run first is finished" in capsys.readouterr().out


def test_a_run_that_failed_continues_with_the_stage_that_failed(config: TrainConfig, trained) -> None:
    config.stages["c"] = StageConfig()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of memory"):
            train(config, DEBUG)
    assert [stage for stage, _, _ in trained] == ["a", "b", "c", "c"]


def without_store(config: TrainConfig) -> TrainConfig:
    return replace(config, data=str(Path(config.data).parent), store="")


REFUSED: list[tuple[str, Callable[[TrainConfig], TrainConfig], str]] = [
    ("no data", lambda c: replace(c, data=""), "no data: give the folder of a data set with --data"),
    ("no store", without_store, "run `python launch.py prepare --data"),
    ("no such store", lambda c: replace(c, store="nowhere"), "no store at"),
    ("an unknown encoder", lambda c: replace(c, encoder="resnet19"), "unknown encoder 'resnet19': choose one of"),
    (
        "no encoder weights",
        lambda c: replace(c, encoder_weights="x.safetensors"),
        "encoder weights x.safetensors do not",
    ),
    (
        "no start",
        lambda c: replace(c, stages={"a": StageConfig(start="x.safetensors")}),
        "stages.a.start: x.safetensors",
    ),
    ("too many folds", lambda c: replace(c, folds=3), "2 tile(s) cannot fill 3 folds"),
    ("folds by places that are not known", lambda c: replace(c, fold_by="place"), "give --fold-by city"),
    ("a highest height elsewhere", lambda c: replace(c, max_agl={"default": 9, "Y": 9}), "choose one of default, X"),
    ("a bad name", lambda c: replace(c, run="a/b"), "run name 'a/b'"),
]


@pytest.mark.parametrize(("spoil", "words"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_is_wrong_is_said_before_anything_is_written(tmp_path: Path, config, trained, spoil, words: str) -> None:
    with pytest.raises(UserError) as refusal:
        train(spoil(config), DEBUG)
    assert words in str(refusal.value)
    assert trained == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("cluster", [DEBUG, LOCAL, replace(SLURM, gpus_per_node=0)], ids=lambda c: c.executor)
def test_float16_without_a_gpu_is_refused_before_anything_is_written(
    tmp_path: Path, config: TrainConfig, trained, slurm: Path, monkeypatch, cluster
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="float16, which needs a GPU"):
        train(replace(config, precision="float16"), cluster)
    assert trained == []
    assert not (tmp_path / "runs").exists()


def test_float16_is_for_the_gpus_of_the_cluster_and_not_for_those_of_the_login_node(
    config: TrainConfig, slurm: Path, monkeypatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    train(replace(config, precision="float16"), SLURM)
    assert (slurm / "102.sh").exists()


def test_the_highest_height_of_a_city_of_the_store_can_be_given(config: TrainConfig, trained) -> None:
    train(replace(config, max_agl={"default": 200.0, "ARG": 100.0, "X": 9.0}), DEBUG)
    assert [stage for stage, _, _ in trained] == ["a", "b"]


def test_too_few_gpus_for_the_processes_are_noticed_before_anything_is_written(
    tmp_path: Path, config: TrainConfig, monkeypatch
) -> None:
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'GPU 0: Tesla V100 (UUID: GPU-0)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(UserError, match="1 GPU for 2 processes"):
        train(config, LOCAL)
    assert not (tmp_path / "runs").exists()


def test_a_refusal_by_the_trainer_does_not_occupy_the_name_of_the_run(
    config: TrainConfig, monkeypatch, trained
) -> None:
    accept = trainer.train_stage

    def refuse(*_: object, **_rest: object) -> None:
        raise UserError("choose other --folds")

    monkeypatch.setattr(trainer, "train_stage", refuse)
    with pytest.raises(UserError, match="other --folds"):
        train(replace(config, fold=-1, folds=9), DEBUG)
    monkeypatch.setattr(trainer, "train_stage", accept)
    train(config, DEBUG)
    assert [seen.folds for _, seen, _ in trained] == [2, 2]


def test_a_store_that_is_not_finished_is_refused_before_anything_is_written(
    tmp_path: Path, config: TrainConfig
) -> None:
    with StoreWriter(tmp_path / "half"):
        pass
    with pytest.raises(UserError, match="not finished"):
        train(replace(config, store=str(tmp_path / "half")), DEBUG)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("cluster", [DEBUG, LOCAL, SLURM], ids=lambda cluster: cluster.executor)
@pytest.mark.parametrize("data", ["", "nowhere"])
def test_a_dry_run_needs_no_data_and_no_cluster_and_writes_nothing(
    tmp_path: Path, config: TrainConfig, trained, capsys, monkeypatch, cluster, data: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    train(replace(config, data=data, dry_run=True), cluster)
    assert sorted(tmp_path.rglob("*")) == before
    assert trained == []
    shown = capsys.readouterr().out
    for stage in config.stages:
        assert stage in shown


def test_a_dry_run_refuses_what_the_run_would_refuse(config: TrainConfig, trained) -> None:
    train(config, DEBUG)
    with pytest.raises(UserError, match="in use with another configuration"):
        train(replace(config, dry_run=True, seed=1), DEBUG)
    with pytest.raises(UserError, match="unknown encoder"):
        train(replace(config, dry_run=True, run="other", encoder="resnet19"), SLURM)


def test_the_dry_run_of_slurm_shows_each_script_and_its_dependency(config: TrainConfig, capsys) -> None:
    train(replace(config, data="", dry_run=True), SLURM)
    shown = capsys.readouterr().out
    assert shown.count("#!/bin/bash") == 3
    assert shown.count("#SBATCH --signal=USR2@180\n") == 3
    assert shown.count("#SBATCH --requeue\n") == 3
    assert "#SBATCH --dependency=afterok:ID_OF_PREPARE\n" in shown
    assert "#SBATCH --dependency=afterok:ID_OF_A\n" in shown
    assert shown.count("#SBATCH --dependency=") == 2
    assert shown.count("#SBATCH --kill-on-invalid-dep=yes\n") == 2


def test_what_the_dry_run_shows_is_what_is_submitted(config: TrainConfig, slurm: Path, capsys) -> None:
    train(replace(config, dry_run=True), SLURM)
    shown = capsys.readouterr().out
    train(config, SLURM)
    assert "a: job 101\nb: job 102 after 101\n" in capsys.readouterr().out
    first, second = (slurm / "101.sh").read_text(), (slurm / "102.sh").read_text()
    assert first in shown
    assert second.replace("afterok:101", "afterok:ID_OF_A") in shown
    run = run_of(config)
    assert second == sbatch_text(SLURM, B, "first", run.jobs, "101")
    assert run.config().workers == SLURM.workers
    assert (run.jobs / "102_submitted.pkl").exists()


def test_a_missing_store_is_prepared_on_the_cluster_first(tmp_path: Path, config: TrainConfig, slurm: Path) -> None:
    train(without_store(config), SLURM)
    names = [
        line for number in (101, 102, 103) for line in (slurm / f"{number}.sh").read_text().splitlines()
        if "job-name" in line or "dependency" in line
    ]  # fmt: skip
    assert names == [
        "#SBATCH --job-name=first-prepare",
        "#SBATCH --dependency=afterok:101",
        "#SBATCH --job-name=first-a",
        "#SBATCH --dependency=afterok:102",
        "#SBATCH --job-name=first-b",
    ]


def test_a_store_that_was_left_unfinished_is_finished_on_the_cluster(
    tmp_path: Path, config: TrainConfig, slurm: Path
) -> None:
    with StoreWriter(tmp_path / "half"):
        pass
    train(replace(config, store=str(tmp_path / "half")), SLURM)
    assert "#SBATCH --job-name=first-prepare" in (slurm / "101.sh").read_text()
    assert "#SBATCH --dependency=afterok:101" in (slurm / "102.sh").read_text()


@pytest.mark.parametrize("finished", [[], ["a"]])
def test_imagenet_weights_are_fetched_before_jobs_are_submitted(
    tmp_path: Path, config: TrainConfig, slurm: Path, monkeypatch, finished: list[str]
) -> None:
    def build_encoder(name: str, weights: str) -> None:
        raise UserError(f"{weights} weights of {name} cannot be fetched")

    monkeypatch.setattr("agl_core.model.encoders.build_encoder", build_encoder)
    config = replace(config, encoder_weights="imagenet")
    train(replace(config, dry_run=True), SLURM)
    finish(run_of(config), *finished)
    if finished:  # what is left starts from weights of the run
        (run_of(config).path / "config.yaml").write_text(to_yaml(config))
        train(config, SLURM)
        return
    with pytest.raises(UserError, match="imagenet weights of resnet18 cannot be fetched"):
        train(config, SLURM)
    assert not (tmp_path / "runs").exists()
    assert not (slurm / "101.sh").exists()


def test_weights_are_fetched_to_the_cache_of_the_jobs(config: TrainConfig, monkeypatch) -> None:
    monkeypatch.setenv("HF_HOME", "here")
    monkeypatch.setenv("HF_HUB_OFFLINE", "unchanged")
    enter(replace(SLURM, environment={"HF_HOME": "/scratch/cache", "HF_HUB_OFFLINE": "1"}))
    assert (os.environ["HF_HOME"], os.environ["HF_HUB_OFFLINE"]) == ("/scratch/cache", "unchanged")


@pytest.mark.parametrize("cluster", [DEBUG, SLURM], ids=lambda cluster: cluster.executor)
def test_a_run_that_is_being_trained_is_refused_to_others_and_its_configuration_stays(
    config: TrainConfig, slurm: Path, trained, monkeypatch, cluster
) -> None:
    refusals: list[str] = []
    accept = trainer.train_stage

    def meanwhile(*arguments: object, **_rest: object) -> None:
        with pytest.raises(UserError) as refusal:
            train(replace(config, folds=2, fold=1), cluster)
        refusals.append(str(refusal.value))
        accept(*arguments)

    monkeypatch.setattr(trainer, "train_stage", meanwhile)
    train(replace(config, stages={"a": StageConfig()}), DEBUG)
    (said,) = refusals
    assert f"run first is being trained by another process (pid {os.getpid()} on host " in said
    assert run_of(config).config().fold == 0
    monkeypatch.setattr(trainer, "train_stage", accept)
    train(replace(config, stages={"a": StageConfig()}), DEBUG)  # and nothing is left of the lock


def test_a_launcher_that_was_killed_leaves_no_lock(tmp_path: Path, config: TrainConfig, trained) -> None:
    run = run_of(config)
    child = os.fork()
    if child == 0:
        with hold(run):
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert run.lock.read_text().startswith(f"pid {child} on host ")
    train(config, DEBUG)
    assert [stage for stage, _, _ in trained] == ["a", "b"]


def test_a_lock_of_which_no_run_came_leaves_no_folder(config: TrainConfig) -> None:
    run = run_of(config)
    with pytest.raises(ZeroDivisionError), hold(run):
        raise ZeroDivisionError
    assert not run.path.exists()


def test_a_run_with_jobs_in_the_queue_is_refused_with_their_numbers(
    config: TrainConfig, slurm: Path, trained, capsys
) -> None:
    train(config, SLURM)
    assert read_json(run_of(config).submitted) == {"a": "101", "b": "102"}
    (slurm / "queue").write_text("102\n77\n")
    for cluster in (SLURM, DEBUG):
        with pytest.raises(UserError, match=r"has jobs in the queue \(102\).*scancel 102"):
            train(config, cluster)
    assert trained == []
    assert not (slurm / "103.sh").exists()
    (slurm / "queue").write_text("77\n")
    train(config, SLURM)
    assert read_json(run_of(config).submitted) == {"a": "103", "b": "104"}


def test_a_queue_that_does_not_answer_holds_nothing_up(config: TrainConfig, slurm: Path, monkeypatch) -> None:
    train(config, SLURM)
    train(config, SLURM)  # squeue fails
    (slurm / "squeue").unlink()
    train(config, SLURM)
    assert (slurm / "106.sh").exists()


@pytest.mark.parametrize("job", [StageJob(Path("runs/first"), "a"), PrepareJob(Path("runs/first"), 3)], ids=repr)
def test_a_job_at_its_time_limit_goes_back_to_the_queue_as_it_is(tmp_path: Path, job) -> None:
    delayed = DelayedSubmission(job)
    delayed.set_timeout(timeout_min=0, max_num_timeout=5)
    requeued: list[int] = []
    environment = SimpleNamespace(global_rank=0, _requeue=requeued.append)
    paths = JobPaths(tmp_path, "101")
    warned = SignalHandler(environment, paths, delayed)
    with pytest.raises(SystemExit):
        warned.checkpoint_and_try_requeue(signal.SIGUSR2)
    assert requeued == [4]
    assert DelayedSubmission.load(paths.submitted_pickle).function == job


def test_a_refused_job_takes_back_those_before_it(tmp_path: Path, slurm: Path) -> None:
    (slurm / "refuse").touch()
    with pytest.raises(UserError, match=r"sbatch refused the job 'b' \(Invalid account\)"):
        submit_chain([A, B], Run(tmp_path / "runs" / "first"), SLURM)
    assert (slurm / "cancelled").read_text() == "101\n"


def test_a_machine_without_slurm_is_told_so(tmp_path: Path, config: TrainConfig, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no Slurm here"):
        train(config, SLURM)
    assert not (tmp_path / "runs").exists()


def test_the_meeting_of_a_requeued_job_is_at_another_port() -> None:
    meetings = {tcp_meeting("node1", "77", restart, step) for restart in "0123" for step in "01"}
    assert len(meetings) == 8
    for meeting in meetings:
        host, port = meeting.removeprefix("tcp://").split(":")
        assert host == "node1"
        assert 20000 <= int(port) < 30000
