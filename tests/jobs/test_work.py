"""A job does its work in this process, leaves its record last, and goes when it is asked to."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from agl_core.config import ModelConfig, StageConfig, TrainConfig
from agl_core.data.catalog import TileRecord
from agl_core.data.prepare import ingest
from agl_core.data.prepare.workers import _Share
from agl_core.data.store import Store
from agl_core.data.store.layout import StoreBusyError, writing_lock
from agl_core.data.tiles import write_agl, write_rgb, write_vflow
from agl_core.durable.exits import InterruptedRunError
from agl_core.errors import UserError
from agl_core.files import read_json
from agl_core.geometry import Pose
from agl_core.inference.predictor import Predictor
from agl_core.model.network import GeoposeNet
from agl_core.model.weights import save_weights
from jobs import work
from jobs.many import create_ensemble, describe_ensemble
from jobs.runs import Run, create, run_of
from jobs.stages import Place
from jobs.work import carry_out, leaving

TEST = ["A_x", "A_y", "B_z"]


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """A data set of four train tiles and three test images with truth, and settings of a run on it."""
    rng = np.random.default_rng(0)
    data = tmp_path / "data"
    train = ["A_1", "A_2", "B_1", "B_2"]
    for folder in ("train", "test", "test_truth"):
        (data / folder).mkdir(parents=True)
    for image in [*train, *TEST]:
        kind, truth = ("train", "train") if image in train else ("test", "test_truth")
        write_rgb(data / kind / f"{image}_RGB.tif", rng.integers(0, 250, (64, 64, 3)).astype(np.uint8))
        write_agl(data / truth / f"{image}_AGL.tif", rng.integers(0, 900, (64, 64)).astype(np.uint16), "cm")
        write_vflow(data / truth / f"{image}_VFLOW.json", Pose(0.7, 1.0), "cm")
    rows = "".join(f"{image},{image}_AGL.tif,{image}_VFLOW.json,{image}_RGB.tif\n" for image in train)
    (data / "geopose_train.csv").write_text("id,agl,json,rgb\n" + rows)
    (data / "geopose_test.csv").write_text("id,rgb\n" + "".join(f"{image},{image}_RGB.tif\n" for image in TEST))
    (data / "metadata.csv").write_text("id,city,gsd\n" + "".join(f"{i},{i[0]},0.5\n" for i in [*train, *TEST]))
    return TrainConfig(
        run="first", runs=str(tmp_path / "runs"), data=str(data), store=str(data / "store"), threads=1,
        stages={"a": StageConfig(), "b": StageConfig(start="a/best")},
    )  # fmt: skip


def begin(config: TrainConfig, seed: int = 0) -> Run:
    """The run of a configuration, with weights for its last stage."""
    run = run_of(config)
    create(run, config)
    torch.manual_seed(seed)
    model = GeoposeNet("tu-resnet10t", ["A", "B"], ModelConfig(decoder_channels=[16, 8, 8, 8, 8]), "none")
    save_weights(run.weights("b", "best"), model, {})
    return run


def do(run: Run, kind: str) -> bool:
    return carry_out(run.path, kind, kind, Place(0, 1, 0, None))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "about.json"}


def warn_at(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, call: int, number: int = signal.SIGTERM) -> None:
    """Have a signal come to this process before the `call`-th call of a function."""
    original: Callable[..., object] = getattr(owner, name)
    calls: list[int] = []

    def warned(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, warned)


def test_the_jobs_after_training_leave_predictions_score_and_report_with_their_records(config: TrainConfig) -> None:
    run = begin(config)
    for job in ("predict", "evaluate", "report"):
        assert not run.finished(job)
        assert do(run, job) is False
        assert run.finished(job)
    assert len(files(run.predictions)) == 6
    assert read_json(run.stage_record("predict"))["weights"] == "b/best"
    assert read_json(run.score_file)["score"] == read_json(run.stage_record("evaluate"))["score"]
    page = run.report_file.read_text()
    assert "<title>Run first</title>" in page
    assert "Score of the test images" in page


def test_an_ensemble_s_folder_is_all_that_its_jobs_need(config: TrainConfig, tmp_path: Path) -> None:
    runs = []
    for seed, name in enumerate(("q", "r")):
        config.run = name
        runs.append(begin(config, seed))
        do(runs[-1], "predict")
    folder = Run(tmp_path / "runs" / "e")
    folder.path.mkdir()
    create_ensemble(folder, describe_ensemble([config] * 2, runs))
    for job in ("ensemble", "evaluate", "report"):
        do(folder, job)
        assert folder.finished(job)
    assert len(files(folder.predictions)) == 6
    assert "score" in read_json(folder.score_file)
    page = folder.report_file.read_text()
    assert "<title>Ensemble e</title>" in page
    assert "<dt>runs</dt><dd>q, r</dd>" in page


def test_a_store_is_prepared_without_a_record_since_its_seal_is_one(config: TrainConfig) -> None:
    run = begin(config)
    do(run, "prepare")
    assert len(Store(Path(config.store)).entries) == 4
    assert not run.stage_record("prepare").exists()


@pytest.mark.parametrize("name", ["TERM", "USR2"])
def test_a_prediction_that_is_warned_leaves_between_two_images_without_a_record_and_goes_on(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run = begin(config)
    warn_at(monkeypatch, Predictor, "predict", 2, signal.Signals[f"SIG{name}"])
    with pytest.raises(InterruptedRunError, match=f"interrupted by {name}; 2 of 3 images are predicted"):
        do(run, "predict")
    assert not run.finished("predict")
    first = files(run.predictions)
    assert len(first) == 4
    monkeypatch.undo()
    do(run, "predict")
    assert first.items() < files(run.predictions).items()
    assert run.finished("predict")


def test_a_warning_that_comes_too_late_for_a_prediction_is_told(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(config)
    warn_at(monkeypatch, Predictor, "predict", 3)
    assert do(run, "predict") is True
    assert run.finished("predict")


def test_a_preparation_that_is_warned_leaves_at_once_and_the_next_one_keeps_what_it_has(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(config)
    decoded: list[str] = []
    original = ingest.encode

    def encode(record: TileRecord, unit: str, codec: str) -> object:
        decoded.append(record.id)
        return original(record, unit, codec)

    monkeypatch.setattr(work, "_cores", lambda: 1)
    monkeypatch.setattr(ingest, "encode", encode)
    warn_at(monkeypatch, ingest, "encode", 3)
    with pytest.raises(InterruptedRunError, match="interrupted by TERM; what is done is kept"):
        do(run, "prepare")
    with pytest.raises(UserError, match="not finished"):
        Store(Path(config.store))
    do(run, "prepare")
    assert len(Store(Path(config.store)).entries) == 4
    assert decoded == ["A_1", "A_2", "B_1", "B_2"]


def test_a_preparation_leaves_within_a_warning_even_if_its_decoding_processes_never_end_by_themselves(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_cores", lambda: 2)
    monkeypatch.setattr(ingest, "encode", hang)
    warn_at(monkeypatch, _Share, "answer", 1)
    with pytest.raises(InterruptedRunError, match="interrupted by TERM; what is done is kept"):
        do(begin(config), "prepare")
    assert not multiprocessing.active_children()


def hang(record: object, unit: str, codec: str) -> None:
    while True:
        signal.pause()


def test_a_store_that_a_job_prepares_has_the_codec_that_the_run_asks_for(config: TrainConfig) -> None:
    for codec in ("raw", "zstd"):
        config.run, config.store, config.codec = codec, str(Path(config.store).with_name(codec)), codec
        do(begin(config), "prepare")
        assert Store(Path(config.store)).codec == codec


def test_a_store_that_another_job_is_writing_is_waited_for(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = begin(config), Path(config.store)
    folder.mkdir()
    other = writing_lock(folder)
    other.__enter__()
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            other.__exit__(None, None, None)

    monkeypatch.setattr(work.time, "sleep", sleep)
    do(run, "prepare")
    assert len(waits) == 2
    assert capsys.readouterr().out.count("waiting: another process prepares the store") == 1
    assert len(Store(folder).entries) == 4


def test_who_prepares_by_hand_is_still_told_that_another_does(tmp_path: Path) -> None:
    with writing_lock(tmp_path), pytest.raises(StoreBusyError, match="wait until it ends"), writing_lock(tmp_path):
        pass


@pytest.mark.parametrize("kind", ["evaluate", "report"])
def test_a_short_job_that_is_warned_leaves_nothing_half_done(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from agl_core.scoring import evaluate as evaluating
    from jobs import reports

    run = begin(config)
    do(run, "predict")
    before = sorted(run.path.rglob("*"))
    warn_at(monkeypatch, *{"evaluate": (evaluating, "write_json"), "report": (reports, "_write")}[kind], 1)
    with pytest.raises(InterruptedRunError):
        do(run, kind)
    assert sorted(run.path.rglob("*")) == before
    do(run, kind)
    assert run.finished(kind)


def test_only_the_first_signal_ends_the_work_and_the_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1)]
    cleaned: list[int] = []

    def work_on() -> None:
        try:
            os.kill(os.getpid(), signal.SIGUSR2)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append(1)

    with pytest.raises(InterruptedRunError) as left, leaving():
        work_on()
    assert left.value.signal == "USR2"
    assert cleaned == [1]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1)] == before


def test_slurm_s_share_of_a_node_bounds_the_decoding_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "cores", lambda: 64)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert work._cores() == 64
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    assert work._cores() == 8
