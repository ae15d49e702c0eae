"""`python launch.py drill`: a small run, interrupted again and again, against the same run left alone."""

import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from rich.console import Console

from agl_core.config import DrillConfig, PrepareConfig, WorldConfig
from agl_core.errors import UserError
from agl_core.files import read_json, writable_folder, write_json, write_text
from agl_core.reporting.progress import Progress
from jobs.failure import JobError
from jobs.interruption import Pace, draw
from jobs.rehearsal import Incarnation, Rehearsal
from jobs.verdict import Verdict, account, compare_runs, goodput, problems, read_events, time_spent

LAUNCH = Path(__file__).parent.parent / "launch.py"
STAGE = "train"
WHOLE, INTERRUPTED = "undisturbed", "interrupted"
MARKER, FORMAT = ".geopose-drill.json", "geopose-drill-1"
OWN = ("recipe.yaml", "world", "runs", f"{WHOLE}.log", f"{INTERRUPTED}.log")
"""All that a drill writes into its folder."""
TILES, FOLD_TILES = 24, 3
LOG_WIDTH = 110  # columns of the table in a file


def drill(config: DrillConfig, launch: tuple[str, ...] = (sys.executable, str(LAUNCH))) -> None:
    """Train a small run undisturbed, and again with interruptions, and print what they cost and whether it shows.

    Both runs are given with the command line `launch`, on the CPU, where the same bits are promised; their folder keeps
    the recipe, the logs, both run directories and, unless a store is given, a small built-in world.

    Raises:
        UserError: values that make no run, or a folder that holds anything else.
        JobError: the results differ, a promise was broken (a step lost after a warning, a process left behind, fewer
            interruptions than asked for), or the run failed without being interrupted.
    """
    _check(config)
    folder = claim(config)
    recipe = folder / "recipe.yaml"
    store = Path(config.store).absolute() if config.store else _build_world(folder / "world", config)
    write_recipe(recipe, config, _tiles(store))
    with _terminable():
        rehearsals = {name: _rehearsal(name, folder, recipe, store, config, launch) for name in (WHOLE, INTERRUPTED)}
        _say(f"drill: {config.steps} steps undisturbed, {_count(config.processes, 'process')} (in {folder})")
        whole = rehearsals[WHOLE].run()
        pace = measure(whole, read_events(rehearsals[WHOLE].run_dir), config)
        _say(
            f"drill: start-up {pace.startup:.1f} s, a step {pace.step:.3f} s; now with "
            f"{_count(config.interruptions, 'interruption')}"
        )
        planned = draw(config.interruptions, config.signal, config.processes, config.seed)
        with Progress("drill", config.interruptions, "interruptions") as progress:

            def tell(found: Incarnation) -> None:
                progress.note(describe(found))
                progress.advance(1 if found.hit else 0)

            incarnations = rehearsals[INTERRUPTED].run_interrupted(planned, pace, tell)
    verdict = judge(rehearsals[INTERRUPTED].run_dir, rehearsals[WHOLE].run_dir, incarnations, config.interruptions)
    Console(width=None if sys.stdout.isatty() else LOG_WIDTH).print(verdict.as_table())
    if config.json:
        write_json(Path(config.json), verdict.as_json())
    if verdict.difference is not None:
        raise JobError(f"the interrupted run differs from the undisturbed one: {verdict.difference}")
    if verdict.problems:
        raise JobError(f"the results are the same bits, but {'; '.join(verdict.problems)}")


def claim(config: DrillConfig) -> Path:
    """The drill's folder, empty but for its marker.

    What an earlier drill has left in it is deleted, and nothing else ever: a folder that holds anything of another kind
    is refused as a whole.

    Raises:
        UserError: it exists and is not that of an earlier drill, or holds what is still needed, or cannot be written.
    """
    folder = Path(config.out).absolute()
    if config.store and Path(config.store).absolute().is_relative_to(folder):
        raise UserError(f"the store {config.store} lies in the folder {folder}, which is replaced: give another --out")
    if folder.exists():
        _check_own(folder, Path(config.json).absolute() if config.json else None)
    if config.json:
        writable_folder(Path(config.json).absolute().parent, "--json")
    writable_folder(folder, "--out")
    write_json(folder / MARKER, {"format": FORMAT, **asdict(config)})
    for name in OWN:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return folder


def _check_own(folder: Path, result: Path | None) -> None:
    """Raise a `UserError` unless `folder` is empty, or that of an earlier drill and of nothing else but `result`."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else [folder.name]
    marker = folder / MARKER
    if names and not (marker.is_file() and read_json(marker).get("format") == FORMAT):
        raise UserError(f"{folder} exists and is not that of an earlier drill: choose a new folder with --out")
    foreign = [name for name in names if name not in (MARKER, *OWN) and folder / name != result]
    if foreign:
        raise UserError(f"{folder} holds {foreign[0]}, which is not of a drill: choose a new folder with --out")


def intervals(config: DrillConfig) -> tuple[int, int]:
    """Steps from one save to the next and from one validation to the next: several of each fall into the run, and more
    for many interruptions, so that a run whose processes are all killed comes on."""
    every = max(min(config.steps // 6, max(config.steps // (config.interruptions + 1), 3)), 1)
    return every, 2 * every


def write_recipe(path: Path, config: DrillConfig, tiles: int) -> None:
    """Write the recipe of a drill on a store of `tiles` tiles; of these a few are held out."""
    from omegaconf import OmegaConf

    every, validate_every = intervals(config)
    recipe: dict[str, Any] = {
        "encoder": config.encoder,
        "encoder_weights": "none",
        "seed": config.seed,
        "folds": max(tiles // FOLD_TILES, 2),
        "fold": 0,
        "fold_by": "city",
        "precision": "float32",
        "threads": 1,
        "model": {"decoder_channels": [64, 32, 16, 16, 8]},
        "checkpoint": {"every": f"{every} steps", "interval": "never"},
        "stages": {
            STAGE: {
                "length": f"{config.steps} steps",
                "crop": config.crop,
                "batch": config.batch,
                "micro_batch": config.micro_batch,
                "augment": {"rot90": 1.0, "flip_horizontal": 0.5, "flip_vertical": 0.5, "transpose": 0.5},
                "optimizer": {"lr": 1e-3},
                "schedule": {"warmup": 0.05},
                "ema": 0.99,  # so that what is compared in the end is everything that a run can have
                "validate_every": f"{validate_every} steps",
            }
        },
    }
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(recipe)))


def command(name: str, folder: Path, recipe: Path, store: Path, config: DrillConfig) -> list[str]:
    """The words after `launch.py` that train the run `name`."""
    several = config.processes > 1
    return [
        *("--cluster", "local" if several else "debug"),
        *([f"cluster.processes={config.processes}"] if several else []),
        "cluster.gpus_per_node=0",
        *("--recipe", str(recipe), "--store", str(store), "--workers", str(config.workers)),
        *("--runs", str(folder / "runs"), "--run", name, "--until", "train"),
    ]


def measure(whole: Incarnation, events: list[dict[str, Any]], config: DrillConfig) -> Pace:
    """The pace of the undisturbed run, from its events."""
    times = {event["kind"]: float(event["time"]) for event in events}
    spent = {
        kind: [float(event["seconds"]) for event in events if event["kind"] == kind]
        for kind in ("validation", "checkpoint")
    }
    training = times["finish"] - times["start"] - sum(spent["validation"])
    every, validate_every = intervals(config)
    return Pace(
        total=config.steps,
        every=every,
        validate_every=validate_every,
        startup=times["start"] - whole.launched,
        step=max(training, 0.0) / config.steps,
        validation=fmean(spent["validation"] or [0.0]),
        save=fmean(spent["checkpoint"] or [0.0]),
    )


def judge(interrupted: Path, whole: Path, incarnations: list[Incarnation], asked: int) -> Verdict:
    """Compare both runs and account for all interruptions; checkpoints are timed in the undisturbed run, since the last
    save of an interrupted one must wait for the disk."""
    rows = account(incarnations)
    saves = [event for event in read_events(whole) if event["kind"] == "checkpoint"]
    return Verdict(
        rows=rows,
        saves=len(saves),
        stall=fmean([float(event["stall"]) for event in saves] or [0.0]),
        save=fmean([float(event["seconds"]) for event in saves] or [0.0]),
        goodput=goodput(whole, incarnations),
        difference=compare_runs(interrupted, whole, STAGE),
        problems=problems(incarnations, rows, asked),
        account=time_spent(interrupted),
    )


def describe(found: Incarnation) -> str:
    """What has happened to an incarnation, in a line."""
    begun = "" if found.start is None else f"continued from step {found.start}, " if found.start else "began, "
    if not found.hit:
        return f"{begun}came to its end at step {found.reached or found.start}"
    assert found.interruption is not None
    return f"{begun}{found.interruption.signal} to {found.hit} {_at(found.when)}: exit code {found.code}"


def _at(when: str) -> str:
    return when if when.startswith("after") else f"in {when}"


def _check(config: DrillConfig) -> None:
    """Raise a `UserError` for values that make no run, before anything is written or takes time."""
    from agl_core.model.encoders import check_encoder
    from jobs.cli import parse

    check_encoder(config.encoder)
    if config.store:
        _tiles(Path(config.store))
    with TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        write_recipe(recipe, config, TILES)
        parse(command(WHOLE, Path(folder), recipe, Path(folder), config))


def _build_world(folder: Path, config: DrillConfig) -> Path:
    from agl_core.data.prepare.ingest import prepare
    from agl_core.world.dataset import render_world

    render_world(WorldConfig(out=str(folder), tiles=TILES, size=max(96, config.crop + 32), seed=0))
    prepare(PrepareConfig(data=str(folder)))
    return folder / "store"


def _tiles(store: Path) -> int:
    from agl_core.data.store import Store

    return len(Store(store).entries)


def _rehearsal(
    name: str, folder: Path, recipe: Path, store: Path, config: DrillConfig, launch: tuple[str, ...]
) -> Rehearsal:
    words = command(name, folder, recipe, store, config)
    return Rehearsal([*launch, *words], folder / "runs" / name, STAGE, config.processes, folder / f"{name}.log")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _count(number: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number} {noun if number == 1 else plural}"


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end the drill the way Ctrl-C does, so that its runs are ended too."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
