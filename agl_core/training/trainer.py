"""One stage of a run, from its first step or its newest checkpoint to its end, through whatever happens meanwhile."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch

from agl_core.config import TrainConfig
from agl_core.data.batch import Batch
from agl_core.durable.exits import PeerLostError
from agl_core.durable.guard import Guard
from agl_core.durable.lease import LeaseLostError
from agl_core.errors import UserError
from agl_core.inference.predictor import NotFiniteError
from agl_core.reporting.startup import stopwatch
from agl_core.reporting.words import NEW_RUN, plural
from agl_core.scoring.score import Score
from agl_core.training.agreement import Verdict, samples_digest
from agl_core.training.endings import finish, leave, refuse, run_short, save_if_hung, save_what_stands
from agl_core.training.gallery import worth_a_picture
from agl_core.training.incarnation import JobStart
from agl_core.training.memory import MemoryShortageError
from agl_core.training.parallel import Parallel
from agl_core.training.schedule import learning_rate
from agl_core.training.step import NOTHING
from agl_core.training.validation import Scores, validate
from agl_core.training.workbench import Workbench


class StepReport(NamedTuple):
    """What one optimiser step did. step: its number, from 1; losses: float64 `agl_core.model.losses.PARTS`, of the
    whole global batch; lr: its learning rate."""

    step: int
    losses: torch.Tensor
    lr: float


Observer = Callable[[StepReport], None]


def train_stage(
    config: TrainConfig,
    stage: str,
    run_dir: Path,
    parallel: Parallel,
    observe: Observer | None = None,
    guard: Guard | None = None,
    watch: bool = False,
    job_start: JobStart = JobStart(),  # noqa: B008
) -> None:
    """Train `stage` of `config` to its end, continuing from the newest good checkpoint in `run_dir`.

    Leaves weights/<stage>/best.safetensors and last.safetensors (with an average of the weights last-ema.safetensors
    too) and, as its very last act, stages/<stage>.json.
    Every process of the group calls it; the first one writes. `observe` is called in every process after every step
    with losses that are the same everywhere. `guard` says when to leave; `watch` ends a process that hangs.

    Raises:
        UserError: no store, no such fold, weights that do not fit, more processes than micro-batches, losses that stay
            not finite, a disk that cannot be written to for too long, or a store that is damaged; the state after the
            last step is saved then, and every process raises the same.
        MemoryShortageError: a UserError that a process raises by itself; the state after the last step is saved.
        InterruptedRunError: `guard` asked some process to leave; the state is saved if there was time.
        PeerLostError: another process is gone; the state is saved.
        LeaseLostError: another incarnation of the run has taken over; nothing more was written.
    """
    with ExitStack() as resources:
        bench = Workbench(
            config, stage, run_dir, parallel, guard or Guard.off(), watch, save_if_hung, resources, job_start
        )
        StageTrainer(bench).run(observe)


class StageTrainer:
    """The loop of a stage: step, log, validate, save; `train_stage` is the way in."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self._chain_refused = False
        self._refusal = ""  # why this process has no data for the next step

    def run(self, observe: Observer | None = None) -> None:
        """The loop: step, log, validate, save, until the stage has its length or something ends it."""
        bench = self.bench
        try:
            with bench.progress:
                bench.announce()
                self._train(observe)
                finish(bench)
        except MemoryShortageError as error:
            run_short(bench, error)
        except PeerLostError as error:
            saved = save_what_stands(bench)
            kept = f"the state after step {saved} is saved" if saved else "there was nothing to save"
            raise PeerLostError(f"another process of stage {bench.name} is gone; {kept}") from error

    def _train(self, observe: Observer | None) -> None:
        bench = self.bench
        mine = range(bench.parallel.rank, bench.step.micro_batches, bench.parallel.world_size)
        batches = self._take(bench.start)
        stopwatch.mark("batch")
        verdict = bench.agree(NOTHING, 0, refused=bool(self._refusal))
        busy = 0.0  # seconds of training, without validation and saving
        while not self._boundary(verdict):
            began = time.monotonic()
            bench.watchdog.beat("step")
            assert batches is not None  # or the verdict would have been to leave
            lr = learning_rate(
                bench.stage.schedule, bench.stage.optimizer.lr, bench.state.step, bench.total, bench.order
            )
            computed = bench.step.compute(batches)
            samples = samples_digest(mine, batches)
            bench.watchdog.beat("data")
            asked = time.monotonic()
            batches = self._take(bench.state.step + 1)
            waited = time.monotonic() - asked
            verdict = bench.agree(computed, samples, waited, bool(self._refusal))
            self._conclude(verdict, lr)
            seconds = time.monotonic() - began
            busy += seconds
            bench.stepped(verdict.waited, seconds)
            self._report(verdict, lr, (bench.state.step - bench.start) * bench.stage.batch / busy)
            if bench.state.step == bench.start + 1:
                self._tell_startup()
            if observe is not None:
                observe(StepReport(bench.state.step, torch.tensor(verdict.losses, dtype=torch.float64), lr))

    def _tell_startup(self) -> None:
        stopwatch.mark("step")
        seconds = stopwatch.end()
        self.bench.journal.event(
            "startup", self.bench.state.step, seconds=seconds, total=round(sum(seconds.values()), 3)
        )

    def _take(self, step: int) -> list[Batch] | None:
        """What this process computes of step `step` (from 0); None if a signal came while it was waited for, or if
        the store is damaged there, which all are told with the end of the step that is being computed."""
        bench = self.bench
        try:
            return bench.feed.take(lambda: bench.guard.requested) if step < bench.total else []
        except UserError as error:
            self._refusal = str(error)
            return None

    def _conclude(self, verdict: Verdict, lr: float) -> None:
        """Take or skip the step that all have computed. Nothing is exchanged here, so no peer can be lost in it."""
        bench = self.bench
        state = bench.state
        with bench.stepping:
            bench.changing = True
            bench.recent.append((bench.chain.link, state.step + 1, verdict.samples, verdict.losses))
            bench.chain.step(state.step + 1, verdict.samples, verdict.losses)
            state.link = bench.chain.link
            if verdict.finite:
                bench.saver.writer.copied()
                bench.step.commit(lr)
                state.skips = 0
                self._cast_anchor()
            else:
                bench.step.skip()
                state.skips += 1
            # A state that is about to be taken back must not be saved: who goes on from it would go back to it.
            bench.changing = state.skips >= bench.config.divergence.max_skips

    def _cast_anchor(self) -> None:
        """Note the step as the one to go back to, if a checkpoint of it is due whatever the clock says."""
        bench = self.bench
        if bench.saver.scheduled(bench.state.step):
            bench.state.anchor = bench.state.step

    def _report(self, verdict: Verdict, lr: float, rate: float) -> None:
        bench = self.bench
        step = bench.state.step
        if not verdict.finite:
            bench.journal.event("skip", step, losses=[str(loss) for loss in verdict.losses])
        elif step in (bench.total, bench.start + 1) or step % bench.config.log_every == 0:
            seconds, waited = bench.data_wait.seconds, bench.data_wait.waited
            share, warning = bench.data_wait.share()
            bench.journal.step(step, verdict.losses, lr, rate, share, seconds, waited)
            if warning:
                bench.journal.warn(step, warning)
        bench.journal.advance(step)

    def _boundary(self, verdict: Verdict) -> bool:
        """What is done between two steps; whether the stage has its length."""
        bench = self.bench
        state, step = bench.state, bench.state.step
        rolled_back = state.skips >= bench.config.divergence.max_skips
        if rolled_back:
            self._roll_back()
        if verdict.refused:
            refuse(bench, self._refusal)
        if verdict.signal:
            leave(bench, verdict)
        best = state.best_step
        due = step == bench.total or bench.validate_every.due(step, bench.order)
        if bench.split.validation and due and state.validated < step and not self._validate():
            leave(bench, bench.agree(NOTHING, 0))
        if bench.parallel.first:
            self._housekeeping()
            asked = verdict.save or rolled_back or state.best_step != best or bench.saver.scheduled(step)
            if asked and 0 < step < bench.total and step != bench.saver.last_step and not bench.best.pending:
                bench.watchdog.beat("save")
                bench.saver.begin(state, bench.journal)
        return step == bench.total

    def _housekeeping(self) -> None:
        """Take notice of what goes on beside the training; only what cannot be borne is raised."""
        bench = self.bench
        step = bench.state.step
        bench.saver.look(bench.journal, bench.chain, step)
        for note in bench.feed.notes():
            bench.journal.warn(step, note)
        if bench.chain.failure is not None and not self._chain_refused:
            bench.journal.warn(
                step, f"the digest chain cannot be written ({bench.chain.failure}); it is kept in memory"
            )
        self._chain_refused = bench.chain.failure is not None
        try:
            bench.best.retry()
        except OSError as error:
            bench.journal.warn(step, f"the best weights cannot be written yet ({error})")
        try:
            bench.lease.renew(step)
        except OSError as error:
            bench.journal.warn(step, f"the lease of the run cannot be renewed ({error})")

    def _validate(self) -> bool:
        """Score the held-out fold; False if a signal came to any process meanwhile."""
        bench = self.bench
        began, state = time.monotonic(), bench.state

        def give_up() -> bool:
            bench.watchdog.beat("validation")
            return bench.guard.requested

        bench.journal.validating(state.step)
        try:
            results = self._scores(give_up)
        except NotFiniteError as error:  # the next steps will show whether training is lost
            bench.journal.warn(state.step, f"no score after step {state.step}: {error}")
            state.validated = state.step
            return True
        except UserError as error:
            refuse(bench, str(error))
        if results is None:
            return False
        bench.journal.validation(state.step, results, time.monotonic() - began)
        new_best = state.best_score is None or results.best.score > state.best_score
        self._show(results, new_best)
        bench.gallery.forget()
        if new_best:
            if bench.parallel.first:
                try:
                    bench.offer(results)
                except OSError as error:
                    bench.journal.warn(state.step, f"the best weights cannot be written yet ({error})")
            # The others must not call this score dealt with before it is: they save too, if the first one dies.
            bench.best.missing = bench.parallel.any(bench.best.pending)
            state.best_score, state.best_step, state.best_ema = results.best.score, state.step, results.ema
        state.validated = state.step
        return True

    def _show(self, results: Scores, new_best: bool) -> None:
        """Show what has been predicted for the chosen tiles. It is there before any process calls this validation dealt
        with, and whatever goes wrong in drawing and writing it changes nothing else."""
        bench, state = self.bench, self.bench.state
        picture = worth_a_picture(state.step, bench.total, state.best_step, new_best)
        if not bench.gallery.tiles or not (picture or new_best):
            return
        shown = bench.gallery.collect(int(results.ema))
        if bench.parallel.first:
            try:
                tiles = bench.gallery.tiles_with(shown)
                if picture:
                    bench.gallery.draw(state.step, tiles)
                if new_best:
                    with bench.lease.writing():
                        bench.gallery.write(tiles, state.step, results.best.score)
            except LeaseLostError:
                raise
            except Exception as error:
                bench.journal.warn(state.step, f"the tiles of this validation cannot be shown ({error})")
        if not new_best:
            bench.parallel.barrier()

    def _scores(self, give_up: Callable[[], bool]) -> Scores | None:
        """Of the weights and of their average, or None if a signal came meanwhile; raises what `validate` does."""
        bench = self.bench
        found: list[Score] = []
        bench.gallery.forget()
        for predictor in bench.predictors:
            look = bench.gallery.look()
            try:
                score = validate(predictor, bench.store, bench.split.validation, bench.parallel, give_up, look)
            except NotFiniteError as error:
                if not found:
                    raise
                bench.journal.warn(bench.state.step, f"no score of the average after step {bench.state.step}: {error}")
                break
            if score is None:
                return None
            found.append(score)
        return Scores(found[0], found[1] if len(found) > 1 else None)

    def _roll_back(self) -> None:
        """Go back to an earlier state and on with the next batches, leaving out all that came between."""
        bench = self.bench
        state, limits = bench.state, bench.config.divergence
        if state.rollbacks >= limits.max_rollbacks:
            raise UserError(
                f"stage {bench.name} diverges: {state.skips} losses or gradients in a row were not finite at step "
                f"{state.step}, after going back {plural(state.rollbacks, 'time')}; lower "
                f"stages.{bench.name}.optimizer.lr or use --precision float32, and {NEW_RUN}"
            )
        # From here on nothing may be saved as the state of this step until it is that after going back.
        bench.changing = True
        bench.saver.writer.wait()
        bench.parallel.barrier()
        with bench.stepping:
            anchor, to = state.anchor, bench.origin.roll_back(state)
            bench.step.forget()
            bench.chain.rollback(state.step, to)
            state.link, state.skips, state.rollbacks = bench.chain.link, 0, state.rollbacks + 1
            self._cast_anchor()
            bench.recent.clear()
            bench.changing = False
        bench.journal.event("rollback", state.step, to=to)
        bench.journal.note(
            f"warning: {limits.max_skips} steps in a row were not finite at step {state.step}: going on from the "
            f"state after step {to} with the next batches ({state.rollbacks} of {limits.max_rollbacks} times)"
        )
        if to != anchor:
            bench.journal.warn(
                state.step,
                f"the checkpoint of step {anchor}, from which an undisturbed run would go on, was never written, so "
                "the result may differ from that of one",
            )
