"""A run that trains in seconds: a world, its store, recipes, a cluster configuration, and the command that submits."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from jobs.snapshot import sources
from tests.slurm.minislurm import ROOT, MiniSlurm
from tests.slurm.scenario import Scenario

TILES, HELD_OUT, SIZE = 24, 3, 96
STEPS, EVERY, VALIDATE = 24, 4, 8
"""Of a stage: its steps, and those from one checkpoint and one validation to the next."""
PATIENCE = 120.0  # seconds for a command

_STAGE: dict[str, Any] = {
    "length": f"{STEPS} steps",
    "crop": 64,
    "batch": 8,
    "micro_batch": 2,
    "augment": {"rot90": 1.0, "flip_horizontal": 0.5, "flip_vertical": 0.5, "transpose": 0.5},
    "optimizer": {"lr": 1e-3},
    "schedule": {"warmup": 0.05},
    "validate_every": f"{VALIDATE} steps",
}

RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "one": {"train": _STAGE},
    "two": {
        "first": {**_STAGE, "length": f"{STEPS // 2} steps", "validate_every": f"{EVERY} steps"},
        "second": {
            **_STAGE,
            "length": f"{STEPS // 2} steps",
            "validate_every": f"{EVERY} steps",
            "start": "first/best",
        },
    },
}
"""The stages of each recipe."""

BASE: dict[str, Any] = {
    "encoder": "tu-test_efficientnet",
    "encoder_weights": "none",
    "seed": 0,
    "folds": TILES // HELD_OUT,
    "fold": 0,
    "fold_by": "city",
    "precision": "float32",
    "threads": 1,
    "model": {"decoder_channels": [16, 16, 8, 8, 8]},
    "checkpoint": {"every": f"{EVERY} steps", "interval": "never", "keep": 3},
}

CLUSTER: dict[str, Any] = {
    "executor": "slurm",
    "nodes": 1,
    "processes": 1,
    "gpus_per_node": 0,
    "cpus_per_process": 1,
    "memory_gb": 1,
    "time_hours": 0.2,
    "signal_seconds": 60,
    "partition": "preemptible",
    # Each job has its nodes for itself, so that a preemption hits nobody else.
    "sbatch": {"exclusive": True},
    "environment": {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    "workers": 0,
    "threads": 1,
}


@dataclass(frozen=True)
class Workplace:
    """A folder with everything that runs need, and their run directories below `runs`."""

    folder: Path

    @property
    def world(self) -> Path:
        """The data set."""
        return self.folder / "world"

    @property
    def store(self) -> Path:
        """Its store."""
        return self.world / "store"

    @property
    def runs(self) -> Path:
        """Where the run directories lie."""
        return self.folder / "runs"

    def build(self) -> None:
        """Render the world, build its store and write the recipes."""
        from agl_core.config import PrepareConfig, WorldConfig
        from agl_core.data.prepare.ingest import prepare
        from agl_core.world.dataset import render_world

        render_world(WorldConfig(out=str(self.world), tiles=TILES, size=SIZE, seed=0))
        prepare(PrepareConfig(data=str(self.world), workers=1))
        for name, stages in RECIPES.items():
            write_yaml(self.folder / f"{name}.yaml", {**BASE, "stages": stages})

    def run_dir(self, scenario: Scenario) -> Path:
        """The run directory of a scenario."""
        return self.runs / folder_name(scenario.name)

    def launch(self, scenario: Scenario, slurm: MiniSlurm, held: bool = False) -> str:
        """Give the command that submits the scenario's run, whose jobs are `held` back; what it printed.

        Raises:
            RuntimeError: it ended with another exit code than 0.
        """
        cluster = self.folder / f"{folder_name(scenario.name)}.cluster.yaml"
        size = {"nodes": scenario.nodes, "processes": scenario.processes}
        values = {**CLUSTER, **size, **scenario.cluster}
        write_yaml(cluster, {**values, "sbatch": {**values["sbatch"], **({"hold": True} if held else {})}})
        command = [
            *(sys.executable, str(self.checkout(scenario) / "launch.py"), "--cluster", str(cluster)),
            *("--recipe", str(self.folder / f"{scenario.recipe}.yaml")),
            *(("--data", str(self._own_data(scenario))) if scenario.data else ("--store", str(self.store))),
            *("--runs", str(self.runs), "--run", folder_name(scenario.name)),
        ]
        done = subprocess.run(
            command, cwd=self.folder, env={**slurm.environment, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"the command that submits ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def checkout(self, scenario: Scenario) -> Path:
        """The checkout that a scenario is launched from: this one, or a copy that may be spoiled."""
        if not scenario.copied:
            return ROOT
        copy = self.folder / f"{folder_name(scenario.name)}.checkout"
        if not copy.exists():
            for path in sources(ROOT):
                (copy / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / path, copy / path)
        return copy

    def _own_data(self, scenario: Scenario) -> Path:
        """The world's files without its store, in a folder of the scenario's own."""
        folder = self.folder / f"{folder_name(scenario.name)}.world"
        folder.mkdir(exist_ok=True)
        for path in self.world.iterdir():
            if path != self.store and not (folder / path.name).exists():
                os.symlink(path, folder / path.name)
        return folder


def folder_name(name: str) -> str:
    """A scenario's name as that of a folder."""
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def write_yaml(path: Path, content: dict[str, Any]) -> None:
    """Write a configuration."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(content)), encoding="utf-8")
