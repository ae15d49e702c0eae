"""One place for a run, by its cluster and its number of GPUs: what is simulated there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agl_core.config import PlanConfig
from agl_core.durable.interval import DAY, MINUTE, Interval, young_daly
from agl_core.errors import UserError
from agl_core.reporting.events import read_all
from agl_core.reporting.goodput.account import account
from jobs.cluster import ClusterConfig
from jobs.planning import sacct
from jobs.planning.inputs import Inputs, Told
from jobs.planning.references import duration, micro_batch
from jobs.planning.simulation import Begin, RunPlan, Site
from jobs.planning.site import Observed, observed, read_known
from jobs.planning.strikes import CRASH, KINDS, NODE, PREEMPT, RANK, Queue, Rate, Strike
from jobs.planning.timeline import Position, Saving, Timeline, nanoseconds
from jobs.runs import Run

PREEMPTIONS, CRASHES, QUEUE_MINUTES = 6.0, 0.2, 30.0
"""Per day of running, and minutes, where nothing was measured or given."""
NODES = 0.5
"""The share of crashes that take the node along, where nothing was measured."""
REQUEUE = 121.0
"""Seconds that Slurm holds a requeued job back, unless the site has changed that."""
EARLY = 30.0
"""Seconds by which the warning of the time limit comes before it must: 0 to 60, in the mean."""
FIRST = 60.0
"""Seconds to the first save of a start with interval auto, which does not know yet what one costs."""
UNANNOUNCED = (CRASH, NODE)


@dataclass(frozen=True)
class Interruptions:
    """What hits jobs somewhere. known: instead of drawn ones; sources: of what is shown, in its order."""

    rates: Mapping[str, Rate]
    queue: Queue
    known: Sequence[Strike]
    sources: Sequence[tuple[str, Told]]

    def per_day(self, kinds: Sequence[str] = KINDS) -> float:
        """Interruptions of some kinds in a day of running, in the mean."""
        return sum(rate.per_day for kind, rate in self.rates.items() if kind in kinds)


@dataclass(frozen=True)
class Scenario:
    """A run in one place. notes: what has to be known of it."""

    cluster: str
    processes: int
    inputs: Inputs
    config: ClusterConfig
    interruptions: Interruptions
    begin: Begin
    notes: Sequence[str] = ()

    def plan(self, interval: Interval) -> RunPlan:
        """What is simulated, with a time between two checkpoints."""
        inputs, slurm = self.inputs, self.config.executor == "slurm"
        seconds, first = self.interval(interval)
        saving = Saving(
            None if seconds == float("inf") else nanoseconds(seconds),
            nanoseconds(inputs.stall.value),
            nanoseconds(inputs.write.value),
            None if first is None else nanoseconds(first),
        )
        limit = self.config.time_hours
        site = Site(
            limit=nanoseconds(limit * 3600) if slurm and limit is not None else None,
            warning=nanoseconds(self.config.signal_seconds + EARLY),
            grace=nanoseconds(inputs.train.checkpoint.grace),
            leave=nanoseconds(inputs.leave.value),
            fruitless=inputs.train.restart.fruitless if slurm else None,
            queued=slurm,
        )
        works = [inputs.work(number, name, self.processes) for number, name in enumerate(inputs.train.stages)]
        waits = [
            inputs.measured.stages[name].waits if inputs.measured and name in inputs.measured.stages else 0.0
            for name in inputs.train.stages
        ]
        return RunPlan(
            [Timeline(work, saving) for work in works],
            nanoseconds(inputs.startup.value),
            site,
            waits,
            self.begin,
            after=[nanoseconds(job.value) for job in inputs.after.values()],
            first_startup=nanoseconds(inputs.first_startup.value),
        )

    def interval(self, interval: Interval) -> tuple[float, float | None]:
        """Seconds between two checkpoints, and until the first of a start; those that auto comes to in the end."""
        if interval.fixed is not None:
            return interval.fixed, None
        often = self.interruptions.per_day()
        return young_daly(self.inputs.stall.value, DAY / often if often else float("inf")), FIRST


def scenario(
    name: str, config: ClusterConfig, processes: int, inputs: Inputs, interruptions: Interruptions, begin: Begin
) -> Scenario:
    """A run in one place.

    Raises:
        UserError: more processes than a step has crops.
    """
    notes = []
    for stage, values in inputs.train.stages.items():
        if values.batch < processes:
            raise UserError(
                f"a step of stage {stage} has {values.batch} crops for {processes} GPUs: give --gpus {values.batch} or "
                "fewer"
            )
        if (size := micro_batch(values, processes)) != values.micro_batch:
            notes.append(f"stages.{stage}.micro_batch={size}")
    said = [f"{processes} processes need {' '.join(notes)}"] if notes else []
    return Scenario(name, processes, inputs, config, interruptions, begin, said)


def begin_of(inputs: Inputs, now: float) -> Begin:
    """Where the run stands now."""
    measured = inputs.measured
    if not inputs.rest or measured is None:
        return Begin()
    for number, name in enumerate(inputs.train.stages):
        if not (times := measured.stages[name]).finished:
            since = measured.running_since
            running = since is not None and bool(measured.account.lives) and measured.account.lives[-1].job == name
            allocated = nanoseconds(max(now - since, 0.0)) if since is not None and running else None
            return Begin(number, Position(times.done), allocated)
    raise AssertionError("a run whose stages are all finished is refused before")


def interruptions_of(config: PlanConfig, cluster: ClusterConfig, inputs: Inputs) -> Interruptions:
    """What hits jobs on a cluster: as given, as measured, or the defaults.

    Raises:
        UserError: what was to be measured is not there.
    """
    slurm = cluster.executor == "slurm"
    words = config.interruptions
    of_file = words not in ("", "run", "runs", "sacct")
    known, waits = read_known(Path(words)) if of_file else ([], ())
    seen = Observed(0.0, {}, waits, words) if of_file else _seen(config, cluster, inputs)
    sources: list[tuple[str, Told]] = [("known interruptions", Told(len(known), words))] if of_file else []
    rates: dict[str, Rate] = {}
    default = PREEMPTIONS if slurm else 0.0
    rates |= _rates("preemptions a day", {PREEMPT: 1.0}, config.preemptions_per_day, seen, default, of_file, sources)
    share = {CRASH: 1 - NODES, NODE: NODES}
    default = CRASHES if slurm else 0.0
    rates |= _rates("crashes a day", share, config.crashes_per_day, seen, default, of_file, sources)
    return Interruptions(rates, _queue(config, slurm, seen, sources), known, sources)


def _seen(config: PlanConfig, cluster: ClusterConfig, inputs: Inputs) -> Observed | None:
    words = config.interruptions
    if words == "sacct":
        return sacct.ask([cluster.partition] if cluster.partition else [])
    if words == "run":
        if inputs.measured is None:
            raise UserError("--interruptions run needs a run: give --run too, or --interruptions runs")
        return observed([(inputs.measured.account, inputs.measured.config)], f"run {config.run}")
    if words != "runs":
        return None
    found = []
    for path in sorted(Path(config.runs).absolute().glob("*/config.yaml")):
        run = Run(path.parent)
        if (own := account(read_all(run.events))) is not None:
            found.append((own, run.config()))
    if not found:
        raise UserError(f"--interruptions runs: no run in {config.runs} has begun: give --preemptions-per-day instead")
    return observed(found, f"{len(found)} runs in {config.runs}")


def _rates(
    what: str,
    share: Mapping[str, float],
    given: float | None,
    seen: Observed | None,
    default: float,
    known: bool,
    sources: list[tuple[str, Told]],
) -> dict[str, Rate]:
    """Of the kinds in `share`, which together come `given` or `default` times a day; none where all are
    `known`."""
    option = "--" + what.replace(" a day", "-per-day")
    if given is None and known:
        return {}
    if given is None and seen is not None:
        kinds = [*share, *([RANK] if CRASH in share else [])]
        prior = PREEMPTIONS if PREEMPT in share else CRASHES
        rates = {kind: Rate.measured(seen.counts[kind], seen.days, prior, 1 / len(kinds)) for kind in kinds}
        count = sum(seen.counts[kind] for kind in kinds)
        told = (
            f"{count} in {duration(seen.days * DAY)} of running ({seen.source}), weighed with the default, "
            f"{prior:g} a day"
        )
        sources.append((what, Told(sum(rate.per_day for rate in rates.values()), told)))
        return rates
    per_day = default if given is None else given
    half = ", half of them with the node" if CRASH in share and per_day else ""
    sources.append((what, Told(per_day, (f"default; {option}" if given is None else option) + half)))
    return {kind: Rate(per_day * part) for kind, part in share.items()}


def _queue(config: PlanConfig, slurm: bool, seen: Observed | None, sources: list[tuple[str, Told]]) -> Queue:
    requeue = REQUEUE if slurm else 0.0
    if config.queue_minutes is None and seen is not None and seen.waits:
        mean = sum(seen.waits) / len(seen.waits)
        told = f"{len(seen.waits)} starts ({seen.source}), drawn from these"
        sources.append(("minutes in the queue", Told(mean / MINUTE, told)))
        return Queue(mean, seen.waits, 0.0 if seen.held else requeue)
    default = QUEUE_MINUTES if slurm else 0.0
    minutes = default if config.queue_minutes is None else config.queue_minutes
    source = "default; --queue-minutes" if config.queue_minutes is None else "--queue-minutes"
    sources.append(("minutes in the queue", Told(minutes, f"{source}; exponential" if minutes else source)))
    if requeue:
        sources.append(("seconds before a requeue", Told(requeue, "default of Slurm")))
    return Queue(minutes * MINUTE, (), requeue)
