"""`python launch.py plan`: when a run will end, what interruptions will cost it, and how often it should save."""

import json
import time
from pathlib import Path

from agl_core.config import PlanConfig
from agl_core.durable.interval import Interval
from agl_core.errors import UserError
from jobs.cluster import ClusterConfig, load_cluster
from jobs.planning import show
from jobs.planning.inputs import gather
from jobs.planning.prediction import advise, predict
from jobs.planning.scenario import Scenario, begin_of, interruptions_of, scenario
from jobs.runs import Run
from jobs.settings import Assignments
from jobs.table import console

DEFAULT = "slurm"


def plan(config: PlanConfig, cluster_keys: Assignments, now: float | None = None) -> None:
    """Simulate the run in every place that is asked for, and print what comes of it. now: unix time, that of the clock
    where it is not given.

    Raises:
        UserError: a number that has no default is not known, or one that is given makes no sense.
    """
    now = time.time() if now is None else now
    places = scenarios(config, cluster_keys, now)
    written = places[0].inputs.train.checkpoint.interval
    interval = Interval.parse(written, "checkpoint.interval")
    rows = [(place, predict(place, interval, config.draws, config.seed)) for place in places]
    advice = advise(places[0], interval, config.draws, config.seed) if rows[0][1].finished else None
    if config.json:
        print(json.dumps(show.as_json(rows, advice, now), indent=2))
        return
    output = console()
    first = places[0]
    where = f"{first.cluster}, {first.processes} {'process' if first.processes == 1 else 'processes'}"
    for line in (
        f"{first.inputs.what} on {where}",
        show.headline(rows[0], now),
        *dict.fromkeys(note for place in places for note in place.notes),
        *show.assumed(places),
        *(show.advice(advice, first, written) if advice is not None else []),
    ):
        output.print(line, soft_wrap=True)
    output.print(show.comparison(rows, now))
    if rows[0][1].finished:
        output.print(show.items(rows[0][1]))
    output.print(show.sources(first, written))


def scenarios(config: PlanConfig, cluster_keys: Assignments, now: float) -> list[Scenario]:
    """The places that are compared: each cluster with each number of GPUs."""
    clusters = _clusters(config, cluster_keys)
    counts = _counts(config.gpus)
    inputs = gather(config, next(iter(clusters.values())).world_size, now)
    begin = begin_of(inputs, now)
    found = []
    for name, cluster in clusters.items():
        interruptions = interruptions_of(config, cluster, inputs)
        for processes in counts or [cluster.world_size]:
            found.append(scenario(name, cluster, processes, inputs, interruptions, begin))
    return found


def _clusters(config: PlanConfig, cluster_keys: Assignments) -> dict[str, ClusterConfig]:
    own = Run(Path(config.runs).absolute() / config.run).cluster_file
    if not config.cluster and config.run and not config.recipe and own.exists():
        return {f"the cluster of {config.run}": load_cluster(str(own), cluster_keys, resolve=False)}
    names = [name.strip() for name in (config.cluster or DEFAULT).split(",") if name.strip()]
    return {name: load_cluster(name, cluster_keys) for name in names}


def _counts(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isascii() and word.isdecimal() and int(word) for word in words):
        raise UserError(f"--gpus is {text!r}: give numbers of GPUs with commas, such as 1,2,4")
    return [int(word) for word in words]
