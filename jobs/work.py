"""What a job does, in this process: for the ranks of a submitted job, and for the executors that run it here.

No job looks at its own record: what is planned is done, and what is already there of it is kept.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from agl_core.config import CheckpointConfig, EnsembleConfig, EvaluateConfig, PredictConfig, PrepareConfig
from agl_core.durable.exits import InterruptedRunError
from agl_core.durable.guard import Guard
from agl_core.files import write_json
from agl_core.machine import cores
from agl_core.reporting.startup import importing
from jobs.cluster import load_cluster
from jobs.many import made_of, read_ensemble
from jobs.pipeline import ENSEMBLE, EVALUATE, PREDICT, PREPARE, REPORT, STAGE, TRUTH
from jobs.reports import report_run
from jobs.runs import Run
from jobs.stages import Place, find_place, quiet_ends, train_here

BUSY_PAUSE = 10.0  # seconds between two looks whether another job still prepares the same store


@dataclass(frozen=True)
class SharedJob:
    """Do a job of the run in `run_dir`, as one of the processes of this machine that share it."""

    run_dir: Path
    name: str
    kind: str

    def __call__(self) -> None:
        """Do it to its end; leaves with code 2 and one sentence where the user can mend what is wrong."""
        with quiet_ends():
            carry_out(self.run_dir, self.name, self.kind, find_place(), keyboard=True)


def carry_out(run_dir: Path, name: str, kind: str, place: Place, watch: bool = False, keyboard: bool = False) -> bool:
    """Do a job of the run, ensemble or prediction in `run_dir` in this process; returns whether a signal came too late
    to interrupt it. `watch` ends a stage's process if it hangs; `keyboard`: Ctrl-C asks it to save and leave, where
    there is something to save.

    All jobs but stages leave stages/<name>.json as their last act, except `prepare`, whose end is a sealed store. Of
    several processes the first leaves it, which ends when all is done.

    Raises:
        InterruptedRunError: it was asked to leave before the end; what is done is kept.
        UserError: something that the user gave is wrong.
    """
    run = Run(run_dir)
    if kind == STAGE:
        return train_here(run_dir, name, place, watch, keyboard)
    warnings = run.config().checkpoint if run.exists() else CheckpointConfig()
    if kind in POLLING:
        with Guard(warnings.grace, warnings.usr1, keyboard) as guard:
            facts = POLLING[kind](run, guard, place)
            if place.rank == 0:
                _finish(run, name, facts)
            return guard.requested
    with leaving(warnings.usr1):
        facts = BRIEF[kind](run)
        if kind != PREPARE:
            _finish(run, name, facts)
    return False


def _finish(run: Run, name: str, facts: dict[str, Any]) -> None:
    record = run.stage_record(name)
    record.parent.mkdir(exist_ok=True)
    write_json(record, {"finished": True, "time": round(time.time(), 3), **facts})


def predict_here(config: PredictConfig, guard: Guard, place: Place) -> int:
    """Predict in this process, as one of those that share the images; returns the number of images, when all of them
    are predicted. See `agl_core.inference.predict.predict`."""
    with importing():
        from agl_core.inference.predict import predict
        from agl_core.training.parallel import Parallel

    device = Parallel(place.rank, place.world_size, place.local_rank, place.init_method, place.needs_gpu).device
    return predict(config, guard, rank=place.rank, ranks=place.world_size, device=device)


def asked_prediction(run: Run) -> PredictConfig:
    """What a run's folder says is to be predicted: the test images with the run's own weights, or what the verb
    `predict` was asked for."""
    if run.is_prediction():
        asked = run.prediction()
        cluster = load_cluster(str(run.cluster_file), resolve=False)
        return replace(asked, threads=cluster.default_threads() if asked.threads is None else asked.threads)
    config = run.config()
    return PredictConfig(
        run=run.name,
        runs=str(run.path.parent),
        weights=f"{list(config.stages)[-1]}/best",
        data=config.data,
        split="test",
        out=str(run.predictions),
        unit=config.unit,
        tta=config.tta,
        threads=config.threads,
    )


def _predict(run: Run, guard: Guard, place: Place) -> dict[str, Any]:
    asked = asked_prediction(run)
    return {"images": predict_here(asked, guard, place), "weights": asked.weights}


def _ensemble(run: Run, guard: Guard, place: Place) -> dict[str, Any]:
    from agl_core.inference.ensemble import ensemble

    content = read_ensemble(run)
    members = made_of(content)
    asked = EnsembleConfig(members=",".join(content.members), out=str(run.predictions), unit=content.unit)
    return {"images": ensemble(asked, guard), "members": members}


def _prepare(run: Run) -> dict[str, Any]:
    from agl_core.data.prepare.ingest import prepare
    from agl_core.data.store.layout import StoreBusyError

    config = run.config()
    asked = PrepareConfig(data=config.data, store=config.store, unit=config.unit, codec=config.codec, workers=_cores())
    told = False
    while True:
        try:
            prepare(asked)
            return {}
        except StoreBusyError:  # by a run that was launched before this one; then there will be little left to do
            if not told:
                print(f"waiting: another process prepares the store {config.store}", flush=True)
                told = True
            time.sleep(BUSY_PAUSE)


def _cores() -> int:
    """Cores that this process may use: of a node's, those that Slurm has given to the task."""
    return min(cores(), int(os.environ.get("SLURM_CPUS_PER_TASK", "") or cores()))


def _evaluate(run: Run) -> dict[str, Any]:
    from agl_core.scoring.evaluate import evaluate

    about = read_ensemble(run) if run.is_ensemble() else run.config()
    asked = EvaluateConfig(
        predictions=str(run.predictions),
        truth=str(Path(about.data) / TRUTH),
        unit=about.unit,
        json=str(run.score_file),
    )
    print(f"{run.name}: score of {run.predictions}", flush=True)
    return {"score": evaluate(asked).score}


def _report(run: Run) -> dict[str, Any]:
    print(f"report: {report_run(run)}", flush=True)
    return {}


POLLING: dict[str, Callable[[Run, Guard, Place], dict[str, Any]]] = {PREDICT: _predict, ENSEMBLE: _ensemble}
BRIEF: dict[str, Callable[[Run], dict[str, Any]]] = {PREPARE: _prepare, EVALUATE: _evaluate, REPORT: _report}


@contextmanager
def leaving(usr1: bool = False) -> Iterator[None]:
    """The first TERM or USR2 (or USR1) raises InterruptedRunError in the work inside, wherever that is; further ones
    do nothing. For work that may be torn anywhere, since it is short or is continued from what is on the disk."""
    pid = os.getpid()
    numbers = [signal.SIGTERM, signal.SIGUSR2, *([signal.SIGUSR1] if usr1 else [])]
    asked = False

    def leave(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked or os.getpid() != pid:
            return
        asked = True
        name = signal.Signals(number).name.removeprefix("SIG")
        raise InterruptedRunError(name, None, "what is done is kept")

    before = {number: signal.signal(number, leave) for number in numbers}
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)  # a job's rank has them wait until somebody takes them
        yield
    finally:
        asked = True
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
