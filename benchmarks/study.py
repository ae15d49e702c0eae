"""Controlled experiments: the same short training under a few settings ("arms"), several seeds each, on unseen places.

A study renders its own built-in world. Every arm trains with the same seeds, and with one seed all arms begin with the
same weights, see the same tiles in the same order and draw the same random numbers, so that their differences can be
taken seed by seed. Of what is trained the last weights of every stage are scored, so nothing is chosen by a score; the
tiles that they are scored on show places of which no view was trained on or validated on.

What is in the folder of a study:

| path | content |
|---|---|
| study.json | the settings; a folder of other settings is refused |
| world/, unseen/ | the data set, and its test split as a data set of its own, each with its store |
| runs/ARM-SEED/ | a run of the trainer as any other, with log.txt |
| results/ARM-SEED.json | figures on the unseen tiles and the learning curve, as the last act of a run |

A run has one thread, so its result depends neither on the number of cores nor on how many runs go side by side. One
that was killed at any moment is continued to the same bits when the command is given again.
"""

import json
import math
import multiprocessing
import os
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from agl_core.config import PrepareConfig, TrainConfig, WorldConfig
from agl_core.data.catalog import read_catalog
from agl_core.data.prepare.ingest import prepare
from agl_core.data.sampling import entry_pose
from agl_core.data.store import Store
from agl_core.errors import UserError
from agl_core.files import read_json, write_json, write_text
from agl_core.inference.predictor import Predictor
from agl_core.model.weights import load_weights
from agl_core.reporting.events import read_events
from agl_core.scoring.score import ImageResult, score
from agl_core.scoring.sums import image_sums
from agl_core.training.parallel import Parallel
from agl_core.training.trainer import StepReport, train_stage
from agl_core.world.dataset import render_world
from jobs.settings import apply_mapping, flat, train_config

INTERVAL = 60.0
"""Seconds between two lines of progress."""


@dataclass(frozen=True)
class Arm:
    """One setting of a study.

    title: what it is, for tables. changes: values of the configuration, nested as in a recipe. inside: what its runs
    take place in, a function of a module (it is sent to other processes). seeds: no more runs of it than this, for one
    that only says where the others stand.
    """

    name: str
    title: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    inside: Callable[[], AbstractContextManager[None]] = nullcontext
    seeds: int | None = None


@dataclass(frozen=True)
class Study:
    """What is compared.

    world: the data set, without its folder. base: what all arms have in common, as in a recipe, over the recipe
    `recipe`, whose stages it replaces. arms: the settings. weights: which weights of each stage are scored, by the name
    of their file. pairs: which differences are of interest, each of (arm, weights) from (arm, weights).
    """

    name: str
    world: WorldConfig
    recipe: str
    base: Mapping[str, Any]
    arms: tuple[Arm, ...]
    weights: tuple[str, ...] = ("last",)
    pairs: tuple[tuple[tuple[str, str], tuple[str, str]], ...] = ()

    def config(self, arm: Arm, seed: int, out: Path) -> TrainConfig:
        """The configuration of one run."""
        recipe = replace(train_config({"recipe": self.recipe}), stages={})
        config = apply_mapping(recipe, self.base, f"study {self.name}")
        config = apply_mapping(config, arm.changes, f"arm {arm.name}")
        return replace(config, seed=seed, data=str(out / "world"), workers=0, threads=1, precision="float32")


@dataclass(frozen=True)
class Job:
    """One run of a study, in the study's folder `out`."""

    study: Study
    out: Path
    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """Of the run, and of its result."""
        return f"{self.arm.name}-{self.seed}"

    @property
    def run_dir(self) -> Path:
        """Folder of the run."""
        return self.out / "runs" / self.name

    @property
    def result(self) -> Path:
        """File of the result."""
        return self.out / "results" / f"{self.name}.json"

    @property
    def steps(self) -> int:
        """Optimiser steps of all stages."""
        return sum(lengths(self.study.config(self.arm, self.seed, self.out)).values())

    def steps_done(self) -> int:
        """How far the run is, by its events."""
        if self.result.is_file():
            return self.steps
        done: dict[str, int] = {}
        for event in read_events(self.run_dir / "events.jsonl"):
            done[event["stage"]] = event.get("step", 0)
        return sum(done.values())


def demo_stage(quick: bool) -> dict[str, Any]:
    """The values of the demo recipe's stage, which most studies have in common; `quick`: with tiny batches."""
    stage = asdict(train_config({"recipe": "demo"}).stages["train"])
    return {**stage, "crop": 32, "batch": 2, "micro_batch": 2} if quick else stage


def lengths(config: TrainConfig) -> dict[str, int]:
    """Steps of each stage; a study counts in steps."""
    return {name: int(stage.length.removesuffix(" steps")) for name, stage in config.stages.items()}


def run_study(study: Study, out: Path, seeds: int, processes: int) -> list[dict[str, Any]]:
    """Do what is left of a study in the folder `out`, with `processes` runs side by side.

    Returns:
        The results, in order of seed and arm.

    Raises:
        UserError: the folder holds a study of other settings, or a run ends with a sentence of the trainer.
    """
    out = out.absolute()
    _claim(study, out)
    _make_data(study, out)
    jobs = [Job(study, out, arm, seed) for seed in range(seeds) for arm in study.arms if seed < (arm.seeds or seeds)]
    todo = [job for job in jobs if not job.result.is_file()]
    if todo:
        _run_all(jobs, todo, processes)
    return [read_json(job.result) for job in jobs]


def _claim(study: Study, out: Path) -> None:
    """Note the settings, or compare them with those that the folder was begun with."""
    arms = {arm.name: identity(study.config(arm, 0, Path())) for arm in study.arms}
    world = replace(study.world, workers=None)
    settings = json.loads(json.dumps({"study": study.name, "world": asdict(world), "arms": arms}))
    path = out / "study.json"
    if not path.is_file():
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
    elif read_json(path) != settings:
        raise UserError(f"{out} holds a study of other settings: choose another folder with --out")


def identity(config: TrainConfig) -> dict[str, Any]:
    """The values that make a run what it is, by dotted key."""
    return {".".join(path): value for path, value, of_identity in flat(config) if of_identity}


def _make_data(study: Study, out: Path) -> None:
    """Render the world, and prepare the stores of what is trained on and of what is scored."""
    world, unseen = out / "world", out / "unseen"
    render_world(replace(study.world, out=str(world)))
    (unseen / "train").mkdir(parents=True, exist_ok=True)
    rows = ["id,agl,json,rgb"]
    for record in read_catalog(world, "test"):
        truth = f"../../world/test_truth/{record.id}"
        rows.append(f"{record.id},{truth}_AGL.tif,{truth}_VFLOW.json,../../world/test/{record.rgb.name}")
    write_text(unseen / "geopose_train.csv", "".join(f"{row}\n" for row in rows))
    write_text(unseen / "metadata.csv", (world / "metadata.csv").read_text(encoding="utf-8"))
    for data in (world, unseen):
        if not (data / "prepared").is_file():
            prepare(PrepareConfig(data=str(data), codec="raw", unit=study.world.unit, workers=study.world.workers))
            write_text(data / "prepared", "")


def _run_all(jobs: Sequence[Job], todo: Sequence[Job], processes: int) -> None:
    """Run what is to do in processes of their own, with a line on the progress now and then."""
    total, began, before = sum(job.steps for job in jobs), time.monotonic(), sum(job.steps_done() for job in jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(todo)), context) as pool:
        waiting: set[Future[None]] = {pool.submit(run_job, job, os.getpid()) for job in todo}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=INTERVAL, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                steps = sum(job.steps_done() for job in jobs)
                rate = (steps - before) / (time.monotonic() - began)
                finished = sum(job.result.is_file() for job in jobs)
                left = f", {(total - steps) / rate / 60:.0f} minutes left" if rate > 0 else ""
                print(
                    f"{jobs[0].study.name}: {finished} of {len(jobs)} runs, {steps} of {total} steps, "
                    f"{rate:.2f} steps/s{left}",
                    flush=True,
                )
        except BrokenProcessPool:
            raise UserError(
                f"a run of {jobs[0].out} was killed, perhaps for want of memory: give the command again to continue"
            ) from None
        finally:  # what is still running after an error is continued by the next start
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()


def run_job(job: Job, parent: int) -> None:
    """Train a run to its end and score it; leaves as soon as the process `parent` is gone."""
    config = job.study.config(job.arm, job.seed, job.out)
    job.run_dir.mkdir(parents=True, exist_ok=True)

    def observe(_: StepReport) -> None:
        if os.getppid() != parent:
            raise SystemExit("the study was ended")

    log = (job.run_dir / "log.txt").open("a", encoding="utf-8")
    with log, redirect_stderr(log), job.arm.inside(), Parallel() as parallel:
        for stage in config.stages:
            if not (job.run_dir / "stages" / f"{stage}.json").is_file():
                train_stage(config, stage, job.run_dir, parallel, observe)
    torch.set_num_threads(1)
    unseen = Store(job.out / "unseen" / "store")
    scored: dict[str, dict[str, dict[str, float]]] = {}
    for stage in config.stages:
        folder = job.run_dir / "weights" / stage
        scored[stage] = {
            name: score_weights(folder / f"{name}.safetensors", unseen, config.max_agl) for name in job.study.weights
        }
    job.result.parent.mkdir(exist_ok=True)
    about = {"arm": job.arm.name, "seed": job.seed, "stages": lengths(config), "tiles": len(unseen.entries)}
    write_json(job.result, {**about, "figures": scored, "curve": curve(job.run_dir, list(config.stages))})
    shutil.rmtree(job.run_dir / "checkpoints", ignore_errors=True)


def curve(run_dir: Path, stages: Sequence[str]) -> dict[str, list[list[float]]]:
    """By stage, [step, score] of every validation on the held-out places."""
    points: dict[str, list[list[float]]] = {stage: [] for stage in stages}
    for event in read_events(run_dir / "events.jsonl"):
        if event["kind"] == "validation":
            points[event["stage"]].append([event["step"], event["score"]])
    return points


def score_weights(path: Path, store: Store, max_agl: Mapping[str, float]) -> dict[str, float]:
    """What the weights are worth on all tiles of `store`, each predicted as a whole, without augmentation.

    Returns:
        score: the official one; agl_r2, vflow_r2: its parts, averaged over the cities; angle_error: median over the
        tiles, degrees; scale_error: median over the tiles of the error divided by the true scale; agl_rmse: over all
        known pixels, metres.
    """
    model, _ = load_weights(path)
    predictor = Predictor(model, max_agl, precision="float32", device="cpu")
    results = []
    for number, entry in enumerate(store.entries):
        rgb, agl = store.read_tile(number)
        predicted = predictor.predict(rgb, entry.city, entry.gsd)
        truth = entry_pose(entry)
        results.append(ImageResult(entry.id, entry.city, image_sums(agl, predicted.agl_cm), truth, predicted.pose))
    return figures(results)


def figures(results: Sequence[ImageResult]) -> dict[str, float]:
    """See `score_weights`; every result has a true pose."""
    total = score(results)
    cities = list(total.cities.values())
    pairs = [(result.truth, result.prediction) for result in results if result.truth is not None]
    squares = sum(result.sums.squared_error for result in results)
    return {
        "score": total.score,
        "agl_r2": statistics.fmean(city.agl_r2 for city in cities),
        "vflow_r2": statistics.fmean(city.vflow_r2 for city in cities if city.vflow_r2 is not None),
        "angle_error": math.degrees(
            statistics.median(abs(math.remainder(guess.angle - true.angle, math.tau)) for true, guess in pairs)
        ),
        "scale_error": statistics.median(abs(guess.scale - true.scale) / true.scale for true, guess in pairs),
        "agl_rmse": math.sqrt(squares / sum(result.sums.known for result in results)) / 100,
    }
