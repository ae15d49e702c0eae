"""What a stage works with while it trains, put up once at its start."""

import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import torch

from agl_core.config import TrainConfig
from agl_core.data.dataset import CropDataset
from agl_core.data.feed import Feed
from agl_core.data.order import Order
from agl_core.data.split import Split
from agl_core.data.statistics import CityStatistics
from agl_core.durable.chain import ChainLog
from agl_core.durable.checkpoint import read_digests
from agl_core.durable.exits import InterruptedRunError
from agl_core.durable.guard import Guard
from agl_core.durable.retention import checkpoint_name, checkpoint_step, list_checkpoints
from agl_core.durable.watchdog import Watchdog
from agl_core.inference.predictor import Predictor
from agl_core.model.losses import GeoposeLoss
from agl_core.model.precision import Precision
from agl_core.reporting.events import EventLog, count_interruptions
from agl_core.reporting.live.seen import Validated
from agl_core.reporting.live.view import LiveView
from agl_core.reporting.startup import stopwatch
from agl_core.reporting.tensorboard.scalars import Pictures, Scalars
from agl_core.scoring.score import Score
from agl_core.scoring.sums import load_code
from agl_core.training.agreement import Verdict, agree
from agl_core.training.best import BestWeights
from agl_core.training.build import Origin
from agl_core.training.datawait import DataWait
from agl_core.training.gallery import Gallery
from agl_core.training.hardware import hardware
from agl_core.training.incarnation import JobStart, begin_incarnation
from agl_core.training.journal import Journal
from agl_core.training.optimizer import optimizer_name
from agl_core.training.parallel import Parallel, default_threads
from agl_core.training.saver import Saver
from agl_core.training.schedule import Span
from agl_core.training.staging import open_store
from agl_core.training.step import Computed, OptimizerStep
from agl_core.training.validation import Scores


class Workbench:
    """One process's part of one incarnation of a stage: its data, state, step, files and watchers.

    `changing` is true while there is no state that could be saved, and `stepping` is held while it changes; `recent`
    holds the last entries of the chain, each with the link before it. `launched` is when this start began, in
    seconds since 1970.
    """

    def __init__(
        self,
        config: TrainConfig,
        stage: str,
        run_dir: Path,
        parallel: Parallel,
        guard: Guard,
        watch: bool,
        on_hang: Callable[["Workbench"], None],
        resources: ExitStack,
        job_start: JobStart = JobStart(),  # noqa: B008
    ) -> None:
        """`resources` ends what runs beside the training and closes the files; `on_hang` is called by the watchdog."""
        self.config, self.name, self.run_dir, self.parallel, self.guard = config, stage, run_dir, parallel, guard
        self.job = job_start.job
        self.launched = stopwatch.launched(time.time()) or time.time()
        self.changing = True
        self.stepping = threading.Lock()
        self.stage, number = config.stages[stage], list(config.stages).index(stage)
        self.threads = config.threads or default_threads(parallel.world_size)
        torch.set_num_threads(self.threads)
        self.lease = begin_incarnation(run_dir, parallel, job_start)
        incarnation = f"{stage}.{self.lease.generation}"
        self.watchdog = Watchdog(
            run_dir / "stacks" / f"{incarnation}.rank{parallel.rank}.txt",
            minutes=config.watchdog.minutes if watch else 0,
            factor=config.watchdog.factor,
            on_hang=lambda: on_hang(self),
            processes=parallel.world_size,
        )
        resources.enter_context(self.watchdog)
        if parallel.any(guard.requested):  # before the long part of the start
            self._leave_early()
        stopwatch.mark("lease")
        self.store, self.stage_in = open_store(
            Path(config.store or Path(config.data) / "store"), config.stage_in, parallel, lambda: guard.requested,
            self._leave_early, lambda: self.watchdog.beat("start"), resources,
        )  # fmt: skip
        if self.stage_in is not None:
            stopwatch.mark("stage-in")
        self.split = Split.of(self.store, config, stage)
        self.order = Order(config.seed, number, len(self.split.train), self.stage.batch)
        self.total = Span.parse(self.stage.length, f"stages.{stage}.length").steps(self.order)
        self.validate_every = Span.parse(self.stage.validate_every, f"stages.{stage}.validate_every")
        self.precision = Precision.choose(config.precision, parallel.device)
        self.tiles = self.split.digest(self.store)
        stopwatch.mark("store")
        self.origin = Origin(config, stage, run_dir, self.store.cities, self.tiles, self.precision, parallel)
        self.state, self.skipped, self.before = self.origin.build()
        self.start = self.state.step
        stopwatch.mark("model")
        loss = GeoposeLoss(self.stage.loss, CityStatistics.of(self.store, self.split.train))
        self.step = OptimizerStep(self.state, self.stage, config.seed, number, self.precision, parallel, loss, stage)
        stopwatch.mark("wrap")
        networks = [self.state.model, *([self.state.average.network] if self.state.average is not None else [])]
        self.predictors = [Predictor(each, config.max_agl, precision=self.precision.name) for each in networks]
        self.saver = Saver(
            config.checkpoint,
            run_dir / "checkpoints" / stage,
            self.lease,
            self.order,
            {
                "tiles": self.tiles,
                "store": self.store.digest,
                "threads": self.threads,
                "processes": parallel.world_size,
            },
            # Only by the first process, which saves first: later their names may be those of good checkpoints.
            [line.split(":")[0] for line in self.skipped] if parallel.first else [],
            count_interruptions(run_dir / "events.jsonl") if parallel.first else (0, 0.0),
        )
        if self.start:
            self.saver.continues_from(self.start)
        resources.push(self._end_writes)
        self.best = BestWeights(run_dir / "weights" / stage / "best.safetensors", self.state.model, self.lease)
        chain_file = run_dir / "chain" / f"{incarnation}.jsonl"
        self.chain = ChainLog(chain_file if parallel.first else None, self.state.link)
        if self.start:  # the incarnation that saved it may have been killed before it could write this down
            self.chain.state(self.start, read_digests(run_dir / "checkpoints" / stage / checkpoint_name(self.start)))
        resources.callback(self.chain.close)
        self.data_wait = DataWait()
        self._stepped: float | None = None
        self.recent: deque[tuple[str, int, int, list[float]]] = deque(maxlen=2)
        history = run_dir / "events.jsonl"
        self.progress = LiveView(stage, self.total, self.start, config, history, shown=parallel.first)
        self._tell_best()
        events = EventLog(run_dir / "events.jsonl" if parallel.first else None, stage, self.lease.generation)
        tensorboard = run_dir / "tensorboard" if parallel.first else None
        scalars = Scalars(tensorboard, stage, self.lease.generation, run_dir / "events.jsonl")
        resources.callback(events.close)
        resources.callback(scalars.close)
        pictures = Pictures(tensorboard, stage, self.start, self.lease.generation)
        resources.callback(pictures.close)
        self.gallery = Gallery(
            self.store, self.split.validation, config.tensorboard_tiles, parallel, pictures, run_dir / "tiles" / stage
        )
        magnitude = bool(self.stage.loss.magnitude)
        self.journal = Journal(stage, self.order, events, scalars, self.progress, magnitude)
        if config.workers:
            load_code()  # of validation, before data loading processes are forked: see CropDataset.load_code
        dataset = CropDataset(self.store, self.split.train, self.stage, config.seed, number, parallel.rank)
        self.feed = Feed(
            dataset, self.order, self.start, self.total, parallel.rank, parallel.world_size, config.workers or 0,
            pin_memory=parallel.device.type == "cuda",
        )  # fmt: skip
        resources.callback(self.feed.close)
        stopwatch.mark("files")
        self.changing = False

    def _leave_early(self) -> NoReturn:
        """Leave before there is a state: what is saved is what earlier incarnations have saved."""
        known = list_checkpoints(self.run_dir / "checkpoints" / self.name)
        step = checkpoint_step(known[0].name) if known else None
        raise InterruptedRunError(self.guard.signal or "a signal to another process", step)

    def _end_writes(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not KeyboardInterrupt:  # who presses Ctrl-C twice gives up what is still being written
            self.saver.writer.close()

    def agree(self, computed: Computed, samples: int, waited: float = 0.0, refused: bool = False) -> Verdict:
        """What all processes know together at the end of a step; this one has `waited` seconds for the data of the next
        one, or cannot go on (`refused`).

        Raises:
            PeerLostError: another process is gone.
        """
        number = signal.Signals[f"SIG{self.guard.signal}"] if self.guard.signal else 0
        save = self.parallel.first and self.saver.wanted()
        return agree(self.parallel, computed, samples, number, self.guard.remaining(), save, waited, refused)

    def offer(self, scores: Scores) -> None:
        """Have those weights written that have just reached the best score; raises what `BestWeights.offer` does."""
        average = self.state.average
        weights = average.weights() if average is not None and scores.ema else self.state.model.state_dict()
        self.best.offer(weights, self.metadata(scores.best, scores.ema))

    def metadata(self, result: Score | None, ema: bool) -> dict[str, Any]:
        """What the header of a weights file says of their origin. ema: they are the average of the weights."""
        score = result.as_json() if result is not None else None
        about = {"stage": self.name, "step": self.state.step, "ema": ema, "score": score}
        return {**about, "config": asdict(self.config)}

    def stepped(self, waited: float, seconds: float) -> None:
        """A step is done that took `seconds`, in `waited` of which data was waited for."""
        self._stepped = time.time()
        self.data_wait.step(waited, seconds)

    def last_step(self) -> dict[str, float]:
        """For an event that ends a start: when its last step was done, and what of the time since the event before was
        waiting for data; nothing if it has done none."""
        if self._stepped is None:
            return {}
        return {"at": round(self._stepped, 3), "waited": round(self.data_wait.waited, 4)}

    def _tell_best(self) -> None:
        """Hand the view what was best before this start."""
        score, step = self.state.best_score, self.state.best_step
        if score is not None and step is not None:
            epoch = self.order.epochs_done(step)
            self.progress.best(Validated(step, epoch, score, {}, self.state.best_ema, self.launched, None))

    def announce(self) -> None:
        """Say in one line where the stage stands, what it will do and where."""
        optimizer = optimizer_name(self.state.optimizer)
        self.journal.event(
            "start",
            self.start,
            steps=self.total,
            epochs=self.order.epochs_done(self.total),
            world_size=self.parallel.world_size,
            device=str(self.parallel.device),
            precision=self.precision.name,
            optimizer=optimizer,
            threads=self.threads,
            parameters=sum(p.numel() for p in self.state.model.parameters() if p.requires_grad),
            tiles=len(self.split.train),
            validation_tiles=len(self.split.validation),
            skipped=self.skipped,
            launched=round(self.launched, 3),
            job=self.job,
            **hardware(self.parallel.device),
        )
        begin = f"continuing from step {self.start} of" if self.start else "from the start,"
        skipped = f" (skipped checkpoint {'; '.join(self.skipped)})" if self.skipped else ""
        self.journal.note(
            f"{begin} {self.total} steps{skipped}; {self.stage.batch} crops each, {len(self.split.train)} tiles to "
            f"train on, {len(self.split.validation)} to validate on; {self.parallel.world_size} x "
            f"{self.parallel.device.type}, {self.precision.name}, {optimizer}"
        )
        if self.origin.no_apex:
            self.journal.note(f"the optimiser is {optimizer}: {self.origin.no_apex}")
        for name, now in (("processes", self.parallel.world_size), ("threads", self.threads)):
            if (before := self.before.get(name, now)) != now:
                self.journal.note(
                    f"{name}: {before} before, {now} now; the samples stay the same, the last bits of the result do not"
                )
        if self.before.get("store", self.store.digest) != self.store.digest:
            self.journal.warn(
                self.start,
                f"the store {self.store.path} has other content, or another codec, than the run has read so far: "
                "the result will not be that of a run from the start",
            )
        if self.config.codec not in ("auto", self.store.codec):
            self.journal.note(f"the store is in codec {self.store.codec}: --codec is for one that has to be prepared")
        if self.stage_in is not None:
            self.journal.event("stage-in", self.start, **self.stage_in.values())
            if self.stage_in.reason:
                self.journal.warn(self.start, self.stage_in.line())
            else:
                self.journal.note(self.stage_in.line())
