"""How a process leaves a stage: at its end, when it is asked to, or because it must."""

import math
import signal
import sys
from contextlib import suppress
from functools import partial
from typing import NoReturn

from torch import Tensor

from agl_core.durable.chain import ChainLog
from agl_core.durable.exits import InterruptedRunError
from agl_core.durable.lease import LeaseLostError
from agl_core.errors import UserError
from agl_core.files import write_json
from agl_core.model.weights import save_weights
from agl_core.training.agreement import Verdict
from agl_core.training.memory import MemoryShortageError
from agl_core.training.step import NOTHING
from agl_core.training.workbench import Workbench

STEP_PATIENCE = 5.0  # seconds in which a step that all have agreed on is taken, unless it hangs itself


def finish(bench: Workbench) -> None:
    """Leave the last checkpoint, the weights and, when all is on the disk, the record of the stage."""
    if not bench.parallel.first:  # the disk may take its time, while these wait for the first process
        bench.watchdog.__exit__(None, None, None)

    def give_up() -> bool:
        bench.watchdog.beat("save")
        return bench.guard.requested

    done = not bench.parallel.first or all(
        bench.saver.insist(write, bench.journal, bench.total, give_up)
        for write in (
            bench.best.write,
            partial(_last_checkpoint, bench),
            partial(_last_weights, bench),
            partial(_record, bench),
        )
    )
    if bench.parallel.any(not done):
        leave(bench, bench.agree(NOTHING, 0))


def _last_checkpoint(bench: Workbench) -> None:
    bench.saver.save(bench.state, math.inf)
    bench.saver.look(bench.journal, bench.chain, bench.total)


def _last_weights(bench: Workbench) -> None:
    folder = bench.run_dir / "weights" / bench.name
    with bench.lease.writing():
        for name, weights, ema in _left(bench):
            save_weights(folder / f"{name}.safetensors", bench.state.model, bench.metadata(None, ema), weights)


def _left(bench: Workbench) -> list[tuple[str, dict[str, Tensor], bool]]:
    """The weights that a stage leaves at its end: name, tensors, and whether they are the average. Where nothing was
    scored those that an average was asked for are taken for the best."""
    raw, average = bench.state.model.state_dict(), bench.state.average
    left = [("last", raw, False)]
    if average is not None:
        left.append(("last-ema", average.weights(), True))
    if not bench.split.validation:
        left.append(("best", *left[-1][1:]))
    return left


def _record(bench: Workbench) -> None:
    bench.journal.event("finish", bench.state.step, score=bench.state.best_score)
    done = {"finished": True, "steps": bench.state.step, "score": bench.state.best_score}
    with bench.lease.writing():
        (bench.run_dir / "stages").mkdir(exist_ok=True)
        write_json(bench.run_dir / "stages" / f"{bench.name}.json", done)
    with suppress(OSError):
        bench.lease.release(bench.state.step)


def leave(bench: Workbench, verdict: Verdict) -> NoReturn:
    """Save, if there is time, and say that the run was interrupted."""
    step, name = bench.state.step, signal.Signals(verdict.signal).name.removeprefix("SIG")
    if bench.parallel.first:
        _save_last(bench, verdict.seconds_left)
        bench.journal.event("interruption", step, signal=name, saved=bench.saver.last_good, **bench.last_step())
        with suppress(OSError):
            bench.lease.release(step)
    # The others wait here: the first of them to end would have all ended on some clusters.
    saved = bench.parallel.text_of_first(str(bench.saver.last_good or ""))
    raise InterruptedRunError(name, int(saved) if saved else None)


def refuse(bench: Workbench, reason: str) -> NoReturn:
    """Save, and say in every process why the first of them that has a `reason` cannot go on; the others have none.

    The processes come here together: one that went alone would be a lost peer to the others, who know no reason.
    """
    reason = bench.parallel.any_text(reason)
    if bench.parallel.first:
        _save_last(bench, bench.guard.remaining())
        told = {"text": reason, "saved": bench.saver.last_good, **bench.last_step()}
        bench.journal.event("refusal", bench.state.step, **told)
        with suppress(OSError):
            bench.lease.release(bench.state.step)
    bench.parallel.barrier()
    raise UserError(reason)


def run_short(bench: Workbench, shortage: MemoryShortageError) -> NoReturn:
    """Save the state after the last step, which is there whatever was computed since, and say what to lower.

    A process comes here by itself, and not for the others to answer: they may wait for it in the middle of a step. To
    them it is lost, so that they save the same state; where several processes have ended, the reason that a user can
    mend is the one that is told.
    """
    bench.parallel.fail()
    saved = save_what_stands(bench)
    kept = f"the state after step {saved} is saved" if saved else "there was nothing to save"
    told = {"text": str(shortage), "saved": bench.saver.last_good, **bench.last_step()}
    bench.journal.event("refusal", bench.state.step, **told)
    raise MemoryShortageError(f"{shortage}; {kept}") from shortage


def _save_last(bench: Workbench, seconds_left: float) -> None:
    """The first process's last save before all leave; a disk that refuses it does not change how they leave."""
    step = bench.state.step
    bench.watchdog.beat("save")
    try:
        bench.best.write()
        if step and not bench.saver.save(bench.state, seconds_left):
            bench.journal.warn(step, f"a checkpoint would not fit into the {seconds_left:.0f} s left")
    except OSError as error:
        bench.journal.warn(step, f"the state of step {step} could not be saved ({error})")
    bench.saver.look(bench.journal, bench.chain, step)


def save_what_stands(bench: Workbench) -> int | None:
    """Save the state after the last step, which this process has whatever was computed since; the step if it is
    on the disk. Called when the other processes are out of reach, or by the watchdog's thread."""
    if bench.changing or bench.state.step == 0 or (bench.best.missing and not bench.parallel.first):
        return None
    try:
        bench.best.write()
        saved = bench.saver.save(bench.state, bench.guard.remaining())
    except (OSError, LeaseLostError) as error:
        with suppress(OSError):  # the log may lie on the same disk
            print(f"{bench.name}: the state of step {bench.state.step} could not be saved ({error})", file=sys.stderr)
        return None
    if not bench.parallel.first and bench.recent:
        # The first process may have been killed before it could write down the last step.
        path = bench.run_dir / "chain" / f"{bench.name}.{bench.lease.generation}.jsonl"
        log = ChainLog(path, bench.recent[0][0])
        for _, step, samples, losses in bench.recent:
            log.step(step, samples, losses)
        log.close()
    return bench.state.step if saved else None


def save_if_hung(bench: Workbench) -> None:
    """What the watchdog does before it ends a process."""
    # Should the training come to life again meanwhile, it waits here for its end instead of taking the next step.
    if not bench.stepping.acquire(timeout=STEP_PATIENCE):
        return
    bench.parallel.abandon()
    if (saved := save_what_stands(bench)) is not None:
        print(f"{bench.name}: the state after step {saved} is saved", file=sys.stderr)
