"""Memory that does not suffice: it is said what to lower, and what was done before is kept."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from agl_core.config import StageConfig, TrainConfig
from agl_core.durable.exits import PEER_LOST, PeerLostError
from agl_core.durable.retention import list_checkpoints
from agl_core.errors import UserError
from agl_core.inference.memory import is_shortage
from agl_core.inference.predictor import Predictor
from agl_core.model.network import GeoposeNet, Output
from agl_core.model.precision import Precision
from agl_core.training.batchnorm import RunningStatistics
from agl_core.training.memory import (
    MemoryShortageError,
    advice,
    smaller_crop,
    smaller_micro_batch,
    telling,
)
from agl_core.training.parallel import Parallel
from agl_core.training.state import TrainingState
from agl_core.training.step import OptimizerStep
from agl_core.training.trainer import train_stage
from tests.training.faults import PROCESSES, assert_same_result, kinds, small, train

CPU = torch.device("cpu")
CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 31.73 GiB of which 1.20 GiB is"
MISTAKE = 2


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(CUDA),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 2147483648 bytes."),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: out of memory"),
        MemoryError(),
    ],
    ids=str,
)
def test_what_says_that_memory_is_short_is_known(error: Exception) -> None:
    assert is_shortage(error)
    with pytest.raises(MemoryShortageError) as told, telling(lambda asked: f"asked for {asked!r}"):
        raise error
    assert str(told.value) == ("asked for '2.00 GiB'" if " to allocate " in str(error) else "asked for ''")
    assert told.value.__cause__ is error


@pytest.mark.parametrize("error", [RuntimeError("shape '[2]' is invalid"), PeerLostError("gone"), ValueError("memory")])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error), match=re.escape(str(error))), telling(str):
        raise error


@pytest.mark.parametrize(
    ("batch", "micro_batch", "crop", "smaller"),
    [(32, 8, 512, 4), (32, 32, 512, 16), (12, 6, 512, 4), (12, 4, 64, 3), (7, 7, 64, 1), (8, 1, 64, None),
     (8, 2, 32, None), (9, 9, 32, 3)],
)  # fmt: skip
def test_the_next_smaller_micro_batch_divides_the_batch(
    batch: int, micro_batch: int, crop: int, smaller: int | None
) -> None:
    """And with crops of 32, two of them are the least that batch norm can do with."""
    assert smaller_micro_batch(StageConfig(batch=batch, micro_batch=micro_batch, crop=crop)) == smaller


def test_with_synchronised_norms_it_gives_all_processes_as_many() -> None:
    stage = StageConfig(batch=48, micro_batch=12, sync_batchnorm=True)
    assert smaller_micro_batch(stage, processes=4) == 6  # not 8, which would be 6 micro-batches for 4 processes
    assert smaller_micro_batch(stage, processes=3) == 8
    assert smaller_micro_batch(stage, processes=1) == 8


def test_the_next_smaller_crop_is_a_multiple_of_the_stride() -> None:
    sides = {512: 384, 384: 288, 224: 160, 96: 64, 64: 32, 32: None}
    assert {crop: smaller_crop(StageConfig(crop=crop, micro_batch=2)) for crop in sides} == sides
    assert smaller_crop(StageConfig(crop=64, micro_batch=1)) is None


class Network(nn.Module):
    has_gradient_checkpointing = True
    gradient_checkpointing = False


def test_it_is_said_what_lets_the_run_go_on_and_what_begins_a_new_one() -> None:
    stage = StageConfig(batch=32, micro_batch=8, crop=512)
    assert advice(stage, "pretrain", nn.Linear(1, 1), CPU, 1, "") == (
        "this machine has too little memory for micro-batches of 8 crops of 512 x 512 pixels: to go on with this run "
        "use machines with more memory, or start a new --run with stages.pretrain.micro_batch=4 (it is 8; the batch "
        "stays 32) or with stages.pretrain.crop=384 (it is 512)"
    )
    network = Network()
    told = advice(stage, "pretrain", network, CPU, 1, "2.00 GiB")
    assert "pixels, and 2.00 GiB more could not be had: to go on" in told
    assert "give the same command with gradient_checkpointing=true (about a third slower) or use machines" in told
    network.gradient_checkpointing = True
    assert "gradient_checkpointing" not in advice(stage, "pretrain", network, CPU, 1, "")
    least = advice(StageConfig(batch=2, micro_batch=2, crop=32), "a", network, CPU, 1, "")
    assert least.endswith("to go on with this run use machines with more memory")


def test_a_gpu_is_named_with_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, total_memory = "Tesla V100", 32 * 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties())
    told = advice(StageConfig(), "a", nn.Linear(1, 1), torch.device("cuda", 0), 1, "")
    assert told.startswith("Tesla V100 (32.0 GiB) has too little memory for micro-batches of 8 crops of 512 x 512")
    assert "use GPUs with more memory" in told


class Full:
    """Memory is short in forward pass number `at` (from 1) of the training of this process."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int) -> None:
        real, passes = GeoposeNet.forward, [0]

        def forward(network: GeoposeNet, *args: Any) -> Any:
            passes[0] += network.training
            if passes[0] == at and network.training:
                raise torch.OutOfMemoryError(CUDA)
            return real(network, *args)

        patch.setattr(GeoposeNet, "forward", forward)


def test_what_was_done_is_saved_and_the_run_goes_on_as_if_nothing_had_been(
    tiny_store: Path, tmp_path: Path, undisturbed: Path
) -> None:
    settings = small(tiny_store)
    settings.checkpoint.every = "100 steps"
    with pytest.MonkeyPatch.context() as patch:
        Full(patch, 6)  # the second micro-batch of the third step
        with pytest.raises(UserError) as refusal:
            train(settings, tmp_path)
    told = str(refusal.value)
    assert "micro-batches of 2 crops of 64 x 64 pixels, and 2.00 GiB more could not be had: to go on with" in told
    assert "stages.first.micro_batch=1 (it is 2; the batch stays 4)" in told
    assert told.endswith("; the state after step 2 is saved")
    (event,) = kinds(tmp_path, "refusal")
    assert (event["step"], event["saved"]) == (2, 2)
    assert told.startswith(event["text"])
    assert train(settings, tmp_path) == [3, 4, 5]
    assert_same_result(tmp_path, undisturbed)


def test_in_the_first_step_there_is_nothing_to_save(tiny_store: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Full(patch, 1)
        with pytest.raises(UserError, match=r"; there was nothing to save$"):
            train(small(tiny_store), tmp_path)
    assert list_checkpoints(tmp_path / "checkpoints" / "first") == []


def test_no_room_for_the_moments_is_a_shortage_too(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that was taken in part must not be saved."""

    def step(*args: Any) -> None:
        raise torch.OutOfMemoryError(CUDA)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(UserError, match=r"too little memory for micro-batches of 2 .* there was nothing to save$"):
        train(small(tiny_store), tmp_path)
    assert list_checkpoints(tmp_path / "checkpoints" / "first") == []


@pytest.mark.parametrize(("micro_batch", "images"), [(1, 1), (2, 2), (4, 2)])
def test_the_pass_before_the_first_step_takes_no_more_than_a_step(
    micro_batch: int, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, bool]] = []

    class Pair(Parallel):
        def wrap(self, model: nn.Module) -> nn.Module:
            return model

    def forward(network: GeoposeNet, image: torch.Tensor, *_: Any) -> Output:
        seen.append((len(image), torch.is_autocast_enabled("cpu")))
        live = network.agl_head.weight.sum()
        return Output(live.expand(1), live.expand(1, 3))

    model = GeoposeNet("tu-test_efficientnet", ("AAA",))
    monkeypatch.setattr(GeoposeNet, "forward", forward)
    state = TrainingState(
        model, torch.optim.AdamW(model.parameters()), torch.amp.GradScaler("cpu", enabled=False),
        RunningStatistics(model),
    )  # fmt: skip
    stage = StageConfig(crop=64, batch=8, micro_batch=micro_batch)
    OptimizerStep(state, stage, 0, 0, Precision.choose("bfloat16", torch.device("cpu")), Pair(0, 2))
    assert seen == [(images, True)]


def test_no_room_for_the_network_is_a_shortage_too(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def to(*args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError(CUDA)

    monkeypatch.setattr(GeoposeNet, "to", to)
    with pytest.raises(UserError, match=r"cpu has too little memory for the weights and moments of 'eff.*\(2.00 GiB"):
        train(small(tiny_store), tmp_path)


def test_no_room_for_a_whole_image_is_told_and_what_was_done_is_saved(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict(*args: Any) -> None:
        raise torch.OutOfMemoryError(CUDA)

    monkeypatch.setattr(Predictor, "predict", predict)
    settings = small(tiny_store, validate=True)
    with pytest.raises(UserError, match=r"cpu has too little memory to validate on tile \w+, 80 x 130 pixels at once"):
        train(settings, tmp_path)
    (event,) = kinds(tmp_path, "refusal")
    assert event["saved"] == event["step"] > 0
    monkeypatch.undo()
    train(settings, tmp_path)
    assert kinds(tmp_path, "finish")


def _rank(settings: TrainConfig, run_dir: Path, rank: int, victims: list[int]) -> None:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        if rank in victims:
            Full(patch, 1 + 2 * 2 + 1)  # after the warm-up: the first of two micro-batches of the third step
        try:
            with Parallel(rank, 2, rank, f"file://{run_dir}/meeting") as parallel:
                train_stage(settings, "first", run_dir, parallel)
        except UserError as error:
            (run_dir / f"said.{rank}").write_text(str(error))
            sys.exit(MISTAKE)
        except PeerLostError as error:
            (run_dir / f"said.{rank}").write_text(str(error))
            sys.exit(PEER_LOST)


@pytest.mark.parametrize("victims", [[0], [1], [0, 1]], ids=str)
def test_the_others_do_not_wait_for_one_whose_memory_is_short(
    tiny_store: Path, tmp_path: Path, victims: list[int]
) -> None:
    """They have no reason of their own, and its reason is the one that counts: see the judges of ranks' ends."""
    settings = small(tiny_store)
    settings.checkpoint.every = "100 steps"
    for stage in settings.stages.values():
        stage.batch = 8
    ranks = [PROCESSES.Process(target=_rank, args=(settings, tmp_path, rank, victims)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(200)
    assert [process.exitcode for process in ranks] == [MISTAKE if r in victims else PEER_LOST for r in range(2)]
    for rank in range(2):
        said = (tmp_path / f"said.{rank}").read_text()
        assert ("too little memory" in said) == (rank in victims), said
        assert said.endswith("the state after step 2 is saved")
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints" / "first")] == ["step_00000002"]
