"""Which micro-batch fits, how fast it trains, and how long a recipe takes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agl_core.config import LossConfig, ModelConfig, OptimizerConfig, StageConfig, TrainConfig
from agl_core.errors import UserError
from agl_core.training import fit, fit_process
from agl_core.training.fit import Fitted, keep_promise, measure, promised
from agl_core.training.fit_bench import Bench, GpuTries, Job, Outcome, out_of_memory
from agl_core.training.fit_device import GB, Device, available, device_at_hand
from agl_core.training.fit_forecast import Pace, challenge_tiles, check_processes, forecast, usable
from agl_core.training.fit_process import CpuTries
from agl_core.training.fit_search import TooFewCropsError, largest_by_line, largest_by_trying
from agl_core.training.memory import MemoryShortageError

CPU = torch.device("cpu")


def recipe(**changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {"crop": 64, "batch": 8, "micro_batch": 4, "length": "10 steps", **changes}
    return TrainConfig(
        encoder="tu-resnet10t",
        model=ModelConfig(decoder_channels=[16, 16, 8, 8, 8]),
        stages={"first": StageConfig(**settings)},
    )


def job(**changes: Any) -> Job:
    return Job(recipe(**changes), "first", "float32", threads=1)


# --- the search


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8, 64])
@pytest.mark.parametrize("true", [0, 1, 2, 3, 5, 8, 13, 47, 63, 64, 100])
def test_doubling_and_bisection_find_the_largest_that_fits(true: int, most: int) -> None:
    tried: list[int] = []

    def fits(number: int) -> bool:
        tried.append(number)
        return number <= true

    assert largest_by_trying(fits, most) == min(true, most)
    assert len(tried) == len(set(tried)) <= 13
    assert all(1 <= number <= most for number in tried)


@pytest.mark.parametrize("most", [1, 3, 64])
@pytest.mark.parametrize("true", [0, 1, 2, 3, 5, 8, 13, 47, 63, 64, 100])
def test_a_line_through_the_tries_finds_the_largest_without_trying_one_that_does_not_fit(true: int, most: int) -> None:
    tried: list[int] = []

    def peak(number: int) -> int:
        tried.append(number)
        return 500 + 10 * number

    assert largest_by_line(peak, limit=500 + 10 * true + 5, most=most) == min(true, most)
    assert len(tried) <= 6
    if true >= 2:  # before there is a line, the first two are tried
        assert max(tried) <= true


def test_memory_that_grows_faster_than_a_line_is_found_out_step_by_step() -> None:
    tried: list[int] = []

    def peak(number: int) -> int | None:
        tried.append(number)
        return number**2 if number <= 20 else None

    assert largest_by_line(peak, limit=150, most=64) == 12
    assert max(tried) <= 30  # what the line has promised at worst, and never more than four times the last


def test_a_try_that_ran_out_of_memory_is_an_answer() -> None:
    assert largest_by_line(lambda number: None if number > 5 else 100, limit=1000, most=64) == 5
    assert largest_by_line(lambda number: None, limit=1000, most=64) == 0


def test_networks_that_cannot_train_on_one_crop_begin_with_two() -> None:
    device = Device("cuda", "a GPU", 10 * GB, 10 * GB)

    def peak(number: int) -> int | None:
        if number == 1:
            raise TooFewCropsError
        return GB if number <= 6 else None

    assert fit._search(device, peak, 64) == 6
    assert fit._search(replace(device, kind="cpu"), peak, 64) == 6
    with pytest.raises(UserError, match="give --most 2 or more"):
        fit._search(device, peak, 1)


# --- the forecast


def test_the_hours_follow_from_steps_rounds_and_pixels() -> None:
    config = recipe(crop=64, batch=32, micro_batch=8, length="100 epochs")
    config.stages["second"] = StageConfig(crop=128, batch=32, micro_batch=8, length="50 steps")
    pace = Pace(micro_batch=8, crop=64, compute=2.0, commit=0.5)
    first, second = forecast(config, pace, largest=16, processes=2, tiles=lambda stage: 320)
    assert (first.steps, first.micro_batch) == (1000, 8)
    assert first.hours == pytest.approx(1000 * (2 * 2.0 + 0.5) / 3600)  # four micro-batches for two processes
    # At twice the side only four fit, which take twice as long as eight of the smaller ones, in four rounds.
    assert (second.steps, second.micro_batch) == (50, 4)
    assert second.hours == pytest.approx(50 * (4 * 4.0 + 0.5) / 3600)
    assert pace.crops_per_second == pytest.approx(8 / 2.5)


def test_the_process_that_has_most_micro_batches_counts() -> None:
    stage = StageConfig(crop=64, batch=8, micro_batch=2)
    assert Pace(2, 64, 1.0, 0.0).step(stage, 2, processes=3) == pytest.approx(2.0)


def test_the_micro_batch_is_the_stages_own_or_the_next_divisor_that_fits_and_leaves_one_for_each() -> None:
    stage = StageConfig(batch=32, micro_batch=8)
    assert usable(stage, largest=64, processes=1) == 8
    assert usable(stage, largest=7, processes=4) == 4
    assert usable(stage, largest=64, processes=16) == 2
    stage.sync_batchnorm = True  # then every process must have as many
    assert usable(stage, largest=64, processes=3) == stage.micro_batch  # there is no such number: training says so
    assert all(stage.batch // usable(stage, 64, processes) % processes == 0 for processes in (1, 2, 4))
    stage.batch, stage.micro_batch = 24, 8
    assert usable(stage, largest=64, processes=2) == 6  # 8 would be three for two
    with pytest.raises(UserError, match="8 crops for 9 processes: give a --cluster with 8 processes or fewer"):
        check_processes(recipe(), 9)


def test_the_challenges_tiles_are_those_of_the_stages_cities_that_are_not_held_out() -> None:
    config = recipe()
    config.folds, config.fold = 40, 0
    assert challenge_tiles(config, "first") == 5923 - 148
    config.fold = -1
    assert challenge_tiles(config, "first") == 5923
    config.stages["first"].cities = "ATL,OMA"
    assert challenge_tiles(config, "first") == 704 + 1796
    config.stages["first"].cities = "XYZ"
    with pytest.raises(UserError, match=r"stages\.first\.cities has XYZ"):
        challenge_tiles(config, "first")


# --- memory that may be used


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def test_no_more_is_available_than_the_kernel_and_every_control_group_above_leave(tmp_path: Path) -> None:
    kernel = {"proc/meminfo": "MemTotal: 2000 kB\nMemAvailable: 1000 kB\nSwapFree: 9000 kB\n"}
    assert available(tree(tmp_path / "none", kernel)) == 1_024_000
    second = {
        **kernel,
        "proc/self/cgroup": "0::/jobs/one/task\n",
        "sys/fs/cgroup/jobs/one/task/memory.max": "max\n",
        "sys/fs/cgroup/jobs/one/task/memory.current": "100000\n",
        "sys/fs/cgroup/jobs/one/memory.max": "700000\n",
        "sys/fs/cgroup/jobs/one/memory.current": "300000\n",
        "sys/fs/cgroup/jobs/one/memory.stat": "anon 200000\ninactive_file 50000\n",
    }
    assert available(tree(tmp_path / "second", second)) == 700_000 - 300_000 + 50_000
    first = {
        **kernel,
        "proc/self/cgroup": "3:cpu:/elsewhere\n2:memory:/job\n",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "600000\n",
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "500000\n",
        "sys/fs/cgroup/memory/job/memory.stat": "total_inactive_file 1000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "800000\n",
    }
    assert available(tree(tmp_path / "first", first)) == 101_000


def test_what_is_asked_for_is_a_cap_and_processes_share_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agl_core.training.fit_device.available", lambda: 10 * GB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_at_hand(None).limit == 9 * GB
    assert device_at_hand(None, processes=3).limit == 3 * GB
    assert device_at_hand(2.5).limit == 2.5 * GB
    assert device_at_hand(64).limit == 9 * GB
    with pytest.raises(UserError, match="too little to try anything"):
        device_at_hand(0.01)


# --- tries


def test_what_says_that_memory_is_at_its_end_is_told_from_other_errors() -> None:
    told = MemoryShortageError("use less")
    told.__cause__ = torch.OutOfMemoryError("CUDA out of memory")
    assert out_of_memory(told)
    assert out_of_memory(MemoryError())
    assert out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert not out_of_memory(RuntimeError("shapes do not match"))
    assert not out_of_memory(UserError("unknown encoder"))


def test_a_bench_trains_the_stage_with_its_loss_its_optimiser_and_its_average() -> None:
    loss = LossConfig(agl_kind="r2", direction_kind="cosine", magnitude=0.1)
    bench = Bench(job(loss=loss, ema=0.9, start="elsewhere/last", optimizer=OptimizerConfig(lr=1e-3, resume=True)), CPU)
    assert all(bench.state.optimizer.state[p] for p in bench.state.model.parameters() if p.requires_grad)
    before = {name: value.clone() for name, value in bench.state.model.state_dict().items()}
    compute, commit = bench.run(2, steps=2, warm_up=1)
    assert compute > 0
    assert commit > 0
    assert bench.state.average is not None
    after = bench.state.model.state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    assert any(not torch.equal(value, after[name]) for name, value in bench.state.average.tensors().items())
    assert all(p.grad is None for p in bench.state.model.parameters())
    with pytest.raises(TooFewCropsError):
        Bench(job(crop=32), CPU).run(1, steps=0, warm_up=1)


def test_a_bench_makes_the_moments_without_touching_the_weights() -> None:
    first, second = Bench(job(), CPU), Bench(job(optimizer=OptimizerConfig(weight_decay=0.0)), CPU)
    for (name, one), (_, other) in zip(
        first.state.model.named_parameters(), second.state.model.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name


def test_on_a_gpu_a_try_that_does_not_fit_costs_nothing_and_the_next_one_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries = GpuTries(job(), CPU)  # the way of a GPU, on what there is
    computed = Bench.run

    def run(bench: Bench, micro_batch: int, steps: int, warm_up: int) -> tuple[float, float]:
        found = computed(bench, min(micro_batch, 2), steps, warm_up)
        if micro_batch > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return found

    monkeypatch.setattr(Bench, "run", run)
    assert [tries(number) is not None for number in (4, 5, 4)] == [True, False, True]
    monkeypatch.setattr(Bench, "run", lambda *_: (_ for _ in ()).throw(RuntimeError("a defect")))
    with pytest.raises(RuntimeError, match="a defect"):
        tries(4)
    tries.close()


class Gpu:
    """Tries on a GPU that is made up: bytes by micro-batch; a call beyond its limit does not fit."""

    limit = 0
    each, base = GB, 2 * GB

    def __init__(self, job: Job, device: torch.device) -> None:
        self.side = job.config.stages[job.stage].crop

    def __call__(self, micro_batch: int, steps: int = 0, warm_up: int = 1) -> Outcome | None:
        peak = self.base + self.each * micro_batch
        seconds = 0.1 * micro_batch if steps else 0.0
        return Outcome(peak, peak, seconds, seconds / 10) if peak <= Gpu.limit else None

    def close(self) -> None:
        pass


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], Device]:
    """A made-up GPU that has so many GB, of which so many may be used."""
    from contextlib import contextmanager

    @contextmanager
    def capped(device: Device, limit: int | None = None) -> Any:
        before, Gpu.limit = Gpu.limit, limit or device.limit
        yield
        Gpu.limit = before

    monkeypatch.setattr(Device, "capped", capped)
    monkeypatch.setattr(fit, "GpuTries", Gpu)
    return lambda memory, limit: Device("cuda", "a GPU", int(memory * GB), int(limit * GB), "570.1")


def test_on_a_gpu_the_largest_micro_batch_the_pace_of_the_stages_and_the_promise_are_found(
    gpu: Callable[[float, float], Device],
) -> None:
    told: list[str] = []
    found = measure(job(batch=32, micro_batch=8), gpu(80, 80), processes=1, most=64, steps=3, tell=told.append)
    assert (found.largest, found.bounded, found.reason) == (64, True, "")
    assert found.pace is not None
    assert (found.pace.micro_batch, found.pace.compute) == (8, pytest.approx(0.8))
    assert found.promise == fit.Promise(True, 10 * GB)
    assert "tu-resnet10t: 1 x 64 x 64 takes 3.00 GB" in told
    capped = measure(job(batch=32, micro_batch=8), gpu(80, 9.5), processes=1, most=64, steps=3, tell=told.append)
    assert (capped.largest, capped.bounded) == (7, False)
    assert capped.pace is not None
    assert capped.pace.micro_batch == 4
    assert capped.promise == fit.Promise(None, 0)
    nothing = measure(job(), gpu(80, 2.5), processes=1, most=64, steps=3, tell=told.append)
    assert nothing.largest == 0
    assert nothing.pace is None
    assert "does not fit 2.5 GB with a single crop of 64 x 64" in nothing.reason


def test_a_larger_gpu_does_not_make_32_gb_of_what_needs_more(
    gpu: Callable[[float, float], Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Gpu, "each", 4 * GB)  # 34 GB for eight
    assert keep_promise(promised(recipe(), "first"), gpu(80, 80)) == fit.Promise(False, 0)
    assert keep_promise(promised(recipe(), "first"), gpu(40, 24)) == fit.Promise(None, 0)
    asked = promised(recipe(), "first")
    assert (asked.config.stages["first"].crop, asked.precision) == (512, "float16")


# --- in a process of its own


def test_on_a_cpu_a_micro_batch_is_tried_in_a_process_that_cannot_take_more_than_it_may() -> None:
    outcome = CpuTries(job(), 4 * GB)(2, steps=1)
    assert outcome is not None
    assert GB // 10 < outcome.peak < 2 * GB
    assert outcome.compute > 0
    assert CpuTries(job(crop=512, batch=16, micro_batch=16), 6 * GB // 10)(16) is None


def test_what_the_settings_ask_for_and_the_encoder_has_not_is_said_in_a_sentence() -> None:
    config = recipe()
    config.encoder, config.gradient_checkpointing = "resnet18", True
    with pytest.raises(UserError, match="gradient checkpointing"):
        CpuTries(Job(config, "first", "float32", 1), 4 * GB)(1)


def test_a_try_that_fails_for_another_reason_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_process, "__name__", "agl_core.no_such_module")
    with pytest.raises(RuntimeError, match=r"exit code 1: .*no_such_module"):
        CpuTries(job(), GB)(1)


def test_a_try_ends_with_the_process_that_asked_for_it(tmp_path: Path) -> None:
    """However that ends: here it is killed, and could not end anything itself."""
    script = tmp_path / "asker.py"
    script.write_text(
        "from tests.training.test_fit import job\n"
        "from agl_core.training.fit_process import CpuTries\n"
        "print('asking', flush=True)\n"
        "CpuTries(job(crop=512, batch=8, micro_batch=8), 4 * 10**9)(8, steps=10000)\n"
    )
    root = Path(__file__).parents[2]
    asker = subprocess.Popen(
        [sys.executable, str(script)], cwd=root, env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert asker.stdout is not None
    assert asker.stdout.readline() == "asking\n"
    until, children = time.monotonic() + 60, list[int]()
    while not children and time.monotonic() < until:
        text = Path(f"/proc/{asker.pid}/task/{asker.pid}/children").read_text()
        children = [int(word) for word in text.split()]
        time.sleep(0.05)
    assert children
    os.kill(asker.pid, signal.SIGKILL)
    asker.wait()
    asker.stdout.close()
    while time.monotonic() < until and any(Path(f"/proc/{child}").exists() for child in children):
        time.sleep(0.1)
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_on_a_cpu_the_answer_has_been_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    class Tries(CpuTries):
        def __call__(self, micro_batch: int, steps: int = 0, warm_up: int = 1) -> Outcome | None:
            asked.append((micro_batch, steps))
            return Outcome(GB + micro_batch * GB // 10, 0, 0.5 if steps else 0.0, 0.1)

    monkeypatch.setattr(fit, "CpuTries", Tries)
    device = Device("cpu", "a CPU", 8 * GB, 2 * GB)
    found = measure(job(batch=8, micro_batch=8), device, processes=1, most=64, steps=4, tell=lambda _: None)
    assert found == Fitted(
        "tu-resnet10t", "", 10, False, Outcome(2 * GB, 0, 0.0, 0.1), Pace(8, 64, 0.5, 0.1),
        Outcome(GB + 8 * GB // 10, 0, 0.5, 0.1),
    )  # fmt: skip
    assert (10, 0) in asked
    assert asked[-1] == (8, 4)
    assert max(number for number, _ in asked) == 10
