"""The verb fit: what is refused, what is shown, and how it is done on a node."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agl_core.config import FitConfig
from agl_core.errors import UserError
from agl_core.training.fit import Fitted, Promise
from agl_core.training.fit_bench import Job, Outcome
from agl_core.training.fit_device import GB, Device
from agl_core.training.fit_forecast import Pace
from jobs.cluster import ClusterConfig, load_cluster
from jobs.fit import fit, make_plan, on_a_node, threads_of

ROOT = Path(__file__).parents[2]
CPU = Device("cpu", "a CPU", 16 * GB, 8 * GB)
GPU = Device("cuda", "a GPU", 80 * GB, 79 * GB, "570.1")


def fitted(encoder: str, promise: Promise | None = None) -> Fitted:
    took = Outcome(7 * GB, 6 * GB, 0.8, 0.2)
    return Fitted(encoder, "", 12, False, Outcome(9 * GB, 8 * GB, 0, 0), Pace(8, 512, 0.8, 0.2), took, promise)


class Measured:
    """Stands for the measuring; `jobs` are those that it was asked for, `answers` what it says by encoder."""

    def __init__(self, device: Device, **answers: Fitted | UserError) -> None:
        self.device, self.answers = device, answers
        self.jobs: list[Job] = []

    def install(self, patch: pytest.MonkeyPatch) -> "Measured":
        patch.setattr("agl_core.training.fit.measure", self)
        patch.setattr("agl_core.training.fit_device.device_at_hand", lambda memory, processes: self.device)
        return self

    def __call__(self, job: Job, device: Device, *_: Any) -> Fitted:
        self.jobs.append(job)
        answer = self.answers[job.config.encoder]
        if isinstance(answer, UserError):
            raise answer
        return answer


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (FitConfig(encoder="efficientnet-b77"), "unknown encoder 'efficientnet-b77': choose one of efficientnet-b7"),
        (FitConfig(encoder="resnet18,nope"), "unknown encoder 'nope'"),
        (FitConfig(stage="third"), "unknown stage 'third': choose one of pretrain, finetune"),
        (FitConfig(recipe="none-such"), "unknown recipe 'none-such'"),
        (FitConfig(cluster="none-such"), "unknown cluster 'none-such'"),
        (FitConfig(recipe="demo", cluster="local", precision="float16"), "precision float16 needs a GPU"),
        (FitConfig(store="/nowhere/store"), "/nowhere/store"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(
    config: FitConfig, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Measured(CPU).install(monkeypatch)
    with pytest.raises(UserError, match=sentence.replace("(", r"\(")) as refused:
        fit(config)
    assert "\n" not in str(refused.value)
    assert not measured.jobs


def test_more_processes_than_a_step_has_crops_are_refused(tmp_path: Path) -> None:
    cluster = tmp_path / "many.yaml"
    cluster.write_text("executor: local\nprocesses: 33\n")
    with pytest.raises(UserError, match="32 crops for 33 processes"):
        make_plan(FitConfig(cluster=str(cluster)))


def test_every_encoder_gets_a_row_and_one_that_does_not_fit_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    small = Fitted("senet154", "senet154 does not fit 8.0 GB")
    answers: dict[str, Fitted | UserError] = {
        "efficientnet-b7": fitted("efficientnet-b7"),
        "senet154": small,
        "resnet18": UserError("resnet18 has no gradient checkpointing"),
    }
    measured = Measured(CPU, **answers).install(monkeypatch)
    fit(FitConfig(encoder="efficientnet-b7, senet154,resnet18", json=str(tmp_path / "fit.json"), threads=3))
    printed = capsys.readouterr()
    lines = {line.split()[0]: line.split() for line in printed.out.splitlines() if line.strip()}
    # 525 epochs of 5775 tiles in batches of 32 are 94747 steps of four micro-batches: 3.4 s each.
    assert lines["efficientnet-b7"][:7] == ["efficientnet-b7", "12", "9.00", "8", "7.00", "8", "89.5"]
    assert "senet154 does not fit 8.0 GB" in printed.out
    assert "resnet18 has no gradient checkpointing" in printed.out
    assert "validation, waiting for data and what processes exchange are not in them" in printed.out
    assert "crops of 512 x 512, float32; a CPU, 3 threads, 8.0 of 16.0 GB may be used" in printed.err
    assert [job.threads for job in measured.jobs] == [3, 3, 3]
    written = json.loads((tmp_path / "fit.json").read_text())
    assert [row["encoder"] for row in written["rows"]] == ["efficientnet-b7", "senet154", "resnet18"]
    assert written["rows"][0]["pace"]["crops_per_second"] == pytest.approx(8.0)
    assert [stage["steps"] for stage in written["rows"][0]["stages"]] == [94747, 184981]
    assert written["rows"][0]["hours"] == pytest.approx((94747 + 184981) * 3.4 / 3600)
    assert written["device"]["limit"] == 8 * GB


def test_where_nothing_fits_the_command_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    Measured(CPU, senet154=Fitted("senet154", "senet154 does not fit 8.0 GB: lower it")).install(monkeypatch)
    with pytest.raises(UserError, match=r"^senet154 does not fit 8.0 GB: lower it$"):
        fit(FitConfig(encoder="senet154"))


@pytest.mark.parametrize(
    ("promise", "line"),
    [
        (Promise(True, 21 * GB), "senet154: 8 crops of 512 x 512 in float16 fit 32 GB: 21.0 GB"),
        (Promise(False, 0), "senet154: 8 crops of 512 x 512 in float16 do NOT fit 32 GB"),
        (Promise(None, 0), "whether they fit 32 GB is not known"),
    ],
)
def test_on_a_gpu_a_line_says_whether_the_promise_of_32_gb_holds(
    promise: Promise, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Measured(GPU, senet154=fitted("senet154", promise)).install(monkeypatch)
    monkeypatch.setattr("agl_core.training.fit.choose_precision", lambda name, device: "bfloat16")
    fit(FitConfig(encoder="senet154", cluster=str(ROOT / "cluster_configs" / "slurm.yaml")))
    printed = capsys.readouterr()
    assert line in printed.out
    assert "driver 570.1" in printed.err
    assert "srun" not in printed.out


def test_hours_of_a_cpu_for_a_cluster_of_gpus_are_called_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Measured(CPU, resnet18=fitted("resnet18")).install(monkeypatch)
    fit(FitConfig(encoder="resnet18", cluster=str(ROOT / "cluster_configs" / "slurm.yaml")))
    out = capsys.readouterr().out
    assert "these are the figures of this CPU; for a GPU's: srun --ntasks=1 --gres=gpu:1 --cpus-per-task=8" in out
    assert "4 processes with a device like this one each" in out


def test_the_command_for_a_node_has_the_clusters_words_and_all_that_was_asked_for() -> None:
    cluster = load_cluster(str(ROOT / "cluster_configs" / "slurm.yaml"))
    cluster.partition, cluster.account, cluster.constraint = "gpu", "my project", "v100-32g"
    cluster.sbatch = {"gres": "gpu:v100:4"}
    config = FitConfig(encoder="senet154", memory=32.0, gradient_checkpointing=False, crop=256)
    assert on_a_node(config, cluster) == (
        "srun --ntasks=1 --partition=gpu '--account=my project' --constraint=v100-32g --gres=gpu:v100:1 "
        "--cpus-per-task=8 python launch.py fit --encoder senet154 --crop 256 --no-gradient-checkpointing --memory 32"
    )


def test_crop_and_gradient_checkpointing_are_the_recipes_unless_given() -> None:
    own = make_plan(FitConfig(recipe="kbrodt", stage="finetune"))
    assert own.train.stages["finetune"].crop == 512
    given = make_plan(FitConfig(recipe="kbrodt", stage="finetune", crop=256, gradient_checkpointing=True))
    assert (given.train.stages["pretrain"].crop, given.train.stages["finetune"].crop) == (512, 256)
    assert given.train.gradient_checkpointing


def test_tiles_come_from_the_command_the_store_or_the_challenge(tiny_store: Path, tmp_path: Path) -> None:
    assert make_plan(FitConfig()).tiles("pretrain") == 5923 - 148
    assert make_plan(FitConfig(tiles=77, store=str(tiny_store))).tiles("pretrain") == 77
    with pytest.raises(UserError, match=r"recipe demo cannot train stage train on the store .*: give the number of"):
        make_plan(FitConfig(recipe="demo", store=str(tiny_store)))
    recipe = tmp_path / "own.yaml"
    recipe.write_text("folds: 4\nstages: {first: {crop: 64}, second: {crop: 64, cities: AAA}}\n")
    plan = make_plan(FitConfig(recipe=str(recipe), store=str(tiny_store)))
    assert plan.tiles("first") > plan.tiles("second") > 0


def test_a_process_of_the_local_cluster_is_measured_with_its_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jobs.fit.cores", lambda: 8)
    monkeypatch.setattr("jobs.cluster.cores", lambda: 8)
    assert threads_of(ClusterConfig(executor="local", processes=4)) == 2
    assert threads_of(ClusterConfig()) == 8
    assert threads_of(load_cluster(str(ROOT / "cluster_configs" / "slurm.yaml"))) == 8


def test_the_command_measures_and_writes_what_it_has_found(tmp_path: Path) -> None:
    command = [
        sys.executable, str(ROOT / "launch.py"), "fit", "--encoder", "tu-resnet10t", "--recipe", "demo", "--crop", "64",
        "--most", "2", "--steps", "1", "--threads", "1", "--json", "fit.json",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "160"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 or more" in done.stdout
    assert "tu-resnet10t: 1 x 64 x 64 takes" in done.stderr
    (row,) = json.loads((tmp_path / "fit.json").read_text())["rows"]
    assert (row["largest"], row["bounded"], row["stages"][0]["steps"]) == (2, True, 1300)
    assert row["of_largest"]["peak"] > GB // 10
    assert row["pace"]["crops_per_second"] > 0


def test_ctrl_c_ends_it_without_a_traceback_or_a_process_left(tmp_path: Path) -> None:
    command = [
        sys.executable, str(ROOT / "launch.py"), "fit", "--encoder", "tu-resnet10t", "--recipe", "demo",
        "--crop", "512", "--steps", "1000", "--threads", "1", "--most", "1",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, start_new_session=True,
        # What a shell has started in the background has inherited that it is deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr is not None
    said = ""
    while "takes" not in said:  # the first try has ended, and the long one runs
        line = process.stderr.readline()
        assert line, said
        said += line
    children = [int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.send_signal(signal.SIGINT)
    out, rest = process.communicate(timeout=60)
    assert (process.returncode, out, rest) == (130, "", "")
    until = time.monotonic() + 60  # they notice by themselves that nobody waits for them any more
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{child}").exists() for child in children)
