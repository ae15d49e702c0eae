"""The verb predict: in this process, in several, or as a job with a folder of its own."""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import launch
from agl_core.config import CancelConfig, LogsConfig, ModelConfig, PredictConfig, ResumeConfig, StatusConfig
from agl_core.data.tiles import write_rgb
from agl_core.durable.exits import INTERRUPTED, InterruptedRunError
from agl_core.durable.guard import Guard
from agl_core.errors import UserError
from agl_core.files import read_json, write_json
from agl_core.model.network import GeoposeNet
from agl_core.model.weights import save_weights
from jobs import predictions, snapshot, work
from jobs.allocation import Allocation
from jobs.cluster import ClusterConfig, load_cluster
from jobs.conductor import Conductor
from jobs.control import cancel, resume
from jobs.failure import JobError, JobInterruptedError
from jobs.history import History
from jobs.logs import logs
from jobs.pipeline import PREDICT
from jobs.predictions import Share, predict, shared_out
from jobs.runs import Run
from jobs.settings import to_yaml
from jobs.stages import Place
from jobs.status import status
from jobs.work import carry_out
from tests.jobs import fake_slurm
from tests.jobs.fakes import FakeSlurm
from tests.jobs.test_local import install_gpus
from tests.jobs.test_why import line

IMAGES = ["A_x", "A_y", "B_z"]
SBATCH = 'echo "sbatch $*" >> asked; cp "$1" script; test ! -e refuse || exit 1; echo "Submitted batch job 17"'


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a data set of three images in data/, weights in w.safetensors, a Slurm whose queue is
    empty."""
    rng = np.random.default_rng(0)
    (tmp_path / "data" / "test").mkdir(parents=True)
    for image in IMAGES:
        pixels = rng.integers(0, 250, (64, 64, 3)).astype(np.uint8)
        write_rgb(tmp_path / "data" / "test" / f"{image}_RGB.tif", pixels)
    rows = "".join(f"{image},{image}_RGB.tif\n" for image in IMAGES)
    (tmp_path / "data" / "geopose_test.csv").write_text("id,rgb\n" + rows)
    (tmp_path / "data" / "metadata.csv").write_text("id,city,gsd\n" + "".join(f"{i},{i[0]},0.5\n" for i in IMAGES))
    torch.manual_seed(0)
    model = GeoposeNet("tu-resnet10t", ["A", "B"], ModelConfig(decoder_channels=[16, 8, 8, 8, 8]), "none")
    save_weights(tmp_path / "w.safetensors", model, {})
    monkeypatch.chdir(tmp_path)
    folder = fake_slurm.install(tmp_path / "slurm", monkeypatch)
    for name, body in (("sbatch", SBATCH), ("srun", "")):
        (folder / name).write_text(f"#!/bin/bash\ncd {folder}\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setattr(snapshot, "fsync_file", lambda path: None)  # it takes seconds, and no power is cut here
    return tmp_path


def asked(**values: Any) -> PredictConfig:
    given = {"weights": "w.safetensors", "data": "data", "out": "out", "threads": 1, **values}
    return PredictConfig(**given)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "about.json"}


# ---- on this machine


def warned(number: signal.Signals) -> Callable[[PredictConfig, Guard, Place], int]:
    """A prediction that a signal interrupts after two of three images."""

    def predict_here(config: PredictConfig, guard: Guard, place: Place) -> int:
        assert place == Place(0, 1, 0, None)
        os.kill(os.getpid(), number)
        assert guard.requested
        raise InterruptedRunError(str(guard.signal), None, "2 of 3 images are predicted")

    return predict_here


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, INTERRUPTED), (signal.SIGUSR2, INTERRUPTED)]
)
def test_a_prediction_that_is_interrupted_says_how_to_continue(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals, code: int
) -> None:
    monkeypatch.setattr(predictions, "predict_here", warned(number))
    words = ["predict", "--weights", "w.safetensors", "--data", "my data", "--out", "o", "--processes", "1"]
    assert launch.main(words) == code
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"interrupted by {number.name[3:]}; 2 of 3 images are predicted; to continue: python launch.py predict "
        "--weights w.safetensors --data 'my data' --out o --processes 1"
    )


def test_a_warning_that_comes_after_the_last_image_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def predict_here(config: PredictConfig, guard: Guard, place: Place) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return 3

    monkeypatch.setattr(predictions, "predict_here", predict_here)
    predict(asked())


# GPUs of the machine, processes of the file of a local cluster (None: debug), --processes, what comes of it
SHARES = [
    (0, None, None, 1),
    (0, None, 3, 3),
    (2, None, None, 2),
    (2, None, 1, 1),
    (2, None, 3, "this machine has 2 GPUs for 3 processes: give --processes 2"),
    (0, 4, None, 4),
    (0, 4, 2, 2),
    (1, 2, None, "1 GPU for 2 processes: give --processes 1"),
]


@pytest.mark.parametrize(("gpus", "of_file", "given", "expected"), SHARES)
def test_there_is_a_process_for_each_gpu_unless_something_else_is_asked_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpus: int,
    of_file: int | None,
    given: int | None,
    expected: int | str,
) -> None:
    install_gpus(tmp_path, gpus, monkeypatch)
    cluster = ClusterConfig() if of_file is None else ClusterConfig(executor="local", processes=of_file)
    if isinstance(expected, int):
        assert shared_out(asked(processes=given), cluster, {}).processes == expected
    else:
        with pytest.raises(UserError, match=expected):
            shared_out(asked(processes=given), cluster, {})


@pytest.mark.parametrize("error", [None, UserError("no"), JobInterruptedError("by TERM"), JobError("rank 1")])
def test_several_processes_share_the_cores_and_their_logs_stay_where_one_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    calls: list[tuple[Share, ClusterConfig]] = []

    def run_ranks(call: Share, folder: Path, cluster: ClusterConfig, apart: bool) -> bool:
        assert apart
        folder.mkdir()
        calls.append((call, cluster))
        if error is not None:
            raise error
        return False

    monkeypatch.setattr(predictions, "run_ranks", run_ranks)
    monkeypatch.setattr("jobs.cluster.cores", lambda: 10)
    monkeypatch.setattr(predictions.tempfile, "tempdir", str(tmp_path))
    if error is None:
        predict(asked(processes=3, threads=None))
    else:
        with pytest.raises(type(error)):
            predict(asked(processes=3, threads=None))
    ((call, cluster),) = calls
    assert (call.config.threads, cluster.processes) == (3, 3)
    assert call.config.out == "out"
    assert bool(list(tmp_path.iterdir())) == isinstance(error, JobError)


def test_two_processes_leave_the_files_of_one_and_say_it_once(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    predict(asked(out="one"))
    one = capfd.readouterr()
    predict(asked(out="two", processes=2))
    two = capfd.readouterr()
    assert len(files(place / "one")) == 6
    assert files(place / "one") == files(place / "two")
    assert two.out == one.out.replace("one", "two")


def test_what_would_be_predicted_is_shown_and_nothing_is_written(place: Path, capsys: Any) -> None:
    before = sorted(place.rglob("*"))
    predict(asked(dry_run=True, processes=1))
    predict(asked(dry_run=True, processes=2))
    assert capsys.readouterr().out.splitlines() == [
        "would predict 3 images of data (test) with w.safetensors, in this process -> out",
        "would predict 3 images of data (test) with w.safetensors, in 2 processes here -> out",
    ]
    assert sorted(place.rglob("*")) == before


def test_a_job_is_not_named_where_there_is_none() -> None:
    with pytest.raises(UserError, match="job is 'x', but cluster debug predicts on this machine"):
        predict(asked(job="x"))


# ---- as a job


def on_slurm(**values: Any) -> PredictConfig:
    return asked(cluster="slurm", threads=None, **values)


def test_a_job_has_all_that_it_needs_in_its_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "lists").mkdir()
    (place / "lists" / "tiles.txt").write_text("data/test/A_x_RGB.tif\ndata/test/B_z_RGB.tif\n")
    predict(
        on_slurm(images="lists/tiles.txt", data="", city="A", gsd=0.5, out="my out", archive="a.tar", calibration="")
    )
    run = Run(place / "runs" / "predict-my-out")
    said = capsys.readouterr().out
    assert f"prediction predict-my-out begins in {run.path}: 2 images of {place}/lists/tiles.txt with" in said
    assert "predict-my-out/predict: job 17" in said
    config = run.prediction()
    assert config == replace(
        on_slurm(data="", city="A", gsd=0.5),
        job="predict-my-out", runs=str(place / "runs"), weights=str(place / "w.safetensors"), out=f"{place}/my out",
        archive=str(place / "a.tar"), images=str(run.path / "images.csv"),
    )  # fmt: skip
    assert (run.path / "images.csv").read_text().splitlines() == [
        "path,id,city,gsd",
        f"{place}/data/test/A_x_RGB.tif,A_x,,",
        f"{place}/data/test/B_z_RGB.tif,B_z,,",
    ]
    assert load_cluster(str(run.cluster_file)) == load_cluster("slurm")
    assert read_json(run.submitted) == {"predict": "17"}
    script = (place / "slurm" / "script").read_text()
    for words in ("--job-name=predict-my-out-predict", "--nodes=1", "--ntasks-per-node=4", "--gpus-per-node=4"):
        assert f"#SBATCH {words}\n" in script
    assert list(run.code.iterdir())


def test_the_script_of_a_job_is_shown_and_nothing_is_written(place: Path, capsys: Any) -> None:
    before = sorted(place.rglob("*"))
    predict(on_slurm(dry_run=True, job="mine"))
    shown = capsys.readouterr().out
    assert shown.startswith(f"prediction mine in {place}/runs/mine: 3 images of {place}/data (test) with {place}/w.saf")
    assert "#SBATCH --job-name=mine-predict\n" in shown
    assert sorted(place.rglob("*")) == before


def spoil(place: Path, what: str) -> dict[str, Any]:
    """The values of a command that must be refused since something is wrong."""
    if what == "a run":
        (place / "runs" / "r").mkdir(parents=True)
        (place / "runs" / "r" / "config.yaml").touch()
    elif what == "something":
        (place / "runs" / "r").mkdir(parents=True)
        (place / "runs" / "r" / "notes").touch()
    elif what == "a city":
        with (place / "data" / "metadata.csv").open("a") as file:
            file.write("C_x,C,0.5\n")
        with (place / "data" / "geopose_test.csv").open("a") as file:
            file.write("C_x,A_x_RGB.tif\n")
    elif what == "an image":
        (place / "data" / "test" / "A_y_RGB.tif").unlink()
    elif what == "a key":
        content = (place / "w.safetensors").read_bytes()
        (place / "w.safetensors").write_bytes(content.replace(b"use_gsd", b"use_sun"))
    return {
        "one view": {"uncertainty": True, "tta": "none"},
        "one view as trained": {"uncertainty": True},
        "a table": {"height_factor": {"C": 2.0}},
        "weights": {"weights": "v.safetensors"},
        "no weights": {"weights": "data/metadata.csv", "run": "q"},
        "no images": {"data": "", "images": "nothing/*.tif"},
        "no gsd": {"data": "", "images": "data/test"},
        "processes": {"processes": 2},
        "name": {"job": "a/b"},
        "calibration": {"calibration": "data/metadata.csv"},
    }.get(what, {})


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("weights", "weights v.safetensors do not exist|weights .*/v.safetensors do not exist"),
        ("a city", "does not know city 'C'"),
        ("an image", "A_y"),
        ("no images", "nothing/"),
        ("no gsd", "give --gsd"),
        ("processes", r"leave --processes out"),
        ("name", "run name 'a/b'"),
        ("a run", "the job's folder .*/runs/r is that of a run: choose another --job"),
        ("something", "runs/r exists but is no job's folder"),
        ("calibration", "metadata.csv cannot be read as JSON"),
        ("one view", "sees an image once has no spread"),
        ("one view as trained", "sees an image once has no spread"),
        ("a table", "neither the weights nor the images have a city 'C'"),
        ("a key", "w.safetensors are of a network that this version does not know"),
    ],
)
def test_what_can_be_known_to_be_wrong_is_refused_before_anything_is_written_or_submitted(
    place: Path, what: str, words: str
) -> None:
    values = {"job": "r", **spoil(place, what)}
    before = sorted(place.rglob("*"))
    with pytest.raises(UserError, match=words):
        predict(on_slurm(**values))
    assert [path for path in sorted(place.rglob("*")) if path not in before] in ([], [place / "slurm" / "asked"])
    assert not [words for words in fake_slurm.asked(place / "slurm") if words.startswith("sbatch")]


def test_float16_is_refused_where_there_is_no_gpu(place: Path) -> None:
    (place / "site.yaml").write_text(to_yaml(replace(load_cluster("slurm"), gpus_per_node=0)))
    with pytest.raises(UserError, match=r"precision is float16, which needs a GPU, but cluster .*site\.yaml has none"):
        predict(replace(on_slurm(precision="float16"), cluster="site.yaml"))
    assert not (place / "runs").exists()


def queue(place: Path, *ids: str, state: str = "RUNNING") -> None:
    (place / "slurm" / "queue").write_text("".join(f"{id}|{state}|None|1:00:00|N/A||x\n" for id in ids))


def submissions(place: Path) -> int:
    return sum(words.startswith("sbatch") for words in fake_slurm.asked(place / "slurm"))


def test_given_again_it_is_refused_while_the_job_is_active_and_continued_afterwards(place: Path, capsys: Any) -> None:
    predict(on_slurm())
    run = Run(place / "runs" / "predict-out")
    queue(place, "17")
    with pytest.raises(UserError, match=r"run predict-out has jobs in the queue \(17\): wait .* cancel predict-out"):
        predict(on_slurm())
    queue(place)
    run.stage_record("predict").parent.mkdir()
    write_json(run.stage_record("predict"), {"finished": True})
    predict(on_slurm(unit="m"))
    assert "prediction predict-out continues in" in capsys.readouterr().out
    assert run.prediction().unit == "m"
    assert not run.finished("predict")
    assert submissions(place) == 2
    with pytest.raises(
        UserError, match=r"job 'predict-out' writes to .*/out already: choose another --job for .*/o/out"
    ):
        predict(on_slurm(out="o/out"))


def test_the_job_is_seen_cancelled_and_resumed_by_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict(on_slurm())
    run = Run(place / "runs" / "predict-out")
    queue(place, "17")
    History(run.history).begin("predict", "17", step=0)
    (place / "out" / "A_x_VFLOW.json").touch()
    capsys.readouterr()
    status(StatusConfig(run="predict-out"))
    assert "running: 1 image predicted" in " ".join(capsys.readouterr().out.split())
    cancel(CancelConfig(run="predict-out"))
    assert "cancelled: predict (job 17); to continue: python launch.py resume predict-out" in capsys.readouterr().out
    with pytest.raises(UserError, match="run predict-out is active"):
        resume(ResumeConfig(run="predict-out"), {})
    queue(place)
    History(run.history).end("predict", "17", step=0, end="interrupted", why="cancelled", deed="leave")
    before = run.prediction()
    resume(ResumeConfig(run="predict-out"), {"time_hours": "3"})
    assert submissions(place) == 2
    assert load_cluster(str(run.cluster_file)).time_hours == 3
    assert run.prediction() == before
    log = run.jobs / "predict.17" / "0.0" / "rank0.log"
    log.parent.mkdir(parents=True)
    log.write_text("predict: 1 of 3 images\n")
    capsys.readouterr()
    logs(LogsConfig(run="predict-out"))
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("==> predict, job 17, restart 0, attempt 0")
    assert said[1:] == ["predict: 1 of 3 images"]


def test_a_job_is_continued_here_and_then_there_is_nothing_to_do(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(on_slurm())
    run = Run(place / "runs" / "predict-out")
    resume(ResumeConfig(run="predict-out", cluster="debug"), {"threads": "1"})
    predict(asked(out="one"))
    assert files(place / "out") == files(place / "one")
    assert run.finished("predict")
    assert read_json(run.stage_record("predict"))["images"] == 3
    capsys.readouterr()
    resume(ResumeConfig(run="predict-out", cluster="debug"), {})
    assert capsys.readouterr().out == f"nothing to do: prediction predict-out is finished ({place}/out)\n"
    shutil.rmtree(run.path / "stages")  # told by nobody, but all is there
    resume(ResumeConfig(run="predict-out", cluster="debug"), {"threads": "1"})
    assert run.finished("predict")


# ---- the ranks of a job


@pytest.fixture
def job(tmp_path: Path) -> Run:
    run = Run(tmp_path / "runs" / "p")
    run.path.mkdir(parents=True)
    run.prediction_file.write_text(to_yaml(asked(threads=None, out=str(tmp_path / "out"))))
    run.cluster_file.write_text(to_yaml(replace(load_cluster("slurm"), threads=None, cpus_per_process=5)))
    return run


def test_every_rank_knows_its_place_and_the_first_leaves_the_record(job: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[PredictConfig, Place]] = []

    def predict_here(config: PredictConfig, guard: Guard, place: Place) -> int:
        seen.append((config, place))
        return 3

    monkeypatch.setattr(work, "predict_here", predict_here)
    places = [Place(rank, 2, rank, "tcp://127.0.0.1:20017") for rank in (1, 0)]
    for place in places:
        assert not job.finished("predict")
        carry_out(job.path, "predict", PREDICT, place)
    assert job.finished("predict")
    assert [found for _, found in seen] == places
    assert {config.threads for config, _ in seen} == {5}


def test_a_job_of_two_ranks_of_which_one_is_killed_is_begun_again_in_its_place(
    job: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = FakeSlurm(tmp_path / "slurm", monkeypatch)
    slurm.says(line())
    asked_to = {"code": INTERRUPTED, "text": "interrupted by TERM; 1 of 3 images is predicted", "signal": "TERM"}
    slurm.attempt(137, [asked_to, None])
    slurm.attempt(0, [{"code": 0}, {"code": 0}])
    cluster = replace(load_cluster("slurm"), processes=2, gpus_per_node=2)
    Conductor(job, "predict", PREDICT, Allocation("17", 0), cluster).conduct()
    assert slurm.starts == 2
    assert {"--nodes=1", "--ntasks=2"} < set(slurm.words)
    assert slurm.environment(1)["AGL_GPUS"] == "2"
    ends = [(entry["end"], entry["deed"]) for entry in History(job.history).entries() if entry["kind"] == "end"]
    assert ends == [("crashed", "again"), ("done", "done")]


def test_long_lists_of_weights_and_unknown_homes_are_settled_too(tmp_path: Path) -> None:
    names = [f"{number}-{100 * 'a'}.safetensors" for number in range(50)]
    config = PredictConfig(weights=",".join(names), images="~nobody9/x.tif", out=str(tmp_path), cluster=300 * "c")
    settled = predictions.settled(config, Run(tmp_path / "job"))
    assert settled.weights.split(",") == [str(Path(name).absolute()) for name in names]
    assert settled.images == str(Path("~nobody9/x.tif").absolute())
    assert settled.cluster == config.cluster
