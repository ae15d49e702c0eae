"""`python launch.py fit`: what training an encoder takes on this machine's device, and on a cluster of such."""

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from agl_core.config import FitConfig, TrainConfig, options
from agl_core.errors import UserError, valid_choice
from agl_core.files import writable_folder, write_json
from agl_core.machine import cores
from agl_core.validate import validate
from jobs.cluster import ClusterConfig, load_cluster
from jobs.settings import train_config
from jobs.table import console

if TYPE_CHECKING:
    from agl_core.training.fit import Fitted
    from agl_core.training.fit_device import Device
    from agl_core.training.fit_forecast import StageTime

GB = 10**9


@dataclass(frozen=True)
class Plan:
    """What is to be measured. train: the recipe, with the crop that was asked for; tiles: of a stage's epoch; source:
    where their number comes from."""

    config: FitConfig
    cluster: ClusterConfig
    train: TrainConfig
    stage: str
    encoders: list[str]
    tiles: Callable[[str], int]
    source: str


def fit(config: FitConfig) -> None:
    """Measure the encoders one after the other, and print a row for each and what has to be known of it.

    Raises:
        UserError: an unknown encoder, stage, recipe or cluster, settings that this device does not have, or not a
            single crop of any encoder fits.
    """
    plan = make_plan(config)
    say("fit: loading torch")
    from agl_core.training.fit import choose_precision, measure
    from agl_core.training.fit_bench import Job
    from agl_core.training.fit_device import device_at_hand

    device = device_at_hand(config.memory, 1 if plan.cluster.executor == "slurm" else plan.cluster.processes)
    precision = choose_precision(config.precision, device)
    threads = config.threads or threads_of(plan.cluster)
    say(f"fit: {headline(plan, device, precision, threads)}")
    rows = []
    for encoder in plan.encoders:
        job = Job(replace(plan.train, encoder=encoder), plan.stage, precision, threads)
        try:
            rows.append(measure(job, device, plan.cluster.world_size, config.most, config.steps, say))
        except UserError as error:
            if len(plan.encoders) == 1:
                raise
            rows.append(_not_measured(encoder, str(error)))
    if all(row.reason for row in rows):
        raise UserError(rows[0].reason)
    show(plan, device, precision, threads, rows)


def make_plan(config: FitConfig) -> Plan:
    """All that can be refused before anything is measured.

    Raises:
        UserError: see `fit`.
    """
    cluster = load_cluster(config.cluster)
    train = train_config({"recipe": config.recipe})
    validate(train)
    stage = config.stage or next(iter(train.stages))
    valid_choice("stage", stage, list(train.stages))
    if config.gradient_checkpointing is not None:
        train.gradient_checkpointing = config.gradient_checkpointing
    if config.crop is not None:
        train.stages[stage] = replace(train.stages[stage], crop=config.crop)
    encoders = [name.strip() for name in (config.encoder or train.encoder).split(",") if name.strip()]
    if config.json:
        writable_folder(Path(config.json).absolute().parent, "--json")
    from agl_core.model.encoders import check_encoder
    from agl_core.training.fit_forecast import check_processes

    for encoder in encoders:
        check_encoder(encoder)
    check_processes(train, cluster.world_size)
    tiles, source = _tiles(config, train)
    for name in train.stages:
        tiles(name)
    return Plan(config, cluster, train, stage, encoders, tiles, source)


def _tiles(config: FitConfig, train: TrainConfig) -> tuple[Callable[[str], int], str]:
    if config.tiles is not None:
        count = config.tiles
        return lambda stage: count, "as given"
    if config.store:
        from agl_core.data.split import Split
        from agl_core.data.store import Store

        store = Store(Path(config.store))

        def of_store(stage: str) -> int:
            try:
                return len(Split.of(store, train, stage).train)
            except UserError as error:
                raise UserError(
                    f"recipe {config.recipe} cannot train stage {stage} on the store {config.store} ({error}): give "
                    "the number of tiles of an epoch with --tiles"
                ) from error

        return of_store, f"of the store {config.store}"
    from agl_core.training.fit_forecast import challenge_tiles

    return lambda stage: challenge_tiles(train, stage), "of the challenge, without those held out"


def threads_of(cluster: ClusterConfig) -> int:
    """CPU threads to measure with: those that each process on this machine will have."""
    return cores() if cluster.gpus_per_node else min(cores(), cluster.default_threads())


def headline(plan: Plan, device: "Device", precision: str, threads: int) -> str:
    """What is measured, and where."""
    stage = plan.train.stages[plan.stage]
    driver = f"driver {device.driver}" if device.driver else f"{threads} thread{'s' if threads > 1 else ''}"
    checkpointing = ", gradient checkpointing" if plan.train.gradient_checkpointing else ""
    return (
        f"stage {plan.stage} of {plan.config.recipe}, crops of {stage.crop} x {stage.crop}, {precision}"
        f"{checkpointing}; {device.name}, {driver}, {device.limit / GB:.1f} of {device.memory / GB:.1f} GB may be used"
    )


def show(plan: Plan, device: "Device", precision: str, threads: int, rows: list["Fitted"]) -> None:
    """Print the table and its notes; write the JSON file that was asked for."""
    times = [_forecast(plan, row) for row in rows]
    output = console()
    output.print(table(plan, rows, times))
    for line in notes(plan, device, rows, times):
        output.print(line, soft_wrap=True)
    if plan.config.json:
        write_json(Path(plan.config.json), as_json(plan, device, precision, threads, rows, times))


def _forecast(plan: Plan, row: "Fitted") -> list["StageTime"]:
    from agl_core.training.fit_forecast import forecast

    if row.pace is None:
        return []
    return forecast(plan.train, row.pace, row.largest, plan.cluster.world_size, plan.tiles)


def table(plan: Plan, rows: list["Fitted"], times: list[list["StageTime"]]) -> Table:
    """A row for each encoder."""
    found = Table(box=SIMPLE_HEAD, pad_edge=False)
    found.add_column("encoder", no_wrap=True)
    stages = [f"hours {name}" for name in plan.train.stages]
    for name in ["largest micro-batch", "its GB", "micro-batch", "GB", "crops/s", *stages, "hours in all"]:
        found.add_column(name, justify="right")
    for row, own in zip(rows, times, strict=True):
        if row.pace is None or row.of_largest is None or row.of_pace is None:
            found.add_row(row.encoder, "none", *[""] * (5 + len(stages)))
            continue
        found.add_row(
            row.encoder,
            f"{row.largest}" + (" or more" if row.bounded else ""),
            f"{row.of_largest.peak / GB:.2f}",
            f"{row.pace.micro_batch}",
            f"{row.of_pace.peak / GB:.2f}",
            f"{row.pace.crops_per_second:.3g}",
            *(_hours(stage.hours) for stage in own),
            _hours(sum(stage.hours for stage in own)),
        )
    return found


def notes(plan: Plan, device: "Device", rows: list["Fitted"], times: list[list["StageTime"]]) -> list[str]:
    """What must be known of the table, a sentence each."""
    lines = [row.reason for row in rows if row.reason]
    lines += [_promise_line(row) for row in rows if row.promise is not None]
    for row, own in zip(rows, times, strict=True):
        keys = [
            f"stages.{stage.stage}.micro_batch={stage.micro_batch}"
            for stage in own
            if stage.micro_batch != plan.train.stages[stage.stage].micro_batch
        ]
        if keys:
            lines.append(f"{row.encoder}: the hours are those with {' '.join(keys)}")
    measured = plan.train.stages[plan.stage]
    if any((stage.crop, stage.batch) != (measured.crop, measured.batch) for stage in plan.train.stages.values()):
        lines.append(f"only stage {plan.stage} was measured: the others are taken to go with their pixels")
    own = next(own for own in times if own)
    tiles = ", ".join(f"{stage.steps} steps of {stage.stage} on {stage.tiles} tiles" for stage in own)
    count = plan.cluster.world_size
    lines.append(
        f"hours: {tiles} ({plan.source}), {count} process{'es' if count > 1 else ''} with a device like this one each; "
        "validation, waiting for data and what processes exchange are not in them"
    )
    if plan.cluster.gpus_per_node and device.kind == "cpu":
        lines.append(
            f"cluster {plan.config.cluster} has GPUs and this machine shows none: these are the figures of this CPU; "
            f"for a GPU's: {on_a_node(plan.config, plan.cluster)}"
        )
    return lines


def _promise_line(row: "Fitted") -> str:
    assert row.promise is not None
    what = f"{row.encoder}: 8 crops of 512 x 512 in float16"
    if row.promise.held:
        return f"{what} fit 32 GB: {row.promise.peak / GB:.1f} GB"
    if row.promise.held is None:
        return f"{what} do not fit this GPU; whether they fit 32 GB is not known"
    return f"{what} do NOT fit 32 GB"


def on_a_node(config: FitConfig, cluster: ClusterConfig) -> str:
    """The command that measures on one GPU of the cluster's nodes."""
    words = ["srun", "--ntasks=1"]
    for name in ("partition", "account", "qos", "constraint"):
        if value := getattr(cluster, name):
            words.append(f"--{name}={value}")
    kind = str(cluster.sbatch.get("gres", "gpu")).rpartition(":")[0] or "gpu"
    words += [f"--gres={kind}:1", f"--cpus-per-task={cluster.cpus_per_process or 1}"]
    return shlex.join([*words, "python", "launch.py", "fit", *_given(config)])


def _given(config: FitConfig) -> list[str]:
    """The options of `config` that are not at their defaults, as they are typed."""
    words = []
    default = FitConfig()
    for entry in options(FitConfig):
        value = getattr(config, entry.name)
        if value == getattr(default, entry.name):
            continue
        option = entry.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", f"{value:g}" if isinstance(value, float) else str(value)]
    return words


def as_json(
    plan: Plan, device: "Device", precision: str, threads: int, rows: list["Fitted"], times: list[list["StageTime"]]
) -> dict[str, Any]:
    """All that is known, with bytes and seconds."""
    from importlib.metadata import version

    stage = plan.train.stages[plan.stage]
    return {
        "device": {**vars(device), "torch": version("torch"), "threads": threads},
        "recipe": plan.config.recipe,
        "stage": plan.stage,
        "crop": stage.crop,
        "precision": precision,
        "gradient_checkpointing": plan.train.gradient_checkpointing,
        "cluster": plan.config.cluster,
        "processes": plan.cluster.world_size,
        "rows": [_row_json(row, own) for row, own in zip(rows, times, strict=True)],
        "notes": notes(plan, device, rows, times),
    }


def _row_json(row: "Fitted", times: list["StageTime"]) -> dict[str, Any]:
    return {
        "encoder": row.encoder,
        "reason": row.reason,
        "largest": row.largest,
        "bounded": row.bounded,
        "of_largest": row.of_largest._asdict() if row.of_largest else None,
        "pace": {**vars(row.pace), "crops_per_second": row.pace.crops_per_second} if row.pace else None,
        "of_pace": row.of_pace._asdict() if row.of_pace else None,
        "promise": row.promise._asdict() if row.promise else None,
        "stages": [vars(stage) for stage in times],
        "hours": sum(stage.hours for stage in times),
    }


def _not_measured(encoder: str, reason: str) -> "Fitted":
    from agl_core.training.fit import Fitted

    return Fitted(encoder, reason)


def say(text: str) -> None:
    """A line of progress, which leaves standard output to the result."""
    print(text, file=sys.stderr, flush=True)


def _hours(hours: float) -> str:
    """With three digits, and without an exponent."""
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"
