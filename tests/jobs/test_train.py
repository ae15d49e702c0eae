"""From a request to trained stages: what is planned, refused, shown, run and submitted."""

import os
import signal
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agl_core.config import StageConfig, TrainConfig
from agl_core.data.store import StoreEntry, StoreWriter
from agl_core.errors import UserError
from agl_core.files import read_json, write_json
from agl_core.training import trainer
from agl_core.training.parallel import Parallel
from jobs.cluster import load_cluster
from jobs.executors import enter
from jobs.failure import JobError
from jobs.lock import hold
from jobs.many import Several
from jobs.runs import Run, run_of
from jobs.settings import to_yaml
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
            test ! -e {folder}/silent || exit 1
            test -e {folder}/queue || exit 0
            echo "$3" | tr , '\\n' | grep -x -F -f {folder}/queue | sed 's/$/|PENDING|None|1:00|N\\/A||x/' || true""",
        "scancel": f"echo $* >> {folder}/cancelled",
    }
    for name, body in scripts.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("jobs.submission.take_snapshot", lambda code: code / "abc")
    monkeypatch.setattr("jobs.executors.snapshot_path", lambda code: code / "abc")
    return folder


def finish(run: Run, *stages: str) -> None:
    for stage in stages:
        run.stage_record(stage).parent.mkdir(parents=True, exist_ok=True)
        write_json(run.stage_record(stage), {"finished": True})


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
    told = capsys.readouterr().out
    assert told.splitlines()[-1].startswith("run first is finished")
    assert told.splitlines()[-1].endswith("report.html")
    train(config, DEBUG)
    assert trained == []
    assert "nothing to do: run first is finished" in capsys.readouterr().out


def test_a_run_that_shall_only_be_trained_is_not_reported_on_until_it_is_asked_for(
    config: TrainConfig, trained
) -> None:
    train(replace(config, until="train"), DEBUG)
    assert not run_of(config).report_file.exists()
    train(config, DEBUG)
    assert run_of(config).report_file.read_text().count("<title>Run first</title>") == 1
    assert [stage for stage, _, _ in trained] == ["a", "b"]


def test_a_run_that_failed_continues_with_the_stage_that_failed(config: TrainConfig, trained) -> None:
    config.stages["c"] = StageConfig()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of memory"):
            train(config, DEBUG)
    assert [stage for stage, _, _ in trained] == ["a", "b", "c", "c"]


def with_tables(config: TrainConfig, test: bool = False) -> None:
    """Give the data set its tables, without any heights or pose; with `test` also a test image and its truth."""
    data = Path(config.data)
    for folder in ("train", *(["test", "test_truth"] if test else [])):
        (data / folder).mkdir()
    for name in "tu":
        for kind in ("RGB", "AGL"):
            (data / "train" / f"{name}_{kind}.tif").touch()
    rows = "".join(f"{name},{name}_AGL.tif,,{name}_RGB.tif\n" for name in "tu")
    (data / "geopose_train.csv").write_text("id,agl,json,rgb\n" + rows)
    (data / "metadata.csv").write_text("id,city,gsd\n" + "".join(f"{name},X,0.5\n" for name in "tuv"))
    if test:
        (data / "test" / "v_RGB.tif").touch()
        (data / "geopose_test.csv").write_text("id,rgb\nv,v_RGB.tif\n")


def without_store(config: TrainConfig) -> TrainConfig:
    return replace(config, data=str(Path(config.data).parent), store="")


REFUSED: list[tuple[str, Callable[[TrainConfig], TrainConfig], str]] = [
    ("no data", lambda c: replace(c, data=""), "no data: give the folder of a data set with --data"),
    ("no store", without_store, "does not exist, and to prepare it there is nothing"),
    ("no such store", lambda c: replace(c, store="nowhere"), "geopose_train.csv does not exist"),
    ("neither store nor data", lambda c: replace(c, data="", store="nowhere"), "no data set is given"),
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
    (
        "a city of a stage that is not there",
        lambda c: replace(c, stages={**c.stages, "own": StageConfig(cities="X,Z")}),
        "stages.own.cities: there is no city 'Z'",
    ),
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


def test_a_city_of_a_stage_that_a_store_to_be_prepared_will_not_have_is_refused(config: TrainConfig, trained) -> None:
    with_tables(config)
    config.stages["own"] = StageConfig(cities="Z")
    with pytest.raises(UserError, match=r"stages\.own\.cities: there is no city 'Z' .*; choose of X"):
        train(replace(config, store=str(Path(config.data) / "nowhere")), DEBUG)
    assert trained == []


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
    with pytest.raises(UserError, match="half is not finished, and to prepare it there is nothing"):
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
    assert "would be refused as things are: " in shown
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
    assert shown.count("#!/bin/bash") == 4
    assert shown.count("#SBATCH --signal=USR2@180\n") == 4
    assert shown.count("#SBATCH --requeue\n") == 4
    assert "#SBATCH --dependency=afterok:ID_OF_FIRST_PREPARE\n" in shown
    assert "#SBATCH --dependency=afterok:ID_OF_FIRST_A\n" in shown
    assert "#SBATCH --dependency=afterok:ID_OF_FIRST_B\n" in shown
    assert shown.count("#SBATCH --dependency=") == 3
    assert shown.count("#SBATCH --kill-on-invalid-dep=yes\n") == 3
    assert "nothing is predicted: no --data is given" in shown


def test_what_the_dry_run_shows_is_what_is_submitted(config: TrainConfig, slurm: Path, capsys) -> None:
    train(replace(config, dry_run=True), SLURM)
    shown = capsys.readouterr().out
    train(config, SLURM)
    told = capsys.readouterr().out
    assert "first/a: job 101\nfirst/b: job 102 after 101\nfirst/report: job 103 after 102\n" in told
    first, second = (slurm / "101.sh").read_text(), (slurm / "102.sh").read_text()
    assert first in shown
    assert second.replace("afterok:101", "afterok:ID_OF_FIRST_A") in shown
    run = run_of(config)
    assert run.config().workers == SLURM.workers
    assert (run.jobs / "102_submitted.pkl").exists()


def test_a_missing_store_is_prepared_on_the_cluster_first(tmp_path: Path, config: TrainConfig, slurm: Path) -> None:
    with_tables(config)
    train(replace(config, store=str(tmp_path / "store")), SLURM)
    names = [
        line for number in (101, 102, 103, 104) for line in (slurm / f"{number}.sh").read_text().splitlines()
        if "job-name" in line or "dependency" in line
    ]  # fmt: skip
    assert names == [
        "#SBATCH --job-name=first-prepare",
        "#SBATCH --dependency=afterok:101",
        "#SBATCH --job-name=first-a",
        "#SBATCH --dependency=afterok:102",
        "#SBATCH --job-name=first-b",
        "#SBATCH --dependency=afterok:103",
        "#SBATCH --job-name=first-report",
    ]


def test_a_store_that_was_left_unfinished_is_finished_on_the_cluster(
    tmp_path: Path, config: TrainConfig, slurm: Path
) -> None:
    with_tables(config)
    with StoreWriter(tmp_path / "half"):
        pass
    train(replace(config, store=str(tmp_path / "half")), SLURM)
    assert "#SBATCH --job-name=first-prepare" in (slurm / "101.sh").read_text()
    assert "#SBATCH --dependency=afterok:101" in (slurm / "102.sh").read_text()


@pytest.fixture
def unfetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Which weights were asked for, of which none can be had."""
    asked: list[tuple[str, str]] = []

    def obtain(name: str, cache: str) -> Path:
        asked.append((name, cache))
        raise UserError(f"the weights of {name} cannot be fetched")

    monkeypatch.setattr("agl_core.model.imagenet.obtain", obtain)
    return asked


@pytest.mark.parametrize("cluster", [DEBUG, LOCAL, SLURM], ids=lambda cluster: cluster.executor)
def test_imagenet_weights_are_fetched_before_anything_is_created_or_submitted(
    tmp_path: Path, config: TrainConfig, slurm: Path, trained, unfetched, cluster
) -> None:
    config = replace(config, encoder_weights="imagenet", weights_cache=f"{tmp_path}/runs/../cache")
    with pytest.raises(UserError, match="the weights of resnet18 cannot be fetched"):
        train(config, cluster)
    assert unfetched == [("resnet18", f"{tmp_path}/runs/../cache")]
    assert not (tmp_path / "runs").exists()
    assert not (slurm / "101.sh").exists()
    assert not trained


@pytest.mark.parametrize("begun", ["finished", "checkpoint"])
def test_stages_that_do_not_begin_with_imagenet_weights_any_more_need_none(
    config: TrainConfig, slurm: Path, unfetched, begun: str
) -> None:
    config = replace(config, encoder_weights="imagenet")
    run = run_of(config)
    if begun == "finished":  # what is left starts from weights of the run
        finish(run, "a")
    else:
        checkpoint = run.checkpoints("a") / "step_000000007"
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").touch()
    (run.path / "config.yaml").write_text(to_yaml(config))
    train(config, SLURM)
    assert unfetched == []


def test_runs_of_one_encoder_ask_for_its_weights_once(config: TrainConfig, slurm: Path, monkeypatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("agl_core.model.imagenet.obtain", lambda name, _: asked.append(name))
    first = replace(config, encoder_weights="imagenet")
    others = [replace(first, run="m1", fold=1), replace(first, run="m2", encoder="resnet34")]
    train(Several([first, *others]), SLURM)
    assert asked == ["resnet18", "resnet34"]


def test_a_dry_run_says_which_weights_it_would_fetch(
    tmp_path: Path, config: TrainConfig, slurm: Path, unfetched, capsys
) -> None:
    config = replace(config, encoder_weights="imagenet", weights_cache=str(tmp_path / "cache"), dry_run=True)
    train(config, SLURM)
    assert f"would fetch the ImageNet weights of resnet18 into {tmp_path}/cache\n" in capsys.readouterr().out
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "resnet18.imagenet.safetensors").touch()
    train(config, SLURM)
    assert "would fetch" not in capsys.readouterr().out
    assert unfetched == []


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
    assert read_json(run_of(config).submitted) == {"a": "101", "b": "102", "report": "103"}
    (slurm / "queue").write_text("102\n77\n")
    for cluster in (SLURM, DEBUG):
        with pytest.raises(UserError, match=r"has jobs in the queue \(102\).*launch.py cancel first"):
            train(config, cluster)
    assert trained == []
    assert not (slurm / "104.sh").exists()
    (slurm / "queue").write_text("77\n")
    train(config, SLURM)
    assert read_json(run_of(config).submitted) == {"a": "104", "b": "105", "report": "106"}


def test_a_queue_that_does_not_answer_lets_nothing_be_submitted_twice(
    config: TrainConfig, slurm: Path, trained
) -> None:
    train(config, SLURM)
    (slurm / "silent").touch()
    with pytest.raises(UserError, match=r"Slurm does not answer .* jobs of run first may be active"):
        train(config, SLURM)
    (slurm / "squeue").unlink()
    with pytest.raises(UserError, match="Slurm does not answer"):
        train(config, SLURM)
    assert not (slurm / "104.sh").exists()
    train(config, DEBUG)  # on a machine that has no Slurm
    assert [stage for stage, _, _ in trained] == ["a", "b"]


def test_a_refused_job_takes_back_those_before_it(config: TrainConfig, slurm: Path) -> None:
    (slurm / "refuse").touch()
    with pytest.raises(UserError, match=r"sbatch refused the job 'first/b' \(Invalid account\)"):
        train(config, SLURM)
    assert "101" in (slurm / "cancelled").read_text().split()


def test_a_machine_without_slurm_is_told_so(tmp_path: Path, config: TrainConfig, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no Slurm here"):
        train(config, SLURM)
    assert not (tmp_path / "runs").exists()


def several(config: TrainConfig) -> Several:
    """Two runs, one for each fold."""
    return Several([replace(config, run=f"m{fold}", fold=fold) for fold in (0, 1)], "m-ensemble")


def dependencies(slurm: Path) -> dict[str, str]:
    """What every submitted job waits for, by name: the others' names."""
    flags = {
        path.stem: dict(
            line.removeprefix("#SBATCH --").partition("=")[::2]
            for line in path.read_text().splitlines()
            if line.startswith("#SBATCH --")
        )
        for path in slurm.glob("*.sh")
    }
    names = {number: own["job-name"] for number, own in flags.items()}
    waits = {number: own.get("dependency", "").removeprefix("afterok:").split(":") for number, own in flags.items()}
    return {names[number]: " ".join(names[other] for other in waits[number] if other) for number in sorted(flags)}


def test_several_runs_are_submitted_with_one_store_and_joined_by_their_ensemble(
    tmp_path: Path, config: TrainConfig, slurm: Path
) -> None:
    with_tables(config, test=True)
    asked = several(replace(config, store=str(tmp_path / "store")))
    train(asked, SLURM)
    assert dependencies(slurm) == {
        "m0-prepare": "",
        "m0-a": "m0-prepare",
        "m0-b": "m0-a",
        "m0-predict": "m0-b",
        "m0-evaluate": "m0-predict",
        "m0-report": "m0-evaluate",
        "m1-a": "m0-prepare",
        "m1-b": "m1-a",
        "m1-predict": "m1-b",
        "m1-evaluate": "m1-predict",
        "m1-report": "m1-evaluate",
        "m-ensemble-ensemble": "m0-predict m1-predict",
        "m-ensemble-evaluate": "m-ensemble-ensemble",
        "m-ensemble-report": "m-ensemble-evaluate",
    }
    assert (tmp_path / "runs" / "m-ensemble" / "ensemble.yaml").exists()


def test_what_is_done_is_not_submitted_again_and_not_waited_for(config: TrainConfig, slurm: Path) -> None:
    with_tables(config, test=True)
    asked = several(config)
    train(asked, SLURM)
    for path in slurm.glob("*.sh"):
        path.unlink()
    runs = [run_of(one) for one in asked.configs]
    finish(runs[0], "a", "b", "predict", "evaluate", "report")
    finish(runs[1], "a")
    train(asked, SLURM)
    assert dependencies(slurm) == {
        "m1-b": "",
        "m1-predict": "m1-b",
        "m1-evaluate": "m1-predict",
        "m1-report": "m1-evaluate",
        "m-ensemble-ensemble": "m1-predict",
        "m-ensemble-evaluate": "m-ensemble-ensemble",
        "m-ensemble-report": "m-ensemble-evaluate",
    }


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


@pytest.mark.parametrize("active", ["m1", "m-ensemble"])
def test_nothing_of_a_command_is_submitted_if_one_of_its_runs_is_active(
    tmp_path: Path, config: TrainConfig, slurm: Path, active: str
) -> None:
    with_tables(config, test=True)
    asked = several(config)
    write_json_into(Run(tmp_path / "runs" / active).submitted, {"a": "7"})
    made = replace(asked.configs[1], run=active)
    content = to_yaml(made) if active == "m1" else "runs: [x]\n"
    (tmp_path / "runs" / active / ("config.yaml" if active == "m1" else "ensemble.yaml")).write_text(content)
    (slurm / "queue").write_text("7\n")
    before = tree(tmp_path / "runs")
    with pytest.raises(UserError, match=rf"run {active} has jobs in the queue \(7\)"):
        train(asked, SLURM)
    assert not list(slurm.glob("*.sh"))
    after = tree(tmp_path / "runs")
    assert {path for path in after if not path.endswith("/lock")} == set(before)
    assert all(after[path] == content for path, content in before.items())


def write_json_into(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True)
    write_json(path, content)


REFUSED_TOGETHER: list[tuple[str, Callable[[Several], None], str]] = [
    ("a fold", lambda asked: setattr(asked.configs[1], "folds", 3), "2 tile(s) cannot fill 3 folds"),
    ("an encoder", lambda asked: setattr(asked.configs[1], "encoder", "resnet19"), "unknown encoder 'resnet19'"),
    (
        "a name that is an ensemble's",
        lambda asked: (occupy(asked, "m1", "ensemble.yaml"),),
        "m1 is an ensemble of other runs",
    ),
    ("an ensemble that is a run", lambda asked: occupy(asked, "m-ensemble", "config.yaml"), "is that of a run"),
    ("an ensemble that is something else", lambda asked: occupy(asked, "m-ensemble", "x"), "no ensemble.yaml"),
]


def occupy(asked: Several, name: str, file: str) -> None:
    folder = Path(asked.configs[0].runs) / name
    folder.mkdir(parents=True)
    (folder / file).write_text("")


@pytest.mark.parametrize(
    ("spoil", "words"), [case[1:] for case in REFUSED_TOGETHER], ids=[case[0] for case in REFUSED_TOGETHER]
)
def test_what_is_wrong_with_one_of_several_runs_is_said_before_anything_is_written(
    tmp_path: Path, config: TrainConfig, trained, spoil: Callable[[Several], None], words: str
) -> None:
    with_tables(config, test=True)
    asked = several(config)
    spoil(asked)
    before = tree(tmp_path)
    with pytest.raises(UserError) as refusal:
        train(asked, DEBUG)
    assert words in str(refusal.value)
    assert trained == []
    assert tree(tmp_path) == before


def spoil_test(config: TrainConfig, kind: str) -> None:
    data = Path(config.data)
    if kind == "an image is missing":
        (data / "test" / "v_RGB.tif").unlink()
    else:
        (data / "metadata.csv").write_text((data / "metadata.csv").read_text().replace("v,X", "v,Y"))


@pytest.mark.parametrize(
    ("kind", "words"), [("an image is missing", "v_RGB.tif"), ("an unknown city", "images of Y, a city")]
)
@pytest.mark.parametrize("prepared", [True, False])
def test_images_that_could_not_be_predicted_a_week_later_are_refused_now_and_can_be_left_out(
    tmp_path: Path, config: TrainConfig, slurm: Path, kind: str, words: str, prepared: bool
) -> None:
    with_tables(config, test=True)
    spoil_test(config, kind)
    config = config if prepared else replace(config, store=str(tmp_path / "store"))
    with pytest.raises(UserError) as refusal:
        train(config, SLURM)
    assert words in str(refusal.value)
    assert "--until train" in str(refusal.value)
    assert not (tmp_path / "runs").exists()
    train(replace(config, until="train"), SLURM)
    assert len(list(slurm.glob("*.sh"))) == (2 if prepared else 3)


def test_a_job_that_fails_here_stops_those_after_it_and_the_same_command_goes_on(
    config: TrainConfig, trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = several(config)
    asked.configs[0].stages["c"] = StageConfig()
    asked.configs[1].stages["c"] = StageConfig()
    with pytest.raises((RuntimeError, JobError)):
        train(asked, DEBUG)
    assert [(seen.run, stage) for stage, seen, _ in trained] == [("m0", "a"), ("m0", "b"), ("m0", "c")]
    finish(run_of(asked.configs[0]), "c")
    trained.clear()
    with pytest.raises((RuntimeError, JobError)):
        train(asked, DEBUG)
    assert [(seen.run, stage) for stage, seen, _ in trained] == [("m1", "a"), ("m1", "b"), ("m1", "c")]


def test_jobs_get_full_paths_since_they_run_elsewhere(
    config: TrainConfig, tmp_path: Path, trained, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLACE", "cache")
    Path("w.safetensors").touch()
    Path("e.safetensors").touch()
    config.stages["a"].start = "w.safetensors"
    places = {"data": "data", "runs": "runs", "encoder_weights": "e.safetensors", "weights_cache": "$PLACE/w"}
    train(replace(config, **places), DEBUG)
    seen = run_of(config).config()
    assert seen.data == str(tmp_path / "data")
    assert seen.store == str(tmp_path / "data" / "store")
    assert seen.encoder_weights == str(tmp_path / "e.safetensors")
    assert seen.weights_cache == str(tmp_path / "cache" / "w")
    assert [stage.start for stage in seen.stages.values()] == [str(tmp_path / "w.safetensors"), "a/last"]
    assert seen.runs == str(tmp_path / "runs")


def test_records_of_what_follows_a_stage_that_is_trained_again_are_gone_before_it_begins(
    config: TrainConfig, slurm: Path
) -> None:
    with_tables(config, test=True)
    train(config, SLURM)
    run = run_of(config)
    finish(run, "a", "predict", "evaluate", "report")  # by hand: b was trained and is to be trained again
    train(config, SLURM)
    assert [job for job in ("a", "b", "predict", "evaluate", "report") if run.finished(job)] == ["a"]


def test_a_dry_run_of_several_runs_shows_all_jobs_and_writes_nothing(
    tmp_path: Path, config: TrainConfig, slurm: Path, capsys
) -> None:
    with_tables(config, test=True)
    asked = several(replace(config, dry_run=True))
    before = tree(tmp_path)
    train(asked, SLURM)
    assert tree(tmp_path) == before
    shown = capsys.readouterr().out
    assert shown.count("#!/bin/bash") == 2 * 5 + 3
    assert "#SBATCH --dependency=afterok:ID_OF_M0_PREDICT:ID_OF_M1_PREDICT\n" in shown
    for name in ("run m0 in", "run m1 in", "ensemble m-ensemble in"):
        assert name in shown


def test_the_lock_of_an_ensemble_stays_for_the_next_launch(config: TrainConfig, slurm: Path, tmp_path: Path) -> None:
    with_tables(config, test=True)
    train(several(config), SLURM)
    folder = Run(tmp_path / "runs" / "m-ensemble")
    assert folder.lock.exists()
    with hold(folder), pytest.raises(UserError, match="run m-ensemble is being trained by another process"):
        train(several(config), SLURM)
