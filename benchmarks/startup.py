"""From the launch of a run's processes to their first training step: what a start costs, item by item.

Each contender starts processes as a job does and lets them train two steps of a small store on one CPU thread each,
fresh or from the checkpoint after the first step; what counts is the time that the first process tells in its event
`startup` (the items are those of `agl_core.reporting.startup`). The baseline is a Python that imports torch and ends.
Times hold for files that are in memory already: on a cold node the imports and the checkpoint wait for the disk.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

if not __package__:  # run as a file: Python then looks for modules in this folder, not in the one above
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agl_core.config import CheckpointConfig, StageConfig, TrainConfig
from agl_core.data.store import StoreEntry, StoreWriter
from agl_core.reporting.startup import LAUNCHED
from benchmarks.harness import Contender, arguments, compare, report
from jobs.settings import to_yaml

ROOT = Path(__file__).resolve().parent.parent
BASELINE = "import torch"
STAGE = "train"
RANK = """
import agl_core.reporting.startup
import sys
from pathlib import Path
from jobs.stages import Place, train_here
run_dir, rank, processes, meeting = sys.argv[1:]
train_here(Path(run_dir), "train", Place(int(rank), int(processes), int(rank), meeting or None))
"""


@dataclass(frozen=True)
class Case:
    """What is started: the encoder, in how many processes with how many data loading processes each."""

    encoder: str
    processes: int
    workers: int

    @property
    def name(self) -> str:
        return f"{self.encoder} x {self.processes}"


QUICK = [Case("tu-resnet10t", processes=1, workers=0)]
FULL = [
    Case("tu-resnet10t", processes=1, workers=1),
    Case("efficientnet-b7", processes=1, workers=1),
    Case("efficientnet-b7", processes=2, workers=1),
]
QUICK_ROUNDS, FULL_ROUNDS = 1, 5


@dataclass
class Told:
    """What the starts told of themselves; also the clock of the comparison, on which nothing but starts takes time."""

    seconds: float = 0.0
    items: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def __call__(self) -> float:
        return self.seconds

    def add(self, name: str, event: dict[str, Any]) -> None:
        self.seconds += event["total"]
        self.items.setdefault(name, []).append(event["seconds"])

    def medians(self) -> dict[str, dict[str, float]]:
        """The median of every item of every contender, without the first start, which is not counted."""
        return {
            name: {item: median(start.get(item, 0.0) for start in starts[1:]) for item in starts[1]}
            for name, starts in self.items.items()
        }


def make_store(path: Path) -> Path:
    """A store of a few tiles of noise."""
    generator = np.random.default_rng(0)
    with StoreWriter(path) as writer:
        for number in range(4):
            rgb = generator.integers(0, 255, (128, 128, 3)).astype(np.uint8)
            agl = generator.integers(0, 3000, (128, 128)).astype(np.uint16)
            writer.write(StoreEntry(f"AAA_{number}", "AAA", 0.5, 128, 128, 1.0, 0.5, f"place{number}"), rgb, agl)
        writer.seal()
    return path


def make_run(run_dir: Path, store: Path, case: Case) -> Path:
    """A run of two steps with a checkpoint after each."""
    stage = StageConfig(length="2 steps", crop=64, batch=4, micro_batch=2, validate_every="2 steps")
    config = TrainConfig(
        store=str(store),
        encoder=case.encoder,
        encoder_weights="none",
        fold=-1,
        threads=1,
        workers=case.workers,
        checkpoint=CheckpointConfig(every="1 step"),
        stages={STAGE: stage},
    )
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    return run_dir


def start(run_dir: Path, case: Case) -> dict[str, Any]:
    """Start the processes of the run and wait for their end; the event `startup` of the first."""
    meeting = f"file://{run_dir}/rendezvous" if case.processes > 1 else ""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "1000", "PYTHONPATH": str(ROOT)}
    if Path("/sys/class/net/lo").exists():
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    events = run_dir / "events.jsonl"
    known = events.stat().st_size if events.exists() else 0
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(run_dir), str(rank), str(case.processes), meeting],
            env={**environment, LAUNCHED: str(time.time())},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(case.processes)
    ]
    complaints = [rank.communicate()[1] for rank in ranks]
    assert not any(rank.returncode for rank in ranks), "\n".join(complaints)
    (run_dir / "rendezvous").unlink(missing_ok=True)
    told = [json.loads(line) for line in events.read_bytes()[known:].splitlines()]
    (event,) = [event for event in told if event["kind"] == "startup"]
    return dict(event)


def fresh(run_dir: Path, case: Case, told: Told) -> Contender:
    """A run that begins; it leaves the checkpoint that `resumed` continues from."""

    def begin() -> None:
        for path in run_dir.iterdir():
            if path.name != "config.yaml":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        told.add(f"{case.name}, fresh", start(run_dir, case))

    return begin


def resumed(run_dir: Path, case: Case, told: Told) -> Contender:
    """The same run, as an interruption in its second step would have left it."""

    def resume() -> None:
        shutil.rmtree(run_dir / "checkpoints" / STAGE / "step_00000002")
        (run_dir / "stages" / f"{STAGE}.json").unlink()
        event = start(run_dir, case)
        assert event["step"] == 2, "it did not continue from its checkpoint"
        told.add(f"{case.name}, resumed", event)

    return resume


def bare(told: Told) -> Contender:
    """A Python that imports torch."""

    def run() -> None:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        told.seconds += time.perf_counter() - began

    return run


def table(medians: dict[str, dict[str, float]]) -> str:
    """A line for each item, a column for each contender; seconds."""
    items = list(dict.fromkeys(item for seconds in medians.values() for item in seconds))
    rows = [["item", *medians]]
    rows += [[item, *(f"{seconds.get(item, 0.0):.2f}" for seconds in medians.values())] for item in items]
    rows.append(["sum", *(f"{sum(seconds.values()):.2f}" for seconds in medians.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments("From the launch of a run's processes to their first training step, item by item.", argv)
    cases, rounds = (QUICK, QUICK_ROUNDS) if options.quick else (FULL, FULL_ROUNDS)
    told = Told()
    contenders = {BASELINE: bare(told)}
    with tempfile.TemporaryDirectory(prefix="startup-") as name:
        folder = Path(name)
        store = make_store(folder / "store")
        for number, case in enumerate(cases):
            run_dir = make_run(folder / f"run{number}", store, case)
            contenders[f"{case.name}, fresh"] = fresh(run_dir, case, told)
            contenders[f"{case.name}, resumed"] = resumed(run_dir, case, told)
        comparison = compare(contenders, rounds, BASELINE, told)
    medians = told.medians()
    title = f"from the launch to the first step, one thread per process, {rounds} rounds"
    report(comparison, title, {"rounds": rounds, "items": medians}, options)
    print(f"\nseconds of each item of the first process (median of {rounds} starts)\n{table(medians)}")


if __name__ == "__main__":
    main()
