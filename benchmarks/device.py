"""One optimiser step on the device at hand, a GPU or else the CPU, in all ways that this project has for it.

Every contender is the step of the trainer (`OptimizerStep`) with one setting changed: the optimiser's kernels, the
memory layout, the precision, gradient checkpointing. What is not to be had here is left out. Beside the times:

- what a step takes of memory, with gradient checkpointing and without;
- a run in mixed precision that is killed and goes on from its checkpoint, against the same run undisturbed, and that
  against itself once more: how far the losses differ (on a CPU they may not at all);
- the share of the time that steps wait for data, with the augmentation of the recipe kbrodt;
- on a GPU: what `launch.py fit` finds for the four large encoders, and whether 8 of their crops of 512 x 512 in float16
  fit 32 GB, which torch is held to.

`--record` keeps the result in `benchmarks/results/`, by the device's name.
"""

import json
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing, redirect_stderr
from dataclasses import asdict, dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

if not __package__:  # run as a file: Python then looks for modules in this folder, not in the one above
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agl_core.config import OptimizerConfig, TrainConfig
from agl_core.machine import cores
from agl_core.model.network import GeoposeNet
from agl_core.reporting.events import read_events
from agl_core.training.apex import missing
from agl_core.training.fit import choose_precision, measure, tries_on
from agl_core.training.fit_bench import Bench, Job, out_of_memory
from agl_core.training.fit_device import GB, Device, device_at_hand
from agl_core.training.parallel import Parallel, default_threads
from agl_core.training.trainer import StepReport, train_stage
from benchmarks import table, training
from benchmarks.harness import (
    Arguments,
    Contender,
    Promise,
    Table,
    at_most,
    check_json,
    compare,
    parser,
    report,
)
from benchmarks.training import CITIES, STAGE, difference
from jobs.settings import train_config

RESULTS = Path(__file__).resolve().parent / "results"
BASELINE = "as it is"
LARGE = ("efficientnet-b6", "efficientnet-b7", "senet154", "tu-tf_efficientnetv2_l")
MOST_WAIT, MOST_MEMORY = 1.0, 32.0  # what is promised: per cent of the time, GB


@dataclass(frozen=True)
class Case:
    """What is trained: micro-batches of `batch` crops of `crop` x `crop` pixels, one a step; `resume` steps of the run
    that is killed half-way, `feed` steps on a store of `tiles` tiles."""

    encoder: str
    crop: int
    batch: int
    rounds: int
    resume: int
    feed: int
    tiles: int
    cpu_threads: int | None = None

    def threads(self, device: Device) -> int:
        """CPU threads: all where they compute, few where a GPU does."""
        return self.cpu_threads or default_threads() if device.kind == "cpu" else 2

    def config(self, device: Device, store: str = "", precision: str = "auto") -> TrainConfig:
        """The settings of its runs, and of its steps."""
        same = training.Case(self.encoder, self.crop, self.batch, self.batch, self.resume // 2, 1, self.tiles)
        config = replace(same.config(Path(store)), precision=precision, threads=self.threads(device))
        config.stages[STAGE].optimizer = OptimizerConfig()
        return config


QUICK = Case("tu-resnet10t", crop=64, batch=4, rounds=2, resume=4, feed=6, tiles=8, cpu_threads=1)
ON_CPU = Case("tu-resnet18", crop=256, batch=4, rounds=7, resume=6, feed=20, tiles=32)
ON_GPU = Case("tu-tf_efficientnetv2_l", crop=512, batch=8, rounds=20, resume=40, feed=300, tiles=64)


class Variant(NamedTuple):
    """One way to do a step, by the settings of a run."""

    name: str
    precision: str
    optimizer: str = "adamw"
    channels_last: bool = True
    checkpointing: bool = False

    def job(self, case: Case, device: Device) -> Job:
        """What is to be measured."""
        config = case.config(device)
        config.channels_last, config.gradient_checkpointing = self.channels_last, self.checkpointing
        config.stages[STAGE].optimizer.name = self.optimizer
        return Job(config, STAGE, self.precision, case.threads(device))


def variants(case: Case, device: Device) -> tuple[list[Variant], list[str]]:
    """The contenders, the baseline first, and what is not among them and why."""
    own = choose_precision("auto", device)
    found = [Variant(BASELINE, own), Variant("AdamW, not fused", own, optimizer="adamw-plain")]
    left_out = []
    if reason := missing(device.torch):
        left_out.append(f"apex: {reason}")
    else:
        found.append(Variant("apex FusedAdam", own, optimizer="apex"))
    found.append(Variant("not channels_last", own, channels_last=False))
    others = ("float32", "float16", "bfloat16") if device.kind == "cuda" else ("float32", "bfloat16")
    if device.kind == "cpu":
        left_out.append("float16: needs a GPU")
    elif not torch.cuda.is_bf16_supported(including_emulation=False):
        others = ("float32", "float16")
        left_out.append("bfloat16: this GPU has none")
    found += [Variant(name, name) for name in others if name != own]
    if GeoposeNet(case.encoder, CITIES).has_gradient_checkpointing:
        found.append(Variant("gradient checkpointing", own, checkpointing=True))
    else:
        left_out.append(f"gradient checkpointing: {case.encoder} has none")
    return found, left_out


def contenders(case: Case, device: Device, ways: Sequence[Variant]) -> tuple[dict[str, Contender], list[str]]:
    """A step of each of `ways`, each on a state of its own; and those that do not fit the device beside the others."""
    found: dict[str, Contender] = {}
    left_out = []
    for way in ways:
        try:
            one = Bench(way.job(case, device), device.torch).steps(case.batch)
            one()
            found[way.name] = _discarding(one)
        except Exception as error:
            if not out_of_memory(error) or way.name == BASELINE:
                raise
            left_out.append(f"{way.name}: does not fit beside the others")
    return found, left_out


def _discarding(one: Callable[[], object]) -> Contender:
    def step() -> None:
        one()

    return step


def memory_table(case: Case, device: Device, ways: Sequence[Variant]) -> Table:
    """Peak memory of a step, of the baseline and with gradient checkpointing."""
    rows = []
    for way in ways:
        if way.name != BASELINE and not way.checkpointing:
            continue
        job = way.job(case, device)
        with closing(tries_on(device, job)) as tries:
            outcome = tries(case.batch)
        rows.append([way.name, f"{outcome.peak / GB:.2f}" if outcome is not None else "does not fit"])
    what = "reserved by torch on the GPU" if device.kind == "cuda" else "of a process that does nothing else"
    return Table("peak memory of a step", ["contender", "GB"], rows, what)


class StopError(Exception):
    """Stands for a kill between two steps."""


def train(config: TrainConfig, run_dir: Path, device: Device, stop_after: int = 0) -> list[float]:
    """Train in this process, to the end or until a step is done; the losses of all steps that were done."""
    losses: list[float] = []

    def observe(step: StepReport) -> None:
        losses.append(float(step.losses[0]))
        if step.step == stop_after:
            raise StopError

    try:
        with redirect_stderr(StringIO()):
            parallel = Parallel()
            parallel.device = device.torch
            with parallel:
                train_stage(config, STAGE, run_dir, parallel, observe)
    except StopError:
        pass
    return losses


def resume_table(case: Case, device: Device, folder: Path, store: Path) -> tuple[Table, float]:
    """How far the losses of a run in mixed precision differ after it was killed and continued; that as a number."""
    precision = choose_precision("auto", device) if device.kind == "cuda" else "bfloat16"
    config = case.config(device, str(store), precision)
    config.stages[STAGE].length, config.workers = f"{case.resume} steps", 0
    whole = train(config, folder / "whole", device)
    again = train(config, folder / "again", device)
    half = case.resume // 2
    train(config, folder / "killed", device, stop_after=half + 1)
    resumed = train(config, folder / "killed", device)
    assert len(resumed) < len(whole), "the run has not gone on from its checkpoint"
    rest = whole[-len(resumed) :]
    found = difference(resumed, rest)
    rows = [
        ["killed and continued", precision, f"{len(resumed)} of {case.resume}", f"{found:.1e}"],
        ["undisturbed, again", precision, f"{case.resume}", f"{difference(again, whole):.1e}"],
    ]
    columns = ["run", "precision", "steps compared", "largest relative difference of the losses"]
    return Table("losses against those of an undisturbed run", columns, rows), found


def waiting(case: Case, device: Device, folder: Path, store: Path, workers: int) -> float:
    """The share of the time, in per cent, that the steps after the first have waited for their data."""
    config = case.config(device, str(store))
    config.stages[STAGE].length, config.workers, config.log_every = f"{case.feed} steps", workers, 10**9
    config.stages[STAGE].augment = train_config({"recipe": "kbrodt"}).stages["pretrain"].augment
    config.checkpoint.every = f"{case.feed} steps"
    train(config, folder / "feed", device)
    last = [event for event in read_events(folder / "feed" / "events.jsonl") if event["kind"] == "step"][-1]
    return 100 * float(last["data_wait"])


def fit_table(device: Device) -> tuple[Table, list[Promise]]:
    """What the large encoders take, in the first stage of the recipe kbrodt under float16; and the promise of 32 GB."""
    rows, promises = [], []
    for encoder in LARGE:
        config = replace(train_config({"recipe": "kbrodt"}), encoder=encoder)
        job = Job(config, "pretrain", "float16", threads=2)
        found = measure(job, device, 1, most=64, steps=10, tell=lambda text: print(text, file=sys.stderr, flush=True))
        what = f"{encoder}: 8 crops of 512 x 512 in float16"
        if found.promise is not None and found.promise.held:
            promises.append(at_most(what, found.promise.peak / GB, MOST_MEMORY, "GB"))
        elif found.promise is not None and found.promise.held is False:
            promises.append(Promise(what, f"at most {MOST_MEMORY:g} GB", "more", False))
        if found.pace is None or found.of_largest is None or found.of_pace is None:
            rows.append([encoder, "none", "", "", "", ""])
            continue
        largest = f"{found.largest}" + (" or more" if found.bounded else "")
        sizes = [f"{outcome.peak / GB:.1f}" for outcome in (found.of_largest, found.of_pace)]
        rows.append([
            encoder, largest, sizes[0], f"{found.pace.micro_batch}", sizes[1], f"{found.pace.crops_per_second:.1f}"
        ])  # fmt: skip
    columns = ["encoder", "largest micro-batch", "its GB", "micro-batch", "GB", "crops/s"]
    return Table("training crops of 512 x 512 in float16", columns, rows), promises


def about(device: Device) -> dict[str, Any]:
    """Device, driver and versions."""
    libraries = (
        {"cuda": torch.version.cuda, "cudnn": cast(Any, torch.backends.cudnn).version()}
        if device.kind == "cuda"
        else {}
    )
    return {"device": device.name, "gb": round(device.memory / GB, 1), "driver": device.driver, **libraries}


def record(result: dict[str, Any], folder: Path) -> list[Path]:
    """Keep a result as JSON and as a page, by the name of its device; the files."""
    device = result["settings"]["about"]
    name = re.sub(r"[^a-z0-9]+", "-", device["device"].lower()).strip("-")
    told = ", ".join(f"{key} {value}" for key, value in device.items() if value)
    page = f"# {device['device']}\n\n{told[:1].upper()}{told[1:]}.\n\n{table.section('device', result)}".rstrip() + "\n"
    files = [folder / f"{name}.json", folder / f"{name}.md"]
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in zip(files, (json.dumps(result, indent=1) + "\n", page), strict=True):
        path.write_text(text, encoding="utf-8")
    return files


def run(case: Case, device: Device, options: Arguments) -> None:
    """Everything; prints it and writes the JSON file that was asked for."""
    ways, left_out = variants(case, device)
    tables, promises = [memory_table(case, device, ways)], list[Promise]()
    steps, too_large = contenders(case, device, ways)
    comparison = compare(steps, case.rounds, BASELINE)
    steps.clear()  # their states take the memory that the runs need
    with tempfile.TemporaryDirectory(prefix="device-") as name:
        folder = Path(name)
        store = training.write_store(folder / "store", case.tiles, 2 * case.crop)
        compared, found = resume_table(case, device, folder, store)
        workers = max(min(cores() - 1, 14), 1)
        share = waiting(case, device, folder, store, workers)
    tables.append(compared)
    if device.kind == "cpu":
        promises.append(
            at_most("losses of a run that was killed and continued, largest difference", 100 * found, 0, "%")
        )
    promises.append(at_most("time that steps wait for data", share, MOST_WAIT, "%", digits=2))
    left_out += too_large
    if device.kind == "cuda" and not options.quick:
        fitted, held = fit_table(device)
        tables.append(fitted)
        promises += held
    else:
        left_out.append("fit of the large encoders, and whether they keep to 32 GB: needs a GPU and no --quick")
    tables.append(Table("not run here", ["what", "why"], [list(one.split(": ", 1)) for one in left_out]))
    title = f"one optimiser step of {case.encoder}, {case.batch} crops of {case.crop} x {case.crop}, on {device.name}"
    settings = {**asdict(case), "threads": case.threads(device), "workers": workers, "about": about(device)}
    report(comparison, title, settings, options, tables, promises)


def main(argv: Sequence[str] | None = None) -> None:
    own = parser("One optimiser step on the device at hand, in all ways that there are, and what it takes.")
    own.add_argument("--record", action="store_true", help=f"keep the result in {RESULTS.parent.name}/{RESULTS.name}/")
    given = own.parse_args(argv)
    options = check_json(own, given)
    if given.record and options.quick:
        own.error("--record is for a whole run: leave --quick away")
    device = device_at_hand(None)
    case = QUICK if options.quick else ON_GPU if device.kind == "cuda" else ON_CPU
    torch.set_num_threads(case.threads(device))
    with tempfile.TemporaryDirectory(prefix="device-") as name:
        path = options.json or Path(name) / "result.json"
        run(case, device, options._replace(json=path))
        if given.record:
            for file in record(json.loads(path.read_text(encoding="utf-8")), RESULTS):
                print(f"kept in {file}")


if __name__ == "__main__":
    main()
